// The article's test command, `python -m websockets URL`:
//
//   deno run --allow-net websockets ws://localhost:9999

import { isNormal } from "../close_codes.ts";
import { type ConnectOptions, HANDSHAKE_TIMEOUT } from "../connect.ts";
import { advise } from "../script/advice.ts";
import { describeFlags, parseFlags, usageError } from "../script/flags.ts";
import { Interruption, runScript } from "../script/run.ts";
import { interact } from "./interact.ts";
import { pipe, PIPE_FLAGS } from "./pipe.ts";
import { SESSION_FLAGS } from "./session.ts";

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

const FLAGS = {
  ...SESSION_FLAGS,
  "timeout SECONDS": `how long the server may take to answer (${HANDSHAKE_TIMEOUT / 1000})`,
  "header HEADER...": "such as 'Name: value', may be given many times",
  "origin ORIGIN": "header that browsers send, such as https://a.example",
  "subprotocol NAME...": "subprotocol to offer, may be given many times",
  "help": "print this",
};

const COMMAND = "deno run --allow-net websockets";

export const USAGE: string = `Usage: ${COMMAND} [flags] [URL]
  URL  server (localhost:9999), or wss://user:password@host
${describeFlags(FLAGS)}

At a terminal it sends each line that is typed, and shows what arrives.
  ${COMMAND} ws://localhost:9999
  \\ at the end of a line continues the message on the next line

In a pipe it sends each line, and prints the answers alone.
  echo hello | ${COMMAND} ws://localhost:9999
${describeFlags(PIPE_FLAGS)}

As a listener without input it prints what arrives, also after a loss.
  ${COMMAND} --message subscribe ws://localhost:9999 > log`;

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
  let handshake: ConnectOptions = {};
  await runScript(USAGE, async () => {
    const { values, positionals } = parseFlags({ ...FLAGS, ...PIPE_FLAGS }, true);
    const [url = "localhost:9999", ...surplus] = positionals;
    if (surplus.length > 0) throw usageError("One URL is enough.");
    if (values.null && values.binary) throw usageError("Use either --null or --binary.");
    server = /^\w+:\/\//.test(url) ? url : `ws://${url}`;
    const { header = [], origin, subprotocol: subprotocols, message, follow, timeout } = values;
    if (origin !== undefined) header.push(`Origin: ${origin}`);
    handshake = { headers: parseHeaders(header), subprotocols, timeout: timeout && timeout * 1000 };
    const isTyped = !values.null && !values.binary &&
      Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
    const mayReconnect = values.reconnect || follow || message !== undefined || isTyped;
    // At a terminal, Ctrl-C is one way to leave.
    const interruption = new Interruption(isTyped ? 0 : 130);
    const reconnect = mayReconnect && !values["no-reconnect"];
    const options = { ...values, ...handshake, interruption, reconnect };
    const isFine = isTyped
      ? isNormal(await interact(server, options))
      : await pipe(server, options);
    Deno.exit(isFine ? 0 : 1);
  }, (error) => advise(error, server, ADVICE, handshake));
}
