// Exercise 3, who is online: all are told who comes and who leaves, and `/who` lists the names.

import { type Connection, ConnectionClosed, serve } from "websockets";
import { checkName, nameOf } from "./nicknames.ts";

const clients = new Map<string, Connection>();

function tellAll(line: string) {
  for (const client of clients.values()) client.send(line);
}

export async function handler(websocket: Connection, request: Request): Promise<void> {
  const name = nameOf(request);
  // Two handshakes with one name may come at the same time, so it is the handler that decides.
  if (clients.has(name)) throw new ConnectionClosed({ code: 4409, reason: "This name is taken." });
  clients.set(name, websocket);
  tellAll(`${name} is here.`);
  try {
    for await (const message of websocket) {
      if (message === "/who") await websocket.send([...clients.keys()].join(", "));
      else tellAll(`${name}: ${message}`);
    }
  } finally {
    clients.delete(name);
    tellAll(`${name} has left.`);
  }
}

if (import.meta.main) serve(handler, { port: 8000, processRequest: checkName });
