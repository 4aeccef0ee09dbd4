// Where a client is in a room that it follows: the other end of history.ts.

import type { Message } from "../message.ts";

/** What the first message says: a position, how many messages are lost, and how many were missed. */
const FIRST = /^([\w-]{1,23}\.\d{1,16})( lost(?: (\d{1,16}))?)?(?: missed (\d{1,16}))?$/;
/** What each other message begins with. */
const HEAD = /^([\w-]{1,23}\.\d{1,16})\n/;
/** Characters of it at the most. */
const MAX_HEAD = 41;

/** What a client is told when it comes back. */
export interface Return {
  /** How many messages are gone, and come no more; `Infinity` if nobody knows. */
  lost: number;
  /** How many messages come now that it has missed. */
  missed: number;
}

/** The place of a client in a room, which its connections go on from. */
export class Place {
  /** The position of what was heard last; "" before anything was. */
  position: string;

  constructor(position = "") {
    this.position = position;
  }

  /** The address at which the next connection goes on. */
  locate(given: string | URL): string | URL {
    const url = URL.parse(given);
    url?.searchParams.set("after", this.position);
    // `connect` says what is wrong with it.
    return url ?? given;
  }

  /**
   * Takes the first message of a connection.
   *
   * @throws {Error} if it tells no position.
   */
  begin(first: Message | undefined): Return {
    const [, position, isLost, lost, missed = 0] =
      typeof first === "string" && first.match(FIRST) ||
      [];
    if (position === undefined) throw noPosition();
    this.position = position;
    return { lost: isLost ? Number(lost ?? Infinity) : 0, missed: Number(missed) };
  }

  /**
   * Takes each other message, and returns it without its position.
   *
   * @throws {Error} if it has none.
   */
  take(received: Message): Message {
    const isText = typeof received === "string";
    const head = isText ? received.slice(0, MAX_HEAD) : decodeHead(received);
    const [read, position] = head.match(HEAD) ?? [];
    if (read === undefined || position === undefined) throw noPosition();
    this.position = position;
    return received.slice(read.length);
  }
}

function noPosition(): Error {
  return new Error("The server tells no positions: nobody can follow it.");
}

function decodeHead(message: ArrayBuffer): string {
  return String.fromCharCode(...new Uint8Array(message.slice(0, MAX_HEAD)));
}
