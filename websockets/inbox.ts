// What has arrived and was not read yet, and the read that waits for the next message.

import { bytesOf, type Message } from "./message.ts";

/** Bytes that a message takes beside its content while it waits to be read. */
const UNREAD_COST = 200;

/** A read, as `for await` does it: a message, or `done` at the end. */
export type Read = IteratorResult<Message, undefined>;

const END: Read = { done: true, value: undefined };

/** The messages of one connection, from their arrival until they are read. */
export class Inbox {
  readonly #countUnread: (bytes: number) => void;
  #arrived: Message[] = [];
  /** What has arrived before that, with the oldest at the end: an array is slow to lose its first. */
  #unread: Message[] = [];
  #bytes = 0;
  /** The read that waits, and what settles it. */
  #read: Promise<Read> | undefined;
  #settle: ((read: Read | Promise<never>) => void) | undefined;
  #isEnded = false;
  /** What a read throws at the end. */
  #loss: Error | undefined;

  /** @param countUnread Told how many more bytes wait to be read; fewer if negative. */
  constructor(countUnread: (bytes: number) => void) {
    this.#countUnread = countUnread;
  }

  /** Whether nothing more arrives. */
  get isEnded(): boolean {
    return this.#isEnded;
  }

  /** Whether a read waits for the next message. */
  get isAwaited(): boolean {
    return this.#settle !== undefined;
  }

  /** Gives a message to the read that waits for it, or keeps it for the next one. */
  put(message: Message): void {
    const settle = this.#takeRead();
    if (settle) return settle({ done: false, value: message });
    this.#arrived.push(message);
    this.#count(bytesOf(message) + UNREAD_COST);
  }

  /**
   * The next message, or the end when all is read that has arrived.
   *
   * @throws {Error} if another read waits already.
   */
  next(): Promise<Read> {
    if (this.#settle) {
      const mistake = "Another call waits for the next message already: await that one first.";
      return Promise.reject(new Error(mistake));
    }
    const value = this.#take();
    if (value !== undefined) return Promise.resolve({ done: false, value });
    if (this.#loss) return Promise.reject(this.#loss);
    if (this.#isEnded) return Promise.resolve(END);
    return this.#read = new Promise((resolve) => this.#settle = resolve);
  }

  /** Gives up a read if it still waits, so that the next message goes to the next read. */
  withdraw(read: Promise<Read> | undefined): void {
    if (read === this.#read) this.#takeRead()?.(END);
  }

  /** Lets nothing more in. Reads end when all is read: with `loss`, if there is one. */
  end(loss?: Error): void {
    this.#isEnded = true;
    this.#loss = loss;
    this.#takeRead()?.(loss ? Promise.reject(loss) : END);
  }

  /** Forgets what was not read. */
  discard(): void {
    this.#arrived = [];
    this.#unread = [];
    this.#count(-this.#bytes);
  }

  #take(): Message | undefined {
    if (this.#unread.length === 0 && this.#arrived.length > 0) {
      this.#unread = this.#arrived.reverse();
      this.#arrived = [];
    }
    const message = this.#unread.pop();
    if (message !== undefined) this.#count(-bytesOf(message) - UNREAD_COST);
    return message;
  }

  #takeRead() {
    const settle = this.#settle;
    this.#read = this.#settle = undefined;
    return settle;
  }

  #count(bytes: number) {
    this.#bytes += bytes;
    this.#countUnread(bytes);
  }
}
