/// <reference types="./std.d.ts" />
// Plays rounds of random acts of clients, against servers with random limits, and fails if anything
// of them is left:
//
//   deno task fuzz --seconds 600
//   deno task fuzz --seed 4711                 (this round alone; with --seconds, again and again)
//
// The seed decides on the limits, on the acts and on their order. It does not decide how fast the
// machine is, so a round that has failed may pass a few times before it fails again.

import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import { delay } from "@std/async";
import process from "node:process";
import { type Connection, type RequestInfo, requireToken, serve, type Server } from "websockets";
import { parseFlags } from "../websockets/script/flags.ts";
import { ACTS, Client, connectTo, HANDLERS, HOOK_PAUSE, HOOKS, type Stage } from "./acts.ts";
import { eventually, seededRandom, within } from "./helpers.ts";
import { countDescriptors } from "./programs.ts";

/** Seconds in which a server gives up whoever is silent while a round lasts. */
const TINY_TIMEOUT = 0.05;
/** The limits of a server: tiny, middling, and those that it has unless told otherwise. */
const LIMITS = {
  maxWaiting: [1, 5_000, 1_000_000, undefined],
  maxMessage: [1, 1_000, undefined],
  maxClients: [1, 3, undefined],
  idleTimeout: [TINY_TIMEOUT, 1, 0, undefined],
};
/** Clients of a round. */
const CLIENTS = 5;
/** Milliseconds after an act: often none, so that acts meet. */
const PAUSES = [...Array(12).fill(0), 1, 1, 5, 30];

/** A server with random limits, and what its clients do to it. */
class Round implements Stage {
  readonly server: Server;
  readonly opened = new Set<{ destroy(): void; bytesRead?: number }>();
  readonly #limits: Partial<Record<keyof typeof LIMITS, number>>;
  readonly #acts: { line: string; who: number; pause: number; run(client: Client): unknown }[];
  readonly #log: string[] = [];
  /** How many handlers have started. */
  #started = 0;
  /** The connections whose handlers have ended. */
  readonly #ended: Connection[] = [];
  /** How many requests are not `completed`. */
  #requests = 0;
  #isStopped = false;

  constructor(readonly seed: number) {
    const random = seededRandom(seed);
    const pick = <Choice>(choices: Choice[]) => choices[random(choices.length)];
    const limits = Object.entries(LIMITS).map(([name, choices]) => [name, pick<unknown>(choices)]);
    this.#limits = Object.fromEntries(limits);
    // Few kinds of acts meet each other more often than all.
    const names = ["connect", ...Object.keys(ACTS).filter(() => random(2) === 0)];
    this.#acts = Array.from({ length: 5 + random(60) }, () => {
      const name = random(3) ? pick(names) : "connect";
      const [who, pause] = [random(CLIENTS), pick(PAUSES)];
      const { choice, run } = ACTS[name](random);
      return { line: `${who} ${name} ${choice}${pause ? `, ${pause} ms` : ""}`, who, pause, run };
    });
    this.server = serve((websocket, request) => this.#handle(websocket, request), {
      ...this.#limits,
      hostname: "127.0.0.1",
      port: 0,
      processRequest: [requireToken("secret"), (request, info) => this.#decide(request, info)],
      log: (line) => void this.#log.push(line),
    });
  }

  /** The limits, and the acts with their clients. */
  toString(): string {
    const lines = this.#acts.map(({ line }) => line);
    return [`Seed ${this.seed}: ${JSON.stringify(this.#limits)}`, ...lines].join("\n  ");
  }

  /** How many connections got no answer: a handshake among them keeps its descriptor in the runtime. */
  get unanswered(): number {
    return [...this.opened].filter(({ bytesRead }) => bytesRead === 0).length;
  }

  async stop(options?: { timeout?: number | undefined }): Promise<void> {
    this.#isStopped = true;
    await within(this.server.shutdown(options), "the server to stop");
    if (!this.#log.some((line) => line.startsWith("Stopped without"))) this.#assertEmpty();
  }

  /** Plays all acts, and fails if anything is left of them: how many there were. */
  async play(): Promise<number> {
    const clients = Array.from({ length: CLIENTS }, () => new Client(this));
    const running: Promise<unknown>[] = [];
    for (const { who, pause, run } of this.#acts) {
      running.push(Promise.try(run, clients[who]));
      this.#assertWithinLimits();
      if (pause) await delay(pause);
    }
    await within(Promise.all(running), "the acts to end");
    await eventually(() => {
      assertLessOrEqual(this.server.dropped, this.#ended.length);
      assert(this.#ended.every(({ signal }) => signal.aborted));
    });
    // Most of these clients answer no ping and no Close frame. They have to be given up.
    if (this.#limits.idleTimeout === TINY_TIMEOUT) await eventually(() => this.#assertEmpty());
    for (const each of this.opened) each.destroy();
    await this.#assertWorks();
    await this.stop();
    await eventually(() => this.#assertEmpty());
    // A hook may still pause when its request was given up.
    await delay(HOOK_PAUSE);
    assertEquals(process.getActiveResourcesInfo().filter((each) => each === "Timeout"), []);
    assertEquals(this.#log.filter((line) => / failed: (?!.*on purpose)/.test(line)), []);
    return this.#acts.length;
  }

  #assertWithinLimits() {
    const { maxWaiting = Infinity, maxClients = Infinity } = this.#limits;
    const { waiting, clients } = this.server;
    assertLessOrEqual(clients.size, maxClients);
    assertLessOrEqual(0, waiting);
    // What each handler sends at a time comes beyond it, and the largest body.
    assertLessOrEqual(waiting, 2 * maxWaiting + 2_000_000);
  }

  #assertEmpty() {
    const { waiting, clients } = this.server;
    const left = { waiting, clients: clients.size, handlers: this.#started - this.#ended.length };
    const none = { waiting: 0, clients: 0, handlers: 0, requests: 0 };
    assertEquals({ ...left, requests: this.#requests }, none);
  }

  /** Nobody who came is still counted, so that the next client gets in. */
  async #assertWorks() {
    // Who came last may be noticed only now, and may stop the server.
    await using websocket = await eventually(() => {
      if (this.#isStopped || this.#requests > 0) return;
      this.#assertEmpty();
      return connectTo(this.server, "echo");
    });
    if (!websocket) return;
    const { maxWaiting, maxClients } = this.#limits;
    const sent = maxWaiting === 1 ? ["a"] : [..."aaaaaaaaaa"];
    for (const message of sent) websocket.send(message);
    for (const message of sent) assertEquals(await websocket.receive(), message);
    // It takes a while until the server looks how much was taken.
    if (maxClients === 1) await eventually(() => assertEquals(this.server.waiting, 0));
  }

  async #handle(websocket: Connection, { url }: Request) {
    if (this.#isStopped) this.#log.push("The server failed: a client came after `shutdown`.");
    this.#started++;
    try {
      await HANDLERS[new URL(url).pathname.slice(1)](websocket, this);
    } finally {
      this.#ended.push(websocket);
    }
  }

  #decide(request: Request, { completed }: RequestInfo) {
    this.#requests++;
    completed.then(() => this.#requests--);
    const hook = HOOKS[new URL(request.url).search.slice(1) || "go"];
    return hook(this, request, completed) as Response | undefined;
  }
}

async function main() {
  const { values } = parseFlags({ "seconds SECONDS": "how long", "seed COUNT": "of one round" });
  const { seed, seconds = seed ? 0 : 10 } = values;
  const end = performance.now() + seconds * 1000;
  const first = seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  // The runtime opens two of its own after a while.
  let descriptors = countDescriptors(Deno) + 2;
  let [rounds, acts] = [0, 0];
  do {
    const round = new Round(seed ?? first + rounds);
    const tell = () => console.error(`${round}`);
    // This ends the process, unless the server overlooks it.
    const tellRejection = (event: Event) => void (event.defaultPrevented || tell());
    addEventListener("unhandledrejection", tellRejection);
    try {
      acts += await round.play();
      descriptors += round.unanswered;
      await eventually(() => assertLessOrEqual(countDescriptors(Deno), descriptors));
    } catch (error) {
      tell();
      throw error;
    }
    removeEventListener("unhandledrejection", tellRejection);
    if (seed && rounds === 0) tell();
    rounds++;
  } while (performance.now() < end);
  console.log(`${rounds} rounds from seed ${first}, ${acts} acts: nothing is left of them.`);
  // The runtime would go on for connections that are broken, some of them for ever.
  Deno.exit();
}

if (import.meta.main) await main();
