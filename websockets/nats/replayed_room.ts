// A room as NATS JetStream tells it: what is stored is said at once, and what was missed is read.

import type { Msg, Subscription } from "@nats-io/nats-core/internal";
import { delay } from "@std/async";
import { handled } from "../connection_closed.ts";
import type { Message } from "../message.ts";
import type { Link } from "./link.ts";
import type { Losses, RelayedRooms } from "./rooms.ts";
import { type Kept, MAX_KEPT, numberIn, type Stored, type Stream } from "./stream.ts";

/** Milliseconds between two looks whether the clients of this server have taken what waits. */
const FULL_WAIT = 100;

/** What a room needs of its relay. */
export interface RoomSource {
  readonly link: Link;
  readonly stream: Stream;
  /** Told what is said and kept. */
  readonly rooms: RelayedRooms;
  /** Told why the stream could not be read. */
  readonly failures: Losses;
  /** Whether too much waits for the clients of this server. */
  isFull(): boolean;
}

/** What NATS has said, and the number of the message of the room before it. */
interface Said {
  stored: Stored;
  previous: number;
}

function newLook() {
  const look = Promise.withResolvers<void>();
  handled(look.promise);
  return look;
}

/** Tells each message of a room once and in order, from its creation until `close`. */
export class ReplayedRoom {
  /** Whether the server is to be told what is kept. */
  isFollowed = false;
  readonly #name: string;
  readonly #source: RoomSource;
  #subscription: Subscription | undefined;
  /** The stream that the numbers are of; "" before that is known. */
  #epoch = "";
  /** A number up to which all messages were received. */
  #heard = 0;
  /** The number of the last message that NATS said when it was stored. */
  #said = 0;
  #isLoaded = false;
  /** Whether the stream is to be read once more. */
  #isStale = false;
  /** Whether messages may have gone from the stream before they were heard. */
  #mayMiss = false;
  /** Whether the stream is being read. What is said meanwhile waits, because it comes later. */
  #isReading = false;
  readonly #early: Said[] = [];
  /** Done when the stream was read once more. */
  #next = newLook();
  #isClosed = false;

  constructor(name: string, source: RoomSource) {
    this.#name = name;
    this.#source = source;
    this.#subscribe();
  }

  #subscribe() {
    const { link, stream } = this.#source;
    if (link.isAway) return;
    this.#subscription = link.nats.subscribe(`republished.${stream.subjectOf(this.#name)}`, {
      callback: (error, message) => void (error ?? this.#hear(message)),
    });
  }

  /** Goes on when NATS is back. */
  resume(): void {
    this.#subscribe();
    this.#mayMiss = true;
    this.update();
  }

  /** Hears no more. */
  close(): void {
    this.#isClosed = true;
    this.#next.resolve();
    this.#subscription?.unsubscribe();
  }

  /**
   * Receives all that is in the stream at this moment.
   *
   * @throws {Error} if NATS does not answer. It harms nobody if nobody awaits it.
   */
  update(): Promise<void> {
    const { promise } = this.#next;
    this.#isStale = true;
    if (!this.#isReading) this.#read();
    return promise;
  }

  /** Hears what NATS has just stored. */
  #hear(republished: Msg) {
    const stored = this.#source.stream.read(republished);
    const previous = numberIn(republished.headers, "Nats-Last-Sequence");
    if (!stored || previous === undefined) return;
    if (!this.#isReading) this.#take({ stored, previous });
    else if (this.#early.length < MAX_KEPT) this.#early.push({ stored, previous });
    else this.#isStale = true;
  }

  /** Receives what was said, or reads it where something before it was not heard. */
  #take({ stored, previous }: Said) {
    const { number } = stored;
    // Another stream begins with low numbers.
    const isAnother = number <= this.#said;
    this.#said = number;
    this.#mayMiss ||= isAnother || previous > this.#heard || this.#source.isFull();
    if (this.#mayMiss) this.update();
    else if (number > this.#heard) this.#receive(stored);
  }

  #receive({ number, message }: Stored) {
    const { rooms, link } = this.#source;
    this.#heard = number;
    Promise.try(() => rooms.receive(this.#name, message, number)).catch((error) => {
      link.options.log(`A message of another server was not received. ${error}`);
    });
  }

  async #read() {
    const { link, failures } = this.#source;
    this.#isReading = true;
    while (this.#isStale && !this.#isClosed) {
      this.#isStale = false;
      const look = this.#next;
      this.#next = newLook();
      try {
        await this.#readOnce();
        look.resolve();
        // Nothing is awaited between the last look and the next message.
        for (const said of this.#early.splice(0)) this.#take(said);
      } catch (error) {
        look.reject(error);
        this.#isStale = true;
        if (link.isAway) {
          // `resume` goes on.
          this.#next.reject(error);
          this.#next = newLook();
          break;
        }
        failures.add((error as Error).message);
        await delay(link.options.reconnectWait);
      }
    }
    this.#isReading = false;
  }

  async #readOnce() {
    const { link, stream, isFull } = this.#source;
    while (isFull() && !this.#isClosed) await delay(FULL_WAIT);
    const { epoch, last } = await stream.state();
    if (epoch !== this.#epoch) this.#begin(epoch, last);
    const isLoading = this.isFollowed && !this.#isLoaded;
    const kept = await stream.readAfter(this.#name, isLoading ? 0 : this.#heard);
    if (this.#isClosed) return;
    if (kept.epoch !== epoch) return void (this.#isStale = true);
    const isMissed = this.#mayMiss && kept.start > this.#heard;
    if (isMissed) link.options.log("Messages of a room may be lost: NATS has them no more.");
    if (isLoading || isMissed && this.#isLoaded) this.#load(kept);
    for (const each of kept.messages) if (each.number > this.#heard) this.#receive(each);
    // All that was said up to then has come.
    this.#heard = Math.max(this.#heard, last);
    this.#mayMiss = false;
  }

  #begin(epoch: string, last: number) {
    // What was said before a room is entered is not for its clients. All of another stream is.
    this.#heard = this.#epoch === "" ? last : 0;
    this.#epoch = epoch;
    this.#said = 0;
    this.#early.length = 0;
    this.#isLoaded = false;
  }

  #load({ epoch, start, messages }: Kept) {
    const heard = messages.filter(({ number }) => number <= this.#heard)
      .map(({ number, message }): [number, Message] => [number, message]);
    this.#source.rooms.load?.(this.#name, { epoch, start, messages: heard });
    this.#isLoaded = true;
  }
}
