// A connection, as a handler and a client see it: what arrives is read with `for await`.

import { type Close, cutReason, isNormal, isSendable } from "./close_codes.ts";
import { ConnectionClosed, handled } from "./connection_closed.ts";
import { Inbox } from "./inbox.ts";
import type { Log } from "./log.ts";
import { contentOf, type Message, type Sendable } from "./message.ts";
import type { Outbox } from "./outbox.ts";

/** What all connections of a server have in common. */
export interface ConnectionOptions {
  /** Bytes of the largest message that is taken. */
  maxMessage: number;
  /** Whether this is the client's end: it reads on while it closes, until the server has closed. */
  isClient: boolean;
  /** Told why this side has given up the other one. */
  log?: Log;
}

/** A connection, for both of its ends. `serve` and `connect` make it. */
export class Connection implements AsyncIterable<Message, undefined>, AsyncDisposable {
  /** How the connection was closed, as soon as it is. This promise never rejects. */
  readonly closed: Promise<Close>;
  readonly #resolveClosed: (close: Close) => void;
  readonly #outbox: Outbox;
  readonly #inbox: Inbox;
  readonly #options: ConnectionOptions;
  /** Why nothing can be sent any more. */
  #end?: ConnectionClosed;
  /** Why nothing more arrives: after its own `close`, a client reads until the server has answered. */
  #readEnd?: ConnectionClosed;
  #abort?: AbortController;

  /** The IP address of the client, or the host of the server. */
  readonly remoteAddress: string;
  readonly #subprotocol: string | undefined;

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
    this.#inbox = new Inbox((bytes) => outbox.countUnread(bytes));
    const { promise, resolve } = Promise.withResolvers<Close>();
    this.closed = promise;
    this.#resolveClosed = resolve;
    outbox.onLoss = (close, isDropped) => this.#giveUp(close, isDropped);
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
   * Aborts as soon as `send` begins to reject, with the same `ConnectionClosed` as its reason: for
   * timers, requests and writers beside the loop. What has arrived may still be read.
   */
  get signal(): AbortSignal {
    this.#abort ??= new AbortController();
    if (this.#end) this.#abort.abort(this.#end);
    return this.#abort.signal;
  }

  /**
   * The next message, in the order in which they were sent. A rejection that nobody awaits harms
   * nobody.
   *
   * @param options.signal Gives this call up when it aborts. No message is lost: the next call gets it.
   * @throws {ConnectionClosed} when the connection is closed, and all that came before is read.
   * @throws {Error} if another call is waiting for the next message already.
   * @throws the reason of `signal`.
   */
  receive({ signal }: { signal?: AbortSignal } = {}): Promise<Message> {
    const isMistake = this.#inbox.isAwaited;
    const received = this.#receive(signal);
    return isMistake ? received : handled(received);
  }

  /**
   * Reads one message after the other. It ends when the connection was closed with 1000, 1001 or
   * without a code, and throws `ConnectionClosed` after every other end.
   */
  [Symbol.asyncIterator](): AsyncIterator<Message, undefined> {
    let read: ReturnType<Inbox["next"]> | undefined;
    return {
      next: () => read = this.#inbox.next(),
      return: () => {
        this.#inbox.withdraw(read);
        return Promise.resolve({ done: true, value: undefined });
      },
    };
  }

  /**
   * Sends a text or binary message. Messages arrive in the order in which they were sent.
   *
   * @returns Done when the runtime has taken all that was sent. A handler that waits for it sends at
   * the pace of the reader. A broadcast does not wait, and leaves slow readers to the limits of the
   * server. It rejects with `ConnectionClosed` when the connection is closed or closing; a rejection
   * that nobody awaits harms nobody.
   * @throws {TypeError} if `message` is neither a string, nor an ArrayBuffer, nor a view of one.
   */
  send(message: Sendable): Promise<void> {
    return this.#outbox.send(contentOf(message));
  }

  /**
   * Closes the connection as soon as all is taken that was sent before. From now on `send` rejects.
   * A server forgets what the client has sent and nobody has read. A client reads on until the server
   * has closed as well.
   *
   * @param code 1000, or another code that may be sent (RFC 6455 section 7.4).
   * @param reason A text for people. It is cut to 123 bytes.
   * @returns Done when the other end has closed as well: how. It never rejects.
   * @throws {RangeError} if the code may not be sent.
   */
  close(code = 1000, reason = ""): Promise<Close> {
    const { isClient } = this.#options;
    if (!isSendable(code, isClient)) {
      throw new RangeError(`The close code ${code} may not be sent: use 1000, or 3000 to 4999.`);
    }
    const close = { code, reason: cutReason(reason) };
    this.#stopSending(close);
    if (!isClient) {
      this.#inbox.discard();
      this.#stopReading(close);
    }
    this.#outbox.close(close);
    return this.closed;
  }

  /** Closes with 1000, and waits until the other end has closed as well. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #receive(signal?: AbortSignal): Promise<Message> {
    signal?.throwIfAborted();
    const read = this.#inbox.next();
    const giveUp = () => this.#inbox.withdraw(read);
    signal?.addEventListener("abort", giveUp);
    try {
      const { done, value } = await read;
      if (!done) return value;
    } finally {
      signal?.removeEventListener("abort", giveUp);
    }
    signal?.throwIfAborted();
    throw this.#readEnd;
  }

  #arrive(message: Message) {
    if (this.#inbox.isEnded) return;
    const { maxMessage } = this.#options;
    if (isLarger(message, maxMessage)) {
      const close = { code: 1009, reason: `Larger than ${maxMessage} bytes.` };
      this.#stopSending(close);
      this.#stopReading(close);
      return this.#outbox.close(close);
    }
    this.#outbox.hear();
    this.#inbox.put(message);
  }

  #giveUp(close: Close, isDropped: boolean) {
    // What a dropped client has sent is freed. What a lost client has sent is still read.
    if (isDropped) this.#inbox.discard();
    this.#finish(close, true);
    this.#outbox.budget.dropped++;
    const line = `Dropped a client. ${close.reason || "It did not answer the Close frame."}`;
    // A log may send something, and that must not change which client is dropped next.
    queueMicrotask(() => this.#options.log?.(line));
  }

  #finish({ code, reason }: Close, wasClean: boolean) {
    // A client that has not answered a ping has 1001 in the runtime, and its end was not clean.
    const close = { code: wasClean ? code : 1006, reason };
    this.#stopSending(close);
    this.#stopReading(close);
    this.#outbox.end(close);
    this.#resolveClosed(close);
  }

  #stopSending(close: Close) {
    if (this.#end) return;
    this.#end = new ConnectionClosed(close);
    this.#outbox.refuse(handled(Promise.reject(this.#end)));
    this.#abort?.abort(this.#end);
  }

  #stopReading(close: Close) {
    if (this.#inbox.isEnded) return;
    this.#readEnd = this.#end?.code === close.code ? this.#end : new ConnectionClosed(close);
    this.#inbox.end(isNormal(close) ? undefined : this.#readEnd);
  }
}

/** Whether a message has more than `limit` bytes. Text is encoded only where that is in doubt. */
function isLarger(message: Message, limit: number): boolean {
  if (typeof message !== "string") return message.byteLength > limit;
  return message.length * 3 > limit && new TextEncoder().encode(message).length > limit;
}
