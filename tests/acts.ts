// What random clients do to a server, and what its handlers do to them: fuzz.ts plays it.

import { delay } from "@std/async";
import http2 from "node:http2";
import net from "node:net";
import {
  connect,
  type Connection,
  ConnectionClosed,
  ConnectionFailed,
  type Server,
} from "websockets";
import { frame, handshake } from "./raw.ts";

/** What acts know of the round that they are in. */
export interface Stage {
  readonly server: Server;
  /** What the clients have opened. */
  readonly opened: Set<{ destroy(): void; bytesRead?: number }>;
  stop(options?: { timeout?: number | undefined }): Promise<void>;
}

/** Milliseconds that a hook pauses. */
export const HOOK_PAUSE = 10;
const TOKEN = { Authorization: "Bearer secret" };
const onPurpose = () => new Error("on purpose");

/** What handlers do, by the path of the handshake. */
export const HANDLERS: Record<string, (websocket: Connection, round: Stage) => unknown> = {
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
export const HOOKS: Record<
  string,
  (round: Stage, request: Request, done: Promise<void>) => unknown
> = {
  go: () => undefined,
  pause: () => delay(HOOK_PAUSE),
  wait: (_round, _request, done) => done,
  // Its client may leave in the middle.
  read: (_, request) => request.text().then(() => new Response("heard"), () => undefined),
  answerEarly(_, request) {
    request.text().catch(() => {});
    return new Response("answered");
  },
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

/** Connects with the other end of the library. */
export function connectTo({ addr }: Server, path: string): Promise<Connection> {
  return connect(`ws://127.0.0.1:${addr.port}/${path}`, { headers: TOKEN });
}

/** One of the clients of a round, with the connection over which it sends frames. */
export class Client {
  socket: net.Socket;
  #session?: http2.ClientHttp2Session;

  constructor(readonly round: Stage) {
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

  /** Is answered what it says, unless it is refused or dropped. */
  async talk(count: number): Promise<void> {
    try {
      await using websocket = await connectTo(this.round.server, "echo");
      for (let number = 0; number < count; number++) {
        await websocket.send(`${number}`);
        // Beside the answers, it hears what is sent to all.
        while (await websocket.receive() !== `${number}`);
      }
    } catch (error) {
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

export const ACTS: Record<string, ReturnType<typeof act>> = {
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
