/// <reference types="./std.d.ts" />
// Plays rounds of random acts of clients, against servers with random limits, and fails if anything
// of them is left:
//
//   deno task fuzz --seconds 600
//   deno task fuzz --seed 4711                 (this round alone; with --seconds, again and again)
//
// A seed decides on the limits, on the acts and on their order. It does not decide how fast the
// machine is, so that a round that has failed may pass before it fails again.

import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import { delay } from "@std/async";
import http2 from "node:http2";
import net from "node:net";
import process from "node:process";
import * as websockets from "websockets";
import { connect, type Connection, requireToken, serve } from "websockets";
import { parseFlags } from "../websockets/script/flags.ts";
import { runScript, usageOf } from "../websockets/script/run.ts";
import { eventually, seededRandom, within } from "./helpers.ts";
import { countDescriptors } from "./programs.ts";
import { frame, handshake } from "./raw.ts";

/** The limits of a server: tiny, middling, and those that it has unless told otherwise. */
const LIMITS = {
  maxWaiting: [1, 5_000, 1_000_000, undefined],
  maxMessage: [1, 1_000, undefined],
  maxClients: [1, 3, undefined],
  idleTimeout: [0.05, 1, 0, undefined],
};
const CLIENTS = 5;
/** Milliseconds after an act: often none, so that acts meet. */
const PAUSES = [...Array(12).fill(0), 1, 1, 5, 30];
const TOKEN = { Authorization: "Bearer secret" };
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
  deaf: (websocket) => websocket.closed,
  close: (websocket) => websocket.close(4000, "It had to be."),
  throw() {
    throw onPurpose();
  },
};

/** What `processRequest` does, by the query of the URL. */
const HOOKS: Record<string, (request: Request, completed: Promise<void>) => unknown> = {
  go: () => undefined,
  pause: () => delay(10),
  wait: (_, completed) => completed,
  // Its client may leave in the middle.
  read: (request) => request.text().catch(() => {}),
  throw() {
    throw onPurpose();
  },
  reject: () => Promise.reject(onPurpose()),
  answer: () => new Response("answered"),
};

/** Bodies of requests: the length that is declared, the pieces that come, and what comes then. */
const BODIES: Record<string, [length: string | undefined, pieces: string[], then: string]> = {
  none: [undefined, [], "end"],
  whole: ["10", ["0123456789"], "end"],
  slow: ["10", ["0123", "4567", "89"], "end"],
  undeclared: [undefined, ["0123", "4567"], "end"],
  large: ["400000", ["文".repeat(100_000), "a".repeat(100_000)], "end"],
  endless: [undefined, Array(20).fill("a".repeat(100_000)), "wait"],
  late: ["1000", ["0123"], "wait"],
  cut: ["1000", ["0123"], "reset"],
  wrong: ["5, 5", ["01234"], "end"],
};
const METHODS = ["GET", "HEAD", "POST", "OPTIONS"];

/** One of the clients of a round, with the connection over which it sends frames. */
class Client {
  socket: net.Socket;
  #session?: http2.ClientHttp2Session;

  constructor(readonly round: Round) {
    this.socket = this.open("");
  }

  open(request: string): net.Socket {
    const socket = net.connect({ ...this.round.address, allowHalfOpen: true });
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
    const { host, port } = this.round.address;
    try {
      await using websocket = await connect(`ws://${host}:${port}/echo`, { headers: TOKEN });
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

  /** A request over HTTP/1.1 */
  async ask(method: string, url: string, body: string) {
    const [length, pieces, then] = BODIES[body];
    const lines = [`${method} /${url} HTTP/1.1`, "Host: localhost", "Authorization: Bearer secret"];
    if (length) lines.push(`Content-Length: ${length}`);
    else if (pieces.length > 0) lines.push("Transfer-Encoding: chunked");
    if (method === "OPTIONS") lines.push("Access-Control-Request-Method: POST");
    const socket = this.open([...lines, "", ""].join("\r\n"));
    for (const piece of pieces) {
      socket.write(length ? piece : `${piece.length.toString(16)}\r\n${piece}\r\n`);
      await delay(2);
    }
    if (then === "reset") socket.resetAndDestroy();
  }

  /** The same over HTTP/2, where all requests of a client share a connection. */
  async ask2(method: string, url: string, body: string) {
    const [length, pieces, then] = BODIES[body];
    if (!this.#session || this.#session.closed || this.#session.destroyed) {
      // Without this option, this client refuses itself to send a length twice.
      const options = { strictSingleValueFields: false } as http2.ClientSessionOptions;
      const { host, port } = this.round.address;
      this.#session = http2.connect(`http://${host}:${port}`, options);
      this.#session.on("error", () => {});
      this.round.opened.add(this.#session);
    }
    const headers: http2.OutgoingHttpHeaders = {
      ":method": method,
      ":path": `/${url}`,
      ...TOKEN,
      ...length ? { "content-length": length.split(", ") as never } : {},
      ...method === "OPTIONS" ? { "access-control-request-method": "POST" } : {},
    };
    const stream = this.#session.request(headers, { endStream: pieces.length === 0 });
    stream.on("error", () => {}).resume();
    for (const piece of pieces) {
      stream.write(piece);
      await delay(2);
    }
    if (then === "reset") stream.close(http2.constants.NGHTTP2_CANCEL);
    if (then === "end") stream.end();
  }
}

type Pick = <Choice>(choices: readonly Choice[]) => Choice;
interface Act {
  shown: unknown[];
  run(client: Client): unknown;
}

/** An act with one of these choices. */
function act<Choice>(choices: Choice[], run: (client: Client, choice: Choice) => unknown) {
  return (pick: Pick): Act => {
    const choice = pick(choices);
    return { shown: [choice], run: (client) => run(client, choice) };
  };
}
const always = (run: (client: Client) => unknown) => act([""], run);

const requests = (version: "ask" | "ask2") => (pick: Pick): Act => {
  const [method, hook, body] = [METHODS, Object.keys(HOOKS), Object.keys(BODIES)].map(pick);
  return {
    shown: [method, hook, body],
    run: (client) => client[version](method, `?${hook}`, body),
  };
};

const SIZES = [0, 1, 125, 126, 1_000, 65_536, 400_000];
const bytes = (size: number) => new Uint8Array(size);
const repeated = (count: number) => Array(count).fill(frame(1, "again"));

const ACTS: Record<string, (pick: Pick) => Act> = {
  connect: act(Object.keys(HANDLERS), (client, handler) => client.connect(handler)),
  connectAsked: act(Object.keys(HOOKS), (client, hook) => client.connect(`echo?${hook}`)),
  connectWithout: act(["go", "wait"], (client, hook) => {
    client.connect(`?${hook}`, { Authorization: null });
  }),
  connectFrom: act(["https://example.com"], (client, Origin) => client.connect("", { Origin })),
  talk: act([0, 1, 20], (client, count) => client.talk(count)),
  text: act(SIZES, (client, size) => client.send(frame(1, "a".repeat(size)))),
  chinese: act(SIZES, (client, size) => client.send(frame(1, "海".repeat(size / 3)))),
  binary: act(SIZES, (client, size) => client.send(frame(2, bytes(size)))),
  pieces: act(SIZES, (client, size) => client.send(frame(2, bytes(size), false), frame(0))),
  unfinished: act(SIZES, (client, size) => client.send(frame(2, bytes(size)).subarray(0, -1))),
  burst: act([10, 300], (client, count) => client.send(...repeated(count))),
  ping: act([0, 125, 126], (client, size) => client.send(frame(9, bytes(size)))),
  badText: always((client) => client.send(frame(1, Uint8Array.of(0xff)))),
  close: act([1000, 1001, 1005, 4000, 0], (client, code) => {
    client.send(frame(8, Uint8Array.of(code >> 8, code)));
  }),
  closeWithout: always((client) => client.send(frame(8))),
  stall: always((client) => client.socket.pause()),
  goOn: always((client) => client.socket.resume()),
  halfClose: always((client) => client.socket.end()),
  leave: always((client) => client.socket.destroy()),
  reset: always((client) => client.socket.resetAndDestroy()),
  request: requests("ask"),
  request2: requests("ask2"),
  requestAgain: requests("ask"),
  requestAgain2: requests("ask2"),
  shutdown: act([0, 20, undefined], ({ round }, timeout) => void round.stop({ timeout })),
};

/** A server with random limits, and what its clients do to it. */
class Round {
  readonly server: websockets.Server;
  /** What the clients have opened. */
  readonly opened = new Set<{ destroy(): void; bytesRead?: number }>();
  readonly #limits: Partial<Record<keyof typeof LIMITS, number>>;
  readonly #acts: { name: string; who: number; act: Act; pause: number }[];
  readonly #log: string[] = [];
  /** How many handlers have not ended, and how many hooks. */
  #handlers = 0;
  #hooks = 0;
  #isStopped = false;

  constructor(readonly seed: number) {
    const random = seededRandom(seed);
    const pick: Pick = (choices) => choices[random(choices.length)];
    const limits = Object.entries(LIMITS).map(([name, choices]) => [name, pick(choices)]);
    this.#limits = Object.fromEntries(limits);
    // Few kinds of acts meet each other more often than all.
    const names = ["connect", ...Object.keys(ACTS).filter(() => random(2) === 0)];
    this.#acts = Array.from({ length: 5 + random(60) }, () => {
      const name = random(3) ? pick(names) : "connect";
      const pause = PAUSES[random(PAUSES.length)];
      return { name, who: random(CLIENTS), act: ACTS[name](pick), pause };
    });
    this.server = serve((websocket, request) => this.#handle(websocket, request), {
      ...this.#limits,
      hostname: "127.0.0.1",
      port: 0,
      processRequest: [requireToken("secret"), (request, info) => this.#decide(request, info)],
      log: (line) => void this.#log.push(line),
    });
  }

  get address() {
    return { host: "127.0.0.1", port: this.server.addr.port };
  }

  /** The limits and the acts, with the number of the client and the pause after each. */
  toString(): string {
    const shown = this.#acts.map(({ name, who, act, pause }) =>
      [who, name, ...act.shown, pause ? `(${pause} ms)` : ""].join(" ")
    );
    return [`Seed ${this.seed}: ${JSON.stringify(this.#limits)}`, ...shown].join("\n  ");
  }

  /** How many connections got no answer: a handshake among them keeps its descriptor in the runtime. */
  get unanswered(): number {
    return [...this.opened].filter((each) => "bytesRead" in each && each.bytesRead === 0).length;
  }

  stop(options?: { timeout?: number }): Promise<void> {
    this.#isStopped = true;
    return within(this.server.shutdown(options), "the server to stop");
  }

  /** Plays all acts, and fails if anything is left. How many there were. */
  async play(): Promise<number> {
    const clients = Array.from({ length: CLIENTS }, () => new Client(this));
    const running: Promise<unknown>[] = [];
    for (const { who, act, pause } of this.#acts) {
      running.push(Promise.try(act.run, clients[who]));
      assert(this.server.waiting >= 0);
      assertLessOrEqual(this.server.clients.size, this.#limits.maxClients ?? Infinity);
      if (pause) await delay(pause);
    }
    await within(Promise.all(running), "the acts to end");
    for (const each of this.opened) each.destroy();
    if (!this.#isStopped) {
      await eventually(() => this.#assertEmpty());
      if (this.#hooks === 0) await this.#assertRoom();
    }
    await this.stop();
    if (!this.#log.some((line) => line.startsWith("Stopped without"))) this.#assertEmpty();
    await eventually(() => {
      this.#assertEmpty();
      assertEquals(this.#hooks, 0);
      const resources = process.getActiveResourcesInfo();
      assertEquals(resources.filter((each) => each !== "TTYWrap"), []);
    });
    assertEquals(this.#log.filter((line) => / failed: (?!.*on purpose)/.test(line)), []);
    return this.#acts.length;
  }

  /** Of all who came, nobody is still counted. */
  async #assertRoom() {
    await using _ = await connect(`ws://127.0.0.1:${this.address.port}/deaf`, { headers: TOKEN });
  }

  #assertEmpty() {
    const { waiting, clients } = this.server;
    assertEquals({ waiting, clients: clients.size, handlers: this.#handlers }, {
      waiting: 0,
      clients: 0,
      handlers: 0,
    });
  }

  async #handle(websocket: Connection, { url }: Request) {
    this.#handlers++;
    try {
      const handler = HANDLERS[new URL(url).pathname.slice(1)];
      await handler?.(websocket, this);
    } finally {
      this.#handlers--;
    }
  }

  #decide(request: Request, { completed }: websockets.RequestInfo) {
    const answer = HOOKS[new URL(request.url).search.slice(1)]?.(request, completed);
    if (!(answer instanceof Promise)) return answer as Response | undefined;
    this.#hooks++;
    return answer.finally(() => this.#hooks--).then(() => {
      if (request.method === "POST") return new Response("heard");
    });
  }
}

const FLAGS = { "seconds SECONDS": "how long (10)", "seed COUNT": "play the round of this seed" };

async function main() {
  const { values: { seed, seconds = seed ? 0 : 10 } } = parseFlags(FLAGS);
  const end = performance.now() + seconds * 1000;
  const first = seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  let [rounds, acts] = [0, 0];
  // The runtime opens two of its own after a while.
  let descriptors = countDescriptors(Deno) + 2;
  do {
    const round = new Round(seed ?? first + rounds);
    const tell = () => console.error(`${round}`);
    addEventListener("unhandledrejection", tell);
    addEventListener("error", tell);
    try {
      if (seed && rounds === 0) tell();
      acts += await round.play();
      descriptors += round.unanswered;
      await eventually(() => assertLessOrEqual(countDescriptors(Deno), descriptors));
    } catch (error) {
      if (!seed) tell();
      throw error;
    }
    removeEventListener("unhandledrejection", tell);
    removeEventListener("error", tell);
    rounds++;
  } while (performance.now() < end);
  console.log(`${rounds} rounds from seed ${first}, ${acts} acts: nothing is left of them.`);
  // The runtime would go on for connections that are broken, some of them for ever.
  Deno.exit();
}

if (import.meta.main) await main();
