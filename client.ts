// The looping client, the article's second step:
//
//   deno run --allow-net client.ts [URL]
//   Data received as "Hello, I am Deno.".  time: 2026-11-23 09:24:14.787357
//   … one line a second, 39 in all
//
// With --interactive it is the article's test command: it sends what you type.
// Read `round` and `loop` for the one, `interact` for the other, and then `connect`.

import { deadline, delay } from "@std/async";
import process from "node:process";
import readline from "node:readline";
import { parseArgs } from "node:util";
import { printable, runScript, usageError, wholeNumber } from "./cli.ts";

/** One round of the article's client: connect, send, receive, close. */
export async function round(message: string, options: ClientOptions): Promise<Message> {
  await using websocket = await connect(options);
  if (websocket.protocol) console.error(`Subprotocol: ${websocket.protocol}`);
  websocket.send(message);
  return await websocket.receive(options);
}

/** Runs round after round. A round is tried again while the server is away. */
export async function loop(message: string, options: ClientOptions): Promise<void> {
  const { count, interval, patience, signal } = options;
  for (let rounds = 0; rounds < count; rounds++) {
    if (rounds > 0) await delay(interval, { signal });
    const end = performance.now() + patience;
    const isPassing = (error: unknown) =>
      error instanceof ConnectionError && performance.now() < end;
    printLine(show(await persist(() => round(message, options), isPassing, options)));
  }
}

/** What the functions of this client are told. All times are in milliseconds. */
export interface ClientOptions {
  /** Credentials in it are sent as HTTP Basic authentication, and never printed. */
  url: string;
  headers?: Headers;
  /** The subprotocols to offer. */
  protocols?: string[];
  /** How long the server may take for the handshake, and for an answer. */
  timeout: number;
  /** The longest first pause, when the server is away. Each next one may be twice as long. */
  pause: number;
  signal: AbortSignal;
  /** For `loop`: how many rounds, the time between them, and how long the server may be away. */
  count: number;
  interval: number;
  patience: number;
  /** For `interact`: whether to connect again after a loss. */
  reconnect: boolean;
}

/**
 * The article's test command at a terminal: sends each line that is typed, and shows what arrives
 * above the line being typed. When the connection is lost, it connects again.
 *
 * @returns How the last connection was closed.
 */
export async function interact(options: ClientOptions): Promise<CloseEvent> {
  let websocket = await connect(options);
  const leave = new AbortController();
  const signal = AbortSignal.any([options.signal, leave.signal]);
  const terminal = openTerminal(signal);
  const tell = (line: string) => signal.aborted ? console.log(line) : printAbove(terminal, line);
  terminal.on("line", (line) => {
    if (websocket.readyState === WebSocket.OPEN) websocket.send(line);
    else tell("Not sent: there is no connection. The up arrow gets the line back.");
    terminal.prompt();
  });
  terminal.on("close", () => {
    leave.abort();
    websocket[Symbol.asyncDispose]();
  });
  while (true) {
    tell(describeOpen(websocket, options));
    for await (const message of websocket.messages) tell(`< ${show(message)}`);
    const event = await websocket.closed;
    const isOver = !options.reconnect || signal.aborted || !isLost(event);
    if (isOver) terminal.close();
    tell(`Connection closed: ${describeClose(event)}.${isOver ? "" : " Connecting again …"}`);
    if (isOver) return event;
    try {
      await delay(Math.random() * options.pause, { signal });
      // A computer that wakes up has no network at first, and finds no host.
      const isPassing = (error: unknown) =>
        error instanceof ConnectionError || /\(dns /.test(`${error}`);
      websocket = await persist(() => connect(options), isPassing, { ...options, signal });
    } catch (error) {
      if (signal.aborted) return event;
      terminal.close();
      throw error;
    }
  }
}

/**
 * The test command in a pipe: sends each line of standard input, and prints the answers alone.
 * After the last line it waits for the answers that are due, up to `timeout` for each.
 *
 * @returns How the connection was closed.
 * @throws {Error} if answers did not come.
 */
export async function pipe(options: ClientOptions): Promise<CloseEvent> {
  await using websocket = await connect(options);
  console.error(describeOpen(websocket, options));
  const end = new AbortController();
  websocket.closed.then(() => end.abort());
  const signal = AbortSignal.any([options.signal, end.signal]);
  /** How many lines were sent and not answered yet, and how many milliseconds none was answered. */
  let due = 0;
  let waited = 0;

  async function send() {
    try {
      for await (const line of readLines(Deno.stdin.readable, signal)) {
        websocket.send(line);
        due++;
        while (websocket.bufferedAmount > MAX_UNSENT) await delay(10, { signal });
      }
      const { timeout } = options;
      for (waited = 0; due > 0 && waited < timeout; waited += 10) await delay(10, { signal });
    } catch (error) {
      if (!signal.aborted) throw error;
    }
    await websocket[Symbol.asyncDispose]();
  }

  async function receive() {
    for await (const message of websocket.messages) {
      printLine(show(message, Infinity));
      waited = 0;
      // A message that comes before any line was sent is not an answer.
      if (due > 0) due--;
    }
  }

  await Promise.all([send(), receive()]);
  const event = await websocket.closed;
  console.error(`Connection closed: ${describeClose(event)}.`);
  if (due > 0) throw new Error(`${due} messages were not answered.`);
  return event;
}

/**
 * Runs what needs the server, and runs it again as long as its error `isPassing`. Chance decides
 * how long each pause is, because otherwise all clients of a server that restarts would return at
 * once.
 */
async function persist<T>(
  run: () => Promise<T>,
  isPassing: (error: unknown) => boolean,
  { pause, signal }: ClientOptions,
): Promise<T> {
  for (let longest = pause;; longest = Math.min(2 * longest, 16 * pause)) {
    try {
      return await run();
    } catch (error) {
      if (!isPassing(error)) throw error;
    }
    await delay(Math.random() * longest, { signal });
  }
}

/** A text, or the bytes of a binary message. */
export type Message = string | ArrayBuffer;

/** The connection failed, or was lost, for a reason that may pass: another try may succeed. */
export class ConnectionError extends Error {}

/**
 * Opens a connection.
 *
 * @throws {ConnectionError} if the server is away, {Error} if another try would fail as well.
 */
export async function connect({ url, headers, protocols, timeout, signal }: ClientOptions) {
  const websocket = new Connection(url, { headers, protocols });
  websocket.binaryType = "arraybuffer";
  const opened = new Promise<void>((resolve, reject) => {
    websocket.onopen = () => resolve();
    websocket.onerror = (event) => reject(new Error((event as ErrorEvent).message));
  });
  try {
    await deadline(opened, timeout, { signal });
    return websocket;
  } catch (error) {
    websocket.close();
    throw signal.aborted ? error : handshakeError(url, error as Error);
  }
}

/**
 * A WebSocket that keeps what arrives until it is asked for. It listens from the start, because a
 * server may send a message, or close, as soon as the handshake is done.
 */
class Connection extends WebSocket implements AsyncDisposable {
  readonly closed = new Promise<CloseEvent>((resolve) => this.onclose = resolve);
  readonly messages = new ReadableStream<Message>({
    start: (controller) => {
      this.onmessage = ({ data }) => controller.enqueue(data);
      this.closed.then(() => {
        this.onmessage = null;
        controller.close();
      });
    },
  }).values({ preventCancel: true });

  /** The next message. Throws an error if none comes in time, or if the server closes. */
  async receive({ url, timeout, signal }: ClientOptions): Promise<Message> {
    try {
      const { done, value } = await deadline(this.messages.next(), timeout, { signal });
      if (!done) return value;
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Error(`No answer from ${withoutCredentials(url)} within ${timeout / 1000} s.`);
    }
    const event = await this.closed;
    const how = describeClose(event);
    const text = `${withoutCredentials(url)} closed with ${how} before it answered.`;
    throw isLost(event) ? new ConnectionError(text) : new Error(text);
  }

  /** Closes with 1000, and waits until the server has closed as well, or takes too long. */
  async [Symbol.asyncDispose]() {
    this.close(1000);
    const lost = new CloseEvent("close", { code: 1006 });
    await deadline(this.closed, CLOSE_TIMEOUT).catch(() => this.dispatchEvent(lost));
  }
}

/** Milliseconds that a server gets to answer a Close frame: one that was lost never answers. */
const CLOSE_TIMEOUT = 2_000;
/** Bytes that may wait to be sent before the next line is read: a pipe may bring gigabytes. */
const MAX_UNSENT = 1024 * 1024;
/** Bytes of a binary message that are shown: one line of a terminal. */
const MAX_HEX = 24;

/**
 * What to do about a handshake that failed. Deno tells the reason in words, which may change: each
 * pattern looks for as few of them as possible. A reason that is not here is told without advice.
 */
const ADVICE: [RegExp, string][] = [
  [/\b401$/, "put user:password@ before the host, or use --header"],
  [/\b403$/, "the server may expect credentials or another --origin"],
  [/\b503$/, "the server is full or not ready, try later"],
  [/\b[1-4]\d\d$/, "no WebSocket is served at this path, check the URL"],
  [/dns/, "there is no such host, check the URL"],
  [/certificate/, "trust it with: deno run --cert=FILE --allow-net client.ts"],
  [/corrupt/, "the server does not speak TLS, use ws:// instead of wss://"],
  [/HTTP version/, "the server may speak TLS, use wss:// instead of ws://"],
  [/tcp/, "start the server there, such as: deno run --allow-net server.ts"],
  [/in time/, "--timeout gives the server longer"],
];
/** The reasons that stay, so that another try would fail as well. */
const LASTING = /\b[1-4]\d\d$|dns|certificate|corrupt|HTTP version/;

/** Says why a handshake failed, and what to do about it. */
export function handshakeError(url: string, { name, message }: Error): Error {
  const reason = name === "TimeoutError"
    ? "no answer in time"
    : message.replace(/.*WebSocket: /, "");
  const advice = ADVICE.find(([pattern]) => pattern.test(reason))?.[1];
  const failure = `No connection to ${withoutCredentials(url)} (${reason})`;
  const text = advice ? `${failure}: ${advice}` : failure;
  return LASTING.test(reason) ? new Error(text) : new ConnectionError(text);
}

/** The same without the credentials of a URL, so that it may be printed. */
export function withoutCredentials(text: string): string {
  return text.replace(/(:\/*)[^/?#\\]*@/, "$1");
}

/** The lines of a pipe. */
export async function* readLines(
  input: ReadableStream<Uint8Array<ArrayBuffer>>,
  signal: AbortSignal,
): AsyncGenerator<string> {
  let rest = "";
  const decoder = new TextDecoderStream("utf-8", { ignoreBOM: true });
  for await (const text of input.pipeThrough(decoder, { signal })) {
    const [end, ...starts] = text.split("\n");
    rest += end;
    for (const start of starts) {
      yield rest.replace(/\r$/, "");
      rest = start;
    }
  }
  if (rest) yield rest;
}

/** Prints a line. Unlike `console.log` it throws when nobody reads standard output any more. */
function printLine(line: string) {
  let bytes = new TextEncoder().encode(`${line}\n`);
  while (bytes.length > 0) bytes = bytes.subarray(Deno.stdout.writeSync(bytes));
}

/** Reads lines at the terminal, with a prompt and a history. */
function openTerminal(signal: AbortSignal): readline.Interface {
  const lines = readline.createInterface({ input: process.stdin, output: process.stdout, signal });
  const resume = () => {
    process.stdin.setRawMode(true);
    lines.prompt(true);
  };
  // The shell changes the terminal while this process is stopped. When it goes on, `lines` says so
  // after Ctrl-Z, and only `process` after `kill -STOP`.
  lines.on("SIGCONT", resume);
  process.on("SIGCONT", resume);
  lines.on("close", () => {
    process.off("SIGCONT", resume);
    clearLine(lines);
  });
  return lines;
}

/** Prints a line above the one being typed, which may take several rows and is kept. */
function printAbove(lines: readline.Interface, line: string) {
  const rows = clearLine(lines);
  // `prompt` first goes up the rows that the typed line had, so they must be there again.
  process.stdout.write(`${line}\n${"\n".repeat(rows)}`);
  lines.prompt(true);
}

/** Clears the line being typed, and returns how many rows the cursor was below its first row. */
function clearLine(lines: readline.Interface): number {
  const { rows } = lines.getCursorPos();
  readline.moveCursor(process.stdout, 0, -rows);
  readline.cursorTo(process.stdout, 0);
  readline.clearScreenDown(process.stdout);
  return rows;
}

/** Such as `Connected to ws://localhost:9999, subprotocol chat.` */
function describeOpen({ protocol }: WebSocket, { url }: ClientOptions): string {
  return `Connected to ${withoutCredentials(url)}${protocol && `, subprotocol ${protocol}`}.`;
}

/** A message as one line: text made printable, binary in hexadecimal. */
export function show(data: Message, length?: number): string {
  if (typeof data === "string") return printable(data, length);
  const hex = new Uint8Array(data).subarray(0, MAX_HEX).toHex().replace(/..(?=.)/g, "$& ");
  return `${data.byteLength} bytes: ${hex}${data.byteLength > MAX_HEX ? " …" : ""}`;
}

/** Close codes (RFC 6455 section 7.4.1 and IANA's registry), as Python names them. */
const CLOSE_CODES: Record<number, string> = {
  1000: "OK",
  1001: "going away",
  1002: "protocol error",
  1003: "unsupported data",
  1005: "no status received",
  1006: "connection closed abnormally",
  1007: "invalid frame payload data",
  1008: "policy violation",
  1009: "message too big",
  1011: "internal error",
  1012: "service restart",
  1013: "try again later",
  1014: "bad gateway",
};

/** Whether another connection may last after this one. Deno reports a broken connection with 0. */
export function isLost({ code }: CloseEvent): boolean {
  return [0, 1001, 1006, 1012, 1013].includes(code);
}

/** How a connection was closed, such as `1000 (OK)`. Deno reports a broken one with 0. */
export function describeClose({ code, reason }: CloseEvent): string {
  const known = code || 1006;
  const range = known >= 4000 ? "private use" : known >= 3000 ? "registered" : "unknown";
  return printable(`${known} (${CLOSE_CODES[known] ?? range}) ${reason}`.trim());
}

/** A header as RFC 9110 section 5.5 allows it, such as `Name: value`. */
const HEADER = /^([!#$%&'*+.^`|~\w-]+):([\t\x20-\x7e\xa0-\xff]*)$/;
/** Headers that Deno sets itself. It ignores what a script says of them. */
const SET_BY_DENO =
  /^(host|connection|upgrade|content-length|transfer-encoding|sec-websocket-.*)$/i;

/**
 * The headers that `--header` gives.
 *
 * @throws {Error} a `usageError`, which does not show the value: it may be a password.
 */
export function parseHeaders(lines: string[]): Headers {
  const headers = new Headers();
  for (const line of lines) {
    const [, name, value] = line.match(HEADER) ?? [];
    if (name === undefined || SET_BY_DENO.test(name)) {
      throw usageError("--header takes 'Name: value', and no name that Deno sets, such as Host.");
    }
    headers.append(name, value);
  }
  return headers;
}

const USAGE = `Usage: deno run --allow-net client.ts [flags] [URL]
  URL                     the server (ws://localhost:9999), or ws://user:password@host
  --count COUNT           rounds (39)
  --interval SECONDS      pause between rounds (1)
  --message TEXT          what to send (Hello, I am Deno.)
  --timeout SECONDS       how long the server may take to answer (10)
  --header 'NAME: VALUE'  header to send with the handshake, repeatable
  --origin ORIGIN         header that browsers send, such as https://example.com
  --subprotocol NAME      subprotocol to offer, repeatable
  -i, --interactive       send what is typed, or the lines of a pipe, instead
  --no-reconnect          with -i, end when the connection is lost
  --help                  print this`;

if (import.meta.main) {
  await runScript(USAGE, async () => {
    const { values, positionals } = parseArgs({
      options: {
        count: { type: "string", default: "39" },
        interval: { type: "string", default: "1" },
        message: { type: "string", default: "Hello, I am Deno." },
        timeout: { type: "string", default: "10" },
        header: { type: "string", multiple: true, default: [] },
        origin: { type: "string" },
        subprotocol: { type: "string", multiple: true, default: [] },
        interactive: { type: "boolean", short: "i" },
        "no-reconnect": { type: "boolean", default: false },
      },
      allowPositionals: true,
    });
    const [url = "ws://localhost:9999", ...surplus] = positionals;
    if (surplus.length > 0) throw usageError("One URL is enough.");
    if (values.origin !== undefined) values.header.push(`Origin: ${values.origin}`);
    const interrupt = new AbortController();
    const { signal } = interrupt;
    const options = {
      url,
      headers: parseHeaders(values.header),
      protocols: values.subprotocol,
      timeout: milliseconds("timeout", values.timeout),
      pause: values.interactive ? 2_000 : 100,
      signal,
      count: wholeNumber("count", values.count, 1),
      interval: milliseconds("interval", values.interval),
      patience: 10_000,
      reconnect: !values["no-reconnect"],
    };
    Deno.addSignalListener("SIGINT", () => {
      if (signal.aborted) Deno.exit(130);
      interrupt.abort();
    });
    let code = 1000;
    try {
      const isTerminal = Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
      if (values.interactive) ({ code } = await (isTerminal ? interact : pipe)(options));
      else await loop(values.message, options);
    } catch (error) {
      // This is what a shell reports of a program that ends because nobody reads its output.
      if (error instanceof Deno.errors.BrokenPipe) Deno.exit(141);
      // The runtime finds what is wrong with a URL or a subprotocol.
      const { name, message } = error as Error;
      if (name === "SyntaxError") throw usageError(withoutCredentials(message));
      if (!signal.aborted) throw error;
    }
    if (signal.aborted) Deno.exit(130);
    Deno.exit(code === 1000 || code === 1001 ? 0 : 1);
  });
}

/** The milliseconds that a flag gives. Deno's timers end after 24 days: more is for ever. */
function milliseconds(flag: string, text: string): number {
  const number = Number(text) * 1000;
  if (/^\d+(\.\d+)?$/.test(text)) return number < 2 ** 31 ? number : Infinity;
  throw usageError(`--${flag} takes a number of seconds, not "${text}".`);
}
