// The test command at a terminal: it sends what is typed, and shows what arrives.

import type { Close } from "../close_codes.ts";
import type { Connection } from "../connection.ts";
import { show } from "./input_output.ts";
import { converse, type SessionOptions } from "./session.ts";
import { Terminal } from "./terminal.ts";

/** Sends what is typed, and shows what arrives above it. It returns how the last connection ended. */
export async function interact(url: string, options: SessionOptions): Promise<Close> {
  const leaving = new AbortController();
  const ending = AbortSignal.any([leaving.signal, options.interruption.signal]);
  let current: Connection | undefined;
  let terminal: Terminal | undefined;
  const tell = (line: string) => terminal?.tell(line);
  const send = (message: string) => {
    if (current && !current.signal.aborted) current.send(message);
    else tell("Not sent: there is no connection. The up arrow gets the line back.");
  };
  try {
    return await converse(url, options, leaving.signal, {
      tell,
      show: (message, time) => tell(`${time}< ${show(message)}`),
      open: (websocket) => {
        current = websocket;
        terminal ??= new Terminal(ending, send, () => leaving.abort());
      },
    });
  } finally {
    leaving.abort();
  }
}
