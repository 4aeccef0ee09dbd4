// The echo server, the article's first step:
//
//   deno run --allow-net server.ts
//   Echo server on ws://localhost:9999, page at http://localhost:9999/

import { parseArgs } from "node:util";
import { type Connection, type Message, print, runScript, runServer } from "websockets";
import { SERVER_FLAGS, SERVER_USAGE } from "websockets";
import page from "./client.html" with { type: "text" };

/** The article's handler: it answers every message of a client. */
export async function handler(websocket: Connection) {
  for await (const message of websocket) await answer(websocket, message);
}

/** The article's first handler: it answers one message, and then the connection is closed. */
export async function handleOnce(websocket: Connection) {
  await answer(websocket, await websocket.receive());
}

async function answer(websocket: Connection, message: Message) {
  const isText = typeof message === "string";
  const reply = isText ? `Data received as "${message}".  time: ${now()}` : message;
  print(isText ? `${reply}` : `Data received, ${message.byteLength} bytes of binary.`);
  await websocket.send(reply);
  print("Send reply");
}

/** The local time as Python prints it. */
export function now(): string {
  return Temporal.Now.plainDateTimeISO().toString({ fractionalSecondDigits: 6 }).replace("T", " ");
}

const USAGE = `Usage: deno run --allow-net server.ts [flags]
  --once               answer one message of each client, then close with 1000${SERVER_USAGE}`;

if (import.meta.main) {
  await runScript(USAGE, () => {
    const options = { ...SERVER_FLAGS, once: { type: "boolean" } } as const;
    const { once, ...flags } = parseArgs({ options }).values;
    // Pages opened from disk may connect, because this server has nothing to tell them.
    const settings = { port: 9999, origins: ["null"], page };
    runServer("Echo server", once ? handleOnce : handler, flags, settings);
  });
}
