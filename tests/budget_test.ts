// What `serve` promises about messages that wait: a client that reads gets everything, in order, and
// one that does not read is dropped.

import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import { delay } from "@std/async";
import type { Handler } from "websockets";
import { Budget } from "../websockets/budget.ts";
import { READ_INTERVAL } from "../websockets/eviction.ts";
import { Outbox } from "../websockets/outbox.ts";
import { currentClient } from "../websockets/waiting.ts";
import { eventually, heldMemory, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { assertDescriptors, countDescriptors, Script } from "./programs.ts";
import { ask, frame, handshake, RawClient } from "./raw.ts";
import {
  assertInOrder,
  assertNumber,
  BINARY,
  broadcast,
  CLOSE,
  connect,
  connectRaw,
  flood,
  frames,
  joined,
  MEBIBYTE,
  numbered,
  push,
  silent,
  startRoom,
  startWatched,
  TEXT,
  type Watched,
} from "./watched.ts";

const READ_TOO_LITTLE = "Dropped a client. It read too little while too much was waiting.";

/** Sends back what arrives, at the pace of the reader. */
const echo: Handler = async (websocket) => {
  for await (const message of websocket) await websocket.send(message);
};

/** Sends as many binary messages as the client asks for, of the size that it asks for, in one go. */
const onDemand: Handler = async (websocket) => {
  for await (const message of websocket) {
    const [count, size] = String(message).split(" ").map(Number);
    for (let number = 0; number < count; number++) websocket.send(numbered(number, size));
  }
};

// A client that reads gets everything.

test(
  { needs: "net" },
  "an echo client that sends and reads at the same time gets everything, in any size",
  async () => {
    // A round fits into what may wait, and all rounds together do not.
    await using server = startWatched(echo, { maxWaiting: 15 * MEBIBYTE });
    await using client = await TestClient.open(server.url);
    for (const [count, size] of [[5_000, 64], [5_000, 1_000], [150, 65_000], [10, 1_000_000]]) {
      for (let number = 0; number < count; number++) client.send(numbered(number, size));
      await assertInOrder(client, count, size);
    }
    assertEquals(server.log.all, []);
  },
);

test({ needs: "run" }, "a pipe of 20,000 lines through both ends is complete", async () => {
  const count = 20_000;
  await using server = await Script.server("server.ts", "--quiet");
  await using client = new Script("websockets", [server.url], ["--allow-net"], "piped");
  const lines = Array.from({ length: count }, (_, number) => `${number}\n`).join("");
  const writer = client.stdin.getWriter();
  await writer.write(new TextEncoder().encode(lines));
  await writer.close();
  assertEquals(await client.end(), 0);
  assertEquals(client.lines.all.length, count);
  for (const [number, line] of client.lines.all.entries()) {
    assert(line.startsWith(`Data received as "${number}".`), line);
  }
});

test(
  { needs: "net" },
  "a burst into a room of five readers reaches all of them, and closes nobody",
  async () => {
    await using room = startRoom();
    await using readers = await connect(room.url, 5);
    await joined(room, 5);
    for (const [count, size] of [[30, 1_000_000], [80, 65_000], [3_000, 1_000]]) {
      for (let number = 0; number < count; number++) readers[0].send(numbered(number, size));
      await Promise.all(readers.map((reader) => assertInOrder(reader, count, size)));
    }
    assertEquals(room.log.all, []);
  },
);

test({ needs: "net" }, "20 clients that all send 50 messages at once hear 1,000", async () => {
  await using room = startRoom();
  await using clients = await connect(room.url, 20);
  await joined(room, 20);
  const sent = Array.from({ length: 50 }, (_, number) => `message ${number} of 50 ..`);
  for (const client of clients) sent.forEach((message) => client.send(message));
  for (const client of clients) {
    while (client.messages.all.length < 1_000) await client.next();
    assertEquals(client.messages.all, clients[0].messages.all);
  }
  assertEquals(room.log.all, []);
});

test(
  { needs: "net" },
  "Empty messages: they close nobody, however many there are and however long it takes",
  async () => {
    const now = performance.now;
    try {
      await using server = startWatched(echo, { maxWaiting: MEBIBYTE });
      await using client = await TestClient.open(server.url);
      for (let count = 0; count < 2_000; count++) {
        client.send("");
        assertEquals(await client.next(), "");
      }
      let hours = 0;
      performance.now = () => now.call(performance) + hours * 3_600_000;
      for (; hours < 200; hours++) {
        client.send("");
        assertEquals(await client.next(), "");
        if (hours % 20 === 0) await delay(10);
      }
      assertEquals(server.log.all, []);
    } finally {
      performance.now = now;
    }
  },
);

test(
  { needs: "net" },
  "nobody is dropped for the time in which the server itself stood still",
  async () => {
    const now = performance.now;
    try {
      await using server = startWatched(onDemand, { idleTimeout: 10 });
      using client = await RawClient.upgraded(server.port);
      await client.write(frame(TEXT, "100 100000"));
      await delay(200);
      performance.now = () => now.call(performance) + 3_600_000;
      await delay(200);
      assertEquals([server.log.all, server.members.size], [[], 1]);
      for (let due = 100 * 100_010; due > 0;) due -= (await client.read()).length;
    } finally {
      performance.now = now;
    }
  },
);

/** Keeps the runtime from dropping clients whose pongs are late, for a test of what waits alone. */
function withoutPings(): Disposable {
  const { upgradeWebSocket } = Deno;
  Deno.upgradeWebSocket = (request, options) =>
    upgradeWebSocket(request, { ...options, idleTimeout: 0 });
  return { [Symbol.dispose]: () => void (Deno.upgradeWebSocket = upgradeWebSocket) };
}

test({ needs: "net" }, "Slow clients: one that reads stays, however long it takes", async () => {
  using _ = withoutPings();
  await using server = startWatched(onDemand, { idleTimeout: 3 });
  using reader = await RawClient.upgraded(server.port);
  await reader.write(frame(TEXT, "30 1000000"));
  let due = 0;
  for (let bytes = 0; bytes < 30 * 1_000_010;) {
    const { length } = await reader.read();
    assert(length > 0, `dropped after ${bytes} bytes: ${server.log.all}`);
    bytes += length;
    if (bytes < due) continue;
    due += 2_000_000;
    await delay(250);
  }
});

test(
  { needs: "net" },
  "slow readers of large messages keep nobody else waiting for too long",
  async () => {
    using _ = withoutPings();
    const [count, size] = [16, MEBIBYTE];
    // The runtime is handed four of these messages at a time.
    await using server = startWatched(async (websocket) => {
      const message = new Uint8Array(size);
      for (let sent = 0; sent < count; sent++) websocket.send(message);
      await websocket.closed;
    }, { maxWaiting: 16 * MEBIBYTE, idleTimeout: 2 });
    using readers = await connectRaw(server.port, 8);
    await using fast = await TestClient.open(server.url);
    const readSlowly = async (reader: RawClient) => {
      for (let due = count * (size + 10); due > 0; await delay(10)) {
        const { length } = await reader.read();
        assert(length > 0, `${server.log.all}`);
        due -= length;
      }
    };
    const readFast = async () => {
      for (let received = 0; received < count; received++) await fast.next();
    };
    await Promise.all([readFast(), ...readers.map(readSlowly)]);
    assertEquals(server.log.all, []);
  },
);

/** A socket whose client takes no more than a test lets it. */
class FakeSocket {
  readonly readyState = WebSocket.OPEN;
  sent = 0;
  taken = 0;

  get bufferedAmount(): number {
    return this.sent - this.taken;
  }

  send(content: string | Uint8Array<ArrayBuffer>): void {
    this.sent += new Blob([content]).size;
  }

  close(): void {}
}

/** What waits for a client with such a socket. */
const outboxFor = (socket: FakeSocket, budget: Budget) =>
  new Outbox(socket as unknown as WebSocket, budget);

Deno.test("a broadcast to very many who take nothing yet takes little time", () => {
  const budget = new Budget(1024 * MEBIBYTE, Infinity);
  let looks = 0;
  /** A look at it takes a microsecond. */
  class SlowSocket extends FakeSocket {
    override get bufferedAmount() {
      looks++;
      for (const end = performance.now() + 0.001; performance.now() < end;);
      return super.bufferedAmount;
    }
  }
  const clients = Array.from({ length: 2_000 }, () => outboxFor(new SlowSocket(), budget));
  for (let round = 0; round < 5; round++) {
    const message = new Uint8Array(20_000);
    for (const client of clients) client.send(message);
  }
  for (const client of clients) client.end({ code: 1006, reason: "" });
  assertEquals(budget.bytes, 0);
  assertLessOrEqual(looks, 50 * clients.length);
});

// A client that does not read is dropped.

test(
  { needs: "net" },
  "Slow clients: one that never reads is dropped, and the others get every message on time",
  async () => {
    await using room = startRoom({ maxWaiting: 4 * MEBIBYTE });
    await using readers = await connect(room.url, 2);
    using sleeper = await RawClient.upgraded(room.port);
    await joined(room, 3);
    let number = 0;
    const publish = async () => {
      const message = numbered(number, 200_000);
      readers[0].send(message);
      for (const reader of readers) assertNumber(await reader.next(), number, message.length);
      number++;
    };
    while (room.log.all.length === 0) {
      assert(number < 200, "40 MB wait, and nobody is dropped");
      await publish();
    }
    assertEquals(room.log.all, [READ_TOO_LITTLE]);
    assertEquals((await room.left.next()).code, 1008);
    assertEquals(room.members.size, 2);
    const dropped = number;
    for (let count = 0; count < 50; count++) await publish();

    const { code, before } = await sleeper.readClose();
    assertEquals(code, 1008);
    const most = dropped * 200_010 - 2 * MEBIBYTE;
    assertLessOrEqual(before, most, "What waited is not sent any more.");
  },
);

Deno.test("what the system takes for a client that does not read is not blamed on the sender", async () => {
  const budget = new Budget(4 * MEBIBYTE, Infinity);
  const dropped: string[] = [];
  const join = (name: string, socket: FakeSocket) => {
    const outbox = outboxFor(socket, budget);
    outbox.onLoss = (close) => {
      dropped.push(`${name}: ${close.reason}`);
      outbox.end(close);
    };
    return outbox;
  };
  const [fast, stalled] = [new FakeSocket(), new FakeSocket()];
  const [reader, sleeper] = [join("reader", fast), join("sleeper", stalled)];
  for (let round = 0; dropped.length === 0; round++) {
    assert(round < 100, "20 MB wait, and nobody is dropped");
    fast.taken = fast.sent;
    // A busy system takes something now and then, while the reader has taken all.
    if (round < 20) stalled.taken = Math.min(stalled.sent, stalled.taken + 100_000);
    const message = new Uint8Array(200_000);
    reader.hear();
    currentClient.run(reader, () => [reader, sleeper].forEach((each) => each.send(message)));
    await delay(1);
  }
  assertEquals(dropped, ["sleeper: It read too little while too much was waiting."]);
  reader.end({ code: 1000, reason: "" });
});

Deno.test("a client has not read too little because the process stood still again and again", async () => {
  const { now } = performance;
  let time = 0;
  performance.now = () => time;
  try {
    const budget = new Budget(4 * MEBIBYTE, Infinity);
    const outbox = outboxFor(new FakeSocket(), budget);
    for (let count = 0; count < 10; count++) outbox.send(new Uint8Array(200_000));
    for (let stops = 0; stops < 4; stops++) {
      const before = budget.clock;
      time += 3_000;
      await eventually(() => assert(budget.clock > before));
    }
    assertLessOrEqual(budget.clock - outbox.takenAt, READ_INTERVAL / 2);
    outbox.end({ code: 1006, reason: "" });
  } finally {
    performance.now = now;
  }
});

Deno.test("a look at the clients in which the process stood still does not put the next one off", async () => {
  const { now } = performance;
  const { setTimeout } = globalThis;
  let time = 0;
  /** Each look at it lasts for three seconds. */
  class StillSocket extends FakeSocket {
    override get bufferedAmount() {
      time += 3_000;
      return super.bufferedAmount;
    }
  }
  const pauses: number[] = [];
  const noted = (task: () => void, milliseconds = 0) => {
    pauses.push(milliseconds);
    return setTimeout(task, milliseconds);
  };
  performance.now = () => time;
  globalThis.setTimeout = noted as typeof setTimeout;
  try {
    const outbox = outboxFor(new StillSocket(), new Budget(4 * MEBIBYTE, Infinity));
    for (let count = 0; count < 10; count++) outbox.send(new Uint8Array(200_000));
    const before = time;
    await eventually(() => assert(time > before));
    outbox.end({ code: 1006, reason: "" });
    assertLessOrEqual(Math.max(...pauses), READ_INTERVAL / 2);
  } finally {
    performance.now = now;
    globalThis.setTimeout = setTimeout;
  }
});

Deno.test("what is only kept in case is freed before a client has to go", () => {
  const budget = new Budget(MEBIBYTE, Infinity);
  const outbox = outboxFor(new FakeSocket(), budget);
  let isDropped = false;
  outbox.onLoss = () => isDropped = true;
  let kept = MEBIBYTE;
  budget.count(kept);
  budget.reclaim.add((bytes) => {
    const freed = Math.min(kept, bytes);
    kept -= freed;
    budget.count(-freed);
  });
  outbox.countUnread(MEBIBYTE);
  assertEquals([kept, isDropped], [0, false]);
  outbox.countUnread(1);
  assert(isDropped);
  outbox.countUnread(-MEBIBYTE - 1);
  outbox.end({ code: 1006, reason: "" });
});

Deno.test("of those that take nothing, as many go as it takes, and no more", () => {
  for (const isShared of [true, false]) {
    const budget = new Budget(MEBIBYTE, Infinity);
    const sleepers = Array.from({ length: 4 }, () => outboxFor(new FakeSocket(), budget));
    let dropped = 0;
    for (const sleeper of sleepers) {
      sleeper.onLoss = (close) => {
        dropped++;
        sleeper.end(close);
      };
    }
    for (let round = 0; dropped === 0; round++) {
      const message = new Uint8Array(100_000);
      for (const sleeper of sleepers) {
        if (dropped === 0) sleeper.send(isShared ? message : message.fill(round++));
      }
    }
    // What they share is freed with the last of those that hold it.
    assertEquals([dropped > 1, budget.isFull], [isShared, false]);
    for (const sleeper of sleepers) sleeper.end({ code: 1006, reason: "" });
    assertEquals(budget.bytes, 0);
  }
});

test(
  { needs: "net" },
  "Too much waits for all clients together: one that takes nothing goes, although no more is let in",
  async () => {
    await using room = startRoom({ maxWaiting: 4 * MEBIBYTE });
    using _sleeper = await RawClient.upgraded(room.port);
    await using reader = await TestClient.open(room.url);
    await joined(room, 2);
    const statuses = new Set<number>();
    while (room.members.size > 1) {
      const { status } = await push(room, "x".repeat(100_000));
      if (status === 202) await reader.next();
      else await delay(10);
      statuses.add(status);
    }
    assertEquals(statuses, new Set([202, 503]));
    assertEquals(room.log.all.filter((line) => line.startsWith("Dropped")), [READ_TOO_LITTLE]);
  },
);

for (const [count, all] of [[3, 4], [4, 8], [9, 10]]) {
  test(
    { needs: "net" },
    `Slow clients: ${count} of ${all} that take nothing go before one that waits for its echo`,
    async () => {
      await using room = startRoom({ maxWaiting: 16 * MEBIBYTE });
      using _sleepers = await connectRaw(room.port, count);
      await using readers = await connect(room.url, all - count - 1);
      await using speaker = await TestClient.open(room.url);
      await joined(room, all);
      let number = 0;
      while (room.members.size > all - count) {
        assert(number < 500, "250 MB wait, and nobody is dropped");
        speaker.send(numbered(number, 500_000));
        assertNumber(await speaker.next(), number++, 500_000);
      }
      for (const reader of readers) await assertInOrder(reader, number, 500_000);
      assertEquals(room.log.all, Array(count).fill(READ_TOO_LITTLE));
    },
  );
}

test(
  { needs: "net" },
  "A client takes nothing of what waits for it: after `idleTimeout` it gets 1008, when it wakes up",
  async () => {
    // The other client answers pings in this time as well.
    await using server = startWatched(onDemand, { idleTimeout: 2 });
    await using other = await TestClient.open(server.url);
    using sleeper = await RawClient.upgraded(server.port);
    await sleeper.write(frame(TEXT, "100 100000"));
    const { code } = await server.left.next();
    assertEquals([code, server.members.size], [1008, 1]);
    assertEquals(server.log.all, ["Dropped a client. It did not read for too long."]);
    other.send("1 1");
    await other.next();
    assertEquals((await sleeper.readClose()).code, 1008);
  },
);

test(
  { needs: "net" },
  "what waits is counted in `waiting`, and freed at once when its client is dropped",
  async () => {
    await using server = startWatched(onDemand, { idleTimeout: 3 });
    using sleeper = await RawClient.upgraded(server.port);
    const before = heldMemory();
    await sleeper.write(frame(TEXT, "600 100000"));
    // All but what the kernel has taken.
    await eventually(() => assertLessOrEqual(48_000_000, server.waiting));
    assertLessOrEqual(40_000_000, heldMemory() - before);
    await server.left.next();
    assertLessOrEqual(heldMemory() - before, 20_000_000);
    assertEquals(server.waiting, 0);
  },
);

test(
  { needs: "net" },
  "what was just sent counts as many bytes as the runtime counts",
  async () => {
    const bytes = new Uint8Array(30);
    const kinds: [string | ArrayBuffer | Uint8Array<ArrayBuffer>, number][] = [
      ["", 0],
      ["x".repeat(10), 10],
      ["é語😀\ud800", 2 + 3 + 4 + 3],
      ["語".repeat(1_000_000), 3_000_000],
      [bytes, 30],
      [bytes.buffer, 30],
      [bytes.subarray(10), 20],
    ];
    const counted: number[] = [];
    await using server: Watched = startWatched(async (websocket) => {
      for (const [message] of kinds) {
        const before = server.waiting;
        websocket.send(message);
        counted.push(server.waiting - before);
      }
      await websocket.receive();
    });
    await using client = await TestClient.open(server.url);
    for (const [message, length] of kinds) {
      const before = client.socket.bufferedAmount;
      client.send(message);
      assertEquals(client.socket.bufferedAmount - before, length);
    }
    await within(client.closed, "the close");
    // What a message takes beside its content is the same for all.
    assertEquals(counted.map((each) => each - counted[0]), kinds.map(([, length]) => length));
  },
);

Deno.test("Slow clients: one that reads any language is seen to take a part of what it was sent", () => {
  for (const text of ["x".repeat(100), "é".repeat(100), "語".repeat(100), "😀".repeat(100)]) {
    const socket = new FakeSocket();
    const outbox = outboxFor(socket, new Budget(MEBIBYTE, Infinity));
    const hasTaken = () => {
      outbox.takenAt = NaN;
      outbox.measure();
      return !Number.isNaN(outbox.takenAt);
    };
    for (let count = 0; count < 10; count++) {
      outbox.send(text);
      outbox.send(text);
      assertEquals(hasTaken(), false);
      socket.taken += new Blob([text]).size;
      assertEquals(hasTaken(), true);
    }
    outbox.end({ code: 1006, reason: "" });
  }
});

test(
  { needs: "linux" },
  "a stopped process is out of its room and of the count, whether or not messages wait for it",
  async () => {
    await Promise.all([0, 10].map(async (pushes) => {
      await using room = startRoom({ idleTimeout: 3, maxClients: 2 });
      await using client = new Script("websockets", [room.url], ["--allow-net"], "piped");
      const { stdin } = client;
      await using _input = { [Symbol.asyncDispose]: () => stdin.close().catch(silent) };
      await client.errors.next((line) => line.startsWith("Connected to "));
      await client.pause();
      for (let count = 0; count < pushes; count++) await push(room, "x".repeat(1_000_000));
      // The runtime finds out that it answers no ping, unless the ping has to wait as well.
      await room.left.next();
      assertEquals((await push(room, "hello")).text, "0");
      // The place of the stopped one is free.
      await using _newcomers = await connect(room.url, 2);
      assertEquals((await ask(room.port, handshake())).status, 503);
    }));
  },
);

test({ needs: "net" }, "A client does not answer the Close frame: it never gets it", async () => {
  const { upgradeWebSocket } = Deno;
  // The runtime's Close frame may wait for ever behind what the system does not take.
  Deno.upgradeWebSocket = (...given) => {
    const upgraded = upgradeWebSocket(...given);
    Object.defineProperty(upgraded.socket, "readyState", { value: WebSocket.CLOSING });
    return upgraded;
  };
  await using server = startWatched(echo, { idleTimeout: 1, maxClients: 1 });
  await using client = await TestClient.open(server.url);
  Deno.upgradeWebSocket = upgradeWebSocket;
  assertEquals((await server.left.next()).code, 1006);
  assertEquals(server.log.all, ["Dropped a client. It did not answer the Close frame."]);
  await using _newcomer = await TestClient.open(server.url);
  assertEquals(client.socket.readyState, WebSocket.OPEN);
});

test(
  { needs: "net" },
  "A client does not answer the Close frame: it is forgotten, and its place is free again",
  async () => {
    const closing: Handler = async (websocket) => {
      await websocket.receive();
      websocket.close(4000, "go");
    };
    await using server = startWatched(closing, { idleTimeout: 2, maxClients: 1 });
    using client = await RawClient.upgraded(server.port);
    await client.write(frame(TEXT, "leave"));
    assertEquals(await server.left.next(), { code: 1006, reason: "" });
    assertEquals(server.log.all, ["Dropped a client. It did not answer the Close frame."]);
    await (await TestClient.open(server.url)).close();
    assertEquals((await client.readClose()).code, 4000);
  },
);

test(
  { needs: "linux" },
  "Dropped clients: each keeps its descriptor until its connection ends, and no longer",
  async () => {
    await using server = await Script.server("broadcast_server.ts", "--max-waiting", "4000000");
    const port = Number(new URL(server.url).port);
    await using publisher = await TestClient.open(server.url);
    await server.lines.next((line) => line === "A client joined, 1 connected.");
    const before = countDescriptors(server);
    const publish = async () => {
      publisher.send(new Uint8Array(200_000));
      await publisher.next();
    };
    for (const isSending of [false, true, false, true]) {
      using client = await RawClient.upgraded(port);
      await server.lines.next((line) => line === "A client joined, 2 connected.");
      const left = server.lines.next((line) => line === "A client left (1008), 1 connected.");
      let isGone = false;
      const stop = () => isGone = true;
      left.then(stop, stop);
      for (let count = 0; !isGone; count++) {
        assert(count < 200, "40 MB wait, and nobody is dropped");
        await publish();
      }
      await left;
      assert(countDescriptors(server) > before, "Its connection was cut: correct the README.");
      if (isSending) await client.write(frames(TEXT, "still here", 1_000)).catch(silent);
      client.connection.close();
    }
    await assertDescriptors(server, before);
    await publish();
  },
);

test(
  { needs: "net" },
  "dropped clients that go on sending do not hold up the others",
  async () => {
    let handled = 0;
    const counting: Handler = async (websocket) => {
      for await (const message of websocket) {
        handled++;
        await websocket.send(message);
      }
    };
    await using server = startWatched(counting, { maxWaiting: 4 * MEBIBYTE });
    const flooders = await connectRaw(server.port, 20);
    const bytes = frame(BINARY, new Uint8Array(65_535));
    const flooding = flooders.map((client) => flood(client, bytes));
    for (const _ of flooders) assertEquals((await server.left.next()).code, 1008);
    await using reader = await TestClient.open(server.url);
    handled = 0;
    for (let count = 0; count < 50; count++) {
      reader.send("hello");
      assertEquals(await reader.next(), "hello");
    }
    assertEquals(handled, 50);
    flooders[Symbol.dispose]();
    await Promise.all(flooding);
  },
);

test(
  { needs: "net" },
  "what a handler sends when somebody is dropped reaches the others",
  async () => {
    const farewell: Handler = async (websocket) => {
      try {
        for await (const message of websocket) {
          for (let count = 0; count < 30; count++) websocket.send(message);
        }
      } finally {
        const { code } = await websocket.close();
        for (const member of server.members) member.send(`Somebody left: ${code}`);
      }
    };
    await using server = startWatched(farewell, { maxWaiting: MEBIBYTE });
    await using others = await connect(server.url, 3);
    using client = await RawClient.upgraded(server.port);
    await joined(server, 4);
    await client.write(frame(BINARY, new Uint8Array(600_000)));
    for (const other of others) assertEquals(await other.next(), "Somebody left: 1008");
  },
);

test({ needs: "net" }, "a log that sends its lines to all tells each drop once", async () => {
  const lines: string[] = [];
  await using room: Watched = startRoom({
    maxWaiting: 4 * MEBIBYTE,
    log(line) {
      lines.push(line);
      broadcast(room.members, line);
    },
  });
  using sleeper = await RawClient.upgraded(room.port);
  await using readers = await connect(room.url, 2);
  await joined(room, 3);
  for (let number = 0; lines.length === 0; number++) {
    assert(number < 200, "40 MB wait, and nobody is dropped");
    readers[0].send(numbered(number, 200_000));
    await readers[0].next();
  }
  // The first reader may have got the line in place of a number.
  await readers[1].messages.next((message) => message === READ_TOO_LITTLE);
  assertEquals([lines, room.members.size], [[READ_TOO_LITTLE], 2]);
  assertEquals((await sleeper.readClose()).code, 1008);
});

// What is sent is what arrives.

test(
  { needs: "net" },
  "text, binary and empty messages arrive in the order in which they were sent",
  async () => {
    const large = "x".repeat(300_000);
    const texts = Array.from({ length: 300 }, (_, number) => number % 7 ? `${number}` : "");
    await using server = startWatched(async (websocket) => {
      await websocket.receive();
      websocket.send(large);
      for (const [number, text] of texts.entries()) {
        const bytes = new TextEncoder().encode(text);
        const kinds = [text, bytes, bytes.buffer, new DataView(bytes.buffer)];
        websocket.send(kinds[number % kinds.length]);
        if (number % 50 === 0) websocket.send(large);
      }
      websocket.send("the end");
      websocket.close(4000);
    }, { maxWaiting: 4 * MEBIBYTE });
    await using client = await TestClient.open(server.url);
    client.send("go");
    assertEquals((await within(client.closed, "the close")).code, 4000);
    const arrived = client.messages.all.filter((data) => data !== large);
    assertEquals(arrived.map((data) => typeof data === "string"), [
      ...texts.map((_, number) => number % 4 === 0),
      true,
    ]);
    assertEquals(
      arrived.map((data) => typeof data === "string" ? data : new TextDecoder().decode(data)),
      [...texts, "the end"],
    );
  },
);

test(
  { needs: "net" },
  "a handler may use its buffer again as soon as it has sent it",
  async () => {
    await using server = startWatched(async (websocket) => {
      await websocket.receive();
      const buffer = new Uint8Array(100_000);
      const part = buffer.subarray(10);
      for (let number = 0; number < 60; number++) {
        new DataView(buffer.buffer).setUint32(10, number);
        const same = [part, buffer.slice(10).buffer, new DataView(buffer.buffer, 10)];
        websocket.send(same[number % same.length]);
        websocket.send(part);
      }
      buffer.fill(255);
      await websocket.closed;
    });
    await using client = await TestClient.open(server.url);
    client.send("go");
    for (let number = 0; number < 120; number++) {
      assertNumber(await client.next(), number >> 1, 99_990);
    }
  },
);

test(
  { needs: "net" },
  "what a handler closes is delivered first, however slowly it is read",
  async () => {
    let handled = 0;
    await using server = startWatched(async (websocket) => {
      for await (const _ of websocket) {
        handled++;
        for (let count = 0; count < 20; count++) websocket.send(new Uint8Array(1_000_000));
        websocket.close(4000, "x".repeat(122) + "é");
        websocket.send("after the end");
        websocket.close(1000);
      }
    });
    using client = await RawClient.upgraded(server.port);
    await client.write(frames(TEXT, "go", 3));
    // Far more waits than the kernel holds.
    await delay(300);
    const { code, reason, before } = await client.readClose();
    assertEquals([code, reason, before], [4000, "x".repeat(122), 20 * 1_000_010]);
    await client.write(frame(CLOSE, new Uint8Array([15, 160])));
    assertEquals((await server.left.next()).code, 4000);
    assertEquals(handled, 1, "A client that is being closed is not listened to.");
  },
);
