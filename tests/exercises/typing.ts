// Exercise 2, who is typing: an empty message of a client tells the others that it is typing.

import { type Connection, serve } from "websockets";
import { checkName, nameOf } from "./nicknames.ts";

/** Milliseconds until the others are told again: a client may send empty messages without end. */
const PAUSE = 2_000;

const clients = new Set<Connection>();

export async function handler(websocket: Connection, request: Request): Promise<void> {
  const name = nameOf(request);
  let toldAt = -Infinity;
  clients.add(websocket);
  try {
    for await (const message of websocket) {
      if (message !== "") {
        for (const client of clients) client.send(`${name}: ${message}`);
        toldAt = -Infinity;
      } else if (performance.now() - toldAt >= PAUSE) {
        for (const client of clients) if (client !== websocket) client.send(`${name} is typing …`);
        toldAt = performance.now();
      }
    }
  } finally {
    clients.delete(websocket);
  }
}

if (import.meta.main) serve(handler, { port: 8000, processRequest: checkName });
