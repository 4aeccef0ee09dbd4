// Breaks all that can break while many follow, and counts what they hear. It fails if a message is
// lost, doubled or out of order, or if what is gone is not told exactly:
//
//   deno task chaos                 (ten minutes for each kind of servers)
//   deno task chaos --seconds 3600
//
// README.md explains what is broken, and what the columns are.

import { assert } from "@std/assert";
import { delay } from "@std/async";
import { Broker } from "../broker.ts";
import { chance } from "../followers.ts";
import { type Proxy, startProxy } from "../proxy.ts";
import { eventually, freePort } from "../helpers.ts";
import { NATS_SERVER } from "../needs.ts";
import { Program, Script } from "../programs.ts";
import { describeFlags, parseFlags, usageError } from "../../websockets/script/flags.ts";
import { runScript } from "../../websockets/script/run.ts";
import { type Row, sum, table } from "./tables.ts";
import { contentOf, Follower, Ledger, type Said } from "./ledger.ts";
import { sourceOf } from "./bench.ts";

/** Keeps all in memory, as far as the stream says so. */
const JETSTREAM = "--jetstream";
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

/** Lets a follower hear what is said, through all losses, until `signal` aborts. */
type Follow = (
  locate: () => string,
  follower: Follower,
  pause: () => number,
  signal: AbortSignal,
) => Promise<void>;

/** Servers of a kind, and how they are followed. */
interface Kind {
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
async function allKinds(socketIo?: string): Promise<Record<string, Kind>> {
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
async function load(folder: string): Promise<Follow> {
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

/** Where a server is, which may be killed and started again, and the proxies in front of it. */
class Place implements AsyncDisposable {
  readonly port = freePort();
  /** Resets connections. */
  readonly cut: Proxy;
  /** Takes nothing for a while. */
  readonly slow: Proxy = startProxy(this.port, () => Infinity);
  /** How many slow readers were dropped with 1008. */
  dropped = 0;
  readonly #launch: (port: number) => Program;
  #program: Program | undefined;

  constructor(launch: (port: number) => Program, allowance: () => number) {
    this.#launch = launch;
    this.cut = startProxy(this.port, allowance);
  }

  async start(): Promise<void> {
    this.#program = this.#launch(this.port);
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
    for (const proxy of [this.cut, this.slow]) await proxy[Symbol.asyncDispose]();
  }
}

/** Servers of one kind that are broken again and again, and what is said to them meanwhile. */
class Chaos {
  readonly ledger = new Ledger();
  readonly places: Place[] = [];
  kills = 0;
  restarts = 0;
  #isCalm = false;

  constructor(readonly nats: Broker | undefined, readonly below: (limit: number) => number) {}

  /** A place for one more server. */
  place(launch: (port: number) => Program): Place {
    const place = new Place(launch, () => this.#isCalm ? Infinity : this.below(MAX_BYTES));
    this.places.push(place);
    return place;
  }

  any<T>(items: T[]): T {
    return items[this.below(items.length)];
  }

  /** Pushes a message. Throws if it was not accepted. */
  async push(room: string, size: number): Promise<Said> {
    const { port } = this.any(this.places);
    const said = this.ledger.say(room, size, `pushed to ${port}`);
    const url = `http://localhost:${port}/${room && `?room=${room}`}`;
    const signal = AbortSignal.timeout(PUSH_TIMEOUT);
    const response = await fetch(url, { method: "POST", body: contentOf(said), signal });
    const answer = await response.text();
    if (response.status !== 202) throw new Error(answer);
    this.ledger.accept(said, JSON.parse(answer).position, "202");
    return said;
  }

  /** Lets a follower send a message, if it has a connection. */
  send(): void {
    const { room, id, send } = this.any(this.ledger.followers);
    if (!send) return;
    const content = contentOf(
      this.ledger.say(room, 20 + this.below(300), `sent by follower ${id}`, send),
    );
    send(this.below(3) === 0 ? new TextEncoder().encode(content) : content);
  }

  async #speak(say: () => unknown) {
    while (!this.#isCalm) {
      // Whether what failed was said, nobody knows.
      await Promise.try(say).catch(() => {});
      await delay(this.below(PAUSE));
    }
  }

  /** Pushes much at once while slow readers take nothing, so that they are dropped. */
  async #burst() {
    for (const { slow } of this.places) slow.hold();
    for (let count = 0; count < BURST; count++) await this.push(SLOW_ROOM, LARGE).catch(() => {});
    for (const { slow } of this.places) slow.release();
    await delay(this.below(BURST_PAUSE));
  }

  /** Kills a server every so many seconds, and NATS between two of them. */
  async #breakAll(seconds: number, every: number) {
    const end = performance.now() + seconds * 1000;
    while (performance.now() < end) {
      await delay(every * 500);
      if (this.nats) {
        await this.nats.stop();
        await this.nats.start(JETSTREAM);
        this.restarts++;
      }
      await delay(every * 500);
      const place = this.any(this.places);
      await place.kill();
      await place.start();
      this.kills++;
    }
    this.#isCalm = true;
  }

  /** Does all of it at once, then lets everyone hear the end, and counts. */
  async run(follow: Follow, seconds: number, every: number): Promise<Record<string, number>> {
    const { ledger } = this;
    const followed = new AbortController();
    const follows = Array.from({ length: FOLLOWERS }, (_, index) => {
      const room = index < 2 * SLOW_FOLLOWERS ? SLOW_ROOM : ROOMS[index % ROOMS.length];
      const way = index < SLOW_FOLLOWERS ? "slow" : "cut";
      const locate = () => this.any(this.places)[way].url;
      return follow(locate, new Follower(ledger, room), () => this.below(RETRY), followed.signal);
    });
    const push = () => this.push(this.any(ROOMS), 20 + this.below(300));
    const speakers = Array.from({ length: SPEAKERS }, () => [push, () => this.send()]).flat();
    const spoken = [...speakers, () => this.#burst()].map((say) => this.#speak(say));
    await Promise.all([this.#breakAll(seconds, every), ...spoken]);
    const rooms = [...ROOMS, SLOW_ROOM];
    const ends = await Promise.all(rooms.map((room) => eventually(() => this.push(room, 20))));
    const hear = (follower: Follower) =>
      eventually(() => assert(ends.some((end) => follower.hasHeard(end))));
    // Those that don't hear it are found in the ledger.
    await Promise.allSettled(ledger.followers.map(hear));
    followed.abort();
    await Promise.all(follows);
    for (const place of this.places) await place.kill();
    ledger.check(ends);
    return {
      messages: ledger.messages.length,
      heard: sumOf(ledger.followers, ({ heard }) => heard),
      resets: sumOf(this.places, ({ cut }) => cut.cuts),
      kills: this.kills,
      "NATS restarts": this.restarts,
      "dropped (1008)": sumOf(this.places, ({ dropped }) => dropped),
      gaps: sumOf(ledger.followers, ({ spans }) => Math.max(0, spans.length - 1)),
      told: sumOf(ledger.followers, ({ told }) => told),
      ...ledger.faults,
    };
  }
}

function sumOf<T>(items: T[], count: (item: T) => number): number {
  return sum(items.map(count));
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
  const failed: string[] = [];
  for (const [name, { servers, start, follow, isJoined }] of Object.entries(kinds)) {
    if (name !== (only ?? name)) continue;
    await using stack = new AsyncDisposableStack();
    const nats = isJoined ? stack.use(new Broker()) : undefined;
    await nats?.start(JETSTREAM);
    const launch = (port: number) => start(port, nats?.url);
    const chaos = new Chaos(nats, chance(seed));
    for (let count = 0; count < servers; count++) {
      await stack.use(chaos.place(launch)).start();
    }
    const counts = await chaos.run(follow, seconds, every);
    const cells = Object.entries(counts).map(([heading, count]): Row[number] => {
      return [heading, count === 0 ? "none" : count.toLocaleString("en")];
    });
    rows.push([["servers", name], ...cells]);
    const { firstFault } = chaos.ledger;
    if (firstFault) console.log(`${name}, --seed ${seed}: ${firstFault}`);
    if (firstFault && name.startsWith("ours")) failed.push(name);
  }
  console.log(table(rows));
  if (failed.length > 0) throw new Error(`What was missed was not told by ${failed.join("; ")}.`);
}

if (import.meta.main) await runScript(USAGE, main);
