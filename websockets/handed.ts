// What the runtime was handed for one client, and how much of it the client has taken.

import type { Budget } from "./budget.ts";
import { bytesOf, type Content } from "./message.ts";

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

  /** Gives the runtime a message to send. */
  add(content: Content): void {
    this.#socket.send(content);
    const bytes = bytesOf(content);
    this.#content += bytes;
    this.bytes += bytes + RUNTIME_COST;
    this.#budget.countHanded(bytes + RUNTIME_COST);
  }

  /**
   * Finds out how much the client has taken. Empty messages count as taken at once.
   *
   * @returns Bytes that it has taken since the last time; `undefined` if it has taken nothing.
   */
  measure(): number | undefined {
    if (this.bytes === 0) return undefined;
    const content = this.#socket.bufferedAmount;
    if (content > 0 && content === this.#content) return undefined;
    const hasTaken = content < this.#content;
    // What the runtime takes for each message goes with its content.
    const left = content === 0 ? 0 : Math.ceil(this.bytes * content / this.#content);
    const taken = this.bytes - left;
    this.#budget.count(-taken);
    this.bytes = left;
    this.#content = content;
    // The runtime counts the bytes of a text, and `bytesOf` its characters: it may hold more.
    return hasTaken ? taken : undefined;
  }

  /** Counts it no more. */
  forget(): void {
    this.#budget.count(-this.bytes);
    this.bytes = 0;
  }
}
