// The other end: `connect`, as `websockets.connect` in Python.

import { deadline } from "@std/async";
import { Budget } from "./budget.ts";
import type { Close } from "./close_codes.ts";
import { Connection } from "./connection.ts";
import { handled } from "./connection_closed.ts";
import { checkUrl, ConnectionFailed } from "./failures.ts";
import type { Log } from "./log.ts";
import { Outbox } from "./outbox.ts";
import { connections } from "./reconnect.ts";

/** Milliseconds that a server gets for the handshake, and to take what it is sent. */
export const HANDSHAKE_TIMEOUT = 10_000;
/** Milliseconds that a server gets to answer a Close frame: one that was lost never answers. */
const CLOSE_TIMEOUT = 2_000;

/** How to connect. What is `undefined` is not given. */
export interface ConnectOptions {
  /** Headers to send with the handshake. */
  headers?: HeadersInit | undefined;
  /** The subprotocols to offer. */
  subprotocols?: string[] | undefined;
  /**
   * Milliseconds that the server may take for the handshake, 10,000 unless given. A connection is
   * lost (1006) when the server takes nothing of what it was sent for so long.
   */
  timeout?: number | undefined;
  /** Closes the connection, or gives up the handshake, when it aborts. */
  signal?: AbortSignal | undefined;
  /** Told when a loop over connections has waited for the server for a second. */
  log?: Log | undefined;
}

/** A connection that is being made: await it, or loop over it for a client that stays. */
export type Connecting = Promise<Connection> & AsyncIterable<Connection, undefined>;

/**
 * Connects to a server. `await using websocket = await connect(url);` closes the connection with
 * 1000 at the end of the block, as `async with` does in Python.
 *
 * `for await (const websocket of connect(url))` stays connected, as `async for` does: each turn of the
 * loop has a new connection, however the last one ended, and `break` ends it. What goes wrong in the
 * body leaves the loop, so catch `ConnectionClosed` there.
 *
 * @param url Where the server is, or a function that tells it before each attempt. Credentials in it
 * are sent as HTTP Basic authentication.
 * @throws {ConnectionFailed} if the server is away, or refuses the handshake. A loop throws it only
 * where another attempt would fail too.
 * @throws {DOMException} `SyntaxError` for a URL or a subprotocol that is not valid.
 */
export function connect(
  url: string | URL | (() => string | URL),
  options: ConnectOptions = {},
): Connecting {
  const locate = () => typeof url === "function" ? url() : url;
  const attempt = () => open(locate, options);
  const first = attempt();
  const loop = () => connections(first, attempt, options);
  return Object.assign(first, { [Symbol.asyncIterator]: loop });
}

/**
 * Connects once. The promise is resolved inside the `open` event, because the runtime may find a bad
 * frame right behind the first message, and then an answer to that message can't be sent any more.
 */
function open(locate: () => string | URL, options: ConnectOptions): Promise<Connection> {
  return new Promise((resolve, reject) => {
    handshake(locate, options, resolve).catch(reject);
  });
}

/** Makes the handshake, and calls `onOpen` as soon as the connection is open. */
async function handshake(
  locate: () => string | URL,
  { headers, subprotocols = [], timeout = HANDSHAKE_TIMEOUT, signal }: ConnectOptions,
  onOpen: (websocket: Connection) => void,
): Promise<void> {
  signal?.throwIfAborted();
  const url = `${locate()}`;
  checkUrl(url);
  // The types of browsers know no headers here, and a program may be checked with those.
  const init = { headers, protocols: subprotocols };
  const socket: WebSocket = Reflect.construct(WebSocket, [url, init]);
  // A server may send a message, or close, as soon as the handshake is done.
  const outbox = new ClientOutbox(socket, new Budget(Infinity, timeout));
  const options = { maxMessage: Infinity, isClient: true };
  const websocket = new Connection(outbox, options, new URL(url).hostname);
  // RFC 6455 section 4.1 has the client check this. The runtime takes what was not offered.
  const isOffered = () => socket.protocol === "" || subprotocols.includes(socket.protocol);
  const opened = new Promise<void>((resolve, reject) => {
    socket.addEventListener("open", () => {
      resolve();
      if (!isOffered()) return;
      closeOnAbort(websocket, signal);
      onOpen(websocket);
    });
    socket.addEventListener("error", (event) => reject(new Error((event as ErrorEvent).message)));
  });
  try {
    await deadline(handled(opened), timeout, signal && { signal });
  } catch (error) {
    socket.close();
    signal?.throwIfAborted();
    throw new ConnectionFailed(url, error as Error);
  }
  if (isOffered()) return;
  await websocket.close(1000, "This subprotocol was not offered.");
  const message = `the server selected the subprotocol ${socket.protocol}, which was not offered`;
  throw new ConnectionFailed(url, { name: "Error", message });
}

function closeOnAbort(websocket: Connection, signal?: AbortSignal) {
  const abort = () => void websocket.close();
  signal?.addEventListener("abort", abort);
  websocket.closed.then(() => signal?.removeEventListener("abort", abort));
}

/** What a client has to send. A server that takes nothing of it for too long is lost. */
class ClientOutbox extends Outbox {
  #closingSince = Infinity;

  override close(close: Close): void {
    this.#closingSince = Math.min(this.#closingSince, performance.now());
    this.budget.timeout = CLOSE_TIMEOUT;
    super.close(close);
  }

  override hear(): void {
    super.hear();
    // While messages flood in, the runtime calls no timer.
    if (this.heardAt - this.#closingSince > CLOSE_TIMEOUT) this.giveUp();
  }

  override giveUp(): void {
    if (this.closing) return super.giveUp();
    // The Close frame is sent if the server reads again.
    this.close({ code: 1000, reason: "" });
    this.onLoss?.({ code: 1006, reason: "The server took nothing for too long." }, false);
  }
}
