// What `serve` promises about messages that wait: a client that reads gets everything, one that does
// not read is dropped, one that sends too much is dropped, and the memory for all this has a bound.

import { assert, assertEquals, assertLessOrEqual, assertMatch } from "@std/assert";
import { deadline, delay } from "@std/async";
import { type Close, type Connection, type Handler, serve, type ServeOptions } from "websockets";
import { broadcast } from "../broadcast_server.ts";
import { Outbox } from "../websockets/outbox.ts";
import { currentClient, Waiting } from "../websockets/waiting.ts";
import { eventually, heldMemory, Inbox, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { assertDescriptors, countDescriptors, Program, Script } from "./programs.ts";
import { ask, frame, handshake, RawClient } from "./raw.ts";

const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;
const PONG = 10;
const MEBIBYTE = 1024 ** 2;
const SENT_TOO_MUCH = "Dropped a client. It sent more than could be taken.";
const READ_TOO_LITTLE = "Dropped a client. It read too little while too much was waiting.";
const silent = () => {};

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

/** A server that knows who is there. Once it has stopped, each handler must have ended once. */
function startWatched(handler: Handler, options?: ServeOptions) {
  const members = new Set<Connection>();
  const log = new Inbox<string>();
  const left = new Inbox<Close>();
  let started = 0;
  let ended = 0;
  const watched: Handler = async (websocket, request) => {
    started++;
    members.add(websocket);
    try {
      await handler(websocket, request);
    } finally {
      ended++;
      members.delete(websocket);
      websocket.close().then((close) => left.put(close));
    }
  };
  const server = serve(watched, { port: 0, log: (line) => log.put(line), ...options });
  const { port } = server.addr;
  return {
    url: `ws://localhost:${port}`,
    port,
    log,
    members,
    left,
    /** Bytes that wait. */
    get waiting() {
      return server.waiting;
    },
    async [Symbol.asyncDispose]() {
      await within(server.shutdown(), "the server to stop");
      assertEquals(ended, started);
      assertEquals(server.waiting, 0);
    },
  };
}

type Watched = ReturnType<typeof startWatched>;

/** A room whose members hear what each of them sends, and what is pushed. */
function startRoom(options?: ServeOptions, prepare: () => Promise<void> | void = silent): Watched {
  const room: Watched = startWatched(async (websocket) => {
    for await (const message of websocket) {
      const isReady = prepare();
      if (isReady) await isReady;
      broadcast(room.members, message);
    }
  }, {
    async request(request) {
      if (request.method !== "POST") return;
      broadcast(room.members, await request.text());
      return new Response(`${room.members.size}`, { status: 202 });
    },
    ...options,
  });
  return room;
}

/** Pushes a text into a room. */
async function push({ port }: { port: number }, body: string) {
  const answer = await fetch(`http://localhost:${port}`, { method: "POST", body });
  return { status: answer.status, headers: answer.headers, text: await answer.text() };
}

/** Waits until so many are in the room. */
const joined = ({ members }: Watched, count: number) =>
  eventually(() => assertEquals(members.size, count));

/** Connects so many clients. They leave together. */
async function connect(url: string, count: number) {
  const clients = await Promise.all(Array.from({ length: count }, () => TestClient.open(url)));
  const leave = async () => void await Promise.all(clients.map((client) => client.close()));
  return Object.assign(clients, { [Symbol.asyncDispose]: leave });
}

/** Connects so many clients that read nothing unless the test does. */
async function connectRaw(port: number, count: number) {
  const clients = await Promise.all(Array.from({ length: count }, () => RawClient.upgraded(port)));
  const leave = () => clients.forEach((client) => client[Symbol.dispose]());
  return Object.assign(clients, { [Symbol.dispose]: leave });
}

/** Frames of so many messages with the same content, in one piece. */
function frames(opcode: number, payload: string | Uint8Array, count: number): Uint8Array {
  const one = frame(opcode, payload);
  const all = new Uint8Array(one.length * count);
  for (let at = 0; at < all.length; at += one.length) all.set(one, at);
  return all;
}

/** A message that begins with its number, so that one can see its place. */
function numbered(number: number, size: number): Uint8Array<ArrayBuffer> {
  const message = new Uint8Array(size);
  if (size >= 4) new DataView(message.buffer).setUint32(0, number);
  return message;
}

/** Waits for so many messages, and fails unless their numbers are 0, 1, 2 and so on. */
async function assertInOrder(client: TestClient, count: number, size: number): Promise<void> {
  for (let number = 0; number < count; number++) {
    assertNumber(await client.next(), number, size);
  }
}

function assertNumber(message: string | ArrayBuffer, number: number, size: number) {
  assert(message instanceof ArrayBuffer);
  assertEquals([new DataView(message).getUint32(0), message.byteLength], [number, size]);
}

/** Sends one thing again and again and reads nothing, until the server takes no more of it. */
async function flood(client: RawClient, bytes: Uint8Array): Promise<void> {
  try {
    while (true) await client.write(bytes);
  } catch {
    // The connection is reset, or the test has closed it.
  }
}

/** The most bytes that a process has taken so far. */
const memory = (pid: number) =>
  Number(Deno.readTextFileSync(`/proc/${pid}/status`).match(/VmHWM:\s+(\d+) kB/)?.[1]) * 1024;

/** A server in a process of its own, so that its memory can be read. */
async function startProcess(handler: Handler): Promise<Script & { port: number }> {
  const server = new Script("-", [], ["--allow-net"], "piped");
  const source = `import { serve } from "websockets";
    console.log(serve(${handler}, { port: 0 }).addr.port);`;
  const writer = server.stdin.getWriter();
  await writer.write(new TextEncoder().encode(source));
  await writer.close();
  return Object.assign(server, { port: Number(await server.prints(/./)) });
}

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
  "empty messages close nobody, however many there are and however long it takes",
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

test({ needs: "net" }, "a client that reads slowly stays, however long it takes", async () => {
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
    await reader.write(frame(PONG));
  }
});

test(
  { needs: "net" },
  "slow readers of large messages keep nobody else waiting for too long",
  async () => {
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
        await reader.write(frame(PONG));
      }
    };
    const readFast = async () => {
      for (let received = 0; received < count; received++) await fast.next();
    };
    await Promise.all([readFast(), ...readers.map(readSlowly)]);
    assertEquals(server.log.all, []);
  },
);

Deno.test("a broadcast to very many who take nothing yet takes little time", () => {
  const waiting = new Waiting(1024 * MEBIBYTE, Infinity);
  let looks = 0;
  /** A socket that takes nothing, and for which a look takes a microsecond. */
  const stalled = () => ({
    readyState: WebSocket.OPEN,
    sent: 0,
    get bufferedAmount() {
      looks++;
      for (const end = performance.now() + 0.001; performance.now() < end;);
      return this.sent;
    },
    send({ length }: Uint8Array) {
      this.sent += length;
    },
    close() {},
  });
  const clients = Array.from({ length: 2_000 }, () => {
    return new Outbox(stalled() as unknown as WebSocket, waiting);
  });
  for (let round = 0; round < 5; round++) {
    const message = new Uint8Array(20_000);
    for (const client of clients) client.send(message);
  }
  for (const client of clients) client.end({ code: 1006, reason: "" });
  assertEquals(waiting.bytes, 0);
  assertLessOrEqual(looks, 50 * clients.length);
});

// A client that does not read is dropped.

test(
  { needs: "net" },
  "a member of a room that never reads is dropped, and the others get every message on time",
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
  const waiting = new Waiting(4 * MEBIBYTE, Infinity);
  const dropped: string[] = [];
  const join = (name: string, untaken: (sent: number) => number) => {
    let sent = 0;
    const socket = {
      readyState: WebSocket.OPEN,
      get bufferedAmount() {
        return untaken(sent);
      },
      send: ({ length }: Uint8Array) => void (sent += length),
      close() {},
    };
    const outbox = new Outbox(socket as unknown as WebSocket, waiting);
    outbox.onDrop = (close) => {
      dropped.push(`${name}: ${close.reason}`);
      outbox.end(close);
    };
    return outbox;
  };
  let takenBySystem = 0;
  const reader = join("reader", () => 0);
  const sleeper = join("sleeper", (sent) => Math.max(0, sent - takenBySystem));
  for (let round = 0; dropped.length === 0; round++) {
    assert(round < 100, "20 MB wait, and nobody is dropped");
    // A busy system goes on taking while something waits, but not for long.
    if (round < 8) takenBySystem += 100_000;
    const message = new Uint8Array(200_000);
    currentClient.run(reader, () => [reader, sleeper].forEach((each) => each.send(message)));
    await delay(1);
  }
  assertEquals(dropped, ["sleeper: It read too little while too much was waiting."]);
  reader.end({ code: 1000, reason: "" });
});

test(
  { needs: "net" },
  "clients that take nothing for half of that time have to go before one that speaks, even if they are the most",
  async () => {
    const { now } = performance;
    let later = 0;
    performance.now = () => now.call(performance) + later;
    try {
      await using room = startRoom({ maxWaiting: 16 * MEBIBYTE, idleTimeout: 20 });
      using sleepers = await connectRaw(room.port, 3);
      await using speaker = await TestClient.open(room.url);
      await joined(room, 4);
      let number = 0;
      const publish = async (size = 200_000) => {
        speaker.send(numbered(number, size));
        assertNumber(await speaker.next(), number++, size);
      };
      while (number < 50) await publish();
      // Their time begins when the kernel takes nothing more for them. What is sent makes the server
      // look at its clock, which goes on by half a second at a time.
      for (; later < 12_000; later += 500) {
        await publish(4);
        await delay(5);
      }
      while (room.members.size > 1) {
        assert(number < 200, "30 MB wait, and nobody is dropped");
        await publish();
      }
      assertEquals(room.log.all, sleepers.map(() => READ_TOO_LITTLE));
    } finally {
      performance.now = now;
    }
  },
);

test(
  { needs: "net" },
  "a client that takes nothing for the time of `idleTimeout` is dropped, and told when it wakes up",
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
  { needs: "linux" },
  "a stopped process is out of its room and of the count, whether or not messages wait for it",
  async () => {
    await Promise.all([0, 10].map(async (pushes) => {
      await using room = startRoom({ idleTimeout: 3, maxClients: 2 });
      await using client = new Script("websockets", [room.url], ["--allow-net"], "piped");
      const { stdin } = client;
      await using _input = { [Symbol.asyncDispose]: () => stdin.close().catch(silent) };
      await client.errors.next((line) => line.startsWith("Connected to "));
      client.kill("SIGSTOP");
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

test({ needs: "net" }, "a client that the runtime closes in vain is forgotten", async () => {
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
  "a client that never answers Close is forgotten, its place is free again, and nothing is left of it",
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
  "dropped clients leave no descriptor behind, whether they were silent or went on sending",
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
  using _sleeper = await RawClient.upgraded(room.port);
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
});

// A client that sends too much is dropped.

test(
  { needs: "net" },
  "a sender of more than a room can read is dropped, and all readers stay",
  async () => {
    await using room = startRoom({ maxWaiting: 8 * MEBIBYTE });
    await using readers = await connect(room.url, 20);
    await using sender = await TestClient.open(room.url);
    await joined(room, 21);
    for (let count = 0; room.log.all.length === 0; count++) {
      assert(count < 4_000, "260 MB were sent to each, and nobody is dropped");
      sender.send(new Uint8Array(65_000));
      if (count % 8 === 0) await delay(1);
    }
    // The runtime resets a client that goes on sending after a Close frame, so that the code may not
    // arrive.
    await within(sender.closed, "the close");
    assertEquals((await room.left.next()).code, 1008);
    assertEquals([room.log.all, room.members.size], [[SENT_TOO_MUCH], 20]);
    readers[0].send("the end");
    const heard = new Set<number>();
    for (const reader of readers) {
      while (reader.messages.all.at(-1) !== "the end") await reader.next();
      heard.add(reader.messages.all.length);
    }
    assertEquals(heard.size, 1, "Each message has reached all of them.");
  },
);

test(
  { needs: "net" },
  "a client that sends faster than its handler takes is dropped, and the others notice nothing",
  async () => {
    const taking: Handler = async (websocket) => {
      for await (const message of websocket) {
        await delay(20);
        await websocket.send(message);
      }
    };
    await using server = startWatched(taking, { maxWaiting: 16 * MEBIBYTE });
    await using others = await connect(server.url, 3);
    using flooder = await RawClient.upgraded(server.port);
    await joined(server, 4);
    const flooding = flood(flooder, frame(BINARY, new Uint8Array(65_536)));
    let most = 0;
    let isDropped = false;
    const dropped = server.left.next().finally(() => isDropped = true);
    for (let after = 0; after < 10; isDropped && after++) {
      for (const other of others) other.send("hello");
      for (const other of others) assertEquals(await other.next(), "hello");
      most = Math.max(most, server.waiting);
    }
    assertLessOrEqual(most, 20 * MEBIBYTE);
    assertEquals((await dropped).code, 1008);
    assertEquals([server.log.all, server.members.size], [[SENT_TOO_MUCH], 3]);
    flooder.connection.close();
    await flooding;
  },
);

test(
  { needs: "net" },
  "a client that has left with a Close frame is still to blame for its unread messages",
  async () => {
    const gate = Promise.withResolvers<void>();
    await using server = startWatched(async (websocket, request) => {
      for await (const message of websocket) {
        if (request.url.endsWith("/leaver")) await gate.promise;
        await websocket.send(message);
      }
    }, { maxWaiting: 4 * MEBIBYTE });
    using leaver = await RawClient.open(server.port, handshake({}, "GET /leaver HTTP/1.1"));
    await leaver.head();
    await leaver.write(frames(BINARY, new Uint8Array(65_536), 60));
    await leaver.write(frame(CLOSE));
    await eventually(() => assertLessOrEqual(59 * 65_536, server.waiting));
    await using polite = await TestClient.open(server.url);
    for (let number = 0; number < 10; number++) polite.send(numbered(number, 65_536));
    await assertInOrder(polite, 10, 65_536);
    gate.resolve();
    assertEquals(server.log.all, [SENT_TOO_MUCH]);
  },
);

/**
 * Lets eight readers at a steady pace, and a client that says "hi" every 10 ms, meet a client
 * that fills the memory of their room. Nobody of the nine may be dropped.
 */
async function assertAllStay(room: Watched, attack: (signal: AbortSignal) => Promise<void>) {
  const end = new AbortController();
  const { signal } = end;
  using readers = await connectRaw(room.port, 8);
  await using polite = await TestClient.open(room.url);
  await joined(room, 9);
  const members = [...room.members];
  const reading = readers.map(async (reader) => {
    for (let taken = 0; !signal.aborted || taken < 4 * MEBIBYTE; await delay(10)) {
      const { length } = await reader.read();
      assert(length > 0, `${room.log.all}`);
      taken += length;
    }
  });
  const talking = async () => {
    for (; !signal.aborted; await delay(10)) polite.send("hi");
  };
  const staying = Promise.all([...reading, talking()]);
  try {
    await Promise.race([staying, attack(signal)]);
  } finally {
    end.abort();
  }
  await staying;
  assertEquals(members.filter((member) => !room.members.has(member)), []);
}

/** Floods a room, and comes back 50 ms after each drop, until it was dropped so many times. */
async function floodAgain(room: Watched, drops: number, signal: AbortSignal) {
  const bytes = frame(BINARY, new Uint8Array(65_536));
  const closes: Close[] = [];
  while (closes.length < drops && !signal.aborted) {
    using flooder = await RawClient.open(room.port, handshake());
    if ((await flooder.head()).includes(" 101 ")) {
      const flooding = flood(flooder, bytes);
      closes.push(await room.left.next());
      flooder.connection.close();
      await flooding;
    }
    await delay(50);
  }
  assertEquals(closes.map(({ code }) => code), Array(drops).fill(1008));
  assertEquals(room.log.all.filter((line) => line.startsWith("Dropped")).length, drops);
}

test(
  { needs: "net" },
  "a flooder that comes back after each drop costs no reader its place",
  async () => {
    await using room = startRoom({ maxWaiting: 32 * MEBIBYTE });
    await assertAllStay(room, (signal) => floodAgain(room, 5, signal));
  },
);

test(
  { needs: "net" },
  "a flooder costs no reader its place where the handler awaits something before it sends",
  async () => {
    await using room = startRoom({ maxWaiting: 32 * MEBIBYTE }, async () => {
      await crypto.subtle.digest("SHA-1", new Uint8Array(20));
    });
    await assertAllStay(room, (signal) => floodAgain(room, 5, signal));
  },
);

test(
  { needs: "net" },
  "20 flooders at once cost no reader its place, and what waits stays bounded",
  async () => {
    await using room = startRoom({ maxWaiting: 32 * MEBIBYTE });
    let most = 0;
    await assertAllStay(room, async () => {
      using flooders = await connectRaw(room.port, 20);
      await joined(room, 29);
      const flooding = flooders.map((flooder) =>
        flood(flooder, frame(BINARY, new Uint8Array(65_536)))
      );
      for (const _ of flooders) {
        assertEquals((await room.left.next()).code, 1008);
        most = Math.max(most, room.waiting);
      }
      flooders[Symbol.dispose]();
      await Promise.all(flooding);
    });
    assertLessOrEqual(most, 44 * MEBIBYTE);
  },
);

test(
  { needs: "net" },
  "pushes are refused while too much waits, and cost no reader its place",
  async () => {
    await using room = startRoom({ maxWaiting: 32 * MEBIBYTE });
    const body = "x".repeat(100_000);
    let refused = 0;
    await assertAllStay(room, async () => {
      while (refused < 100) {
        const { status, headers } = await push(room, body);
        if (status === 202) continue;
        assertEquals([status, headers.get("retry-after")], [503, "1"]);
        refused++;
        await delay(5);
      }
    });
    assertEquals(new Set(room.log.all).size, 1, `${room.log.all[0]}`);
  },
);

test(
  { needs: "net" },
  "where nobody is to blame, as for what a clock sends, the client that is furthest behind is dropped",
  async () => {
    await using room = startRoom({ maxWaiting: 4 * MEBIBYTE });
    using sleeper = await RawClient.upgraded(room.port);
    await joined(room, 1);
    let most = 0;
    for (let number = 0; room.members.size > 0; number++) {
      assert(number < 200, "20 MB wait, and nobody is dropped");
      broadcast(room.members, numbered(number, 100_000).buffer);
      most = Math.max(most, room.waiting);
      await delay(1);
    }
    assertEquals((await sleeper.readClose()).code, 1008);
    assertLessOrEqual(most, 5.5 * MEBIBYTE);
  },
);

// Pace.

test(
  { needs: "linux" },
  "a handler that awaits `send` goes at the pace of its reader, and takes little memory",
  async () => {
    await using server = await startProcess(async (websocket) => {
      const piece = new Uint8Array(100_000);
      for (let count = 0; count < 2_000; count++) {
        piece[0] = count;
        await websocket.send(piece);
      }
    });
    using reader = await RawClient.upgraded(server.port);
    const idle = memory(server.pid);
    for (let due = 2_000 * 100_010; due > 0;) {
      due -= (await reader.read()).length;
      if (Math.random() < 0.5) await delay(1);
    }
    assertLessOrEqual(memory(server.pid) - idle, 30 * MEBIBYTE);
  },
);

test(
  { needs: "net" },
  "a handler that takes its time holds only what its client has sent, and nothing once it is gone",
  async () => {
    const count = 200;
    let handled = 0;
    const gate = Promise.withResolvers<void>();
    await using server = startWatched(async (websocket) => {
      for await (const _ of websocket) {
        handled++;
        await gate.promise;
      }
    });
    const before = heldMemory();
    using client = await RawClient.upgraded(server.port);
    await client.write(frames(BINARY, new Uint8Array(65_536), count));
    // All but the one that is being handled.
    await eventually(() => assertLessOrEqual((count - 1) * 65_536, server.waiting));
    assertLessOrEqual(server.waiting, count * 66_000);
    assertLessOrEqual(heldMemory() - before, 1.5 * count * 66_000);
    client.connection.close();
    await eventually(() => assertEquals(server.waiting, 0));
    assertLessOrEqual(heldMemory() - before, 2 * MEBIBYTE);
    gate.resolve();
    assertEquals((await server.left.next()).code, 1006);
    assertEquals(handled, 1);
  },
);

// Memory.

test(
  { needs: "net" },
  "a message is freed when it is taken, whatever waits behind it",
  async () => {
    const [count, size] = [60, 1_000_000];
    const gates = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    await using server = startWatched(async (websocket) => {
      await gates[0].promise;
      for (let taken = 0; taken < count - 1; taken++) await websocket.receive();
      await gates[1].promise;
    });
    await using client = await TestClient.open(server.url);
    const before = heldMemory();
    for (let number = 0; number < count; number++) client.send(numbered(number, size));
    await eventually(() => assertLessOrEqual(count * size, server.waiting));
    gates[0].resolve();
    await eventually(() => assertLessOrEqual(server.waiting, 2 * size));
    assertLessOrEqual(heldMemory() - before, 10 * size);
    gates[1].resolve();
  },
);

test({ needs: "net" }, "a part of a message does not keep the whole in memory", async () => {
  const parts: ((text: string) => string)[] = [
    (text) => text.slice(0, 100),
    (text) => text.split(",")[1],
    (text) => text.match(/,(.*?),/)?.[1] ?? "",
    (text) => text.trim(),
  ];
  const texts = [
    "x".repeat(100) + "," + "y".repeat(100) + "," + "z".repeat(1_000_000 - 202),
    ",語".repeat(100) + "é".repeat(499_800),
    "part,of,it".padEnd(1_000_000),
  ];
  let handled = 0;
  await using server = startWatched(async (websocket) => {
    // The kernel and the runtime have enough with this, so that all else waits.
    for (let count = 0; count < 8; count++) websocket.send(new Uint8Array(2 * MEBIBYTE));
    for await (const message of websocket) {
      for (const part of parts) websocket.send(part(String(message)).slice(0, 100));
      handled++;
    }
  });
  using client = await RawClient.upgraded(server.port);
  await joined(server, 1);
  const before = heldMemory();
  for (const text of texts) await client.write(frames(TEXT, text, 20));
  await eventually(() => assertEquals(handled, texts.length * 20));
  assertLessOrEqual(heldMemory() - before, 10 * MEBIBYTE);
});

test(
  { needs: "net" },
  "a message that waits is counted with the memory that it takes, whatever its kind",
  async () => {
    const kinds: [number, (number: number) => string | Uint8Array<ArrayBuffer>][] = [
      [20_000, () => ""],
      [20_000, (number) => `${number}`],
      [20_000, (number) => numbered(number, 20)],
      [5_000, (number) => `${number} `.padEnd(1_000, "語")],
      [10, (number) => `${number} `.padEnd(1_000_000, "語")],
      [500, (number) => numbered(number, 65_536)],
    ];
    for (const [count, make] of kinds) {
      const filled = Promise.withResolvers<void>();
      await using server = startWatched(async (websocket) => {
        for (let large = 0; large < 8; large++) websocket.send(new Uint8Array(2 * MEBIBYTE));
        await websocket.receive();
        for (let number = 0; number < count; number++) websocket.send(make(number));
        filled.resolve();
        await websocket.closed;
      });
      using client = await RawClient.upgraded(server.port);
      await joined(server, 1);
      const before = heldMemory();
      const counted = server.waiting;
      await client.write(frame(TEXT, "go"));
      await within(filled.promise, "all to be sent");
      assertLessOrEqual(heldMemory() - before, 1.2 * (server.waiting - counted) + MEBIBYTE);
    }
  },
);

test(
  { needs: "linux" },
  "a message of 1 MiB to 300 readers who are held back is in memory once, and nobody has to go",
  async () => {
    // Without this, the runtime keeps for each connection a copy of the largest message sent to it.
    const env = { NO_COLOR: "1", DENO_USE_WRITEV: "1" };
    const args = ["run", "--allow-net", "broadcast_server.ts", "--port", "0", "--quiet"];
    const cwd = new URL("../", import.meta.url);
    await using server = new Program(Deno.execPath(), args, { cwd, env });
    const port = Number((await server.prints(/ws:/)).match(/ws:.*?:(\d+)/)?.[1]);
    await using sender = await TestClient.open(`ws://localhost:${port}`);
    using readers = await connectRaw(port, 300);
    await eventually(async () => {
      assertEquals((await push({ port }, "hello")).text, '{"clients":301}\n');
    });
    const idle = memory(server.pid);
    sender.send(new Uint8Array(MEBIBYTE));
    await sender.messages.next((message) => message instanceof ArrayBuffer);
    await delay(500);
    for (const reader of readers) {
      for (let due = MEBIBYTE; due > 0;) due -= (await reader.read()).length;
    }
    assertLessOrEqual(memory(server.pid) - idle, 128 * MEBIBYTE);
    assertEquals(server.errors.all, []);
  },
);

test(
  { needs: "linux" },
  "clients that flood and never read take bounded memory, and a newcomer is served after them",
  async () => {
    const budget = 16 * MEBIBYTE;
    const large = frame(BINARY, new Uint8Array(65_535));
    const kinds = [large, frames(TEXT, "x", 1_000), frames(BINARY, "", 1_000)];
    await Promise.all(kinds.map(async (flooding) => {
      const flags = ["--quiet", "--max-waiting", `${budget}`];
      await using server = await Script.server("server.ts", ...flags);
      const [descriptors, bytes] = [countDescriptors(server), memory(server.pid)];
      using flooders = await connectRaw(Number(new URL(server.url).port), 20);
      const flood = async (client: RawClient) => {
        // This fills the buffers of the kernel. What follows has to wait in the server.
        for (let count = 0; count < 64; count++) await client.write(large);
        for (let sent = 0; sent < 24 * MEBIBYTE; sent += Math.max(flooding.length, 100_000)) {
          await client.write(flooding);
        }
      };
      // A dropped client is reset as soon as it sends more, or the runtime reads no more from it.
      const flooded = Promise.all(flooders.map((client) => flood(client).catch(silent)));
      await deadline(flooded, 1_500).catch(silent);
      await server.errors.next((line) => line.startsWith("Dropped a client."), "the drop");
      // The runtime keeps what it was handed for a client until its connection ends, and V8 is
      // in no hurry to free what the flooders sent. Without a budget it is 500 MiB and more.
      const most = budget + flooders.length * MEBIBYTE + 256 * MEBIBYTE;
      assertLessOrEqual(memory(server.pid) - bytes, most);
      flooders[Symbol.dispose]();
      await flooded;
      // Nobody is let in until the server has seen that they are gone.
      const newcomer = await eventually(() => TestClient.open(server.url));
      newcomer.send("hello");
      assertMatch(String(await newcomer.next()), /^Data received as "hello"/);
      await newcomer.close();
      await assertDescriptors(server, descriptors);
    }));
  },
);

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
