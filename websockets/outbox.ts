// What waits for one client. The runtime is handed more as soon as the client takes it: on the next
// `send`, on the next message of the client, and at the latest on a look of the clock.

import type { Close } from "./close_codes.ts";
import { bytesOf, type Sendable, type WaitingMessage } from "./sendable.ts";
import type { Waiting } from "./waiting.ts";

/** Bytes that the runtime takes for a message, beside its content. */
const HANDED_COST = 1024;
/** Bytes that the kernel may take for a client that reads nothing. */
const KERNEL = 8 * 1024 ** 2;
/** Milliseconds without taking anything after which a client is stuck, whatever its timeout. */
const PATIENCE = 15_000;
/** Milliseconds in which a handler sends what a message of its client makes it send. */
const CAUSE_INTERVAL = 2_000;
const DONE = Promise.resolve();

/** What waits for one client, in the order in which it was sent. */
export class Outbox {
  /** What the runtime was not handed yet. */
  queue: WaitingMessage[] = [];
  /** Bytes that the runtime holds for this client, with what it takes for each message. */
  handed = 0;
  /** The same without what it takes for each message, as `bufferedAmount` counts. */
  #content = 0;
  /** Bytes that the client has sent, and its handler has not taken yet. */
  unread = 0;
  /** When the client last took something, on the clock of `Waiting`. */
  takenAt = 0;
  /** Bytes that it took while more was waiting. Those that the kernel can have taken don't last. */
  #taken = 0;
  #isEnded = false;
  /** Done when the runtime was handed all that waits for this client. */
  #drained?: PromiseWithResolvers<void>;
  /** What `send` returns when nothing can be sent any more. */
  #refusal?: Promise<never>;
  /** When the client has last sent something, in milliseconds. */
  #heardAt = -Infinity;

  /** Set as soon as the client is to be closed. It is sent nothing more. */
  closing?: Close;
  /** Told when this side gives the client up: it is dropped, or it does not answer. */
  onLoss?: (close: Close, isDropped: boolean) => void;

  constructor(readonly socket: WebSocket, readonly waiting: Waiting) {
    waiting.clients.add(this);
  }

  /** Whether the connection is open as far as the runtime knows, which may not have told its end yet. */
  get isOpen(): boolean {
    return this.socket.readyState === WebSocket.OPEN;
  }

  /** Whether this is to be looked at soon. */
  get isEager(): boolean {
    return (this.queue.length > 0 || this.closing !== undefined) && this.isOpen;
  }

  /** Whether what is sent just now is sent because of what the client has just said. */
  get isCause(): boolean {
    return this.closing === undefined && performance.now() - this.#heardAt < CAUSE_INTERVAL;
  }

  /** Whether the client has to take something, or to answer a Close frame. */
  get isDue(): boolean {
    if (this.#isEnded) return false;
    return this.handed > 0 || this.queue.length > 0 || this.closing !== undefined;
  }

  /** Whether the client has taken nothing for long. */
  get isStuck(): boolean {
    const { clock, timeout } = this.waiting;
    return this.handed > 0 && clock - this.takenAt > Math.min(PATIENCE, timeout / 2);
  }

  /** Whether the client takes nothing, at least not this, which most others have taken. */
  isStuckWith({ clients }: WaitingMessage): boolean {
    return this.isStuck || this.#taken === 0 && clients * 2 <= this.waiting.clients.size;
  }

  /** Done when the runtime was handed all that waits for this client. Nobody has to await it. */
  send(data: Sendable): Promise<void> {
    if (this.#refusal) return this.#refusal;
    if (this.queue.length > 0) this.handOver();
    if (this.isOpen) {
      if (this.queue.length === 0 && this.#fits(bytesOf(data))) {
        this.#hand(data);
        return DONE;
      }
      if (this.queue.length === 0 && this.#taken < KERNEL) this.#taken = 0;
      this.queue.push(this.waiting.keep(data));
      this.waiting.watch(this, true);
      this.waiting.relieve();
      // It may have been this client that had to go.
      if (this.#refusal) return this.#refusal;
    }
    if (!this.#drained) {
      this.#drained = Promise.withResolvers();
      this.#drained.promise.catch(() => {});
    }
    return this.#drained.promise;
  }

  /** Lets nobody send any more: `refusal` rejects, also for those who wait. */
  refuse(refusal: Promise<never>): void {
    this.#refusal = refusal;
    this.#drained?.resolve(refusal);
  }

  /** Called when the client has sent something: it is there, and may have taken something as well. */
  hear(): void {
    this.#heardAt = performance.now();
    if (this.isEager) this.handOver();
  }

  /** Sends a Close frame when all is taken that waits. The runtime's own would lose sight of it. */
  close(closing: Close): void {
    if (this.closing) return;
    this.closing = closing;
    this.waiting.watch(this, true);
    this.takenAt = this.waiting.clock;
    this.handOver();
  }

  /** Forgets what waits, and whatever the client does from now on. */
  end(closing: Close): void {
    if (this.#isEnded) return;
    this.closing ??= closing;
    for (const message of this.queue) this.waiting.countClients(message, -1);
    this.queue = [];
    this.waiting.bytes -= this.handed;
    this.handed = 0;
    this.waiting.clients.delete(this);
    this.#isEnded = true;
    this.waiting.forget(this);
    this.#sendClose();
  }

  /** Drops the client, which is told if it reads again. */
  drop(reason: string): void {
    this.onLoss?.({ code: 1008, reason }, true);
  }

  /** Ends the wait for a client that takes nothing, or does not answer the Close frame. */
  giveUp(): void {
    if (this.closing) this.onLoss?.({ code: 1006, reason: "" }, false);
    else this.drop("It did not read for too long.");
  }

  /** Counts what comes in, or is taken by the handler. */
  countUnread(bytes: number): void {
    if (this.unread === 0 && bytes > 0) this.waiting.watch(this, false);
    this.unread += bytes;
    this.waiting.bytes += bytes;
    if (this.#isEnded) this.waiting.forget(this);
    if (bytes > 0) this.waiting.relieve();
  }

  /** Hands over what comes next, as far as there is room for it. */
  handOver(): void {
    this.see();
    if (!this.isOpen) return;
    let count = 0;
    for (const message of this.queue) {
      if (!this.#fits(message.bytes.length)) break;
      this.#hand(this.waiting.contentOf(message));
      this.waiting.countClients(message, -1);
      count++;
    }
    if (count > 0) this.queue.splice(0, count);
    if (this.queue.length === 0) {
      this.#drained?.resolve();
      this.#drained = undefined;
      if (this.handed === 0) this.#sendClose();
    } else if (this.handed === 0) {
      // A client that waits for its turn is not late.
      this.takenAt = this.waiting.clock;
    }
  }

  /** Looks how much the client has taken. An empty message counts as taken at once. */
  see(): void {
    if (this.handed === 0) return;
    const content = this.socket.bufferedAmount;
    if (content > 0 && content === this.#content) return;
    // What the runtime takes for each message goes with its content.
    const handed = content === 0 ? 0 : Math.ceil(this.handed * content / this.#content);
    // The runtime counts the bytes of a text, and `bytesOf` its characters: it may hold more.
    if (content < this.#content) {
      this.takenAt = this.waiting.clock;
      if (this.queue.length > 0) this.#taken += this.handed - handed;
    }
    this.waiting.bytes -= this.handed - handed;
    this.handed = handed;
    this.#content = content;
  }

  #fits(bytes: number): boolean {
    if (this.waiting.hasRoom(this.handed, bytes)) return true;
    // Nothing tells when an empty message is taken: a loop that awaits `send` leaves its turn here.
    if (this.handed > 0 && this.#content === 0) return false;
    this.see();
    this.waiting.seeAll();
    return this.waiting.hasRoom(this.handed, bytes);
  }

  #hand(data: Sendable) {
    this.socket.send(data);
    if (this.handed === 0) {
      this.waiting.watch(this, false);
      this.takenAt = this.waiting.clock;
    }
    const bytes = bytesOf(data);
    this.#content += bytes;
    this.handed += bytes + HANDED_COST;
    this.waiting.hand(bytes + HANDED_COST);
  }

  #sendClose() {
    if (this.closing && this.isOpen) this.socket.close(this.closing.code, this.closing.reason);
  }
}
