// Draws the pictures of the page in the README, in English and in Chinese: `deno task picture`. The
// second one needs a Chinese font, such as that of Debian's package fonts-wqy-zenhei.

import { Buffer } from "node:buffer";
import { chromium } from "playwright-core";
import { CHROMIUM, CHROMIUM_FLAGS } from "./needs.ts";
import { Script } from "./programs.ts";

await using _server = await Script.server("server.ts", "--port", "9999");
const browser = await chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
for (const [locale, hello, name] of [["en-US", "hello", "page"], ["zh-CN", "你好", "page.zh-CN"]]) {
  const page = await browser.newPage({ viewport: { width: 860, height: 640 }, locale });
  await page.goto("http://localhost:9999/");
  await page.click("#connect");
  await page.locator(".received").waitFor();
  await page.fill("#text", hello);
  await page.press("#text", "Enter");
  await page.locator(".received").nth(1).waitFor();
  const file = { name: "photo.jpg", mimeType: "image/jpeg", buffer: Buffer.alloc(2_345_678, 7) };
  await page.setInputFiles("#file", file);
  await page.locator(".checked").waitFor();
  await page.screenshot({ path: new URL(`${name}.png`, import.meta.url).pathname });
}
await browser.close();
