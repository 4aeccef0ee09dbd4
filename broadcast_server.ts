// The broadcast server, the article's last step: everyone hears everyone.
//
//   deno run --allow-net broadcast_server.ts
//   Broadcast server on ws://localhost:9998, page at http://localhost:9998/
//
// Open that page in two tabs, or push from anywhere: curl -d 'hello' http://localhost:9998/
// With ?room=red behind any of these URLs, only the clients in the room `red` hear each other.

import { parseArgs } from "node:util";
import { limited, type Log, runScript } from "./cli.ts";
import type { Relay } from "./relay.ts";
import { type Handler, requireToken, runServer, SERVER_FLAGS, SERVER_USAGE } from "./websockets.ts";

/** Characters of the longest name of a room: the name is printed, and is part of a NATS subject. */
const MAX_NAME = 100;
/** Milliseconds after which an accepted handshake has let its client in, or was reset by it. */
const HANDSHAKE_TIMEOUT = 1_000;

/** The clients in each room, by its name. The common room has the name "", an empty room no entry. */
export type Rooms = Map<string, Set<WebSocket>>;

/** What a room is used with; only the logs are needed. */
export interface RoomOptions {
  /** Told who comes and who leaves. */
  log: Log;
  /** Told what is said. */
  print: Log;
  /** Joins the rooms to those of other servers. */
  relay?: Relay;
  /** Refuses those who may not enter. */
  refuse?: (request: Request) => Response | undefined;
}

/** Sends a message to all. Nobody is waited for: `serve` keeps what a client has not taken yet. */
export function broadcast(clients: Iterable<WebSocket>, data: string | ArrayBuffer): void {
  for (const client of clients) client.send(data);
}

/** The handler that broadcasts. Only this lets clients into `rooms`, and out of them. */
export function room(rooms: Rooms, { log, print, relay, refuse }: RoomOptions): Handler {
  const names = new WeakMap<WebSocket, string>();
  const clientsIn = (name: string) => rooms.get(name) ?? new Set();
  const tell = (event: string, name: string) =>
    log(`${event}${name && ` (room ${name})`}, ${clientsIn(name).size} connected.`);

  function say(name: string, data: string | ArrayBuffer) {
    broadcast(clientsIn(name), data);
    relay?.publish(name, data);
    print(typeof data === "string" ? data : `${data.byteLength} bytes of binary.`);
  }

  async function push(name: string, request: Request): Promise<Response> {
    const text = decode(await request.bytes());
    if (text === undefined) return answer(400, "A push is text in UTF-8.");
    say(name, text);
    return Response.json({ clients: clientsIn(name).size }, { status: 202 });
  }

  /** Hears the room from before its first client comes, in case that this one says something at once. */
  async function enter(name: string, relay: Relay) {
    await relay.enter(name);
    setTimeout(() => relay.leave(name), HANDSHAKE_TIMEOUT);
  }

  return {
    request(request) {
      const name = nameOf(request);
      if (name === undefined) {
        return answer(400, `A room has one name of 1 to ${MAX_NAME} characters.`);
      }
      const refusal = refuse?.(request);
      if (refusal) return refusal;
      if (request.method === "POST" && new URL(request.url).pathname === "/") {
        return push(name, request);
      }
      if (relay && request.headers.has("upgrade")) return enter(name, relay);
    },
    open(socket, request) {
      const name = nameOf(request) ?? "";
      relay?.enter(name);
      names.set(socket, name);
      rooms.set(name, clientsIn(name).add(socket));
      tell("A client joined", name);
    },
    message: (socket, data) => say(names.get(socket) ?? "", data),
    close(socket, { code }) {
      const name = names.get(socket) ?? "";
      clientsIn(name).delete(socket);
      tell(`A client left (${code})`, name);
      relay?.leave(name);
      if (clientsIn(name).size === 0) rooms.delete(name);
    },
  };
}

/** The room that a URL names, "" if it names none, `undefined` if that is no name. */
function nameOf({ url }: Request): string | undefined {
  const names = URL.parse(url)?.searchParams.getAll("room");
  if (names?.length === 0) return "";
  const isName = names?.length === 1 && names[0] !== "" && [...names[0]].length <= MAX_NAME;
  return isName ? names[0] : undefined;
}

function decode(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
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
    const { nats, subject, "token-file": tokenFile, ...flags } = parseArgs({ options }).values;
    const token = tokenFile && Deno.readTextFileSync(tokenFile).trim();
    if (token === "") throw new Error(`There is no token in ${tokenFile}: write one into it.`);
    const log = limited(console.log);
    const print = flags.quiet ? () => {} : limited(console.log);
    const rooms: Rooms = new Map();
    const receive = (name: string, data: string | ArrayBuffer) =>
      broadcast(rooms.get(name) ?? [], data);
    const relay = nats === undefined ? undefined : await (await import("./relay.ts")).connectRelay({
      url: nats,
      subject,
      receive,
      // Its lines must not drown among those of clients that come and go.
      log: limited(console.log),
    });
    const refuse = token ? requireToken(token, log) : undefined;
    const limits = { port: 9998, maxMessage: relay?.maxMessage };
    runServer(
      "Broadcast server",
      room(rooms, { log, print, relay, refuse }),
      flags,
      limits,
      relay?.close,
    );
  });
}
