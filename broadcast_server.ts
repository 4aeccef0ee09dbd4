// The broadcast server, the article's last step: everyone hears everyone.
//
//   deno run --allow-net broadcast_server.ts
//   Broadcast server on ws://localhost:9998, page at http://localhost:9998/
//
// Open that page in two tabs, or push from anywhere: curl -d 'hello' http://localhost:9998/
// With ?room=red behind any of these URLs, only the clients in the room `red` hear each other.

import { isUtf8 } from "node:buffer";
import { parseArgs } from "node:util";
import { limited, type Log, runScript } from "./cli.ts";
import type { Relay } from "./relay.ts";
import { type Handler, requireToken, runServer, SERVER_FLAGS, SERVER_USAGE } from "./websockets.ts";

/** Sends a message to all. Nobody is waited for: `serve` keeps what a client has not taken yet. */
export function broadcast(clients: Iterable<WebSocket>, data: string | ArrayBuffer): void {
  for (const client of clients) client.send(data);
}

/** The clients in each room, by name. The common room is "", and an empty room has no entry. */
export type Rooms = Map<string, Set<WebSocket>>;

/** What the handler of the rooms uses. */
export interface RoomOptions {
  /** Told who comes and who leaves. */
  log: Log;
  /** Told what is said. */
  print: Log;
  /** Joins the rooms to those of other servers. */
  relay?: Pick<Relay, "enter" | "leave" | "publish">;
  /** Refuses who may not enter. */
  refuse?: (request: Request) => Response | undefined;
}

/** Milliseconds in which a client that was let in opens its connection, or resets it. */
const HANDSHAKE_TIME = 1_000;

/** The handler: everyone in a room hears everyone in it. Only this changes `rooms`. */
export function room(rooms: Rooms, { log, print, relay, refuse }: RoomOptions): Handler {
  const names = new WeakMap<WebSocket, string>();
  const clientsIn = (name: string) => rooms.get(name) ?? new Set();

  function say(name: string, data: string | ArrayBuffer) {
    broadcast(clientsIn(name), data);
    relay?.publish(name, data);
    const said = typeof data === "string" ? data : `${data.byteLength} bytes of binary.`;
    print(name ? `Room ${name}: ${said}` : said);
  }

  function tell(event: string, name: string) {
    log(`${event}${name && ` (room ${name})`}, ${clientsIn(name).size} connected.`);
  }

  /** Says the text that a request brings, unless it takes so long that `serve` answers before. */
  async function push(name: string, request: Request, { completed }: Deno.ServeHandlerInfo) {
    const body = await Promise.race([request.bytes(), completed]).catch(() => {});
    if (!body) return answer(503, "The push did not arrive whole, send it again.");
    if (!isUtf8(body)) return answer(400, "A push is text in UTF-8.");
    say(name, new TextDecoder("utf-8", { ignoreBOM: true }).decode(body));
    return answer(202, JSON.stringify({ clients: clientsIn(name).size }));
  }

  /** Hears the room from before its first client is open, who may say something at once. */
  async function enter(name: string) {
    await relay?.enter(name);
    setTimeout(() => relay?.leave(name), HANDSHAKE_TIME);
  }

  return {
    open(socket, request) {
      const name = requestedRoom(request) ?? "";
      names.set(socket, name);
      rooms.set(name, clientsIn(name).add(socket));
      relay?.enter(name);
      tell("A client joined", name);
    },
    message: (socket, data) => say(names.get(socket) ?? "", data),
    close(socket, { code }) {
      const name = names.get(socket) ?? "";
      clientsIn(name).delete(socket);
      relay?.leave(name);
      tell(`A client left (${code})`, name);
      if (clientsIn(name).size === 0) rooms.delete(name);
    },
    request(request, info) {
      const name = requestedRoom(request);
      if (name === undefined) return answer(400, "A room has one name of 1 to 100 characters.");
      const refusal = refuse?.(request);
      if (refusal) return refusal;
      const isPush = request.method === "POST" && new URL(request.url).pathname === "/";
      if (isPush) return push(name, request, info);
      if (relay && request.headers.get("sec-websocket-key") !== null) return enter(name);
    },
  };
}

/** The name of the room in a URL, "" if there is none, `undefined` if it may not be used. */
function requestedRoom({ url }: Request): string | undefined {
  const names = new URL(url).searchParams.getAll("room");
  if (names.length === 0) return "";
  // It is limited because it is printed, and is part of a NATS subject.
  if (names.length === 1 && /^.{1,100}$/su.test(names[0])) return names[0];
}

function answer(status: number, text: string): Response {
  return new Response(`${text}\n`, { status });
}

const USAGE = `Usage: deno run --allow-net broadcast_server.ts [flags]
  --token-file FILE    let in only who sends the token in this file; needs --allow-read
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
    const { nats, subject, "token-file": file, ...flags } = parseArgs({ options }).values;
    const log = limited(console.log);
    const print = flags.quiet ? () => {} : limited(console.log);
    const token = file === undefined ? undefined : Deno.readTextFileSync(file).trim();
    const refuse = token === undefined ? undefined : requireToken(token, log);
    const rooms: Rooms = new Map();
    const receive = (name: string, data: string | ArrayBuffer) =>
      broadcast(rooms.get(name) ?? [], data);
    let relay: Relay | undefined;
    if (nats !== undefined) {
      const { Relay } = await import("./relay.ts");
      relay = await Relay.connect({ url: nats, subject, receive, log: limited(console.log) });
    }
    const handler = room(rooms, { log, print, relay, refuse });
    const limits = { port: 9998, maxMessage: relay?.maxMessage };
    runServer("Broadcast server", handler, flags, limits, async () => await relay?.close());
  });
}
