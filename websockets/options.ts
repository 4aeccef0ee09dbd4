// What `serve` is told: where a server listens, whom it lets in, and its limits.

import { MAX_WAITING } from "./budget.ts";
import type { Log } from "./log.ts";

/** Bytes of the largest message: more than most texts, and little enough to hold for many. */
export const MAX_MESSAGE: number = 1024 ** 2;
/** Clients at a time: each takes a file descriptor, and 20 KiB even when it is silent. */
export const MAX_CLIENTS = 10_000;
/**
 * Seconds that a client may be silent, or take nothing of what waits for it. It is pinged after
 * half of them. 0 is for ever.
 */
export const IDLE_TIMEOUT = 30;
/** Seconds of 24 days. With more, the timers of the runtime would end at once. */
export const MAX_SECONDS: number = 24 * 24 * 60 * 60;

/** What the runtime knows of a request, such as `remoteAddr`. */
export type RequestInfo = Deno.ServeHandlerInfo<Deno.NetAddr>;

/** Answers or refuses a request before the handshake; `undefined` lets it go on. */
export type ProcessRequest = (
  request: Request,
  info: RequestInfo,
) => Response | undefined | Promise<Response | undefined>;

/** Whom a server lets in, and its limits. What is `undefined` is not given. */
export interface AcceptOptions {
  /**
   * Sees every request that keeps the rules, before it is answered, as `process_request` does in
   * Python. A `Response` refuses a handshake or answers another request; `undefined` lets it go
   * on. Of several, the first answer counts. It may be async, and take `idleTimeout` at the most:
   * `info.completed` is done when nobody waits for the answer any longer. A `ConnectionClosed` with 1013
   * that it throws is answered with 503. The handler of a client gets the same `Request`.
   */
  processRequest?: ProcessRequest | ProcessRequest[] | undefined;
  /** Origins that are let in beside loopback: `*` for any, `null` for pages opened from disk. */
  origins?: string[] | undefined;
  /** The subprotocols that this server speaks: the first that the client offers too is selected. */
  subprotocols?: string[] | undefined;
  /** Bytes of the largest message, 1 MiB unless given. A larger one closes with 1009. */
  maxMessage?: number | undefined;
  /** Bytes of the largest body of a request, as `maxMessage` unless given. */
  maxBody?: number | undefined;
  /** Clients at a time, 10,000 unless given. The others get 503. */
  maxClients?: number | undefined;
  /** Bytes that may wait for all clients together: 1 GiB, or ¼ of V8's heap if less, unless given. */
  maxWaiting?: number | undefined;
  /** Seconds that a client may be silent, or take nothing; 30 unless given, 0 is for ever. */
  idleTimeout?: number | undefined;
  /** Told which clients are refused or dropped, and what the handler and `processRequest` throw. */
  log?: Log | undefined;
}

/** Where a server listens, whom it lets in, and its limits. */
export interface ServeOptions extends AcceptOptions {
  /** 8000 unless given; 0 is any free one. */
  port?: number | undefined;
  /** `localhost` unless given; `0.0.0.0` is every address of this machine. */
  hostname?: string | undefined;
  /** The certificate for wss, in PEM. */
  cert?: string | undefined;
  /** The private key of `cert`, in PEM. */
  key?: string | undefined;
  /** Stops the server as `shutdown` does when it aborts. */
  signal?: AbortSignal | undefined;
}

type Limit = "maxMessage" | "maxBody" | "maxClients" | "maxWaiting" | "idleTimeout" | "timeout";
/** What a server keeps to. `timeout` is `idleTimeout` in milliseconds. */
export type Limits = Record<Limit, number> & Record<"origins" | "subprotocols", string[]>;

/**
 * The options that are given, or else the constants of the same name.
 *
 * @throws {RangeError} for a limit that is out of its bounds.
 */
export function limitsOf(options: AcceptOptions): Limits {
  const { maxMessage = MAX_MESSAGE, maxBody = maxMessage, maxClients = MAX_CLIENTS } = options;
  const { maxWaiting = MAX_WAITING, idleTimeout = IDLE_TIMEOUT } = options;
  const sizes = { maxMessage, maxBody, maxClients, maxWaiting };
  for (const each of Object.entries(sizes)) checkWhole(...each);
  checkSeconds("idleTimeout", idleTimeout, ", where 0 is for ever");
  const { origins = [], subprotocols = [] } = options;
  const timeout = idleTimeout * 1000 || Infinity;
  return { ...sizes, idleTimeout, timeout, origins, subprotocols };
}

/** @throws {RangeError} for an option that is to be a whole number over 0, and is none. */
export function checkWhole(name: string, value: number): void {
  if (Number.isSafeInteger(value) && value > 0) return;
  throw new RangeError(`\`${name}\` is a whole number over 0, not ${value}.`);
}

/** @throws {RangeError} for an option that is to be a number of seconds, and is none. */
export function checkSeconds(name: string, value: number, meaning = ""): void {
  if (value >= 0 && value <= MAX_SECONDS) return;
  const range = `a number of seconds up to ${MAX_SECONDS}${meaning}`;
  throw new RangeError(`\`${name}\` is ${range}, not ${value}.`);
}
