// A WebSocket server without its listener: it answers requests, and lets clients in within the
// limits.

import { delay } from "@std/async";
import { Budget } from "./budget.ts";
import { Clients, type Handler } from "./clients.ts";
import type { Connection } from "./connection.ts";
import { overlookRejections } from "./connection_closed.ts";
import { answerPreflight, isPreflight, makeReadable } from "./cross_origin.ts";
import {
  askForUpgrade,
  isHandshake,
  isKnownOrigin,
  mayHaveBody,
  refuse,
  refuseBody,
  refuseHandshake,
  RETRY_AFTER,
  selectSubprotocol,
} from "./handshake.ts";
import { errorLog, type Log, printable, unfailing } from "./log.ts";
import { type AcceptOptions, type Limits, limitsOf, type RequestInfo } from "./options.ts";
import { askFirst, type RequestLimits } from "./process_request.ts";

/** Milliseconds that a stopping server waits for its clients: containers are killed after 10 s. */
export const SHUTDOWN_TIMEOUT = 5_000;

/**
 * Lets clients in as `serve` does, at a server that listens already: give `answer` of the result to
 * `Deno.serve`, or call it beside routes of your own for each request that `isHandshake`.
 *
 * @throws {RangeError} for a limit that would let everyone in, or nobody.
 */
export function accept(handler: Handler, options: AcceptOptions = {}): Acceptor {
  return new Acceptor(handler, options);
}

/** What lets clients in. `accept` makes it. */
export class Acceptor implements AsyncDisposable {
  readonly #options: AcceptOptions;
  readonly #limits: Limits;
  readonly #requestLimits: RequestLimits;
  readonly #log: Log;
  readonly #budget: Budget;
  readonly #clients: Clients;
  /** How many requests are not decided about yet. */
  #pending = 0;
  readonly #stopping = new AbortController();
  readonly #stopOverlooking: () => void;
  readonly #closingCheck?: ReturnType<typeof setInterval>;
  #stopped?: Promise<void>;

  /** @ignore `accept` calls it. */
  constructor(handler: Handler, options: AcceptOptions) {
    this.#options = options;
    this.#limits = limitsOf(options);
    const { maxMessage, maxWaiting, timeout } = this.#limits;
    const log = unfailing(options.log ?? errorLog);
    this.#log = log;
    this.#budget = new Budget(maxWaiting, timeout);
    this.#clients = new Clients(handler, this.#budget, { maxMessage, isClient: false, log });
    const count = (bytes: number) => this.countWaiting(bytes);
    const { signal } = this.#stopping;
    this.#requestLimits = { timeout, maxBody: maxMessage, stopping: signal, count, log };
    this.#stopOverlooking = overlookRejections();
    if (timeout === Infinity) return;
    this.#closingCheck = setInterval(() => this.#budget.findClosing(), timeout);
  }

  /** The clients: each until its connection is closed and its handler has returned. */
  get clients(): ReadonlySet<Connection> {
    return this.#clients.all;
  }

  /** How many bytes wait for all clients together. */
  get waiting(): number {
    return this.#budget.bytes;
  }

  /** Whether more waits than may: then nobody is let in, and a handler should not add to it. */
  get isFull(): boolean {
    return this.#budget.isFull;
  }

  /**
   * Counts bytes that wait elsewhere for these clients; less of them if negative.
   *
   * @throws {RangeError} if that is no whole number.
   */
  countWaiting(bytes: number): void {
    this.#budget.count(bytes);
    if (bytes > 0) this.#budget.enforce();
  }

  /** Has `free` called to free so many bytes of what it has counted, before a client has to go. */
  whenFull(free: (bytes: number) => void): void {
    this.#budget.reserves.add(free);
  }

  /** Answers a request, as the handler of `Deno.serve` does. */
  readonly answer = (request: Request, info: RequestInfo): Response | Promise<Response> => {
    try {
      const response = this.#answer(request, info);
      return response instanceof Promise ? response.catch((error) => this.#fail(error)) : response;
    } catch (error) {
      return this.#fail(error);
    }
  };

  /**
   * Lets nobody in any more, sends every client what waits for it and then 1001, and is done when
   * all handlers have returned. It may be called twice: the first call counts.
   *
   * @param options.timeout Milliseconds after which nobody is waited for any longer, 5,000 unless
   * given. The log then says for whom it was.
   */
  shutdown({ timeout = SHUTDOWN_TIMEOUT }: { timeout?: number } = {}): Promise<void> {
    return this.#stopped ??= this.#stop(timeout);
  }

  /** The same as `shutdown`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }

  #answer(request: Request, info: RequestInfo): Response | Promise<Response> {
    // A handler that parses such a URL would fail, and the log would show the URL with its token.
    if (!URL.canParse(request.url)) return refuse(400, "The Host of the request can't be read.");
    if (this.#stopping.signal.aborted) {
      return refuse(503, "The server is shutting down.", RETRY_AFTER);
    }
    if (isHandshake(request)) {
      return refuseHandshake(request) ?? this.#refuseClient(request) ??
        this.#decide(request, info, () => this.#upgrade(request, info));
    }
    if (mayHaveBody(request)) {
      const refusal = this.#refuseClient(request) ?? refuseBody(request, this.#limits.maxMessage);
      if (refusal) return refusal;
    }
    const origin = request.headers.get("origin");
    // Only a page that is let in may read the answer.
    const isLetIn = origin !== null && isKnownOrigin(origin, this.#limits.origins);
    const readableBy = isLetIn ? origin : undefined;
    if (isPreflight(request) && this.#options.processRequest) return answerPreflight(readableBy);
    const response = this.#decide(request, info, askForUpgrade);
    if (response instanceof Response) return makeReadable(response, readableBy);
    return response.then((response) => makeReadable(response, readableBy));
  }

  /** Refuses a client because of where it comes from, or because there is no room. */
  #refuseClient({ headers }: Request): Response | undefined {
    const origin = headers.get("origin");
    const { origins, maxClients } = this.#limits;
    if (!isKnownOrigin(origin, origins)) {
      this.#log(`Refused a page from elsewhere: ${printable(`${origin}`)}.`, "origins");
      return refuse(403, "Pages from this origin are not let in.");
    }
    if (this.clients.size + this.#pending >= maxClients) {
      this.#log(`Refused a client: there are ${maxClients}.`, "maxClients");
      return refuse(503, "There are too many clients, try again later.", RETRY_AFTER);
    }
    if (!this.isFull) return undefined;
    this.#log("Refused a client: too much waits for the others.", "maxWaiting");
    return refuse(503, "Too much waits for the clients, try again later.", RETRY_AFTER);
  }

  /** Lets `processRequest` decide before `goOn`. Meanwhile the request counts as a client. */
  #decide(request: Request, info: RequestInfo, goOn: () => Response) {
    const asked = [this.#options.processRequest ?? []].flat();
    const response = askFirst(asked, request, info, this.#requestLimits);
    if (!(response instanceof Promise)) return response ?? goOn();
    this.#pending++;
    return response.finally(() => this.#pending--).then((response) => response ?? goOn());
  }

  #upgrade(request: Request, { remoteAddr }: RequestInfo): Response {
    const { idleTimeout, maxClients, subprotocols } = this.#limits;
    const subprotocol = selectSubprotocol(request, subprotocols);
    // The runtime keeps the headers of a request only if all of them were read before the upgrade.
    // This reads them at the least cost.
    request.headers.getSetCookie();
    const { socket, response } = Deno.upgradeWebSocket(request, { idleTimeout });
    // The runtime's own option takes no offer without blanks between the names.
    if (subprotocol) response.headers.set("sec-websocket-protocol", subprotocol);
    const admit = () => {
      const isLate = this.#stopping.signal.aborted;
      if (isLate || this.clients.size >= maxClients) socket.close(1013, "Try again later.");
      else this.#clients.add(socket, request, remoteAddr.hostname, subprotocol);
    };
    // A client counts from here on, because a handshake that is reset by its client never opens.
    socket.addEventListener("open", admit, { once: true });
    return response;
  }

  #fail(error: unknown): Response {
    // The message of the error may hold a URL with a token.
    this.#log(`Refused a request that can't be read: ${error instanceof Error && error.name}.`);
    return refuse(400, "The request can't be read.");
  }

  async #stop(timeout: number) {
    this.#stopping.abort();
    await this.#clients.close(timeout);
    const isAsked = this.#pending > 0;
    while (this.#pending > 0) await delay(1);
    // The runtime sends the last answer after this turn of its event loop.
    if (isAsked) await delay(1);
    clearInterval(this.#closingCheck);
    this.#stopOverlooking();
  }
}
