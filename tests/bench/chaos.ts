// Breaks all that can break while many follow, and counts what they hear. It fails if a message is
// lost, doubled or out of order, or if what is gone is not told exactly:
//
//   deno task chaos                 (ten minutes for each kind of servers)
//   deno task chaos --seconds 3600
//
// README.md explains what is broken, and what the columns are.

import { delay } from "@std/async";
import { chance, type Proxy, startProxy } from "../proxy.ts";
import { eventually, freePort } from "../helpers.ts";
import { NATS_SERVER } from "../needs.ts";
import { Program, Script } from "../programs.ts";
import { describeFlags, parseFlags, usageError } from "../../websockets/script/flags.ts";
import { runScript } from "../../websockets/script/run.ts";
import { type Row, table } from "./tables.ts";
import { contentOf, Follower, Ledger, type Said } from "./ledger.ts";
import { sourceOf } from "./bench.ts";

const FOLLOWERS = 200;
const ROOMS = ["", "red", "green", "blue"];
/** A room of large messages, half of whose followers read nothing for a while. */
const SLOW_ROOM = "slow";
const SLOW_FOLLOWERS = 6;
/** Characters of its messages, and how many come at once: more than systems take for a reader. */
const [LARGE, BURST] = [100_000, 120];
/** Milliseconds between two of these bursts, at the most. */
const BURST_PAUSE = 8_000;
/** Bytes that may wait, and that a room keeps: so few that slow readers are dropped, and miss some. */
const LIMITS = ["--max-waiting", "4000000", "--max-history", "1000000"];
/** Bytes after which a connection is reset, at the most. */
const MAX_BYTES = 60_000;
/** Loops that push, and loops that let followers send. */
const SPEAKERS = 3;
/** Milliseconds of their pauses, and of those between two connections of a follower, at the most. */
const [PAUSE, RETRY] = [60, 300];
/** Milliseconds after which nobody waits for the answer to a push. */
const PUSH_TIMEOUT = 10_000;

type Below = (limit: number) => number;

/** Lets a follower hear what is said, through all losses, until `signal` aborts. */
type Follow = (
  locate: () => string,
  follower: Follower,
  pause: () => number,
  signal: AbortSignal,
) => Promise<void>;

/** Servers that are joined, and how they are followed. */
interface Kind {
  servers: number;
  start(port: number, nats: string): Program;
  follow: Follow;
  needsNats?: boolean;
}

const broadcast = (port: number, ...flags: string[]) => {
  const all = ["--port", `${port}`, "--quiet", ...LIMITS, ...flags];
  return new Script("broadcast_server.ts", all);
};

/** All kinds of servers, by the first column of the table. */
async function allKinds(socketIo?: string): Promise<Record<string, Kind>> {
  const kinds: Record<string, Kind> = {
    "ours, one process": { servers: 1, start: (port) => broadcast(port), follow: followOurs },
    "ours, two with JetStream": {
      servers: 2,
      start: (port, nats) => broadcast(port, "--nats", nats, "--replay"),
      follow: followOurs,
      needsNats: true,
    },
  };
  if (socketIo) {
    const code = sourceOf("cjs");
    const start = (port: number) => new Program("node", ["-e", code, `${port}`], { cwd: socketIo });
    kinds["Socket.IO"] = { servers: 1, start, follow: await followSocketIo(socketIo) };
  }
  return kinds;
}

const followOurs: Follow = async (locate, follower, pause, signal) => {
  const decoder = new TextDecoder();
  while (!signal.aborted) {
    const query = new URLSearchParams({ room: follower.room, after: follower.position });
    if (follower.room === "") query.delete("room");
    const socket = new WebSocket(`${locate()}?${query}`);
    socket.binaryType = "arraybuffer";
    const end = () => socket.close();
    signal.addEventListener("abort", end);
    const closed = new Promise<CloseEvent>((resolve) => socket.onclose = resolve);
    socket.onopen = () => follower.send = (message) => socket.send(message);
    socket.onmessage = ({ data: first }) => {
      follower.begin(first);
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
async function followSocketIo(folder: string): Promise<Follow> {
  const path = `${await Deno.realPath(
    folder,
  )}/node_modules/socket.io-client/dist/socket.io.esm.min.js`;
  const { Manager } = await import(`file://${path}`);
  return async (locate, follower, pause, signal) => {
    const times = { reconnectionDelay: pause(), reconnectionDelayMax: RETRY };
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

/** One of the servers, with the proxies that its followers come through. */
class Place implements AsyncDisposable {
  readonly port = freePort();
  readonly proxies: Proxy[];
  /** How many slow readers were dropped with 1008. */
  dropped = 0;
  #program: Program | undefined;

  constructor(readonly launch: (port: number) => Program, allowance: () => number) {
    this.proxies = [startProxy(this.port, allowance), startProxy(this.port, () => Infinity)];
  }

  async start(): Promise<void> {
    this.#program = this.launch(this.port);
    await this.#program.prints(/:\/\//);
  }

  async kill(): Promise<void> {
    await this.#program?.[Symbol.asyncDispose]();
    const errors = this.#program?.errors.all ?? [];
    this.dropped += errors.filter((line) => line.startsWith("Dropped a client.")).length;
    this.#program = undefined;
  }

  async [Symbol.asyncDispose]() {
    await this.kill();
    for (const proxy of this.proxies) await proxy[Symbol.asyncDispose]();
  }
}

/** Breaks servers of one kind for so many seconds. */
async function run(kind: Kind, seconds: number, every: number, below: Below) {
  const ledger = new Ledger();
  const happened = { kills: 0, "NATS restarts": 0 };
  let isCalm = false;
  const followed = new AbortController();
  await using stack = new AsyncDisposableStack();
  const natsPort = freePort();
  const folder = await Deno.makeTempDir();
  stack.defer(() => Deno.remove(folder, { recursive: true }));
  const startNats = async () => {
    const args = ["--addr", "127.0.0.1", "--port", `${natsPort}`, "--jetstream"];
    const nats = new Program(NATS_SERVER ?? "", [...args, "--store_dir", folder]);
    await eventually(() => Deno.connect({ port: natsPort }).then((found) => found.close()));
    return nats;
  };
  let nats = kind.needsNats ? await startNats() : undefined;
  stack.defer(() => nats?.[Symbol.asyncDispose]());
  const launch = (port: number) => kind.start(port, `nats://127.0.0.1:${natsPort}`);
  const allowance = () => isCalm ? Infinity : below(MAX_BYTES);
  const places = Array.from({ length: kind.servers }, () => new Place(launch, allowance));
  for (const place of places) await stack.use(place).start();
  const any = <T>(items: T[]): T => items[below(items.length)];

  /** Pushes a message, and tells whether it was accepted. */
  const push = async (room: string, size: number): Promise<Said | undefined> => {
    const { port } = any(places);
    const said = ledger.say(room, size, `pushed to ${port}`);
    const url = `http://localhost:${port}/?${room && `room=${room}`}`;
    const signal = AbortSignal.timeout(PUSH_TIMEOUT);
    try {
      const response = await fetch(url, { method: "POST", body: contentOf(said), signal });
      const answer = await response.text();
      if (response.status !== 202) return void said.way.push(ledger.at(answer));
      ledger.accept(said, JSON.parse(answer).position, "202");
      return said;
    } catch (error) {
      said.way.push(ledger.at(`${error}`));
    }
  };
  const pushSome = async () => {
    while (!isCalm) {
      await push(any(ROOMS), 20 + below(300));
      await delay(below(PAUSE));
    }
  };
  const sendSome = async () => {
    while (!isCalm) {
      const { room, id, send } = any(ledger.followers);
      if (send) {
        const said = ledger.say(room, 20 + below(300), `sent by follower ${id}`, send);
        send(below(3) === 0 ? new TextEncoder().encode(contentOf(said)) : contentOf(said));
      }
      await delay(below(PAUSE));
    }
  };
  const burst = async () => {
    while (!isCalm) {
      for (const { proxies: [, slow] } of places) slow.hold();
      for (let count = 0; count < BURST; count++) await push(SLOW_ROOM, LARGE);
      for (const { proxies: [, slow] } of places) slow.release();
      await delay(below(Math.min(BURST_PAUSE, seconds * 1000)));
    }
  };
  const kill = async () => {
    const half = every * 500;
    for (let left = seconds; left > every; left -= every) {
      await delay(half);
      if (nats) {
        await nats[Symbol.asyncDispose]();
        nats = await startNats();
        happened["NATS restarts"]++;
      }
      await delay(half);
      const place = any(places);
      await place.kill();
      happened.kills++;
      await place.start();
    }
    await delay(2 * half);
    isCalm = true;
  };

  const follows = Array.from({ length: FOLLOWERS }, (_, index) => {
    const isSlow = index < SLOW_FOLLOWERS;
    const room = index < 2 * SLOW_FOLLOWERS ? SLOW_ROOM : ROOMS[index % ROOMS.length];
    const locate = () => any(places).proxies[Number(isSlow)].url;
    return kind.follow(locate, new Follower(ledger, room), () => below(RETRY), followed.signal);
  });
  const speakers = Array.from({ length: SPEAKERS }, () => [pushSome(), sendSome()]).flat();
  await Promise.all([...speakers, burst(), kill()]);

  const ends: Said[] = [];
  for (const room of [...ROOMS, SLOW_ROOM]) {
    ends.push(await eventually(async () => await push(room, 20) ?? Promise.reject(room)));
  }
  const haveHeard = ledger.followers.map((follower) =>
    eventually(() => {
      if (!ends.some((end) => follower.hasHeard(end))) throw new Error("It has not heard the end.");
    })
  );
  await Promise.allSettled(haveHeard);
  followed.abort();
  await Promise.all(follows);
  for (const place of places) await place.kill();
  ledger.check(ends);
  const total = (count: (follower: Follower) => number) =>
    ledger.followers.reduce((sum, follower) => sum + count(follower), 0);
  const counts = {
    messages: ledger.messages.length,
    heard: total(({ heard }) => heard),
    resets: places.reduce((sum, { proxies }) => sum + proxies[0].cuts, 0),
    ...happened,
    "dropped (1008)": places.reduce((sum, { dropped }) => sum + dropped, 0),
    gaps: total(({ spans }) => spans.length - 1),
    told: total(({ told }) => told),
    ...ledger.faults,
  };
  return { counts, firstFault: ledger.firstFault };
}

const FLAGS = {
  "seconds COUNT": "how long for each kind of servers (600)",
  "every COUNT": "seconds between two kills of a server (60, and a third of a shorter run)",
  "only KIND": 'only this kind of servers, such as "ours, one process"',
  "seed COUNT": "chooses what happens, as far as chance goes; that of a run that failed is printed",
  "socket-io FOLDER":
    "compare with Socket.IO's recovery: socket.io and socket.io-client of npm are there",
  "help": "print this",
};
const USAGE = `Usage: deno run --allow-all tests/bench/chaos.ts [flags]\n${describeFlags(FLAGS)}`;

async function main() {
  const { values } = parseFlags(FLAGS);
  const { seconds = 600, every = Math.min(60, seconds / 3), only } = values;
  const { seed = Math.ceil(Math.random() * 1e6) } = values;
  const kinds = await allKinds(values["socket-io"]);
  if (only && !(only in kinds)) {
    throw usageError(`--only takes one of: ${Object.keys(kinds).join(", ")}.`);
  }
  const rows: Row[] = [];
  const failures: string[] = [];
  for (const [name, kind] of Object.entries(kinds)) {
    if (name !== (only ?? name)) continue;
    if (kind.needsNats && !NATS_SERVER) {
      console.log(`Leaving out "${name}": install nats-server.`);
      continue;
    }
    const { counts, firstFault } = await run(kind, seconds, every, chance(seed));
    const shown = Object.entries(counts).map(([heading, count]): Row[number] => {
      return [heading, count === 0 ? "none" : count.toLocaleString("en")];
    });
    rows.push([["servers", name], ...shown]);
    if (!firstFault) continue;
    console.log(`${name}, --seed ${seed}: ${firstFault}`);
    if (name.startsWith("ours")) failures.push(name);
  }
  console.log(table(rows));
  if (failures.length > 0) throw new Error(`The chaos was too much for ${failures.join("; ")}.`);
}

if (import.meta.main) await runScript(USAGE, main);
