// The echo server, the article's first step:
//
//   deno run --allow-net server.ts
//   Echo server on ws://localhost:9999, page at http://localhost:9999/
//
// Read `echo` first: it is all that this server does. Then `serve`: every rule that a WebSocket
// server here keeps, whatever its handler does. Below them is the command line.

import { deadline } from "@std/async";
import { parseArgs } from "node:util";
import page from "./client.html" with { type: "text" };

/** Bytes of the largest message taken, 1 MiB: more than most texts, little enough to hold for many. */
export const MAX_MESSAGE = 1024 * 1024;
/** Bytes that may wait for one client, 4 MiB: it may pause reading, but not stop. */
export const MAX_BUFFERED = 4 * 1024 * 1024;
/** Messages that may wait for one client: the runtime holds 1 KiB for each, however small it is. */
export const MAX_QUEUED = 32_768;
/** Clients at a time: each takes a file descriptor, and 20 KiB even when it is silent. */
export const MAX_CLIENTS = 10_000;
/** Seconds of silence after which a client is dropped: it gets a ping after half of them. */
export const IDLE_TIMEOUT = 30;
/** Milliseconds after which a handshake that has not led to a connection is given up. */
const HANDSHAKE_TIMEOUT = 5_000;
/** Bytes that RFC 6455 section 5.5.1 leaves for the reason in a Close frame. */
const MAX_REASON = 123;
/** Milliseconds between looks at the queues of clients that are being closed. */
const DRAIN_INTERVAL = 50;
/** Milliseconds that a stopping server waits for its clients: containers are killed after 10 s. */
const SHUTDOWN_TIMEOUT = 5_000;
/** Characters printed of a longer text: about two lines of a terminal. */
const MAX_PRINTED = 200;
/** Lines printed a second: more than an eye can follow, too few to slow the server down. */
const LINES_PER_SECOND = 40;

/** The origins of pages that this machine serves. */
const LOOPBACK = /^https?:\/\/(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/;

/** Takes a line for people to read; it may hold what a peer has sent. */
export type Log = (line: string) => void;

/** What a server does for its clients. Where one throws or rejects, the client gets 1011, or 500. */
export interface Handler {
  open?(socket: WebSocket): unknown;
  message(socket: WebSocket, data: string | ArrayBuffer): unknown;
  close?(socket: WebSocket, event: CloseEvent): unknown;
  /** Answers a `POST /` with this body: a way in for programs that are no WebSocket clients. */
  post?(text: string): Response;
}

/** `Deno.serve`'s options and the limits of a server, by default the constants of the same name. */
export interface ServeOptions extends Deno.ServeTcpOptions, Partial<Deno.TlsCertifiedKeyPem> {
  /** Origins let in beside loopback: `*` for any, `null` for pages opened from disk. */
  origins?: string[];
  maxMessage?: number;
  maxBuffered?: number;
  maxClients?: number;
  idleTimeout?: number;
  /** Told of clients that are refused or break a limit, and of a handler's errors. */
  log?: Log;
}

/** The article's handler: text comes back in a sentence with the time, binary as it is. */
export function echo(log: Log, once = false): Handler {
  return {
    message(socket, data) {
      const isText = typeof data === "string";
      const reply = isText ? `Data received as "${data}".  time: ${timestamp()}` : data;
      log(isText ? `${reply}` : `Data received, ${data.byteLength} bytes of binary.`);
      socket.send(reply);
      log("Send reply");
      if (once) socket.close(1000);
    },
  };
}

/**
 * Starts a WebSocket server, as `websockets.serve` does in Python. It answers handshakes and keeps
 * every client within the limits, whatever the client sends and whatever `handler` does.
 *
 * @throws {Deno.errors.AddrInUse} if the port is taken, and whatever else `Deno.serve` throws.
 */
export function serve(handler: Handler, options: ServeOptions = {}): Deno.HttpServer<Deno.NetAddr> {
  const { maxMessage = MAX_MESSAGE, maxBuffered = MAX_BUFFERED, maxClients = MAX_CLIENTS } =
    options;
  const { idleTimeout = IDLE_TIMEOUT, origins = [], log = limited(console.error) } = options;
  /** All for whom something is held, from the handshake on. */
  const clients = new Set<WebSocket | Request>();
  let connecting: (WebSocket | Request)[] = [];
  let connectingSince = -Infinity;

  function accept(request: Request): Response {
    const { socket, response } = Deno.upgradeWebSocket(request, { idleTimeout });
    const { send, close } = socket;
    let queued = 0;
    let isClosing = false;
    let drainTimer: ReturnType<typeof setInterval> | undefined;
    clients.add(socket);

    // The runtime's `send` queues without end for a client that does not read.
    socket.send = (data) => {
      const { bufferedAmount } = socket;
      // Empty messages add nothing to the amount: only when others are gone are they gone as well.
      const isEmpty = data === "" || (data as ArrayBuffer).byteLength === 0;
      queued = bufferedAmount === 0 && !isEmpty ? 0 : queued + 1;
      if (bufferedAmount <= maxBuffered && queued <= MAX_QUEUED) return send.call(socket, data);
      log("A client does not read what it is sent: muted, to be closed with 1008.");
      socket.close(1008, "Too slow: too much was waiting to be read.");
    };

    // The runtime's `close` waits behind the queue: for a client that does not read, for good and
    // out of the script's sight. So the client is muted and ignored at once, but stays counted, and
    // is closed as soon as nothing waits for it.
    socket.close = (code, reason = "") => {
      isClosing = true;
      Object.assign(socket, { send: () => {}, close: () => {} });
      const { read } = new TextEncoder().encodeInto(reason, new Uint8Array(MAX_REASON));
      const closeDrained = () => {
        if (socket.bufferedAmount > 0) return;
        clearInterval(drainTimer);
        close.call(socket, code, reason.slice(0, read));
      };
      drainTimer = setInterval(closeDrained, DRAIN_INTERVAL);
      closeDrained();
    };

    // Listeners, as `onopen` and the like take half a KiB more of every client.
    if (handler.open) socket.addEventListener("open", (event) => call(socket, event, handler.open));
    socket.addEventListener("message", ({ data }) => {
      if (isClosing) return;
      if (isLarger(data, maxMessage)) socket.close(1009, `Larger than ${maxMessage} bytes.`);
      else call(socket, data, handler.message);
    });
    // Once, because the runtime reports a client that it timed out a second time.
    socket.addEventListener("close", (event) => {
      clients.delete(socket);
      clearInterval(drainTimer);
      call(socket, event, handler.close);
    }, { once: true });
    return response;
  }

  /** Calls a function of the handler: an error that got out of it would end the process. */
  function call<T>(socket: WebSocket, data: T, run?: (socket: WebSocket, data: T) => unknown) {
    try {
      const result = run?.call(handler, socket, data);
      if (result instanceof Promise) result.catch((error) => fail(socket, error));
    } catch (error) {
      fail(socket, error);
    }
  }

  function fail(socket: WebSocket, error: unknown) {
    socket.close(1011, "The server failed to handle this.");
    logFailure(error);
  }

  function logFailure(error: unknown) {
    log(`The handler failed: ${Deno.inspect(error).replaceAll(/\s+/g, " ")}`);
  }

  /** Why a client may not come in now, from where it comes or because there are too many. */
  function refuseClient({ headers }: Request): Response | undefined {
    const origin = headers.get("origin");
    const isWelcome = origins.includes("*") || origins.includes(origin ?? "");
    // Programs send no Origin. Host is not compared with it, as DNS rebinding can forge both.
    if (origin !== null && !isWelcome && !LOOPBACK.test(origin)) {
      log(`Refused a page from ${origin}, see --origin.`);
      return refuse(403, "Pages from this origin are not let in, see --origin.");
    }
    if (clients.size >= maxClients) forgetReset();
    if (clients.size >= maxClients) {
      log(`Refused a client: there are ${maxClients}, see --max-clients.`);
      return refuse(503, "There are too many clients, try again later.");
    }
  }

  /** Forgets handshakes that were reset before the answer: they neither open nor close, nor fail. */
  function forgetReset() {
    if (performance.now() - connectingSince < HANDSHAKE_TIMEOUT) return;
    const isConnecting = (client: WebSocket | Request) =>
      client instanceof WebSocket && client.readyState === WebSocket.CONNECTING;
    for (const client of connecting.filter(isConnecting)) clients.delete(client);
    connecting = [...clients].filter(isConnecting);
    connectingSince = performance.now();
  }

  async function receive(request: Request, post: (text: string) => Response): Promise<Response> {
    const reading = new AbortController();
    clients.add(request);
    try {
      const text = readText(request, maxMessage, reading.signal);
      const body = await deadline(text, idleTimeout > 0 ? idleTimeout * 1000 : Infinity);
      if (body === undefined) return refuse(413, `Larger than ${maxMessage} bytes.`);
      try {
        return post.call(handler, body);
      } catch (error) {
        logFailure(error);
        return refuse(500, "The server failed to handle this.");
      }
    } finally {
      reading.abort();
      clients.delete(request);
    }
  }

  function answer(request: Request): Response | Promise<Response> {
    const { method, headers } = request;
    if (!isUpgrade(headers) && !headers.has("sec-websocket-key")) {
      const isRoot = new URL(request.url).pathname === "/";
      if (isRoot && (method === "GET" || method === "HEAD")) {
        return new Response(page, { headers: { "Content-Type": "text/html; charset=utf-8" } });
      }
      if (isRoot && method === "POST" && handler.post) {
        return refuseClient(request) ?? receive(request, handler.post);
      }
    }
    return refuseHandshake(request) ?? refuseClient(request) ?? accept(request);
  }

  function onError(error: unknown): Response {
    log(`Refused a request: ${error}`);
    // A server that stops, and a client that leaves, both take the body away while it is read.
    const isGone = error instanceof Deno.errors.BadResource;
    return refuse(isGone ? 503 : 400, "The request could not be read.");
  }

  const { hostname = "localhost" } = options;
  return Deno.serve({ onListen: () => {}, onError, ...options, hostname }, answer);
}

function refuse(status: number, text: string, headers?: HeadersInit): Response {
  return new Response(`${text}\n`, { status, headers });
}

/** Whether a request wants a WebSocket: both headers are lists, in upper or lower case. */
function isUpgrade(headers: Headers): boolean {
  return /(^|,)\s*websocket\s*(,|$)/i.test(headers.get("upgrade") ?? "") &&
    /(^|,)\s*upgrade\s*(,|$)/i.test(headers.get("connection") ?? "");
}

/** What is wrong with a handshake (RFC 6455 section 4.2.1): the runtime looks at little of it. */
function refuseHandshake({ method, headers }: Request): Response | undefined {
  if (!isUpgrade(headers)) {
    return refuse(426, "Connect to this server with a WebSocket.", { Upgrade: "websocket" });
  }
  if (method !== "GET") return refuse(405, "A handshake is a GET request.", { Allow: "GET" });
  if (!headers.has("host")) return refuse(400, "A handshake needs a Host header.");
  if (headers.get("sec-websocket-version") !== "13") {
    const supported = { "Sec-WebSocket-Version": "13", Upgrade: "websocket" };
    return refuse(426, "This server speaks version 13 of the WebSocket protocol.", supported);
  }
  if (!/^[A-Za-z0-9+/]{22}==$/.test(headers.get("sec-websocket-key") ?? "")) {
    return refuse(400, "Sec-WebSocket-Key must be 16 bytes in base64.");
  }
}

/** Whether a message has more than `limit` bytes; text is encoded only where that is in doubt. */
function isLarger(data: string | ArrayBuffer, limit: number): boolean {
  if (typeof data !== "string") return data.byteLength > limit;
  return data.length * 3 > limit && new TextEncoder().encode(data).byteLength > limit;
}

/** The body of a request, or `undefined` as soon as it has more than `limit` bytes. */
async function readText(request: Request, limit: number, signal: AbortSignal) {
  // The signal ends the reading of a body, which nothing else does while none of it comes.
  const body = request.body?.pipeThrough(new TransformStream<Uint8Array>(), { signal });
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let [text, size] = ["", 0];
  for await (const chunk of body ?? []) {
    size += chunk.byteLength;
    if (size > limit) return undefined;
    text += decoder.decode(chunk, { stream: true });
  }
  return text + decoder.decode();
}

let second = "";
let secondStart = -Infinity;

/** The local time as the article prints it; formatted once a second, as it costs more than a reply. */
function timestamp(): string {
  let milliseconds = performance.now() - secondStart;
  if (milliseconds >= 1000) {
    const now = Temporal.Now.plainDateTimeISO();
    second = now.toString({ smallestUnit: "second" }).replace("T", " ");
    milliseconds = now.millisecond + now.microsecond / 1000;
    secondStart = performance.now() - milliseconds;
  }
  return `${second}.${`${Math.floor(milliseconds * 1000)}`.padStart(6, "0")}`;
}

/** Shows control, bidirectional and invisible characters as escapes, and cuts a long text. */
export function printable(text: string, length = MAX_PRINTED): string {
  const rest = text.length - length;
  const shown = rest > 0 ? `${text.slice(0, length)}… (${rest} more characters)` : text;
  return shown.replace(
    /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu,
    (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`,
  );
}

/** A log that prints what is `printable`, and of many lines a second only how many there were. */
export function limited(print: Log): Log {
  let lines = 0;
  const count = () => {
    if (lines > LINES_PER_SECOND) print(`… and ${lines - LINES_PER_SECOND} more lines.`);
    lines = 0;
  };
  return (line) => {
    if (lines === 0) setTimeout(count, 1000);
    if (++lines <= LINES_PER_SECOND) print(printable(line));
  };
}

/** The flags of every server here, for `parseArgs`. */
export const SERVER_FLAGS = {
  host: { type: "string", default: "localhost" },
  port: { type: "string" },
  cert: { type: "string" },
  key: { type: "string" },
  origin: { type: "string", multiple: true },
  "max-message": { type: "string", default: `${MAX_MESSAGE}` },
  "max-clients": { type: "string", default: `${MAX_CLIENTS}` },
  quiet: { type: "boolean" },
} as const;

/** What `--help` says of `SERVER_FLAGS`. */
export const SERVER_USAGE = `
  --host HOST          address to listen on (localhost)
  --port PORT          port to listen on, 0 for a free one
  --cert FILE          certificate for wss, in PEM; takes --key and --allow-read too
  --key FILE           private key of the certificate, in PEM
  --origin ORIGIN      let pages from this origin in, * for any; may be given many times
  --max-message BYTES  largest message (${MAX_MESSAGE})
  --max-clients COUNT  clients at a time (${MAX_CLIENTS})
  --quiet              do not print messages
  --help               print this`;

type ServerFlags = ReturnType<typeof parseArgs<{ options: typeof SERVER_FLAGS }>>["values"];

/**
 * Serves as the flags say until SIGINT or SIGTERM. Then nobody is let in any more, every client
 * gets what waits for it and 1001, `release` is called, and the process ends; a second signal ends
 * it at once.
 */
export function runServer(
  name: string,
  handler: Handler,
  flags: ServerFlags,
  { port, origins = [], maxMessage = Infinity }: ServeOptions,
  release?: () => Promise<void>,
): void {
  const { host, cert, key, origin = [] } = flags;
  if (!cert !== !key) throw usageError("--cert and --key need each other.");
  for (const each of origin) {
    if (each === "*" || each === "null" || URL.parse(each)?.origin === each) continue;
    throw usageError(`--origin takes an origin such as https://example.com, not "${each}".`);
  }
  const server = serve(handler, {
    hostname: host,
    port: wholeNumber("port", flags.port ?? `${port}`, 0, 65_535),
    cert: cert && Deno.readTextFileSync(cert),
    key: key && Deno.readTextFileSync(key),
    origins: [...origins, ...origin],
    maxMessage: Math.min(maxMessage, wholeNumber("max-message", flags["max-message"], 1)),
    maxClients: wholeNumber("max-clients", flags["max-clients"], 1),
  });

  // Without a file descriptor left, the runtime gives up listening, and nothing brings it back.
  server.finished.catch((error) => {
    console.error(`Stopped listening (${error.message}): raise ulimit -n or lower --max-clients.`);
    Deno.exit(1);
  });
  let isStopping = false;
  const stop = async () => {
    if (isStopping) Deno.exit(1);
    isStopping = true;
    await deadline(server.shutdown(), SHUTDOWN_TIMEOUT).catch(() => {
      console.error("Stopped before everyone was done, such as who does not read.");
    });
    await release?.();
    Deno.exit(0);
  };
  Deno.addSignalListener("SIGINT", stop);
  // There is no SIGTERM on Windows, and listening for it throws.
  if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", stop);

  // All addresses are no address to connect to.
  const reachable = host === "0.0.0.0" || host === "::" ? "localhost" : host;
  const address = `${reachable.includes(":") ? `[${host}]` : reachable}:${server.addr.port}`;
  const secure = cert ? "s" : "";
  console.log(`${name} on ws${secure}://${address}, page at http${secure}://${address}/`);
}

/** A mistake in the command line, marked as `parseArgs` marks those that it finds. */
export function usageError(message: string): Error {
  return Object.assign(new Error(message), { code: "ERR_PARSE_ARGS_INVALID_OPTION_VALUE" });
}

/** The number that a flag gives. */
export function wholeNumber(flag: string, text: string, least: number, most = 2 ** 40): number {
  if (/^\d+$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text);
  throw usageError(`--${flag} takes a whole number from ${least} to ${most}, not "${text}".`);
}

/** Runs a script; a mistake gets one line and exit code 1, or 2 if it is in the command line. */
export async function command(usage: string, main: () => void | Promise<void>): Promise<void> {
  if (Deno.args.includes("--help") || Deno.args.includes("-h")) return console.log(usage);
  try {
    await main();
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const isUsage = "code" in error && `${error.code}`.startsWith("ERR_PARSE_ARGS");
    let line = error.message.replaceAll("\n", " ");
    if (error instanceof Deno.errors.AddrInUse) {
      line = "This port is taken: choose one with --port.";
    }
    if (error instanceof Deno.errors.NotCapable) {
      // Deno names the flag that is missing; the usage has the command, without --allow-read.
      const needed = line.includes("--allow-read") ? "--allow-net --allow-read" : "--allow-net";
      line += `: ${usage.match(/deno run .*\.ts/)?.[0].replace("--allow-net", needed)}`;
    }
    console.error(printable(line, Infinity) + (isUsage ? `\n${usage}` : ""));
    Deno.exit(isUsage ? 2 : 1);
  }
}

const USAGE = `Usage: deno run --allow-net server.ts [flags]
  --once               answer one message of each client, then close with 1000${SERVER_USAGE}`;

if (import.meta.main) {
  await command(USAGE, () => {
    const options = { ...SERVER_FLAGS, once: { type: "boolean" } } as const;
    const { once, ...flags } = parseArgs({ options }).values;
    const handler = echo(flags.quiet ? () => {} : limited(console.log), once);
    // Pages opened from disk may connect, as there is nothing here to overhear.
    runServer("Echo server", handler, flags, { port: 9999, origins: ["null"] });
  });
}
