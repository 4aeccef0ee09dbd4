// What waits for all clients of a server, and which of them has to go when it is too much.
//
// The runtime queues without end what a client does not take, and can't be made to forget it. So it
// is handed a bounded amount, and all else waits here.

import { AsyncLocalStorage } from "node:async_hooks";
import { getHeapStatistics } from "node:v8";
import { dropOne } from "./blame.ts";
import type { Outbox } from "./outbox.ts";
import { copyOf, costOf, isCopy, type Sendable, type WaitingMessage } from "./sendable.ts";

/** Bytes that may wait for all clients together: 1 GiB, or less where V8 could not hold that. */
export const MAX_WAITING = Math.min(1024 ** 3, Math.floor(getHeapStatistics().heap_size_limit / 4));
/** Bytes that the runtime is handed for all clients that take it: enough for many fast ones. */
const MAX_HANDED = 64 * 1024 ** 2;
/** One client is handed so much of what is left of `MAX_HANDED`: 8 MiB, or less if many wait. */
const SHARE = 1 / 8;
/** Milliseconds until the next look at a client that takes what it is sent at once. */
const SHORT_LOOK = 1;
/** Milliseconds between looks at all others for which something waits. */
const LONG_LOOK = 500;
/** Milliseconds in which a client that reads takes something, even from a busy server. */
const READ_INTERVAL = 1_000;
/** How much more may wait, as a part of the budget, before one has to go that is not to blame. */
const TOLERANCE = 1 / 4;

/** The client whose handler runs just now, through every `await` of it. */
export const currentClient = new AsyncLocalStorage<Outbox>();

/** The memory of a server, and its clock. */
export class Waiting {
  /** Bytes that wait: for the handlers to take, for the runtime, and in the runtime. */
  bytes = 0;
  /** Milliseconds in which something waited, without those in which the process was stopped. */
  clock = 0;
  /** The clients that have not left. */
  readonly clients = new Set<Outbox>();
  /** The clients for or from which something waits, or which are being closed. */
  readonly #busy = new Set<Outbox>();
  /** The clients that have left, and whose handlers may still read what came before. */
  readonly #left = new Set<Outbox>();
  /** Bytes that the runtime was handed for clients that take it. */
  #handed = 0;
  readonly #maxHanded: number;
  #limit: number;
  #lookedAt = 0;
  /** When `seeAll` is due again. */
  #seeAt = 0;
  #pause = Infinity;
  #timer?: ReturnType<typeof setTimeout>;
  #last?: { data: Sendable; message: WaitingMessage };
  #decoded?: { text: string; message: WaitingMessage };

  /**
   * @param maxBytes How much may wait.
   * @param timeout Milliseconds in which a client takes something, or answers a Close frame.
   */
  constructor(readonly maxBytes: number, public timeout: number) {
    this.#limit = maxBytes;
    this.#maxHanded = Math.min(MAX_HANDED, maxBytes / 4);
  }

  /** Whether nobody else may make anything wait. */
  get isFull(): boolean {
    return this.bytes > this.maxBytes;
  }

  /** Whether the runtime, which holds `handed` bytes for a client, may be handed a message. */
  hasRoom(handed: number, bytes: number): boolean {
    const room = this.#maxHanded - this.#handed;
    // A message that is larger than a share is handed over when the runtime holds nothing for its
    // client.
    return handed === 0 ? room > 0 : handed + bytes <= room * SHARE;
  }

  /** Counts what waits elsewhere, such as for another server; less of it if negative. */
  count(bytes: number): void {
    this.bytes += bytes;
    if (bytes > 0) this.relieve();
  }

  /** Counts what the runtime was handed. */
  hand(bytes: number): void {
    this.#handed += bytes;
    this.bytes += bytes;
  }

  /** Makes of what is sent a message that waits: the same one for all to whom it is sent. */
  keep(data: Sendable): WaitingMessage {
    let message = this.#last?.message;
    if (!message || data !== this.#last?.data || !isCopy(message.bytes, data)) {
      const [bytes, isText] = [copyOf(data), typeof data === "string"];
      const cause = currentClient.getStore();
      message = { bytes, isText, clients: 0, cause: cause?.isCause ? cause : undefined };
      this.#last = { data, message };
    }
    this.countClients(message, 1);
    return message;
  }

  /** Counts that a message waits for so many clients more; for less if negative. */
  countClients(message: WaitingMessage, clients: number): void {
    this.bytes -= costOf(message);
    message.clients += clients;
    this.bytes += costOf(message);
  }

  /** What the runtime is handed of a message. A text is decoded once for all of its clients. */
  contentOf(message: WaitingMessage): Sendable {
    if (!message.isText) return message.bytes;
    if (this.#decoded?.message !== message) {
      const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(message.bytes);
      this.#decoded = { text, message };
    }
    return this.#decoded.text;
  }

  /** Looks at a client until nothing waits for it: soon if it is eager. */
  watch(outbox: Outbox, isEager: boolean): void {
    if (this.#busy.size === 0) this.#lookedAt = performance.now();
    if (!this.#busy.has(outbox)) outbox.takenAt = this.clock;
    this.#busy.add(outbox);
    this.#lookWithin(isEager ? SHORT_LOOK : LONG_LOOK);
  }

  /** Looks at a client no more. */
  forget(outbox: Outbox): void {
    this.#busy.delete(outbox);
    if (outbox.unread > 0) this.#left.add(outbox);
    else this.#left.delete(outbox);
    if (this.#busy.size > 0) return;
    clearTimeout(this.#timer);
    this.#pause = Infinity;
    this.#handed = 0;
    this.#last = this.#decoded = undefined;
  }

  /**
   * Finds clients that the runtime is closing, because they have not answered its ping. Its Close
   * frame waits for ever if the system takes nothing more for a client, and then nobody is told.
   */
  findClosing(): void {
    for (const outbox of this.clients) {
      if (!outbox.isOpen) outbox.close({ code: 1001, reason: "" });
    }
  }

  /** Looks how much all clients have taken, if that was not done just now. */
  seeAll(): void {
    const now = performance.now();
    if (now < this.#seeAt) return;
    this.#handed = 0;
    for (const outbox of this.#busy) {
      outbox.see();
      // What the runtime holds for clients that take nothing must not keep the others waiting.
      if (this.clock - outbox.takenAt < READ_INTERVAL) this.#handed += outbox.handed;
    }
    this.#seeAt = now + pauseAfter(now);
  }

  #lookWithin(pause: number) {
    if (pause >= this.#pause) return;
    clearTimeout(this.#timer);
    this.#pause = pause;
    this.#timer = setTimeout(() => this.#look(), pause);
  }

  #look() {
    const now = performance.now();
    this.clock += Math.min(now - this.#lookedAt, READ_INTERVAL / 2);
    this.#lookedAt = now;
    this.#pause = Infinity;
    this.seeAll();
    let pause = LONG_LOOK;
    for (const outbox of [...this.#busy]) {
      if (outbox.isEager) {
        outbox.handOver();
        // A client that has had its turn comes after those that wait for one.
        if (outbox.handed > 0) {
          this.#busy.delete(outbox);
          this.#busy.add(outbox);
        }
      }
      // A slow client is looked at less often, but soon enough for it to lose little time.
      if (outbox.isEager) pause = Math.min(pause, (this.clock - outbox.takenAt) / 4);
      if (outbox.isDue) {
        if (this.clock - outbox.takenAt >= this.timeout) outbox.giveUp();
      } else if (outbox.unread === 0) this.forget(outbox);
    }
    this.#last = this.#decoded = undefined;
    this.relieve();
    if (this.#busy.size > 0) this.#lookWithin(Math.max(pause, pauseAfter(now)));
  }

  /**
   * Drops the client that is to blame for most, if too much waits. The more waits, the smaller is the
   * part for which it has to be to blame. If no client is to blame for that much, a little more may
   * wait: nobody new is let in, and the clients go on taking it.
   */
  relieve(): void {
    if (!this.isFull) this.#limit = this.maxBytes;
    if (this.bytes <= this.#limit) return;
    this.seeAll();
    if (this.bytes <= this.#limit) return;
    const room = this.maxBytes * (1 + TOLERANCE) - this.bytes;
    const enough = Math.max(room / 4, this.maxBytes / 256);
    // What a handler sends when its client is dropped must not drop another one.
    this.#limit = Infinity;
    dropOne(this.#busy.union(this.#left), enough, room < 0);
    // What it has caused still waits for others, and the next one is not to be dropped for that.
    this.#limit = Math.max(this.bytes, this.maxBytes) + enough;
  }
}

/** Looking at very many clients takes a while, and must not be all that the server does. */
function pauseAfter(start: number): number {
  return Math.max(SHORT_LOOK, 4 * (performance.now() - start));
}
