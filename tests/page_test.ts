// What client.html promises, in a real Chromium: opened from disk and served, in both languages.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Buffer } from "node:buffer";
import type { Browser, BrowserContext, Page } from "playwright-core";
import html from "../client.html" with { type: "text" };
import { CHROMIUM, CHROMIUM_FLAGS, Inbox, PYTHON, Script } from "./helpers.ts";
import { startPythonServer, startServer, test } from "./helpers.ts";

const FROM_DISK = new URL("../client.html", import.meta.url).href;
const SECOND = 1000;

/** How a browser may be: it speaks a language, and its time may pass only when a test says so. */
const KINDS = { English: "en-US", Chinese: "zh-CN", "English, stopped": "en-US" };

let browser: Browser;
const contexts = new Map<string, BrowserContext>();

Deno.test.beforeAll(async () => {
  if (!CHROMIUM || Deno.permissions.querySync({ name: "sys" }).state !== "granted") return;
  // The package looks around in the environment as soon as it is imported.
  const { chromium } = await import("playwright-core");
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: CHROMIUM_FLAGS,
    // The back button brings pages back as they were, as it does for everyone.
    ignoreDefaultArgs: ["--disable-back-forward-cache"],
  });
  await Promise.all(
    Object.entries(KINDS).map(async ([kind, locale]) => {
      const context = await browser.newContext({ locale });
      contexts.set(kind, context);
      context.setDefaultTimeout(10 * SECOND);
      // The longest pauses that chance allows, so that a test knows them.
      await context.addInitScript("Math.random = () => 0");
      // While it is open, the pages of the tests open in half the time, in a process that is there.
      const page = await context.newPage();
      if (kind.endsWith("stopped")) {
        await page.clock.install({ time: 0 });
        await page.clock.pauseAt(SECOND);
      }
      // Until then, a timer of the package runs.
      await page.waitForLoadState("networkidle");
    }),
  );
});
Deno.test.afterAll(() => browser?.close());

/** Opens pages, and fails if one of them complains in its console. */
async function browse(
  kind: keyof typeof KINDS,
  use: (open: (url: string) => Promise<Page>) => Promise<void>,
): Promise<void> {
  const complaints: string[] = [];
  const pages: Page[] = [];
  try {
    await use(async (url) => {
      const page = await contexts.get(kind)!.newPage();
      pages.push(page);
      page.on("console", (message) => complaints.push(message.text()));
      page.on("pageerror", (error) => complaints.push(error.message));
      await page.goto(url);
      return page;
    });
  } finally {
    await Promise.all(pages.map((page) => page.close()));
  }
  // That a connection fails is always written there, by the browser itself.
  assertEquals(complaints.filter((text) => !text.includes("WebSocket connection to")), []);
}

/** Waits until an element shows a text. */
async function shows(page: Page, selector: string, text: string): Promise<void> {
  await page.locator(selector).filter({ hasText: text }).first().waitFor();
}

/** Presses the button to connect and disconnect without the mouse, which would take its time. */
function press(page: Page): Promise<unknown> {
  return page.evaluate(`document.getElementById("connect").click()`);
}

/** Connects, with the URL given if there is one, and waits until it is open. */
async function connect(page: Page, url?: string): Promise<void> {
  if (url) await page.fill("#url", url);
  await press(page);
  await page.locator("[data-state=open]").waitFor();
}

/** How many entries of a kind the log has. */
function count(page: Page, kind: string): Promise<number> {
  return page.locator(`li.${kind}`).count();
}

function file(name: string, content: Uint8Array) {
  return { name, mimeType: "application/octet-stream", buffer: Buffer.from(content) };
}

/** Sends everything back as it came. */
const verbatim = {
  message: (socket: WebSocket, data: string | ArrayBuffer) => socket.send(data),
};

/** Serves the page, and nothing but handshakes: it tells what each asks for and gives the socket. */
function serveByHand(open: (socket: WebSocket) => void = () => {}, status = 101) {
  const handshakes = new Inbox<string>();
  const server = Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, (request) => {
    if (request.headers.get("upgrade") !== "websocket") {
      return new Response(html, { headers: { "Content-Type": "text/html; charset=utf-8" } });
    }
    const { pathname, search } = new URL(request.url);
    handshakes.put(pathname + search);
    if (status !== 101) return new Response("no", { status });
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onopen = () => open(socket);
    return response;
  });
  const host = `localhost:${server.addr.port}`;
  return {
    handshakes,
    host,
    ws: `ws://${host}`,
    http: `http://${host}/`,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

test(
  { needs: "chromium" },
  "opened from disk it connects, sends, shows and disconnects",
  async () => {
    await using server = await Script.server("server.ts");
    await browse("English", async (open) => {
      const page = await open(FROM_DISK);
      assertEquals(await page.inputValue("#url"), "ws://localhost:9999/handler");
      await shows(page, "#word", "Not connected");
      assertEquals(await page.innerText("#connect"), "Connect");
      await page.fill("#url", `${server.url}/handler`);
      await page.click("#connect");
      await shows(page, "#connection", `Connected ${server.url}/handler`);
      await shows(page, ".sent", "Hello, I am the page.");
      await shows(page, ".received", 'Data received as "Hello, I am the page.".  time: ');
      assertEquals(await page.innerText("#connect"), "Disconnect");
      await page.click("#connect");
      await shows(page, "#connection", "Closed with code 1000, reason: goodbye");
      await shows(page, ".closed", "Closed with code 1000, reason: goodbye");
    });
  },
);

test({ needs: "chromium" }, "ten rounds of it bring ten answers", async () => {
  await using server = startServer(verbatim, { origins: ["null"] });
  await browse("English", async (open) => {
    const page = await open(FROM_DISK);
    await page.fill("#url", server.url);
    await page.evaluate(`(async () => {
      const button = document.getElementById("connect");
      const state = document.body.dataset;
      const received = document.getElementsByClassName("received");
      const until = async (isThere) => { while (!isThere()) await new Promise(setTimeout); };
      for (let round = 1; round <= 10; round++) {
        document.getElementById("text").value = "round " + round;
        button.click();
        await until(() => received.length === round);
        button.click();
        await until(() => state.state === "closed");
      }
    })()`);
    assertEquals([await count(page, "sent"), await count(page, "received")], [10, 10]);
  });
});

test(
  { needs: "chromium" },
  "served, it knows its server, and speaks Chinese to a Chinese browser",
  async () => {
    await using server = startServer(verbatim);
    await browse("Chinese", async (open) => {
      const page = await open(`http://localhost:${server.port}/`);
      assertEquals(await page.getAttribute("html", "lang"), "zh-CN");
      assertEquals(await page.inputValue("#url"), `${server.url}/handler`);
      await connect(page);
      await shows(page, "#connection", "已连接");
      await shows(page, ".received", "你好，我是网页。");
      await press(page);
      await shows(page, "#connection", "连接已关闭，代码 1000");
    });
  },
);

test(
  { needs: "chromium" },
  "from the keyboard alone: Enter connects, sends, sends again, and keeps the focus",
  async () => {
    await using server = startServer(verbatim);
    await browse("English", async (open) => {
      const page = await open(`http://localhost:${server.port}/`);
      await page.keyboard.press("Tab");
      assertEquals(await page.evaluate("document.activeElement.id"), "url");
      await page.keyboard.press("Enter");
      await shows(page, ".received", "Hello, I am the page.");
      // The field is empty, so that a second Enter neither sends it again nor disconnects.
      assertEquals(await page.evaluate("document.activeElement.id"), "text");
      assertEquals(await page.inputValue("#text"), "");
      await page.keyboard.press("Enter");
      await page.keyboard.type("one more");
      await page.keyboard.press("Enter");
      await shows(page, ".received", "one more");
      assertEquals(await page.evaluate("document.activeElement.id"), "text");
      assertEquals(await page.inputValue("#text"), "");
      assertEquals(await count(page, "sent"), 2);
      // From the text over its button, the file and the log to the first thing sent.
      for (let stop = 0; stop < 4; stop++) await page.keyboard.press("Tab");
      assertEquals(await page.evaluate("document.activeElement.textContent"), "Send again");
      await page.keyboard.press("Enter");
      await page.locator(".received").nth(2).waitFor();
      assertStringIncludes(await page.locator(".received").nth(2).innerText(), "I am the page.");
    });
  },
);

test(
  { needs: "chromium" },
  "what was sent can be sent again, all of it, while connected",
  async () => {
    await using server = startServer(verbatim);
    await browse("English", async (open) => {
      const page = await open(`http://localhost:${server.port}/`);
      await page.fill("#text", "x".repeat(5_000));
      await connect(page);
      const again = page.getByRole("button", { name: "Send again" });
      await again.click();
      await page.locator(".received").nth(1).waitFor();
      // It has a button as well, and what has come back is as long as what went out.
      assertEquals(await again.count(), 2);
      assertStringIncludes(
        await page.locator(".received").nth(1).innerText(),
        "… (5,000 characters in all)",
      );
      await press(page);
      await shows(page, "#connection", "1000");
      assertEquals(await again.count(), 0);
    });
  },
);

test({ needs: "chromium" }, "what arrives is text, whatever it looks like", async () => {
  await using server = startServer(verbatim);
  await browse("English", async (open) => {
    const page = await open(`http://localhost:${server.port}/`);
    const markup = "<img src=x onerror='document.title=1'><b>bold</b>";
    await page.fill("#text", markup);
    await connect(page);
    await shows(page, ".received bdi", markup);
    assertEquals(await page.locator("#log img").count(), 0);
  });
});

test({ needs: "chromium" }, "the log keeps its newest 500 entries", async () => {
  await using server = serveByHand((socket) => {
    for (let index = 1; index <= 600; index++) socket.send(`number ${index}.`);
  });
  await browse("English", async (open) => {
    const page = await open(server.http);
    await connect(page);
    await shows(page, ".received", "number 600.");
    assertEquals(await page.locator("li").count(), 500);
    assertStringIncludes(await page.locator("li").first().innerText(), "number 101.");
  });
});

test(
  { needs: "chromium" },
  "a file goes out in pieces, one at a time, comes back, and has the same SHA-256",
  async () => {
    const sizes: number[] = [];
    let underWay = 0;
    await using server = serveByHand((socket) => {
      socket.binaryType = "arraybuffer";
      socket.onmessage = ({ data }) => {
        if (data === "binary, please") socket.send(new Uint8Array(3));
        if (typeof data === "string") return;
        sizes.push(data.byteLength);
        underWay++;
        setTimeout(() => {
          socket.send(data);
          underWay--;
        });
        assertEquals(underWay, 1);
      };
    });
    const content = new Uint8Array(3 * 65_536 + 1).map((_, index) => index * 31 % 251);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    const hash = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    await browse("English", async (open) => {
      const page = await open(server.http);
      assert(await page.isDisabled("#choose"));
      await connect(page);
      for (let time = 0; time < 2; time++) {
        await page.setInputFiles("#file", file("a.bin", content));
        await page.locator(".checked").nth(time).waitFor();
        assertStringIncludes(
          await page.locator(".checked").nth(time).innerText(),
          `It came back unchanged (196,609 bytes, SHA-256 ${hash}): a.bin`,
        );
      }
      assertEquals(await page.isVisible("#progress"), false);
      assertEquals([await page.inputValue("#file"), await count(page, "received")], ["", 0]);
      // Binary that belongs to no file is told.
      await page.fill("#text", "binary, please");
      await page.click("#send");
      await shows(page, ".received", "3 bytes: 00 00 00");
    });
    assertEquals(sizes, [65_536, 65_536, 65_536, 1, 65_536, 65_536, 65_536, 1]);
  },
);

test({ needs: "chromium" }, "a file that comes back changed, or not at all, is told", async () => {
  let pieces = 0;
  await using server = serveByHand((socket) => {
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") return;
      // The first file comes back changed, the second one in half.
      if (++pieces === 4) return socket.close(1011, "no more, please");
      new Uint8Array(data)[0]++;
      socket.send(data);
    };
  });
  await browse("English", async (open) => {
    const page = await open(server.http);
    await connect(page);
    const content = file("b.bin", new Uint8Array(100_000));
    await page.setInputFiles("#file", content);
    await shows(page, ".failed", "The file came back different: b.bin");
    await page.setInputFiles("#file", content);
    await shows(page, ".failed", "The connection closed after 65,536 bytes of the file: b.bin");
    await shows(page, "#connection", "Closed with code 1011, reason: no more, please");
    assert(await page.isDisabled("#choose"));
    await press(page);
    await page.locator("#choose:enabled").waitFor();
  });
});

test(
  { needs: "chromium" },
  "a file may be empty, and one that cannot be read is told",
  async () => {
    const sizes: number[] = [];
    await using server = startServer({
      message(socket, data) {
        if (typeof data !== "string") sizes.push(data.byteLength);
        socket.send(data);
      },
    });
    const path = await Deno.makeTempFile();
    await browse("English", async (open) => {
      const page = await open(`http://localhost:${server.port}/`);
      await connect(page);
      await page.setInputFiles("#file", file("empty.bin", new Uint8Array()));
      await shows(page, ".checked", "It came back unchanged (0 bytes, SHA-256 e3b0c442");
      assertEquals(sizes, [0]);
      // A file that is gone can't be read, so choosing takes a while here.
      await page.evaluate(`
        window.isChoosing = true;
        file.addEventListener("change", (event) => {
          if (isChoosing) event.stopImmediatePropagation();
        }, { capture: true });
      `);
      await page.setInputFiles("#file", path);
      await Deno.remove(path);
      await page.evaluate(`isChoosing = false; file.dispatchEvent(new Event("change"))`);
      await shows(page, ".failed", "The file could not be read (NotFoundError): ");
    });
  },
);

test(
  { needs: "chromium" },
  "a server that is away, or a wrong address, is told, and not asked again",
  async () => {
    await using refusing = serveByHand(undefined, 403);
    await browse("English, stopped", async (open) => {
      const page = await open(FROM_DISK);
      await page.fill("#url", "ws://localhost:1/");
      await press(page);
      await shows(page, "#connection", "Is the server running (deno run --allow-net server.ts)?");
      for (const wrong of ["ws://", "localhost:9999", "javascript:alert(1)"]) {
        await page.fill("#url", wrong);
        await press(page);
        await shows(page, "#connection", `Not a usable ws:// or wss:// address: ${wrong}`);
      }
      await page.fill("#url", refusing.ws);
      await press(page);
      await shows(page, "#connection", "Could not connect (code 1006).");
      await shows(page, "#connection", "Does it accept this page (--origin null)?");
      await page.clock.fastForward(100 * SECOND);
      assertEquals(await page.innerText("#connect"), "Connect");
      assertEquals(refusing.handshakes.all, ["/"]);
    });
  },
);

test(
  { needs: "chromium" },
  "the page comes back when its server was killed and started again",
  async () => {
    let server = await Script.server("server.ts");
    await browse("English, stopped", async (open) => {
      const page = await open(server.url.replace("ws", "http"));
      await connect(page);
      await page.fill("#text", "half a sent");
      await using _killed = server;
      server.kill("SIGKILL");
      // The pauses grow up to 30 s, while the log says once what happened.
      for (const seconds of [4, 8, 16, 30, 30]) {
        await shows(page, "#countdown", `Trying again in ${seconds} s.`);
        assertStringIncludes(await page.innerText("#connection"), "Closed with code 1006");
        assertEquals(await page.innerText("#connect"), "Cancel");
        await page.clock.runFor(SECOND);
        await shows(page, "#countdown", `Trying again in ${seconds - 1} s.`);
        await page.clock.fastForward((seconds - 1) * SECOND);
      }
      // Not connected, connecting, connected and waiting, each of them once.
      const entries = await page.locator("li:not(.sent, .received)").allInnerTexts();
      assertEquals(entries.filter((entry) => entry.includes("1006")).length, 1);
      assertEquals(entries.length, 4);
      const { port } = new URL(server.url);
      server = await Script.server("server.ts", "--port", port);
      await page.clock.fastForward(30 * SECOND);
      await page.locator("[data-state=open]").waitFor();
      assertEquals(await page.innerText("#countdown"), "");
      // It sends what someone types when someone presses Enter.
      assertEquals(await count(page, "sent"), 1);
      assertEquals(await page.inputValue("#text"), "half a sent");
      // After a connection that held, the pauses are short again.
      await page.clock.runFor(SECOND);
      await using _killedAgain = server;
      server.kill("SIGKILL");
      await shows(page, "#countdown", "Trying again in 4 s.");
      await page.evaluate("window.WebSocket = class extends EventTarget { close() {} }");
      await page.clock.fastForward(4 * SECOND);
      await shows(page, "#word", "Connecting");
    });
  },
);

test(
  { needs: "chromium" },
  "the page comes back after 1001, 1012 and 1013, and after no other code of a server",
  async () => {
    const lost = [1001, 1012, 1013];
    const ended = [1000, 1002, 1003, 1007, 1008, 1009, 1011, 3000, 4999];
    const codes = [...lost, ...ended];
    await using server = serveByHand((socket) => {
      const code = codes.shift();
      if (code) socket.close(code, "so it is");
      else socket.close();
    });
    await browse("English", async (open) => {
      const page = await open(server.http);
      for (const code of lost) {
        await press(page);
        await shows(page, "#connection", `Closed with code ${code}, reason: so it is`);
        await page.locator("[data-state=waiting]").waitFor();
        await press(page);
      }
      for (const code of ended) {
        await press(page);
        await shows(page, "#connection", `Closed with code ${code}, reason: so it is`);
        await page.locator(`[data-state=${code === 1000 ? "closed" : "failed"}]`).waitFor();
      }
      await press(page);
      await shows(page, "#connection", `Closed with code 1005, reason: none given`);
      await page.locator("[data-state=closed]").waitFor();
    });
  },
);

test(
  { needs: "chromium" },
  "a server that loses the page again at once gets longer pauses, which chance makes differ",
  async () => {
    await using server = serveByHand((socket) => socket.close(1013));
    await browse("English, stopped", async (open) => {
      const page = await open(server.http);
      await press(page);
      for (const seconds of [4, 8, 16]) {
        await shows(page, "#countdown", `Trying again in ${seconds} s.`);
        await page.clock.fastForward(seconds * SECOND);
      }
      await press(page);
      await page.evaluate("Math.random = () => 0.999");
      await press(page);
      await shows(page, "#countdown", "Trying again in 8 s.");
    });
  },
);

test({ needs: "chromium" }, "the button cancels a try, and coming back", async () => {
  // Nobody accepts its connections.
  using silent = Deno.listen({ hostname: "localhost", port: 0 });
  await using server = serveByHand((socket) => socket.close(1012));
  await browse("English, stopped", async (open) => {
    const page = await open(server.http);
    await press(page);
    await page.locator("[data-state=waiting]").waitFor();
    assertEquals(await page.innerText("#connect"), "Cancel");
    await press(page);
    await shows(page, "#word", "Not connected");
    await page.clock.fastForward(100 * SECOND);
    assertEquals(await page.innerText("#connect"), "Connect");
    assertEquals(server.handshakes.all.length, 1);

    await page.fill("#url", `ws://localhost:${silent.addr.port}`);
    await press(page);
    await shows(page, "#word", "Connecting");
    await press(page);
    await shows(page, "#word", "Not connected");
    // It ends a little later, and nothing is said about it.
    await page.fill("#url", server.ws);
    await press(page);
    await page.locator("[data-state=waiting]").waitFor();
    assertEquals(await page.locator("li:not(.sent, .received)").count(), 10);
  });
});

test(
  { needs: "chromium" },
  "the page tries at once when the network is back or someone looks at it",
  async () => {
    await using server = serveByHand((socket) => socket.close(1012));
    await browse("English, stopped", async (open) => {
      const page = await open(server.http);
      await press(page);
      for (const event of [`window, "online"`, `document, "visibilitychange"`]) {
        await server.handshakes.next();
        await page.locator("[data-state=waiting]").waitFor();
        // Of a thousand tabs, those that nobody looks at wait.
        for (const [hidden, state] of [[true, "waiting"], [false, "connecting"]]) {
          const after = await page.evaluate(`((target, type) => {
            Object.defineProperty(document, "hidden", { value: ${hidden}, configurable: true });
            target.dispatchEvent(new Event(type, { bubbles: true }));
            return document.body.dataset.state;
          })(${event})`);
          assertEquals(after, state);
        }
      }
      await server.handshakes.next();
      await page.locator("[data-state=waiting]").waitFor();
      assertEquals(server.handshakes.all.length, 3);
    });
  },
);

test(
  { needs: "chromium" },
  "a computer that slept comes back, even if it still holds the old connection",
  async () => {
    const closes = new Inbox<number>();
    await using server = serveByHand((socket) => socket.onclose = ({ code }) => closes.put(code));
    await browse("English, stopped", async (open) => {
      const page = await open(server.http);
      await connect(page);
      // The timers of a tab in the background may run a minute late.
      await page.clock.fastForward(60 * SECOND);
      await page.clock.fastForward(60 * SECOND);
      assertEquals(await page.getAttribute("body", "data-state"), "open");
      await page.clock.fastForward(3600 * SECOND);
      await closes.next();
      await shows(page, ".waiting", "The computer slept, so the connection may be lost.");
      await page.locator("[data-state=open]").waitFor();
      assertEquals(server.handshakes.all.length, 2);
    });
  },
);

test(
  { needs: "chromium" },
  "a page that one leaves closes, and the back button brings it and its connection back",
  async () => {
    const closes = new Inbox<number>();
    await using server = serveByHand((socket) => socket.onclose = ({ code }) => closes.put(code));
    await browse("English, stopped", async (open) => {
      const page = await open(server.http);
      await connect(page);
      await page.fill("#text", "half a sent");
      await page.goto(`${server.http}elsewhere`);
      assertEquals(await closes.next(), 1000);
      assertEquals(await count(page, "sent"), 0);
      await page.goBack({ waitUntil: "commit" });
      await page.locator("[data-state=open]").waitFor();
      // It is the page that it was, not one that was loaded again.
      await shows(page, ".waiting", "You left this page, so it closed the connection.");
      assertEquals(await count(page, "sent"), 1);
      assertEquals(await page.inputValue("#text"), "half a sent");
      assertEquals(server.handshakes.all.length, 2);
      // So it does in browsers where nothing else is told of it.
      for (const type of ["pagehide", "pageshow"]) {
        await page.evaluate(
          `dispatchEvent(new PageTransitionEvent("${type}", { persisted: true }))`,
        );
      }
      await page.locator("[data-state=open]").waitFor();
      assertEquals(server.handshakes.all.length, 3);

      // One that was not connected stays so.
      await press(page);
      await page.locator("[data-state=closed]").waitFor();
      await page.goto(`${server.http}elsewhere`);
      await page.goBack({ waitUntil: "commit" });
      await shows(page, "#connection", "Closed with code 1000, reason: goodbye");
      assertEquals(await page.getAttribute("body", "data-state"), "closed");
    });
  },
);

test({ needs: "chromium" }, "?url= fills the address, and never connects by itself", async () => {
  await using server = serveByHand();
  await browse("English", async (open) => {
    const url = `${server.ws}/a%20b?c=d&room=blue`;
    const page = await open(`${server.http}?url=${encodeURIComponent(url)}`);
    assertEquals(await page.inputValue("#url"), url);
    await shows(page, "#word", "Not connected");
    for (const wrong of [server.http, "javascript:alert(1)", "ws://", ""]) {
      await page.goto(`${server.http}?url=${encodeURIComponent(wrong)}&room=red`);
      assertEquals(await page.inputValue("#url"), `${server.ws}/handler?room=red`);
      await shows(page, "#connection", `Not a usable ws:// or wss:// address: ${wrong}`);
    }
    assertEquals(server.handshakes.all, []);
    await connect(page, url);
    assertEquals(server.handshakes.all, ["/a%20b?c=d&room=blue"]);
  });
});

test(
  { needs: "chromium" },
  "the page connects with the query that it was opened with, and says the room",
  async () => {
    await using server = serveByHand();
    await browse("English", async (open) => {
      const page = await open(`${server.http}?room=${encodeURIComponent("你好 <b>")}&x=1`);
      const query = "?room=%E4%BD%A0%E5%A5%BD+%3Cb%3E&x=1";
      assertEquals(await page.inputValue("#url"), `${server.ws}/handler${query}`);
      assertEquals(await page.title(), "WebSocket step by step · 你好 <b>");
      assertEquals(await page.innerText("h1 bdi"), "你好 <b>");
      await connect(page);
      await shows(page, "#connection", `Connected ${server.ws}/handler${query}`);
      assertEquals(await server.handshakes.next(), `/handler${query}`);
      // It says the room of the connection, not the one of long ago.
      await press(page);
      await page.locator("[data-state=closed]").waitFor();
      await connect(page, `${server.ws}/`);
      assertEquals(await page.title(), "WebSocket step by step");
      await page.goto(`${FROM_DISK}?room=red`);
      assertEquals(await page.inputValue("#url"), "ws://localhost:9999/handler?room=red");
    });
  },
);

test(
  { needs: "chromium" },
  "a token goes to the server that the page was opened for, and is never shown",
  async () => {
    await using server = serveByHand((socket) => socket.onmessage = () => socket.close(1012));
    await using other = serveByHand();
    const address = `${server.ws}/handler?room=red`;
    const link = encodeURIComponent(`${address}&token=SECRET`);
    await browse("English", async (open) => {
      const page = await open("about:blank");
      for (
        const url of [
          `${server.http}?token=SECRET&room=red`,
          `${server.http}?url=${link}`,
          `${FROM_DISK}?token=SECRET&url=${encodeURIComponent(address)}`,
        ]
      ) {
        await page.goto(url);
        assertEquals(await page.inputValue("#url"), address);
        await press(page);
        await page.locator("[data-state=waiting]").waitFor();
        await page.evaluate(`dispatchEvent(new Event("online"))`);
        await page.locator("[data-state=open]").waitFor();
        for (let time = 0; time < 2; time++) {
          assertEquals(await server.handshakes.next(), "/handler?room=red&token=SECRET");
        }
        await press(page);
        await page.locator("[data-state=closed]").waitFor();
        await connect(page, other.ws);
        assertEquals(await other.handshakes.next(), "/");
        await press(page);
        await page.locator("[data-state=closed]").waitFor();
        await page.fill("#url", address.replace("ws", "foo"));
        await press(page);
        await shows(page, "#connection", "Not a usable");
        const shown = await page.evaluate(
          "document.title + document.body.innerText + [...document.querySelectorAll('input')]" +
            ".map(({ type, value }) => type === 'file' ? '' : value)",
        );
        assert(!String(shown).includes("SECRET"), String(shown));
      }
    });
  },
);

test({ needs: "chromium" }, "where WebSocket is missing it says so", async () => {
  await browse("English", async (open) => {
    const page = await open("about:blank");
    await page.addInitScript("delete globalThis.WebSocket");
    await page.goto(FROM_DISK);
    await shows(page, "#connection", "This browser has no WebSocket.");
    assert(await page.isDisabled("#connect"));
  });
});

test(
  { needs: "chromium" },
  "it fits a phone, in light and dark, and its status, countdown and log are live",
  async () => {
    await using server = serveByHand((socket) => {
      socket.send("x".repeat(2_000));
      socket.close(1012, "y".repeat(100));
    });
    await browse("Chinese", async (open) => {
      const page = await open(`${server.http}?room=${"z".repeat(100)}`);
      await page.setViewportSize({ width: 360, height: 640 });
      await press(page);
      await page.locator("[data-state=waiting]").waitFor();
      assertMatch(await page.innerText("#countdown"), /^\d 秒后重试。$/);
      const width = await page.evaluate("document.documentElement.scrollWidth");
      assert(Number(width) <= 360, `the page is ${width} pixels wide`);
      for (const [id, role] of [["status", "status"], ["countdown", "timer"], ["log", "log"]]) {
        assertEquals(await page.getAttribute(`#${id}`, "role"), role);
      }
      for (const colorScheme of ["light", "dark"] as const) {
        await page.emulateMedia({ colorScheme });
        const background = await page.evaluate(
          "getComputedStyle(document.documentElement).backgroundColor",
        );
        const [red] = String(background).match(/\d+/) ?? [];
        assertEquals(Number(red) > 127, colorScheme === "light", String(background));
      }
    });
  },
);

test(
  { needs: "chromium" },
  "tabs in a room hear each other, what is pushed, and no other room; a token lets them in",
  async () => {
    const file = await Deno.makeTempFile();
    await Deno.writeTextFile(file, "a secret");
    const flags = ["--port", "0", "--token-file", file];
    await using server = new Script("broadcast_server.ts", flags, ["--allow-net", "--allow-read"]);
    const url = (await server.lines.next()).match(/http:\S+/)?.[0] ?? "";
    await Deno.remove(file);
    await browse("English", async (open) => {
      const tabs: Page[] = [];
      for (const room of ["red", "red", "blue"]) {
        const tab = await open(`${url}?room=${room}&token=a%20secret`);
        await tab.fill("#text", `${room} is here`);
        await press(tab);
        await shows(tab, ".received", `${room} is here`);
        tabs.push(tab);
      }
      const body = { method: "POST", body: "pushed" };
      const pushed = await fetch(`${url}?room=red&token=a%20secret`, body);
      assertEquals([pushed.status, await pushed.json()], [202, { clients: 2 }]);
      for (const tab of tabs.slice(0, 2)) await shows(tab, ".received", "pushed");
      assertEquals(await Promise.all(tabs.map((tab) => count(tab, "received"))), [3, 2, 1]);
      assertStringIncludes(await tabs[0].title(), "red");
      const stranger = await open(`${url}?room=red`);
      await press(stranger);
      await shows(stranger, "#connection", "Does this page need ?token=");
    });
  },
);

test(
  { needs: "chromium" },
  "the broadcast server lets a page from disk in with --origin null only",
  async () => {
    await browse("English", async (open) => {
      const page = await open(FROM_DISK);
      for (const flags of [[], ["--origin", "null"]]) {
        await using server = await Script.server("broadcast_server.ts", ...flags);
        await page.fill("#url", server.url);
        await press(page);
        await shows(page, "#connection", flags.length ? "Connected" : "(--origin null)?");
      }
    });
  },
);

test({ needs: PYTHON ? "chromium" : "python" }, "the page talks to Python", async () => {
  await using server = await startPythonServer();
  await browse("English", async (open) => {
    const page = await open(FROM_DISK);
    await connect(page, server.url);
    await shows(page, ".received", "Hello, I am the page.");
  });
});
