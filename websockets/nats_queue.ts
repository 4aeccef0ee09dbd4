// What waits for NATS: it is published batch by batch, and what NATS has not confirmed is counted.

import { deadline, delay } from "@std/async";
import type { Log } from "./lines.ts";
import type { NatsConnection } from "./nats_connection.ts";
import type { Server } from "./serve.ts";

/** Bytes that may wait for NATS: more makes who speaks wait, or is lost while NATS is away. */
const MAX_WAITING = 4 * 1024 ** 2;
/** Bytes that a message takes while it waits, beside its content. */
const MESSAGE_COST = 128;

/** What waits for NATS, in the order in which it was said. */
export class NatsQueue {
  /** In its budget counts what waits. */
  server?: Server;
  #nats: NatsConnection;
  /** When the other servers have had the time to come back to a NATS that was lost. */
  #settledAt = 0;
  #waiting: { subject: string; bytes: Uint8Array }[] = [];
  #waitingBytes = 0;
  #published = Promise.resolve();
  /** How many messages were lost since that was last reported. */
  #lost = 0;

  constructor(nats: NatsConnection, private readonly log: Log) {
    this.#nats = nats;
  }

  /** Done when little waits for NATS, and at once while NATS is away. It never rejects. */
  async push(subject: string, bytes: Uint8Array): Promise<void> {
    const size = bytes.length + MESSAGE_COST;
    const isMuch = this.#waitingBytes + size > MAX_WAITING || this.server?.isFull === true;
    const isAway = !this.#nats.isOpen || performance.now() < this.#settledAt;
    // A message that is larger than all that may wait is let through where nothing waits.
    if (isAway && isMuch && this.#waiting.length > 0) return this.lose();
    this.#waiting.push({ subject, bytes });
    this.#count(size);
    this.#publishSoon();
    if (isMuch && !isAway) await this.#published;
  }

  /** Counts a message that is lost. */
  lose(): void {
    this.#lost++;
  }

  /** Goes on with a NATS that is back, after the milliseconds that other servers may need. */
  resume(nats: NatsConnection, pause: number): void {
    this.#nats = nats;
    this.#settledAt = performance.now() + pause;
    this.#publishSoon();
  }

  /** Publishes what still waits, and counts what NATS does not take in time. */
  async close(timeout: number): Promise<void> {
    const pause = Math.max(0, this.#settledAt - performance.now());
    await deadline(this.#published, pause + timeout).catch(() => {});
    this.#lost += this.#waiting.length;
    this.#report();
  }

  #publishSoon() {
    this.#published = this.#published.then(() => this.#publish());
  }

  async #publish() {
    while (this.#nats.isOpen && this.#waiting.length > 0) {
      const pause = this.#settledAt - performance.now();
      if (pause > 0) {
        await delay(pause);
        continue;
      }
      const [waiting, size] = [this.#waiting, this.#waitingBytes];
      this.#waiting = [];
      // All of it counts as lost until NATS has confirmed it.
      this.#lost += waiting.length;
      // NATS may take only smaller messages since it is back.
      const { max_payload } = this.#nats.info;
      const batch = waiting.filter(({ bytes }) => bytes.length <= max_payload);
      try {
        await this.#nats.publish(batch);
        this.#lost -= batch.length;
      } catch {
        // NATS is away again, and some of the messages may have arrived.
      }
      this.#count(-size);
    }
    if (this.#nats.isOpen) this.#report();
  }

  #count(bytes: number) {
    this.#waitingBytes += bytes;
    this.server?.countWaiting(bytes);
  }

  #report() {
    if (this.#lost > 0) this.log(`Messages not relayed to the other servers: ${this.#lost}.`);
    this.#lost = 0;
  }
}
