// Rooms joined through NATS: what is said in a room of one server is heard in it on all others.
//
// Text goes to the subject `SUBJECT.<room>.text` and binary to `SUBJECT.<room>.binary`, both as
// they are, so that any program that speaks NATS can take part.

import type { NatsConnection, Subscription } from "@nats-io/nats-core/internal";
import { deadline, delay } from "@std/async";
import type { Message } from "./message.ts";
import { printable, unfailing } from "./log.ts";
import { MAX_MESSAGE, type ServeOptions } from "./options.ts";
import { connectNats, type LinkOptions, reconnectNats } from "./nats/link.ts";
import { type Budget, Outgoing } from "./nats/outgoing.ts";

/** Milliseconds that a newcomer waits at the most until its room is joined. */
const JOIN_TIMEOUT = 1_000;
/** Milliseconds between lines that count what was not taken. */
const REPORT_INTERVAL = 1_000;

export type { Budget, LinkOptions };

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

/** The error that the runtime throws for a URL that is not valid, too. */
function syntaxError(message: string): DOMException {
  return new DOMException(message, "SyntaxError");
}

/** The way to the other servers. */
export class Relay {
  readonly #options: Required<RelayOptions>;
  readonly #rooms = new Map<string, Room>();
  readonly #outgoing: Outgoing;
  readonly #followed: Promise<void>;
  readonly #closing = new AbortController();
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #nats: NatsConnection;
  /** How many messages of other servers were not taken since that was last told. */
  #untaken = 0;

  private constructor(options: Required<RelayOptions>, nats: NatsConnection) {
    this.#options = options;
    this.#nats = nats;
    this.#outgoing = new Outgoing(nats, options.log);
    this.#followed = this.#follow();
  }

  /**
   * Joins the rooms of this server to those of all servers that use the same NATS and `subject`.
   *
   * @throws {Error} if no NATS answers.
   * @throws {DOMException} `SyntaxError` if `url` or `subject` is not valid.
   * @throws {Deno.errors.NotCapable} without the permission to connect to NATS.
   */
  static async connect(given: RelayOptions): Promise<Relay> {
    const url = URL.parse(given.url);
    // In front of a `/` that is not encoded, a part of a password would be the host.
    if (!url || !/^(nats|tls):\/\/[^/?#]+\/?$/.test(url.href)) {
      const encode = "in a password, write / ? # as %2F %3F %23";
      throw syntaxError(
        `NATS has a URL such as nats://127.0.0.1:4222 or tls://token@example.com; ${encode}.`,
      );
    }
    if (!/^[^\s.*>]+(\.[^\s.*>]+)*$/.test(given.subject)) {
      throw syntaxError(`A NATS subject is words with dots between them, not "${given.subject}".`);
    }
    url.port ||= "4222";
    const times = { timeout: 3_000, pingInterval: 5_000, reconnectWait: 1_000 };
    const options = { ...times, ...given, url: url.href, log: unfailing(given.log) };
    return new Relay(options, await connectNats(url.host, options));
  }

  /**
   * Counts what waits for NATS in the budget of a server. Where that is full, nothing is taken from
   * the other servers.
   *
   * @returns The same server.
   */
  join<Joined extends Budget>(server: Joined): Joined {
    this.#outgoing.countIn(server);
    return server;
  }

  /** The options of a server that takes no message which NATS would not take. */
  limit(options: ServeOptions): ServeOptions {
    const { maxMessage = MAX_MESSAGE } = options;
    return { ...options, maxMessage: Math.min(maxMessage, this.#outgoing.maxMessage) };
  }

  async #follow() {
    const { log, timeout, reconnectWait } = this.#options;
    while (true) {
      this.#tellErrors();
      const nats = await reconnectNats(this.#nats, this.#options, this.#closing.signal);
      if (!nats || this.#closing.signal.aborted) return await nats?.close();
      log("NATS is back.");
      this.#nats = nats;
      for (const [name, room] of this.#rooms) Object.assign(room, this.#join(name));
      // Another server may be in an attempt that began just before, and need one more.
      this.#outgoing.resume(nats, timeout + 2 * reconnectWait);
    }
  }

  /** Tells what NATS says to be wrong, until the connection ends. */
  async #tellErrors() {
    for await (const status of this.#nats.status()) {
      if (status.type !== "error") continue;
      const { message } = status.error;
      this.#options.log(`NATS: ${printable(message)}`);
      if (message.startsWith("Permissions Violation for Publish")) this.#outgoing.lose();
    }
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
    if (this.#nats.isClosed()) return { joined: Promise.resolve() };
    const subscription = this.#nats.subscribe(`${roomSubject(this.#options.subject, name)}.*`, {
      callback: (error, { subject, data }) => void (error ?? this.#receive(name, subject, data)),
    });
    const joined = deadline(this.#nats.flush(), JOIN_TIMEOUT).catch((error: Error) => {
      if (error.name !== "TimeoutError") return;
      const room = name ? `Room ${name}` : "The common room";
      this.#options.log(`${room} is not joined yet, because NATS does not answer.`);
    });
    return { subscription, joined };
  }

  #receive(name: string, subject: string, data: Uint8Array) {
    const isText = subject.endsWith(".text");
    if (!isText && !subject.endsWith(".binary")) return;
    if (this.#outgoing.isFull) return void this.#leaveOut();
    // It is a copy, so that a handler may keep it without all that was read beside it.
    const message = isText ? this.#decoder.decode(data) : new Uint8Array(data).buffer;
    Promise.try(this.#options.receive, name, message).catch((error) => {
      this.#options.log(`A message of another server was not received. ${error}`);
    });
  }

  /** Counts a message that is not taken, and tells how many they are a little later. */
  async #leaveOut() {
    if (this.#untaken++ > 0) return;
    await delay(REPORT_INTERVAL, { signal: this.#closing.signal }).catch(() => {});
    this.#options.log(`Messages of other servers not taken, too much waits: ${this.#untaken}.`);
    this.#untaken = 0;
  }

  /** Sends a message to this room of the other servers. Where much waits, this waits for NATS. */
  publish(name: string, message: Message): Promise<void> {
    const subject = roomSubject(this.#options.subject, name);
    return typeof message === "string"
      ? this.#outgoing.publish(`${subject}.text`, new TextEncoder().encode(message))
      : this.#outgoing.publish(`${subject}.binary`, new Uint8Array(message));
  }

  /** Publishes what still waits, counts what NATS does not take within `timeout`, and leaves. */
  async close(): Promise<void> {
    await this.#outgoing.close(this.#options.timeout);
    this.#closing.abort();
    await this.#nats.close();
    await this.#followed;
  }
}
