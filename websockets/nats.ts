// Rooms joined through NATS: what is said in a room of one server is heard in it on all others.
//
// Text goes to the subject `SUBJECT.<room>.text` and binary to `SUBJECT.<room>.binary`, both as
// they are, so that any program that speaks NATS can take part.

import type { Subscription } from "@nats-io/nats-core/internal";
import type { Message } from "./message.ts";
import type { ServeOptions } from "./options.ts";
import type { LinkOptions } from "./nats/connect.ts";
import { Link } from "./nats/link.ts";
import { Outgoing } from "./nats/outgoing.ts";
import { ReplayRelay } from "./nats/replay.ts";
import {
  checkSubject,
  Losses,
  type RelayedRooms,
  type RelayOptions,
  roomSubject,
  untilJoined,
} from "./nats/rooms.ts";
import type { Budget } from "./nats/waiting.ts";
import type { RoomRelay } from "./rooms/relay.ts";

export {
  type Budget,
  type LinkOptions,
  type RelayedRooms,
  type RelayOptions,
  ReplayRelay,
  roomSubject,
};

/** A room that is heard. */
interface Room {
  /** There is none while NATS is away. */
  subscription?: Subscription;
  /** Done when NATS has confirmed the subscription, or nobody is to wait for that any longer. */
  joined: Promise<void>;
}

/** The way to the other servers. */
export class Relay implements RoomRelay {
  readonly #options: RelayOptions;
  readonly #link: Link;
  readonly #rooms = new Map<string, Room>();
  readonly #outgoing: Outgoing;
  readonly #untaken: Losses;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  private constructor(options: RelayOptions, link: Link) {
    this.#options = options;
    this.#link = link;
    this.#outgoing = new Outgoing(link);
    this.#untaken = new Losses(link, "Messages of other servers not taken, too much waits");
    link.follow({ back: () => this.#resume(), refused: () => this.#outgoing.lose() });
  }

  /**
   * Joins the rooms of this server to those of all servers that use the same NATS and `subject`. With
   * `replay`, clients can follow on all of them: that needs JetStream.
   *
   * @throws {Error} if no NATS answers, or it has no JetStream.
   * @throws {DOMException} `SyntaxError` if `url` or `subject` is not valid.
   * @throws {Deno.errors.NotCapable} without the permission to connect to NATS.
   */
  static async connect(options: RelayOptions): Promise<Relay | ReplayRelay> {
    checkSubject(options.subject);
    const link = await Link.open(options);
    return options.replay
      ? await ReplayRelay.start(link, options.subject, options.rooms)
      : new Relay(options, link);
  }

  /**
   * Counts what waits for NATS in the budget of a server. Where that is full, nothing is taken from
   * the other servers.
   *
   * @returns The same server.
   */
  join<Joined extends Budget>(server: Joined): Joined {
    this.#outgoing.waiting.countIn(server);
    return server;
  }

  /** The options of a server that takes no message which NATS would not take. */
  limit(options: ServeOptions): ServeOptions {
    return this.#link.limit(options);
  }

  #resume() {
    for (const [name, room] of this.#rooms) Object.assign(room, this.#join(name));
    const { timeout, reconnectWait } = this.#link.options;
    // Another server may be in an attempt that began just before, and need one more.
    this.#outgoing.resume(timeout + 2 * reconnectWait);
  }

  /**
   * Hears a room until `leave`. Done when NATS has confirmed that, or after a second: the room is
   * joined as soon as NATS answers, or is back.
   */
  enter(name: string): Promise<void> {
    return this.#rooms.getOrInsertComputed(name, () => this.#join(name)).joined;
  }

  /** Hears a room no longer. */
  leave(name: string): void {
    this.#rooms.get(name)?.subscription?.unsubscribe();
    this.#rooms.delete(name);
  }

  #join(name: string): Room {
    if (this.#link.isAway) return { joined: Promise.resolve() };
    const subscription = this.#link.nats.subscribe(
      `${roomSubject(this.#options.subject, name)}.*`,
      {
        callback: (error, { subject, data }) => void (error ?? this.#receive(name, subject, data)),
      },
    );
    return { subscription, joined: untilJoined(this.#link.nats.flush(), this.#link, name) };
  }

  #receive(name: string, subject: string, data: Uint8Array) {
    const isText = subject.endsWith(".text");
    if (!isText && !subject.endsWith(".binary")) return;
    if (this.#outgoing.waiting.isFull) return void this.#untaken.add();
    // It is a copy, so that a handler may keep it without all that was read beside it.
    const message = isText ? this.#decoder.decode(data) : new Uint8Array(data).buffer;
    Promise.try(() => this.#options.rooms.receive(name, message)).catch((error) => {
      this.#link.options.log(`A message of another server was not received. ${error}`);
    });
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
    await this.#outgoing.close(this.#link.options.timeout);
    await this.#link.close();
  }
}
