// The echo server, the article's first step:
//
//   deno run --allow-net server.ts
//   Echo server on ws://localhost:9999, page at http://localhost:9999/

import { type Connection, type Message, serve } from "websockets";
import { now, print, runServer } from "websockets/script.ts";
// The page is a part of the program, so that no permission is needed to read it.
import page from "./client.html" with { type: "text" };

/** The article's handler: it answers every message of a client. */
export async function handler(websocket: Connection): Promise<void> {
  for await (const message of websocket) await answer(websocket, message);
}

/** The article's first handler: it answers one message, and then the connection is closed. */
async function handleOnce(websocket: Connection): Promise<void> {
  await answer(websocket, await websocket.receive());
}

async function answer(websocket: Connection, message: Message) {
  const isText = typeof message === "string";
  const reply = isText ? `Data received as "${message}".  time: ${now()}` : message;
  print(reply);
  await websocket.send(reply);
  print("Send reply");
}

if (import.meta.main) {
  const flags = { once: "answer one message of each client, then close with 1000" };
  // Pages opened from disk may connect, because this server has nothing to tell them.
  const options = { port: 9999, page, origins: ["null"], flags };
  await runServer("Echo server", options, (options, { once }) => {
    return serve(once ? handleOnce : handler, options);
  });
}
