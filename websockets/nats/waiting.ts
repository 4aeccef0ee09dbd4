// What waits for NATS. It counts in the budget of the server whose clients have said it.

import type { Server } from "../serve.ts";

/** Bytes that may wait for NATS. With more, handlers wait; while NATS is away, more is lost. */
export const MAX_OUTGOING: number = 4 * 1024 ** 2;
/** Bytes that NATS is to confirm at once. They are few, because a ping of nats.js waits behind them. */
export const BATCH: number = 1024 ** 2;
/** Bytes that a message takes while it waits, beside its content. */
export const QUEUED_COST = 128;

/** Where what waits for NATS counts as well: the server whose clients have said it. */
export type Budget = Pick<Server, "isFull" | "countWaiting">;

/** The account of what waits for NATS. */
export class Waiting {
  #budget?: Budget;
  #bytes = 0;

  /** How many bytes wait. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Whether too much waits for the clients of this server. */
  get isFull(): boolean {
    return this.#budget?.isFull === true;
  }

  /** Counts what waits, and what will wait, in this budget. */
  countIn(budget: Budget): void {
    budget.countWaiting(this.#bytes);
    this.#budget = budget;
  }

  /** Counts more bytes that wait; fewer if negative. */
  count(bytes: number): void {
    this.#bytes += bytes;
    this.#budget?.countWaiting(bytes);
  }
}
