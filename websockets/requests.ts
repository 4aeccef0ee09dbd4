// The requests that `processRequest` has not decided about yet. Those that are no handshakes have an
// account of their own, so that they never keep a client out.

import { isHandshake, refuse, RETRY_AFTER } from "./handshake.ts";
import type { ProcessRequest, RequestInfo } from "./options.ts";
import { PendingRequest, type RequestLimits } from "./pending_request.ts";

/** Requests at a time that are no handshakes: more than are answered in the same moment. */
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

  constructor(all: ProcessRequest[], limits: RequestLimits, maxWaiting: number) {
    this.#all = all;
    this.#limits = limits;
    this.#maxBytes = Math.max(maxWaiting * SHARE, limits.maxBody);
  }

  /** How many bytes of their bodies have arrived. */
  get bytes(): number {
    return this.#bytes;
  }

  /** How many requests are not decided about yet. */
  get size(): number {
    return this.handshakes.size + this.#others.size;
  }

  /** Asks `processRequest`: `undefined` lets the request go on. */
  decide(
    request: Request,
    info: RequestInfo,
  ): Response | undefined | Promise<Response | undefined> {
    if (this.#all.length === 0) return;
    const all = isHandshake(request) ? this.handshakes : this.#others;
    if (this.#others.size >= MAX_REQUESTS && all === this.#others && !this.#makeRoom()) {
      this.#limits.refused.processRequest++;
      return refuse(503, TOO_MANY, RETRY_AFTER);
    }
    const pending = new PendingRequest(request, info, this.#limits);
    const answer = pending.decide(this.#all);
    if (!(answer instanceof Promise)) return answer;
    all.add(pending);
    return answer.finally(() => all.delete(pending));
  }

  /** Counts bytes of bodies that wait; less of them if negative. */
  count(bytes: number): void {
    this.#bytes += bytes;
    while (this.#bytes > this.#maxBytes && this.#makeRoom());
  }

  /**
   * Gives up the oldest body that still arrives, of the address from which most of them come. So an
   * address takes no room from others, and behind a proxy, whose address is that of all, the slowest
   * body has to go.
   *
   * @returns Whether there was one.
   */
  #makeRoom(): boolean {
    const arriving = [...this.#others].filter(({ isArriving }) => isArriving);
    const byAddress = [...Map.groupBy(arriving, ({ address }) => address).values()];
    const most = byAddress.sort((one, other) => other.length - one.length).at(0);
    most?.[0].refuseBody(503, TOO_MANY);
    return most !== undefined;
  }
}
