// A WebSocket server without its listener: it answers requests, and lets clients in within the
// limits.

import { delay } from "@std/async";
import { Budget } from "./budget.ts";
import { Clients, type Handler } from "./clients.ts";
import type { Connection } from "./connection.ts";
import { overlookRejections } from "./connection_closed.ts";
import { answerOptions, makeReadable } from "./cross_origin.ts";
import {
  askForUpgrade,
  isHandshake,
  isKnownOrigin,
  mayHaveBody,
  Refusals,
  refuse,
  refuseBody,
  refuseHandshake,
  RETRY_AFTER,
  selectSubprotocol,
} from "./handshake.ts";
import { errorLog, type Log, printable, unfailing } from "./log.ts";
import { type AcceptOptions, type Limits, limitsOf, type RequestInfo } from "./options.ts";
import { Requests } from "./requests.ts";

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
  readonly #refused = new Refusals();
  readonly #limits: Limits;
  readonly #log: Log;
  readonly #budget: Budget;
  readonly #clients: Clients;
  readonly #requests: Requests;
  readonly #stopping = new AbortController();
  readonly #stopOverlooking: () => void;
  readonly #closingCheck?: ReturnType<typeof setInterval>;
  #stopped?: Promise<void>;

  /** @ignore `accept` calls it. */
  constructor(handler: Handler, options: AcceptOptions) {
    this.#limits = limitsOf(options);
    const { maxMessage, maxBody, maxWaiting, timeout } = this.#limits;
    const log = unfailing(options.log ?? errorLog);
    this.#log = log;
    this.#budget = new Budget(maxWaiting, timeout);
    this.#clients = new Clients(handler, this.#budget, { maxMessage, isClient: false, log });
    const [refused, stopping] = [this.#refused, this.#stopping.signal];
    const count = (bytes: number) => this.#requests.count(bytes);
    const limits = { maxBody, timeout, stopping, count, refused, log };
    this.#requests = new Requests([options.processRequest ?? []].flat(), limits, maxWaiting);
    this.#stopOverlooking = overlookRejections();
    if (timeout === Infinity) return;
    this.#closingCheck = setInterval(() => this.#budget.findClosing(), timeout);
  }

  /** The clients: each until its connection is closed and its handler has returned. */
  get clients(): ReadonlySet<Connection> {
    return this.#clients.all;
  }

  /** How many handshakes and requests with a body were refused, by what has refused them. */
  get refused(): Readonly<Refusals> {
    return this.#refused;
  }

  /** How many clients were dropped, because too much waited or because they did not answer. */
  get dropped(): number {
    return this.#budget.dropped;
  }

  /** How many bytes wait for all clients together, and of bodies that have arrived. */
  get waiting(): number {
    return this.#budget.bytes + this.#requests.bytes;
  }

  /** Whether more waits for the clients than may: then nobody is let in, and a handler should not add to it. */
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
    if (!URL.canParse(request.url)) {
      return this.#count("handshake", refuse(400, "The Host of the request can't be read."));
    }
    if (this.#stopping.signal.aborted) {
      return this.#count("shutdown", refuse(503, "The server is shutting down.", RETRY_AFTER));
    }
    if (isHandshake(request)) {
      return this.#count("handshake", refuseHandshake(request)) ?? this.#refusePage(request) ??
        this.#refuseClient() ?? this.#refuseMore() ??
        this.#decide(request, info, () => this.#upgrade(request, info));
    }
    if (mayHaveBody(request)) {
      const refusal = this.#refusePage(request) ?? this.#refuseMore() ??
        this.#count("body", refuseBody(request, this.#limits.maxBody));
      if (refusal) return refusal;
    }
    const origin = request.headers.get("origin");
    // Only a page that is let in may read the answer.
    const isLetIn = origin !== null && isKnownOrigin(origin, this.#limits.origins);
    const readableBy = isLetIn ? origin : undefined;
    const otherwise = request.method === "OPTIONS" ? answerOptions : askForUpgrade;
    const response = this.#decide(request, info, otherwise);
    if (response instanceof Response) return makeReadable(response, readableBy);
    return response.then((response) => makeReadable(response, readableBy));
  }

  /** Counts a refusal, if it is one. */
  #count<Refusal extends Response | undefined>(by: keyof Refusals, refusal: Refusal): Refusal {
    if (refusal) this.#refused[by]++;
    return refusal;
  }

  #refusePage({ headers }: Request): Response | undefined {
    const origin = headers.get("origin");
    if (isKnownOrigin(origin, this.#limits.origins)) return;
    this.#log(`Refused a page from elsewhere: ${printable(`${origin}`)}.`, "origins");
    return this.#count("origins", refuse(403, "Pages from this origin are not let in."));
  }

  #refuseClient(): Response | undefined {
    const { maxClients } = this.#limits;
    if (this.clients.size + this.#requests.handshakes.size < maxClients) return;
    this.#log(`Refused a client: there are ${maxClients}.`, "maxClients");
    const text = "There are too many clients, try again later.";
    return this.#count("maxClients", refuse(503, text, RETRY_AFTER));
  }

  /** Refuses what would make more wait, when too much does. */
  #refuseMore(): Response | undefined {
    if (!this.isFull) return;
    this.#log("Refused a client: too much waits for the others.", "maxWaiting");
    const text = "Too much waits for the clients, try again later.";
    return this.#count("maxWaiting", refuse(503, text, RETRY_AFTER));
  }

  /** Lets `processRequest` decide before `goOn`. */
  #decide(request: Request, info: RequestInfo, goOn: () => Response) {
    const response = this.#requests.decide(request, info);
    if (!(response instanceof Promise)) return response ?? goOn();
    return response.then((response) => response ?? goOn());
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
      if (!isLate && this.clients.size < maxClients) {
        return this.#clients.add(socket, request, remoteAddr.hostname, subprotocol);
      }
      this.#refused[isLate ? "shutdown" : "maxClients"]++;
      socket.close(1013, "Try again later.");
    };
    // A client counts from here on, because a handshake that is reset by its client never opens.
    socket.addEventListener("open", admit, { once: true });
    return response;
  }

  #fail(error: unknown): Response {
    // The message of the error may hold a URL with a token.
    this.#log(`Refused a request that can't be read: ${error instanceof Error && error.name}.`);
    return this.#count("handshake", refuse(400, "The request can't be read."));
  }

  async #stop(timeout: number) {
    this.#stopping.abort();
    await this.#clients.close(timeout);
    const isAsked = this.#requests.size > 0;
    while (this.#requests.size > 0) await delay(1);
    // The runtime sends the last answer after this turn of its event loop.
    if (isAsked) await delay(1);
    clearInterval(this.#closingCheck);
    this.#stopOverlooking();
  }
}
