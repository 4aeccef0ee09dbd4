/// <reference types="./std.d.ts" />
// What the tests share: scripts started as processes, clients that are waited for, raw bytes.

import { assertLessOrEqual } from "@std/assert";
import { deadline, retry } from "@std/async";
import { existsSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { type Handler, serve, type ServeOptions, silence } from "websockets";

/** Milliseconds that a test waits for something that should happen at once. */
const PATIENCE = 15_000;

const ROOT = new URL("../", import.meta.url);

function isGranted(...permissions: Deno.PermissionDescriptor[]): boolean {
  return permissions.every((each) => Deno.permissions.querySync(each).state === "granted");
}

const net = isGranted({ name: "net", host: "localhost" }, { name: "net", host: "127.0.0.1" });
const names = ["net", "run", "read", "write", "env", "sys", "ffi"] as const;
// Deno lets nobody read in /proc, which tests and Chromium's driver do, without all permissions.
const run = isGranted(...names.map((name) => ({ name })));

/** The first of these programs that there is. */
function find(...paths: string[]): string | undefined {
  if (isGranted({ name: "read" })) return paths.find((path) => existsSync(path));
}

/** Where Debian, Ubuntu, Fedora, macOS and Windows have Chromium or Chrome. */
export const CHROMIUM = find(
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Chromium.app/Contents/MacOS/Chromium",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
  "C:/Program Files/Google/Chrome/Application/chrome.exe",
);

/** It runs as root in containers, where its sandbox does not, and needs no network but ours. */
export const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** Debian puts it where only the administrator's PATH leads. */
export const NATS_SERVER = find(
  "/usr/sbin/nats-server",
  "/usr/bin/nats-server",
  "/usr/local/bin/nats-server",
);

/** Debian's Python, where its package python3-websockets is installed. */
export const PYTHON = find("/usr/lib/python3/dist-packages/websockets") && find("/usr/bin/python3");

/** What gives a program files and a network of its own. */
const UNSHARE = ["--map-root-user", "--mount", "--net"];

/** Whether `localhost` can be tested here: not every container has IPv6, or lets a test unshare. */
function hasLocalhost(): boolean {
  try {
    for (const hostname of ["127.0.0.1", "::1"]) Deno.listen({ hostname, port: 0 }).close();
    const args = [...UNSHARE, "sh", "-c", "ip link set lo up"];
    return new Deno.Command("unshare", { args }).outputSync().success;
  } catch {
    return false;
  }
}

/** What a test may need: where it is missing, the test is ignored, and a line says what to do. */
const needs = {
  net: [net, "that need the network: `deno task test` runs them"],
  run: [run, "that start programs: `deno task test` runs them"],
  linux: [
    run && Deno.build.os === "linux",
    "that need Linux's /proc: `deno task test` runs them there",
  ],
  chromium: [run && CHROMIUM, "of the page: install Chromium, and `deno task test` runs them"],
  nats: [run && NATS_SERVER, "with NATS: install nats-server, and `deno task test` runs them"],
  python: [
    run && PYTHON,
    "with Python: install python3-websockets, and `deno task test` runs them",
  ],
  /** Looked for only where a test needs it, because that starts a program. */
  get localhost() {
    const what = `::1, \`ip\`, and \`unshare ${UNSHARE.join(" ")}\``;
    return [run && hasLocalhost(), `of \`localhost\`: they need ${what}`] as const;
  },
} as const;
const told = new Set<string>();

/** Registers a test, or ignores it where what it needs is missing. */
export function test(
  { needs: need }: { needs: keyof typeof needs },
  name: string,
  fn: () => Promise<void>,
): void {
  const [isThere, reason] = needs[need];
  if (!isThere && !told.has(need)) console.log(`Ignoring the tests ${reason}.`);
  told.add(need);
  Deno.test({ name, fn, ignore: !isThere });
}

/** Waits for a promise, and fails with `what` if it takes too long. */
export async function within<T>(
  promise: Promise<T>,
  what: string,
  milliseconds = PATIENCE,
): Promise<T> {
  try {
    return await deadline(promise, milliseconds);
  } catch (error) {
    if (error instanceof DOMException) throw new Error(`Waited in vain for ${what}.`);
    throw error;
  }
}

/** How many descriptors a process has, such as those of its connections. */
export function countDescriptors({ pid }: { pid: number }): number {
  if (Deno.build.os === "linux") return [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
  if (!told.has("fd")) console.log("Ignoring the descriptors of programs: only Linux tells them.");
  told.add("fd");
  return 0;
}

/** Waits until a process has no more descriptors than `before`, as nobody is connected any more. */
export async function assertDescriptors(program: { pid: number }, before: number): Promise<void> {
  await retry(() => assertLessOrEqual(countDescriptors(program), before), {
    minTimeout: 10,
    multiplier: 1,
    maxAttempts: 500,
  });
}

let collectGarbage: (() => void) | undefined;

/** Bytes that V8 holds for this process after it has freed what it can. */
export function heldMemory(): number {
  setFlagsFromString("--expose-gc");
  collectGarbage ??= runInNewContext("gc") as () => void;
  collectGarbage();
  const { heapUsed, external } = Deno.memoryUsage();
  return heapUsed + external;
}

/** Things that arrive one by one, taken one by one. */
export class Inbox<T> {
  readonly all: T[] = [];
  #taken = 0;
  #wake = Promise.withResolvers<void>();

  put(item: T): void {
    this.all.push(item);
    this.#wake.resolve();
    this.#wake = Promise.withResolvers();
  }

  /** The next item that `isWanted`; those before it are passed over. */
  async next(isWanted: (item: T) => boolean = () => true, what = "the next item"): Promise<T> {
    while (true) {
      while (this.#taken < this.all.length) {
        const item = this.all[this.#taken++];
        if (isWanted(item)) return item;
      }
      await within(this.#wake.promise, what);
    }
  }
}

// What the handlers of the scripts print is no output of a test.
silence();

/** A server in this process on a free port, with its log. */
export interface TestServer extends AsyncDisposable {
  url: string;
  port: number;
  log: Inbox<string>;
}

export function startServer(handler: Handler, options: ServeOptions = {}): TestServer {
  const log = new Inbox<string>();
  const server = serve(handler, { port: 0, log: (line) => log.put(line), ...options });
  const { port } = server.addr;
  return {
    url: `ws://localhost:${port}`,
    port,
    log,
    async [Symbol.asyncDispose]() {
      await within(server.shutdown(), "the server to stop");
    },
  };
}

/** A client that keeps what it receives. */
export class TestClient implements AsyncDisposable {
  readonly messages = new Inbox<string | ArrayBuffer>();
  readonly closed: Promise<CloseEvent>;

  constructor(readonly socket: WebSocket) {
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.messages.put(data);
    this.closed = new Promise((resolve) => socket.onclose = resolve);
  }

  /** Connects with the headers given, and waits until the connection is open. */
  static async open(url: string, headers: Record<string, string> = {}): Promise<TestClient> {
    const client = new TestClient(new WebSocket(url, { headers }));
    const opened = new Promise<void>((resolve, reject) => {
      client.socket.onopen = () => resolve();
      client.socket.onerror = (event) => reject(new Error((event as ErrorEvent).message));
    });
    await within(opened, `a connection to ${url}`);
    return client;
  }

  send(data: string | ArrayBuffer | Uint8Array<ArrayBuffer>): void {
    this.socket.send(data);
  }

  next(): Promise<string | ArrayBuffer> {
    return this.messages.next(undefined, "a message");
  }

  close(): Promise<CloseEvent> {
    this.socket.close(1000);
    return within(this.closed, "the connection to close");
  }

  async [Symbol.asyncDispose]() {
    if (this.socket.readyState !== WebSocket.CLOSED) await this.close();
  }
}

/** A program that runs until it ends or the test does, with what it prints. */
export class Program implements AsyncDisposable {
  readonly lines = new Inbox<string>();
  readonly errors = new Inbox<string>();
  readonly #process: Deno.ChildProcess;
  readonly #ended: Promise<Deno.CommandStatus>;

  constructor(command: string, args: string[], options: Deno.CommandOptions = {}) {
    const streams = { stdin: "null", stdout: "piped", stderr: "piped" } as const;
    this.#process = new Deno.Command(command, { args, ...streams, ...options }).spawn();
    this.#ended = Promise.all([
      this.#process.status,
      collect(this.#process.stdout, this.lines),
      collect(this.#process.stderr, this.errors),
    ]).then(([status]) => status);
  }

  get stdin(): WritableStream<Uint8Array> {
    return this.#process.stdin;
  }

  get pid(): number {
    return this.#process.pid;
  }

  kill(signal: Deno.Signal = "SIGTERM"): void {
    this.#process.kill(signal);
  }

  /** The next line that is `wanted`; if it ends without that line, its errors are thrown. */
  async prints(wanted: RegExp): Promise<string> {
    const ended = this.#ended.then(() => {
      const line = this.lines.all.find((each) => wanted.test(each));
      if (line === undefined) throw new Error(this.errors.all.join("\n"));
      return line;
    });
    const printed = this.lines.next((line) => wanted.test(line), `${wanted}`);
    return await Promise.race([printed, ended]);
  }

  /** Waits for the end: its exit code. */
  async end(): Promise<number> {
    return (await within(this.#ended, "the program to end")).code;
  }

  async [Symbol.asyncDispose]() {
    try {
      this.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await this.end();
  }
}

/** A script as its user runs it. */
export class Script extends Program {
  constructor(script: string, args: string[], permissions = ["--allow-net"], stdin = "null") {
    super(Deno.execPath(), ["run", "--no-prompt", ...permissions, script, ...args], {
      cwd: ROOT,
      env: { NO_COLOR: "1" },
      stdin: stdin as "null" | "piped",
    });
  }

  /** Starts a server script on a free port and waits until it listens. */
  static async server(script: string, ...flags: string[]): Promise<Script & { url: string }> {
    const started = new Script(script, ["--port", "0", ...flags]);
    const url = (await started.prints(/ws:/)).match(/ws:[^,]+/)?.[0] ?? "";
    return Object.assign(started, { url });
  }
}

const PYTHON_SERVER = `
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

/** Starts Python's `websockets` as an echo server, which speaks the subprotocol `chat`. */
export async function startPythonServer(): Promise<Program & { url: string }> {
  const server = new Program(PYTHON ?? "", ["-c", PYTHON_SERVER]);
  return Object.assign(server, { url: `ws://127.0.0.1:${await server.prints(/./)}` });
}

async function collect(stream: ReadableStream<Uint8Array>, inbox: Inbox<string>): Promise<void> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) inbox.put(line);
  }
  if (rest) inbox.put(rest);
}

/** The handshake of the article, whose Sec-WebSocket-Accept is known; `null` leaves a header out. */
export function handshake(headers: Record<string, string | null> = {}, request = "GET / HTTP/1.1") {
  const all = {
    Host: "localhost",
    Upgrade: "websocket",
    Connection: "Upgrade",
    "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7w==",
    "Sec-WebSocket-Version": "13",
    ...headers,
  };
  const lines = Object.entries(all).filter(([, value]) => value !== null);
  return `${request}\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n`;
}

/** A frame as clients send it (RFC 6455 section 5.2), masked with zeros. */
export function frame(opcode: number, payload: string | Uint8Array = "", isLast = true) {
  const bytes = typeof payload === "string" ? new TextEncoder().encode(payload) : payload;
  const { length } = bytes;
  const extended = length < 126 ? 0 : length < 65_536 ? 2 : 8;
  const bytesBefore = 2 + extended + 4;
  const all = new Uint8Array(bytesBefore + length);
  const view = new DataView(all.buffer);
  view.setUint8(0, (isLast ? 0x80 : 0) | opcode);
  view.setUint8(1, 0x80 | (extended === 0 ? length : extended === 2 ? 126 : 127));
  if (extended === 2) view.setUint16(2, length);
  if (extended === 8) view.setBigUint64(2, BigInt(length));
  all.set(bytes, bytesBefore);
  return all;
}

/** A TCP connection to write any bytes to. */
export class RawClient implements Disposable {
  private constructor(readonly connection: Deno.TcpConn) {}

  /** Connects, and sends `request` if there is one. */
  static async open(port: number, request?: string): Promise<RawClient> {
    const client = new RawClient(await Deno.connect({ port }));
    if (request !== undefined) await client.write(request);
    return client;
  }

  /** Connects and completes the article's handshake. */
  static async upgraded(port: number): Promise<RawClient> {
    const client = await RawClient.open(port, handshake());
    await client.head();
    return client;
  }

  async write(data: string | Uint8Array): Promise<void> {
    let bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    while (bytes.length > 0) bytes = bytes.subarray(await this.connection.write(bytes));
  }

  /** Reads once: the bytes, or none at the end. */
  async read(): Promise<Uint8Array> {
    const buffer = new Uint8Array(65_536);
    const count = await within(this.connection.read(buffer), "bytes from the server");
    return buffer.slice(0, count ?? 0);
  }

  /** The head of the answer to a request, read byte by byte so that nothing after it is taken. */
  async head(): Promise<string> {
    let head = "";
    const byte = new Uint8Array(1);
    while (!head.endsWith("\r\n\r\n")) {
      if (await within(this.connection.read(byte), "an answer") === null) break;
      head += String.fromCharCode(byte[0]);
    }
    return head;
  }

  /** Reads all that comes: how many bytes were before the Close frame at its end, and what it says. */
  async readClose(): Promise<{ code: number; reason: string; before: number }> {
    let tail = new Uint8Array();
    let total = 0;
    while (true) {
      const bytes = await this.read();
      total += bytes.length;
      tail = new Uint8Array([...tail, ...bytes.slice(-127)]).slice(-127);
      for (let start = 0; start < tail.length - 3; start++) {
        if (tail[start] !== 0x88 || tail[start + 1] !== tail.length - start - 2) continue;
        const code = tail[start + 2] << 8 | tail[start + 3];
        const reason = new TextDecoder().decode(tail.slice(start + 4));
        return { code, reason, before: total - (tail.length - start) };
      }
      if (bytes.length === 0) throw new Error("The connection ended without a Close frame.");
    }
  }

  [Symbol.dispose](): void {
    try {
      this.connection.close();
    } catch {
      // The test has closed it already.
    }
  }
}

/** The answer to a raw request: its status, and its head. */
export async function ask(
  port: number,
  request: string,
): Promise<{ status: number; head: string }> {
  using client = await RawClient.open(port, request);
  const head = await client.head();
  return { status: Number(head.split(" ")[1]), head: head.toLowerCase() };
}
