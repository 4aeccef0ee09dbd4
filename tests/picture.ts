// Draws tests/page.png, the picture of the page in the README: `deno task picture`.

import { Buffer } from "node:buffer";
import { chromium } from "playwright-core";
import { echo, serve } from "../server.ts";
import { CHROMIUM, CHROMIUM_FLAGS } from "./helpers.ts";

const server = serve(echo(() => {}), { port: 9999 });
const browser = await chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
const page = await browser.newPage({ viewport: { width: 860, height: 690 }, locale: "en-US" });
await page.goto("http://localhost:9999/");
await page.click("#connect");
await page.locator(".received").waitFor();
await page.fill("#text", "hello");
await page.press("#text", "Enter");
const file = { name: "photo.jpg", mimeType: "image/jpeg", buffer: Buffer.alloc(2_345_678, 7) };
await page.setInputFiles("#file", file);
await page.locator(".checked").waitFor();
await page.screenshot({ path: new URL("page.png", import.meta.url).pathname });
await browser.close();
await server.shutdown();
