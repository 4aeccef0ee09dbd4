// What waits for one client. The runtime is handed more as soon as the client takes it: on the next
// `send`, on the next message of the client, and at the latest on a tick of the budget.

import type { Budget } from "./budget.ts";
import type { Close } from "./close_codes.ts";
import { handled } from "./connection_closed.ts";
import { Handed } from "./handed.ts";
import { bytesOf, type Content } from "./message.ts";
import type { BudgetClient, WaitingMessage } from "./waiting.ts";

const DONE = Promise.resolve();

/** What waits for one client, in the order in which it was sent. */
export class Outbox implements BudgetClient {
  readonly socket: WebSocket;
  readonly budget: Budget;
  /** What the runtime was not handed yet. */
  queue: WaitingMessage[] = [];
  readonly #handed: Handed;
  /** Bytes that the client has sent, and its handler has not taken yet. */
  unread = 0;
  /** When the client last took something, on the clock of the budget. */
  takenAt = 0;
  #isEnded = false;
  /** Done when the runtime was handed all that waits for this client. */
  #drained: PromiseWithResolvers<void> | undefined;
  /** What `send` returns when nothing can be sent any more. */
  #refusal?: Promise<never>;
  /** When the client has last sent something, in milliseconds. */
  heardAt: number = -Infinity;

  /** Set as soon as the client is to be closed. It is sent nothing more. */
  closing?: Close;
  /** Told when this side gives the client up: it is dropped, or it does not answer. */
  onLoss?: (close: Close, isDropped: boolean) => void;

  constructor(socket: WebSocket, budget: Budget) {
    this.socket = socket;
    this.budget = budget;
    this.#handed = new Handed(socket, budget);
    budget.clients.add(this);
  }

  /** Bytes that the runtime holds for this client, with what it takes for each message. */
  get handed(): number {
    return this.#handed.bytes;
  }

  /** Whether the connection is open. If it is not, the runtime may not have told its end yet. */
  get isOpen(): boolean {
    return this.socket.readyState === WebSocket.OPEN;
  }

  /** Whether more can be handed over soon. */
  get isEager(): boolean {
    return (this.queue.length > 0 || this.closing !== undefined) && this.isOpen;
  }

  /** Whether the client has to take something, or to answer a Close frame. */
  get isDue(): boolean {
    if (this.#isEnded) return false;
    return this.handed > 0 || this.queue.length > 0 || this.closing !== undefined;
  }

  /** Done when the runtime was handed all that waits for this client. Nobody has to await it. */
  send(content: Content): Promise<void> {
    if (this.#refusal) return this.#refusal;
    if (this.queue.length > 0) this.handOver();
    if (this.isOpen) {
      const bytes = bytesOf(content);
      if (this.queue.length === 0 && this.#fits(bytes)) {
        this.#hand(content, bytes);
        return DONE;
      }
      this.queue.push(this.budget.enqueue(content));
      this.budget.schedule(this, true);
      this.budget.enforce();
      // This client may be the one that was dropped.
      if (this.#refusal) return this.#refusal;
    }
    this.#drained ??= Promise.withResolvers();
    return this.#drained.promise;
  }

  /** Lets nobody send any more: each `send` returns `refusal`, and those that wait get it as well. */
  refuse(refusal: Promise<never>): void {
    this.#refusal = refusal;
    if (!this.#drained) return;
    handled(this.#drained.promise);
    this.#drained.resolve(refusal);
  }

  /** Called when the client has sent something: it is there, and may have taken something as well. */
  hear(): void {
    this.heardAt = performance.now();
    if (this.isEager) this.handOver();
  }

  /** Sends a Close frame when all that waits is taken: in the runtime, it could wait for ever. */
  close(closing: Close): void {
    if (this.closing) return;
    this.closing = closing;
    this.budget.schedule(this, true);
    this.takenAt = this.budget.clock;
    this.handOver();
  }

  /** Forgets what waits, and whatever the client does from now on. */
  end(closing: Close): void {
    if (this.#isEnded) return;
    this.closing ??= closing;
    for (const message of this.queue) this.budget.countClients(message, -1);
    this.queue = [];
    this.#handed.forget();
    this.budget.clients.delete(this);
    this.#isEnded = true;
    this.budget.release(this);
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
    if (this.unread === 0 && bytes > 0) this.budget.schedule(this, false);
    this.unread += bytes;
    this.budget.count(bytes);
    if (this.#isEnded) this.budget.release(this);
    if (bytes > 0) this.budget.enforce();
  }

  /** Hands over what comes next, as far as there is room for it. */
  handOver(): void {
    this.measure();
    if (!this.isOpen) return;
    let count = 0;
    for (const message of this.queue) {
      if (!this.#fits(message.bytes.length)) break;
      this.#hand(this.budget.messages.contentOf(message), message.bytes.length);
      this.budget.countClients(message, -1);
      count++;
    }
    this.queue.splice(0, count);
    if (this.queue.length === 0) {
      this.#drained?.resolve();
      this.#drained = undefined;
      if (this.handed === 0) this.#sendClose();
    } else if (this.handed === 0) {
      // A client that waits for its turn is not late.
      this.takenAt = this.budget.clock;
    }
  }

  /** Finds out how much the client has taken. */
  measure(): void {
    if (this.#handed.measure()) this.takenAt = this.budget.clock;
  }

  #fits(bytes: number): boolean {
    if (this.budget.hasRoom(this.handed, bytes)) return true;
    // A loop that awaits `send` of empty messages waits here, so that others have their turn.
    if (this.#handed.isEmpty) return false;
    this.measure();
    this.budget.measureAll();
    return this.budget.hasRoom(this.handed, bytes);
  }

  #hand(content: Content, bytes: number) {
    if (this.handed === 0) {
      this.budget.schedule(this, false);
      this.takenAt = this.budget.clock;
    }
    this.#handed.add(content, bytes);
  }

  #sendClose() {
    if (this.closing && this.isOpen) this.socket.close(this.closing.code, this.closing.reason);
  }
}
