// The broadcast server, the article's last step: everyone hears everyone.
//
//   deno run --allow-net broadcast_server.ts
//   Broadcast server on ws://localhost:9998, page at http://localhost:9998/
//
// Open that page in two tabs, or push from anywhere: curl -d 'hello' http://localhost:9998/
// With ?room=red behind any of these URLs, only the clients in the room `red` hear each other.

import { isUtf8 } from "node:buffer";
import { type Connection, type Message, type RequestInfo, serve } from "websockets";
import { Relay } from "websockets/nats.ts";
import { log, print, runServer } from "websockets/script.ts";
import page from "./client.html" with { type: "text" };

/** The clients in each room, by its name. The common room is "", and an empty room has no entry. */
export const rooms: Map<string, Set<Connection>> = new Map();
let relay: Relay | undefined;

/** Sends a message to all. Nobody is waited for: the library keeps what is not taken yet. */
export function broadcast(clients: Iterable<Connection>, message: Message): void {
  for (const client of clients) client.send(message);
}

/** The article's handler: a client is in its room until it leaves. */
export async function handler(websocket: Connection, request: Request): Promise<void> {
  const name = roomOf(request);
  const clients = rooms.getOrInsertComputed(name, () => new Set());
  clients.add(websocket);
  try {
    await relay?.enter(name);
    tell("A client joined", name);
    for await (const message of websocket) await say(name, message);
  } finally {
    clients.delete(websocket);
    if (clients.size === 0) rooms.delete(name);
    relay?.leave(name);
    websocket.closed.then(({ code }) => tell(`A client left (${code})`, name));
  }
}

function say(name: string, message: Message) {
  broadcast(rooms.get(name) ?? [], message);
  print(name && `Room ${name}:`, message);
  // A client that says more than the other servers can take has to wait here.
  return relay?.publish(name, message);
}

function tell(event: string, name: string) {
  log(`${event}${name && ` (room ${name})`}, ${rooms.get(name)?.size ?? 0} connected.`);
}

/** The name of the room in a URL, such as `red` in `/?room=red`. */
function roomOf({ url }: Request): string {
  return new URL(url).searchParams.get("room") ?? "";
}

/** Refuses names of rooms that can't be printed, or be a part of a NATS subject. */
export function checkRoom({ url }: Request): Response | undefined {
  const [name, ...others] = new URL(url).searchParams.getAll("room");
  if (name === undefined || others.length === 0 && /^.{1,100}$/su.test(name)) return;
  return new Response("One room, 1 to 100 characters.\n", { status: 400 });
}

/** Says the text that is posted to `/`, unless the server has given up waiting for it. */
export function push(request: Request, { completed }: RequestInfo): Promise<Response> | undefined {
  if (request.method !== "POST" || new URL(request.url).pathname !== "/") return;
  return Promise.race([request.bytes(), completed]).catch(() => {}).then((body) => {
    if (!body) return new Response("The push did not arrive whole.\n", { status: 503 });
    if (!isUtf8(body)) return new Response("A push is text in UTF-8.\n", { status: 400 });
    const name = roomOf(request);
    say(name, new TextDecoder("utf-8", { ignoreBOM: true }).decode(body));
    return new Response(`{"clients":${rooms.get(name)?.size ?? 0}}\n`, { status: 202 });
  });
}

if (import.meta.main) {
  const flags = {
    "nats URL": "join the servers at this NATS server, such as nats://127.0.0.1:4222",
    "subject NAME": "the NATS subject that their rooms have in common (broadcast)",
  };
  const processRequest = [checkRoom, push];
  const release = () => relay?.close();
  const options = { port: 9998, page, processRequest, flags, release };
  await runServer("Broadcast server", options, async (options, { nats, subject = "broadcast" }) => {
    if (!nats) return serve(handler, options);
    const receive = (name: string, message: Message) => broadcast(rooms.get(name) ?? [], message);
    relay = await Relay.connect({ url: nats, subject, receive, log });
    return relay.join(serve(handler, relay.limit(options)));
  });
}
