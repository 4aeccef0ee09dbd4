// What `serve` promises about slow clients: who reads gets everything, who does not is dropped, and
// the memory that this takes has a bound.

import { assert, assertEquals, assertLessOrEqual, assertMatch } from "@std/assert";
import { deadline, delay, retry } from "@std/async";
import { room, type Rooms } from "../broadcast_server.ts";
import type { Handler, ServeOptions } from "../websockets.ts";
import {
  ask,
  frame,
  handshake,
  heldMemory,
  Inbox,
  RawClient,
  Script,
  startServer,
  test,
  TestClient,
  within,
} from "./helpers.ts";

const TEXT = 1;
const BINARY = 2;
const PONG = 10;
const MEBIBYTE = 1024 ** 2;
const silent = () => {};

/** Sends back what arrives. */
const verbatim: Handler = { message: (socket, data) => socket.send(data) };

/** Sends as many binary messages as the client asks for, of the size that it asks for, in one go. */
const onDemand: Handler = {
  message(socket, data) {
    const [count, size] = String(data).split(" ").map(Number);
    for (let number = 0; number < count; number++) socket.send(new Uint8Array(size));
  },
};

/** A server that knows its members. Once it has stopped, each `open` must have had one `close`. */
function startWatched(handler: Handler, options?: ServeOptions) {
  const members = new Set<WebSocket>();
  const opened: WebSocket[] = [];
  const closed: WebSocket[] = [];
  const left = new Inbox<CloseEvent>();
  const server = startServer({
    ...handler,
    open(socket, request) {
      members.add(socket);
      opened.push(socket);
      return handler.open?.(socket, request);
    },
    close(socket, event) {
      members.delete(socket);
      closed.push(socket);
      left.put(event);
      return handler.close?.(socket, event);
    },
  }, options);
  return {
    ...server,
    members,
    left,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      assertEquals([closed.length, new Set(closed).size], [opened.length, opened.length]);
    },
  };
}

/** A room in this process. */
function startRoom(options?: ServeOptions) {
  const rooms: Rooms = new Map();
  const lines = new Inbox<string>();
  const handler = room(rooms, { log: (line) => lines.put(line), print: silent });
  return Object.assign(startWatched(handler, options), { rooms, lines });
}

/** Connects so many clients. They leave together. */
async function connect(url: string, count: number) {
  const clients = await Promise.all(Array.from({ length: count }, () => TestClient.open(url)));
  const leave = async () => void await Promise.all(clients.map((client) => client.close()));
  return Object.assign(clients, { [Symbol.asyncDispose]: leave });
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
  new DataView(message.buffer).setUint32(0, number);
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

/** Sends one thing again and again and reads nothing, until the server has no more of it. */
async function flood(client: RawClient, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
  // A connection that is dropped takes nothing more, and a stopped one is closed by the test.
  while (!signal.aborted) await client.write(bytes).catch(() => delay(10));
}

const descriptors = (pid: number) => [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
const memory = (pid: number) =>
  Number(Deno.readTextFileSync(`/proc/${pid}/status`).match(/VmHWM:\s+(\d+) kB/)?.[1]) * 1024;

// Who reads gets everything.

test(
  { needs: "net" },
  "an echo client that sends and reads at the same time gets everything, in any size",
  async () => {
    // A round fits into what may wait, and all rounds together do not.
    await using server = startWatched(verbatim, { maxWaiting: 15 * MEBIBYTE });
    await using client = await TestClient.open(server.url);
    for (const [count, size] of [[5_000, 64], [5_000, 1_000], [150, 65_000], [10, 1_000_000]]) {
      for (let number = 0; number < count; number++) client.send(numbered(number, size));
      await assertInOrder(client, count, size);
    }
    assertEquals(server.log.all, []);
  },
);

test({ needs: "run" }, "a pipe of 20,000 lines through both scripts is complete", async () => {
  const count = 20_000;
  await using server = await Script.server("server.ts", "--quiet");
  await using client = new Script("client.ts", ["-i", server.url], ["--allow-net"], "piped");
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
    await using server = startRoom();
    await using readers = await connect(server.url, 5);
    for (const [count, size] of [[30, 1_000_000], [80, 65_000], [3_000, 1_000]]) {
      for (let number = 0; number < count; number++) readers[0].send(numbered(number, size));
      await Promise.all(readers.map((reader) => assertInOrder(reader, count, size)));
    }
    assertEquals(server.log.all, []);
  },
);

test({ needs: "net" }, "20 clients that all send 50 messages at once hear 1,000", async () => {
  await using server = startRoom();
  await using clients = await connect(server.url, 20);
  const sent = Array.from({ length: 50 }, (_, number) => `message ${number} of 50 ..`);
  for (const client of clients) sent.forEach((message) => client.send(message));
  for (const client of clients) {
    while (client.messages.all.length < 1_000) await client.next();
    assertEquals(client.messages.all, clients[0].messages.all);
  }
  assertEquals(server.log.all, []);
});

test(
  { needs: "net" },
  "empty messages close nobody, however many there are and however long it takes",
  async () => {
    const now = performance.now;
    try {
      await using server = startWatched(verbatim, { maxWaiting: MEBIBYTE });
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
      await using server = startWatched(onDemand, { idleTimeout: 2 });
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

// Who does not read is dropped.

test(
  { needs: "net" },
  "a member of a room that never reads is dropped, and the others get every message on time",
  async () => {
    await using server = startRoom({ maxWaiting: 4 * MEBIBYTE });
    await using readers = await connect(server.url, 2);
    using sleeper = await RawClient.upgraded(server.port);
    await retry(() => assertEquals(server.rooms.get("")?.size, 3), { minTimeout: 10 });
    let number = 0;
    const publish = async () => {
      const message = numbered(number, 200_000);
      readers[0].send(message);
      for (const reader of readers) assertNumber(await reader.next(), number, message.length);
      number++;
    };
    while (server.log.all.length === 0) {
      assert(number < 200, "40 MB wait, and nobody is dropped");
      await publish();
    }
    assertEquals(server.log.all, [
      "Dropped a client. It read too little while too much was waiting.",
    ]);
    await server.lines.next((line) => line === "A client left (1008), 2 connected.");
    const dropped = number;
    for (let count = 0; count < 50; count++) await publish();

    const { code, before } = await sleeper.readClose();
    assertEquals(code, 1008);
    assertLessOrEqual(
      before,
      dropped * 200_010 - 2 * MEBIBYTE,
      "What waited is not sent any more.",
    );
  },
);

test(
  { needs: "net" },
  "who takes nothing for the time of `idleTimeout` is dropped, and told when it wakes up",
  async () => {
    await using server = startWatched(onDemand, { idleTimeout: 0.6 });
    await using other = await TestClient.open(server.url);
    using sleeper = await RawClient.upgraded(server.port);
    await sleeper.write(frame(TEXT, "100 100000"));
    const { code } = await server.left.next();
    assertEquals([code, server.members.size], [1008, 1]);
    assertMatch(server.log.all.join(), /^Dropped a client\. It did not read/);
    other.send("1 1");
    await other.next();
    assertEquals((await sleeper.readClose()).code, 1008);
  },
);

test({ needs: "net" }, "what waited for a dropped client is freed at once", async () => {
  await using server = startWatched(onDemand, { idleTimeout: 0.6 });
  using sleeper = await RawClient.upgraded(server.port);
  const before = heldMemory();
  await sleeper.write(frame(TEXT, "600 100000"));
  await server.left.next();
  assertLessOrEqual(heldMemory() - before, 20_000_000);
});

test({ needs: "net" }, "who reads slowly stays, however long it takes", async () => {
  await using server = startWatched(onDemand, { idleTimeout: 0.8 });
  using reader = await RawClient.upgraded(server.port);
  await reader.write(frame(TEXT, "30 1000000"));
  let due = 0;
  for (let bytes = 0; bytes < 30 * 1_000_010;) {
    const { length } = await reader.read();
    assert(length > 0, `dropped after ${bytes} bytes: ${server.log.all}`);
    bytes += length;
    if (bytes < due) continue;
    due += 2_000_000;
    await delay(150);
    await reader.write(frame(PONG));
  }
});

test(
  { needs: "linux" },
  "a stopped process is out of its room and of the count, whether or not messages wait for it",
  async () => {
    await Promise.all([0, 10].map(async (waiting) => {
      await using server = startRoom({ idleTimeout: 0.6, maxClients: 2 });
      const target = server.url.replace("ws:", "http:");
      const push = async (body: string) =>
        (await (await fetch(target, { method: "POST", body })).text()).trim();
      await using client = new Script("client.ts", ["-i", server.url], ["--allow-net"], "piped");
      const { stdin } = client;
      await using _input = { [Symbol.asyncDispose]: () => stdin.close().catch(silent) };
      await server.lines.next((line) => line === "A client joined, 1 connected.");
      client.kill("SIGSTOP");
      for (let count = 0; count < waiting; count++) await push("x".repeat(1_000_000));
      // The runtime finds out that it answers no ping, unless the ping has to wait as well.
      const code = waiting > 0 ? 1008 : 1001;
      assertEquals(await server.lines.next(), `A client left (${code}), 0 connected.`);
      assertEquals(await push("hello"), '{"clients":0}');
      // The place of the stopped one is free.
      await using _newcomers = await connect(server.url, 2);
      assertEquals((await ask(server.port, handshake())).status, 503);
    }));
  },
);

test(
  { needs: "net" },
  "who never answers Close is forgotten, and its place is free again",
  async () => {
    const closing: Handler = { message: (socket) => socket.close(4000, "go") };
    await using server = startWatched(closing, { idleTimeout: 1, maxClients: 1 });
    using client = await RawClient.upgraded(server.port);
    await client.write(frame(TEXT, "leave"));
    const { code, reason } = await server.left.next();
    assertEquals([code, reason, server.members.size], [4000, "go", 0]);
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
    const before = descriptors(server.pid);
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
    await retry(() => assertEquals(descriptors(server.pid), before), { minTimeout: 20 });
    await publish();
  },
);

test(
  { needs: "net" },
  "dropped clients that go on sending do not hold up the others",
  async () => {
    let handled = 0;
    const counting: Handler = {
      message(socket, data) {
        handled++;
        socket.send(data);
      },
    };
    await using server = startWatched(counting, { maxWaiting: 4 * MEBIBYTE });
    const stopped = new AbortController();
    const flooders = await Promise.all(
      Array.from({ length: 20 }, () => RawClient.upgraded(server.port)),
    );
    const flooding = flooders.map((client) =>
      flood(client, frame(BINARY, new Uint8Array(65_535)), stopped.signal)
    );
    await using reader = await TestClient.open(server.url);
    for (const _ of flooders) assertEquals((await server.left.next()).code, 1008);
    handled = 0;
    for (let count = 0; count < 50; count++) {
      reader.send("hello");
      assertEquals(await reader.next(), "hello");
    }
    assertEquals(handled, 50);
    stopped.abort();
    for (const client of flooders) client[Symbol.dispose]();
    await Promise.all(flooding);
  },
);

test(
  { needs: "net" },
  "what a handler sends when somebody is dropped reaches the others",
  async () => {
    const members = new Set<WebSocket>();
    const telling: Handler = {
      open: (socket) => void members.add(socket),
      message: (_socket, data) => members.forEach((member) => member.send(data)),
      close(socket, { code }) {
        members.delete(socket);
        for (const member of members) member.send(`Somebody left: ${code}`);
      },
    };
    await using server = startWatched(telling, { maxWaiting: MEBIBYTE });
    await using clients = await connect(server.url, 4);
    clients[0].send(new Uint8Array(600_000));
    for (const client of clients.slice(1)) {
      const farewell = await client.messages.next((data) => typeof data === "string");
      assertEquals(farewell, "Somebody left: 1008");
    }
  },
);

test(
  { needs: "net" },
  "a sender of more than a room can read is dropped, and all readers stay",
  async () => {
    await using server = startRoom({ maxWaiting: 8 * MEBIBYTE });
    await using readers = await connect(server.url, 20);
    await using sender = await TestClient.open(server.url);
    await server.lines.next((line) => line === "A client joined, 21 connected.");
    for (let count = 0; server.log.all.length === 0; count++) {
      assert(count < 4_000, "260 MB were sent to each, and nobody is dropped");
      sender.send(new Uint8Array(65_000));
      if (count % 8 === 0) await delay(1);
    }
    // The runtime resets who goes on sending after a Close frame, so the code may not arrive.
    await within(sender.closed, "the close");
    await server.lines.next((line) => line === "A client left (1008), 20 connected.");
    assertEquals(server.log.all, ["Dropped a client. It sent more than the others could read."]);
    readers[0].send("the end");
    const heard: number[] = [];
    for (const reader of readers) {
      while (reader.messages.all.at(-1) !== "the end") await reader.next();
      heard.push(reader.messages.all.length);
    }
    // The message for which the sender was dropped is not passed on to those whose turn it was not yet.
    assertLessOrEqual(Math.max(...heard) - Math.min(...heard), 1);
  },
);

test(
  { needs: "net" },
  "a Blob that is being read when its client is closed still arrives",
  async () => {
    await using server = startServer({
      message(socket) {
        socket.send(new Blob(["the ", "end"]));
        socket.close(4000);
      },
    });
    await using client = await TestClient.open(server.url);
    client.send("");
    assertEquals(await client.next(), new TextEncoder().encode("the end").buffer);
    assertEquals((await client.closed).code, 4000);
  },
);

test(
  { needs: "net" },
  "Blobs count with their size, and arrive in order, whole",
  async () => {
    const blobs: Handler = {
      message(socket, data) {
        const blob = new Blob([new Uint8Array(500_000)]);
        for (let count = 0; count < Number(data); count++) socket.send(blob);
      },
    };
    await using server = startWatched(blobs, { maxWaiting: 16 * MEBIBYTE });
    using sleeper = await RawClient.upgraded(server.port);
    await retry(() => assertEquals(server.members.size, 1), { minTimeout: 10 });
    const [socket] = server.members;
    await sleeper.write(frame(TEXT, "60"));
    assertEquals((await server.left.next()).code, 1008);
    assertLessOrEqual(socket.bufferedAmount, 2 * MEBIBYTE);
    await using reader = await TestClient.open(server.url);
    reader.send("20");
    for (let count = 0; count < 20; count++) {
      const message = await reader.next();
      assertEquals(message instanceof ArrayBuffer && message.byteLength, 500_000);
    }
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
      const before = memory(server.pid);
      const flooders = await Promise.all(
        Array.from({ length: 20 }, () => RawClient.upgraded(Number(new URL(server.url).port))),
      );
      const flood = async (client: RawClient) => {
        // This fills the buffers of the kernel. What follows has to wait in the server.
        for (let count = 0; count < 64; count++) await client.write(large);
        for (let sent = 0; sent < 24 * MEBIBYTE; sent += Math.max(flooding.length, 100_000)) {
          await client.write(flooding);
        }
      };
      // Whoever is dropped is reset as soon as it sends more, or the runtime does not read it any more.
      const flooded = Promise.all(flooders.map((client) => flood(client).catch(silent)));
      await deadline(flooded, 1_500).catch(silent);
      await server.errors.next((line) => line.startsWith("Dropped a client."), "the drop");
      // The runtime keeps what it was handed for a client until its connection ends, and V8 is
      // in no hurry to free what the flooders sent. Without a budget it is 500 MiB and more.
      const most = budget + flooders.length * MEBIBYTE + 256 * MEBIBYTE;
      assertLessOrEqual(memory(server.pid) - before, most);
      for (const client of flooders) client[Symbol.dispose]();
      await flooded;
      await using newcomer = await TestClient.open(server.url);
      newcomer.send("hello");
      assertMatch(String(await newcomer.next()), /^Data received as "hello"/);
    }));
  },
);

// What is sent is what arrives.

test({ needs: "net" }, "the runtime is handed little at a time for each client", async () => {
  const handed = new Inbox<number>();
  const handler: Handler = {
    async message(socket, data) {
      await onDemand.message(socket, data);
      handed.put(socket.bufferedAmount);
    },
  };
  await using server = startServer(handler);
  await using client = await TestClient.open(server.url);
  client.send("30 100000");
  assertLessOrEqual(await handed.next(), 600_000);
  for (let count = 0; count < 30; count++) await client.next();
});

test(
  { needs: "net" },
  "text, binary, Blobs and empty messages arrive in the order in which they were sent",
  async () => {
    const large = "x".repeat(300_000);
    const texts = Array.from({ length: 300 }, (_, number) => number % 7 ? `${number}` : "");
    const mixed: Handler = {
      message(socket) {
        socket.send(large);
        for (const [number, text] of texts.entries()) {
          const bytes = new TextEncoder().encode(text);
          const kinds = [text, bytes, bytes.buffer, new DataView(bytes.buffer), new Blob([bytes])];
          socket.send(kinds[number % kinds.length]);
          if (number % 50 === 0) socket.send(large);
        }
        socket.send(new Blob(["the end"]));
        socket.close(4000);
      },
    };
    await using server = startWatched(mixed);
    await using client = await TestClient.open(server.url);
    client.send("go");
    assertEquals((await within(client.closed, "the close")).code, 4000);
    const arrived = client.messages.all
      .map((data) => typeof data === "string" ? data : new TextDecoder().decode(data))
      .filter((text) => text !== large);
    assertEquals(arrived, [...texts, "the end"]);
  },
);

test(
  { needs: "net" },
  "a handler may use its buffer again as soon as it has sent it",
  async () => {
    const reusing: Handler = {
      message(socket) {
        const buffer = new Uint8Array(100_000);
        for (let number = 0; number < 60; number++) {
          new DataView(buffer.buffer).setUint32(10, number);
          socket.send(number % 2 ? buffer.subarray(10) : buffer.slice(10).buffer);
          socket.send(new DataView(buffer.buffer, 10));
        }
        buffer.fill(255);
      },
    };
    await using server = startWatched(reusing);
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
    const closing: Handler = {
      message(socket) {
        handled++;
        for (let count = 0; count < 20; count++) socket.send(new Uint8Array(1_000_000));
        socket.close(4000, "x".repeat(122) + "é");
        socket.send("after the end");
        socket.close(1000);
      },
    };
    await using server = startWatched(closing);
    using client = await RawClient.upgraded(server.port);
    await client.write(frames(TEXT, "go", 3));
    // Far more waits than the kernel holds.
    await delay(300);
    const { code, reason, before } = await client.readClose();
    assertEquals([code, reason, before], [4000, "x".repeat(122), 20 * 1_000_010]);
    client.connection.close();
    assertEquals((await server.left.next()).code, 4000);
    assertEquals(handled, 1, "Who is being closed is not listened to.");
  },
);
