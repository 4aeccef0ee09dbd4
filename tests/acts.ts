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
import http2 from "node:http2";
import net from "node:net";
import process from "node:process";
import * as websockets from "websockets";
import { connect, type Connection, requireToken, serve } from "websockets";
import { parseFlags } from "../websockets/script/flags.ts";
import { eventually, seededRandom, within } from "./helpers.ts";
import { countDescriptors } from "./programs.ts";
import { frame, handshake } from "./raw.ts";

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
/** Milliseconds that a hook pauses. */
const HOOK_PAUSE = 10;
const TOKEN = { Authorization: "Bearer secret" };
const EMPTY = { waiting: 0, clients: 0, handlers: 0, requests: 0 };
const onPurpose = () => new Error("on purpose");

/** What handlers do, by the path of the handshake. */
const HANDLERS: Record<string, (websocket: Connection, round: Round) => unknown> = {
  async echo(websocket) {
    for await (const message of websocket) await websocket.send(message);
  },
  async broadcast(websocket, { server }) {
    for await (const message of websocket) for (const each of server.clients) each.send(message);
  },
  async slow(websocket) {
    for await (const _ of websocket) await delay(5);
  },
  async impatient(websocket) {
    while (!websocket.signal.aborted) {
      await websocket.receive({ signal: AbortSignal.timeout(2) }).catch(() => {});
    }
  },
  async pour(websocket) {
    while (true) await websocket.send("海".repeat(30_000));
  },
  flood(websocket) {
    for (let count = 0; count < 100; count++) websocket.send(new Uint8Array(50_000));
    return websocket.closed;
  },
  async fail(websocket) {
    await websocket.receive();
    throw onPurpose();
  },
  async leave(websocket) {
    for await (const _ of websocket) break;
  },
  beside: ({ signal }) => new Promise((resolve) => signal.addEventListener("abort", resolve)),
  deaf: (websocket) => websocket.closed,
  close: (websocket) => websocket.close(4000, "It had to be."),
  stop: (_, round) => void round.stop(),
  throw() {
    throw onPurpose();
  },
};

/** What `processRequest` does, by the query of the URL. */
const HOOKS: Record<string, (round: Round, request: Request, done: Promise<void>) => unknown> = {
  go: () => undefined,
  pause: () => delay(HOOK_PAUSE),
  wait: (_round, _request, done) => done,
  // Its client may leave in the middle.
  read: (_, request) => request.text().then(() => new Response("heard"), () => undefined),
  answer: () => new Response("answered"),
  reject: () => Promise.reject(onPurpose()),
  throw() {
    throw onPurpose();
  },
  stop: (round) => void round.stop(),
};

/** Bodies of requests: the length that is declared, the pieces that come, and what comes then. */
const BODIES: Record<string, [length: string | undefined, pieces: string[], then?: string]> = {
  none: [undefined, []],
  whole: ["10", ["0123456789"]],
  slow: ["10", ["0123", "4567", "89"]],
  undeclared: [undefined, ["0123", "4567"]],
  large: ["400000", ["文".repeat(100_000), "a".repeat(100_000)]],
  endless: [undefined, Array(20).fill("a".repeat(100_000)), "wait"],
  late: ["1000", ["0123"], "wait"],
  cut: ["1000", ["0123"], "leave"],
  wrong: ["5, 5", ["01234"]],
};
/** All but those that end the round, which are acts of their own. */
const [handlers, hooks] = [HANDLERS, HOOKS].map((all) =>
  Object.keys(all).filter((name) => name !== "stop")
);
/** A method, a hook and a body. */
const REQUESTS = ["GET", "HEAD", "POST", "OPTIONS"].flatMap((method) =>
  hooks.flatMap((hook) => Object.keys(BODIES).map((body) => `${method} ${hook} ${body}`))
);
const PUSHES = REQUESTS.filter((request) => request.startsWith("POST read"));

/** One of the clients of a round, with the connection over which it sends frames. */
class Client {
  socket: net.Socket;
  #session?: http2.ClientHttp2Session;

  constructor(readonly round: Round) {
    this.socket = this.open("");
  }

  open(request: string): net.Socket {
    const { hostname: host, port } = this.round.server.addr;
    const socket = net.connect({ host, port, allowHalfOpen: true });
    this.round.opened.add(socket);
    socket.on("error", () => {}).resume().write(request);
    return socket;
  }

  connect(url: string, headers: Record<string, string | null> = {}): void {
    this.socket = this.open(handshake({ ...TOKEN, ...headers }, `GET /${url} HTTP/1.1`));
  }

  send(...frames: Uint8Array[]): void {
    for (const each of frames) this.socket.write(each);
  }

  /** Uses the other end of the library. */
  async talk(count: number): Promise<void> {
    try {
      await using websocket = await this.round.connect("echo");
      for (let number = 0; number < count; number++) {
        await websocket.send(`${number}`);
        // Beside the answers, it hears what is sent to all.
        while (await websocket.receive() !== `${number}`);
      }
    } catch (error) {
      const { ConnectionClosed, ConnectionFailed } = websockets;
      if (!(error instanceof ConnectionClosed || error instanceof ConnectionFailed)) throw error;
    }
  }

  /** Makes a request, over HTTP/1.1 or over HTTP/2. */
  async ask(request: string, version: 1 | 2): Promise<void> {
    const [method, hook, body] = request.split(" ");
    const [length, pieces, then] = BODIES[body];
    const headers: Record<string, string | string[]> = { ...TOKEN };
    if (length) headers["Content-Length"] = version === 1 ? length : length.split(", ");
    if (method === "OPTIONS") headers["Access-Control-Request-Method"] = "POST";
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    const stream = version === 1
      ? this.open(`${method} /?${hook} HTTP/1.1\r\nHost: localhost\r\n${lines.join("")}\r\n`)
      : this.#request2({ ":method": method, ":path": `/?${hook}`, ...headers });
    for (const piece of pieces) {
      stream.write(piece);
      await delay(2);
    }
    if (then === "leave") stream.destroy();
    if (then === undefined && version === 2) stream.end();
  }

  /** All requests of a client over HTTP/2 share a connection. */
  #request2(headers: http2.OutgoingHttpHeaders): http2.ClientHttp2Stream {
    if (!this.#session || this.#session.closed || this.#session.destroyed) {
      const { hostname, port } = this.round.server.addr;
      // Without this option, this client refuses itself to send a length twice.
      const options = { strictSingleValueFields: false } as http2.ClientSessionOptions;
      this.#session = http2.connect(`http://${hostname}:${port}`, options).on("error", () => {});
      this.round.opened.add(this.#session);
    }
    return this.#session.request(headers, { endStream: false }).on("error", () => {}).resume();
  }
}

/** Something that a client does, with one of these choices. */
function act<Choice>(choices: Choice[], run: (client: Client, choice: Choice) => unknown) {
  return (random: (limit: number) => number) => {
    const choice = choices[random(choices.length)];
    return { choice, run: (client: Client) => run(client, choice) };
  };
}

const SIZES = [0, 1, 125, 126, 1_000, 65_536, 400_000];
const bytes = (size: number) => new Uint8Array(size);

const ACTS: Record<string, ReturnType<typeof act>> = {
  connect: act(handlers, (client, handler) => client.connect(handler)),
  connectAsked: act(hooks, (client, hook) => client.connect(`echo?${hook}`)),
  connectWithout: act(["a token"], (client) => client.connect("", { Authorization: null })),
  connectFrom: act(["https://example.com"], (client, Origin) => client.connect("", { Origin })),
  talk: act([0, 1, 20], (client, count) => client.talk(count)),
  text: act(SIZES, (client, size) => client.send(frame(1, "a".repeat(size)))),
  chinese: act(SIZES, (client, size) => client.send(frame(1, "海".repeat(size / 3)))),
  binary: act(SIZES, (client, size) => client.send(frame(2, bytes(size)))),
  pieces: act(SIZES, (client, size) => client.send(frame(2, bytes(size), false), frame(0))),
  unfinished: act(SIZES, (client, size) => client.send(frame(2, bytes(size)).subarray(0, -1))),
  burst: act([10, 300], (client, count) => client.send(...Array(count).fill(frame(1, "again")))),
  ping: act([0, 125, 126], (client, size) => client.send(frame(9, bytes(size)))),
  break: act(["bad UTF-8"], (client) => client.send(frame(1, Uint8Array.of(0xff)))),
  close: act([1000, 1001, 1005, 4000, 0], (client, code) => {
    client.send(frame(8, Uint8Array.of(code >> 8, code)));
  }),
  closeWithout: act(["a code"], (client) => client.send(frame(8))),
  stop: act(["reading"], (client) => client.socket.pause()),
  goOn: act(["reading"], (client) => client.socket.resume()),
  halfClose: act([""], (client) => client.socket.end()),
  leave: act([""], (client) => client.socket.destroy()),
  reset: act([""], (client) => client.socket.resetAndDestroy()),
  push: act(PUSHES, (client, request) => client.ask(request, 1)),
  push2: act(PUSHES, (client, request) => client.ask(request, 2)),
  request: act(REQUESTS, (client, request) => client.ask(request, 1)),
  request2: act(REQUESTS, (client, request) => client.ask(request, 2)),
  shutdown: act([0, 20, undefined], ({ round }, timeout) => void round.stop({ timeout })),
  shutdownIn: act(["stop", "echo?stop"], (client, url) => client.connect(url)),
};

/** A server with random limits, and what its clients do to it. */
class Round {
  readonly server: websockets.Server;
  /** What the clients have opened. */
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
      const [name, who, pause] = [
        random(3) ? pick(names) : "connect",
        random(CLIENTS),
        pick(PAUSES),
      ];
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

  connect(path: string): Promise<Connection> {
    return connect(`ws://127.0.0.1:${this.server.addr.port}/${path}`, { headers: TOKEN });
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
    const dropped = this.#log.filter((line) => line.startsWith("Dropped a client.")).length;
    await eventually(() => {
      assertLessOrEqual(dropped, this.#ended.length);
      assert(this.#ended.every(({ signal }) => signal.aborted));
    });
    // Most of these clients answer no ping and no Close frame. They have to be given up.
    if (this.#limits.idleTimeout === TINY_TIMEOUT) await eventually(() => this.#assertEmpty());
    for (const each of this.opened) each.destroy();
    // Who came last may be noticed only now.
    await eventually(async () => this.#isStopped || await this.#assertWorks());
    await this.stop();
    await eventually(() => this.#assertEmpty());
    // A hook may still pause when its request was given up.
    await delay(HOOK_PAUSE);
    assertEquals(process.getActiveResourcesInfo().filter((each) => each === "Timeout"), []);
    assertEquals(this.#log.filter((line) => / failed: (?!.*on purpose)/.test(line)), []);
    return this.#acts.length;
  }

  #assertWithinLimits() {
    const { maxWaiting = Infinity, maxMessage, maxClients = Infinity } = this.#limits;
    const { waiting, clients } = this.server;
    assertLessOrEqual(clients.size, maxClients);
    assertLessOrEqual(0, waiting);
    // What each handler sends at a time comes beyond it, and bodies where messages may be large.
    if (maxMessage !== undefined) assertLessOrEqual(waiting, 2 * maxWaiting + 500_000);
  }

  #assertEmpty() {
    const { waiting, clients } = this.server;
    const left = { waiting, clients: clients.size, handlers: this.#started - this.#ended.length };
    assertEquals({ ...left, requests: this.#requests }, EMPTY);
  }

  /** Nobody who came is still counted, so that the next client gets in. */
  async #assertWorks() {
    if (this.#requests > 0) return;
    this.#assertEmpty();
    await using websocket = await this.connect("echo");
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

  #decide(request: Request, { completed }: websockets.RequestInfo) {
    this.#requests++;
    completed.then(() => this.#requests--);
    return HOOKS[new URL(request.url).search.slice(1) || "go"](
      this,
      request,
      completed,
    ) as Response;
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
    addEventListener("unhandledrejection", tell);
    try {
      acts += await round.play();
      descriptors += round.unanswered;
      await eventually(() => assertLessOrEqual(countDescriptors(Deno), descriptors));
    } catch (error) {
      tell();
      throw error;
    }
    removeEventListener("unhandledrejection", tell);
    if (seed && rounds === 0) tell();
    rounds++;
  } while (performance.now() < end);
  console.log(`${rounds} rounds from seed ${first}, ${acts} acts: nothing is left of them.`);
  // The runtime would go on for connections that are broken, some of them for ever.
  Deno.exit();
}

if (import.meta.main) await main();
