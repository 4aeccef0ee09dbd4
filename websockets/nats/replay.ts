// Rooms joined through NATS JetStream: all servers hear the same messages in one order, and what was
// said is kept for the clients that come back, also on another server.

import { deadline } from "@std/async";
import { ConnectionClosed } from "../connection_closed.ts";
import type { Message } from "../message.ts";
import type { ServeOptions } from "../options.ts";
import type { RoomRelay } from "../rooms/relay.ts";
import type { Link } from "./link.ts";
import { Publisher } from "./publisher.ts";
import { ReplayedRoom, type RoomSource } from "./replayed_room.ts";
import { Losses, type RelayedRooms, untilJoined } from "./rooms.ts";
import { Stream } from "./stream.ts";
import type { Budget } from "./waiting.ts";

/** The way to the other servers that keeps one order. */
export class ReplayRelay implements RoomRelay {
  readonly #link: Link;
  readonly #publisher: Publisher;
  readonly #source: RoomSource;
  readonly #rooms = new Map<string, { room: ReplayedRoom; joined: Promise<void> }>();

  private constructor(link: Link, stream: Stream, rooms: RelayedRooms) {
    this.#link = link;
    this.#publisher = new Publisher(link, stream);
    const failures = new Losses(link, "Attempts to read what was said that failed");
    this.#source = { link, stream, rooms, failures, isFull: () => this.#publisher.waiting.isFull };
    link.follow({
      back: () => this.#rooms.forEach(({ room }) => room.resume()),
      // What was refused is told to its sender.
      refused() {},
    });
  }

  /** @ignore `Relay.connect` calls it. */
  static async start(link: Link, subject: string, rooms: RelayedRooms): Promise<ReplayRelay> {
    try {
      return new ReplayRelay(link, await Stream.open(link, subject), rooms);
    } catch (error) {
      await link.close();
      throw error;
    }
  }

  /**
   * Counts what waits for NATS in the budget of a server. While that is full, nothing is taken from
   * NATS: it comes later.
   *
   * @returns The same server.
   */
  join<Joined extends Budget>(server: Joined): Joined {
    this.#publisher.waiting.countIn(server);
    return server;
  }

  /** The options of a server that takes no message which NATS would not take. */
  limit(options: ServeOptions): ServeOptions {
    return this.#link.limit(options);
  }

  /** Hears a room until `leave`. Done when NATS has confirmed that, or after a second. */
  enter(name: string): Promise<void> {
    return this.#open(name).joined;
  }

  /**
   * Hears a room as `enter` does, and tells what is kept of it. Done when all that was said before is
   * received.
   *
   * @throws {ConnectionClosed} with 1013 if NATS is away, or does not answer in time.
   */
  async load(name: string): Promise<void> {
    try {
      await deadline(this.#open(name).room.follow(), this.#link.options.timeout);
    } catch {
      throw new ConnectionClosed({ code: 1013, reason: "NATS does not answer: try again later." });
    }
  }

  #open(name: string) {
    return this.#rooms.getOrInsertComputed(name, () => {
      const room = new ReplayedRoom(name, this.#source);
      return { room, joined: untilJoined(room.update(), this.#link, name) };
    });
  }

  /** Hears a room no longer. */
  leave(name: string): void {
    this.#rooms.get(name)?.room.close();
    this.#rooms.delete(name);
  }

  /**
   * Says a message in a room. Done when it is kept, with its position.
   *
   * @throws {ConnectionClosed} with 1013 if nobody knows whether it is kept.
   */
  publish(name: string, message: Message): Promise<string> {
    return this.#publisher.publish(name, message);
  }

  /** Waits until what was said is kept, for `timeout` at the most, and leaves. */
  async close(): Promise<void> {
    await this.#publisher.close(this.#link.options.timeout);
    for (const name of this.#rooms.keys()) this.leave(name);
    await this.#link.close();
  }
}
