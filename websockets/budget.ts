// What waits for all clients of a server: the one place that keeps the accounts, and the clock.
//
// The runtime queues without end what a client does not take, and can't be made to forget it. So it
// is handed a bounded amount, and all else waits here.

import { getHeapStatistics } from "node:v8";
import { chooseEvictions, READ_INTERVAL } from "./eviction.ts";
import type { Content } from "./message.ts";
import { type BudgetClient, costOf, type WaitingMessage, WaitingMessages } from "./waiting.ts";

const { heap_size_limit } = getHeapStatistics();
/** Bytes that may wait for all clients together: 1 GiB, or less where V8 could not hold that. */
export const MAX_WAITING: number = Math.min(1024 ** 3, Math.floor(heap_size_limit / 4));
/** Bytes that the runtime is handed for all clients that take it: enough for many fast ones. */
const MAX_HANDED = 64 * 1024 ** 2;
/** The part of the rest of `MAX_HANDED` that one client is handed: 8 MiB, or less if many wait. */
const SHARE = 1 / 8;
/** Milliseconds until the next tick where a client may take more soon. */
const SHORT_TICK = 1;
/** Milliseconds between ticks for all others for which something waits. */
const LONG_TICK = 500;
/** Milliseconds that a tick may be late on a busy system. If it is later, the process stood still. */
const MAX_LATENESS = 50;
/** The part of the budget that may wait beyond it before a client that is not to blame has to go. */
const TOLERANCE = 1 / 4;

/** The memory of a server, and its clock. */
export class Budget {
  /** How many bytes may wait. */
  readonly maxBytes: number;
  /** Milliseconds in which a client must take something, or answer a Close frame. */
  timeout: number;
  /** Milliseconds in which something waited, without those in which the process was stopped. */
  clock = 0;
  /** How many clients were dropped. */
  dropped = 0;
  /** The clients that have not left. */
  readonly clients: Set<BudgetClient> = new Set();
  /** The messages that wait for them. */
  readonly messages: WaitingMessages = new WaitingMessages();
  /** Each is called before a client has to go, to free so many bytes for which nobody waits. */
  readonly reclaim: Set<(bytes: number) => void> = new Set();
  /** The clients for or from which something waits, or which are being closed. */
  readonly #busy = new Set<BudgetClient>();
  /** The clients that have left, and whose handlers may still read what came before. */
  readonly #left = new Set<BudgetClient>();
  #bytes = 0;
  /** Bytes that the runtime was handed for clients that take it. */
  #handed = 0;
  /** With more bytes than this, the next client has to go. */
  #limit = 0;
  /** When, on the clock, this limit is checked again, although no more waits. */
  #lookAgainAt = 0;
  #tickedAt = 0;
  /** When `measureAll` is due again. */
  #measureAt = 0;
  #pause = Infinity;
  #timer?: ReturnType<typeof setTimeout>;

  constructor(maxBytes: number, timeout: number) {
    this.maxBytes = maxBytes;
    this.timeout = timeout;
  }

  /** Bytes that wait: for the handlers to take, for the runtime, and in the runtime. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Whether nobody else may make anything wait. */
  get isFull(): boolean {
    return this.#bytes > this.maxBytes;
  }

  /**
   * Counts bytes that wait; fewer if negative.
   *
   * @throws {RangeError} for what is no whole number: it would spoil the account for ever.
   */
  count(bytes: number): void {
    if (!Number.isSafeInteger(bytes)) throw new RangeError(`${bytes} is no number of bytes.`);
    this.#bytes += bytes;
  }

  /** Counts bytes that the runtime was handed. */
  countHanded(bytes: number): void {
    this.#handed += bytes;
    this.count(bytes);
  }

  /** Counts that a message waits for this many more clients; for fewer if negative. */
  countClients(message: WaitingMessage, clients: number): void {
    const before = costOf(message);
    message.clients += clients;
    this.count(costOf(message) - before);
  }

  /** Whether the runtime, which holds `handed` bytes for a client, may be handed a message. */
  hasRoom(handed: number, bytes: number): boolean {
    const room = Math.min(MAX_HANDED, this.maxBytes / 4) - this.#handed;
    // A message that is larger than a share is handed over when the runtime holds nothing for its
    // client.
    return handed === 0 ? room > 0 : handed + bytes <= room * SHARE;
  }

  /** Turns what is sent into a message that waits for one more client. */
  enqueue(content: Content): WaitingMessage {
    const message = this.messages.keep(content, this.clock);
    this.countClients(message, 1);
    return message;
  }

  /** Measures a client until nothing waits for it: soon if it is eager. */
  schedule(client: BudgetClient, isEager: boolean): void {
    if (this.#busy.size === 0) this.#tickedAt = performance.now();
    if (!this.#busy.has(client)) client.takenAt = this.clock;
    this.#busy.add(client);
    this.#tickWithin(isEager ? SHORT_TICK : LONG_TICK);
  }

  /** Stops measuring a client. */
  release(client: BudgetClient): void {
    this.#busy.delete(client);
    if (client.unread > 0) this.#left.add(client);
    else this.#left.delete(client);
    if (this.#busy.size > 0) return;
    clearTimeout(this.#timer);
    this.#pause = Infinity;
    this.#handed = 0;
    this.messages.forget();
  }

  /**
   * Closes clients that the runtime is closing, because they have not answered its ping. The runtime's
   * Close frame waits for ever if the system takes nothing more for a client, and it tells nobody.
   */
  closeLost(): void {
    for (const client of this.clients) if (!client.isOpen) client.close({ code: 1001, reason: "" });
  }

  /** Measures how much all clients have taken, if that was not done just now. */
  measureAll(): void {
    const now = performance.now();
    if (now < this.#measureAt) return;
    // While the process stands still, no client can take anything, and no tick comes.
    this.clock += Math.min(now - this.#tickedAt, this.#pause + MAX_LATENESS, READ_INTERVAL / 2);
    this.#tickedAt = now;
    this.#handed = 0;
    for (const client of this.#busy) {
      client.measure();
      // What the runtime holds for clients that take nothing must not keep the others waiting.
      if (this.clock - client.takenAt < READ_INTERVAL) this.#handed += client.handed;
    }
    this.#measureAt = now + pauseAfter(now);
  }

  /**
   * Drops the clients that are to blame for most, if too much waits. The more waits, the smaller is the
   * part for which they have to be to blame. If nobody is to blame for that much, a little more may
   * wait: nobody new is let in, and the clients go on taking it.
   */
  enforce(): void {
    if (!this.isFull || this.clock >= this.#lookAgainAt) this.#limit = this.maxBytes;
    if (this.#bytes <= this.#limit) return;
    this.measureAll();
    for (const reclaim of this.reclaim) if (this.isFull) reclaim(this.#bytes - this.maxBytes);
    if (this.#bytes <= this.#limit) return;
    const room = this.maxBytes * (1 + TOLERANCE) - this.#bytes;
    const enough = Math.max(room / 4, this.maxBytes / 256);
    // What a handler sends when its client is dropped must not drop another one.
    this.#limit = Infinity;
    const clients = this.#busy.union(this.#left);
    const evictions = chooseEvictions(clients, this.clock, enough, room < 0);
    for (const { client, reason } of evictions) {
      client.drop(reason);
      if (!this.isFull) break;
    }
    // What that client has caused still waits for others, and nobody else is to be dropped for it.
    this.#limit = Math.max(this.#bytes, this.maxBytes) + enough;
    this.#lookAgainAt = evictions.length > 0 ? Infinity : this.clock + READ_INTERVAL;
  }

  #tickWithin(pause: number) {
    if (pause >= this.#pause) return;
    clearTimeout(this.#timer);
    this.#pause = pause;
    this.#timer = setTimeout(() => this.#tick(), pause);
  }

  #tick() {
    const now = performance.now();
    this.measureAll();
    this.#pause = Infinity;
    let pause = LONG_TICK;
    for (const client of [...this.#busy]) {
      if (client.isEager) {
        client.handOver();
        // A client that has had its turn comes after those that wait for one.
        if (client.handed > 0) {
          this.#busy.delete(client);
          this.#busy.add(client);
        }
      }
      // A slow client is measured less often, but soon enough for it to lose little time.
      if (client.isEager) pause = Math.min(pause, (this.clock - client.takenAt) / 4);
      if (client.isDue) {
        if (this.clock - client.takenAt >= this.timeout) client.giveUp();
      } else if (client.unread === 0) this.release(client);
    }
    this.messages.forget();
    this.enforce();
    if (this.#busy.size > 0) this.#tickWithin(Math.max(pause, pauseAfter(now)));
  }
}

/** Measuring very many clients takes a while, and must not be all that the server does. */
function pauseAfter(start: number): number {
  // If the process stood still meanwhile, the measuring itself took less time than that.
  return Math.min(LONG_TICK, Math.max(SHORT_TICK, 4 * (performance.now() - start)));
}
