// A client that follows a room: it comes back after a loss, and asks for what it has missed.

import { connect, type ConnectOptions, HANDSHAKE_TIMEOUT } from "../connect.ts";
import type { Connection } from "../connection.ts";
import { ConnectionClosed, handled } from "../connection_closed.ts";
import type { Message, Sendable } from "../message.ts";
import { Place } from "./place.ts";

/** How to follow. What is `undefined` is not given. */
export interface FollowOptions extends ConnectOptions {
  /** The position from which to go on, such as one that was stored. Without it, that is now. */
  after?: string | undefined;
}

/** One turn of the loop: a message, or how many are lost. */
export interface Followed {
  /** What was said, or `undefined` where messages are lost. */
  message: Message | undefined;
  /** How many messages are gone, and come no more; `Infinity` if nobody knows. A message has 0. */
  lost: number;
  /** Where this is in the room, for `after` of another `follow`. */
  position: string;
}

/**
 * Follows a room of a server that keeps what is said, such as `broadcast_server.ts`. Each message
 * comes once and in order. After a loss the client connects again, hears what it has missed, and is
 * told what is gone.
 *
 * `for await (const { message, lost } of follow(url))` goes on until `break`, or until `signal`
 * aborts, whose reason it throws. It throws what a loop over `connect` throws too, and an error if the
 * server tells no positions.
 *
 * @param url Where the room is, or a function that tells it before each attempt.
 */
export function follow(
  url: string | URL | (() => string | URL),
  options: FollowOptions = {},
): Follower {
  return new Follower(url, options);
}

/** A client that follows. `follow` makes it. */
export class Follower implements AsyncIterable<Followed, undefined> {
  readonly #url: string | URL | (() => string | URL);
  readonly #options: FollowOptions;
  readonly #place: Place;
  #websocket: Connection | undefined;
  /** Whether the server has told a position. */
  #isFollowing = false;

  /** @ignore `follow` calls it. */
  constructor(url: string | URL | (() => string | URL), options: FollowOptions) {
    this.#url = url;
    this.#options = options;
    this.#place = new Place(options.after);
  }

  /**
   * Sends a message on the connection of this moment. What is sent is safe when it is heard in the
   * loop. After a loss nobody knows whether it has arrived, and it may be heard twice if it is sent again.
   *
   * @throws {ConnectionClosed} if there is no connection now, or if it is lost. It harms nobody if
   * nobody awaits it.
   */
  send(message: Sendable): Promise<void> {
    if (this.#websocket) return this.#websocket.send(message);
    const reason = "There is no connection now.";
    return handled(Promise.reject(new ConnectionClosed({ code: 1006, reason })));
  }

  /** Follows. Each call of it goes on from where the last one has ended. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Followed, undefined> {
    const given = () => typeof this.#url === "function" ? this.#url() : this.#url;
    const locate = () => this.#place.locate(given());
    for await (const websocket of connect(locate, this.#options)) {
      try {
        yield* this.#read(websocket);
      } catch (error) {
        if (!(error instanceof ConnectionClosed)) throw error;
      } finally {
        this.#websocket = undefined;
      }
    }
  }

  async *#read(websocket: Connection): AsyncGenerator<Followed, undefined> {
    const { timeout = HANDSHAKE_TIMEOUT } = this.#options;
    const signal = AbortSignal.timeout(timeout);
    const first = await websocket.receive({ signal }).catch((error) => {
      if (error instanceof ConnectionClosed) throw error;
      return undefined;
    });
    // A server that has told positions before is only slow, and another attempt may succeed.
    if (first === undefined && this.#isFollowing) return;
    const place = this.#place;
    const { lost } = place.begin(first);
    this.#isFollowing = true;
    this.#websocket = websocket;
    if (lost > 0) yield { message: undefined, lost, position: place.position };
    for await (const received of websocket) {
      yield { message: place.take(received), lost: 0, position: place.position };
    }
  }
}
