// Breaks all that can break while many follow, and counts what they hear. It fails if a message is
// lost, doubled or out of order, or if what is gone is not told exactly:
//
//   deno task chaos                 (ten minutes for each kind of servers)
//   deno task chaos --seconds 3600
//
// README.md explains what is broken, and what the columns are.

import { delay } from "@std/async";
import { cpus } from "node:os";
import { describeFlags, parseFlags, usageError } from "../../websockets/script/flags.ts";
import { runScript } from "../../websockets/script/run.ts";
import { Broker } from "../broker.ts";
import { numbered } from "../followers.ts";
import { freePort } from "../helpers.ts";
import type { Program } from "../programs.ts";
import { startProxy } from "../proxy.ts";
import { makeFolder } from "../readme.ts";
import { allKinds, type Kind } from "./kinds.ts";
import { type Follower, Ledger, type Said } from "./ledger.ts";
import { type Row, sum, table } from "./tables.ts";

const FOLLOWERS = 200;
const ROOMS = ["red", "green", "blue", "white"];
/** A room of large messages, in which some read nothing for a while. */
const SLOW_ROOM = "slow";
const SLOW_READERS = 6;
/** Bytes of its messages, and how many come in a burst: more than systems take for a reader. */
const [LARGE, BURST] = [200_000, 100];
/** Milliseconds between two of these bursts, at the most. */
const BURST_PAUSE = 8_000;
/** Bytes after which a connection is reset, at the most. Most are reset much earlier. */
const MAX_BYTES = 60_000;
/** The same for slow readers: they come back, and much of what they have missed is not kept. */
const MAX_SLOW_BYTES = 4_000_000;
/** Loops that push messages or let followers send them, and milliseconds of their pauses at the most. */
const [SPEAKERS, PAUSE] = [6, 60];
/** Faults that are printed of each kind of servers. */
const MAX_LINES = 10;
/** Milliseconds between two messages of `#meet`, and after which it gives up. */
const [MEETING_PAUSE, PATIENCE] = [100, 60_000];

/** Gives each push a connection of its own. If one is lost that was used before, `fetch` pushes again. */
const client = Deno.createHttpClient({ poolMaxIdlePerHost: 0 });

function below(limit: number): number {
  return Math.floor(Math.random() * limit);
}

function any<T>(items: T[]): T {
  return items[below(items.length)];
}

/** A server that is killed and started again, and the ways to it. */
class Site implements AsyncDisposable {
  readonly port = freePort();
  readonly direct = { url: `ws://localhost:${this.port}/` };
  /** Resets connections. */
  readonly cut;
  /** Takes nothing for a while. */
  readonly slow;
  readonly #launch: (port: number) => Program;
  readonly #programs: Program[] = [];

  constructor(launch: (port: number) => Program, calm: AbortSignal) {
    this.#launch = launch;
    const allowance = (bytes: number) => calm.aborted ? Infinity : below(below(bytes));
    this.cut = startProxy(this.port, () => allowance(MAX_BYTES));
    this.slow = startProxy(this.port, () => allowance(MAX_SLOW_BYTES));
  }

  /** Starts the server. One that runs is killed before. */
  async start(): Promise<void> {
    await this.#kill();
    const program = this.#launch(this.port);
    this.#programs.push(program);
    await program.prints(/:\/\//);
  }

  async #kill() {
    await this.#programs.at(-1)?.[Symbol.asyncDispose]();
  }

  /** How many slow readers were dropped with 1008. */
  get dropped(): number {
    const lines = this.#programs.flatMap(({ errors }) => errors.all);
    return lines.filter((line) => line.startsWith("Dropped a client. It read too little")).length;
  }

  async [Symbol.asyncDispose]() {
    await this.#kill();
    for (const proxy of [this.cut, this.slow]) await proxy[Symbol.asyncDispose]();
  }
}

/** Servers of one kind that are broken again and again, and what is said to them meanwhile. */
class Chaos {
  readonly ledger = new Ledger();
  readonly #sites: Site[] = [];
  /** Each lets a follower send a message of so many bytes. */
  readonly #senders: ((size: number) => unknown)[] = [];
  readonly #broken: Record<string, number> = { kills: 0, "NATS restarts": 0 };
  /** Aborts when nothing is broken any more. */
  readonly #calm = new AbortController();
  /** Aborts when nobody has to follow any more. */
  readonly #end = new AbortController();

  /** Does all of it at once, and then lets everyone hear the end. It returns what was counted. */
  async run({ servers, start, follow }: Kind, seconds: number) {
    const isJoined = servers > 1;
    await using folder = await makeFolder();
    await using nats = new Broker();
    const startNats = () => nats.start("-js", "-sd", folder.path);
    if (isJoined) await startNats();
    await using stack = new AsyncDisposableStack();
    const launch = (port: number) => start(port, nats.url);
    for (let count = 0; count < servers; count++) {
      const site = stack.use(new Site(launch, this.#calm.signal));
      await site.start();
      this.#sites.push(site);
    }
    const followings = Array.from({ length: FOLLOWERS }, (_, index) => this.#follow(index, follow));
    const breaks = {
      ...isJoined && { "NATS restarts": () => nats.stop().then(startNats) },
      kills: () => any(this.#sites).start(),
    };
    const breakAll = async () => {
      await this.#meet();
      const speakers = Array.from({ length: SPEAKERS }, () => this.#speak());
      await Promise.all([this.#break(breaks, seconds), this.#burst(), ...speakers]);
      await this.#meet();
    };
    // Nothing is left behind if one of them fails, because the others end before that is told.
    const broken = breakAll().finally(() => this.#end.abort());
    for (const each of await Promise.allSettled([broken, ...followings])) {
      if (each.status === "rejected") throw each.reason;
    }
    const { messages, counts, faults } = this.ledger;
    this.ledger.check();
    return {
      messages: messages.length,
      resets: sum(this.#sites.map(({ cut }) => cut.cuts)),
      ...this.#broken,
      "dropped (1008)": sum(this.#sites.map(({ dropped }) => dropped)),
      ...counts,
      ...faults,
    };
  }

  /**
   * Follows a room to the end. The first ones read slowly. Then one in each room is never reset, so that
   * no message is heard by nobody.
   */
  async #follow(index: number, follow: Kind["follow"]) {
    const room = index <= SLOW_READERS ? SLOW_ROOM : ROOMS[index % ROOMS.length];
    const isDirect = index <= SLOW_READERS + ROOMS.length;
    const way = index < SLOW_READERS ? "slow" : isDirect ? "direct" : "cut";
    const locate = () => `${any(this.#sites)[way].url}?room=${room}`;
    const { signal } = this.#end;
    const following = follow(locate, signal);
    const follower = this.ledger.follow(room);
    this.#senders.push((size) => following.send(numbered(this.ledger.say(room).id, size)));
    try {
      for await (const followed of following) this.ledger.hear(follower, followed);
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  /** Breaks one thing after the other: each once a minute, or three times in a short run. */
  async #break(breaks: Record<string, () => Promise<void>>, seconds: number) {
    const all = Object.entries(breaks);
    const pause = Math.min(60, seconds / 3) / all.length * 1000;
    const end = performance.now() + seconds * 1000;
    while (performance.now() < end) {
      for (const [name, breakIt] of all) {
        await delay(pause);
        await breakIt();
        this.#broken[name]++;
      }
    }
    this.#calm.abort();
  }

  /** Pushes messages, and lets followers send some. */
  async #speak() {
    while (!this.#calm.signal.aborted) {
      const size = 20 + below(300);
      if (below(2)) await this.#push(any(ROOMS), size);
      else any(this.#senders)(size);
      await delay(below(PAUSE));
    }
  }

  /** Pushes much at once while slow readers take nothing, so that they are dropped. */
  async #burst() {
    while (!this.#calm.signal.aborted) {
      for (const { slow } of this.#sites) slow.hold();
      for (let count = 0; count < BURST && !this.#calm.signal.aborted; count++) {
        await this.#push(SLOW_ROOM, LARGE);
        await delay(below(PAUSE));
      }
      for (const { slow } of this.#sites) slow.release();
      await delay(below(BURST_PAUSE), { signal: this.#calm.signal }).catch(() => {});
    }
  }

  async #push(room: string, size: number): Promise<Said> {
    const said = this.ledger.say(room);
    const url = `http://localhost:${any(this.#sites).port}/?room=${room}`;
    // A server that is killed does not answer. Nobody knows whether it has said the message.
    const answer = await fetch(url, { method: "POST", body: numbered(said.id, size), client })
      .then((response) => response.json()).catch(() => {});
    if (answer) this.ledger.accept(said, answer.position);
    return said;
  }

  /** Pushes to all rooms until each follower has heard one of these messages. */
  async #meet() {
    const { followers } = this.ledger;
    const pushed: Said[] = [];
    const isAway = ({ heard }: Follower) => !pushed.some((said) => heard.has(said));
    const end = performance.now() + PATIENCE;
    while (followers.some(isAway) && performance.now() < end) {
      for (const room of [...ROOMS, SLOW_ROOM]) pushed.push(await this.#push(room, 20));
      await delay(MEETING_PAUSE);
    }
    for (const { id, room } of followers.filter(isAway)) {
      this.ledger.fault("lost", `nothing of ${room} has come to ${id} in the end`);
    }
  }
}

const FLAGS = {
  "seconds COUNT": "how long for each kind of servers (600)",
  "only KIND": 'only this kind of servers, such as "ours, one process"',
  "socket-io FOLDER": "compare with Socket.IO: socket.io and socket.io-client of npm are there",
  "help": "print this",
};
const USAGE = `Usage: deno run --allow-all tests/bench/chaos.ts [flags]\n${describeFlags(FLAGS)}`;

async function main() {
  const { values } = parseFlags(FLAGS);
  const { seconds = 600, only } = values;
  const kinds = await allKinds(values["socket-io"]);
  if (only && !(only in kinds)) {
    throw usageError(`--only takes one of: ${Object.keys(kinds).join(", ")}.`);
  }
  const rows: Row[] = [];
  const failed: string[] = [];
  for (const [name, kind] of Object.entries(kinds)) {
    if (name !== (only ?? name)) continue;
    const chaos = new Chaos();
    const cells = Object.entries(await chaos.run(kind, seconds)).map(([heading, count]) => {
      return [heading, count === 0 ? "none" : count.toLocaleString("en")] as Row[number];
    });
    rows.push([["servers", name], ...cells]);
    const { lines } = chaos.ledger;
    for (const line of lines.slice(0, MAX_LINES)) console.log(`${name}: ${line}`);
    if (lines.length > 0 && name.startsWith("ours")) failed.push(name);
  }
  console.log(`Runs of ${seconds} s, on ${cpus().length} cores, Deno ${Deno.version.deno}.\n`);
  console.log(table(rows));
  if (failed.length > 0) throw new Error(`What was missed was not told by ${failed.join("; ")}.`);
}

if (import.meta.main) await runScript(USAGE, main);
