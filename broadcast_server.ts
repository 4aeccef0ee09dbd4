// The broadcast server, the article's last step: everyone hears everyone.
//
//   deno run --allow-net broadcast_server.ts
//   Broadcast server on ws://localhost:9998, page at http://localhost:9998/
//
// Open that page in two tabs, or push from anywhere: curl -d 'hello' http://localhost:9998/
// ?room=red behind any of these URLs names a room. ?after= lets a client hear what it has missed.

import { isUtf8 } from "node:buffer";
import { type Connection, type RequestInfo, Rooms, serve } from "websockets";
import { Relay } from "websockets/nats.ts";
import { log, print, runServer } from "websockets/script.ts";
import html from "./client.html" with { type: "text" };

/** The clients in each room, by its name. The common room is "". */
export let rooms: Rooms = new Rooms();

/** The article's handler: a client is in its room until it leaves. */
export async function handler(websocket: Connection, request: Request): Promise<void> {
  const name = roomOf(request);
  const tell = (event: string) =>
    log(`${event}${name && ` (room ${name})`}, ${rooms.count(name)} connected.`);
  try {
    await rooms.enter(name, websocket, request);
    tell("A client joined");
    for await (const message of websocket) {
      print(name && `Room ${name}:`, message);
      await rooms.say(name, message);
    }
  } finally {
    rooms.leave(name, websocket);
    websocket.closed.then(({ code }) => tell(`A client left (${code})`));
  }
}

/** The name of the room in a URL, such as `red` in `/?room=red`. */
function roomOf({ url }: Request): string {
  return new URL(url).searchParams.get("room") ?? "";
}

/** Refuses a room whose name is empty or too long, and several rooms at once. */
export function checkRoom({ url }: Request): Response | undefined {
  const [name, ...others] = new URL(url).searchParams.getAll("room");
  if (name === undefined || others.length === 0 && /^.{1,100}$/su.test(name)) return;
  return new Response("One room, 1 to 100 characters.\n", { status: 400 });
}

/** Says the text that is posted to `/`, unless the server has given up waiting for it. */
export function push(request: Request, { completed }: RequestInfo): Promise<Response> | undefined {
  if (request.method !== "POST" || new URL(request.url).pathname !== "/") return;
  return Promise.race([request.bytes(), completed]).catch(() => {}).then(async (body) => {
    if (!body) return new Response("The push did not arrive whole.\n", { status: 503 });
    if (!isUtf8(body)) return new Response("A push is text in UTF-8.\n", { status: 400 });
    const name = roomOf(request);
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(body);
    print(name && `Room ${name}:`, text);
    const answer = { clients: rooms.count(name), position: await rooms.push(name, text) };
    return new Response(`${JSON.stringify(answer)}\n`, { status: 202 });
  });
}

if (import.meta.main) {
  const flags = {
    "max-history BYTES": "what each room keeps for those that come back (2 MiB)",
    "history-timeout SECONDS": "how long an empty room keeps it (60)",
    "nats URL": "join the servers at this NATS server, such as nats://127.0.0.1:4222",
    "subject NAME": "the NATS subject that their rooms have in common (broadcast)",
    replay: "with --nats: keep messages in JetStream, so that clients can follow on each server",
  };
  // The page follows by itself where a room can be replayed.
  const page = () => rooms.canReplay ? html.replace("<html", "<html data-replay") : html;
  const processRequest = [checkRoom, push];
  const options = { port: 9998, page, processRequest, flags, release: () => rooms.close() };
  await runServer("Broadcast server", options, async (options, given) => {
    const { nats: url, subject = "broadcast", replay, "max-history": maxHistory } = given;
    rooms = new Rooms({ maxHistory, historyTimeout: given["history-timeout"] });
    if (url) rooms.relay = await Relay.connect({ url, subject, rooms, replay, log });
    return rooms.join(serve(handler, rooms.limit(options)));
  });
}
