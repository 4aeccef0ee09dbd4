// The article's test command, `python -m websockets URL`:
//
//   deno run --allow-net websockets ws://localhost:9999
//
// At a terminal it sends what is typed, and shows what arrives; in a pipe it sends each line.

import { HANDSHAKE_TIMEOUT } from "../connect.ts";
import { advise } from "../script/advice.ts";
import { describeFlags, parseFlags, usageError } from "../script/flags.ts";
import { interruption, runScript } from "../script/run.ts";
import { interact } from "./interact.ts";
import type { Separator } from "./input_output.ts";
import { pipe } from "./pipe.ts";

/** A header as RFC 9110 section 5.5 allows it, such as `Name: value`. */
const HEADER = /^([!#$%&'*+.^`|~\w-]+):([\t\x20-\x7e\xa0-\xff]*)$/;
/** Headers that Deno sets itself. It ignores what a script says of them, or adds its own as well. */
const SET_BY_DENO =
  /^(host|connection|upgrade|user-agent|content-length|transfer-encoding|sec-websocket-.*)$/i;

/**
 * The headers that `--header` gives. Several cookies become one line (RFC 6265 section 5.4).
 *
 * @throws {Error} a `usageError`, which does not show the value: it may be a password.
 */
export function parseHeaders(lines: string[]): Headers {
  const headers = new Headers();
  for (const line of lines) {
    const [, name, value = ""] = line.match(HEADER) ?? [];
    if (name === undefined || SET_BY_DENO.test(name)) {
      throw usageError("--header takes 'Name: value', but not Host, User-Agent and the like.");
    }
    const cookies = /^cookie$/i.test(name) && headers.get(name);
    if (cookies) headers.set(name, `${cookies}; ${value.trim()}`);
    else headers.append(name, value);
  }
  return headers;
}

const TERMINAL = { "no-reconnect": "end when the connection is lost" };
const PIPE = {
  "null": "each message ends with NUL in place of a newline",
  "binary": "send bytes as they are read, print binary as it is",
  "wait SECONDS": "stay so long after the last answer (1)",
};
const CONNECTION = {
  "timeout SECONDS": `how long the server may take to answer (${HANDSHAKE_TIMEOUT / 1000})`,
  "header HEADER...": "such as 'Name: value', may be given many times",
  "origin ORIGIN": "header that browsers send, such as https://a.example",
  "subprotocol NAME...": "subprotocol to offer, may be given many times",
  "help": "print this",
};

export const USAGE: string = `Usage: deno run --allow-net websockets [flags] [URL]
  URL  server (localhost:9999), or wss://user:password@host

At a terminal it sends each line that is typed, and shows what arrives.
  \\ at the end of a line continues the message on the next line
${describeFlags(TERMINAL)}

In a pipe it sends each line, and prints the answers alone.
${describeFlags(PIPE)}

The connection
${describeFlags(CONNECTION)}`;

/** What the flags of this command can do about a connection that failed. */
const ADVICE = {
  401: "put user:password@ before the host, or use --header",
  403: "the server may expect credentials or another --origin",
  subprotocol: "offer it with --subprotocol, if you speak it",
  timeout: "--timeout gives the server longer, and NO_PROXY=HOST goes past a proxy",
};

/** Runs the command with the flags of the command line. */
export async function run(): Promise<void> {
  let server = "";
  await runScript(USAGE, async () => {
    const { values, positionals } = parseFlags({ ...TERMINAL, ...PIPE, ...CONNECTION }, true);
    const [url = "localhost:9999", ...surplus] = positionals;
    if (surplus.length > 0) throw usageError("One URL is enough.");
    const { header = [], origin, subprotocol = [], wait = 1 } = values;
    if (origin !== undefined) header.push(`Origin: ${origin}`);
    if (values.null && values.binary) throw usageError("Use either --null or --binary.");
    server = /^\w+:\/\//.test(url) ? url : `ws://${url}`;
    const separator: Separator | undefined = values.binary ? undefined : values.null ? "\0" : "\n";
    const options = {
      headers: parseHeaders(header),
      subprotocols: subprotocol,
      timeout: values.timeout === undefined ? HANDSHAKE_TIMEOUT : values.timeout * 1000,
      signal: interruption(),
    };
    const isTyped = separator === "\n" && Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
    const { code } = isTyped
      ? await interact(server, options, !values["no-reconnect"])
      : await pipe(server, options, wait * 1000, separator);
    Deno.exit(code === 1000 || code === 1001 ? 0 : 1);
  }, (error) => advise(error, server, ADVICE));
}
