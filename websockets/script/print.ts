// What a script prints on standard output: what people have said, and what the server did.

import { Buffer } from "node:buffer";
import { limited, type Log, printable } from "../log.ts";
import type { Message } from "../message.ts";

const limitedLine = limited((line) => console.log(line));
let printLine: Log | undefined = limitedLine;

/**
 * Prints what people have said, as the article's `print` does: with blanks between the parts that are
 * not empty, and binary as its size. Nothing in it can harm a terminal. `--quiet` turns it off.
 */
export function print(...parts: Message[]): void {
  printLine?.(parts.filter((part) => part !== "").map(show).join(" "));
}

/** Prints what a server does, such as that a client has joined; `--quiet` does not turn it off. */
export const log: Log = limited((line) => console.log(line));

/** Turns `print` off. */
export function silence(): void {
  printLine = undefined;
}

/**
 * Lets `print` lose no line, and throw when nobody reads standard output any more: what a client
 * prints is its result. Where that is no terminal, a text is printed as it is.
 */
export function printAll(): void {
  const isTerminal = Deno.stdout.isTerminal();
  printLine = (line) => write(`${isTerminal ? printable(line, Infinity) : line}\n`);
}

/** Writes to standard output. Unlike `console.log` it throws when nobody reads that any more. */
export function write(text: string | Uint8Array): void {
  let rest: Uint8Array = typeof text === "string" ? Buffer.from(text) : text;
  while (rest.length > 0) rest = rest.subarray(Deno.stdout.writeSync(rest));
}

function show(part: Message): string {
  return typeof part === "string" ? part : `${part.byteLength} bytes of binary.`;
}
