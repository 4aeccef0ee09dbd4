// What was said in rooms, what their followers heard of it, and what is wrong with that.

import { assert } from "@std/assert";
import type { Followed } from "websockets";
import { numberIn } from "../followers.ts";

/** A message, which says its number. */
export interface Said {
  readonly id: number;
  readonly room: string;
  /** Where it stands in its room. That is known when the push is answered, or a follower hears it. */
  position?: string;
}

/** What a follower heard without a gap: all that came after a number, up to another one. */
interface Span {
  epoch: string;
  from: number;
  to: number;
  /** How many messages were told to be gone before it; `Infinity` if that was not known. */
  lost: number;
}

/** What one follower of a room has heard, over all of its connections. */
export interface Follower {
  readonly id: number;
  readonly room: string;
  readonly heard: Set<Said>;
  readonly spans: Span[];
}

/** All that was said and heard in one run. */
export class Ledger {
  readonly messages: Said[] = [];
  readonly followers: Follower[] = [];
  readonly counts = { heard: 0, gaps: 0, told: 0, "in vain": 0 };
  readonly faults = { lost: 0, doubled: 0, "out of order": 0, untold: 0 };
  /** Each fault in words. */
  readonly lines: string[] = [];
  /** The messages of each room and epoch, by their numbers. */
  readonly #histories = new Map<string, Map<number, Said>>();

  /** Notes that somebody follows a room. */
  follow(room: string): Follower {
    const follower = { id: this.followers.length, room, heard: new Set<Said>(), spans: [] };
    this.followers.push(follower);
    return follower;
  }

  /** Notes that a message is said. */
  say(room: string): Said {
    const said = { id: this.messages.length, room };
    this.messages.push(said);
    return said;
  }

  /** Notes where a message stands. No other stands there, and it stands nowhere else. */
  accept(said: Said, position: string): void {
    const [epoch, number] = split(position);
    const history = this.#histories.getOrInsertComputed(`${said.room} ${epoch}`, () => new Map());
    said.position ??= position;
    if (said.position === position && history.getOrInsert(number, said) === said) return;
    this.fault("out of order", `${describe(said)} stands at ${position} as well`);
  }

  /** Notes what a follower hears. */
  hear({ id, room, heard, spans }: Follower, { message, lost, position }: Followed): void {
    const [epoch, number] = split(position);
    if (message === undefined) return void spans.push({ epoch, from: number, to: number, lost });
    const said = this.messages[numberIn(message)];
    assert(said?.room === room, `Follower ${id} hears what nobody has said in ${room}.`);
    if (heard.has(said)) {
      return this.fault("doubled", `${describe(said)} was heard again by ${id}, at ${position}`);
    }
    heard.add(said);
    this.counts.heard++;
    this.accept(said, position);
    const before = spans.at(-1);
    if (before?.epoch !== epoch) spans.push({ epoch, from: number - 1, to: number, lost: 0 });
    else if (number > before.to) before.to = number;
    else this.fault("out of order", `${describe(said)} was late for ${id}`);
  }

  /** Looks for what nobody could see before the end. */
  check(): void {
    for (const { id, room, heard, spans } of this.followers) {
      for (const [index, span] of spans.entries()) {
        if (index > 0) this.#checkGap(id, room, spans[index - 1], span);
        for (const said of this.#between(room, span.epoch, span.from, span.to)) {
          if (!heard.has(said)) this.fault("lost", `${describe(said)} was not heard by ${id}`);
        }
      }
    }
  }

  #checkGap(id: number, room: string, before: Span, { epoch, from, lost }: Span) {
    const isSame = before.epoch === epoch;
    let gone = this.#between(room, before.epoch, before.to, isSame ? from : Infinity).length;
    const isExact = isSame && lost === gone;
    if (!isSame) gone += this.#between(room, epoch, 0, from).length;
    this.counts.gaps++;
    this.counts.told += gone;
    if (isSame && gone === 0) this.counts["in vain"]++;
    // Nobody can know how many are gone of another epoch.
    if (isExact || lost === Infinity) return;
    const gap = `from ${before.epoch}.${before.to} to ${epoch}.${from}`;
    this.fault("untold", `${gone} are gone for ${id} in ${room} ${gap}, and ${lost} were told`);
  }

  /** What stands after a number of an epoch, up to another one. */
  #between(room: string, epoch: string, after: number, last: number): Said[] {
    const history = [...this.#histories.get(`${room} ${epoch}`) ?? []];
    return history.filter(([number]) => number > after && number <= last).map(([, said]) => said);
  }

  /** Counts a fault. */
  fault(kind: keyof Ledger["faults"], what: string): void {
    this.faults[kind]++;
    this.lines.push(`${kind}: ${what}`);
  }
}

function describe({ id, room, position }: Said): string {
  return `message ${id} of ${room} (${position})`;
}

/** The epoch and the number of a position. */
function split(position: string): [epoch: string, number: number] {
  const dot = position.lastIndexOf(".");
  return [position.slice(0, dot), Number(position.slice(dot + 1))];
}
