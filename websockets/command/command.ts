// The article's test command, `python -m websockets URL`:
//
//   deno run --allow-net websockets ws://localhost:9999

import { isNormal } from "../close_codes.ts";
import { type ConnectOptions, HANDSHAKE_TIMEOUT } from "../connect.ts";
import { advise } from "../script/advice.ts";
import { describeFlags, parseFlags, usageError } from "../script/flags.ts";
import { Interruption, runScript } from "../script/run.ts";
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

const FLAGS = {
  "message TEXT...": "send this on each connection, and reconnect; may be given many times",
  "reconnect": "connect again when the connection is lost",
  "no-reconnect": "end then, which is usual in a pipe",
  "count COUNT": "end after so many messages",
  "idle SECONDS": "a connection is lost when nothing has come for so long",
  "time": "put the time before each line",
  "timeout SECONDS": `how long the server may take to answer (${HANDSHAKE_TIMEOUT / 1000})`,
  "header HEADER...": "such as 'Name: value', may be given many times",
  "origin ORIGIN": "header that browsers send, such as https://a.example",
  "subprotocol NAME...": "subprotocol to offer, may be given many times",
  "help": "print this",
};
const PIPE = {
  "null": "each message ends with NUL in place of a newline",
  "binary": "send all input as one message, print binary as it is",
  "wait SECONDS": "stay so long after the last answer (1)",
  "no-wait": "wait for no answer",
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
${describeFlags(PIPE)}

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
    const { values, positionals } = parseFlags({ ...FLAGS, ...PIPE }, true);
    const [url = "localhost:9999", ...surplus] = positionals;
    if (surplus.length > 0) throw usageError("One URL is enough.");
    server = /^\w+:\/\//.test(url) ? url : `ws://${url}`;
    const { header = [], origin, message: messages = [], count = Infinity } = values;
    if (origin !== undefined) header.push(`Origin: ${origin}`);
    if (values.null && values.binary) throw usageError("Use either --null or --binary.");
    const separator: Separator | undefined = values.binary ? undefined : values.null ? "\0" : "\n";
    const isTyped = separator === "\n" && Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
    const reconnect = values.reconnect || isTyped || messages.length > 0;
    handshake = { headers: parseHeaders(header), subprotocols: values.subprotocol };
    const options = {
      ...handshake,
      timeout: 1000 * (values.timeout ?? HANDSHAKE_TIMEOUT / 1000),
      // At a terminal, Ctrl-C is one way to leave.
      interruption: new Interruption(isTyped ? 0 : 130),
      messages,
      reconnect: reconnect && !values["no-reconnect"],
      count,
      idle: 1000 * (values.idle ?? Infinity),
      time: values.time ?? false,
    };
    if (isTyped) Deno.exit(isNormal(await interact(server, options)) ? 0 : 1);
    const { wait = count < Infinity ? Infinity : 1 } = values;
    const isFine = await pipe(server, {
      ...options,
      separator,
      isListener: options.reconnect && values.wait === undefined && !values["no-wait"],
      answerTimeout: values["no-wait"] ? 0 : options.timeout,
      wait: values["no-wait"] ? 0 : wait * 1000,
    });
    Deno.exit(isFine ? 0 : 1);
  }, (error) => advise(error, server, ADVICE, handshake));
}
