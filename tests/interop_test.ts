// Works with what others wrote: Python's `websockets`, as the server of our clients, and as the
// client of our servers.

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  CHROMIUM,
  CHROMIUM_FLAGS,
  Inbox,
  PYTHON,
  Script,
  startServer,
  test,
  within,
} from "./helpers.ts";

/** An echo server on a free port, which it prints. It speaks the subprotocol `chat`. */
const SERVER = `
import asyncio, websockets

async def echo(websocket):
    async for message in websocket:
        await websocket.send(message)

async def main():
    async with websockets.serve(echo, "127.0.0.1", 0, subprotocols=["chat"]) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()

asyncio.run(main())
`;

/** A client that sends a text and bytes to the URL it is given, and prints what comes back. */
const CLIENT = `
import asyncio, sys, websockets

async def main():
    async with websockets.connect(sys.argv[1]) as websocket:
        for message in ["你好", b"\\x00\\xff"]:
            await websocket.send(message)
            print(ascii(await websocket.recv()))
    print(websocket.close_code)

asyncio.run(main())
`;

/** A Python process, whose output is read line by line. */
class Python implements AsyncDisposable {
  readonly lines = new Inbox<string>();
  readonly #process: Deno.ChildProcess;
  readonly #read: Promise<void>;

  constructor(...args: string[]) {
    this.#process = new Deno.Command(PYTHON ?? "", {
      args,
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#read = this.#readAll();
  }

  async #readAll() {
    let rest = "";
    for await (const text of this.#process.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.lines.put(line);
    }
    if (rest) this.lines.put(rest);
  }

  /** Starts the echo server, and waits until it listens. */
  static async server(): Promise<Python & { url: string }> {
    const server = new Python("-c", SERVER);
    return Object.assign(server, { url: `ws://127.0.0.1:${await server.lines.next()}` });
  }

  get stdin(): WritableStream<Uint8Array> {
    return this.#process.stdin;
  }

  /** Waits for the end: its exit code. */
  async end(): Promise<number> {
    const { code } = await within(this.#process.status, "Python to end");
    await this.#read;
    return code;
  }

  async [Symbol.asyncDispose]() {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await this.end();
    if (!this.stdin.locked) await this.stdin.close().catch(() => {});
  }
}

// Python is the server.

test({ needs: "python" }, "the loop runs its rounds against Python", async () => {
  await using server = await Python.server();
  await using client = new Script("client.ts", [server.url, "--count", "5", "--interval", "0"]);
  assertEquals([await client.end(), client.errors.all], [0, []]);
  assertEquals(client.lines.all, Array(5).fill("Hello, I am Deno."));
});

test({ needs: "python" }, "a pipe gets its answers from Python, and the subprotocol", async () => {
  await using server = await Python.server();
  const args = ["-i", server.url, "--subprotocol", "other", "--subprotocol", "chat"];
  await using client = new Script("client.ts", args, undefined, "piped");
  const lines = ["a", "", "你好", "x".repeat(100_000)];
  const writer = client.stdin.getWriter();
  await writer.write(new TextEncoder().encode(`${lines.join("\n")}\n`));
  await writer.close();
  assertEquals([await client.end(), client.lines.all], [0, lines]);
  assertEquals(client.errors.all, [
    `Connected to ${server.url}, subprotocol chat.`,
    "Connection closed: 1000 (OK).",
  ]);
});

test(
  { needs: PYTHON ? "chromium" : "python" },
  "the page, opened from disk, talks to Python",
  async () => {
    await using server = await Python.server();
    const { chromium } = await import("playwright-core");
    const browser = await chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
    try {
      const page = await browser.newPage();
      await page.goto(new URL("../client.html", import.meta.url).href);
      await page.fill("#url", server.url);
      await page.click("#connect");
      await page.locator(".received").first().waitFor();
      assertStringIncludes(await page.locator(".received").first().innerText(), "Hello");
    } finally {
      await browser.close();
    }
  },
);

// Python is the client.

test({ needs: "python" }, "Python's test command, the article's, talks to `serve`", async () => {
  await using server = startServer({ message: (socket, data) => socket.send(data) });
  await using client = new Python("-m", "websockets", server.url);
  await client.lines.next((line) => line.includes(`Connected to ${server.url}.`));
  const writer = client.stdin.getWriter();
  await writer.write(new TextEncoder().encode("hello\n"));
  await client.lines.next((line) => line.includes("< hello"));
  await writer.close();
  assertEquals(await client.end(), 0);
  assert(client.lines.all.some((line) => line.includes("Connection closed: 1000 (OK).")));
});

test({ needs: "python" }, "a Python script talks to the echo server", async () => {
  await using server = await Script.server("server.ts");
  await using client = new Python("-c", CLIENT, server.url);
  assertEquals(await client.end(), 0);
  const [text, binary, code] = client.lines.all;
  assertStringIncludes(text, String.raw`'Data received as "\u4f60\u597d".  time: `);
  assertEquals([binary, code], [String.raw`b'\x00\xff'`, "1000"]);
});

test({ needs: "python" }, "a Python script talks to the broadcast server", async () => {
  await using server = await Script.server("broadcast_server.ts");
  await using client = new Python("-c", CLIENT, server.url);
  assertEquals(await client.end(), 0);
  assertEquals(client.lines.all, [String.raw`'\u4f60\u597d'`, String.raw`b'\x00\xff'`, "1000"]);
});
