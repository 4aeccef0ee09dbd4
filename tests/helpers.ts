/// <reference types="./std.d.ts" />
// What nearly all tests share: a server in this process, clients, and waiting for what they do.

import { deadline, retry } from "@std/async";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { type Handler, serve, type ServeOptions } from "websockets";
import { silence } from "websockets/script.ts";

/** Milliseconds that a test waits before it fails. A busy machine may take long, and never so long. */
const PATIENCE = 180_000;
/** Milliseconds between two looks for what no event tells of. */
const LOOK = 10;

/** Waits for a promise, and fails with `what` if it takes too long. */
export async function within<T>(
  promise: Promise<T>,
  what: string,
  milliseconds = PATIENCE,
): Promise<T> {
  try {
    return await deadline(promise, milliseconds);
  } catch (error) {
    if (error instanceof DOMException) throw new Error(`Waited in vain for ${what}.`);
    throw error;
  }
}

/** Looks again until `look` throws no more. It is for what no event tells of. */
export function eventually<T>(look: () => T | Promise<T>): Promise<T> {
  const looks = { minTimeout: LOOK, multiplier: 1, jitter: 0, maxAttempts: PATIENCE / LOOK };
  return retry(async () => await look(), looks);
}

/**
 * A port that nobody listens on, for a server that is started at the same port again. It is below
 * those that systems give to outgoing connections and for `port: 0`, so that nothing takes it.
 */
export function freePort(): number {
  while (true) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    try {
      Deno.listen({ hostname: "127.0.0.1", port }).close();
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}

/** Things that arrive one by one, taken one by one. */
export class Inbox<T> {
  readonly all: T[] = [];
  #taken = 0;
  #wake = Promise.withResolvers<void>();

  put(item: T): void {
    this.all.push(item);
    this.#wake.resolve();
    this.#wake = Promise.withResolvers();
  }

  /** The next item that `isWanted`; those before it are passed over. */
  async next(isWanted: (item: T) => boolean = () => true, what = "the next item"): Promise<T> {
    while (true) {
      while (this.#taken < this.all.length) {
        const item = this.all[this.#taken++];
        if (isWanted(item)) return item;
      }
      await within(this.#wake.promise, what);
    }
  }
}

// What the handlers of the scripts print is no output of a test.
silence();

/** A server in this process on a free port, with its log. */
export interface TestServer extends AsyncDisposable {
  url: string;
  port: number;
  log: Inbox<string>;
}

export function startServer(handler: Handler, options: ServeOptions = {}): TestServer {
  const log = new Inbox<string>();
  const server = serve(handler, { port: 0, log: (line) => log.put(line), ...options });
  const { port } = server.addr;
  return {
    url: `ws://localhost:${port}`,
    port,
    log,
    async [Symbol.asyncDispose]() {
      await within(server.shutdown(), "the server to stop");
    },
  };
}

/**
 * Starts a server at a port that was free before. It is tried again where the port is taken: a program
 * that this process is just starting holds the descriptors of this process for a moment, also that of
 * a listener which is closed by now.
 */
export function startServerAt(port: number, handler: Handler): Promise<TestServer> {
  return eventually(() => startServer(handler, { port }));
}

/** A client that keeps what it receives. */
export class TestClient implements AsyncDisposable {
  readonly messages = new Inbox<string | ArrayBuffer>();
  readonly closed: Promise<CloseEvent>;

  constructor(readonly socket: WebSocket) {
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.messages.put(data);
    this.closed = new Promise((resolve) => socket.onclose = resolve);
  }

  /** Connects with the headers given, and waits until the connection is open. */
  static async open(url: string, headers: Record<string, string> = {}): Promise<TestClient> {
    const client = new TestClient(new WebSocket(url, { headers }));
    const opened = new Promise<void>((resolve, reject) => {
      client.socket.onopen = () => resolve();
      client.socket.onerror = (event) => reject(new Error((event as ErrorEvent).message));
    });
    await within(opened, `a connection to ${url}`);
    return client;
  }

  send(data: string | ArrayBuffer | Uint8Array<ArrayBuffer>): void {
    this.socket.send(data);
  }

  next(): Promise<string | ArrayBuffer> {
    return this.messages.next(undefined, "a message");
  }

  close(): Promise<CloseEvent> {
    this.socket.close(1000);
    return within(this.closed, "the connection to close");
  }

  async [Symbol.asyncDispose]() {
    if (this.socket.readyState !== WebSocket.CLOSED) await this.close();
  }
}

let collectGarbage: (() => void) | undefined;

/** Bytes that V8 holds for this process after it has freed what it can. */
export function heldMemory(): number {
  setFlagsFromString("--expose-gc");
  collectGarbage ??= runInNewContext("gc") as () => void;
  collectGarbage();
  const { heapUsed, external } = Deno.memoryUsage();
  return heapUsed + external;
}

/** Small and seeded, so that a failure can be repeated: the generator known as mulberry32. */
export function seededRandom(seed: number): (limit: number) => number {
  return (limit) => {
    seed = seed + 0x6d2b79f5 | 0;
    let mixed = Math.imul(seed ^ seed >>> 15, seed | 1);
    mixed ^= mixed + Math.imul(mixed ^ mixed >>> 7, mixed | 61);
    return ((mixed ^ mixed >>> 14) >>> 0) % limit;
  };
}
