// A room as NATS JetStream tells it: what is stored is said at once, and what was missed is read.

import type { Msg, Subscription } from "@nats-io/nats-core/internal";
import { delay } from "@std/async";
import { handled } from "../connection_closed.ts";
import type { Message } from "../message.ts";
import type { Link } from "./link.ts";
import type { Losses, RelayedRooms } from "./rooms.ts";
import { MAX_KEPT, numberIn, type Stored, type Stream } from "./stream.ts";

/** Milliseconds between two checks whether the clients of this server have taken what waits. */
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

function newLook() {
  const look = Promise.withResolvers<void>();
  handled(look.promise);
  return look;
}

/** Tells each message of a room once and in order, from its creation until `close`. */
export class ReplayedRoom {
  readonly #name: string;
  readonly #source: RoomSource;
  #subscription: Subscription | undefined;
  /** Whether the rooms are to be told what is kept, too. */
  #isFollowed = false;
  /** Whether they were told that. */
  #isLoaded = false;
  /** The stream that the numbers are of; "" before that is known. */
  #epoch = "";
  /** A number up to which the rooms were told all messages. */
  #told = 0;
  /** A number up to which all messages were read or heard. */
  #end = 0;
  /** The last of these messages, until it is known what is gone before them. */
  #kept: Stored[] = [];
  /** Whether the stream is to be read once more. */
  #isStale = false;
  #isReading = false;
  /** Whether messages may have gone from the stream before they were read. */
  #mayMiss = false;
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

  /** Does what `update` does, and tells the rooms what is kept, too. */
  follow(): Promise<void> {
    if (!this.#isFollowed) {
      this.#isFollowed = true;
      this.#restart();
    }
    return this.update();
  }

  /** Hears what NATS has just stored, or reads it where something before it was not heard. */
  #hear(republished: Msg) {
    const { stream, isFull } = this.#source;
    const stored = stream.read(republished);
    const previous = numberIn(republished.headers, "Nats-Last-Sequence");
    if (!stored || previous === undefined) return;
    const isRead = stored.number <= this.#end;
    if (isRead && this.#isReading) return;
    // When nothing is being read, a low number is one of another stream.
    if (isRead || previous > this.#end || isFull()) {
      this.#mayMiss = true;
      this.update();
      return;
    }
    this.#keep(stored);
    if (!this.#isReading) this.#tell();
  }

  #keep(stored: Stored) {
    this.#end = stored.number;
    if (this.#kept.push(stored) <= MAX_KEPT) return;
    // With so many after it, NATS has the first of them no more.
    this.#kept.shift();
    this.#mayMiss = true;
  }

  #tell() {
    const { rooms, link } = this.#source;
    for (const { number, message } of this.#kept.splice(0)) {
      if (number <= this.#told) continue;
      this.#told = number;
      Promise.try(() => rooms.receive(this.#name, message, number)).catch((error) => {
        link.options.log(`A message of another server was not received. ${error}`);
      });
    }
  }

  async #read() {
    const { link, failures } = this.#source;
    this.#isReading = true;
    while (this.#isStale && !this.#isClosed) {
      this.#isStale = false;
      const look = this.#next;
      this.#next = newLook();
      try {
        await this.#readOn();
        look.resolve();
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

  async #readOn() {
    const { stream, isFull } = this.#source;
    while (isFull() && !this.#isClosed) await delay(FULL_WAIT);
    const { epoch, last } = await stream.state();
    if (epoch !== this.#epoch) {
      // What was said before the room was entered is not for its clients. All of a later stream is.
      this.#told = this.#epoch === "" ? last : 0;
      this.#epoch = epoch;
      this.#restart();
    }
    const kept = this.#kept;
    // The stream has no more than that of a room. What is stored meanwhile may be read next time.
    for (let count = 0; count < MAX_KEPT && !this.#isClosed; count++) {
      const end = this.#end;
      const stored = await stream.next(this.#name, end);
      // Something was heard meanwhile, or all is to be read.
      if (end !== this.#end) continue;
      if (!stored) break;
      this.#keep(stored);
    }
    // This is asked last, because the oldest message may have gone meanwhile. If the room has fewer
    // messages than it may have, only those are gone that were the oldest of all rooms.
    const oldest = kept.length < MAX_KEPT ? undefined : await stream.next(this.#name, 0);
    const { epoch: lastEpoch, first } = await stream.state();
    if (this.#isClosed) return;
    if (kept !== this.#kept || epoch !== lastEpoch) return void (this.#isStale = true);
    this.#tellRead(Math.max(0, (oldest?.number ?? first) - 1));
    // All that was said up to `last` has come.
    this.#told = this.#end = Math.max(this.#end, last);
    if (!this.#isStale) this.#mayMiss = false;
  }

  #restart() {
    this.#isLoaded = false;
    this.#end = this.#isFollowed ? 0 : this.#told;
    this.#kept = [];
  }

  /** Tells what was read. After `start`, nothing is gone. */
  #tellRead(start: number) {
    const { link, rooms } = this.#source;
    const isMissed = this.#mayMiss && start > this.#told;
    if (isMissed) link.options.log("Messages of a room may be lost: NATS has them no more.");
    if (this.#isFollowed && (isMissed || !this.#isLoaded)) {
      this.#told = Math.max(this.#told, start);
      const messages = this.#kept
        .filter(({ number }) => number > start && number <= this.#told)
        .map(({ number, message }): [number, Message] => [number, message]);
      rooms.load?.(this.#name, { epoch: this.#epoch, start, messages });
      this.#isLoaded = true;
    }
    this.#tell();
  }
}
