// The article's test command, `python -m websockets URL`:
//
//   deno run --allow-net websockets ws://localhost:9999
//
// At a terminal it sends what is typed, and shows what arrives; in a pipe it sends each line.

import { parseArgs } from "node:util";
import { HANDSHAKE_TIMEOUT } from "./connect.ts";
import { interact } from "./interact.ts";
import { interruption, milliseconds, usageError } from "./lines.ts";
import type { Separator } from "./messages.ts";
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
    const [, name, value] = line.match(HEADER) ?? [];
    if (name === undefined || SET_BY_DENO.test(name)) {
      throw usageError("--header takes 'Name: value', but not Host, User-Agent and the like.");
    }
    const cookies = /^cookie$/i.test(name) && headers.get(name);
    if (cookies) headers.set(name, `${cookies}; ${value.trim()}`);
    else headers.append(name, value);
  }
  return headers;
}

export const USAGE = `Usage: deno run --allow-net websockets [flags] [URL]
  URL                     server (localhost:9999), or wss://user:password@host

At a terminal it sends each line that is typed, and shows what arrives.
  \\ at the end of a line  continues the message on the next line
  --no-reconnect          end when the connection is lost

In a pipe it sends each line, and prints the answers alone.
  -0, --null              each message ends with NUL in place of a newline
  --binary                send bytes as they are read, print binary as it is
  --wait SECONDS          stay so long after the last answer (1)

The connection
  --timeout SECONDS       how long the server may take to answer (${HANDSHAKE_TIMEOUT / 1000})
  --header 'NAME: VALUE'  header to send with the handshake, repeatable
  --origin ORIGIN         header that browsers send, such as https://a.example
  --subprotocol NAME      subprotocol to offer, repeatable

  --help                  print this`;

/** Runs the command with the flags of the command line. */
export async function runCommand(): Promise<void> {
  const { values, positionals } = parseArgs({
    options: {
      "no-reconnect": { type: "boolean", default: false },
      null: { type: "boolean", short: "0", default: false },
      binary: { type: "boolean", default: false },
      wait: { type: "string", default: "1" },
      timeout: { type: "string", default: `${HANDSHAKE_TIMEOUT / 1000}` },
      header: { type: "string", multiple: true, default: [] },
      origin: { type: "string" },
      subprotocol: { type: "string", multiple: true, default: [] },
    },
    allowPositionals: true,
  });
  const [url = "localhost:9999", ...surplus] = positionals;
  if (surplus.length > 0) throw usageError("One URL is enough.");
  if (values.origin !== undefined) values.header.push(`Origin: ${values.origin}`);
  if (values.null && values.binary) throw usageError("Use either --null or --binary.");
  const server = /^\w+:\/\//.test(url) ? url : `ws://${url}`;
  const separator: Separator | undefined = values.binary ? undefined : values.null ? "\0" : "\n";
  const wait = milliseconds("wait", values.wait);
  const options = {
    headers: parseHeaders(values.header),
    subprotocols: values.subprotocol,
    timeout: milliseconds("timeout", values.timeout),
    signal: interruption(),
  };
  const isTyped = separator === "\n" && Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
  const { code } = isTyped
    ? await interact(server, options, !values["no-reconnect"])
    : await pipe(server, options, wait, separator);
  Deno.exit(code === 1000 || code === 1001 ? 0 : 1);
}
