// The looping client, the article's second step:
//
//   deno run --allow-net client.ts [URL]
//   Data received as "Hello, I am Deno.".  time: 2026-11-23 09:24:14.787357
//   … one line a second, 39 in all
//
// With --interactive it is the article's test command: it sends what you type.
// Read `round` and `loop` for the one, and `interact` for the other.

import { deadline, delay, retry } from "@std/async";
import process from "node:process";
import readline from "node:readline";
import { parseArgs } from "node:util";
import { type Log, printable, runScript as command, usageError, wholeNumber } from "./cli.ts";

/** Milliseconds that a server may be away: time enough to restart it. */
const PATIENCE = 10_000;
/** Milliseconds that a server gets to answer a Close frame: a lost one must not keep us. */
const CLOSE_TIMEOUT = 2_000;
/** Bytes that may wait to be sent before standard input is read on: a pipe may bring gigabytes. */
const MAX_BUFFERED = 1024 * 1024;
/** Bytes of binary that are shown: one line of a terminal. */
const MAX_HEX = 24;

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
  1010: "mandatory extension",
  1011: "internal error",
  1012: "service restart",
  1013: "try again later",
  1014: "bad gateway",
  1015: "TLS handshake failure",
};

/** There is no connection, or it ended too early: worth another try. */
export class ConnectionError extends Error {}

/**
 * Opens a connection, within `timeout` milliseconds.
 *
 * @throws {ConnectionError} if that can't be done.
 */
export async function connect(url: string, timeout: number, signal?: AbortSignal) {
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  const opened = new Promise<void>((resolve, reject) => {
    socket.onopen = () => resolve();
    socket.onerror = (event) => reject(new ConnectionError((event as ErrorEvent).message));
  });
  try {
    await deadline(opened, timeout, { signal });
    return socket;
  } catch (error) {
    socket.close();
    if (signal?.aborted || error instanceof ConnectionError) throw error;
    throw new ConnectionError(`no answer within ${timeout / 1000} s`);
  }
}

/** Closes a connection with 1000, and waits until the other side has done so too. */
export async function close(socket: WebSocket): Promise<CloseEvent> {
  const closed = new Promise<CloseEvent>((resolve) => socket.addEventListener("close", resolve));
  socket.close(1000);
  return await deadline(closed, CLOSE_TIMEOUT).catch(() => new CloseEvent("close", { code: 1006 }));
}

/**
 * One round of the article's client: connect, send, receive, close.
 *
 * @throws {ConnectionError} if the server is away, {Error} if it does not answer in time.
 */
export async function round(url: string, message: string, timeout: number, signal?: AbortSignal) {
  const socket = await connect(url, timeout, signal);
  const answer = new Promise<string | ArrayBuffer>((resolve, reject) => {
    socket.onmessage = ({ data }) => resolve(data);
    socket.onclose = (event) =>
      reject(new ConnectionError(`it closed with ${describeClose(event)}`));
  });
  try {
    socket.send(message);
    return await deadline(answer, timeout, { signal });
  } catch (error) {
    if (error instanceof ConnectionError || signal?.aborted) throw error;
    throw new Error(`No answer from ${url} within ${timeout / 1000} s.`);
  } finally {
    if (socket.readyState !== WebSocket.CLOSED) await close(socket);
  }
}

export interface LoopOptions {
  url: string;
  message: string;
  /** How many rounds. */
  count: number;
  /** Milliseconds between rounds, and those that a server gets to answer. */
  interval: number;
  timeout: number;
  print: Log;
  signal?: AbortSignal;
}

/** Runs round after round. While the server is away, a round is tried again with longer pauses. */
export async function loop({ url, message, count, interval, timeout, print, signal }: LoopOptions) {
  for (let done = 0; done < count; done++) {
    if (done > 0) await delay(interval, { signal });
    const end = performance.now() + PATIENCE;
    const answer = await retry(() => round(url, message, timeout, signal), {
      minTimeout: 100,
      maxTimeout: 2_000,
      maxAttempts: Number.MAX_SAFE_INTEGER,
      isRetriable: (error: unknown) => error instanceof ConnectionError && performance.now() < end,
    });
    print(show(answer));
  }
}

/** A message as one line: text made printable, binary in hexadecimal. */
export function show(data: string | ArrayBuffer, length?: number): string {
  if (typeof data === "string") return printable(data, length);
  const bytes = [...new Uint8Array(data).subarray(0, MAX_HEX)];
  const hex = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return `${data.byteLength} bytes: ${hex}${data.byteLength > MAX_HEX ? " …" : ""}`;
}

/** How a connection was closed, such as `1000 (OK)`. Deno reports a broken one with 0. */
export function describeClose({ code, reason }: CloseEvent): string {
  const known = code || 1006;
  const range = known >= 4000 ? "private use" : known >= 3000 ? "registered" : "unknown";
  return printable(`${known} (${CLOSE_CODES[known] ?? range}) ${reason}`.trim());
}

/**
 * The article's test command: sends each line of standard input, and prints what arrives. At a
 * terminal that is shown above the line being typed; in a pipe, the answers alone go to standard
 * output, and after the last line those that are due are waited for, for `timeout` milliseconds.
 */
export async function interact(url: string, timeout: number, signal: AbortSignal) {
  const isTerminal = Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
  const tell = isTerminal ? console.log : console.error;
  const socket = await connect(url, timeout, signal);
  const closed = new Promise<CloseEvent>((resolve) => socket.onclose = resolve);
  tell(`Connected to ${url}.`);

  const lines = readline.createInterface({
    input: process.stdin,
    output: isTerminal ? process.stdout : undefined,
  });
  closed.then(() => lines.close());
  signal.addEventListener("abort", () => lines.close());
  let due = 0;
  let allArrived = () => {};
  socket.onmessage = ({ data }) => {
    if (isTerminal) printAbove(lines, `< ${show(data)}`);
    else console.log(show(data, Infinity));
    if (--due <= 0) allArrived();
  };
  if (isTerminal) lines.prompt();
  for await (const line of lines) {
    socket.send(line);
    due++;
    if (isTerminal) lines.prompt();
    while (socket.bufferedAmount > MAX_BUFFERED) await delay(10);
  }
  if (isTerminal) clearLine(0);
  else if (due > 0 && !signal.aborted) {
    const arrived = new Promise<void>((resolve) => allArrived = resolve);
    await deadline(Promise.race([arrived, closed]), timeout, { signal }).catch(() => {});
  }
  const event = await (socket.readyState === WebSocket.OPEN ? close(socket) : closed);
  tell(`Connection closed: ${describeClose(event)}.`);
  if (!isTerminal && due > 0) throw new Error(`${due} messages were not answered.`);
  return event.code === 1000 || event.code === 1001 ? 0 : 1;
}

/** Prints a line above the one being typed, which may take several rows and is kept. */
function printAbove(lines: readline.Interface, line: string) {
  const { rows } = lines.getCursorPos();
  clearLine(rows);
  // `prompt` first goes up the rows that the typed line had, so they must be there again.
  process.stdout.write(`${line}\n${"\n".repeat(rows)}`);
  lines.prompt(true);
}

/** Clears the line being typed, from its first row on. */
function clearLine(rows: number) {
  readline.moveCursor(process.stdout, 0, -rows);
  readline.cursorTo(process.stdout, 0);
  readline.clearScreenDown(process.stdout);
}

const USAGE = `Usage: deno run --allow-net client.ts [flags] [URL]
  URL                 the server (ws://localhost:9999)
  --count COUNT       rounds (39)
  --interval SECONDS  pause between rounds (1)
  --message TEXT      what to send (Hello, I am Deno.)
  --timeout SECONDS   how long the server may take to answer (10)
  -i, --interactive   send what is typed, or the lines of a pipe, instead
  --help              print this`;

if (import.meta.main) {
  await command(USAGE, async () => {
    const { values, positionals } = parseArgs({
      options: {
        count: { type: "string", default: "39" },
        interval: { type: "string", default: "1" },
        message: { type: "string", default: "Hello, I am Deno." },
        timeout: { type: "string", default: "10" },
        interactive: { type: "boolean", short: "i" },
      },
      allowPositionals: true,
    });
    const [url = "ws://localhost:9999", surplus] = positionals;
    if (surplus !== undefined) throw usageError(`One URL is enough, what is "${surplus}"?`);
    if (!/^wss?:/.test(url) || !URL.canParse(url)) throw usageError(`"${url}" is no ws:// URL.`);
    const count = wholeNumber("count", values.count, 1);
    const interval = seconds("interval", values.interval);
    const timeout = seconds("timeout", values.timeout);

    const interrupt = new AbortController();
    Deno.addSignalListener("SIGINT", () => {
      if (interrupt.signal.aborted) Deno.exit(130);
      interrupt.abort();
    });
    let code = 0;
    const { signal } = interrupt;
    try {
      if (values.interactive) code = await interact(url, timeout, signal);
      else {
        const { message } = values;
        await loop({ url, message, count, interval, timeout, print: console.log, signal });
      }
    } catch (error) {
      if (signal.aborted) Deno.exit(130);
      if (error instanceof ConnectionError) {
        const hint = "start the server there, such as: deno run --allow-net server.ts";
        throw new Error(`No connection to ${url} (${error.message}): ${hint}`);
      }
      throw error;
    }
    Deno.exit(signal.aborted ? 130 : code);
  });
}

function seconds(flag: string, text: string): number {
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1000;
  throw usageError(`--${flag} takes a number of seconds, not "${text}".`);
}
