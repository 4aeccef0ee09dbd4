// The test command in a pipe: it sends each line, and prints the answers alone.

import { isNormal } from "../close_codes.ts";
import type { Connection } from "../connection.ts";
import { HANDSHAKE_TIMEOUT } from "../connect.ts";
import { isConnectionClosed } from "../connection_closed.ts";
import type { FlagValues } from "../script/flags.ts";
import { printMessage, readMessages, type Separator } from "./input_output.ts";
import { converse, type SessionOptions } from "./session.ts";

/** The flags that count in a pipe alone. */
export const PIPE_FLAGS = {
  "null": "each message ends with NUL in place of a newline",
  "binary": "send all input as one message, print binary as it is",
  "wait SECONDS": "stay so long after the last answer (1)",
  "no-wait": "wait for no answer",
};

/** How the command works in a pipe. */
export interface PipeOptions extends SessionOptions, FlagValues<typeof PIPE_FLAGS> {}

/**
 * Sends the messages of standard input, and prints what arrives. After the end of the input it
 * stays until the answers that are due have come, and then for `--wait`, unless it only listens.
 *
 * @returns Whether the end was a good one. A server that is going away may leave after all answers.
 * @throws {Error} if answers did not come, or if the input is not UTF-8.
 */
export async function pipe(url: string, options: PipeOptions): Promise<boolean> {
  const { message: messages = [], count = Infinity, timeout = HANDSHAKE_TIMEOUT } = options;
  const { wait = count < Infinity ? Infinity : 1, "no-wait": noWait = false } = options;
  const isListener = options.reconnect && options.wait === undefined && !noWait;
  const separator: Separator | undefined = options.binary ? undefined : options.null ? "\0" : "\n";
  const leaving = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let current: Connection | undefined;
  let next = Promise.withResolvers<void>();
  let [shown, hasInput, isRead] = [0, false, false];
  let mistake: unknown;
  /** How many messages of the input were sent on this connection. */
  let sent = 0;
  /** How many messages were sent on it and not answered yet: `messages` are answered first. */
  let due = 0;
  /** How many messages of the input were not answered on connections that were lost. */
  let unanswered = 0;

  /** Leaves when no answer that is due has come for long enough. */
  function restart() {
    clearTimeout(timer);
    if (!current || !isRead || isListener && !hasInput) return;
    const patience = noWait ? 0 : due > 0 ? timeout : wait * 1000;
    if (patience < Infinity) timer = setTimeout(() => leaving.abort(), patience);
  }

  /** Sends a message, on another connection if one was lost before the message was sent. */
  async function send(message: string | Uint8Array): Promise<void> {
    for (let tried: Connection | undefined;; tried = current) {
      while (current === tried) await next.promise;
      if (tried) unanswered = Math.max(0, unanswered - 1);
      due++;
      sent++;
      try {
        return await current?.send(message);
      } catch (error) {
        if (!isConnectionClosed(error)) throw error;
      }
    }
  }

  async function sendAll() {
    try {
      for await (const message of readMessages(Deno.stdin.readable, separator)) {
        hasInput = true;
        await send(message);
      }
    } catch (error) {
      // What was sent before a mistake is still answered.
      mistake = error;
    }
    isRead = true;
    restart();
  }

  sendAll();
  const close = await converse(url, options, leaving.signal, {
    tell: (line) => console.error(line),
    show(message, time) {
      printMessage(message, time, separator);
      shown++;
      // A message that comes before any was sent is not an answer, nor is one that was not due.
      if (due === 0) return;
      due--;
      restart();
    },
    open(websocket) {
      current = websocket;
      unanswered += Math.min(due, sent);
      [due, sent] = [messages.length, 0];
      next.resolve();
      next = Promise.withResolvers();
      restart();
    },
  });
  if (mistake) throw mistake;
  if (shown === count) return true;
  const missing = due + unanswered;
  if (missing > 0 && !noWait) throw new Error(`Messages without an answer: ${missing}.`);
  if (count < Infinity) throw new Error(`Messages that came: ${shown} of ${count}.`);
  return isNormal(close) && (close.code !== 1001 || hasInput && isRead);
}
