// The servers that the chaos breaks, and how their followers come back.

import { delay } from "@std/async";
import { NATS_SERVER } from "../needs.ts";
import { Program, Script } from "../programs.ts";
import { sourceOf } from "./bench.ts";
import type { Follower } from "./ledger.ts";

/** Bytes that may wait, and that a room keeps: so few that slow readers are dropped, and miss some. */
const LIMITS = ["--max-waiting", "4000000", "--max-history", "1000000"];

/** Lets a follower hear what is said, through all losses, until `signal` aborts. */
export type Follow = (
  locate: () => string,
  follower: Follower,
  pause: () => number,
  signal: AbortSignal,
) => Promise<void>;

/** Servers of a kind, and how they are followed. */
export interface Kind {
  servers: number;
  start(port: number, nats?: string): Program;
  follow: Follow;
  /** Whether a NATS server with JetStream joins them. */
  isJoined: boolean;
}

function broadcast(port: number, nats?: string): Program {
  const flags = ["--port", `${port}`, "--quiet", ...LIMITS];
  return new Script("broadcast_server.ts", nats ? [...flags, "--nats", nats, "--replay"] : flags);
}

/** All kinds of servers, by their names in the table. */
export async function allKinds(socketIo?: string): Promise<Record<string, Kind>> {
  const ours = { start: broadcast, follow: followOurs };
  const node = (port: number) =>
    new Program("node", ["-e", sourceOf("cjs"), `${port}`], { cwd: socketIo });
  return {
    "ours, one process": { ...ours, servers: 1, isJoined: false },
    ...NATS_SERVER && { "ours, two with JetStream": { ...ours, servers: 2, isJoined: true } },
    ...socketIo && {
      "Socket.IO": { servers: 1, start: node, follow: await load(socketIo), isJoined: false },
    },
  };
}

/** On the wire of websockets/README.md, with the runtime's own WebSocket. */
const followOurs: Follow = async (locate, follower, pause, signal) => {
  const decoder = new TextDecoder();
  while (!signal.aborted) {
    const { room, position } = follower;
    const socket = new WebSocket(`${locate()}?after=${position}${room && `&room=${room}`}`);
    socket.binaryType = "arraybuffer";
    const end = () => socket.close();
    signal.addEventListener("abort", end);
    const closed = new Promise<CloseEvent>((resolve) => socket.onclose = resolve);
    socket.onmessage = ({ data: first }) => {
      follower.begin(first);
      follower.send = (message) => socket.send(message);
      socket.onmessage = ({ data }) => {
        const text: string = typeof data === "string" ? data : decoder.decode(data);
        const end = text.indexOf("\n");
        follower.hear(text.slice(0, end), text.slice(end + 1));
      };
    };
    follower.note(`is closed with ${(await closed).code}`);
    signal.removeEventListener("abort", end);
    follower.send = undefined;
    await delay(pause());
  }
};

/** Socket.IO's own client recovers by itself. That it has not is told as an unknown number. */
async function load(folder: string): Promise<Follow> {
  const path = `${folder}/node_modules/socket.io-client/dist/socket.io.esm.min.js`;
  const { Manager } = await import(`file://${await Deno.realPath(path)}`);
  return async (locate, follower, pause, signal) => {
    const times = { reconnectionDelay: pause(), reconnectionDelayMax: pause() };
    const options = { query: { room: follower.room }, transports: ["websocket"], ...times };
    const manager = new Manager(locate().replace("ws:", "http:"), options);
    const socket = manager.socket("/");
    socket.on("connect", () => {
      follower.send = (message) => socket.emit("message", message);
      if (socket.recovered) follower.begin(follower.position);
    });
    socket.on("position", (position: string) => {
      follower.begin(position + (follower.position && " lost"));
    });
    socket.on("message", (position: string, data: string | ArrayBuffer) => {
      const text = typeof data === "string" ? data : new TextDecoder().decode(data);
      follower.hear(position, text);
    });
    socket.on("disconnect", (reason: string) => {
      follower.note(`is disconnected: ${reason}`);
      follower.send = undefined;
    });
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
    socket.disconnect();
  };
}
