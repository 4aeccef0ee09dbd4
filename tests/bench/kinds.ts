// The servers that the chaos breaks, and how they are followed.

import { follow, type Followed } from "websockets";
import { NATS_SERVER } from "../needs.ts";
import { Program, Script } from "../programs.ts";
import { sourceOf } from "./bench.ts";

/** Bytes that may wait, and that a room keeps: so few that slow readers are dropped, and miss some. */
const LIMITS = ["--max-waiting", "4000000", "--max-history", "1000000"];

/** A client that comes back after each loss. */
export interface Following extends AsyncIterable<Followed> {
  /** Sends a message. Nobody knows whether it arrives. */
  send(message: string | ArrayBuffer): unknown;
}

/** Servers of a kind, and how they are followed. */
export interface Kind {
  /** How many there are. Two are joined by a NATS server with JetStream. */
  servers: number;
  start(port: number, nats: string): Program;
  follow(locate: () => string, signal: AbortSignal): Following;
}

function ours(servers: number, flagsFor: (nats: string) => string[]): Kind {
  return {
    servers,
    start(port, nats) {
      const flags = ["--port", `${port}`, "--quiet", ...LIMITS, ...flagsFor(nats)];
      return new Script("broadcast_server.ts", flags);
    },
    follow: (locate, signal) => follow(locate, { signal }),
  };
}

/** All kinds of servers, by their names in the table. */
export async function allKinds(socketIo?: string): Promise<Record<string, Kind>> {
  return {
    "ours, one process": ours(1, () => []),
    ...NATS_SERVER && {
      "ours, two with JetStream": ours(2, (nats) => ["--nats", nats, "--replay"]),
    },
    ...socketIo && { "Socket.IO": await loadSocketIo(socketIo) },
  };
}

/** Socket.IO's own client recovers by itself. If it has not, an unknown number is told as lost. */
async function loadSocketIo(folder: string): Promise<Kind> {
  const path = `${folder}/node_modules/socket.io-client/dist/socket.io.esm.min.js`;
  const { Manager } = await import(`file://${await Deno.realPath(path)}`);
  const options = { transports: ["websocket"], reconnectionDelay: 100 };
  return {
    servers: 1,
    start: (port) => new Program("node", ["-e", sourceOf("cjs"), `${port}`], { cwd: folder }),
    follow(locate, signal) {
      const socket = new Manager(locate().replace("ws:", "http:"), options).socket("/");
      const heard = new ReadableStream<Followed>({
        start(controller) {
          socket.on("lost", (position: string) => {
            controller.enqueue({ message: undefined, lost: Infinity, position });
          });
          socket.on("message", (position: string, message: Followed["message"]) => {
            controller.enqueue({ message, lost: 0, position });
          });
          signal.addEventListener("abort", () => {
            socket.disconnect();
            controller.close();
          });
        },
      });
      return Object.assign(heard, { send: (message: unknown) => socket.emit("message", message) });
    },
  };
}
