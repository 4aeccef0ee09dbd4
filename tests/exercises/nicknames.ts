// Exercise 1, nicknames: `ws://localhost:8000/?name=Li` is Li, and all see who says what.

import { type Connection, serve } from "websockets";

const clients = new Set<Connection>();

export async function handler(websocket: Connection, request: Request): Promise<void> {
  const name = nameOf(request);
  clients.add(websocket);
  try {
    for await (const message of websocket) {
      for (const client of clients) client.send(`${name}: ${message}`);
    }
  } finally {
    clients.delete(websocket);
  }
}

export function nameOf({ url }: Request): string {
  return new URL(url).searchParams.get("name") ?? "";
}

/** Lets nobody in whose name could be taken for something else, such as a line of another client. */
export function checkName(request: Request): Response | undefined {
  if (/^[\p{L}\p{N}]{1,20}$/u.test(nameOf(request))) return;
  return new Response("Add ?name= with 1 to 20 letters.\n", { status: 400 });
}

if (import.meta.main) serve(handler, { port: 8000, processRequest: checkName });
