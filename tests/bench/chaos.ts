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
import type { Program } from "../programs.ts";
import { describeFlags, parseFlags, usageError } from "../../websockets/script/flags.ts";
import { runScript } from "../../websockets/script/run.ts";
import { type Row, sum, table } from "./tables.ts";
import { contentOf, Follower, Ledger, type Said } from "./ledger.ts";
import { allKinds, type Follow } from "./kinds.ts";

const FOLLOWERS = 200;
const ROOMS = ["", "red", "green", "blue"];
/** A room of large messages, half of whose followers read nothing for a while. */
const SLOW_ROOM = "slow";
const SLOW_FOLLOWERS = 6;
/** Characters of its messages, and how many come at once: more than systems take for a reader. */
const [LARGE, BURST] = [100_000, 120];
/** Milliseconds between two of these bursts, at the most. */
const BURST_PAUSE = 8_000;
/** Bytes after which a connection is reset, at the most. Most are reset much earlier. */
const MAX_BYTES = 60_000;
/** The same for slow readers: they come back, and much of what they have missed is not kept. */
const MAX_SLOW_BYTES = 4_000_000;
/** Loops that push, and loops that let followers send. */
const SPEAKERS = 3;
/** Milliseconds of their pauses, at the most. */
const PAUSE = 60;
/** Milliseconds after which a follower whose connection is lost comes back, at the most. */
const RETRY = 300;
/** Milliseconds after which nobody waits for the answer to a push. */
const PUSH_TIMEOUT = 10_000;

/** Where a server is, which may be killed and started again, and the proxies in front of it. */
class Place implements AsyncDisposable {
  readonly port = freePort();
  /** Resets connections. */
  readonly cut: Proxy;
  /** Takes nothing for a while. */
  readonly slow: Proxy;
  /** How many slow readers were dropped with 1008. */
  dropped = 0;
  readonly #launch: (port: number) => Program;
  #program: Program | undefined;

  constructor(launch: (port: number) => Program, allowance: (bytes: number) => number) {
    this.#launch = launch;
    this.cut = startProxy(this.port, () => allowance(MAX_BYTES));
    this.slow = startProxy(this.port, () => allowance(MAX_SLOW_BYTES));
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

/** A NATS server with JetStream. Its streams are in memory, so that they end with it. */
class Nats extends Broker {
  readonly #folder = Deno.makeTempDirSync();

  override start(): Promise<void> {
    return super.start("-js", "-sd", this.#folder);
  }

  override async [Symbol.asyncDispose]() {
    await super[Symbol.asyncDispose]();
    await Deno.remove(this.#folder, { recursive: true });
  }
}

/** Servers of one kind that are broken again and again, and what is said to them meanwhile. */
class Chaos {
  readonly ledger = new Ledger();
  readonly places: Place[] = [];
  kills = 0;
  restarts = 0;
  /** Aborts when nothing is broken any more. */
  readonly #calm = new AbortController();

  constructor(readonly nats: Nats | undefined, readonly below: (limit: number) => number) {}

  /** A place for one more server. */
  place(launch: (port: number) => Program): Place {
    const place = new Place(
      launch,
      (bytes) => this.#calm.signal.aborted ? Infinity : this.below(this.below(bytes)),
    );
    this.places.push(place);
    return place;
  }

  any<T>(items: T[]): T {
    return items[this.below(items.length)];
  }

  /** Characters of most messages. */
  size(): number {
    return 20 + this.below(300);
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
    const how = `sent by follower ${id}`;
    const content = contentOf(this.ledger.say(room, this.size(), how, send));
    send(this.below(3) === 0 ? new TextEncoder().encode(content) : content);
  }

  async #speak(say: () => unknown) {
    while (!this.#calm.signal.aborted) {
      // Nobody knows whether what failed was said.
      await Promise.try(say).catch(() => {});
      await delay(this.below(PAUSE));
    }
  }

  /** Pushes much at once while slow readers take nothing, so that they are dropped. */
  async #burst() {
    for (const { slow } of this.places) slow.hold();
    for (let count = 0; count < BURST; count++) await this.push(SLOW_ROOM, LARGE).catch(() => {});
    for (const { slow } of this.places) slow.release();
    await delay(this.below(BURST_PAUSE), { signal: this.#calm.signal });
  }

  /** Kills a server every so many seconds, and NATS between two of them. */
  async #breakAll(seconds: number, every: number) {
    const end = performance.now() + seconds * 1000;
    while (performance.now() < end) {
      await delay(every * 500);
      if (this.nats) {
        await this.nats.stop();
        await this.nats.start();
        this.restarts++;
      }
      await delay(every * 500);
      const place = this.any(this.places);
      await place.kill();
      await place.start();
      this.kills++;
    }
    this.#calm.abort();
  }

  /** Does all of it at once, then lets everyone hear the end, and counts. */
  async run(follow: Follow, seconds: number, every: number): Promise<Record<string, number>> {
    const { ledger } = this;
    const followed = new AbortController();
    const follows = Array.from({ length: FOLLOWERS }, (_, index) => {
      const room = index < 2 * SLOW_FOLLOWERS ? SLOW_ROOM : ROOMS[index % ROOMS.length];
      const locate = () => {
        const { slow, cut, port } = this.any(this.places);
        if (room === SLOW_ROOM && index >= SLOW_FOLLOWERS) return `ws://localhost:${port}/`;
        return index < SLOW_FOLLOWERS ? slow.url : cut.url;
      };
      return follow(locate, new Follower(ledger, room), () => this.below(RETRY), followed.signal);
    });
    const push = () => this.push(this.any(ROOMS), this.size());
    const speakers = Array.from({ length: SPEAKERS }, () => [push, () => this.send()]).flat();
    const spoken = [...speakers, () => this.#burst()].map((say) => this.#speak(say));
    await eventually(() => assert(ledger.followers.every(({ position }) => position)));
    await Promise.all([this.#breakAll(seconds, every), ...spoken]);
    // What is said after a restart, before a follower of the room is back, is not kept.
    await eventually(() => assert(ledger.followers.every(({ send }) => send)));
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
      "in vain": sumOf(ledger.followers, ({ inVain }) => inVain),
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
    const nats = isJoined ? stack.use(new Nats()) : undefined;
    await nats?.start();
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
