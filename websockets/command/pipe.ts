// The test command in a pipe: it sends each line, and prints the answers alone.

import { delay } from "@std/async";
import type { Close } from "../close_codes.ts";
import { connect, type ConnectOptions, HANDSHAKE_TIMEOUT } from "../connect.ts";
import {
  describeEnd,
  describeOpen,
  ignoreEnd,
  printMessage,
  readMessages,
  type Separator,
} from "./input_output.ts";

/** Milliseconds between two looks at what has arrived. */
const LOOK = 10;

/**
 * Sends the messages of standard input, and prints what arrives. After the end of the input it
 * stays until the answers that are due have come, each within `options.timeout`, and then until
 * nothing has arrived for `wait`. Without any input it listens for `wait`.
 *
 * @param wait In milliseconds.
 * @param separator What ends a message. Without one, bytes are sent as they are read.
 * @returns How the connection was closed.
 * @throws {Error} if answers did not come, or if the input is not UTF-8.
 */
export async function pipe(
  url: string,
  options: ConnectOptions,
  wait: number,
  separator?: Separator,
): Promise<Close> {
  const { timeout = HANDSHAKE_TIMEOUT } = options;
  await using websocket = await connect(url, options);
  console.error(describeOpen(url, websocket.subprotocol));
  const { signal } = websocket;
  let hasSent = false;
  /** How many messages were sent and not answered yet. */
  let due = 0;
  /** When something has arrived, or the input has ended. */
  let last = 0;
  let mistake: unknown;

  async function send() {
    const input = Deno.stdin.readable.pipeThrough(new TransformStream(), { signal });
    try {
      for await (const message of separator ? readMessages(input, separator) : input) {
        hasSent = true;
        due++;
        await websocket.send(message);
      }
    } catch (error) {
      // What was sent before a mistake is still answered.
      if (!signal.aborted) mistake = error;
    }
    last = performance.now();
    while (!signal.aborted && performance.now() - last < (due > 0 ? timeout : wait)) {
      await delay(LOOK);
    }
    await websocket.close();
  }

  async function receive() {
    for await (const message of websocket) {
      printMessage(message, separator === undefined);
      if (hasSent) last = performance.now();
      // A message that comes before any was sent is not an answer.
      if (due > 0) due--;
    }
  }

  await Promise.all([send(), receive().catch(ignoreEnd)]);
  const close = await websocket.closed;
  console.error(describeEnd(close));
  options.signal?.throwIfAborted();
  if (mistake) throw mistake;
  if (due > 0) throw new Error(`Messages without an answer: ${due}.`);
  return close;
}
