// A WebSocket server, as `import websockets` is in the article:
//
//   import { serve } from "./websockets.ts";
//   serve({ message: (socket, data) => socket.send(data) }, { port: 8000 });
//
// Read `Handler` first: it is what a server of your own does. Then `serve`, which keeps the rules
// for all clients. `Queues` and `Client` know who is too slow. `runServer` makes a script of it.

import { deadline, delay } from "@std/async";
import { createHash, timingSafeEqual } from "node:crypto";
import { parseArgs } from "node:util";
import { getHeapStatistics } from "node:v8";
import { limited, type Log, unfailing, usageError, wholeNumber } from "./cli.ts";
import page from "./client.html" with { type: "text" };

/** Bytes of the largest message: more than most texts, and little enough to hold for many. */
export const MAX_MESSAGE = 1024 ** 2;
/** Clients at a time: each takes a file descriptor, and 20 KiB even when it is silent. */
export const MAX_CLIENTS = 10_000;
/** Bytes that may wait for all clients together: 1 GiB, or less where V8 could not hold that. */
export const MAX_WAITING = Math.min(1024 ** 3, Math.floor(getHeapStatistics().heap_size_limit / 4));
/**
 * Seconds that a client may be silent, or take nothing of what waits for it. It is pinged after
 * half of them. 0 is for ever.
 */
export const IDLE_TIMEOUT = 30;
/** Bytes that the runtime is handed for a client at a time: it can't be made to forget them. */
const MAX_HANDED = 512 * 1024;
/** Bytes that the runtime takes for a message, beside its content. */
const HANDED_COST = 1024;
/** Bytes that V8 takes for a text that waits in a queue, beside its content. */
const TEXT_COST = 128;
/** The same for binary, which is a copy of what the handler has sent. */
const BINARY_COST = 400;
/** Milliseconds until the next look at a client with a queue that takes what it is sent at once. */
const SHORT_LOOK = 1;
/** Milliseconds between looks at all others for which something waits. */
const LONG_LOOK = 500;
/** Milliseconds in which a client that reads takes something, even from a busy server. */
const READ_INTERVAL = 1_000;
/** Bytes that RFC 6455 section 5.5.1 leaves for the reason in a Close frame. */
const MAX_REASON = 123;
/** Milliseconds that a stopping server waits for its clients: containers are killed after 10 s. */
const SHUTDOWN_TIMEOUT = 5_000;

/** The origins of pages that this machine serves. */
const LOOPBACK = /^https?:\/\/(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/;

type Info = Deno.ServeHandlerInfo<Deno.NetAddr>;
type Message = Parameters<WebSocket["send"]>[0];

/**
 * What a server does for its clients. Each function may be async. Where one throws or rejects, the
 * error is logged, and the client is closed with 1011 or the request is answered with 500.
 */
export interface Handler {
  /**
   * Sees every request that keeps the rules, before it is answered, as `process_request` does in
   * Python. A `Response` refuses a handshake or answers another request. `undefined` lets it go on.
   */
  request?(request: Request, info: Info): unknown;
  open?(socket: WebSocket, request: Request): unknown;
  message(socket: WebSocket, data: string | ArrayBuffer): unknown;
  /**
   * Called once for each `open`, with the code of who closed first. It is 1001 if a ping was not
   * answered, and 1006 if the connection broke.
   */
  close?(socket: WebSocket, event: CloseEvent): unknown;
}

/** `Deno.serve`'s options and the limits of a server, by default the constants of the same name. */
export interface ServeOptions extends Deno.ServeTcpOptions, Partial<Deno.TlsCertifiedKeyPem> {
  /** Origins that are let in beside loopback: `*` for any, `null` for pages opened from disk. */
  origins?: string[];
  maxMessage?: number;
  maxClients?: number;
  maxWaiting?: number;
  idleTimeout?: number;
  /** Told which clients are refused or dropped, and which errors the handler makes. */
  log?: Log;
}

/**
 * Starts a WebSocket server, as `websockets.serve` does in Python. It answers handshakes and keeps
 * every client within the limits, whatever the client sends and whatever the handler does. Its
 * `shutdown` sends every client what waits for it, and then 1001.
 *
 * @throws {Deno.errors.AddrInUse} if the port is taken, and whatever else `Deno.serve` throws.
 */
export function serve(handler: Handler, options: ServeOptions = {}): Deno.HttpServer<Deno.NetAddr> {
  const { maxMessage = MAX_MESSAGE, maxClients = MAX_CLIENTS, maxWaiting = MAX_WAITING } = options;
  const { idleTimeout = IDLE_TIMEOUT, origins = [], hostname = "localhost" } = options;
  const log = unfailing(options.log ?? limited(console.error));
  const clients = new Set<Client>();
  const queues = new Queues(maxWaiting, idleTimeout * 1000 || Infinity, drop);
  /** How many requests the handler has not decided about yet. */
  let pending = 0;
  const stopping = new AbortController();

  function answer(request: Request, info: Info): Response | Promise<Response> {
    // A handler that parses such a URL would fail, and the log would show it with its token.
    if (!URL.canParse(request.url)) return refuse(400, "The Host of the request can't be read.");
    const isHandshake = isUpgrade(request) || request.headers.get("sec-websocket-key") !== null;
    let refusal: Response | undefined;
    if (isHandshake) refusal = refuseHandshake(request) ?? refuseClient(request);
    else if (hasBody(request)) refusal = refuseClient(request) ?? refuseBody(request, maxMessage);
    if (refusal) return refusal;
    const accept = isHandshake ? upgrade : servePage;
    return handler.request ? ask(request, info, accept) : accept(request);
  }

  /** Refuses a client because of where it comes from, or because there are too many. */
  function refuseClient({ headers }: Request): Response | undefined {
    const origin = headers.get("origin");
    // Programs send no Origin. Host is not compared with it, because DNS rebinding can forge both.
    const isKnown = origin === null || LOOPBACK.test(origin) || origins.includes(origin);
    if (!isKnown && !origins.includes("*")) {
      log(`Refused a page from ${origin}, see --origin.`);
      return refuse(403, "Pages from this origin are not let in, see --origin.");
    }
    if (stopping.signal.aborted) return refuse(503, "The server is shutting down.");
    if (clients.size + pending >= maxClients) {
      log(`Refused a client: there are ${maxClients}, see --max-clients.`);
      return refuse(503, "There are too many clients, try again later.");
    }
  }

  /** Lets the handler answer or refuse a request. */
  async function ask(request: Request, info: Info, accept: typeof upgrade): Promise<Response> {
    const answered = new AbortController();
    const signal = AbortSignal.any([answered.signal, stopping.signal]);
    // `async` makes a rejection of whatever is thrown, also by a `then` of what `request` returns.
    const asked = async () => await handler.request?.(request, info);
    const late = async () => {
      await delay(queues.idleTimeout, { signal }).catch(() => {});
      if (!signal.aborted) log("The handler took too long to answer a request.");
      return refuse(503, "The server can't wait for this any longer.");
    };
    pending++;
    try {
      const response = await Promise.race([asked(), late()]);
      if (response instanceof Response) return response;
      if (response !== undefined) {
        throw new TypeError("`request` must return a Response or undefined.");
      }
    } catch (error) {
      logFailure(error);
      return refuse(500, "The server failed to handle this.");
    } finally {
      pending--;
      answered.abort();
    }
    return accept(request);
  }

  function upgrade(request: Request): Response {
    // `open` can read the headers only if the runtime is made to keep them, which takes 1 KiB.
    if (handler.open) request.headers.has("host");
    const { socket, response } = Deno.upgradeWebSocket(request, { idleTimeout });
    // A client counts from here on, because a handshake that is reset by its client never opens.
    socket.addEventListener("open", () => admit(socket, request), { once: true });
    return response;
  }

  function admit(socket: WebSocket, request: Request) {
    if (clients.size >= maxClients || stopping.signal.aborted) {
      return socket.close(1013, "Try again later.");
    }
    const client = Client.from(socket, queues);
    clients.add(client);
    // Listeners take half a KiB less for each client than `onmessage` and the like.
    client.addEventListener("message", ({ data }) => receive(client, data));
    client.addEventListener("close", ({ code, reason }) => leave(client, code || 1006, reason));
    if (handler.open) call(client, handler.open, request);
  }

  function receive(client: Client, data: string | ArrayBuffer) {
    if (client.closing) return;
    if (isLarger(data, maxMessage)) return client.close(1009, `Larger than ${maxMessage} bytes.`);
    call(client, handler.message, data);
    queues.relieve(client);
  }

  function drop(client: Client, reason: string) {
    log(`Dropped a client. ${reason}`);
    leave(client, 1008, reason);
  }

  /** Forgets a client. The runtime reports the end of some clients twice. */
  function leave(client: Client, code: number, reason: string) {
    client.end({ code, reason });
    if (!clients.delete(client) || !handler.close) return;
    call(client, handler.close, new CloseEvent("close", client.closing));
  }

  /** Calls a function of the handler. An error that got out of it would end the process. */
  function call<T>(client: Client, run: (socket: WebSocket, data: T) => unknown, data: T) {
    try {
      const result = run.call(handler, client, data);
      if (result !== undefined) (async () => await result)().catch((error) => fail(client, error));
    } catch (error) {
      fail(client, error);
    }
  }

  function fail(client: Client, error: unknown) {
    logFailure(error);
    client.close(1011, "The server failed to handle this.");
  }

  function logFailure(error: unknown) {
    let text = "an error that can't be printed";
    try {
      text = Deno.inspect(error).replaceAll(/\s+/g, " ");
    } catch {
      // The error has a getter or a custom inspection that throws.
    }
    log(`The handler failed: ${text}`);
  }

  function onError(error: unknown): Response {
    // The message of the error may hold a URL with a token.
    log(`Refused a request that can't be read: ${error instanceof Error && error.name}.`);
    return refuse(400, "The request can't be read.");
  }

  const abort = new AbortController();
  const signal = AbortSignal.any([abort.signal, options.signal ?? abort.signal]);
  const server = Deno.serve({ onListen: () => {}, onError, ...options, hostname, signal }, answer);
  return Object.assign(server, {
    async shutdown() {
      stopping.abort();
      for (const client of clients) client.close(1001, "The server is shutting down.");
      do await delay(SHORT_LOOK); while (clients.size + pending > 0);
      // The runtime's own `shutdown` would wait without end for a handshake that was reset.
      abort.abort();
      await server.finished;
    },
  });
}

function refuse(status: number, text: string, headers?: HeadersInit): Response {
  return new Response(`${text}\n`, { status, headers });
}

function servePage({ method, url }: Request): Response {
  if (["GET", "HEAD"].includes(method) && new URL(url).pathname === "/") {
    return new Response(page, { headers: { "Content-Type": "text/html; charset=utf-8" } });
  }
  return refuse(426, "Connect to this server with a WebSocket.", { Upgrade: "websocket" });
}

/** Whether a request wants a WebSocket: both headers are lists, in upper or lower case. */
function isUpgrade({ headers }: Request): boolean {
  return /(^|,)\s*websocket\s*(,|$)/i.test(headers.get("upgrade") ?? "") &&
    /(^|,)\s*upgrade\s*(,|$)/i.test(headers.get("connection") ?? "");
}

/** What is wrong with a handshake (RFC 6455 section 4.2.1): the runtime checks little of it. */
export function refuseHandshake(request: Request): Response | undefined {
  const { method, headers } = request;
  if (!isUpgrade(request)) {
    return refuse(426, "Connect to this server with a WebSocket.", { Upgrade: "websocket" });
  }
  if (method !== "GET") return refuse(405, "A handshake is a GET request.", { Allow: "GET" });
  // `has` would make the runtime keep all headers for as long as the connection is open.
  if (headers.get("host") === null) return refuse(400, "A handshake needs a Host header.");
  if (headers.get("sec-websocket-version") !== "13") {
    const supported = { "Sec-WebSocket-Version": "13", Upgrade: "websocket" };
    return refuse(426, "This server speaks version 13 of the WebSocket protocol.", supported);
  }
  if (!/^[A-Za-z0-9+/]{22}==$/.test(headers.get("sec-websocket-key") ?? "")) {
    return refuse(400, "Sec-WebSocket-Key must be 16 bytes in base64.");
  }
}

/** Whether a request has a body. The runtime shows one for every request, so the method tells. */
function hasBody({ method }: Request): boolean {
  return !["GET", "HEAD", "OPTIONS"].includes(method);
}

/** Refuses a body of unknown or too large a size, so that a handler may read every body whole. */
function refuseBody({ headers }: Request, limit: number): Response | undefined {
  const length = headers.get("content-length");
  if (length === null) return refuse(411, "The request needs a Content-Length.");
  if (Number(length) > limit) return refuse(413, `Larger than ${limit} bytes.`);
}

/**
 * A `Handler.request` that lets in who knows the token: handshakes and pushes need it as
 * `Authorization: Bearer TOKEN`, or as `?token=TOKEN` because a page can't set a header. The page
 * itself needs none.
 *
 * @throws {Error} if `token` is empty, because everyone knows that one.
 */
export function requireToken(token: string, log: Log): (request: Request) => Response | undefined {
  if (token === "") throw new Error("The token is empty and would let everyone in: write one.");
  const digest = (text: string) => createHash("sha256").update(text).digest();
  const expected = digest(token);
  return (request) => {
    if (!isUpgrade(request) && ["GET", "HEAD"].includes(request.method)) return;
    const bearer = request.headers.get("authorization")?.match(/^bearer +(.*)$/i)?.[1];
    const given = bearer ?? new URL(request.url).searchParams.get("token") ?? "";
    // The comparison takes as long for a token that is nearly right.
    if (timingSafeEqual(digest(given), expected)) return;
    log("Refused a client without the right token.");
    return refuse(401, "The right token is needed.", { "WWW-Authenticate": "Bearer" });
  };
}

/** Whether a message has more than `limit` bytes. Text is encoded only where that is in doubt. */
function isLarger(data: string | ArrayBuffer, limit: number): boolean {
  if (typeof data !== "string") return sizeOf(data) > limit;
  return data.length * 3 > limit && new TextEncoder().encode(data).byteLength > limit;
}

/** Bytes of a message. For text it is the number of UTF-16 units, because counting takes long. */
function sizeOf(data: Message): number {
  if (typeof data === "string") return data.length;
  return data instanceof Blob ? data.size : data.byteLength;
}

/** Bytes that a message takes while it waits in a queue. */
function queuedSize(data: Message): number {
  return sizeOf(data) + (typeof data === "string" ? TEXT_COST : BINARY_COST);
}

/**
 * The queues of all clients of a server, and the decision who is too slow.
 *
 * The runtime queues without end what a client does not take, and can't be made to forget it. So it
 * is handed a little at a time, and all else waits here.
 *
 * A client that takes nothing for `idleTimeout` is dropped. When more than `maxWaiting` bytes wait
 * for all together, one client is dropped: the one with the longest queue, if it does not read or
 * if most of the bytes wait for it, or else the one that has just sent a message.
 */
class Queues {
  /** Bytes that wait, here or in the runtime, and the clients for which they do. */
  waiting = 0;
  readonly #busy = new Set<Client>();
  /** Milliseconds in which something waited, without those in which the process was stopped. */
  clock = 0;
  #lookedAt = 0;
  #limit: number;
  #pause = Infinity;
  #timer?: ReturnType<typeof setTimeout>;

  constructor(
    readonly maxWaiting: number,
    readonly idleTimeout: number,
    readonly drop: (client: Client, reason: string) => void,
  ) {
    this.#limit = maxWaiting;
  }

  /** Looks at a client within so many milliseconds, and again until nothing waits for it. */
  watch(client: Client, pause: number): void {
    if (this.#busy.size === 0) this.#lookedAt = performance.now();
    if (!this.#busy.has(client)) client.takenAt = this.clock;
    this.#busy.add(client);
    this.#lookWithin(pause);
  }

  forget(client: Client): void {
    this.waiting -= client.waiting;
    this.#busy.delete(client);
    if (this.#busy.size > 0) return;
    clearTimeout(this.#timer);
    this.#pause = Infinity;
  }

  /** Drops a client if too much waits. `sender` is the one whose message was handled just now. */
  relieve(sender?: Client): void {
    if (this.waiting <= this.#limit) return;
    for (const client of this.#busy) client.seeTaken();
    if (this.waiting <= this.maxWaiting) return;
    const [longest] = [...this.#busy].sort((one, other) => other.waiting - one.waiting);
    const isSlow = this.clock - longest.takenAt > READ_INTERVAL ||
      longest.waiting > this.waiting * 2 / 3;
    // Where it did not help to drop several senders, the readers have to go.
    if (!sender || isSlow || this.#limit > this.maxWaiting * 5 / 4) {
      return this.drop(longest, "It read too little while too much was waiting.");
    }
    // What this sender has sent still waits. The limit rises a little, because otherwise the next
    // sender would be dropped for it.
    this.#limit = this.waiting + this.maxWaiting / 16;
    this.drop(sender, "It sent more than the others could read.");
  }

  #lookWithin(pause: number) {
    if (pause >= this.#pause) return;
    clearTimeout(this.#timer);
    this.#pause = pause;
    this.#timer = setTimeout(() => this.#look(), pause);
  }

  #look() {
    const now = performance.now();
    this.clock += Math.min(now - this.#lookedAt, READ_INTERVAL / 2);
    this.#lookedAt = now;
    this.#pause = Infinity;
    for (const client of this.#busy) {
      if (client.readyState === WebSocket.OPEN) client.handOver();
      const idleFor = this.clock - client.takenAt;
      if (idleFor >= this.idleTimeout) {
        this.drop(client, "It did not read, or did not answer the Close frame, for too long.");
      } else if (client.waiting === 0 && !client.closing) {
        this.#busy.delete(client);
      } else if (client.queue.length > 0 || client.closing) {
        // A slow client is looked at less often, but soon enough for it to lose little time.
        this.#lookWithin(Math.min(Math.max(idleFor / 4, SHORT_LOOK), LONG_LOOK));
      } else {
        this.#lookWithin(LONG_LOOK);
      }
    }
    this.relieve();
    if (this.waiting <= this.maxWaiting) this.#limit = this.maxWaiting;
  }
}

/** A client: the runtime's socket, with a queue before it. A handler sees a `WebSocket`. */
class Client extends WebSocket {
  declare queues: Queues;
  /** What the runtime was not handed yet. */
  declare queue: Message[];
  /** Set as soon as the client is to be closed. It is sent nothing more, and not listened to. */
  declare closing?: Close;
  /** Bytes that wait for this client, and when it last took something on the queues' clock. */
  declare waiting: number;
  declare takenAt: number;
  /** Bytes that the runtime was handed since it had last sent all of them. */
  declare handed: number;

  /** Makes the runtime's socket a client. */
  static from(socket: WebSocket, queues: Queues): Client {
    Object.setPrototypeOf(socket, Client.prototype);
    const fields = { queues, queue: [], waiting: 0, takenAt: 0, handed: 0 };
    return Object.assign(socket as Client, fields);
  }

  override send(data: Message): void {
    if (this.closing) return;
    const message = typeof data === "string" ? data : toMessage(data);
    const isNext = this.queue.length === 0 && !(message instanceof Blob);
    if (isNext && (this.handed < MAX_HANDED || this.seeTaken())) return this.hand(message);
    if (this.queue.length === 0) this.queues.watch(this, SHORT_LOOK);
    const queued = snapshot(message);
    this.queue.push(queued);
    this.count(queuedSize(queued));
    if (queued instanceof Blob) this.read(queued);
  }

  /**
   * Closes the connection as soon as everything is taken that was sent before: the runtime's own
   * `close` loses sight of a connection for which something waits. Without a code it sends 1000. A
   * reason is cut to 123 bytes.
   *
   * @throws {DOMException} `InvalidAccessError` for a code that may not be sent.
   */
  override close(code = 1000, reason = ""): void {
    const closing = toClose(code, reason);
    if (this.closing) return;
    this.closing = closing;
    this.queues.watch(this, SHORT_LOOK);
    this.handOver();
  }

  /** Forgets what waits. The Close frame follows what the runtime was handed, if that is read. */
  end(closing: Close): void {
    this.closing ??= closing;
    this.queues.forget(this);
    this.waiting = 0;
    this.queue = [];
    this.sendClose();
  }

  /** Hands over what comes next, if all is taken that was handed over before. */
  handOver(): void {
    if (!this.seeTaken()) return;
    let count = 0;
    while (count < this.queue.length && this.handed < MAX_HANDED) {
      const message = this.queue[count];
      if (message instanceof Blob) break;
      count++;
      this.count(-queuedSize(message));
      this.hand(message);
    }
    this.queue.splice(0, count);
    if (this.waiting === 0) this.sendClose();
  }

  /** Whether all is taken that the runtime was handed. An empty message counts as taken at once. */
  seeTaken(): boolean {
    if (this.bufferedAmount > 0) return false;
    this.takenAt = this.queues.clock;
    this.count(-this.handed);
    this.handed = 0;
    return true;
  }

  /** Reads a Blob in the queue, because the runtime shows nothing of a Blob that it was handed. */
  private async read(blob: Blob) {
    const bytes = await blob.arrayBuffer().catch(() => undefined);
    const index = this.queue.indexOf(blob);
    if (index === -1) return;
    // A Blob may be a file that is gone by now.
    if (!bytes) return this.queues.drop(this, "The server failed to read its own message.");
    this.queue[index] = bytes;
  }

  private hand(message: Message) {
    super.send(message);
    const bytes = sizeOf(message) + HANDED_COST;
    this.handed += bytes;
    this.count(bytes);
  }

  private count(bytes: number) {
    if (this.waiting === 0) this.queues.watch(this, LONG_LOOK);
    this.waiting += bytes;
    this.queues.waiting += bytes;
  }

  private sendClose() {
    if (!this.closing || this.readyState !== WebSocket.OPEN) return;
    super.close(this.closing.code, this.closing.reason);
  }
}

/** What a Close frame says. */
interface Close {
  code: number;
  reason: string;
}

/** Checks and converts the arguments of `close` (RFC 6455 sections 5.5.1 and 7.4). */
function toClose(code: number, reason: string): Close {
  const ranges = [[1000, 1003], [1007, 1014], [3000, 4999]];
  if (!ranges.some(([least, most]) => least <= code && code <= most)) {
    throw new DOMException(`The code ${code} may not be sent.`, "InvalidAccessError");
  }
  const text = `${reason}`.toWellFormed();
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(MAX_REASON));
  return { code, reason: text.slice(0, read) };
}

/** What the platform makes of the argument of `send`: all that is not binary becomes text. */
function toMessage(data: Message): Message {
  const isBinary = data instanceof Blob || data instanceof ArrayBuffer || ArrayBuffer.isView(data);
  return isBinary ? data : `${data}`;
}

/** A message as it is now, because a buffer may be changed later. */
function snapshot(data: Message): Message {
  if (!ArrayBuffer.isView(data)) return data.slice(0);
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
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
  "max-waiting": { type: "string", default: `${MAX_WAITING}` },
  quiet: { type: "boolean" },
} as const;

/** What `--help` says of `SERVER_FLAGS`. */
export const SERVER_USAGE = `
  --host HOST          address to listen on (localhost), 0.0.0.0 for other machines too
  --port PORT          port to listen on, 0 for a free one
  --cert FILE          certificate for wss, in PEM; needs --key and --allow-read
  --key FILE           private key of the certificate, in PEM
  --origin ORIGIN      let pages from this origin in, * for any; may be given many times
  --max-message BYTES  largest message (${MAX_MESSAGE})
  --max-clients COUNT  clients at a time (${MAX_CLIENTS})
  --max-waiting BYTES  what may wait for all clients together (${MAX_WAITING})
  --quiet              do not print messages
  --help               print this`;

type ServerFlags = ReturnType<typeof parseArgs<{ options: typeof SERVER_FLAGS }>>["values"];

/** Whether this is `*`, `null`, or the whole origin of a page. There are no patterns. */
function isOrigin(text: string): boolean {
  return ["*", "null"].includes(text) ||
    (/^https?:[^*]+$/.test(text) && URL.parse(text)?.origin === text);
}

function readPem(file: string): string {
  const text = Deno.readTextFileSync(file);
  if (text.includes("-----BEGIN")) return text;
  throw new Error(`There is no certificate or key in ${file}: in PEM it starts with -----BEGIN.`);
}

/**
 * Serves as the flags say until SIGINT or SIGTERM. Then nobody is let in any more, every client
 * gets what waits for it and 1001, `release` is called, and the process ends with 0. A second
 * signal ends it at once.
 *
 * @throws {Error} if a flag is wrong, a file can't be read, or the port is taken.
 */
export function runServer(
  name: string,
  handler: Handler,
  flags: ServerFlags,
  { port, origins = [], maxMessage = Infinity }: Pick<ServeOptions, "origins" | "maxMessage"> & {
    port: number;
  },
  release?: () => Promise<void>,
): void {
  const { host, cert, key, origin = [] } = flags;
  if (!cert !== !key) throw usageError("--cert and --key need each other.");
  const wrong = origin.find((each) => !isOrigin(each));
  if (wrong !== undefined) {
    throw usageError(
      `--origin takes a whole origin such as https://example.com, or *, not "${wrong}".`,
    );
  }
  const options = {
    hostname: host.replace(/^\[(.*)\]$/, "$1"),
    port: wholeNumber("port", flags.port ?? `${port}`, 0, 65_535),
    cert: cert && readPem(cert),
    key: key && readPem(key),
    origins: [...origins, ...origin],
    maxMessage: Math.min(maxMessage, wholeNumber("max-message", flags["max-message"], 1)),
    maxClients: wholeNumber("max-clients", flags["max-clients"], 1),
    maxWaiting: wholeNumber("max-waiting", flags["max-waiting"], 1),
  };
  let server: ReturnType<typeof serve>;
  try {
    server = serve(handler, options);
  } catch (error) {
    if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    throw new Error(`Port ${options.port} is taken: choose another one with --port.`);
  }

  const tell = unfailing(console.error);
  // Without a file descriptor left, the runtime stops listening, and nothing makes it start again.
  server.finished.catch((error) => {
    tell(`Stopped listening (${error.message}): raise ulimit -n or lower --max-clients.`);
    Deno.exit(1);
  });
  let isStopping = false;
  const stop = async () => {
    if (isStopping) Deno.exit(1);
    isStopping = true;
    await deadline(server.shutdown(), SHUTDOWN_TIMEOUT).catch(() => {
      tell("Stopped before every client had read what was waiting for it.");
    });
    await release?.();
    Deno.exit(0);
  };
  Deno.addSignalListener("SIGINT", stop);
  // There is no SIGTERM on Windows, and listening for it throws.
  if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", stop);

  // 0.0.0.0 and :: stand for all addresses of this machine, and nobody can connect to them.
  const { hostname } = options;
  const reachable = hostname === "0.0.0.0" || hostname === "::" ? "localhost" : hostname;
  const address = `${reachable.includes(":") ? `[${reachable}]` : reachable}:${server.addr.port}`;
  const secure = cert ? "s" : "";
  unfailing(console.log)(
    `${name} on ws${secure}://${address}, page at http${secure}://${address}/`,
  );
}
