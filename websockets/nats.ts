// Rooms joined through NATS: what is said in a room of one server is heard in it on all others.
//
// Text goes to the subject `SUBJECT.<room>.text` and binary to `SUBJECT.<room>.binary`, both as
// they are, so that any program that speaks NATS can take part.

import type { NatsConnection, Subscription } from "@nats-io/nats-core/internal";
import { abortable, deadline, delay } from "@std/async";
import type { Message } from "./connection.ts";
import { unfailing, usageError } from "./lines.ts";
import { Link, type LinkOptions } from "./nats/link.ts";
import type { Server } from "./serve.ts";

/** Milliseconds that a newcomer waits at the most until its room is joined. */
const JOIN_TIMEOUT = 1_000;
/** Milliseconds between lines that count what was not taken. */
const REPORT_INTERVAL = 1_000;
/** Bytes that may wait for NATS. With more, handlers wait; while NATS is away, more is lost. */
const MAX_WAITING = 4 * 1024 ** 2;
/** Bytes that NATS is to confirm at once: a ping waits no longer than they take. */
const BATCH = 1024 ** 2;
/** Bytes that a message takes while it waits, beside its content. */
const MESSAGE_COST = 128;

/** How to reach the other servers. */
export interface RelayOptions extends LinkOptions {
  /** The NATS subject of the common room, and the beginning of that of all others. */
  subject: string;
  /** Told what is said in a room on another server. */
  receive(room: string, message: Message): void;
}

/** A room that this server has clients in. */
interface Room {
  /** How often it was entered and not left again. */
  clients: number;
  /** There is none while NATS is away. */
  subscription?: Subscription;
  /** Done when NATS has confirmed the subscription, or nobody is to wait for that any longer. */
  joined: Promise<void>;
}

/**
 * What the subjects of a room begin with. The name of the room becomes one word of it, such as
 * `a%20b`, of which `decodeURIComponent` makes the name again.
 */
export function roomSubject(subject: string, room: string): string {
  // In a subject, a dot separates words and an asterisk stands for any word.
  const word = encodeURIComponent(room).replaceAll(".", "%2E").replaceAll("*", "%2A");
  return room === "" ? subject : `${subject}.${word}`;
}

/** The way to the other servers. */
export class Relay {
  /** What waits for NATS counts in the budget of this server. Where it is full, nothing is taken. */
  server?: Server;
  readonly #rooms = new Map<string, Room>();
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** What waits for NATS. Nobody waits for one of these messages when it is `done`. */
  #waiting: { subject: string; bytes: Uint8Array; done(): void }[] = [];
  #waitingBytes = 0;
  #published = Promise.resolve();
  /** How many messages were lost since that was last told. */
  #lost = 0;
  /** How many messages of other servers were not taken since that was last told. */
  #untaken = 0;

  private constructor(private readonly link: Link, private readonly options: RelayOptions) {}

  /**
   * Joins the rooms of this server to those of all servers that use the same NATS and `subject`.
   *
   * @throws {Error} if no NATS answers, or a `usageError` if `url` or `subject` is wrong.
   * @throws {Deno.errors.NotCapable} without the permission to connect to NATS.
   */
  static async connect(given: RelayOptions): Promise<Relay> {
    const options = { ...given, log: unfailing(given.log) };
    if (!/^[^\s.*>]+(\.[^\s.*>]+)*$/.test(options.subject)) {
      throw usageError(`A NATS subject is words with dots between them, not "${options.subject}".`);
    }
    const relay = new Relay(await Link.open(options), options);
    relay.link.follow(() => relay.#comeBack(), () => relay.#lose());
    return relay;
  }

  /** Bytes of the largest message that can be published. */
  get maxMessage(): number {
    return this.link.nats?.info?.max_payload ?? Infinity;
  }

  /**
   * Hears a room until `leave` was called as often as `enter`. Done when NATS has confirmed that,
   * or after a second: the room is joined as soon as NATS answers, or is back.
   */
  async enter(name: string): Promise<void> {
    const room = this.#rooms.get(name) ?? { clients: 0, ...this.#join(name) };
    this.#rooms.set(name, room);
    room.clients++;
    await room.joined;
  }

  /** Takes one `enter` back. */
  leave(name: string): void {
    const room = this.#rooms.get(name);
    if (!room || --room.clients > 0) return;
    this.#rooms.delete(name);
    room.subscription?.unsubscribe();
  }

  #join(name: string): Omit<Room, "clients"> {
    const { nats, lost } = this.link;
    if (!nats) return { joined: Promise.resolve() };
    const subscription = nats.subscribe(`${roomSubject(this.options.subject, name)}.*`, {
      callback: (error, { subject, data }) => void (error ?? this.#receive(name, subject, data)),
    });
    const joined = deadline(nats.flush(), JOIN_TIMEOUT, { signal: lost }).catch((error: Error) => {
      if (error.name !== "TimeoutError") return;
      const room = name ? `Room ${name}` : "The common room";
      this.options.log(`${room} is not joined yet, because NATS does not answer.`);
    });
    return { subscription, joined };
  }

  #comeBack() {
    for (const [name, room] of this.#rooms) Object.assign(room, this.#join(name));
    this.#publishSoon();
  }

  /** Counts a message that NATS has refused after it was published. */
  #lose() {
    this.#lost++;
    this.#publishSoon();
  }

  #receive(name: string, subject: string, data: Uint8Array) {
    const isText = subject.endsWith(".text");
    if (!isText && !subject.endsWith(".binary")) return;
    if (this.server?.isFull) return void this.#leaveOut();
    // It is a copy, so that a handler may keep it without all that was read beside it.
    this.options.receive(name, isText ? this.#decoder.decode(data) : new Uint8Array(data).buffer);
  }

  /** Counts a message that is not taken, and tells how many they are a little later. */
  async #leaveOut() {
    if (this.#untaken++ > 0) return;
    await delay(REPORT_INTERVAL, { signal: this.link.closing.signal }).catch(() => {});
    this.options.log(`Messages of other servers not taken, too much waits: ${this.#untaken}.`);
    this.#untaken = 0;
  }

  /** Sends a message to this room of the other servers. Where much waits, this waits for NATS. */
  async publish(name: string, message: Message): Promise<void> {
    const isText = typeof message === "string";
    const subject = `${roomSubject(this.options.subject, name)}.${isText ? "text" : "binary"}`;
    const bytes = isText ? new TextEncoder().encode(message) : new Uint8Array(message);
    const size = bytes.length + MESSAGE_COST;
    const isMuch = this.#waitingBytes + size > MAX_WAITING || this.server?.isFull === true;
    const isAway = !this.link.nats || this.link.pause > 0;
    // A message that is larger than all that may wait is let through where nothing waits.
    if (isAway && isMuch && this.#waiting.length > 0) return void this.#lost++;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.push({ subject, bytes, done: resolve });
    this.#count(size);
    // All that follow are published with the first one.
    if (this.#waiting.length === 1) this.#publishSoon();
    if (isMuch && !isAway) await promise;
  }

  #count(bytes: number) {
    this.#waitingBytes += bytes;
    this.server?.countWaiting(bytes);
  }

  #publishSoon() {
    this.#published = this.#published.then(() => this.#publishWaiting());
  }

  async #publishWaiting() {
    while (this.link.nats && this.#waiting.length > 0) {
      if (this.link.pause > 0) await delay(this.link.pause);
      else await this.#publishBatch(this.link.nats);
    }
    for (const { done } of this.#waiting) done();
    if (this.link.nats) this.#report();
  }

  async #publishBatch(nats: NatsConnection) {
    let [count, size] = [0, 0];
    while (size < BATCH && count < this.#waiting.length) {
      size += this.#waiting[count++].bytes.length + MESSAGE_COST;
    }
    const taken = this.#waiting.splice(0, count);
    // NATS may take only smaller messages since it is back.
    const batch = taken.filter(({ bytes }) => bytes.length <= this.maxMessage);
    // All of it counts as lost until NATS has confirmed it.
    this.#lost += count;
    try {
      for (const { subject, bytes } of batch) nats.publish(subject, bytes);
      await abortable(nats.flush(), this.link.lost);
      this.#lost -= batch.length;
    } catch {
      // NATS is away again, and some of the messages may have arrived.
    }
    this.#count(-size);
    for (const { done } of taken) done();
  }

  #report() {
    const { log } = this.options;
    if (this.#lost > 0) log(`Messages not relayed to the other servers: ${this.#lost}.`);
    this.#lost = 0;
  }

  /** Publishes what still waits, counts what NATS does not take within `timeout`, and leaves. */
  async close(): Promise<void> {
    await deadline(this.#published, this.link.pause + this.link.options.timeout).catch(() => {});
    await this.link.close();
    this.#lost += this.#waiting.length;
    this.#report();
  }
}
