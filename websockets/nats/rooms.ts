// What both ways to join rooms through NATS share: how a room is called, and lines about it.

import { deadline, delay } from "@std/async";
import { printable } from "../log.ts";
import type { Message } from "../message.ts";
import type { KeptMessages } from "../rooms/relay.ts";
import type { LinkOptions } from "./connect.ts";
import { type Link, syntaxError } from "./link.ts";

/** Milliseconds that a newcomer waits at the most until its room is joined. */
const JOIN_TIMEOUT = 1_000;
/** Milliseconds between lines that count what was not taken. */
const REPORT_INTERVAL = 1_000;

/** How to reach the other servers. */
export interface RelayOptions extends LinkOptions {
  /** The NATS subject of the common room, and the beginning of that of all others. */
  subject: string;
  /** Told what is said on other servers: `Rooms`, or what has these methods. */
  rooms: RelayedRooms;
  /** Whether NATS JetStream keeps what is said, so that clients can follow on each server. */
  replay?: boolean | undefined;
}

/** What a relay tells what it hears. */
export interface RelayedRooms {
  /** Told each message of another server. With `replay`, also those of this server, and all numbers. */
  receive(room: string, message: Message, number?: number): void;
  /** With `replay`, told what is kept of a room. */
  load?(room: string, kept: KeptMessages): void;
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

/** @throws {DOMException} `SyntaxError` if this can't be the beginning of subjects. */
export function checkSubject(subject: string): void {
  if (/^[^\s.*>]+(\.[^\s.*>]+)*$/.test(subject)) return;
  throw syntaxError(`A NATS subject is words with dots between them, not "${subject}".`);
}

/** Waits until a room is joined, or for a second, and then tells that it is not joined yet. */
export async function untilJoined(
  joining: Promise<void>,
  { options }: Link,
  name: string,
): Promise<void> {
  try {
    await deadline(joining, JOIN_TIMEOUT);
  } catch (error) {
    if ((error as Error).name !== "TimeoutError") return;
    const room = name ? `Room ${name}` : "The common room";
    options.log(`${room} is not joined yet, because NATS does not answer.`);
  }
}

/** Counts what is lost, and tells how many they are a little later. */
export class Losses {
  readonly #link: Link;
  readonly #what: string;
  #count = 0;
  #reason = "";

  /** @param what What is lost, such as "Messages of other servers not taken". */
  constructor(link: Link, what: string) {
    this.#link = link;
    this.#what = what;
  }

  /** Counts one more, and tells the reason of the last one. */
  async add(reason = ""): Promise<void> {
    this.#reason = reason && ` (${printable(reason)})`;
    if (this.#count++ > 0) return;
    await delay(REPORT_INTERVAL, { signal: this.#link.closing }).catch(() => {});
    this.report();
  }

  /** Tells now how many were lost since that was last told. */
  report(): void {
    if (this.#count > 0) this.#link.options.log(`${this.#what}: ${this.#count}${this.#reason}.`);
    this.#count = 0;
  }
}
