// The looping client, the article's second step:
//
//   deno run --allow-net client.ts [URL]
//   Data received as "Hello, I am Deno.".  time: 2026-11-23 09:24:14.787357
//   … one line a second, 39 in all
//
// With --interactive it is the article's test command: it sends what you type.
// Read `round` and `loop` for the one, and `interact` for the other.

import { deadline, delay } from "@std/async";
import process from "node:process";
import readline from "node:readline";
import { parseArgs } from "node:util";
import { printable, runScript, usageError, wholeNumber } from "./cli.ts";

/** One round of the article's client: connect, send, receive, close. */
export async function round(message: string, options: ClientOptions) {
  await using websocket = await connect(options);
  websocket.send(message);
  return { answer: await websocket.receive(options), subprotocol: websocket.protocol };
}

/** Runs round after round. While the server is away, a round is tried again after a pause. */
export async function loop(message: string, options: ClientOptions) {
  const { count = 39, interval = 1_000, patience = 10_000, signal } = options;
  for (let done = 0; done < count; done++) {
    if (done > 0) await delay(interval, { signal });
    const end = performance.now() + patience;
    for (let failures = 0;; failures++) {
      try {
        const { answer, subprotocol } = await round(message, options);
        if (done === 0 && subprotocol) console.error(`Subprotocol: ${subprotocol}`);
        printLine(show(answer));
        break;
      } catch (error) {
        if (!(error instanceof ConnectionError) || performance.now() > end) throw error;
        await pause(failures, patience / 100, signal);
      }
    }
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
  signal: AbortSignal;
  /** For `loop`: how many rounds (39), and how long it waits between them (1,000). */
  count?: number;
  interval?: number;
  /** For `loop`: how long the server may be away (10,000), which is enough to restart it. */
  patience?: number;
  /** For `interact`: whether to connect again after a loss (true). */
  reconnect?: boolean;
  /** For `interact`: the longest pause before the first try to do so (2,000). */
  firstPause?: number;
}

/**
 * The article's test command at a terminal: sends each line that is typed, and shows what arrives
 * above the line being typed. When the connection is lost, it connects again.
 *
 * @returns The exit code of the script.
 */
export async function interact(options: ClientOptions): Promise<number> {
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
  for (let losses = 0;; losses++) {
    const start = performance.now();
    tell(describeOpen(websocket, options));
    for await (const message of websocket.messages) tell(`< ${show(message)}`);
    const event = await websocket.closed;
    const isOver = options.reconnect === false || signal.aborted || !isLost(event);
    if (isOver) terminal.close();
    tell(`Connection closed: ${describeClose(event)}.${isOver ? "" : " Connecting again …"}`);
    if (isOver) return exitCode(event);
    if (performance.now() - start > STABLE) losses = 0;
    try {
      websocket = await connectAgain({ ...options, signal }, losses);
    } catch (error) {
      if (signal.aborted) return 1;
      terminal.close();
      throw error;
    }
  }
}

/**
 * Connects after a loss, after pauses that grow with each failure. Unlike `loop` it also goes on when
 * the host is not found: a computer that wakes up has no network at first.
 */
export async function connectAgain(options: ClientOptions, failures = 0): Promise<Connection> {
  await pause(failures, options.firstPause ?? 2_000, options.signal);
  try {
    return await connect(options);
  } catch (error) {
    if (!(error instanceof ConnectionError) && !/dns/.test(`${error}`)) throw error;
    return await connectAgain(options, failures + 1);
  }
}

/**
 * The test command in a pipe: sends each line of standard input, and prints the answers alone. After
 * the last line it waits for the answers that are due, up to `timeout` milliseconds for each.
 *
 * @returns The exit code.
 * @throws {Error} if answers did not come.
 */
export async function pipe(options: ClientOptions): Promise<number> {
  await using websocket = await connect(options);
  console.error(describeOpen(websocket, options));
  const end = new AbortController();
  websocket.closed.then(() => end.abort());
  const signal = AbortSignal.any([options.signal, end.signal]);
  /** How many lines were sent and not answered yet, and how long none was answered. */
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
  return exitCode(event);
}

/**
 * Waits before another try: up to `longest` milliseconds after the first failure, and up to twice as
 * long after each further one. Each pause is random, because otherwise the many clients of a server
 * that restarts would all return in the same moment.
 */
export async function pause(failures: number, longest: number, signal: AbortSignal) {
  await delay(Math.random() * longest * 2 ** Math.min(failures, 4), { signal });
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
  signal.throwIfAborted();
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

  /** The next message. */
  async receive({ url, timeout, signal }: ClientOptions): Promise<Message> {
    try {
      const { done, value } = await deadline(this.messages.next(), timeout, { signal });
      if (!done) return value;
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Error(`No answer from ${withoutCredentials(url)} within ${timeout / 1000} s.`);
    }
    const reason = describeClose(await this.closed);
    throw new ConnectionError(
      `${withoutCredentials(url)} closed with ${reason} before it answered.`,
    );
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
/** Characters that a line of a pipe may have: few servers take a longer message. */
const MAX_LINE = 64 * 1024 * 1024;
/** Milliseconds after which a connection counts as stable, so that the pauses start anew. */
const STABLE = 60_000;
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
    : message.replace("NetworkError: failed to connect to WebSocket: ", "");
  const advice = ADVICE.find(([pattern]) => pattern.test(reason))?.[1];
  const text = `No connection to ${withoutCredentials(url)} (${reason})${
    advice ? `: ${advice}` : ""
  }`;
  return LASTING.test(reason) ? new Error(text) : new ConnectionError(text);
}

/** The URL without credentials, as it may be printed. */
export function withoutCredentials(url: string): string {
  return url.replace(/^(wss?:\/*)[^/?#\\]*@/i, "$1");
}

/**
 * The lines of a pipe.
 *
 * @throws {Error} if a line is longer than `MAX_LINE`.
 */
export async function* readLines(
  input: ReadableStream<Uint8Array<ArrayBuffer>>,
  signal: AbortSignal,
): AsyncGenerator<string> {
  let rest = "";
  const decoder = new TextDecoderStream("utf-8", { ignoreBOM: true });
  for await (const text of input.pipeThrough(decoder, { signal })) {
    const [end, ...starts] = text.split("\n");
    rest += end;
    if (rest.length > MAX_LINE) {
      throw new Error(`A line has over ${MAX_LINE} characters, split it.`);
    }
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

/** What close codes mean: RFC 6455 section 7.4.1 and IANA's registry, named as Python names them. */
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

/** The exit code: 0 where the server closed as it should, or went away. */
function exitCode({ code }: CloseEvent): number {
  return code === 1000 || code === 1001 ? 0 : 1;
}

/** Whether the server is only away, as these codes say. Deno reports a broken connection with 0. */
export function isLost({ code }: CloseEvent): boolean {
  return [0, 1001, 1006, 1012, 1013].includes(code);
}

/** How a connection was closed, such as `1000 (OK)`. Deno reports a broken one with 0. */
export function describeClose({ code, reason }: CloseEvent): string {
  const known = code || 1006;
  const range = known >= 4000 ? "private use" : known >= 3000 ? "registered" : "unknown";
  return printable(`${known} (${CLOSE_CODES[known] ?? range}) ${reason}`.trim());
}

/** Names of headers (RFC 9110 section 5.6.2) and of subprotocols (RFC 6455 section 4.1). */
const TOKEN = /^[!#$%&'*+.^`|~\w-]+$/;
/** Headers that Deno sets, and does not take from a script. */
const SET_BY_DENO =
  /^(host|connection|upgrade|content-length|transfer-encoding|sec-websocket-.*)$/i;

/**
 * The headers that `--header` gives, each as `Name: value`.
 *
 * @throws {Error} a `usageError`, which does not show the value: it may be a password.
 */
export function parseHeaders(lines: string[]): Headers {
  const headers = new Headers();
  for (const line of lines) {
    const [, name = "", value = ""] = line.match(/^(.*?):([\t\x20-\x7e\xa0-\xff]*)$/) ?? [];
    if (!TOKEN.test(name)) throw usageError("--header takes 'Name: value', in Latin letters.");
    if (SET_BY_DENO.test(name)) {
      throw usageError(`--header can't set ${name}, because Deno does.`);
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
    if (!/^wss?:\/\/[^#]*$/i.test(url) || !URL.canParse(url)) {
      throw usageError("The URL must be like ws://localhost:9999 or wss://host/path, without #.");
    }
    if (!values.subprotocol.every((name) => TOKEN.test(name))) {
      throw usageError("--subprotocol takes a name without spaces, such as chat.");
    }
    if (values.origin !== undefined) values.header.push(`Origin: ${values.origin}`);
    const interrupt = new AbortController();
    const { signal } = interrupt;
    const options = {
      url,
      headers: parseHeaders(values.header),
      protocols: [...new Set(values.subprotocol)],
      timeout: seconds("timeout", values.timeout),
      count: wholeNumber("count", values.count, 1),
      interval: seconds("interval", values.interval),
      reconnect: !values["no-reconnect"],
      signal,
    };
    Deno.addSignalListener("SIGINT", () => {
      if (signal.aborted) Deno.exit(130);
      interrupt.abort();
    });
    let code = 0;
    try {
      const isTerminal = Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
      if (values.interactive) code = await (isTerminal ? interact : pipe)(options);
      else await loop(values.message, options);
    } catch (error) {
      // This is what a shell reports of a program that ends because nobody reads its output.
      if (error instanceof Deno.errors.BrokenPipe) Deno.exit(141);
      if (!signal.aborted) throw error;
    }
    Deno.exit(signal.aborted ? 130 : code);
  });
}

/** The milliseconds that a flag gives. Deno's timers end after 24 days: more is taken as for ever. */
function seconds(flag: string, text: string): number {
  const milliseconds = Number(text) * 1000;
  if (/^\d+(\.\d+)?$/.test(text)) return milliseconds < 2 ** 31 ? milliseconds : Infinity;
  throw usageError(`--${flag} takes a number of seconds, not "${text}".`);
}
