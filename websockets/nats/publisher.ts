// What this server has to say, until NATS JetStream confirms that it is kept.

import { abortable, deadline, delay } from "@std/async";
import { ConnectionClosed } from "../connection_closed.ts";
import { bytesOf, type Message } from "../message.ts";
import type { Link } from "./link.ts";
import { Losses } from "./rooms.ts";
import { DUPLICATE_WINDOW, isUnheard, RefusedError, type Stream } from "./stream.ts";
import { BATCH, MAX_OUTGOING, QUEUED_COST, Waiting } from "./waiting.ts";

/** Milliseconds that a message waits at the most. NATS knows it again for twice as long. */
const MAX_WAIT = DUPLICATE_WINDOW / 2;

/** Sends messages, and each of them again until it is confirmed. */
export class Publisher {
  /** How much waits. */
  readonly waiting: Waiting = new Waiting();
  readonly #link: Link;
  readonly #stream: Stream;
  readonly #lost: Losses;
  /** Done when the last message is on its way, so that the next one may follow. */
  #sent = Promise.resolve();
  #sentBytes = 0;
  #confirmed = Promise.withResolvers<void>();
  readonly #closing = new AbortController();

  constructor(link: Link, stream: Stream) {
    this.#link = link;
    this.#stream = stream;
    this.#lost = new Losses(link, "Messages that NATS has not confirmed (their senders know it)");
  }

  /**
   * Says a message after all others. Done when it is kept, with its position.
   *
   * @throws {ConnectionClosed} with 1013 if nobody knows whether it is kept.
   */
  async publish(room: string, message: Message): Promise<string> {
    const size = bytesOf(message) + QUEUED_COST;
    const isMuch = this.waiting.bytes > 0 && this.waiting.bytes + size > MAX_OUTGOING;
    if (this.#closing.signal.aborted) throw this.#lose("the relay is closed");
    if (this.#link.isAway && isMuch) throw this.#lose("too much waits");
    const before = this.#sent;
    const sent = Promise.withResolvers<void>();
    this.#sent = sent.promise;
    const end = performance.now() + MAX_WAIT;
    this.waiting.count(size);
    try {
      await before;
      while (this.#sentBytes > BATCH) await this.#confirmed.promise;
      this.#sentBytes += size;
      return await this.#send(this.#stream.prepare(room, message), sent.resolve, end)
        .finally(() => this.#sentBytes -= size);
    } finally {
      sent.resolve();
      this.waiting.count(-size);
      this.#confirmed.resolve();
      this.#confirmed = Promise.withResolvers();
    }
  }

  async #send(send: () => Promise<number>, onSent: () => void, end: number): Promise<string> {
    const { reconnectWait } = this.#link.options;
    const { signal } = this.#closing;
    let state = () => this.#stream.current();
    let reason = "NATS is away";
    /** The epoch of a stream in which the message may be. */
    let sentIn: string | undefined;
    while (!signal.aborted && performance.now() < end) {
      try {
        if (this.#link.isAway) await deadline(this.#link.back, end - performance.now(), { signal });
        const { epoch } = await abortable(state(), signal);
        // Another stream would store it again.
        if (sentIn !== undefined && sentIn !== epoch) break;
        const before = sentIn;
        sentIn = epoch;
        const confirmed = send().catch((error) => {
          // There was no stream that could take it this time.
          if (isUnheard(error)) sentIn = before;
          throw error;
        });
        onSent();
        return `${epoch}.${await abortable(confirmed, signal)}`;
      } catch (error) {
        reason = (error as Error).message;
        if (error instanceof RefusedError) break;
        state = () => this.#stream.state();
        await delay(reconnectWait, { signal }).catch(() => {});
      }
    }
    throw this.#lose(reason);
  }

  #lose(reason?: string): ConnectionClosed {
    this.#lost.add(reason);
    return new ConnectionClosed({ code: 1013, reason: "NATS has not confirmed a message." });
  }

  /** Waits `timeout` milliseconds at the most until all is confirmed, and gives up what is not. */
  async close(timeout: number): Promise<void> {
    const end = performance.now() + timeout;
    while (this.waiting.bytes > 0 && performance.now() < end) {
      await deadline(this.#confirmed.promise, end - performance.now()).catch(() => {});
    }
    this.#closing.abort();
    while (this.waiting.bytes > 0) await this.#confirmed.promise;
    this.#lost.report();
  }
}
