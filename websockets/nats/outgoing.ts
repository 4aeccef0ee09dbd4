// What this server has to say to the others: it waits here, in order, until NATS confirms it.

import { deadline, delay } from "@std/async";
import type { Link } from "./link.ts";
import { BATCH, MAX_OUTGOING, QUEUED_COST, Waiting } from "./waiting.ts";

/** What waits for NATS. */
export class Outgoing {
  /** How much waits. */
  readonly waiting: Waiting = new Waiting();
  readonly #link: Link;
  /** `done` is called when nobody has to wait for a message any longer. */
  #queue: { subject: string; bytes: Uint8Array; done(): void }[] = [];
  #published = Promise.resolve();
  /** How many messages were lost since that was last told. */
  #lost = 0;
  #isClosed = false;
  /** When the other servers have had time to come back as well, in milliseconds. */
  #settledAt = 0;

  constructor(link: Link) {
    this.#link = link;
  }

  get #pause(): number {
    return Math.max(0, this.#settledAt - performance.now());
  }

  /** Sends a message after all others. Where much waits, this waits for NATS. */
  async publish(subject: string, bytes: Uint8Array): Promise<void> {
    if (this.#isClosed) {
      this.#lost++;
      return this.#report();
    }
    const size = bytes.length + QUEUED_COST;
    const isMuch = this.waiting.bytes + size > MAX_OUTGOING || this.waiting.isFull;
    const isAway = this.#link.isAway || this.#pause > 0;
    // A message that is larger than all that may wait is let through where nothing waits.
    if (isAway && isMuch && this.#queue.length > 0) return void this.#lost++;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#queue.push({ subject, bytes, done: resolve });
    this.waiting.count(size);
    // All that follow are published with the first one.
    if (this.#queue.length === 1) this.#publishSoon();
    if (isMuch && !isAway) await promise;
  }

  /** Goes on when NATS is back, after `pause` milliseconds. */
  resume(pause: number): void {
    this.#settledAt = performance.now() + pause;
    this.#publishSoon();
  }

  /** Counts a message that NATS has refused after it was published. */
  lose(): void {
    this.#lost++;
    this.#publishSoon();
  }

  #publishSoon() {
    this.#published = this.#published.then(() => this.#publishWaiting());
  }

  async #publishWaiting() {
    while (!this.#link.isAway && this.#queue.length > 0) {
      if (this.#pause > 0) await delay(this.#pause);
      else await this.#publishBatch();
    }
    for (const { done } of this.#queue) done();
    if (!this.#link.isAway) this.#report();
  }

  async #publishBatch() {
    let [count, size] = [0, 0];
    for (const { bytes } of this.#queue) {
      if (size >= BATCH) break;
      size += bytes.length + QUEUED_COST;
      count++;
    }
    const taken = this.#queue.splice(0, count);
    // NATS may take only smaller messages since it is back.
    const batch = taken.filter(({ bytes }) => bytes.length <= this.#link.maxMessage);
    // All of it counts as lost until NATS has confirmed it.
    this.#lost += count;
    try {
      for (const { subject, bytes } of batch) this.#link.nats.publish(subject, bytes);
      await this.#link.nats.flush();
      this.#lost -= batch.length;
    } catch {
      // NATS is away again, and some of the messages may have arrived.
    }
    this.waiting.count(-size);
    for (const { done } of taken) done();
  }

  #report() {
    if (this.#lost > 0) {
      this.#link.options.log(`Messages not relayed to the other servers: ${this.#lost}.`);
    }
    this.#lost = 0;
  }

  /** Publishes what still waits for `timeout` milliseconds at the most, and counts the rest. */
  async close(timeout: number): Promise<void> {
    await deadline(this.#published, this.#pause + timeout).catch(() => {});
    for (const { bytes, done } of this.#queue.splice(0)) {
      this.#lost++;
      this.waiting.count(-bytes.length - QUEUED_COST);
      done();
    }
    this.#isClosed = true;
    this.#report();
  }
}
