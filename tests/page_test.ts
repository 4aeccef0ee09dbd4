// What client.html promises, in a real Chromium: opened from disk and served, in both languages.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { delay } from "@std/async";
import { Buffer } from "node:buffer";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { type Connection, type Handler, Rooms, serve, type ServeOptions } from "websockets";
import { servePage as answerWithPage } from "../websockets/script/page.ts";
import html from "../client.html" with { type: "text" };
import { eventually, freePort, Inbox, startServer, within } from "./helpers.ts";
import { deno, makeFolder, ROOT, sectionOf } from "./readme.ts";
import { CHROMIUM, CHROMIUM_FLAGS, PYTHON, test } from "./needs.ts";
import { Script, startPythonServer } from "./programs.ts";

const FROM_DISK = new URL("../client.html", import.meta.url).href;
const SECOND = 1000;

/** All that a page shows, as a script in it sees that. */
const EVERYTHING_SHOWN = "document.title + document.body.innerText + " +
  "[...document.querySelectorAll('input:not([type=file]), textarea')].map(({ value }) => value)";

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
    // Without a locale of UTF-8, it finds no file whose path is not ASCII.
    env: { ...Deno.env.toObject(), LC_ALL: "C.UTF-8" },
    // The back button brings pages back as they were, as it does for everyone.
    ignoreDefaultArgs: ["--disable-back-forward-cache"],
  });
  await Promise.all(
    Object.entries(KINDS).map(async ([kind, locale]) => {
      const context = await browser.newContext({ locale });
      contexts.set(kind, context);
      context.setDefaultTimeout(60 * SECOND);
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
async function echo(websocket: Connection) {
  for await (const message of websocket) await websocket.send(message);
}

/** Serves the page beside what a handler does. */
function servePage(handler: Handler = echo, options: ServeOptions = {}) {
  const server = startServer(handler, {
    processRequest: ({ headers }) => headers.get("upgrade") === null ? pageResponse() : undefined,
    ...options,
  });
  return Object.assign(server, { http: `${server.url.replace("ws", "http")}/` });
}

function pageResponse(): Response {
  return new Response(html, { headers: { "Content-Type": "text/html; charset=utf-8" } });
}

/**
 * Serves the page, and nothing but handshakes: it tells what each asks for, with the subprotocols
 * that it offers, selects `bearer`, and gives the socket.
 */
function serveByHand(open: (socket: WebSocket) => void = () => {}, status = 101) {
  const handshakes = new Inbox<string>();
  const server = Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, (request) => {
    if (request.headers.get("upgrade") !== "websocket") return pageResponse();
    const { pathname, search } = new URL(request.url);
    const offer = request.headers.get("sec-websocket-protocol");
    handshakes.put(pathname + search + (offer === null ? "" : ` ${offer}`));
    if (status !== 101) return new Response("no", { status });
    const protocol = offer?.startsWith("bearer, ") ? "bearer" : undefined;
    const { socket, response } = Deno.upgradeWebSocket(request, { protocol });
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

/** Accepts one client as the article shows it, and then says nothing. */
async function upgradeByHand(listener: Deno.TcpListener): Promise<Deno.TcpConn> {
  const connection = await listener.accept();
  const bytes = new Uint8Array(4096);
  const head = new TextDecoder().decode(bytes.subarray(0, await connection.read(bytes) ?? 0));
  const key = head.match(/^sec-websocket-key: (.+)\r$/im)?.[1];
  const text = new TextEncoder().encode(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`);
  const accept = new Uint8Array(await crypto.subtle.digest("SHA-1", text)).toBase64();
  await connection.write(
    new TextEncoder().encode(
      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
        `Sec-WebSocket-Accept: ${accept}\r\n\r\n`,
    ),
  );
  return connection;
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
      await shows(page, "#word", "Connected");
      await shows(page, ".sent", "Hello, I am the page.");
      await shows(page, ".received", 'Data received as "Hello, I am the page.".  time: ');
      assertEquals(await page.innerText("#connect"), "Disconnect");
      await page.click("#connect");
      await shows(page, "#connection", "Closed with code 1000, reason: goodbye");
      await shows(page, ".closed", "Closed with code 1000, reason: goodbye");
    });
  },
);

test(
  { needs: "chromium" },
  "ten rounds of connecting, sending and closing bring ten answers",
  async () => {
    await using server = startServer(echo, { origins: ["null"] });
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
  },
);

test(
  { needs: "chromium" },
  "served, it knows its server, and speaks Chinese to a Chinese browser",
  async () => {
    await using server = servePage();
    await browse("Chinese", async (open) => {
      const page = await open(server.http);
      assertEquals(await page.getAttribute("html", "lang"), "zh-CN");
      assertEquals(await page.inputValue("#url"), `${server.url}/handler`);
      await connect(page);
      await shows(page, "#connection", "已连接");
      await shows(page, ".received", "你好，我是网页。");
      await press(page);
      await shows(page, "#connection", "连接已关闭，关闭码 1000");
    });
  },
);

test(
  { needs: "chromium" },
  "from the keyboard alone: Enter connects, sends, sends again, and keeps the focus",
  async () => {
    await using server = servePage();
    await browse("English", async (open) => {
      const page = await open(server.http);
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
      // From the text over its two buttons, the three tools and the log to the first thing sent.
      for (let stop = 0; stop < 7; stop++) await page.keyboard.press("Tab");
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
    await using server = servePage();
    await browse("English", async (open) => {
      const page = await open(server.http);
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
  await using server = servePage();
  await browse("English", async (open) => {
    const page = await open(server.http);
    const markup = "<img src=x onerror='document.title=1'><b>bold</b>";
    await page.fill("#text", markup);
    await connect(page);
    await shows(page, ".received bdi", markup);
    assertEquals(await page.locator("#log img").count(), 0);
  });
});

test(
  { needs: "chromium" },
  "the log keeps its newest 500 entries, and says how many are gone",
  async () => {
    await using server = serveByHand((socket) => {
      for (let index = 1; index <= 600; index++) socket.send(`number ${index}.`);
    });
    await browse("English", async (open) => {
      const page = await open(server.http);
      await connect(page);
      await shows(page, ".received", "number 600.");
      assertEquals(await page.locator("li").count(), 500);
      assertStringIncludes(await page.locator("li").first().innerText(), "number 101.");
      // Connecting, connected, sent and a hundred numbers.
      await shows(page, "#gone", "Older entries that are gone: 103");
    });
  },
);

test(
  { needs: "chromium" },
  "the log is saved as JSON lines and copied as plain lines, as far as its filter shows it",
  async () => {
    await using server = serveByHand((socket) => {
      socket.send("two\nlines");
      socket.send(new Uint8Array([0, 255, 7]));
    });
    await browse("English", async (open) => {
      const page = await open(server.http);
      assertEquals(await page.innerText("#log"), "");
      await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
      const before = Date.now();
      await connect(page);
      await shows(page, ".received", "3 bytes: 00 ff 07");
      const times = await page.locator("time").allInnerTexts();
      for (const time of times) assertMatch(time, /^\d\d:\d\d:\d\d\.\d{3}$/);

      async function save() {
        const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
        assertEquals(download.suggestedFilename(), "websocket.jsonl");
        const lines = (await Deno.readTextFile(await download.path())).trimEnd().split("\n");
        return lines.map((line) => JSON.parse(line));
      }
      const saved = await save();
      for (const { time } of saved) assert(time >= before && time <= Date.now());
      assertEquals(saved.map(({ time: _, ...rest }) => rest), [
        { event: "connecting", text: `${server.ws}/handler` },
        { event: "open", text: "" },
        { direction: "sent", text: "Hello, I am the page." },
        { direction: "received", text: "two\nlines" },
        { direction: "received", base64: "AP8H" },
      ]);

      async function copy() {
        await page.bringToFront();
        await page.click("#copy");
        await shows(page, "#copy", "Copied");
        return String(await page.evaluate("navigator.clipboard.readText()"));
      }
      assertEquals(
        (await copy()).replaceAll(/^[\d:.]{12} /gm, ""),
        `Connecting ${server.ws}/handler\nConnected \n→ Sent Hello, I am the page.\n` +
          "← Received two\nlines\n← Received 3 bytes: 00 ff 07\n",
      );

      await page.fill("#filter", "LINES");
      assertEquals(await page.locator("li:visible").count(), 1);
      assertMatch(await copy(), /^[\d:.]{12} ← Received two\nlines\n$/);
      assertEquals((await save()).length, 1);
      // What comes later is filtered as well.
      for (const text of ["more lines", "another"]) {
        await page.fill("#text", text);
        await page.press("#text", "Enter");
      }
      assertEquals(await page.locator("li:visible").count(), 2);
      await page.fill("#filter", "");
      assertEquals(await page.locator("li:visible").count(), 7);
      await page.context().clearPermissions();
    });
  },
);

test(
  { needs: "chromium" },
  "after a gap, what has arrived is shown before a new connection is tried",
  async () => {
    const sockets: WebSocket[] = [];
    await using server = serveByHand((socket) => sockets.push(socket));
    await browse("English, stopped", async (open) => {
      const page = await open("about:blank");
      // A browser holds what arrives while the page stands still, and drops it after a close.
      await page.addInitScript(`
        const held = [];
        window.isHeld = false;
        window.delivered = 0;
        window.countHeld = () => held.length;
        window.release = () => {
          isHeld = false;
          for (const deliver of held.splice(0)) deliver();
        };
        const listen = WebSocket.prototype.addEventListener;
        WebSocket.prototype.addEventListener = function (type, listener) {
          listen.call(this, type, type !== "message" ? listener : (event) => {
            const deliver = () => {
              if (this.readyState !== WebSocket.OPEN) return;
              listener(event);
              delivered++;
            };
            if (isHeld) held.push(deliver);
            else deliver();
          });
        };
      `);
      await page.goto(server.http);
      await connect(page);
      await page.evaluate("isHeld = true");
      for (let index = 1; index <= 17; index++) sockets[0].send(`number ${index}.`);
      while (await page.evaluate("countHeld()") !== 17);
      await page.clock.fastForward(132 * SECOND);
      await page.evaluate("release()");
      await page.clock.runFor(SECOND);
      assertEquals(await count(page, "received"), 17);
      assertEquals(server.handshakes.all.length, 1);
      // As long as something arrives, the connection is well.
      sockets[0].send("number 18.");
      while (await page.evaluate("delivered") !== 18);
      await page.clock.runFor(SECOND);
      assertEquals(server.handshakes.all.length, 1);
      await page.clock.runFor(SECOND);
      await shows(page, ".waiting", "Asleep for 132 s, so the connection may be lost.");
      await page.locator("[data-state=open]").waitFor();
      assertEquals(server.handshakes.all.length, 2);
    });
  },
);

test(
  { needs: "chromium" },
  "?url= gets no token, whatever it says, and the page asks for none",
  async () => {
    await using evil = serveByHand(undefined, 403);
    await using server = serveByHand();
    const question = "Does this page need #token=";
    const { host, ws } = evil;
    const good = server.host;
    await browse("English", async (open) => {
      const page = await open("about:blank");
      const served = (url: string) => `${server.http}?url=${encodeURIComponent(url)}#token=s3cret`;
      for (
        const address of [
          served(`${ws}/`),
          served(`ws://${good}@${host}/`),
          served(`ws://${good}%2F@${host}/`),
          served(`${ws}/${good}`),
          served(`${ws}/?${good}`),
          served(`wss://${good}/`),
          served(`ws://127.0.0.1:${good.split(":")[1]}/`),
          `${server.http}?url=${ws}/#url=ws://${good}/&token=s3cret`,
          `${server.http}#token=s3cret&url=${ws}/`,
          `${FROM_DISK}?url=${ws}/#token=s3cret`,
          `${FROM_DISK}?url=${ws}/#token=s3cret&url=wss://${host}/`,
          `${FROM_DISK}?url=${ws}/#token=s3cret&url=ws://${good}/`,
        ]
      ) {
        await page.goto("about:blank");
        await page.goto(address);
        // What a browser takes from the fragment is its owner's.
        if (address.startsWith("file:")) await page.fill("#url", `${ws}/`);
        await press(page);
        await page.locator("[data-state=failed], [data-state=open]").waitFor();
        const shown = String(await page.evaluate(EVERYTHING_SHOWN));
        assert(!shown.includes(question) && !shown.includes("s3cret"), shown);
      }
      assert(evil.handshakes.all.length >= 9);
      for (const handshake of [...evil.handshakes.all, ...server.handshakes.all]) {
        if (handshake.includes("bearer")) assertEquals(handshake, "/ bearer, czNjcmV0");
      }
      assert(!evil.handshakes.all.join().includes("bearer"), evil.handshakes.all.join());
      // It asks where the token would go.
      for (const address of [evil.http, `${FROM_DISK}#url=${ws}/`]) {
        await page.goto("about:blank");
        await page.goto(address);
        await press(page);
        await shows(page, "#detail", question);
      }
    });
  },
);

test(
  { needs: "chromium" },
  "behind a path prefix, the page connects beside itself",
  async () => {
    await using server = serveByHand();
    await browse("English", async (open) => {
      for (
        const [path, handler] of [["", ""], ["chat/", "chat/"], ["a/chat/index.html", "a/chat/"]]
      ) {
        const page = await open(`${server.http}${path}?room=red#top`);
        assertEquals(await page.inputValue("#url"), `${server.ws}/${handler}handler?room=red`);
        await connect(page);
        assertEquals(await server.handshakes.next(), `/${handler}handler?room=red`);
      }
    });
  },
);

test(
  { needs: "chromium" },
  "the log has the address once, as a person reads it, without what nobody sees",
  async () => {
    await using server = serveByHand();
    await browse("English", async (open) => {
      const path = "/%E7%BA%A2%E2%80%AE/%E7%BA%A2%20%E7%zz%E7%BA";
      const page = await open(`${server.http}?url=${encodeURIComponent(server.ws + path)}`);
      await connect(page);
      const address = `${server.ws}/%E7%BA%A2%E2%80%AE/红%20%E7%zz%E7%BA`;
      await shows(page, ".connecting", address);
      const log = await page.innerText("#log");
      assertEquals(log.split(server.host).length - 1, 1, log);
      // The server gets what the link says.
      assertEquals(await server.handshakes.next(), path);
    });
  },
);

test(
  { needs: "chromium" },
  "subprotocols are offered as the field under More says, before the token",
  async () => {
    const offers = new Inbox<string | null>();
    await using server = servePage(echo, {
      subprotocols: ["chat.v1", "bearer"],
      processRequest: (request) => {
        if (request.headers.get("upgrade") === null) return pageResponse();
        offers.put(request.headers.get("sec-websocket-protocol"));
      },
    });
    await browse("English", async (open) => {
      const page = await open(`${server.http}?subprotocol=chat.v2&subprotocol=chat.v1&x=1#token=t`);
      assert(await page.isHidden("#subprotocols"));
      await page.getByText("More").click();
      const field = page.getByRole("textbox", { name: "subprotocols" });
      assertEquals(await field.inputValue(), "chat.v2, chat.v1");
      // Of the query, the server gets the rest.
      assertEquals(await page.inputValue("#url"), `${server.url}/handler?x=1`);
      await connect(page);
      assertEquals(await offers.next(), "chat.v2, chat.v1, bearer, dA");
      await press(page);
      await field.fill("chat.v1");
      await page.evaluate("location.hash = ''");
      await connect(page);
      assertEquals(await offers.next(), "chat.v1");
      await press(page);
      await field.fill("a/b");
      await press(page);
      await shows(page, "#connection", "Not a usable address or subprotocol: ");
    });
  },
);

test(
  { needs: "chromium" },
  "while 300,000 messages arrive, Disconnect frees the page at once",
  async () => {
    using listener = Deno.listen({ hostname: "localhost", port: 0 });
    const accepted = upgradeByHand(listener);
    await browse("English", async (open) => {
      const page = await open(FROM_DISK);
      await connect(page, `ws://localhost:${listener.addr.port}`);
      using connection = await accepted;
      const tiny = new Uint8Array(300_000 * 3).map((_, index) => [0x81, 1, 120][index % 3]);
      const flood = (async () => {
        for (let sent = 0; sent < tiny.length;) sent += await connection.write(tiny.subarray(sent));
      })();
      await page.locator(".received").first().waitFor();
      const state = await page.evaluate(`connect.click(), document.body.dataset.state`);
      assertEquals(state, "closed");
      assertEquals(await page.innerText("#connect"), "Connect");
      // What had arrived before is drawn in the next frame.
      await page.evaluate(
        "new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))",
      );
      const newest = () => page.locator(".received time").last().innerText();
      const shown = await newest();
      // What came later would have a later time.
      await page.evaluate("new Promise((resolve) => setTimeout(resolve, 2))");
      await flood;
      await connection.write(new Uint8Array([0x88, 0x02, 0x03, 0xe8]));
      await connection.closeWrite();
      await shows(page, ".closed", "Closed with code 1000");
      assertEquals(await newest(), shown);
    });
  },
);

test(
  { needs: "chromium" },
  "a file goes out in pieces, one at a time where they are answered, and comes back unchanged",
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
    await browse("English", async (open) => {
      const page = await open(server.http);
      assert(await page.isDisabled("#choose"));
      await connect(page);
      for (let time = 0; time < 2; time++) {
        await page.setInputFiles("#file", file("a.bin", content));
        await page.locator(".checked").nth(time).waitFor();
        const [told, checked] = await Promise.all(
          [".file", ".checked"].map((kind) => page.locator(kind).nth(time).innerText()),
        );
        assertStringIncludes(told, "196,609 bytes: a.bin");
        assertStringIncludes(checked, "It came back unchanged (196,609 bytes): a.bin");
      }
      assertEquals(await page.innerText("#choose"), "File…");
      assertEquals(await count(page, "received"), 0);
      // The same file may be chosen again.
      await Promise.all([page.waitForEvent("filechooser"), page.click("#choose")]);
      assertEquals(await page.inputValue("#file"), "");
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
    const different = "100,000 bytes came back changed, or from others: b.bin";
    await shows(page, ".failed", different);
    await page.setInputFiles("#file", content);
    await shows(
      page,
      ".failed",
      "Not connected, so only 100,000 bytes of this file were sent: b.bin",
    );
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
    await using server = servePage(async (websocket) => {
      for await (const message of websocket) {
        if (typeof message !== "string") sizes.push(message.byteLength);
        await websocket.send(message);
      }
    });
    const path = await Deno.makeTempFile();
    await browse("English", async (open) => {
      const page = await open(server.http);
      await connect(page);
      await page.setInputFiles("#file", file("empty.bin", new Uint8Array()));
      await shows(page, ".checked", "It came back unchanged (0 bytes): empty.bin");
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
      for (
        const [wrong, what] of [
          ["ws://", "ws:// or wss:// address"],
          ["localhost:9999", "address or subprotocol"],
          ["javascript:alert(1)", "address or subprotocol"],
        ]
      ) {
        await page.fill("#url", wrong);
        await press(page);
        await shows(page, "#connection", `Not a usable ${what}: ${wrong}`);
      }
      await page.fill("#url", refusing.ws);
      await press(page);
      await shows(page, "#connection", "Could not connect (code 1006).");
      await shows(page, "#connection", "Does it let this page in (--origin null)?");
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
    const port = `${freePort()}`;
    const start = () => Script.server("server.ts", "--port", port);
    let server = await start();
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
      // Connecting, connected and waiting, each of them once.
      const entries = await page.locator("li:not(.sent, .received)").allInnerTexts();
      assertEquals(entries.filter((entry) => entry.includes("1006")).length, 1);
      assertEquals(entries.length, 3);
      server = await start();
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

test(
  { needs: "chromium" },
  "the button cancels an attempt, and the attempts to come back",
  async () => {
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
      assertEquals(await page.locator("li:not(.sent, .received)").count(), 9);
    });
  },
);

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
      await page.clock.runFor(SECOND);
      await closes.next();
      await shows(page, ".waiting", "Asleep for 3600 s, so the connection may be lost.");
      await page.locator("[data-state=open]").waitFor();
      assertEquals(server.handshakes.all.length, 2);
    });
  },
);

test(
  { needs: "chromium" },
  "a page that is left closes its connection, and the back button brings both back",
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
      // A person reads the characters, and the server gets what stands in a URL.
      const address = `${server.ws}/handler?room=你好+%3Cb%3E&x=1`;
      assertEquals(await page.inputValue("#url"), address);
      assertEquals(await page.title(), "WebSocket step by step · 你好 <b>");
      assertEquals(await page.innerText("h1 bdi"), "你好 <b>");
      await connect(page);
      await shows(page, ".connecting", address);
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
  "a token behind # goes out as a subprotocol, to the page's own server alone, and is never shown",
  async () => {
    await using server = serveByHand((socket) => socket.onmessage = () => socket.close(1012));
    await using other = serveByHand();
    const address = `${server.ws}/handler?room=red`;
    const given = encodeURIComponent(address);
    // The UTF-8 bytes of each token in base64url, without padding.
    const tokens = [["a%20secret", "YSBzZWNyZXQ"], ["ab+/cd==", "YWIrL2NkPT0"], [
      "秘密?>",
      "56eY5a-GPz4",
    ]];
    await browse("English", async (open) => {
      const page = await open("about:blank");
      for (const [token, offered] of tokens) {
        for (const start of [`${server.http}?room=red#`, `${FROM_DISK}#url=${given}&`]) {
          await page.goto("about:blank");
          await page.goto(`${start}token=${token}`);
          assertEquals(await page.inputValue("#url"), address);
          await press(page);
          await page.locator("[data-state=waiting]").waitFor();
          await page.evaluate(`dispatchEvent(new Event("online"))`);
          await page.locator("[data-state=open]").waitFor();
          for (let time = 0; time < 2; time++) {
            assertEquals(await server.handshakes.next(), `/handler?room=red bearer, ${offered}`);
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
          const shown = String(await page.evaluate(EVERYTHING_SHOWN));
          for (const secret of [decodeURIComponent(token), token, offered]) {
            assert(!shown.includes(secret), shown);
          }
        }
      }
      // A token that someone adds to the address of the page counts at once.
      await page.goto(server.http);
      await page.evaluate(`location.hash = "#token=late"`);
      await press(page);
      assertEquals(await server.handshakes.next(), "/handler bearer, bGF0ZQ");
    });
  },
);

test({ needs: "chromium" }, "where WebSocket is missing it says so", async () => {
  await browse("English", async (open) => {
    const page = await open("about:blank");
    await page.addInitScript("delete globalThis.WebSocket");
    await page.goto(FROM_DISK);
    await press(page);
    await shows(page, "#connection", "This browser has no WebSocket: ");
    await shows(page, ".failed", "This browser has no WebSocket: ");
  });
});

test(
  { needs: "chromium" },
  "it fits a phone, in light and dark, and one live region speaks",
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
      for (const width of [420, 360, 320]) {
        await page.setViewportSize({ width, height: 640 });
        const wide = await page.evaluate("document.documentElement.scrollWidth");
        assert(Number(wide) <= width, `the page is ${wide} pixels wide`);
        // The address has a line of its own, and most of the width.
        const { width: room = 0, height = 0 } = await page.locator("#url").boundingBox() ?? {};
        assert(room > width / 2 && height < 60, `the address has ${room} × ${height} pixels`);
      }
      // All that a screen reader may go to is in a landmark.
      assertEquals(
        await page.evaluate("[...document.body.children].map((each) => each.localName)"),
        [
          "main",
          "script",
        ],
      );
      const live =
        "[aria-live]:not([aria-live=off]), output, [role=status], [role=alert], [role=log]";
      assertEquals(await page.locator(live).count(), 1);
      assertEquals(await page.getAttribute("#log", "role"), "log");
      assertEquals(await page.getAttribute("#countdown", "role"), "timer");
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
    // Each of these characters may be in a token, and a plus in a fragment stays a plus.
    const token = "aZ09-._~+/==";
    const file = await Deno.makeTempFile();
    await Deno.writeTextFile(file, token);
    const flags = ["--port", "0", "--token-file", file];
    await using server = new Script("broadcast_server.ts", flags, ["--allow-net", "--allow-read"]);
    const url = (await server.lines.next()).match(/http:\S+/)?.[0] ?? "";
    await Deno.remove(file);
    await browse("English", async (open) => {
      const tabs: Page[] = [];
      for (const room of ["red", "red", "blue"]) {
        const tab = await open(`${url}?room=${room}#token=${token}`);
        await tab.fill("#text", `${room} is here`);
        await press(tab);
        await shows(tab, ".received", `${room} is here`);
        tabs.push(tab);
      }
      const headers = { Authorization: `Bearer ${token}` };
      const pushed = await fetch(`${url}?room=red`, { method: "POST", body: "pushed", headers });
      assertEquals([pushed.status, (await pushed.json()).clients], [202, 2]);
      for (const tab of tabs.slice(0, 2)) await shows(tab, ".received", "pushed");
      assertEquals(await Promise.all(tabs.map((tab) => count(tab, "received"))), [3, 2, 1]);
      assertStringIncludes(await tabs[0].title(), "red");
      for (const fragment of ["", `#token=${token.slice(1)}`]) {
        const stranger = await open(`${url}?room=red${fragment}`);
        await press(stranger);
        await shows(stranger, "#connection", "Does this page need #token=");
      }
    });
  },
);

for (const kind of ["English", "Chinese"] as const) {
  test(
    { needs: "chromium" },
    `what was missed after a loss comes again, and what is gone is told, in ${kind}`,
    async () => {
      // Of four messages of a kilobyte, two are kept.
      const rooms = new Rooms({ maxHistory: 3000 });
      await using stack = new AsyncDisposableStack();
      stack.defer(() => rooms.close());
      const handler: Handler = async (websocket, request) => {
        try {
          await rooms.enter("", websocket, request);
          for await (const message of websocket) {
            if (message === "leave") return websocket.close(1012);
            await rooms.say("", message);
          }
        } finally {
          rooms.leave("", websocket);
        }
      };
      await using server = rooms.join(
        serve(handler, {
          port: 0,
          processRequest: answerWithPage(html.replace("<html", "<html data-replay")),
        }),
      );
      await browse(kind, async (open) => {
        const page = await open(`http://localhost:${server.addr.port}/`);
        await connect(page);
        await page.locator(".received").waitFor();
        const texts = () => page.locator("#entries li.received div").allTextContents();
        for (
          const [missed, told] of [
            [["one", "two", "three"], [/3/]],
            [["a", "b", "c", "d"].map((letter) => letter.repeat(1000)), [/2/, /2/]],
          ] as const
        ) {
          const before = await texts();
          await page.fill("#text", "leave");
          await page.press("#text", "Enter");
          await page.locator("[data-state=waiting]").waitFor();
          for (const message of missed) await rooms.push("", message);
          await page.evaluate("dispatchEvent(new Event('online'))");
          await page.locator("[data-state=open]").waitFor();
          const end = `after ${missed.length}`;
          await rooms.push("", end);
          await eventually(async () => assertEquals((await texts()).at(-1), end));
          const here = missed.slice(missed.length - Number(told[0].source));
          assertEquals((await texts()).slice(before.length), [...here, end]);
          const missing = kind === "English"
            ? "Missed messages that are here now: "
            : "现已补上的消息：";
          await shows(page, "li.open", missing + here.length);
          if (told.length > 1) {
            await shows(
              page,
              "li.failed",
              kind === "English" ? "are gone: 2" : "无法补上的消息：2",
            );
          }
        }
        await rooms.push("", new Uint8Array([0, 255, 7]).buffer);
        await shows(page, ".received", "00 ff 07");
      });
    },
  );
}

test(
  { needs: "chromium" },
  "when its server tells no positions any more, the page says that messages may be gone",
  async () => {
    await using server = serveByHand((socket) => {
      if (server.handshakes.all.length > 1) return socket.send("e.1 is no position");
      socket.send("e.1");
      socket.send("e.2\nfirst\n");
      socket.close(1012);
    });
    await browse("English", async (open) => {
      const page = await open(`${server.http}?after=`);
      await press(page);
      await page.locator("[data-state=waiting]").waitFor();
      await page.evaluate("dispatchEvent(new Event('online'))");
      await shows(page, ".failed", "Messages may be gone, and nobody knows how many.");
      await shows(page, ".received", "e.1 is no position");
      assertEquals(await page.locator(".received div").allTextContents(), [
        "first\n",
        "e.1 is no position",
      ]);
      assertEquals(server.handshakes.all, ["/handler?after=", "/handler?after=e.2"]);
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

test(
  { needs: "chromium" },
  "the headline has a colour and a word for each state, and a failure is red in the log too",
  async () => {
    await using server = serveByHand((socket) => {
      socket.onmessage = ({ data }) => socket.close(Number(data));
    });
    const colour = (page: Page, selector: string) =>
      page.evaluate(`getComputedStyle(document.querySelector("${selector}")).color`);
    await browse("English", async (open) => {
      const page = await open(server.http);
      const colours: unknown[] = [await colour(page, "h2")];
      await page.fill("#text", "");
      await connect(page);
      assertEquals(await page.innerText("#word"), "Connected");
      assertEquals(await page.getAttribute("#url", "readonly"), "");
      colours.push(await colour(page, "h2"));
      await page.fill("#text", "1012");
      await page.click("#send");
      await shows(page, "#word", "Waiting");
      colours.push(await colour(page, "h2"));
      await press(page);
      await connect(page);
      await page.fill("#text", "1011");
      await page.click("#send");
      await shows(page, "#word", "Failed");
      colours.push(await colour(page, "h2"));
      assertEquals(await colour(page, ".failed div"), colours[3]);
      assertEquals(await colour(page, ".failed b"), colours[3]);
      // Grey, green, amber and red.
      const names = colours.map((each) => {
        const [red, green, blue] = String(each).match(/\d+/g)?.map(Number) ?? [];
        if (Math.max(red, green, blue) - Math.min(red, green, blue) < 30) return "grey";
        if (green > red) return "green";
        return green > red / 2 ? "amber" : "red";
      });
      assertEquals(names, ["grey", "green", "amber", "red"]);
    });
  },
);

test({ needs: "chromium" }, "every text can be read and every target hit", async () => {
  await using server = serveByHand((socket) => {
    socket.onmessage = ({ data }) => socket.send(data === "binary" ? new Uint8Array(3) : data);
  });
  await browse("English", async (open) => {
    const page = await open(server.http);
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      await connect(page);
      for (const text of ["binary", "x".repeat(2_000)]) {
        await page.fill("#text", text);
        await page.click("#send");
      }
      await page.locator(".save").first().waitFor();
      await page.locator(".received summary").first().waitFor();
      await press(page);
      await page.locator("[data-state=closed]").waitFor();
      await page.fill("#url", "wss://localhost:1/");
      await press(page);
      await page.locator("[data-state=failed]").waitFor();
      // The contrast of WCAG 2.2 (1.4.3), of each enabled element that has a text of its own.
      const faint = await page.evaluate(`(() => {
        const light = (colour) => {
          const [r, g, b] = colour.match(/[\\d.]+/g).map((each) => each / 255)
            .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (each) => {
          const { backgroundColor } = getComputedStyle(each);
          return backgroundColor === "rgba(0, 0, 0, 0)" ? behind(each.parentElement) : backgroundColor;
        };
        return [...document.querySelectorAll("body *")]
          .filter((each) => !each.matches("script, :disabled") && each.checkVisibility())
          .filter((each) => each.value || [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
          .map((each) => {
            const both = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => a - b);
            return [each.outerHTML.slice(0, 80), (both[1] + 0.05) / (both[0] + 0.05)];
          })
          .filter(([, contrast]) => contrast < 4.5);
      })()`);
      assertEquals(faint, []);
      // The size of targets of WCAG 2.2 (2.5.8).
      const small = await page.evaluate(`
        [...document.querySelectorAll("button, input, textarea, summary")]
          .filter((each) => each.checkVisibility())
          .map((each) => [each.id || each.className || each.localName, each.getBoundingClientRect()])
          .filter(([, { width, height }]) => Math.min(width, height) < 24)
          .map(([name, { width, height }]) => [name, width, height])
      `);
      assertEquals(small, []);
      await page.fill("#url", `${server.ws}/`);
    }
  });
});

test(
  { needs: "chromium" },
  "with a keyboard open on a phone, the log has room, and what was typed last stays in view",
  async () => {
    await using server = servePage();
    await browse("English", async (open) => {
      const page = await open(server.http);
      await page.setViewportSize({ width: 390, height: 844 });
      await connect(page);
      for (let index = 1; index <= 30; index++) {
        await page.fill("#text", `number ${index}.`);
        await page.press("#text", "Enter");
      }
      await shows(page, ".received", "number 30.");
      await page.setViewportSize({ width: 390, height: 508 });
      const { height = 0, y = 0 } = await page.locator("#log").boundingBox() ?? {};
      assert(height >= 200, `the log is ${height} pixels high`);
      assert(y + height <= 508, `the log ends at ${y + height}`);
      const last = await page.locator(".received").last().boundingBox();
      assert(last && last.y >= y && last.y + last.height <= y + height, JSON.stringify(last));
      // A user who has scrolled up is back at the end after sending.
      await page.evaluate("log.scrollTop = -1e6");
      await page.fill("#text", "the end");
      await page.press("#text", "Enter");
      assertEquals(await page.evaluate("log.scrollTop"), 0);
    });
  },
);

test(
  { needs: "chromium" },
  "several lines stay several, and an input method may use Enter",
  async () => {
    const received: unknown[] = [];
    await using server = serveByHand((socket) => {
      socket.onmessage = ({ data }) => received.push(data);
    });
    await browse("English", async (open) => {
      const page = await open(server.http);
      await page.fill("#text", "");
      await connect(page);
      const { height: low = 0 } = await page.locator("#text").boundingBox() ?? {};
      await page.focus("#text");
      await page.keyboard.type("one");
      await page.keyboard.press("Shift+Enter");
      await page.keyboard.insertText("two\r\nthree");
      const { height: high = 0 } = await page.locator("#text").boundingBox() ?? {};
      assert(high > low + 40, `the field grew from ${low} to ${high}`);
      await page.keyboard.press("Enter");
      assertEquals(await page.locator(".sent bdi").innerText(), "one\ntwo\nthree");
      assertEquals(await page.inputValue("#text"), "");
      // An Enter that ends a word in an input method is for the input method.
      await page.fill("#text", "你好");
      for (const kind of ["isComposing: true", "keyCode: 229"]) {
        const isLeft = await page.evaluate(`text.dispatchEvent(
          new KeyboardEvent("keydown", { key: "Enter", ${kind}, cancelable: true, bubbles: true }),
        )`);
        assert(isLeft);
      }
      assertEquals(await count(page, "sent"), 1);
      await page.keyboard.press("Enter");
      await shows(page, ".sent", "你好");
    });
    assertEquals(received, ["one\ntwo\nthree", "你好"]);
  },
);

test(
  { needs: "chromium" },
  "a long text opens whole, and a binary message shows its first bytes and can be saved",
  async () => {
    const book = `${"😀".repeat(499)}x😀${"Call me Ishmael.\n".repeat(1_000)}the end`;
    const bytes = new Uint8Array(20).map((_, index) => index * 13);
    await using server = serveByHand((socket) => {
      socket.send(book);
      socket.send(bytes);
    });
    await browse("English", async (open) => {
      const page = await open(server.http);
      await connect(page);
      const summary = page.locator(".received summary");
      await summary.waitFor();
      const start = await summary.innerText();
      assert(start.endsWith(`x … (${book.length.toLocaleString("en")} characters in all)`), start);
      await summary.click({ position: { x: 5, y: 5 } });
      assertEquals(await page.locator(".received details > bdi").innerText(), book);
      const hex = "00 0d 1a 27 34 41 4e 5b 68 75 82 8f 9c a9 b6 c3";
      await shows(page, ".received", `20 bytes: ${hex}`);
      const [download] = await Promise.all([page.waitForEvent("download"), page.click(".save")]);
      assertEquals(download.suggestedFilename(), "message.bin");
      assertEquals(await Deno.readFile(await download.path()), bytes);
    });
  },
);

test({ needs: "chromium" }, "printed, the whole log is there", async () => {
  await using server = serveByHand((socket) => {
    for (let index = 1; index <= 100; index++) socket.send(`number ${index}.`);
  });
  await browse("English", async (open) => {
    const page = await open(server.http);
    await connect(page);
    await shows(page, ".received", "number 100.");
    await page.emulateMedia({ media: "print" });
    const [log, first, last] = await Promise.all(
      ["#log", "li >> nth=0", "li >> nth=-1"].map((each) => page.locator(each).boundingBox()),
    );
    assert(log && first && last);
    assert(first.y >= log.y && last.y + last.height <= log.y + log.height);
    assertEquals(await page.evaluate("getComputedStyle(log).overflowY"), "visible");
    const pages = (await page.pdf()).toString("latin1").match(/\/Type \/Page\b(?!s)/g);
    assert((pages?.length ?? 0) >= 3, `${pages?.length} pages`);
  });
});

test(
  { needs: "chromium" },
  "a page that disconnects is free at once, and a late answer to its Close changes nothing",
  async () => {
    using listener = Deno.listen({ hostname: "localhost", port: 0 });
    const accepted = upgradeByHand(listener);
    await browse("English", async (open) => {
      const page = await open(FROM_DISK);
      await connect(page, `ws://localhost:${listener.addr.port}`);
      using connection = await accepted;
      await press(page);
      await shows(page, "#word", "Not connected");
      assertEquals(await page.innerText("#connect"), "Connect");
      await page.fill("#url", "ws://");
      await press(page);
      await shows(page, "#connection", "Not a usable");
      await connection.write(new Uint8Array([0x88, 0x02, 0x03, 0xe8]));
      while (await connection.read(new Uint8Array(100)) !== null);
      await shows(page, "#connection", "Not a usable");
      assertEquals(await count(page, "closed"), 0);
    });
  },
);

test(
  { needs: "chromium" },
  "what can't be sent any more, because the server closes, is not said to be sent, and stays",
  async () => {
    using listener = Deno.listen({ hostname: "localhost", port: 0 });
    const accepted = upgradeByHand(listener);
    await browse("English", async (open) => {
      const page = await open("about:blank");
      await page.addInitScript(`
        window.WebSocket = class extends WebSocket {
          constructor(...all) {
            super(...all);
            window.socket = this;
          }
        };
      `);
      await page.goto(FROM_DISK);
      await connect(page, `ws://localhost:${listener.addr.port}`);
      using connection = await accepted;
      // A Close frame, after which this server keeps the connection.
      await connection.write(new Uint8Array([0x88, 0x02, 0x03, 0xe8]));
      while (await page.evaluate("socket.readyState") !== WebSocket.CLOSING);
      await page.fill("#text", "too late");
      await page.press("#text", "Enter");
      await page.getByRole("button", { name: "Send again" }).click();
      assertEquals(await page.inputValue("#text"), "too late");
      assertEquals(await count(page, "sent"), 1);
    });
  },
);

test({ needs: "chromium" }, "a double click is one click", async () => {
  await using server = serveByHand();
  await browse("English", async (open) => {
    const page = await open(server.http);
    await page.dblclick("#connect");
    await page.locator("[data-state=open]").waitFor();
    await page.dblclick("#connect");
    await shows(page, ".closed", "Closed with code 1000, reason: goodbye");
    assertEquals(await count(page, "closed"), 1);
    assertEquals(server.handshakes.all.length, 1);
  });
});

test(
  { needs: "chromium" },
  "a page from https says that it may open only wss:// addresses",
  async () => {
    await browse("English", async (open) => {
      const page = await open("about:blank");
      await page.route(
        "https://page.test/",
        (route) => route.fulfill({ body: html, contentType: "text/html; charset=utf-8" }),
      );
      await page.goto("https://page.test/");
      assertEquals(await page.inputValue("#url"), "wss://page.test/handler");
      await page.fill("#url", "ws://page.test/handler");
      // That it blocked this is written there by the browser itself.
      page.removeAllListeners("console");
      await press(page);
      const sentence = "An https page may open only wss://, not ws://page.test/handler";
      await shows(page, "#connection", sentence);
      await shows(page, ".failed", sentence);
    });
  },
);

test({ needs: "chromium" }, "a password in an address is never shown", async () => {
  await using server = serveByHand();
  await browse("English", async (open) => {
    const page = await open(server.http);
    for (const scheme of ["ws:", "foo:"]) {
      for (const secret of ["user:SECRET@", "SECRET@", "user:SE/CRET@", "user:S@ECRET@"]) {
        await page.fill("#url", `${scheme}//${secret}${server.host}/a`);
        await press(page);
        await page.locator("[data-state=open], [data-state=failed]").waitFor();
        if (await page.getAttribute("body", "data-state") === "open") {
          await shows(page, ".connecting", `${server.ws}/a`);
          await press(page);
          await page.locator("[data-state=closed]").waitFor();
        }
        const shown = String(await page.evaluate("document.title + document.body.innerText"));
        assert(!/SECRET|SE\/|CRET/.test(shown), shown);
      }
    }
    assert(server.handshakes.all.length >= 2);
  });
});

test(
  { needs: "chromium" },
  "all of a file is sent to a server that answers nothing, and only that is said",
  async () => {
    const received = new Inbox<number>();
    let isDeaf = true;
    await using server = serveByHand((socket) => {
      socket.binaryType = "arraybuffer";
      socket.onmessage = ({ data }) => {
        if (typeof data === "string") return;
        received.put(data.byteLength);
        if (!isDeaf) socket.send(data);
      };
    });
    await browse("English, stopped", async (open) => {
      const page = await open(server.http);
      await connect(page);
      await page.setInputFiles("#file", file("c.bin", new Uint8Array(300_000)));
      await shows(page, "#choose", "File… 0 %");
      assertEquals(await received.next(), 65_536);
      assertEquals(await count(page, "file"), 0);
      // The first piece shows that no answer comes.
      await page.clock.fastForward(5 * SECOND - 1);
      assertEquals(received.all, [65_536]);
      await page.clock.fastForward(1);
      while (await count(page, "file") === 0) await page.clock.runFor(10);
      await shows(page, ".file", "300,000 bytes: c.bin");
      for (const size of [65_536, 65_536, 65_536, 37_856]) {
        assertEquals(await received.next(), size);
      }
      await page.locator("#choose").getByText("File…", { exact: true }).waitFor();
      assertEquals([await count(page, "checked"), await count(page, "failed")], [0, 0]);
      isDeaf = false;
      await page.setInputFiles("#file", file("c.bin", new Uint8Array(70_000)));
      await shows(page, ".checked", "It came back unchanged (70,000 bytes)");
    });
  },
);

test(
  { needs: "chromium" },
  "a file goes whole to the server that stores uploads, which answers with texts",
  async () => {
    const [{ text }] = sectionOf("How do I store an upload at the pace of the disk?");
    await using folder = await makeFolder();
    const port = freePort();
    const script = text.replace("8000", `${port}, origins: ["null"]`);
    await Deno.writeTextFile(`${folder.path}/upload.ts`, script);
    const flags = ["--allow-net", "--allow-write", "--config", `${ROOT}deno.json`];
    await using _upload = deno(["run", ...flags, "upload.ts"], { cwd: folder.path });
    (await eventually(() => Deno.connect({ hostname: "localhost", port }))).close();
    const content = new Uint8Array(300_000).map((_, index) => index * 31 % 251);
    await browse("English", async (open) => {
      const page = await open(FROM_DISK);
      await page.fill("#text", "");
      await connect(page, `ws://localhost:${port}`);
      await page.setInputFiles("#file", file("d.bin", content));
      await shows(page, ".file", "300,000 bytes: d.bin");
      assertEquals(await count(page, "received"), 5);
      const [upload] = (await Array.fromAsync(Deno.readDir(folder.path)))
        .filter(({ name }) => name.endsWith(".upload"));
      assertEquals(await Deno.readFile(`${folder.path}/${upload.name}`), content);
    });
  },
);

test(
  { needs: "chromium" },
  "where others send binary too, the page says that others may send",
  async () => {
    await using server = serveByHand((socket) => {
      socket.onmessage = ({ data }) => {
        if (typeof data === "string") return;
        socket.send(new Uint8Array(5));
        socket.send(data);
      };
    });
    await browse("English", async (open) => {
      const page = await open(server.http);
      await connect(page);
      for (const [index, size] of [5, 200_000].entries()) {
        await page.setInputFiles("#file", file("d.bin", new Uint8Array(size).fill(1)));
        await page.locator(".failed").nth(index).waitFor();
      }
      const sentence = "came back changed, or from others: d.bin";
      assertEquals(await page.locator(".failed").filter({ hasText: sentence }).count(), 2);
    });
  },
);

test(
  { needs: "chromium" },
  "a refusal on wss: names the certificate, with a link to where the browser shows it",
  async () => {
    await browse("English", async (open) => {
      const page = await open(FROM_DISK);
      for (
        const [url, href] of [["wss://u:p@localhost:1/a", "https://localhost:1/a"], [
          "ws://localhost:1/",
          "",
        ]]
      ) {
        await page.fill("#url", url);
        await press(page);
        await shows(page, "#connection", "Could not connect (code 1006).");
        const link = page.getByRole("link", {
          name: "Does the browser trust the server's certificate?",
        });
        assertEquals(await link.count(), href ? 1 : 0);
        if (href) assertEquals(await link.getAttribute("href"), href);
      }
    });
  },
);

test(
  { needs: "chromium" },
  "files dropped anywhere are sent, each of them, and never opened in place of the page",
  async () => {
    await using server = servePage();
    const path = await Deno.makeTempFile({ suffix: ".bin" });
    try {
      await Deno.writeTextFile(path, "dropped");
      await browse("English", async (open) => {
        const page = await open(server.http);
        const devtools = await page.context().newCDPSession(page);
        async function drop(...files: string[]) {
          const data = { items: [], files, dragOperationsMask: 1 };
          for (const type of ["dragEnter", "dragOver", "drop"] as const) {
            await devtools.send("Input.dispatchDragEvent", { type, x: 200, y: 400, data });
          }
        }
        await drop(path);
        await shows(page, ".failed", "Not connected, so only 0 bytes of this file were sent: ");
        await connect(page);
        await drop(path, path, path);
        await page.locator(".checked").nth(2).waitFor();
        await shows(page, ".checked", "It came back unchanged (7 bytes");
        assertEquals([await count(page, "file"), await count(page, "failed")], [3, 1]);
      });
    } finally {
      await Deno.remove(path);
    }
  },
);

test(
  { needs: "chromium" },
  "a flood of tiny texts is drawn once a frame at most, and Disconnect can be clicked",
  async () => {
    const closes = new Inbox<number>();
    const flooded = Promise.withResolvers<void>();
    await using server = serveByHand(async (socket) => {
      socket.onclose = ({ code }) => closes.put(code);
      for (let sent = 0; socket.readyState === WebSocket.OPEN; await delay(1)) {
        for (let index = 0; index < 50 && socket.bufferedAmount < 10_000; index++) {
          socket.send("x");
          sent++;
        }
        if (sent > 5_000) flooded.resolve();
      }
    });
    await browse("English", async (open) => {
      const page = await open(server.http);
      const { x = 0, y = 0 } = await page.locator("#connect").boundingBox() ?? {};
      await page.evaluate(`
        window.drawings = 0;
        window.frames = 0;
        new MutationObserver(() => drawings++).observe(entries, { childList: true });
        (function count() {
          frames++;
          requestAnimationFrame(count);
        })();
      `);
      await connect(page);
      await within(flooded.promise, "the flood");
      // The test looks for nothing in the page before it clicks, because that would have to wait.
      await page.mouse.click(x + 20, y + 20);
      await closes.next();
      await page.locator("[data-state=closed], [data-state=failed]").waitFor();
      const [drawings, frames] = await page.evaluate("[drawings, frames]") as number[];
      // Four states and the greeting are drawn at once.
      assert(drawings <= frames + 5, `${drawings} drawings in ${frames} frames`);
      assert(await count(page, "received") > 100);
    });
  },
);

test(
  { needs: ["chromium", "network"] },
  "offline shows at once and closes nothing, and online tries at once",
  async () => {
    const sockets: WebSocket[] = [];
    await using server = serveByHand((socket) => sockets.push(socket));
    await browse("English, stopped", async (open) => {
      const page = await open(server.http);
      await connect(page);
      for (const word of ["Connected", "Waiting"]) {
        await page.context().setOffline(true);
        try {
          await shows(page, "#network", "The browser is offline.");
          assertEquals(await page.innerText("#word"), word);
        } finally {
          await page.context().setOffline(false);
        }
        await page.locator("[data-state=open]").waitFor();
        assertEquals(await page.innerText("#network"), "");
        if (word === "Waiting") break;
        sockets[0].close(1012);
        await page.locator("[data-state=waiting]").waitFor();
      }
      assertEquals(server.handshakes.all.length, 2);
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
