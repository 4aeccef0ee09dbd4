/// <reference types="./std.d.ts" />
// Who has to go when too much waits: the rules, on plain records. It needs no permission.

import { assert, assertEquals } from "@std/assert";
import { chooseEviction } from "../websockets/eviction.ts";
import { costOf, type Holder, type WaitingMessage } from "../websockets/waiting.ts";

const SENT_TOO_MUCH = "It sent more than could be taken.";
const READ_TOO_LITTLE = "It read too little while too much was waiting.";

type Client = Holder & { queue: WaitingMessage[] };

/** A client that takes what it is sent, unless `differences` say otherwise. */
function makeClient(differences: Partial<Holder> = {}): Client {
  const drop = () => assert(false, "The choice drops nobody.");
  const rest = { unread: 0, handed: 0, isStuck: false, untakenFrom: Infinity };
  return { ...rest, drop, ...differences, queue: [] };
}

/** Lets a message of so many bytes wait for clients. */
function enqueue(bytes: number, clients: Client[], cause?: Holder): WaitingMessage {
  const message = { bytes: new Uint8Array(bytes), isText: false, clients: clients.length, cause };
  for (const client of clients) client.queue.push(message);
  return message;
}

/** The client of these that has to go, by its place, and why. */
function choose(clients: Client[], { all = clients.length, enough = 1, isUrgent = false } = {}) {
  const eviction = chooseEviction(clients, all, enough, isUrgent);
  return eviction && [clients.findIndex((each) => each === eviction.client), eviction.reason];
}

Deno.test("what a handler has not taken is blamed on the client that has sent it", () => {
  const clients = [makeClient({ unread: 10 }), makeClient({ unread: 20 }), makeClient()];
  assertEquals(choose(clients), [1, SENT_TOO_MUCH]);
});

Deno.test("what the runtime holds is blamed on clients that take nothing, and on no others", () => {
  const taking = makeClient({ handed: 1_000 });
  assertEquals(choose([taking, makeClient({ handed: 10, isStuck: true })]), [1, READ_TOO_LITTLE]);
  assertEquals(choose([taking, makeClient()]), undefined);
});

Deno.test("a message is blamed on a client that takes nothing, and not on who has caused it", () => {
  const cause = makeClient({ unread: 100 });
  const stuck = makeClient({ isStuck: true });
  enqueue(1_000, [makeClient(), stuck], cause);
  assertEquals(choose([cause, stuck]), [1, READ_TOO_LITTLE]);
});

Deno.test("a message whose clients all take something is blamed on who has caused it", () => {
  const [cause, first, second] = [makeClient(), makeClient(), makeClient()];
  enqueue(1_000, [first, second], cause);
  // It counts once, however many clients it waits for.
  const cost = costOf(first.queue[0]);
  for (const [unread, expected] of [[cost - 1, 0], [cost + 1, 1]]) {
    const clients = [cause, makeClient({ unread }), first, second];
    assertEquals(choose(clients), [expected, SENT_TOO_MUCH]);
  }
});

Deno.test("the clients that take nothing of a message share the blame for it", () => {
  const sender = makeClient({ unread: 900 });
  const readers = [makeClient({ isStuck: true }), makeClient(), makeClient()];
  enqueue(1_000, readers);
  assertEquals(choose([sender, ...readers]), [1, READ_TOO_LITTLE]);
  Object.assign(readers[1], { isStuck: true });
  assertEquals(choose([sender, ...readers]), [0, SENT_TOO_MUCH]);
});

Deno.test("a client is behind with what it has not taken since, if half of all have taken it", () => {
  const cases: [untakenFrom: number, waitingFor: number, all: number, isBehind: boolean][] = [
    [0, 2, 4, true],
    [1, 2, 4, true],
    [2, 2, 4, false],
    [Infinity, 2, 4, false],
    [1, 3, 5, false],
  ];
  for (const [untakenFrom, waitingFor, all, isBehind] of cases) {
    const [cause, reader] = [makeClient(), makeClient({ untakenFrom })];
    const others = Array.from({ length: waitingFor - 1 }, () => makeClient());
    enqueue(0, [reader]);
    enqueue(1_000, [reader, ...others], cause);
    const expected = isBehind ? [1, READ_TOO_LITTLE] : [0, SENT_TOO_MUCH];
    const told = `${untakenFrom} ${waitingFor} ${all}`;
    assertEquals(choose([cause, reader, ...others], { all }), expected, told);
  }
});

Deno.test("a client that is being closed is not blamed for what it has caused", () => {
  const [open, reader] = [makeClient(), makeClient()];
  const closing = makeClient({ closing: { code: 1000, reason: "" } });
  enqueue(1_000, [reader], closing);
  assertEquals(choose([open, closing, reader]), undefined);
  enqueue(10, [reader], open);
  assertEquals(choose([open, closing, reader]), [0, SENT_TOO_MUCH]);
});

Deno.test("a client that is being closed is blamed for what it has sent", () => {
  const closing = makeClient({ unread: 10, closing: { code: 1000, reason: "" } });
  assertEquals(choose([makeClient(), closing]), [1, SENT_TOO_MUCH]);
});

Deno.test("who is to blame for less than enough stays", () => {
  for (const differences of [{ unread: 100 }, { handed: 100, isStuck: true }]) {
    const clients = [makeClient(differences)];
    assertEquals(choose(clients, { enough: 100 })?.[0], 0);
    assertEquals(choose(clients, { enough: 101 }), undefined);
  }
});

Deno.test("where nobody is to blame, the one that is furthest behind goes if it is urgent", () => {
  const one = makeClient({ handed: 100 });
  const many = Array.from({ length: 10 }, () => makeClient());
  // What waits for many is shared among them.
  enqueue(1_000, many);
  enqueue(500, [one]);
  assertEquals(choose([...many, one]), undefined);
  assertEquals(choose([...many, one], { isUrgent: true }), [10, READ_TOO_LITTLE]);
  Object.assign(many[3], { handed: 10_000 });
  assertEquals(choose([...many, one], { isUrgent: true }), [3, READ_TOO_LITTLE]);
});

Deno.test("of two that are to blame for as much, it is who takes nothing, and then the first", () => {
  const sender = makeClient({ unread: 100 });
  const reader = makeClient({ handed: 100, isStuck: true });
  assertEquals(choose([sender, reader]), [1, READ_TOO_LITTLE]);
  assertEquals(choose([sender, makeClient({ unread: 100 })]), [0, SENT_TOO_MUCH]);
});

Deno.test("nobody goes where nothing waits, however urgent it is", () => {
  assertEquals(
    choose([makeClient(), makeClient({ isStuck: true })], { isUrgent: true }),
    undefined,
  );
  assertEquals(choose([], { isUrgent: true }), undefined);
});
