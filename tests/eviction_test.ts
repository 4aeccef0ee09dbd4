/// <reference types="./std.d.ts" />
// Who has to go when too much waits: the rules, on plain records. It needs no permission.

import { assert, assertEquals } from "@std/assert";
import { chooseEvictions, PATIENCE, READ_INTERVAL } from "../websockets/eviction.ts";
import {
  type BudgetClient,
  costOf,
  currentClient,
  type WaitingMessage,
  WaitingMessages,
} from "../websockets/waiting.ts";

const SENT_TOO_MUCH = "It sent more than could be taken.";
const READ_TOO_LITTLE = "It read too little while too much was waiting.";
/** Now, on the clock of the budget. All waits since 0, so that each client had time to read. */
const CLOCK = 10 * READ_INTERVAL;

type Client = BudgetClient & { queue: WaitingMessage[] };

/** A client that has just taken something, unless `differences` say otherwise. */
function makeClient(differences: Partial<BudgetClient> = {}): Client {
  const fail = () => assert(false, "The choice does nothing to a client.");
  return {
    unread: 0,
    handed: 1,
    takenAt: CLOCK,
    heardAt: Infinity,
    isOpen: true,
    isEager: false,
    isDue: true,
    drop: fail,
    measure: fail,
    handOver: fail,
    giveUp: fail,
    close: fail,
    ...differences,
    queue: [],
  };
}

/** A client that has taken nothing at all. */
function makeSleeper(differences: Partial<BudgetClient> = {}): Client {
  return makeClient({ takenAt: 0, ...differences });
}

/** Lets a message of so many bytes wait for clients. */
function enqueue(
  bytes: number,
  clients: Client[],
  cause?: BudgetClient,
  sentAt = 0,
): WaitingMessage {
  const content = new Uint8Array(bytes);
  const message = { bytes: content, isText: false, clients: clients.length, cause, sentAt };
  for (const client of clients) client.queue.push(message);
  return message;
}

/** The clients of these that have to go, by their places, and why. */
function choose(clients: Client[], { enough = 10, isUrgent = false, clock = CLOCK } = {}) {
  return chooseEvictions(clients, clock, enough, isUrgent).map(({ client, reason }) =>
    [clients.findIndex((each) => each === client), reason] as const
  );
}

Deno.test("what a handler has not taken is blamed on the client that has sent it", () => {
  const clients = [makeClient({ unread: 10 }), makeClient({ unread: 20 }), makeClient()];
  assertEquals(choose(clients), [[1, SENT_TOO_MUCH]]);
});

Deno.test("what the runtime holds is blamed on clients that take nothing, and on no others", () => {
  const taking = makeClient({ handed: 1_000 });
  assertEquals(choose([taking, makeSleeper({ handed: 10 })]), [[1, READ_TOO_LITTLE]]);
  assertEquals(choose([taking, makeClient()]), []);
});

Deno.test("those that take nothing go before a client that takes what it has caused, however many they are", () => {
  for (const count of [1, 3, 30]) {
    const cause = makeClient({ unread: 100 });
    const sleepers = Array.from({ length: count }, () => makeSleeper());
    enqueue(1_000, sleepers, cause);
    const expected = sleepers.map((_, place) => [place + 1, READ_TOO_LITTLE] as const);
    assertEquals(choose([cause, ...sleepers]), expected);
    assertEquals(choose([cause, ...sleepers], { isUrgent: true }), expected);
  }
});

Deno.test("of those that take nothing, the one for which most waits goes first", () => {
  const sleepers = [makeSleeper(), makeSleeper(), makeSleeper()];
  enqueue(1_000, [sleepers[1], sleepers[2]]);
  enqueue(1_000, sleepers);
  enqueue(10, [sleepers[2]]);
  assertEquals(choose(sleepers).map(([place]) => place), [2, 1, 0]);
});

Deno.test("a message whose clients all take something is blamed on who has caused it", () => {
  const [cause, first, second] = [makeClient(), makeClient(), makeClient()];
  enqueue(1_000, [first, second], cause);
  // It counts once, however many clients it waits for.
  const cost = costOf(first.queue[0]);
  for (const [unread, expected] of [[cost - 1, 0], [cost + 1, 1]]) {
    const clients = [cause, makeClient({ unread }), first, second];
    assertEquals(choose(clients), [[expected, SENT_TOO_MUCH]]);
  }
});

Deno.test("a message that its cause has not taken either is blamed on the cause", () => {
  for (const takenAt of [0, CLOCK]) {
    const [cause, sleeper] = [makeClient({ takenAt }), makeSleeper()];
    enqueue(1_000, [sleeper, cause], cause);
    assertEquals(choose([sleeper, cause]), [[1, SENT_TOO_MUCH]]);
  }
});

Deno.test("a client is behind if it has taken nothing for half of the time in which something waits", () => {
  // The first second shows nothing, because the system takes what a client does not read.
  const half = (CLOCK - READ_INTERVAL) / 2;
  for (const [time, isBehind] of [[half, false], [half + 1, true]] as const) {
    const [cause, reader] = [makeClient(), makeClient({ takenAt: CLOCK - time })];
    enqueue(1_000, [reader], cause);
    enqueue(1_000, [reader], cause, CLOCK - 1);
    assertEquals(
      choose([cause, reader]),
      isBehind ? [[1, READ_TOO_LITTLE]] : [[0, SENT_TOO_MUCH]],
      `${time}`,
    );
  }
});

Deno.test("whether a client reads shows after a second, and nobody goes before that unless it is urgent", () => {
  for (const taken of [0, READ_INTERVAL / 2, READ_INTERVAL - 1]) {
    const clock = READ_INTERVAL;
    const [cause, reader] = [makeClient(), makeClient({ takenAt: taken })];
    enqueue(1_000, [reader], cause);
    assertEquals(choose([cause, reader], { clock }), []);
    assertEquals(choose([cause, reader], { clock, isUrgent: true }), [[1, READ_TOO_LITTLE]]);
  }
});

Deno.test("a client that reads slowly takes something now and then, and stays unless it is urgent", () => {
  const clock = 2 * PATIENCE;
  for (const [time, isDropped] of [[PATIENCE, false], [PATIENCE + 1, true]] as const) {
    const [cause, reader] = [makeClient(), makeClient({ takenAt: clock - time })];
    enqueue(1_000, [reader], cause);
    for (const isUrgent of [false, true]) {
      const expected = isDropped || isUrgent ? [[1, READ_TOO_LITTLE] as const] : [];
      assertEquals(choose([cause, reader], { clock, isUrgent }), expected, `${time} ${isUrgent}`);
    }
  }
});

Deno.test("a client that is being closed is not blamed for what it has caused", () => {
  const [open, reader] = [makeClient(), makeClient()];
  const closing = makeClient({ closing: { code: 1000, reason: "" } });
  enqueue(1_000, [reader], closing);
  assertEquals(choose([open, closing, reader]), []);
  enqueue(10, [reader], open);
  assertEquals(choose([open, closing, reader]), [[0, SENT_TOO_MUCH]]);
});

Deno.test("a client that is being closed is blamed for what it has sent", () => {
  const closing = makeClient({ unread: 10, closing: { code: 1000, reason: "" } });
  assertEquals(choose([makeClient(), closing]), [[1, SENT_TOO_MUCH]]);
});

Deno.test("who is to blame for less than enough stays", () => {
  for (const client of [makeClient({ unread: 100 }), makeSleeper({ handed: 100 })]) {
    assertEquals(choose([client], { enough: 100 }).length, 1);
    assertEquals(choose([client], { enough: 101 }), []);
  }
});

Deno.test("where nobody is to blame, the one for which most waits goes if it is urgent", () => {
  const one = makeClient({ handed: 100 });
  const many = Array.from({ length: 10 }, () => makeClient());
  // What waits for many is shared among them.
  enqueue(1_000, many);
  enqueue(500, [one]);
  assertEquals(choose([...many, one]), []);
  assertEquals(choose([...many, one], { isUrgent: true }), [[10, READ_TOO_LITTLE]]);
  Object.assign(many[3], { handed: 10_000 });
  assertEquals(choose([...many, one], { isUrgent: true }), [[3, READ_TOO_LITTLE]]);
});

Deno.test("of two that are to blame for as much, the one that takes nothing goes, or the first", () => {
  const sender = makeClient({ unread: 100 });
  assertEquals(choose([sender, makeSleeper({ handed: 100 })]), [[1, READ_TOO_LITTLE]]);
  assertEquals(choose([sender, makeClient({ unread: 100 })]), [[0, SENT_TOO_MUCH]]);
});

Deno.test("nobody goes where nothing waits, however urgent it is", () => {
  const clients = [makeClient({ handed: 0 }), makeSleeper({ handed: 0 })];
  assertEquals(choose(clients, { isUrgent: true }), []);
  assertEquals(choose([], { isUrgent: true }), []);
});

Deno.test("what is sent to many in a row is one message, with one client that has caused it", () => {
  const messages = new WaitingMessages();
  const [cause, other] = [makeClient(), makeClient()];
  const keepFor = (client: BudgetClient) => {
    return currentClient.run(client, () => messages.keep("hello", 0));
  };
  const message = keepFor(cause);
  assertEquals(message.cause, cause);
  assert(keepFor(cause) === message);
  assert(keepFor(other) !== message);
});
