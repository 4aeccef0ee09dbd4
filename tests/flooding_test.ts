// What `serve` promises about clients that send too much: those are dropped, all others stay, and the
// memory for what waits has a bound.

import { assert, assertEquals, assertLessOrEqual, assertMatch } from "@std/assert";
import { deadline, delay } from "@std/async";
import type { Close, Handler } from "websockets";
import { eventually, heldMemory, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { assertDescriptors, countDescriptors, Program, Script } from "./programs.ts";
import { frame, handshake, RawClient } from "./raw.ts";
import {
  assertInOrder,
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

const SENT_TOO_MUCH = "Dropped a client. It sent more than could be taken.";

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

// A client that sends too much is dropped.

test(
  { needs: "net" },
  "Too much waits for all clients together: one that has sent it gets 1008, and all readers stay",
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
  const dropped = room.log.all.filter((line) => line.startsWith("Dropped"));
  assertEquals(dropped, Array(drops).fill(SENT_TOO_MUCH));
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
  "Too much waits for all clients together: pushes get 503, and cost no reader its place",
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
  "Pace: a handler that awaits `send` goes at the pace of its reader, and takes little memory",
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
  "Fast senders: what a handler has not read waits in memory, also when its client is gone",
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
    gate.resolve();
    assertEquals((await server.left.next()).code, 1006);
    assertEquals([handled, server.waiting], [count, 0]);
    assertLessOrEqual(heldMemory() - before, 2 * MEBIBYTE);
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
    const env = { DENO_USE_WRITEV: "1" };
    const args = ["run", "--allow-net", "broadcast_server.ts", "--port", "0", "--quiet"];
    const cwd = new URL("../", import.meta.url);
    await using server = new Program(Deno.execPath(), args, { cwd, env });
    const port = Number((await server.prints(/ws:/)).match(/ws:.*?:(\d+)/)?.[1]);
    await using sender = await TestClient.open(`ws://localhost:${port}`);
    using readers = await connectRaw(port, 300);
    await eventually(async () => {
      assertEquals(JSON.parse((await push({ port }, "hello")).text).clients, 301);
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
