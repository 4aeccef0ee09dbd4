// What the broadcast server promises where a NATS server, here a real one, joins its instances.

import type { Server } from "@nats-io/nats-core/internal";
import {
  assert,
  assertEquals,
  assertLessOrEqual,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { delay } from "@std/async";
import { serve } from "websockets";
import { Relay, type RelayOptions, roomSubject } from "websockets/nats.ts";
import { SocketTransport } from "../websockets/nats/transport.ts";
import { Broker, natsTest } from "./broker.ts";
import { eventually, freePort, Inbox, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { certify, Script } from "./programs.ts";
import { ask, handshake, RawClient } from "./raw.ts";

/** For tests that need much to be on its way. */
const LARGE = new Uint8Array(64 * 1024);
/** More than the system takes at once, so that it is being written when NATS hangs up. */
const HUGE = new ArrayBuffer(8_000_000);
const SPEAKER = { reconnectWait: 100 };
const LOST = /^NATS is lost \(.+\): local clients go on, reconnecting\.$/;
/** Names that mean something in a URL, in a NATS subject, or to those who read them. */
const NAMES = [
  ...["red", "RED", "r_e-d", "text", "binary", "a.b", "a%2Eb", "a b", "a+b", "*", ">", ".", ".."],
  ...["/", "?", "#", "%", "%2F", "$SYS", "$", "\\", "\n", "\0", "\u{feff}", "你好", "é", "e\u0301"],
  ...["👩‍👩‍👧‍👦", "x".repeat(100), "😀".repeat(100)],
];

/**
 * A relay in this process, with what it hears and logs. `SPEAKER` waits long enough after NATS is
 * back for all others, which try every 10 ms.
 */
async function startRelay(url: string, options: Partial<RelayOptions> = {}) {
  const messages = new Inbox<{ room: string; data: string | ArrayBuffer }>();
  const lines = new Inbox<string>();
  const relay = await Relay.connect({
    url,
    subject: "broadcast",
    timeout: 3_000,
    reconnectWait: 10,
    rooms: { receive: (room, data) => messages.put({ room, data }) },
    log: (line) => lines.put(line),
    ...options,
  });
  return Object.assign(relay, { messages, lines, [Symbol.asyncDispose]: () => relay.close() });
}

/** The number in the line that tells how many messages were lost. */
async function lostBy({ lines }: { lines: Inbox<string> }): Promise<number> {
  const line = await lines.next((line) => line.includes("not relayed"), "the count");
  return Number(line.match(/^Messages not relayed to the other servers: (\d+)\.$/)?.[1]);
}

async function write(text: string, connection: Deno.TcpConn): Promise<void> {
  await connection.write(new TextEncoder().encode(text));
}

async function readUpTo(text: string, connection: Deno.TcpConn): Promise<void> {
  const bytes = new Uint8Array(1000);
  while (!new TextDecoder().decode(bytes).includes(text)) {
    if (await connection.read(bytes) === null) return;
  }
}

/** Listens in the place of NATS, and does to those who connect what a test wants. */
async function listenAt(port: number, speak: (connection: Deno.TcpConn) => Promise<void>) {
  // A program that this process is just starting may still hold a listener that is closed.
  const listener = await eventually(() => Deno.listen({ hostname: "127.0.0.1", port }));
  const connections: Deno.TcpConn[] = [];
  const listen = async () => {
    for await (const connection of listener) {
      connections.push(connection);
      // The client may leave at any time.
      speak(connection).catch(() => {});
    }
  };
  const listening = listen();
  const stop = async () => {
    listener.close();
    await listening;
    for (const connection of connections) connection[Symbol.dispose]();
  };
  return { [Symbol.asyncDispose]: stop };
}

const INFO = { proto: 1, version: "2.9.10", max_payload: 8_000_000, headers: true };
const GREETING = `INFO ${JSON.stringify(INFO)}\r\n`;

/** Greets as NATS does, and then does what a test wants. */
function pretendBroker(port: number, speak: (connection: Deno.TcpConn) => Promise<void>) {
  return listenAt(port, async (connection) => {
    await write(GREETING, connection);
    await speak(connection);
  });
}

/** Lets a relay in, and refuses it when it has started to publish. */
async function refuseLate(connection: Deno.TcpConn): Promise<void> {
  await readUpTo("PING", connection);
  await write("PONG\r\n", connection);
  await readUpTo("PUB", connection);
  await write("-ERR 'Authorization Violation'\r\n", connection);
}

function startScript(broker: Broker, ...flags: string[]) {
  return Script.server("broadcast_server.ts", "--nats", broker.url, ...flags);
}

/** An instance of the broadcast server, with two clients that it knows of. */
async function startInstance(broker: Broker, ...flags: string[]) {
  const script = await startScript(broker, ...flags);
  const clients = [await TestClient.open(script.url), await TestClient.open(script.url)];
  await heard(script.lines, "A client joined, 2 connected.");
  const stop = async () => {
    await Promise.all(clients.map((client) => client.close()));
    await script[Symbol.asyncDispose]();
  };
  return { script, clients, [Symbol.asyncDispose]: stop };
}

/** Waits for things that start at the same time. They are disposed of together. */
async function together<T extends AsyncDisposable>(...starting: Promise<T>[]) {
  const all = await Promise.all(starting);
  const dispose = async () => {
    for (const each of all) await each[Symbol.asyncDispose]();
  };
  return Object.assign(all, { [Symbol.asyncDispose]: dispose });
}

function heard(lines: Inbox<string>, line: string | RegExp): Promise<string> {
  const isIt = (each: string) => typeof line === "string" ? each === line : line.test(each);
  return lines.next(isIt, `${line}`);
}

/** Waits until a client has got a message, and gives all up to then. */
async function upTo(last: string, { messages }: TestClient): Promise<(string | ArrayBuffer)[]> {
  await messages.next((message) => message === last, `"${last}"`);
  return messages.all;
}

Deno.test("the name of a room is one word of its subjects, from which it can be read back", () => {
  for (const name of NAMES) {
    const [prefix, ...words] = roomSubject("broadcast", name).split(".");
    assertEquals([prefix, words.length], ["broadcast", 1], name);
    assertMatch(words[0], /^[^\s.*>\p{C}]+$/u);
    assertEquals(decodeURIComponent(words[0]), name);
  }
});

Deno.test("plain names are readable in subjects, and the common room adds no word", () => {
  assertEquals(roomSubject("broadcast", "red"), "broadcast.red");
  assertEquals(roomSubject("my.servers", "Room-12_b"), "my.servers.Room-12_b");
  assertEquals(roomSubject("my.servers", "a.b *"), "my.servers.a%2Eb%20%2A");
  assertEquals(roomSubject("my.servers", ""), "my.servers");
});

Deno.test("a wrong URL or subject is a mistake in the command line", async () => {
  const usageError = async (url: string, subject: string) => {
    const options = { url, subject, rooms: { receive() {} }, log: () => {} };
    const error = await assertRejects(() => Relay.connect(options), Error);
    return [error.message, error.name];
  };
  const code = "SyntaxError";
  const cut = ["nats://secret/x@127.0.0.1", "nats://secret#@host", "nats://user:secret?x@host"];
  for (const url of ["", "127.0.0.1:4222", "nats://", "http://127.0.0.1:4222", ...cut]) {
    const message = "NATS has a URL such as nats://127.0.0.1:4222 or tls://token@example.com; " +
      "in a password, write / ? # as %2F %3F %23.";
    assertEquals(await usageError(url, "broadcast"), [message, code], url);
  }
  for (const subject of ["", "red room", "red.*", ">", "red..room", ".red", "red."]) {
    const message = `A NATS subject is words with dots between them, not "${subject}".`;
    assertEquals(await usageError("nats://127.0.0.1:4222", subject), [message, code]);
  }
});

natsTest("three instances are one room: all hear all, once and in order", async (broker) => {
  await using instances = await together(
    startInstance(broker),
    startInstance(broker),
    startInstance(broker),
  );
  const clients = instances.flatMap((instance) => instance.clients);
  const sayAll = (number: number) => {
    for (const [sender, client] of clients.entries()) {
      client.send(`${sender},${number}`);
      client.send(new Uint8Array([sender, number]));
    }
  };
  for (let number = 0; number < 100; number++) sayAll(number);
  for (const { messages } of clients) while (messages.all.length < 6 * 200) await messages.next();

  // A second copy of any of these would come before what its instance relays now.
  sayAll(100);
  const pair = (sender: number, number: number) => [
    `text ${sender},${number}`,
    `binary ${sender},${number}`,
  ];
  for (const { messages } of clients) {
    while (messages.all.length < 6 * 202) await messages.next();
    const all = messages.all.map((message) =>
      typeof message === "string" ? `text ${message}` : `binary ${new Uint8Array(message)}`
    );
    for (const sender of clients.keys()) {
      const said = Array.from({ length: 101 }, (_, number) => pair(sender, number)).flat();
      assertEquals(all.filter((each) => each.includes(` ${sender},`)), said);
    }
  }
});

natsTest("other rooms hear nothing, and any program that speaks NATS can join", async (broker) => {
  await using instances = await together(
    startInstance(broker, "--subject", "red.room"),
    startInstance(broker),
  );
  const [red, blue] = instances;
  using other = await RawClient.open(broker.port, "CONNECT {}\r\nSUB > 1\r\nPING\r\n");
  let received = "";
  const receive = async (text: string) => {
    while (!received.includes(text)) {
      const bytes = await other.read();
      assert(bytes.length > 0, `NATS has hung up after ${received}`);
      received += new TextDecoder().decode(bytes);
    }
  };
  await receive("PONG\r\n");
  red.clients[0].send("for red");
  await receive("MSG red.room.text 1 7\r\nfor red\r\n");
  await other.write("PUB broadcast.other 8\r\nfor none\r\nPUB broadcast.text 8\r\nfor blue\r\n");
  await other.write("PUB red.room.binary 3\r\n\0\x01\x02\r\n");
  assertEquals(await blue.clients[0].next(), "for blue");
  assertEquals(await red.clients[1].next(), "for red");
  assertEquals(await red.clients[1].next(), new Uint8Array([0, 1, 2]).buffer);
});

natsTest(
  "nobody can follow where messages have no one order, and a push has no position",
  async (broker) => {
    await using script = await startScript(broker);
    const url = script.url.replace("ws:", "http:");
    const push = await fetch(url, { method: "POST", body: "hello" });
    assertEquals(await push.text(), '{"clients":0}\n');
    for (const after of ["", "k3x9.17"]) {
      const request = handshake({}, `GET /?room=red&after=${after} HTTP/1.1`);
      assertEquals((await ask(Number(new URL(url).port), request)).status, 400);
    }
    // The page itself follows nobody.
    const page = await fetch(`${url}/?after=`);
    assertEquals(page.status, 200);
    assert(!(await page.text()).includes("<html data-replay"));
  },
);

natsTest("a missing NATS is one line and exit code 1, a bad subject is 2", async (broker) => {
  await broker.stop();
  const flags = ["--port", "0", "--nats", broker.url];
  await using script = new Script("broadcast_server.ts", flags);
  assertEquals(await script.end(), 1);
  const line =
    `No NATS server at 127.0.0.1:${broker.port} (Connection refused): start nats-server there.`;
  assertEquals([...script.errors.all, ...script.lines.all], [line]);
  await using wrong = new Script("broadcast_server.ts", [...flags, "--subject", "red.*"]);
  assertEquals(await wrong.end(), 2);
  assertMatch(wrong.errors.all[0], /^A NATS subject is words/);
  assertMatch(wrong.errors.all[1], /^Usage: /);
});

test({ needs: "run" }, "without permission for NATS, the line names the permission", async () => {
  for (const host of ["127.0.0.1", "localhost"]) {
    await using script = new Script("broadcast_server.ts", ["--nats", `nats://${host}:4222`], []);
    assertEquals(await script.end(), 1);
    assertEquals(script.errors.all.length, 1);
    assertMatch(
      script.errors.all[0],
      /^Requires net access to "[^"]+:4222".*: deno run --allow-net/,
    );
  }
});

natsTest(
  "its URL may hold a user and a password, or a token, which no line shows",
  async (broker) => {
    const cases = [
      [["--user", "me@home", "--pass", "s/cret"], "me%40home:s%2Fcret", "me%40home:wrong"],
      [["--auth", "a/token"], "a%2Ftoken", "wrong"],
    ] as const;
    for (const [flags, right, wrong] of cases) {
      await broker.stop();
      await broker.start(...flags);
      const url = (credentials: string) => broker.url.replace("//", `//${credentials}@`);
      await using _server = await Script.server("broadcast_server.ts", "--nats", url(right));
      await using script = new Script("broadcast_server.ts", ["--port", "0", "--nats", url(wrong)]);
      assertEquals(await script.end(), 1);
      const line = `No NATS server at 127.0.0.1:${broker.port} (Authorization Violation): ` +
        "put user:password@ or token@ before the host.";
      assertEquals([...script.errors.all, ...script.lines.all], [line]);
    }
  },
);

/** A certificate for a host, in a folder that is removed in the end. */
async function createCertificate(host: string) {
  const folder = await Deno.makeTempDir();
  const remove = () => Deno.remove(folder, { recursive: true });
  return { ...await certify(folder, host), [Symbol.asyncDispose]: remove };
}

natsTest("it speaks TLS, and says so if it can't trust the certificate", async (broker) => {
  await using certificate = await createCertificate("IP:127.0.0.1");
  const { cert, key } = certificate;
  const start = (url: string, ...permissions: string[]) => {
    const flags = ["--port", "0", "--nats", url];
    return new Script("broadcast_server.ts", flags, ["--allow-net", ...permissions]);
  };
  const secure = broker.url.replace("nats:", "tls:");
  const failure = async (url: string) => {
    await using script = start(url);
    assertEquals(await script.end(), 1);
    assertEquals([script.errors.all.length, script.lines.all], [1, []]);
    return script.errors.all[0];
  };
  assertMatch(
    await failure(secure),
    /: it does not speak TLS, use nats:\/\/ instead of tls:\/\/\.$/,
  );
  await broker.stop();
  await broker.start("--tls", "--tlscert", cert, "--tlskey", key, "--auth", "token");
  for (const url of [secure, broker.url]) {
    const line = await failure(url.replace("//", "//token@"));
    assertMatch(line, /\(.*certificate.*\): trust it with: deno run --cert=FILE --allow-net …\.$/);
    await using script = start(url.replace("//", "//token@"), `--cert=${cert}`);
    await script.prints(/ws:/);
  }
});

natsTest("with TLS, only what is encrypted counts, and only for the right host", async (broker) => {
  await using certificate = await createCertificate("DNS:localhost");
  const { cert, key } = certificate;
  await broker.stop();
  await broker.start("--tls", "--tlscert", cert, "--tlskey", key);
  const port = freePort();
  // It stands between a server and NATS, and adds a line of its own to the greeting.
  await using _between = await listenAt(port, async (connection) => {
    const nats = await Deno.connect({ hostname: "127.0.0.1", port: broker.port });
    const greeting = new Uint8Array(1000);
    const count = await nats.read(greeting);
    const text = new TextDecoder().decode(greeting.subarray(0, count ?? 0));
    await write(`${text}-ERR 'Authorization Violation'\r\n`, connection);
    const forth = connection.readable.pipeTo(nats.writable);
    await Promise.allSettled([forth, nats.readable.pipeTo(connection.writable)]);
  });
  const start = (host: string) => {
    const flags = ["--port", "0", "--nats", `tls://${host}:${port}`];
    return new Script("broadcast_server.ts", flags, ["--allow-net", `--cert=${cert}`]);
  };
  await using script = start("localhost");
  await script.prints(/ws:/);
  await using wrong = start("127.0.0.1");
  assertEquals(await wrong.end(), 1);
  assertMatch(wrong.errors.all[0], /\(.*certificate not valid for name.*\): trust it with/);
});

natsTest("rooms of any name are heard on all instances, and by nobody else", async (broker) => {
  await using scripts = await together(startScript(broker), startScript(broker));
  const [here, there] = scripts;
  const join = async ({ url }: { url: string }, name: string) => {
    const query = name === "" ? "" : `/?room=${encodeURIComponent(name)}`;
    return { name, client: await TestClient.open(url + query) };
  };
  const names = ["", ...NAMES];
  const speakers = await Promise.all(names.map((name) => join(here, name)));
  const listeners = await Promise.all(names.map((name) => join(there, name)));
  await broker.has(2 * names.length);
  for (const { name, client } of speakers) client.send(`in "${name}"`);
  for (const { client } of speakers) client.send("the end");
  for (const { name, client } of [...speakers, ...listeners]) {
    assertEquals(await upTo("the end", client), [`in "${name}"`, "the end"]);
  }
  await Promise.all([...speakers, ...listeners].map(({ client }) => client.close()));
});

natsTest("an instance pays only for the rooms that it has clients in", async (broker) => {
  await using scripts = await together(
    startScript(broker),
    startScript(broker),
    startScript(broker),
  );
  const [here, there] = scripts;
  assertEquals(await broker.subscriptions(), 0);
  const urls = [here, here, there].map(({ url }) => `${url}/?room=red`);
  const clients = await Promise.all(urls.map((url) => TestClient.open(url)));
  await broker.has(2);
  using other = await RawClient.open(
    Number(new URL(here.url).port),
    handshake({}, "GET /?room=blue HTTP/1.1"),
  );
  await broker.has(3);
  other.connection.close();
  await broker.has(2);
  clients[0].send("hello");
  for (const client of clients) assertEquals(await client.next(), "hello");
  for (const client of clients) await client.close();
  await broker.has(0);
});

natsTest("the first of a room hears the answer to what it says at once", async (broker) => {
  await using scripts = await together(startScript(broker), startScript(broker));
  const [here, there] = scripts;
  await using responder = await TestClient.open(`${there.url}/?room=red`);
  await using neighbor = await TestClient.open(here.url);
  responder.socket.onmessage = ({ data }) => data === "question" && responder.send("answer");
  await heard(there.lines, "A client joined (room red), 1 connected.");
  await broker.pause();
  await using first = await TestClient.open(`${here.url}/?room=red`);
  first.send("question");
  // Nobody waits in a room that is entered already.
  neighbor.send("hello");
  assertEquals(await neighbor.next(), "hello");
  broker.resume();
  assertEquals(await upTo("answer", first), ["question", "answer"]);
  assertEquals(neighbor.messages.all, ["hello"]);
});

natsTest("a NATS that stands still keeps a newcomer out for a second at most", async (broker) => {
  await using script = await startScript(broker);
  await broker.pause();
  for (
    const [query, room, said] of [
      ["", "The common room", "hello"],
      ["/?room=red", "Room red", "Room red: hello"],
    ]
  ) {
    await using client = await TestClient.open(script.url + query);
    client.send("hello");
    assertEquals(await client.next(), "hello");
    await heard(script.lines, `${room} is not joined yet, because NATS does not answer.`);
    await heard(script.lines, said);
  }
  assert(!script.lines.all.some((line) => LOST.test(line)), "NATS is not lost yet.");
  broker.resume();
  await using there = await startRelay(broker.url, SPEAKER);
  await using client = await TestClient.open(`${script.url}/?room=red`);
  client.send("hello");
  assertEquals(await client.next(), "hello");
  there.publish("red", "joined");
  assertEquals(await client.next(), "joined");
});

natsTest("10,000 rooms that were entered and left leave no subscription", async (broker) => {
  await using relay = await startRelay(broker.url);
  for (let first = 0; first < 10_000; first += 500) {
    const names = Array.from({ length: 500 }, (_, index) => `room ${first + index}`);
    await Promise.all(names.map((name) => relay.enter(name)));
    if (first === 0) assertEquals(await broker.subscriptions(), 500);
    for (const name of names) relay.leave(name);
  }
  await relay.enter("the end");
  assertEquals(await broker.subscriptions(), 1);
});

natsTest("a room is heard until it is left, however often it was entered", async (broker) => {
  await using here = await startRelay(broker.url, SPEAKER);
  await using there = await startRelay(broker.url);
  const entering = there.enter("red");
  there.leave("red");
  await Promise.all([entering, there.enter("red"), there.enter("red")]);
  there.leave("blue");
  here.publish("red", "heard");
  assertEquals(await there.messages.next(), { room: "red", data: "heard" });
  there.leave("red");
  await there.enter("blue");
  here.publish("red", "not heard");
  here.publish("blue", "the end");
  assertEquals(await there.messages.next(), { room: "blue", data: "the end" });
});

natsTest("all rooms are back when NATS is, also those entered meanwhile", async (broker) => {
  await using here = await startRelay(broker.url, SPEAKER);
  await using there = await startRelay(broker.url);
  await Promise.all(["", "red", "left"].map((room) => there.enter(room)));
  await broker.stop();
  await Promise.all([heard(here.lines, LOST), heard(there.lines, LOST)]);
  there.leave("left");
  await there.enter("new");
  for (const room of ["left", "", "red", "new"]) here.publish(room, `in "${room}"`);
  await broker.start();
  for (const room of ["", "red", "new"]) {
    assertEquals(await there.messages.next(), { room, data: `in "${room}"` });
  }
  assertEquals(await broker.subscriptions(), 3);
});

natsTest("while NATS is away, nobody waits to be let in", async (broker) => {
  await using relay = await startRelay(broker.url, { reconnectWait: 60_000 });
  await broker.stop();
  await heard(relay.lines, LOST);
  await within(relay.enter("red"), "the room");
});

natsTest("messages arrive as they were, with a byte order mark and in any size", async (broker) => {
  await broker.restart("max_payload: 8000000");
  await using here = await startRelay(broker.url, SPEAKER);
  await using there = await startRelay(broker.url);
  await there.enter("");
  const { maxMessage, maxBody } = here.limit({ maxMessage: 9_000_000 });
  assertEquals([maxMessage, maxBody], [8_000_000, 8_000_000]);
  assertEquals(here.limit({ maxBody: 9_000_000 }).maxBody, 8_000_000);
  const binary = crypto.getRandomValues(new Uint8Array(1000)).buffer;
  for (const data of ["\ufeffBOM", "", "\0", "你好 😀", binary, new ArrayBuffer(0)]) {
    here.publish("", data);
    assertEquals(await there.messages.next(), { room: "", data });
  }
  here.publish("", "x".repeat(8_000_000));
  const { data } = await there.messages.next();
  assert(data === "x".repeat(8_000_000));
});

natsTest("while NATS is away all goes on, and is relayed later or counted", async (broker) => {
  await using there = await startRelay(broker.url);
  await there.enter("");
  await using here = await startRelay(broker.url, SPEAKER);
  await broker.stop();
  await Promise.all([heard(here.lines, LOST), heard(there.lines, LOST)]);
  // These are 5 MiB, of which 4 MiB may wait. Nobody waits for them.
  const published = Array.from({ length: 80 }, () => here.publish("", LARGE.buffer));
  await within(Promise.all(published), "the messages");
  await broker.start();
  assertEquals(await lostBy(here), 80 - 63);
  here.publish("", "the end");
  await there.messages.next(({ data }) => data === "the end");
  assertEquals(there.messages.all.length, 63 + 1);
});

natsTest("what waits for NATS waits until the other servers are back, too", async (broker) => {
  await using here = await startRelay(broker.url);
  await using there = await startRelay(broker.url, { reconnectWait: 400 });
  await there.enter("");
  await broker.stop();
  await Promise.all([heard(here.lines, LOST), heard(there.lines, LOST)]);
  here.publish("", "away");
  await broker.start();
  assertEquals(await there.messages.next(), { room: "", data: "away" });
});

const BURSTS = [[40, 1_000_000], [200, 100_000], [50_000, 400]];
natsTest("while NATS is there, all of a burst arrives, in order", async (broker) => {
  await using scripts = await together(
    startScript(broker, "--quiet"),
    startScript(broker, "--quiet"),
  );
  const [here, there] = scripts;
  await using sender = await TestClient.open(here.url);
  await using listener = await TestClient.open(there.url);
  await heard(there.lines, "A client joined, 1 connected.");
  for (const [count, size] of BURSTS) {
    // A client that hears itself is in the room.
    listener.send("ready");
    await listener.messages.next((message) => message === "ready");
    const before = listener.messages.all.length;
    for (let number = 0; number < count; number++) sender.send(`${number} `.padEnd(size, "x"));
    sender.send("the end");
    await upTo("the end", listener);
    const numbers = listener.messages.all.slice(before, -1).map((text) => parseInt(`${text}`));
    assertEquals(numbers, Array.from({ length: count }, (_, number) => number));
  }
  for (const { lines } of scripts) assert(!lines.all.some((line) => line.includes("relayed")));
});

natsTest(
  "messages that wait for NATS count in the budget, and a client that says more waits as well",
  async (broker) => {
    await using server = serve(() => {}, { port: 0 });
    await using relay = await startRelay(broker.url);
    relay.join(server);
    await broker.pause();
    let done = 0;
    const published: Promise<unknown>[] = [];
    for (let number = 0; number < 6; number++) {
      published.push(relay.publish("", new ArrayBuffer(1_000_000)).then(() => done++));
    }
    await delay(0);
    assertEquals(done, 4, "Only 4 MiB may wait before a handler has to wait.");
    assertLessOrEqual(6_000_000, server.waiting);
    broker.resume();
    await within(Promise.all(published), "NATS to take it");
    assertEquals(server.waiting, 0);
  },
);

natsTest("a client that says more than NATS takes has to go, and nobody else", async (broker) => {
  await using script = await startScript(broker, "--max-waiting", "20000000");
  await using polite = await TestClient.open(script.url);
  await heard(script.lines, "A client joined, 1 connected.");
  await broker.pause();
  const flooder = await TestClient.open(script.url);
  for (let number = 0; number < 40; number++) flooder.send(new Uint8Array(1_000_000));
  await heard(script.errors, "Dropped a client. It sent more than could be taken.");
  await within(flooder.closed, "the close");
  const said = script.lines.all.filter((line) => line === "1000000 bytes of binary.");
  assertEquals(said.length, 5, "What it says after that waits to be read.");
  polite.send("hello");
  await polite.messages.next((message) => message === "hello");
});

test(
  { needs: "net" },
  "a client that waits for a slow NATS goes on though others speak",
  async () => {
    const port = freePort();
    await using _broker = await pretendBroker(port, async (connection) => {
      const bytes = new Uint8Array(64 * 1024);
      for (let text = ""; true; text = text.slice(text.lastIndexOf("\n") + 1)) {
        const count = await connection.read(bytes);
        if (count === null) return;
        text += new TextDecoder().decode(bytes.subarray(0, count));
        for (const _line of text.matchAll(/^PING\r\n/gm)) {
          setTimeout(() => write("PONG\r\n", connection).catch(() => {}), 20);
        }
      }
    });
    await using relay = await startRelay(`nats://127.0.0.1:${port}`);
    const others = setInterval(() => relay.publish("", "hello"), 1);
    try {
      const published = Array.from(
        { length: 5000 },
        () => relay.publish("", new ArrayBuffer(1000)),
      );
      await within(Promise.all(published), "NATS to take them");
    } finally {
      clearInterval(others);
    }
  },
);

natsTest("a handler that waits for NATS goes on when NATS is lost", async (broker) => {
  await using relay = await startRelay(broker.url, { pingInterval: 50 });
  await broker.pause();
  const published = Array.from({ length: 6 }, () => relay.publish("", new ArrayBuffer(1_000_000)));
  await within(Promise.all(published), "the loss");
  await heard(relay.lines, LOST);
});

natsTest(
  "over the budget, what another server relays is not taken and is counted",
  async (broker) => {
    await using server = serve(() => {}, { port: 0, maxWaiting: 1_000 });
    await using here = await startRelay(broker.url);
    await using there = await startRelay(broker.url);
    there.join(server);
    await there.enter("");
    server.countWaiting(2_000);
    for (const message of ["one", "two", "three"]) here.publish("", message);
    await heard(there.lines, "Messages of other servers not taken, too much waits: 3.");
    server.countWaiting(-2_000);
    here.publish("", "four");
    assertEquals((await there.messages.next()).data, "four");
  },
);

natsTest("a message over the max_payload of NATS closes with 1009", async (broker) => {
  await broker.restart("max_payload: 1000");
  await using script = await startScript(broker);
  await using client = await TestClient.open(script.url);
  client.send("x".repeat(1000));
  assertEquals(await client.next(), "x".repeat(1000));
  client.send("x".repeat(1001));
  assertEquals((await within(client.closed, "the close")).code, 1009);
});

natsTest("a message that NATS refuses is counted, and costs no other", async (broker) => {
  await using here = await startRelay(broker.url, SPEAKER);
  await using there = await startRelay(broker.url);
  await there.enter("");
  await broker.stop();
  await Promise.all([heard(here.lines, LOST), heard(there.lines, LOST)]);
  for (const text of ["one", "x".repeat(1001), "two"]) here.publish("", text);
  const permissions = "{ publish: { deny: broadcast.binary } }";
  const users = `[{ user: any, password: any, permissions: ${permissions} }]`;
  await broker.restart(
    `max_payload: 1000, no_auth_user: any, authorization: { users: ${users} }`,
  );
  assertEquals(await lostBy(here), 1);
  here.publish("", new ArrayBuffer(1));
  here.publish("", "three");
  await heard(here.lines, `NATS: Permissions Violation for Publish to "broadcast.binary"`);
  assertEquals(await lostBy(here), 1);
  const texts = [];
  for (let number = 0; number < 3; number++) texts.push((await there.messages.next()).data);
  assertEquals(texts, ["one", "two", "three"]);
});

natsTest("a NATS that refuses for a while is back once, and nothing is lost", async (broker) => {
  const url = broker.url.replace("//", "//speaker@");
  await using here = await startRelay(url, SPEAKER);
  await using there = await startRelay(broker.url);
  await there.enter("");
  const refuse = async () => {
    await broker.stop();
    const attempts = new Inbox<string>();
    await using _refusing = await pretendBroker(broker.port, async (connection) => {
      const bytes = new Uint8Array(1000);
      await connection.read(bytes);
      await connection.write(new TextEncoder().encode("-ERR 'Authorization Violation'\r\n"));
      await connection.closeWrite();
      attempts.put(new TextDecoder().decode(bytes));
    });
    const ofSpeaker = (connect: string) => connect.includes("speaker");
    for (let count = 0; count < 2; count++) await attempts.next(ofSpeaker, "an attempt");
  };
  const say = (round: string) => {
    for (let number = 0; number < 200; number++) here.publish("", `${round} ${number}`);
  };
  say("before");
  await there.messages.next(({ data }) => data === "before 199");
  await refuse();
  say("away");
  await broker.start();
  // It is lost again before it is used, which timers of earlier attempts must not overlook.
  await heard(here.lines, "NATS is back.");
  await refuse();
  say("away again");
  await broker.start();
  await there.messages.next(({ data }) => data === "away again 199");
  assertEquals(there.messages.all.length, 600);
  // Each reason is told once.
  const reasons = here.lines.all.filter((line) => line.includes("Authorization Violation"));
  assertEquals(reasons.length, 2);
  assertEquals(here.lines.all.filter((line) => line === "NATS is back.").length, 2);
});

natsTest("what waits for NATS is bounded in bytes and in messages", async (broker) => {
  await using here = await startRelay(broker.url, SPEAKER);
  await using there = await startRelay(broker.url);
  await there.enter("");
  const lostOf = async (count: number, message: string) => {
    const before = there.messages.all.length;
    // When this is done, NATS has confirmed what was published before.
    await here.enter("red");
    here.leave("red");
    await broker.stop();
    await Promise.all([heard(here.lines, LOST), heard(there.lines, LOST)]);
    for (let number = 0; number < count; number++) here.publish("", message);
    await broker.start();
    const lost = await lostBy(here);
    here.publish("", "the end");
    await there.messages.next(({ data }) => data === "the end");
    assertEquals(there.messages.all.length - before, count - lost + 1);
    return lost;
  };
  assertEquals(await lostOf(40_000, ""), 40_000 - 32_768);
  assertEquals(await lostOf(5, "x".repeat(1_000_000)), 1);
});

natsTest("a NATS that stands still is given up, though much is on its way", async (broker) => {
  await broker.restart("max_payload: 64000000");
  await using here = await startRelay(broker.url, { ...SPEAKER, pingInterval: 50 });
  await using there = await startRelay(broker.url, { pingInterval: 50 });
  await there.enter("");
  await broker.pause();
  // This is more than the system takes for a connection that nobody reads.
  here.publish("", new ArrayBuffer(60_000_000));
  await heard(here.lines, LOST);
  await broker.stop();
  await broker.start();
  assertEquals(await lostBy(here), 1);
  here.publish("", "the end");
  await there.messages.next(({ data }) => data === "the end");
});

natsTest("another server of NATS's cluster takes over", async (broker) => {
  await using second = new Broker();
  const [port, secondPort] = [freePort(), freePort()];
  const cluster = ["--cluster_name", "c", "--cluster"];
  await broker.stop();
  await broker.start(...cluster, `nats://127.0.0.1:${port}`);
  const route = ["--routes", `nats://127.0.0.1:${port}`];
  await second.start(...cluster, `nats://127.0.0.1:${secondPort}`, ...route);
  await using here = await startRelay(broker.url, SPEAKER);
  await using there = await startRelay(second.url);
  await there.enter("");
  // A route between the servers is there when the first message arrives.
  await eventually(() => {
    here.publish("", "hello");
    assert(there.messages.all.length > 0, "The servers of the cluster do not know each other.");
  });
  await broker.stop();
  await heard(here.lines, "NATS is back.");
  here.publish("", "the end");
  await there.messages.next(({ data }) => data === "the end");
});

natsTest("its other servers need a certificate for the host in the URL, too", async (broker) => {
  await using certificate = await createCertificate("DNS:localhost");
  const { cert, key } = certificate;
  await using second = new Broker();
  await broker.stop();
  const tls = ["--tls", "--tlscert", cert, "--tlskey", key, "--cluster_name", "c", "--cluster"];
  const [port, secondPort] = [freePort(), freePort()];
  await broker.start(...tls, `nats://127.0.0.1:${port}`);
  const route = ["--routes", `nats://127.0.0.1:${port}`];
  await second.start(...tls, `nats://127.0.0.1:${secondPort}`, ...route);
  await broker.isRouted();
  const flags = ["--port", "0", "--nats", `tls://localhost:${broker.port}`];
  await using script = new Script("broadcast_server.ts", flags, ["--allow-net", `--cert=${cert}`]);
  await script.prints(/ws:/);
  await broker.stop();
  await heard(script.lines, "NATS is back.");
});

test(
  { needs: "net" },
  "what another program sends in place of NATS is told in the log, disarmed",
  async () => {
    const port = freePort();
    await using _broker = await pretendBroker(port, async (connection) => {
      await readUpTo("PING", connection);
      await write("PONG\r\n\x1b[31mred\x07\r\n", connection);
    });
    const printed: unknown[][] = [];
    const { log } = console;
    console.log = (...data) => printed.push(data);
    try {
      await using relay = await startRelay(`nats://127.0.0.1:${port}`);
      const line = await relay.lines.next();
      assertMatch(line, LOST);
      assertMatch(line, /\(not understood: .*\\u\{1b\}\[31mred\\u\{7\}.*\)/);
      console.log("what others print");
    } finally {
      console.log = log;
    }
    assertEquals(printed, [["what others print"]]);
  },
);

test({ needs: "net" }, "what is no NATS is told in one line", async () => {
  const port = freePort();
  const hangUp = (connection: Deno.TcpConn) => Promise.resolve(connection.close());
  const cases: [string, (connection: Deno.TcpConn) => Promise<void>][] = [
    ["it is something else", (connection) => write("SSH-2.0-OpenSSH_9.2\r\n", connection)],
    ["it is something else", (connection) => write("x".repeat(64 * 1024), connection)],
    ["it has hung up", hangUp],
    ["it has hung up", (connection) => write(GREETING, connection).then(() => hangUp(connection))],
    ["no answer in time", () => Promise.resolve()],
    ["no answer in time", (connection) => write(GREETING, connection)],
    ["it offers no TLS", (connection) => write(GREETING, connection)],
  ];
  for (const [reason, speak] of cases) {
    await using _listener = await listenAt(port, speak);
    const scheme = reason.includes("TLS") ? "tls" : "nats";
    const { message } = await assertRejects(
      () => startRelay(`${scheme}://127.0.0.1:${port}`, { timeout: 300 }),
      Error,
    );
    assertStringIncludes(message, `No NATS server at 127.0.0.1:${port} (${reason}): `);
  }
});

test({ needs: "net" }, "a connection that nats.js reads no more is closed", async () => {
  const port = freePort();
  const ended = Promise.withResolvers<void>();
  await using _broker = await pretendBroker(port, (connection) => {
    return readUpTo("nothing", connection).finally(() => ended.resolve());
  });
  const transport = new SocketTransport();
  const host = "127.0.0.1";
  await transport.connect({ hostname: host, port } as Server, { host });
  const reading = transport[Symbol.asyncIterator]();
  assertEquals(new TextDecoder().decode((await reading.next()).value), GREETING);
  // This is what the end of its loop by an error does.
  reading.return(undefined);
  await within(Promise.all([transport.closed(), ended.promise]), "the end");
  assertEquals(transport.closeError?.message, `not understood: ${GREETING}`);
});

natsTest("what is published after the relay is closed is told to be lost", async (broker) => {
  await using relay = await startRelay(broker.url);
  await relay.close();
  for (const message of ["one", "two"]) {
    await relay.publish("", message);
    assertEquals(
      await relay.lines.next(),
      "Messages not relayed to the other servers: 1.",
      message,
    );
  }
});

natsTest("an error of `receive` is told, and costs no other message", async (broker) => {
  const heard: unknown[] = [];
  const receive = (_room: string, message: unknown) => {
    heard.push(message);
    if (message === "one") throw new Error("This is a test.");
  };
  await using here = await startRelay(broker.url);
  await using there = await startRelay(broker.url, { rooms: { receive } });
  await there.enter("");
  for (const message of ["one", "two"]) here.publish("", message);
  await there.lines.next();
  await eventually(() => assertEquals(heard, ["one", "two"]));
  assertEquals(there.lines.all, [
    "A message of another server was not received. Error: This is a test.",
  ]);
});

test({ needs: "net" }, "no error of its connection ends a server", async () => {
  const port = freePort();
  let round = 0;
  const attempts = new Inbox<number>();
  // Where bytes are unread, closing resets the connection.
  const acts: ((connection: Deno.TcpConn) => Promise<void>)[] = [
    (_) => Promise.resolve(),
    (connection) => connection.closeWrite(),
    (connection) => readUpTo("CONNECT", connection),
    (connection) => write("PONG\r\n", connection),
    (connection) => write("PONG\r\nMSG red 1 1000\r\nhalf", connection),
    (connection) => write("PONG\r\n-ERR 'Stale Connection'\r\n", connection),
    (connection) => write("PONG\r\nINFO {\r\n", connection),
    (connection) => write("PONG\r\nMSG red 1 99999999999\r\n", connection),
    (connection) => write("-ERR 'Authorization Violation'\r\n", connection),
  ];
  await using _broker = await pretendBroker(port, async (connection) => {
    attempts.put(round);
    if (round++ === 0) await refuseLate(connection);
    else await acts[round % acts.length](connection);
    connection.close();
  });
  await using relay = await startRelay(`nats://127.0.0.1:${port}`, {
    reconnectWait: 1,
    timeout: 500,
  });
  while (round < 10 * acts.length) {
    relay.publish("", HUGE);
    for (let count = 0; count < 100; count++) relay.publish("", new ArrayBuffer(1000));
    relay.enter("red");
    relay.leave("red");
    await attempts.next();
  }
  assert(relay.lines.all.some((line) => LOST.test(line)));
});

test({ needs: "net" }, "a relay may close as soon as NATS is lost", async () => {
  const port = freePort();
  await using _broker = await pretendBroker(port, async (connection) => {
    await refuseLate(connection);
    connection.close();
  });
  const closed = Promise.withResolvers<void>();
  const log = () => closed.resolve(relay.close());
  const relay = await startRelay(`nats://127.0.0.1:${port}`, { log });
  relay.publish("", HUGE);
  await within(closed.promise, "the relay to close");
});

natsTest("a relay changes nothing of the process that it runs in", async (broker) => {
  const { log, error } = console;
  const listen = globalThis.addEventListener;
  const listened: string[] = [];
  globalThis.addEventListener = (type: string) => void listened.push(type);
  try {
    await using relay = await startRelay(broker.url);
    await broker.stop();
    await heard(relay.lines, LOST);
    assertEquals([console.log, console.error], [log, error]);
  } finally {
    globalThis.addEventListener = listen;
  }
  assertEquals(listened, []);
});

natsTest("an attempt that is not greeted leaves no connection behind", async (broker) => {
  // A busy machine needs longer for the first attempt.
  await using _relay = await eventually(() => startRelay(broker.url, { timeout: 50 }));
  await broker.stop();
  const { port } = broker;
  using listener = await eventually(() => Deno.listen({ hostname: "127.0.0.1", port }));
  for (let count = 0; count < 5; count++) {
    using connection = await listener.accept();
    const end = connection.read(new Uint8Array(1));
    assertEquals(await within(end, "the end of the attempt"), null);
  }
});

natsTest("what still waits when an instance stops is published before", async (broker) => {
  await using here = await startRelay(broker.url);
  await using there = await startRelay(broker.url);
  await there.enter("");
  // A broker that pauses keeps all but the first message waiting.
  await broker.pause();
  here.publish("", "first");
  await delay(0);
  here.publish("", "second");
  const closed = here.close();
  broker.resume();
  for (const data of ["first", "second"]) {
    assertEquals(await there.messages.next(), { room: "", data });
  }
  await closed;
  assertEquals(here.lines.all, []);
});

natsTest("what waits counts from `join` until the relay is closed", async (broker) => {
  await using relay = await startRelay(broker.url, SPEAKER);
  await broker.stop();
  await heard(relay.lines, LOST);
  await using server = serve(() => {}, { port: 0, log: () => {} });
  relay.publish("", "before");
  relay.join(server);
  const before = server.waiting;
  assertLessOrEqual("before".length, before);
  relay.publish("", "after!");
  assertEquals(server.waiting, 2 * before);
  await relay.close();
  assertEquals([await lostBy(relay), server.waiting], [2, 0]);
});

natsTest("an instance that stops just after NATS is back publishes all as well", async (broker) => {
  await using here = await startRelay(broker.url, SPEAKER);
  await using there = await startRelay(broker.url);
  await there.enter("");
  await broker.stop();
  await heard(here.lines, LOST);
  here.publish("", "away");
  await broker.start();
  await heard(here.lines, "NATS is back.");
  await here.close();
  assertEquals(await there.messages.next(), { room: "", data: "away" });
  assertEquals(here.lines.all.at(-1), "NATS is back.");
});

natsTest("SIGTERM while NATS is away counts what is lost, and ends with 0", async (broker) => {
  await using here = await startInstance(broker);
  await broker.stop();
  await heard(here.script.lines, LOST);
  for (const message of ["one", "two", "three"]) here.clients[0].send(message);
  await upTo("three", here.clients[0]);
  here.script.kill("SIGTERM");
  assertEquals(await here.script.end(), 0);
  assertEquals(here.script.lines.all.at(-1), "Messages not relayed to the other servers: 3.");
});

test({ needs: "run" }, "without --nats its package is not loaded", async () => {
  const imports = {
    "@std/async": import.meta.resolve("@std/async"),
    "@nats-io/nats-core/internal": import.meta.resolve("./no-such-file.ts"),
    websockets: import.meta.resolve("websockets"),
    "websockets/": import.meta.resolve("../websockets/"),
  };
  const map = `data:application/json,${JSON.stringify({ imports })}`;
  const permissions = ["--allow-net", "--import-map", map];
  await using server = new Script("broadcast_server.ts", ["--port", "0"], permissions);
  assertMatch(await server.lines.next(), /^Broadcast server on/);
  const flags = ["--nats", "nats://localhost"];
  await using joining = new Script("broadcast_server.ts", flags, permissions);
  assertEquals(await joining.end(), 1);
  assertMatch(joining.errors.all[0], /no-such-file/);
});
