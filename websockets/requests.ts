// The requests that `processRequest` has not decided about yet. Those that are no handshakes have an
// account of their own, so that they never keep a client out.

import { delay } from "@std/async";
import { isHandshake, refuse } from "./handshake.ts";
import type { ProcessRequest, RequestInfo } from "./options.ts";
import { PendingRequest, type RequestLimits } from "./pending_request.ts";

/** Requests at a time that are no handshakes: a body takes 270 KiB in the runtime while it arrives. */
const MAX_REQUESTS = 1_000;
/** What their bodies may take beside the budget, as a part of it. */
const SHARE = 1 / 8;
const TOO_MANY = "There are too many requests, try again later.";

/** The requests that are not decided about yet. */
export class Requests {
  /** The handshakes, each of which counts as a client. */
  readonly handshakes: Set<PendingRequest> = new Set();
  readonly #others = new Set<PendingRequest>();
  readonly #all: ProcessRequest[];
  readonly #limits: RequestLimits;
  readonly #maxBytes: number;
  #bytes = 0;

  constructor(all: ProcessRequest[], limits: Omit<RequestLimits, "count">, maxWaiting: number) {
    this.#all = all;
    this.#limits = { ...limits, count: (bytes) => this.#count(bytes) };
    this.#maxBytes = Math.max(maxWaiting * SHARE, limits.maxBody);
  }

  /** How many bytes of their bodies have arrived. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Waits until each is answered. */
  async settled(): Promise<void> {
    const all = [this.handshakes, this.#others];
    if (all.every(({ size }) => size === 0)) return;
    while (all.some(({ size }) => size > 0)) await delay(1);
    // The runtime sends the last answer after this turn of its event loop.
    await delay(1);
  }

  /** Lets `processRequest` decide before `goOn` does. */
  decide(
    request: Request,
    info: RequestInfo,
    goOn: () => Response,
  ): Response | Promise<Response> {
    if (this.#all.length === 0) return goOn();
    const all = isHandshake(request) ? this.handshakes : this.#others;
    if (this.#others.size >= MAX_REQUESTS && all === this.#others && !this.#makeRoom()) {
      this.#limits.refused.processRequest++;
      return refuse(503, TOO_MANY);
    }
    const pending = new PendingRequest(request, info, this.#limits);
    const answer = pending.decide(this.#all);
    if (!(answer instanceof Promise)) return answer ?? goOn();
    all.add(pending);
    return answer.finally(() => all.delete(pending)).then((answer) => answer ?? goOn());
  }

  /** Counts bytes of bodies that wait; fewer if negative. */
  #count(bytes: number) {
    this.#bytes += bytes;
    while (this.#bytes > this.#maxBytes && this.#makeRoom());
  }

  /**
   * Gives up the oldest body that still arrives, of the address from which most of them come. So an
   * address takes no room from others. Behind a proxy, all come from one address, and the oldest of
   * all has to go.
   *
   * @returns Whether there was one.
   */
  #makeRoom(): boolean {
    const arriving = [...this.#others].filter(({ isArriving }) => isArriving);
    const byAddress = [...Map.groupBy(arriving, ({ address }) => address).values()];
    const [oldest] = byAddress.sort((one, other) => other.length - one.length).at(0) ?? [];
    oldest?.refuseBody(503, TOO_MANY);
    return oldest !== undefined;
  }
}
