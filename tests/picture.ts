// Draws tests/page.png, the picture of the page in the README: `deno task picture`.

import { Buffer } from "node:buffer";
import { chromium } from "playwright-core";
import { CHROMIUM, CHROMIUM_FLAGS } from "./needs.ts";
import { Script } from "./programs.ts";

await using _server = await Script.server("server.ts", "--port", "9999");
const browser = await chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
const page = await browser.newPage({ viewport: { width: 860, height: 640 }, locale: "en-US" });
await page.goto("http://localhost:9999/");
await page.click("#connect");
await page.locator(".received").waitFor();
await page.fill("#text", "hello");
await page.press("#text", "Enter");
await page.locator(".received").nth(1).waitFor();
const file = { name: "photo.jpg", mimeType: "image/jpeg", buffer: Buffer.alloc(2_345_678, 7) };
await page.setInputFiles("#file", file);
await page.locator(".checked").waitFor();
await page.screenshot({ path: new URL("page.png", import.meta.url).pathname });
await browser.close();
