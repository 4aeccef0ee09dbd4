// Messages of the test command: how they are printed, and read from standard input.

import { Buffer, isUtf8 } from "node:buffer";
import { type Close, describeClose } from "../close_codes.ts";
import { printable } from "../log.ts";
import type { Message } from "../message.ts";
import { write } from "../script/print.ts";

/** A message as one line that can't harm a terminal: binary is shown in hexadecimal. */
export function show(message: Message): string {
  if (typeof message === "string") return printable(message, Infinity);
  const hex = new Uint8Array(message).toHex().replace(/..(?=.)/g, "$& ");
  return `${message.byteLength} bytes: ${hex}`;
}

/**
 * Prints a message on standard output: at a terminal what `show` makes of it, and otherwise the text
 * as it is, and what ends it. It throws when nobody reads standard output any more.
 *
 * @param time What stands before it.
 * @param separator What ends each message. Without one, binary is printed as it is too, where that is
 * no terminal.
 */
export function printMessage(message: Message, time: string, separator?: Separator): void {
  const isPlain = !Deno.stdout.isTerminal();
  if (isPlain && !separator && typeof message !== "string") return write(new Uint8Array(message));
  const line = isPlain && typeof message === "string" ? message : show(message);
  write(`${time}${line}${isPlain && separator || "\n"}`);
}

/** What ends each message in a pipe. */
export type Separator = "\n" | "\0";

/**
 * Cuts standard input into texts, or without a separator takes all bytes at once.
 *
 * @throws {Error} if a text is not UTF-8.
 */
export async function* readMessages(
  input: ReadableStream<Uint8Array>,
  separator?: Separator,
): AsyncGenerator<string | Uint8Array> {
  let count = 0;
  let parts: Uint8Array[] = [];
  const take = (end: Uint8Array) => {
    const bytes = Buffer.concat([...parts, end]);
    if (!separator) return bytes;
    parts = [];
    count++;
    if (!isUtf8(bytes)) {
      const what = `${separator === "\n" ? "Line" : "Message"} ${count}`;
      throw new Error(`${what} of standard input is not UTF-8: --binary sends any bytes.`);
    }
    const text = bytes.toString();
    return separator === "\n" ? text.replace(/\r$/, "") : text;
  };
  for await (const chunk of input) {
    let start = 0;
    const byte = separator?.charCodeAt(0) ?? NaN;
    for (let end; (end = chunk.indexOf(byte, start)) >= 0; start = end + 1) {
      yield take(chunk.subarray(start, end));
    }
    if (start < chunk.length) parts.push(chunk.subarray(start));
  }
  if (parts.length > 0) yield take(new Uint8Array());
}

/** How a connection was closed, as a sentence. A reason may end with a full stop of its own. */
export function describeEnd(close: Close): string {
  return `Connection closed: ${describeClose(close)}.`.replace(/([.!?…])\.$/, "$1");
}
