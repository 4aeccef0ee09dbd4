// Exercise 5, a private message: only Li gets `/to Li hello`, and all get everything else.

import { type Connection, ConnectionClosed, serve } from "websockets";
import { checkName, nameOf } from "./nicknames.ts";

const clients = new Map<string, Connection>();

export async function handler(websocket: Connection, request: Request): Promise<void> {
  const name = nameOf(request);
  if (clients.has(name)) throw new ConnectionClosed({ code: 4409, reason: "This name is taken." });
  clients.set(name, websocket);
  try {
    for await (const message of websocket) {
      const [, to, text] = /^\/to (\S+) (.*)$/s.exec(`${message}`) ?? [];
      if (to === undefined) {
        for (const client of clients.values()) client.send(`${name}: ${message}`);
      } else if (clients.has(to)) {
        clients.get(to)?.send(`${name}, to you alone: ${text}`);
      } else {
        await websocket.send(`${to} is not here.`);
      }
    }
  } finally {
    clients.delete(name);
  }
}

if (import.meta.main) serve(handler, { port: 8000, processRequest: checkName });
