// What joins the rooms of several servers, as the rooms see it.

import type { Acceptor } from "../accept.ts";
import type { Message } from "../message.ts";
import type { ServeOptions } from "../options.ts";

/** What a relay has kept of a room, in the order in which it was said. */
export interface KeptMessages {
  /** What tells this history from all others: 1 to 23 letters, digits, `_` and `-`. */
  epoch: string;
  /** A number after which no message of the room is gone. */
  start: number;
  /** The messages after it, each with its number. */
  messages: Iterable<[number: number, message: Message]>;
}

/**
 * What joins the rooms of several servers, such as `Relay` of `websockets/nats.ts`. It gives what it
 * hears to `receive` of the rooms.
 */
export interface RoomRelay {
  /** Hears a room until `leave`. It may be called again. Done when what is said from now on is heard. */
  enter(room: string): Promise<void>;
  /** Hears a room no longer. */
  leave(room: string): void;
  /**
   * Tells the other servers what was said. Without `load`, they alone hear it. With `load`, it comes
   * back to this server as well, and the promise is done when it is safe, with its position.
   *
   * @throws {ConnectionClosed} with 1013 if nobody knows whether it is safe.
   */
  publish(room: string, message: Message): Promise<string | void>;
  /**
   * Hears a room as `enter` does. A relay has this method if all servers hear the same messages in
   * one order, each with a number. Done when `receive` was called for all that was said before, by any
   * server. The first time, and when something may have been missed, it calls `load` of the rooms
   * before it goes on to `receive`.
   *
   * @throws {ConnectionClosed} with 1013 if that can't be had now.
   */
  load?(room: string): Promise<void>;
  /** The options of a server that takes no message which the relay would not take. */
  limit(options: ServeOptions): ServeOptions;
  /** Counts in the budget of a server what waits for the other servers. */
  join(server: Acceptor): unknown;
  /** Sends what still waits, and ends. */
  close(): Promise<void>;
}
