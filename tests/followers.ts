/// <reference types="./std.d.ts" />
// Followers of a room whose messages have numbers, and what they must hear.

import { assert, assertEquals } from "@std/assert";
import type { Followed, Follower, Handler, Rooms } from "websockets";

/** A handler that has a client in the room that its URL names. */
export function inRooms(rooms: Rooms): Handler {
  return async (websocket, request) => {
    const name = new URL(request.url).searchParams.get("room") ?? "";
    try {
      await rooms.enter(name, websocket, request);
      for await (const message of websocket) await rooms.say(name, message);
    } finally {
      rooms.leave(name, websocket);
    }
  };
}

/** Numbers that look like chance, and are the same in each run. */
export function chance(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
    return Math.floor(state / 2 ** 31 * below);
  };
}

/** Runs a test in which a client that lost its connection does not pause. */
export async function withoutPauses(run: () => Promise<void>): Promise<void> {
  const { random } = Math;
  let calls = 0;
  // They all differ, because nats.js makes a token of each.
  Math.random = () => calls++ / 2 ** 40;
  try {
    await run();
  } finally {
    Math.random = random;
  }
}

/** A message with its number, as text or binary, and of any size. */
export function numbered(number: number, size: number): string | ArrayBuffer {
  const text = `${number} `.padEnd(size, "x");
  return number % 3 === 0 ? new TextEncoder().encode(text).buffer : text;
}

function numberIn(message: Followed["message"]): number {
  return parseInt(typeof message === "string" ? message : new TextDecoder().decode(message));
}

/** What a follower heard, checked: how many messages, how many were told as lost, and how often. */
export async function check(follower: Follower, last: number, tell = (_number: number) => {}) {
  const heard = { messages: 0, lost: 0, gaps: 0, unknown: 0 };
  let expected = 0;
  let isUnknown = false;
  for await (const { message, lost } of follower) {
    if (message === undefined) {
      assert(lost > 0);
      heard.gaps++;
      if (lost === Infinity) heard.unknown++;
      else heard.lost += lost;
      if (lost === Infinity) isUnknown = true;
      else expected += lost;
      continue;
    }
    const number = numberIn(message);
    if (isUnknown) assert(number >= expected, `${number} came again after ${expected - 1}`);
    else assertEquals(number, expected, "a message is lost, doubled or out of order");
    isUnknown = false;
    heard.messages++;
    tell(number);
    expected = number + 1;
    if (number === last) break;
  }
  return heard;
}
