// A WebSocket server without its listener: it answers requests, and lets clients in within the
// limits.

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
 * @throws {RangeError} for a limit that is out of its bounds.
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
    const log = this.#log = unfailing(options.log ?? errorLog);
    this.#budget = new Budget(maxWaiting, timeout);
    this.#clients = new Clients(handler, this.#budget, { maxMessage, isClient: false, log });
    const [stopping, refused] = [this.#stopping.signal, this.#refused];
    const limits = { maxBody, timeout, stopping, refused, log };
    this.#requests = new Requests([options.processRequest ?? []].flat(), limits, maxWaiting);
    this.#stopOverlooking = overlookRejections();
    if (timeout === Infinity) return;
    this.#closingCheck = setInterval(() => this.#budget.closeLost(), timeout);
  }

  /** The clients: each until its connection is closed and its handler has returned. */
  get clients(): ReadonlySet<Connection> {
    return this.#clients.all;
  }

  /** How many requests were refused, by what has refused them. */
  get refused(): Readonly<Refusals> {
    return this.#refused;
  }

  /** How many clients were dropped: too much waited, or they did not read or close in time. */
  get dropped(): number {
    return this.#budget.dropped;
  }

  /** How many bytes wait for all clients together, and of bodies that have arrived. */
  get waiting(): number {
    return this.#budget.bytes + this.#requests.bytes;
  }

  /** Whether more than `maxWaiting` waits for the clients: then nobody is let in. */
  get isFull(): boolean {
    return this.#budget.isFull;
  }

  /**
   * Counts bytes that wait elsewhere for these clients; fewer if negative.
   *
   * @throws {RangeError} if that is no whole number.
   */
  countWaiting(bytes: number): void {
    this.#budget.count(bytes);
    if (bytes > 0) this.#budget.enforce();
  }

  /** Calls `free` before a client has to go, to free so many of the bytes that were counted here. */
  whenFull(free: (bytes: number) => void): void {
    this.#budget.reclaim.add(free);
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
    const unreadable = "The Host of the request can't be read.";
    if (!URL.canParse(request.url)) return this.#refuse("handshake", 400, unreadable);
    const isLate = this.#stopping.signal.aborted;
    if (isLate) return this.#refuse("shutdown", 503, "The server is shutting down.");
    if (isHandshake(request)) {
      return this.#count("handshake", refuseHandshake(request)) ?? this.#refusePage(request) ??
        this.#refuseClient() ?? this.#refuseWhenFull() ??
        this.#requests.decide(request, info, () => this.#upgrade(request, info));
    }
    if (mayHaveBody(request)) {
      const refusal = this.#refusePage(request) ?? this.#refuseWhenFull() ??
        this.#count("body", refuseBody(request, this.#limits.maxBody));
      if (refusal) return refusal;
    }
    const otherwise = request.method === "OPTIONS" ? answerOptions : askForUpgrade;
    const response = this.#requests.decide(request, info, otherwise);
    const readable = (answer: Response) => makeReadable(answer, request, this.#limits.origins);
    return response instanceof Promise ? response.then(readable) : readable(response);
  }

  /** Counts a refusal, if it is one. */
  #count<Refusal extends Response | undefined>(by: keyof Refusals, refusal: Refusal): Refusal {
    if (refusal) this.#refused[by]++;
    return refusal;
  }

  /** Refuses a request. The log has a line, if there is one, with the option that has refused it. */
  #refuse(by: keyof Refusals, status: number, text: string, line?: string): Response {
    if (line) this.#log(line, by);
    return this.#count(by, refuse(status, text));
  }

  #refusePage({ headers }: Request): Response | undefined {
    const origin = headers.get("origin");
    if (isKnownOrigin(origin, this.#limits.origins)) return;
    const line = `Refused a page from elsewhere: ${printable(`${origin}`)}.`;
    return this.#refuse("origins", 403, "Pages from this origin are not let in.", line);
  }

  #refuseClient(): Response | undefined {
    const { maxClients } = this.#limits;
    if (this.clients.size + this.#requests.handshakes.size < maxClients) return;
    const line = `Refused a client: there are ${maxClients}.`;
    return this.#refuse("maxClients", 503, "There are too many clients, try again later.", line);
  }

  #refuseWhenFull(): Response | undefined {
    if (!this.isFull) return;
    const line = "Refused a client: too much waits for the others.";
    return this.#refuse(
      "maxWaiting",
      503,
      "Too much waits for the clients, try again later.",
      line,
    );
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
    // A client counts when its connection is open: a handshake that its client resets never opens.
    socket.addEventListener("open", admit, { once: true });
    return response;
  }

  #fail(error: unknown): Response {
    // The message of the error may hold a URL with a token.
    this.#log(`Refused a request that can't be read: ${error instanceof Error && error.name}.`);
    return this.#refuse("handshake", 400, "The request can't be read.");
  }

  async #stop(timeout: number) {
    this.#stopping.abort();
    await this.#clients.close(timeout);
    await this.#requests.settled();
    clearInterval(this.#closingCheck);
    this.#stopOverlooking();
  }
}
