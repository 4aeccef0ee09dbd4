// What the runtime was handed for one client, and how much of it the client has taken.

import type { Budget } from "./budget.ts";
import type { Content } from "./message.ts";

/** Bytes that the runtime takes for a message, beside its content. */
const RUNTIME_COST = 1024;

/** What the runtime holds for one client. It counts in the budget. */
export class Handed {
  readonly #socket: WebSocket;
  readonly #budget: Budget;
  /** Bytes, with what the runtime takes for each message. */
  bytes = 0;
  /** The same without that, as `bufferedAmount` counts. */
  #content = 0;

  constructor(socket: WebSocket, budget: Budget) {
    this.#socket = socket;
    this.#budget = budget;
  }

  /** Whether it is empty messages alone. Nothing tells when they are taken. */
  get isEmpty(): boolean {
    return this.bytes > 0 && this.#content === 0;
  }

  /** Gives the runtime a message of so many bytes to send. */
  add(content: Content, bytes: number): void {
    this.#socket.send(content);
    this.#content += bytes;
    this.bytes += bytes + RUNTIME_COST;
    this.#budget.countHanded(bytes + RUNTIME_COST);
  }

  /**
   * Finds out how much the client has taken. Empty messages count as taken at once.
   *
   * @returns Whether it has taken anything since the last time.
   */
  measure(): boolean {
    if (this.bytes === 0) return false;
    const content = this.#socket.bufferedAmount;
    if (content > 0 && content === this.#content) return false;
    // What the runtime takes for each message goes with its content.
    const left = content === 0 ? 0 : Math.ceil(this.bytes * content / this.#content);
    this.#budget.count(left - this.bytes);
    this.bytes = left;
    this.#content = content;
    return true;
  }

  /** Counts it no more. */
  forget(): void {
    this.#budget.count(-this.bytes);
    this.bytes = 0;
  }
}
