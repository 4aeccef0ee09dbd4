// Exercise 4, a history for newcomers: a client that comes is sent the last ten messages first.

import { type Connection, serve } from "websockets";
import { checkName, nameOf } from "./nicknames.ts";

/** Messages that are kept: about what a screen shows. */
const KEPT = 10;
/** Bytes of the largest message. With `KEPT`, it bounds what the server keeps. */
const MAX_MESSAGE = 1_000;

const clients = new Set<Connection>();
const history: string[] = [];

export async function handler(websocket: Connection, request: Request): Promise<void> {
  const name = nameOf(request);
  // Without an `await` before `add`, no message can come between the history and the next one.
  for (const line of history) websocket.send(line);
  clients.add(websocket);
  try {
    for await (const message of websocket) {
      const line = `${name}: ${message}`;
      history.push(line);
      if (history.length > KEPT) history.shift();
      for (const client of clients) client.send(line);
    }
  } finally {
    clients.delete(websocket);
  }
}

export const options = { port: 8000, maxMessage: MAX_MESSAGE, processRequest: checkName };

if (import.meta.main) serve(handler, options);
