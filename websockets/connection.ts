// A connection, as a handler and a client see it: what arrives is read with `for await`.

import { describeClose, sendableCode } from "./close_codes.ts";
import type { Close, Outbox } from "./outbox.ts";
import type { Log } from "./lines.ts";
import { bytesOf, type Sendable } from "./sendable.ts";

/** Bytes that RFC 6455 section 5.5.1 leaves for the reason in a Close frame. */
const MAX_REASON = 123;
/** Bytes that a message takes while it waits to be read, beside its content. */
const UNREAD_COST = 200;

/** What arrives: a text, or the bytes of a binary message. */
export type Message = string | ArrayBuffer;

/** Thrown by `receive` when the connection is closed, as in Python. */
export class ConnectionClosed extends Error implements Close {
  /** The name of this class. */
  override readonly name = "ConnectionClosed";
  /** The close code (RFC 6455 section 7.4). It is 1006 if the connection broke. */
  readonly code: number;
  /** What the other end has said about it, or "". */
  readonly reason: string;

  /** Makes an error of how a connection was closed. */
  constructor({ code, reason }: Close) {
    super(`The connection is closed: ${describeClose({ code, reason })}`);
    this.code = code;
    this.reason = reason;
  }
}

/** What all connections of a server have in common. */
export interface ConnectionOptions {
  /** Bytes of the largest message that is taken. */
  maxMessage: number;
  /** Whether to read on while it closes, until the other end has closed as well. */
  readsToTheEnd: boolean;
  /** Told why this side has given the other one up. */
  log?: Log;
}

/** A connection, for both of its ends. `serve` and `connect` make it. */
export class Connection implements AsyncIterable<Message, undefined>, AsyncDisposable {
  /** How the connection was closed, as soon as it is. This promise never rejects. */
  readonly closed: Promise<Close>;
  readonly #outbox: Outbox;
  readonly #options: ConnectionOptions;
  /** What has arrived and was not read yet. */
  #arrived: Message[] = [];
  /** What has arrived before that, with the oldest at the end: an array is slow to lose its first. */
  #unread: Message[] = [];
  /** Set when nothing more arrives. */
  #end?: Close;
  #reader?: (result: IteratorResult<Message, undefined>) => void;
  readonly #resolve: (close: Close) => void;

  /** The IP address of the client, or the host of the server. */
  readonly remoteAddress: string;
  readonly #subprotocol?: string;

  /** @ignore `serve` and `connect` call it. A client learns its subprotocol from the socket. */
  constructor(
    outbox: Outbox,
    options: ConnectionOptions,
    remoteAddress: string,
    subprotocol?: string,
  ) {
    this.#outbox = outbox;
    this.#options = options;
    this.remoteAddress = remoteAddress;
    this.#subprotocol = subprotocol;
    const { promise, resolve } = Promise.withResolvers<Close>();
    this.closed = promise;
    this.#resolve = resolve;
    outbox.onDrop = (close) => this.#drop(close);
    outbox.socket.binaryType = "arraybuffer";
    // Listeners take half a KiB less for each client than `onmessage` and the like.
    outbox.socket.addEventListener("message", ({ data }) => this.#arrive(data));
    outbox.socket.addEventListener("close", (event) => this.#finish(event, event.wasClean));
  }

  /** The subprotocol that both ends speak, or "" (RFC 6455 section 1.9). */
  get subprotocol(): string {
    return this.#subprotocol ?? this.#outbox.socket.protocol;
  }

  /**
   * The next message, in the order in which they were sent.
   *
   * @throws {ConnectionClosed} when the connection is closed, and all that came before is read.
   * @throws {Error} if another call is waiting for the next message already.
   */
  async receive(): Promise<Message> {
    const { done, value } = await this.#next();
    if (!done) return value;
    throw new ConnectionClosed(this.#end ?? { code: 1006, reason: "" });
  }

  /** Reads one message after the other, and ends when the connection is closed. */
  [Symbol.asyncIterator](): AsyncIterator<Message, undefined> {
    return { next: () => this.#next() };
  }

  /**
   * Sends a text or binary message. Messages arrive in the order in which they were sent. What is
   * sent when the connection is closed is thrown away.
   *
   * @returns Done when the runtime has taken all that was sent. A handler that waits for it sends at
   * the pace of the reader. A broadcast does not wait, and leaves slow readers to the limits of the
   * server. It never rejects.
   * @throws {TypeError} if `message` is neither a string, nor an ArrayBuffer, nor a view of one.
   */
  send(message: Sendable): Promise<void> {
    const isBinary = message instanceof ArrayBuffer || ArrayBuffer.isView(message);
    if (typeof message === "string" || isBinary) return this.#outbox.send(message);
    const type = Object.prototype.toString.call(message);
    throw new TypeError(`A message is a string or bytes, not ${type}: convert it first.`);
  }

  /**
   * Closes the connection as soon as all is taken that was sent before. A server does not read any
   * more from whom it closes; a client reads on until the server has closed as well.
   *
   * @param code 1000, or another code that may be sent (RFC 6455 section 7.4).
   * @param reason A text for people. It is cut to 123 bytes.
   * @returns Done when the other end has closed as well: how. It never rejects.
   * @throws {RangeError} if the code may not be sent.
   */
  close(code = 1000, reason = ""): Promise<Close> {
    const isClient = this.#options.readsToTheEnd;
    const close = { code: sendableCode(code, isClient), reason: cutReason(reason) };
    if (!isClient) {
      this.#discard();
      this.#stop(close);
    }
    this.#outbox.close(close);
    return this.closed;
  }

  /** Closes with 1000, and waits until the other end has closed as well. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #arrive(message: Message) {
    if (this.#end) return;
    const { maxMessage } = this.#options;
    if (isLarger(message, maxMessage)) {
      const close = { code: 1009, reason: `Larger than ${maxMessage} bytes.` };
      this.#stop(close);
      return this.#outbox.close(close);
    }
    if (this.#outbox.isEager) this.#outbox.handOver();
    const reader = this.#reader;
    this.#reader = undefined;
    if (reader) return reader({ done: false, value: message });
    this.#arrived.push(message);
    this.#outbox.countUnread(bytesOf(message) + UNREAD_COST);
    this.#outbox.waiting.relieve();
  }

  #next(): Promise<IteratorResult<Message, undefined>> {
    if (this.#unread.length === 0 && this.#arrived.length > 0) {
      this.#unread = this.#arrived.reverse();
      this.#arrived = [];
    }
    const value = this.#unread.pop();
    if (value !== undefined) {
      this.#outbox.countUnread(-bytesOf(value) - UNREAD_COST);
      return Promise.resolve({ done: false, value });
    }
    if (this.#end) return Promise.resolve({ done: true, value: undefined });
    if (this.#reader) throw new Error("Another call waits for the next message already.");
    return new Promise((resolve) => this.#reader = resolve);
  }

  #drop(close: Close) {
    this.#finish(close, false);
    const line = `Dropped a client. ${close.reason || "It did not answer the Close frame."}`;
    // A log may send something, and that must not change which client is dropped next.
    queueMicrotask(() => this.#options.log?.(line));
  }

  #finish({ code, reason }: Close, isWhole: boolean) {
    const close = { code: code || 1006, reason };
    // What arrived before a Close frame is still read. A client that broke off is past that.
    if (!isWhole) this.#discard();
    this.#stop(close);
    this.#outbox.end(close);
    this.#resolve(close);
  }

  #discard() {
    this.#arrived = [];
    this.#unread = [];
    this.#outbox.countUnread(-this.#outbox.unread);
  }

  #stop(close: Close) {
    this.#end ??= close;
    this.#reader?.({ done: true, value: undefined });
    this.#reader = undefined;
  }
}

/** Whether a message has more than `limit` bytes. Text is encoded only where that is in doubt. */
function isLarger(message: Message, limit: number): boolean {
  if (typeof message !== "string") return message.byteLength > limit;
  return message.length * 3 > limit && new TextEncoder().encode(message).length > limit;
}

function cutReason(reason: string): string {
  const text = `${reason}`.toWellFormed();
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(MAX_REASON));
  return text.slice(0, read);
}
