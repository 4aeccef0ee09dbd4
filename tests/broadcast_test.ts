// What the broadcast server promises: everyone hears everything, and nobody can spoil it.

import { assert, assertEquals, assertLessOrEqual, assertMatch } from "@std/assert";
import { assertStringIncludes } from "@std/assert";
import { retry } from "@std/async";
import { room } from "../broadcast_server.ts";
import type { ServeOptions } from "../websockets.ts";
import { ask, frame, handshake, Inbox, RawClient, Script } from "./helpers.ts";
import { startServer, test, TestClient, within } from "./helpers.ts";

const TEXT = 1;
const CLOSE = 8;
/** What a slow reader is flooded with. */
const LARGE = new Uint8Array(64 * 1024).fill(120);
/** For what happens soon, without an event that tells of it. */
const SOON = { minTimeout: 10, maxAttempts: 10 };

/** A room in this process, with the lines that tell who joins and who leaves. */
function startRoom(options?: ServeOptions) {
  const sockets = new Set<WebSocket>();
  const lines = new Inbox<string>();
  const handler = room(sockets, (line) => lines.put(line), () => {});
  return Object.assign(startServer(handler, options), { sockets, lines });
}

/** Lets clients into an empty room, and waits until the room knows all of them. */
async function join({ url, lines }: { url: string; lines: Inbox<string> }, count: number) {
  const clients = await Promise.all(Array.from({ length: count }, () => TestClient.open(url)));
  await heard(lines, `A client joined, ${count} connected.`);
  const leave = async () => void await Promise.all(clients.map((client) => client.close()));
  return Object.assign(clients, { [Symbol.asyncDispose]: leave });
}

function heard(lines: Inbox<string>, line: string): Promise<string> {
  return lines.next((each) => each === line, `"${line}"`);
}

/** Ends a connection as a crash does: where bytes are unread, the system sends a TCP reset. */
async function reset({ connection }: RawClient): Promise<void> {
  await within(connection.read(new Uint8Array(1)), "the first of many bytes");
  connection.close();
}

async function push(url: string, body: BodyInit, path = "/"): Promise<[number, string]> {
  const target = new URL(path, url.replace("ws:", "http:"));
  const response = await fetch(target, { method: "POST", body });
  return [response.status, await response.text()];
}

/** A push as it is written to the connection, with more headers. */
function pushed(body: string, ...headers: string[]): string {
  return ["POST / HTTP/1.1", "Host: localhost", ...headers, "", body].join("\r\n");
}

test(
  { needs: "net" },
  "everyone hears every message, its sender too, unchanged and in order",
  async () => {
    await using server = startRoom();
    await using clients = await join(server, 3);
    const sent = [
      "hello",
      "",
      " \0\u202e🦕\r\n",
      new Uint8Array([0, 255, 128]).buffer,
      LARGE.buffer,
    ];
    for (const message of sent) clients[1].send(message);
    for (const client of clients) {
      for (const message of sent) assertEquals(await client.next(), message);
    }
  },
);

test(
  { needs: "net" },
  "16 clients send 128 messages at once, and all see all in the same order",
  async () => {
    await using server = startRoom();
    await using clients = await join(server, 16);
    const numbers = Array.from({ length: 128 }, (_, number) => number);
    for (const number of numbers) {
      clients.forEach((client, sender) => client.send(`${sender}:${number}`));
    }
    for (const client of clients) {
      while (client.messages.all.length < 16 * 128) await client.next();
      assertEquals(client.messages.all, clients[0].messages.all);
    }
    for (const sender of clients.keys()) {
      const own = clients[0].messages.all.filter((message) =>
        `${message}`.startsWith(`${sender}:`)
      );
      assertEquals(own, numbers.map((number) => `${sender}:${number}`));
    }
  },
);

test(
  { needs: "net" },
  "who leaves or breaks off is forgotten at once, the others notice nothing",
  async () => {
    await using server = startRoom();
    await using clients = await join(server, 2);
    const sent: string[] = [];
    const sendSome = () => {
      for (let count = 0; count < 20; count++) {
        clients[0].send(
          `${sent.push(`${sent.length}`) - 1}`,
        );
      }
    };
    for (let round = 0; round < 20; round++) {
      sendSome();
      using breaks = await RawClient.upgraded(server.port);
      const leaves = await TestClient.open(server.url);
      await heard(server.lines, "A client joined, 4 connected.");
      sendSome();
      await Promise.all([reset(breaks), leaves.close()]);
      while (server.sockets.size > 2) await server.lines.next();
    }
    // The runtime reports a reset with the code 0.
    assert(server.lines.all.some((line) => line.startsWith("A client left (0)")));
    for (const client of clients) {
      while (client.messages.all.length < sent.length) await client.next();
      assertEquals(client.messages.all, sent);
    }
  },
);

test({ needs: "net" }, "a client that stops reading is muted, then closed with 1008", async () => {
  await using server = startRoom();
  await using clients = await join(server, 2);
  using slow = await RawClient.upgraded(server.port);
  await heard(server.lines, "A client joined, 3 connected.");
  const [publisher, reader] = clients;
  const [, , socket] = server.sockets;
  // Its own echo paces the publisher, which is no slow reader then.
  const publish = async () => {
    publisher.send(LARGE);
    assertEquals(await publisher.next(), LARGE.buffer);
    assertLessOrEqual(socket.bufferedAmount, MAX_BUFFERED + LARGE.length);
  };
  while (server.log.all.length === 0) await publish();
  assertMatch(server.log.all[0], /^A client does not read what it is sent: muted/);

  // Muted, it has nothing more queued for it and is not listened to, but still counts as a client.
  const waiting = socket.bufferedAmount;
  for (let count = 0; count < 16; count++) await publish();
  assertLessOrEqual(socket.bufferedAmount, waiting);
  assertEquals(server.sockets.size, 3);
  await slow.write(frame(TEXT, "not to be heard"));

  // Awake, it finds Close behind what has waited for it: 1008 is the bytes 3 and 240.
  let end = "";
  while (!end.includes("Too slow")) {
    const bytes = await slow.read();
    assert(bytes.length > 0, "The connection ended without a Close frame.");
    end = (end + new TextDecoder("latin1").decode(bytes)).slice(-100);
  }
  assertStringIncludes(end, "\x03\xf0Too slow");
  await slow.write(frame(CLOSE, new Uint8Array([3, 240])));
  await heard(server.lines, "A client left (1008), 2 connected.");
  publisher.send("the end");
  assertEquals(await publisher.next(), "the end");
  while (reader.messages.all.at(-1) !== "the end") await reader.next();
  assertEquals(reader.messages.all, publisher.messages.all);
});

test(
  { needs: "linux" },
  "a slow reader takes bounded memory, and leaves nothing when it dies",
  async () => {
    await using server = await Script.server("broadcast_server.ts", "--quiet");
    await using clients = await join(server, 2);
    const descriptors = () => [...Deno.readDirSync(`/proc/${server.pid}/fd`)].length;
    const peakMemory = () => {
      const status = Deno.readTextFileSync(`/proc/${server.pid}/status`);
      return Number(status.match(/VmHWM:\s+(\d+) kB/)?.[1]) * 1024;
    };
    const [descriptorsBefore, memoryBefore] = [descriptors(), peakMemory()];
    using slow = await RawClient.upgraded(Number(new URL(server.url).port));
    await heard(server.lines, "A client joined, 3 connected.");
    assertEquals(descriptors(), descriptorsBefore + 1);

    // Of these 192 MiB the slow reader may hold some 4, the rest of what is allowed is for garbage.
    for (let count = 0; count < 3072; count++) {
      clients[0].send(LARGE);
      await clients[0].next();
    }
    assertLessOrEqual(peakMemory() - memoryBefore, 128 * 1024 * 1024);
    slow.connection.close();
    await heard(server.lines, "A client left (0), 2 connected.");
    await retry(() => assertEquals(descriptors(), descriptorsBefore), SOON);
  },
);

test(
  { needs: "net" },
  "what is pushed is heard by all, and the answer tells how many they are",
  async () => {
    await using server = startRoom();
    assertEquals(await push(server.url, "hello, nobody"), [202, `{"clients":0}\n`]);
    await using clients = await join(server, 2);
    assertEquals(await push(server.url, "hello 🦕"), [202, `{"clients":2}\n`]);
    assertEquals((await push(server.url, "hello, file", "/file"))[0], 426);
    assertEquals((await push(server.url, new Uint8Array([0xff])))[0], 400, "This is no text.");
    assertEquals((await push(server.url, ""))[0], 202);
    for (const client of clients) {
      assertEquals([await client.next(), await client.next()], ["hello 🦕", ""]);
    }
  },
);

test({ needs: "net" }, "a page that may not connect may not push either", async () => {
  await using server = startRoom({ origins: ["https://friend.example"] });
  const cases: [string, number][] = [["https://friend.example", 202], ["https://example.com", 403]];
  for (const [Origin, expected] of [...cases, ["http://localhost", 202], ["null", 403]] as const) {
    const request = pushed("hello", `Origin: ${Origin}`, "Content-Length: 5");
    assertEquals((await ask(server.port, request)).status, expected, Origin);
  }
});

test(
  { needs: "net" },
  "a push counts as a client until it ends, even if it breaks off",
  async () => {
    await using server = startRoom({ maxClients: 1 });
    using half = await RawClient.open(server.port, pushed("hello", "Content-Length: 10"));
    await retry(async () => assertEquals((await push(server.url, "hello"))[0], 503), SOON);
    half.connection.close();
    await server.log.next((line) => line.startsWith("Refused a request"), "the broken push");
    await using clients = await join(server, 1);
    assertEquals(clients[0].messages.all, []);
  },
);

test(
  { needs: "run" },
  "it prints where it is, who comes and goes, and what is said, disarmed",
  async () => {
    await using server = await Script.server("broadcast_server.ts");
    const { host, port } = new URL(server.url);
    assertEquals(server.lines.all, [`Broadcast server on ws://${host}, page at http://${host}/`]);
    const page = await fetch(`http://${host}/`);
    assertMatch(await page.text(), /^<!doctype html>/i);
    assertEquals((await ask(Number(port), handshake({ Origin: "null" }))).status, 403);
    await heard(server.errors, "Refused a page from null, see --origin.");
    {
      await using clients = await join(server, 1);
      for (const message of ["\x1b[31m\u202e", new Uint8Array(3).buffer]) {
        clients[0].send(message);
        assertEquals(await clients[0].next(), message);
      }
      await push(server.url, "hello");
    }
    await heard(server.lines, "A client left (1000), 0 connected.");
    const said = ["\\u{1b}[31m\\u{202e}", "3 bytes of binary.", "hello"];
    assertEquals(server.lines.all.slice(2, -1), said);
  },
);

test(
  { needs: "run" },
  "its flags set the limits, and --quiet keeps back what is said",
  async () => {
    const flags = ["--quiet", "--max-clients", "1", "--max-message", "10", "--origin", "null"];
    await using server = await Script.server("broadcast_server.ts", ...flags);
    await using client = await TestClient.open(server.url, { Origin: "null" });
    await heard(server.lines, "A client joined, 1 connected.");
    client.send("it fits");
    assertEquals(await client.next(), "it fits");
    assertEquals((await push(server.url, "no room"))[0], 503);
    const long = "more than ten bytes";
    client.send(long);
    assertEquals((await within(client.closed, "the close")).code, 1009);
    await heard(server.lines, "A client left (1009), 0 connected.");
    // A body in a stream goes out without telling its length.
    for (const body of [long, ReadableStream.from([new TextEncoder().encode(long)])]) {
      assertEquals((await push(server.url, body))[0], 413);
    }
    assertEquals(server.lines.all.length, 3, "The lines are the first, the join and the leave.");
  },
);

test({ needs: "run" }, "SIGTERM closes every client with 1001, and ends with 0", async () => {
  await using server = await Script.server("broadcast_server.ts");
  await using clients = await join(server, 3);
  server.kill("SIGTERM");
  for (const client of clients) {
    assertEquals((await within(client.closed, "the close")).code, 1001);
  }
  assertEquals(await server.end(), 0);
  assertEquals(server.errors.all, []);
});
