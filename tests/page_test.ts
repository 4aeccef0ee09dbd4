// What client.html promises, in a real Chromium: opened from disk and served, in both languages.

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { Buffer } from "node:buffer";
import type { BrowserContextOptions, Page } from "playwright-core";
import { room } from "../broadcast_server.ts";
import { echo } from "../server.ts";
import type { Handler } from "../websockets.ts";
import { CHROMIUM, CHROMIUM_FLAGS, Script, startServer, test } from "./helpers.ts";

const silent = () => {};
const FROM_DISK = new URL("../client.html", import.meta.url).href;

/** Opens pages in a Chromium of their own, and fails if one of them complains in its console. */
async function browse(
  options: BrowserContextOptions,
  use: (open: (url: string) => Promise<Page>) => Promise<void>,
): Promise<void> {
  // The package looks around in the environment as soon as it is imported.
  const { chromium } = await import("playwright-core");
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
  const complaints: string[] = [];
  try {
    const context = await browser.newContext(options);
    await use(async (url) => {
      const page = await context.newPage();
      page.on("console", (message) => complaints.push(message.text()));
      page.on("pageerror", (error) => complaints.push(error.message));
      await page.goto(url);
      return page;
    });
  } finally {
    await browser.close();
  }
  // That a connection fails is always written there, by the browser itself.
  assertEquals(complaints.filter((text) => !text.includes("WebSocket connection to")), []);
}

/** Waits until an element shows a text. */
async function shows(page: Page, selector: string, text: string): Promise<void> {
  await page.locator(selector).filter({ hasText: text }).first().waitFor();
}

/** Connects, with the URL given if there is one. */
async function connect(page: Page, url?: string): Promise<void> {
  if (url) await page.fill("#url", url);
  await page.click("#connect");
}

test(
  { needs: "chromium" },
  "opened from disk it connects, sends, shows and disconnects",
  async () => {
    await using server = startServer(echo(silent), { origins: ["null"] });
    await browse({ locale: "en-US" }, async (open) => {
      const page = await open(FROM_DISK);
      assertEquals(await page.inputValue("#url"), "ws://localhost:9999/handler");
      assertEquals(await page.innerText("#connect"), "Connect");
      await connect(page, `${server.url}/handler`);
      await shows(page, "#status", `Connected: ${server.url}/handler`);
      await shows(page, ".sent", "Hello, I am the page.");
      await shows(page, ".received", 'Data received as "Hello, I am the page.".  time: ');
      assertEquals(await page.innerText("#connect"), "Disconnect");
      await page.click("#connect");
      await shows(page, "#status", "Closed with code 1000, reason: goodbye");
    });
  },
);

test({ needs: "chromium" }, "39 rounds of it bring 39 answers", async () => {
  await using server = startServer(echo(silent), { origins: ["null"] });
  await browse({}, async (open) => {
    const page = await open(FROM_DISK);
    await page.fill("#url", server.url);
    for (let round = 1; round <= 39; round++) {
      await page.click("#connect");
      await page.locator(".received").nth(round - 1).waitFor();
      await page.click("#connect");
      await shows(page, "#status", "1000");
    }
    assertEquals(await page.locator(".received").count(), 39);
  });
});

test(
  { needs: "chromium" },
  "served, it knows its server, and speaks Chinese to a Chinese browser",
  async () => {
    await using server = startServer(echo(silent));
    await browse({ locale: "zh-CN" }, async (open) => {
      const page = await open(`http://localhost:${server.port}/`);
      assertEquals(await page.getAttribute("html", "lang"), "zh-CN");
      assertEquals(await page.inputValue("#url"), `${server.url}/handler`);
      await page.click("#connect");
      await shows(page, "#status", "已连接");
      await shows(page, ".received", "你好，我是网页。");
      await page.click("#connect");
      await shows(page, "#status", "连接已关闭，代码 1000");
    });
  },
);

test(
  { needs: "chromium" },
  "from the keyboard alone: Enter connects, sends, and keeps the focus",
  async () => {
    await using server = startServer(echo(silent));
    await browse({}, async (open) => {
      const page = await open(`http://localhost:${server.port}/`);
      await page.keyboard.press("Tab");
      assertEquals(await page.evaluate("document.activeElement.id"), "url");
      await page.keyboard.press("Enter");
      await shows(page, ".received", "Hello, I am the page.");
      await page.focus("#text");
      await page.keyboard.press("Control+A");
      await page.keyboard.type("one more");
      await page.keyboard.press("Enter");
      await shows(page, ".received", 'Data received as "one more".');
      assertEquals(await page.evaluate("document.activeElement.id"), "text");
      assertEquals(await page.inputValue("#text"), "");
    });
  },
);

test({ needs: "chromium" }, "what arrives is text, whatever it looks like", async () => {
  await using server = startServer({ message: (socket, data) => socket.send(data) });
  await browse({}, async (open) => {
    const page = await open(`http://localhost:${server.port}/`);
    const markup = "<img src=x onerror='document.title=1'><b>bold</b>";
    await page.fill("#text", markup);
    await page.click("#connect");
    await shows(page, ".received bdi", markup);
    assertEquals(await page.locator("#log img").count(), 0);
    // A long text is cut, and an old entry makes room for a new one.
    await page.fill("#text", "x".repeat(5_000));
    await page.click("#send");
    await shows(page, ".received", "… (5,000 characters in all)");
  });
});

test(
  { needs: "chromium" },
  "a file goes out in pieces, comes back, and has the same SHA-256",
  async () => {
    const sizes: number[] = [];
    const message: Handler["message"] = (socket, data) => {
      if (data instanceof ArrayBuffer) sizes.push(data.byteLength);
      socket.send(data);
    };
    await using server = startServer({ message });
    const buffer = new Uint8Array(8 * 1024 * 1024 + 1).map((_, index) => index * 31 % 251);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
    const hash = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    await browse({ locale: "en-US" }, async (open) => {
      const page = await open(`http://localhost:${server.port}/`);
      assert(await page.isDisabled("#file"));
      await page.click("#connect");
      const file = {
        name: "a.bin",
        mimeType: "application/octet-stream",
        buffer: Buffer.from(buffer),
      };
      for (let time = 0; time < 2; time++) {
        await page.setInputFiles("#file", file);
        await page.locator(".checked").nth(time).waitFor();
        assertStringIncludes(
          await page.locator(".checked").nth(time).innerText(),
          `The file came back unchanged (8,388,609 bytes, SHA-256 ${hash}): a.bin`,
        );
      }
      assertEquals(await page.evaluate("progress.value / progress.max"), 1);
    });
    assertEquals(sizes.reduce((sum, size) => sum + size), 2 * buffer.length);
    assert(sizes.every((size) => size <= 65_536), "a piece is larger than 64 KiB");
  },
);

test({ needs: "chromium" }, "a file that comes back changed, or not at all, is told", async () => {
  let isFirst = true;
  const message: Handler["message"] = (socket, data) => {
    if (typeof data === "string") return socket.close(1011, "no text, please");
    const changed = new Uint8Array(data);
    if (isFirst) changed[0]++;
    isFirst = false;
    socket.send(changed);
  };
  await using server = startServer({ message });
  await browse({ locale: "en-US" }, async (open) => {
    const page = await open(`http://localhost:${server.port}/`);
    await page.fill("#text", "");
    await page.click("#connect");
    const file = { name: "b.bin", mimeType: "", buffer: Buffer.alloc(100_000) };
    await page.setInputFiles("#file", file);
    await shows(page, ".problem", "The file came back different");
    await page.fill("#text", "stop");
    await page.click("#send");
    await shows(page, "#status", "Closed with code 1011, reason: no text, please");
    assertEquals(await page.evaluate("progress.value"), 0);
  });
});

test({ needs: "chromium" }, "a server that is away, or a wrong address, is told", async () => {
  await using server = startServer(echo(silent));
  await browse({ locale: "en-US" }, async (open) => {
    const page = await open(FROM_DISK);
    await connect(page, "ws://localhost:1/");
    await shows(
      page,
      "#status",
      "Check that the server is running: deno run --allow-net server.ts.",
    );
    await connect(page, "ws://");
    await shows(page, "#status", "This address cannot be used.");
    // This server lets no page from disk in.
    await connect(page, server.url);
    await shows(page, "#status", `open http://localhost:${server.port}/ instead of this file`);
    await shows(page, "#status", "or start it with --origin null");
  });
});

test({ needs: "chromium" }, "where WebSocket is missing it says so", async () => {
  await browse({ locale: "en-US" }, async (open) => {
    const page = await open(FROM_DISK);
    await page.addInitScript("delete globalThis.WebSocket");
    await page.reload();
    await shows(page, "#status", "This browser has no WebSocket.");
    assert(await page.isDisabled("#connect"));
  });
});

test(
  { needs: "chromium" },
  "it fits a phone, in light and dark, and its status and log are live",
  async () => {
    const viewport = { width: 360, height: 640 };
    for (const colorScheme of ["light", "dark"] as const) {
      await browse({ viewport, colorScheme, locale: "zh-CN" }, async (open) => {
        const page = await open(FROM_DISK);
        const width = await page.evaluate("document.documentElement.scrollWidth");
        assert(Number(width) <= 360, `the page is ${width} pixels wide`);
        const background = await page.evaluate("getComputedStyle(document.body).backgroundColor");
        const [red] = String(background).match(/\d+/) ?? [];
        assertEquals(Number(red) > 127, colorScheme === "light", String(background));
        assertEquals(await page.getAttribute("#status", "role"), "status");
        assertEquals(await page.getAttribute("#log", "role"), "log");
      });
    }
  },
);

test(
  { needs: "chromium" },
  "two tabs at the broadcast server see each other, and what is pushed",
  async () => {
    await using server = startServer(room(new Set(), silent, silent));
    const url = `http://localhost:${server.port}/`;
    await browse({ locale: "en-US" }, async (open) => {
      const tabs = [await open(url), await open(url)];
      for (const [index, tab] of tabs.entries()) {
        await tab.fill("#text", `tab ${index} is here`);
        await tab.click("#connect");
        await shows(tab, ".received", `tab ${index} is here`);
      }
      await shows(tabs[0], ".received", "tab 1 is here");
      await tabs[0].fill("#text", "from one to the other");
      await tabs[0].click("#send");
      const pushed = await fetch(url, { method: "POST", body: "pushed" });
      assertEquals([pushed.status, await pushed.json()], [202, { clients: 2 }]);
      for (const tab of tabs) {
        await shows(tab, ".received", "from one to the other");
        await shows(tab, ".received", "pushed");
      }
    });
  },
);

test(
  { needs: "chromium" },
  "the broadcast server lets a page from disk in with --origin null only",
  async () => {
    for (const flags of [[], ["--origin", "null"]]) {
      await using server = await Script.server("broadcast_server.ts", ...flags);
      await browse({ locale: "en-US" }, async (open) => {
        const page = await open(FROM_DISK);
        await connect(page, server.url);
        await shows(
          page,
          "#status",
          flags.length ? "Connected: " : "or start it with --origin null.",
        );
      });
    }
  },
);
