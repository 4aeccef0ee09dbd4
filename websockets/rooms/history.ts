// What was said last in a room, for those that come back after a loss. It knows no sockets.

import { type Content, copyOf, type Message } from "../message.ts";
import { MESSAGE_COST } from "../waiting.ts";

/** Characters of a position, at the most. */
export const MAX_POSITION = 40;

/** A message that is kept. */
interface Kept {
  number: number;
  /** The message with its position, as followers get it. */
  bytes: Uint8Array<ArrayBuffer>;
  isText: boolean;
  next: Kept | undefined;
}

/**
 * The last messages of one room, up to a number of bytes. A position is the epoch of the history and
 * the number of a message, such as `k3x9.17`. It is no secret.
 */
export class History {
  /** Bytes that are kept at the most. With 0, messages are only numbered. */
  maxBytes = 0;
  readonly #epoch: string;
  readonly #count: (bytes: number) => void;
  readonly #isDense: boolean;
  /** The number of the last message. */
  #last: number;
  /** The number of the last message that is gone: each one after it is kept. */
  #gone: number;
  #bytes = 0;
  #oldest: Kept | undefined;
  #newest: Kept | undefined;

  /**
   * @param epoch What no other history has. It is short, and has letters, digits, `_` and `-`.
   * @param count Told how many more bytes are kept; fewer if negative.
   * @param start The number after which all messages are added, each with a number of its own. Without
   * it, each gets the next number.
   */
  constructor(epoch: string, count: (bytes: number) => void, start?: number) {
    this.#epoch = epoch;
    this.#count = count;
    this.#isDense = start === undefined;
    this.#last = this.#gone = start ?? 0;
  }

  /** Bytes that are kept, with what each message takes beside its content. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The position of the last message. */
  get position(): string {
    return this.#positionOf(this.#last);
  }

  /**
   * Numbers a message, and keeps it.
   *
   * @returns The message with its position, for all followers; `undefined` if nothing is to be kept.
   * @throws {RangeError} if `number` is not over that of the last one.
   */
  add(message: Message, number: number = this.#last + 1): Content | undefined {
    if (!Number.isSafeInteger(number) || number <= this.#last) {
      throw new RangeError(`${number} is no number after ${this.#last}.`);
    }
    this.#last = number;
    if (this.maxBytes === 0) {
      this.#gone = number;
      return undefined;
    }
    const content = join(this.position, message);
    const isText = typeof content === "string";
    this.#keep({ number, bytes: isText ? copyOf(content) : content, isText, next: undefined });
    return content;
  }

  /**
   * What a follower is sent when it comes: the position from which it goes on, and then what it has
   * missed. Behind the position, `lost 12` says how many messages are gone, or `lost` that nobody knows
   * how many: then all that is kept follows. `missed 3` says how many come now.
   *
   * @param after The position that it had, of which nothing is believed; "" if it had none.
   */
  replay(after: string): Content[] {
    const known = after === "" ? this.#last : this.#numberOf(after);
    const from = Math.max(known ?? 0, this.#gone);
    const lost = known === from
      ? ""
      : known !== undefined && this.#isDense
      ? ` lost ${from - known}`
      : " lost";
    const missed: Content[] = [];
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    for (let kept = this.#oldest; kept; kept = kept.next) {
      if (kept.number > from) missed.push(kept.isText ? decoder.decode(kept.bytes) : kept.bytes);
    }
    const count = missed.length > 0 ? ` missed ${missed.length}` : "";
    return [this.#positionOf(from) + lost + count, ...missed];
  }

  /** Forgets all messages, but not how many they were. */
  clear(): void {
    const bytes = this.#bytes;
    this.#gone = this.#last;
    this.#oldest = this.#newest = undefined;
    this.#bytes = 0;
    this.#count(-bytes);
  }

  #keep(kept: Kept) {
    const before = this.#bytes;
    if (this.#newest) this.#newest.next = kept;
    this.#oldest ??= kept;
    this.#newest = kept;
    this.#bytes += costOf(kept);
    while (this.#oldest && this.#bytes > this.maxBytes) this.#forget(this.#oldest);
    // Where too much waits, this calls `clear`.
    this.#count(this.#bytes - before);
  }

  #forget(oldest: Kept) {
    this.#bytes -= costOf(oldest);
    this.#gone = oldest.number;
    this.#oldest = oldest.next;
    if (!oldest.next) this.#newest = undefined;
    // An old object that nobody holds would keep young ones in memory for long.
    oldest.next = undefined;
  }

  #positionOf(number: number): string {
    return `${this.#epoch}.${number}`;
  }

  /** The number of a position of this history, or `undefined` for all else that a peer may say. */
  #numberOf(position: string): number | undefined {
    if (position.length > MAX_POSITION || !position.startsWith(`${this.#epoch}.`)) return undefined;
    const written = position.slice(this.#epoch.length + 1);
    const number = Number(written);
    // No other way to write it is one of ours, such as 1e3 or 007.
    if (`${number}` !== written || !Number.isSafeInteger(number)) return undefined;
    return number >= 0 && number <= this.#last ? number : undefined;
  }
}

/** Bytes that a message takes while it is kept. */
function costOf({ bytes }: Kept): number {
  return bytes.length + MESSAGE_COST;
}

/** A message with its position and a newline before it, in a text or in bytes. */
function join(position: string, message: Message): string | Uint8Array<ArrayBuffer> {
  if (typeof message === "string") return `${position}\n${message}`;
  const head = new TextEncoder().encode(`${position}\n`);
  const joined = new Uint8Array(head.length + message.byteLength);
  joined.set(head);
  joined.set(new Uint8Array(message), head.length);
  return joined;
}
