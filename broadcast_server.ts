// The broadcast server, the article's last step: everyone hears everyone.
//
//   deno run --allow-net broadcast_server.ts
//   Broadcast server on ws://localhost:9998, page at http://localhost:9998/
//
// Open that page in two tabs, or push from anywhere: curl -d 'hello' http://localhost:9998/
// With ?room=red behind any of these URLs, only the clients in the room `red` hear each other.

import { isUtf8 } from "node:buffer";
import { parseArgs } from "node:util";
import { type Connection, type Message, print, requireToken } from "websockets";
import { log, runScript, runServer, SERVER_FLAGS, SERVER_USAGE } from "websockets";
import { Relay } from "websockets/nats.ts";
import page from "./client.html" with { type: "text" };

/** The clients in each room, by its name. The common room is "", and an empty room has no entry. */
export const rooms = new Map<string, Set<Connection>>();
let relay: Relay | undefined;

/** Sends a message to all. Nobody is waited for: the library keeps what is not taken yet. */
export function broadcast(clients: Iterable<Connection>, message: Message) {
  for (const client of clients) client.send(message);
}

/** The article's handler: a client is in its room until it leaves. */
export async function handler(websocket: Connection, request: Request) {
  const name = roomOf(request) ?? "";
  const clients = rooms.get(name) ?? new Set();
  rooms.set(name, clients.add(websocket));
  try {
    await relay?.enter(name);
    tell("A client joined", name);
    for await (const message of websocket) await say(name, message);
  } finally {
    clients.delete(websocket);
    if (clients.size === 0) rooms.delete(name);
    relay?.leave(name);
    tell(`A client left (${(await websocket.close()).code})`, name);
  }
}

function say(name: string, message: Message) {
  broadcast(rooms.get(name) ?? [], message);
  const said = typeof message === "string" ? message : `${message.byteLength} bytes of binary.`;
  print(name ? `Room ${name}: ${said}` : said);
  // A client that says more than the other servers can take has to wait here.
  return relay?.publish(name, message);
}

function tell(event: string, name: string) {
  log(`${event}${name && ` (room ${name})`}, ${rooms.get(name)?.size ?? 0} connected.`);
}

/** Refuses a room that can't be, and takes the text of a push. */
export function push(request: Request, info: Deno.ServeHandlerInfo) {
  const name = roomOf(request);
  if (name === undefined) return new Response("One room, 1 to 100 characters.\n", { status: 400 });
  const isPush = request.method === "POST" && new URL(request.url).pathname === "/";
  return isPush ? sayBody(name, request, info) : undefined;
}

/** Says the text of a push, unless the server has given up waiting for it. */
async function sayBody(name: string, request: Request, { completed }: Deno.ServeHandlerInfo) {
  const body = await Promise.race([request.bytes(), completed]).catch(() => {});
  if (!body) return new Response("The push did not arrive whole.\n", { status: 503 });
  if (!isUtf8(body)) return new Response("A push is text in UTF-8.\n", { status: 400 });
  say(name, new TextDecoder("utf-8", { ignoreBOM: true }).decode(body));
  return new Response(`{"clients":${rooms.get(name)?.size ?? 0}}\n`, { status: 202 });
}

/** The name of the room in a URL, "" if there is none, `undefined` if it may not be used. */
function roomOf({ url }: Request): string | undefined {
  const names = new URL(url).searchParams.getAll("room");
  if (names.length === 0) return "";
  // It is limited because it is printed, and is part of a NATS subject.
  if (names.length === 1 && /^.{1,100}$/su.test(names[0])) return names[0];
}

const USAGE = `Usage: deno run --allow-net broadcast_server.ts [flags]
  --token-file FILE    let in only clients with the token in this file; needs --allow-read
  --nats URL           join the servers at this NATS server, such as nats://127.0.0.1:4222
  --subject NAME       the NATS subject that their rooms have in common (broadcast)${SERVER_USAGE}`;

if (import.meta.main) {
  await runScript(USAGE, async () => {
    const options = {
      ...SERVER_FLAGS,
      nats: { type: "string" },
      subject: { type: "string", default: "broadcast" },
      "token-file": { type: "string" },
    } as const;
    const { nats: url, subject, "token-file": file, ...flags } = parseArgs({ options }).values;
    const refuse = file !== undefined && requireToken(Deno.readTextFileSync(file).trim());
    const receive = (name: string, message: Message) => broadcast(rooms.get(name) ?? [], message);
    if (url !== undefined) relay = await Relay.connect({ url, subject, receive, log });
    const server = runServer("Broadcast server", handler, flags, {
      port: 9998,
      page,
      maxMessage: relay?.maxMessage,
      processRequest: (request, info) => refuse && refuse(request) || push(request, info),
      release: () => relay?.close(),
    });
    if (relay) relay.server = server;
  });
}
