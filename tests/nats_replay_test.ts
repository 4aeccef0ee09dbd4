// Nothing is lost without being told, over several servers: NATS JetStream, here a real one, keeps one
// order for all, and followers move from one server to another.

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import {
  connect,
  type Connection,
  ConnectionClosed,
  follow,
  type Follower,
  Rooms,
  type RoomsOptions,
  serve,
} from "websockets";
import { Relay, type RelayOptions } from "websockets/nats.ts";
import { Broker, natsTest } from "./broker.ts";
import { chance, check, inRooms, numbered, withoutPauses } from "./followers.ts";
import { eventually, freePort, Inbox, within } from "./helpers.ts";
import { Script } from "./programs.ts";
import { startProxy } from "./proxy.ts";
import { RawClient } from "./raw.ts";

/** Registers a test that gets a NATS server with JetStream. */
function streamTest(name: string, fn: (broker: Broker, store: string) => Promise<void>): void {
  const run = async (broker: Broker) => {
    const store = await Deno.makeTempDir();
    try {
      await broker.start("-js", "-sd", store);
      await fn(broker, store);
    } finally {
      await broker.stop();
      await Deno.remove(store, { recursive: true });
    }
  };
  natsTest(name, run, false);
}

interface Options extends RoomsOptions, Partial<RelayOptions> {}

/** A server in this process whose clients are in the room that their URL names. */
async function startServer(url: string, options: Options = {}) {
  const lines = new Inbox<string>();
  const log = (line: string) => lines.put(line);
  const rooms = new Rooms(options);
  const times = { timeout: 2_000, reconnectWait: 10 };
  const given = { url, subject: "broadcast", rooms, replay: true, log, ...times, ...options };
  rooms.relay = await Relay.connect(given);
  const server = rooms.join(serve(inRooms(rooms), rooms.limit({ port: 0, log() {} })));
  const stop = async () => {
    await within(server.shutdown(), "the server to stop");
    await within(rooms.close(), "the relay to stop");
    assertEquals(server.waiting, 0);
  };
  const { port } = server.addr;
  const address = `ws://localhost:${port}/`;
  return { rooms, server, port, lines, url: address, [Symbol.asyncDispose]: stop };
}

/** A client that has its first message. */
async function open(url: string, query: string): Promise<[Connection, string]> {
  const websocket = await connect(url + query);
  return [websocket, `${await websocket.receive()}`];
}

function text(message: string | ArrayBuffer): string {
  return typeof message === "string" ? message : new TextDecoder().decode(message);
}

/** What a follower hears up to the text "the end". */
async function listen(follower: Follower): Promise<string[]> {
  const heard: string[] = [];
  for await (const { message = "", lost, position } of follower) {
    if (lost) heard.push(`lost ${lost}`);
    else heard.push(`${position} ${text(message)}`);
    if (message === "the end") break;
  }
  return heard;
}

streamTest("a position of one server holds on another one", async (broker) => {
  await using here = await startServer(broker.url);
  await using there = await startServer(broker.url);
  const [first, start] = await open(here.url, "?room=red&after=");
  assertMatch(start, /^\w{8}\.\d+$/);
  await using plain = await connect(`${there.url}?room=red`);
  await plain.send("1");
  const heard = `${await first.receive()}`;
  assertMatch(heard, /^\w{8}\.\d+\n1$/);
  assertEquals(await plain.receive(), "1");
  await first.close();
  await there.rooms.say("red", new Uint8Array([0, 10, 255]).buffer);
  await here.rooms.say("blue", "for blue");
  const position = await here.rooms.push("red", "3");
  // It comes to a server that has not heard the room as follower before, and one that has.
  for (const { url } of [there, here]) {
    const [again, from] = await open(url, `?room=red&after=${heard.split("\n")[0]}`);
    assertEquals(from, `${heard.split("\n")[0]} missed 2`);
    const second = new Uint8Array(await again.receive() as ArrayBuffer);
    assertEquals(second.slice(-4), new Uint8Array([10, 0, 10, 255]));
    assertEquals(await again.receive(), `${position}\n3`);
    await again.close();
  }
  assertEquals(await plain.receive(), new Uint8Array([0, 10, 255]).buffer);
  assertEquals(await plain.receive(), "3");
});

streamTest("followers that are cut and move to another server lose nothing", async (broker) => {
  const below = chance(3);
  // Rooms are forgotten and read again all the time.
  await using here = await startServer(broker.url, { historyTimeout: 0.01 });
  await using there = await startServer(broker.url, { historyTimeout: 0.01 });
  await using proxy = startProxy(here.port, () => {
    proxy.port = below(2) ? here.port : there.port;
    return below(3_000);
  });
  await withoutPauses(async () => {
    const last = 499;
    const after = await here.rooms.push("", "the start");
    const followers = Array.from({ length: 8 }, () => follow(proxy.url, { after }));
    const checks = followers.map((each) => check(each, last));
    for (let number = 0; number <= last; number++) {
      await (below(2) ? here : there).rooms.push("", numbered(number, below(300)));
    }
    for (const heard of await within(Promise.all(checks), "the last message")) {
      assertEquals(heard, { messages: last + 1, lost: 0, gaps: 0, unknown: 0 });
    }
  });
  assert(proxy.cuts > 100);
});

streamTest("what many say at once has one order on all servers", async (broker) => {
  const servers = [await startServer(broker.url), await startServer(broker.url)];
  await using here = servers[0];
  await using there = servers[1];
  const after = await here.rooms.push("", "the start");
  const followers = [here, there, here, there].map(({ url }) => listen(follow(url, { after })));
  await using plain = await connect(here.url);
  const speak = async (speaker: number) => {
    for (let number = 0; number < 100; number++) {
      await servers[speaker % 2].rooms.say("", `${speaker},${number}`);
    }
  };
  await Promise.all([0, 1, 2, 3].map(speak));
  await there.rooms.say("", "the end");
  const [first, ...others] = await within(Promise.all(followers), "the end");
  assertEquals(first.length, 401);
  for (const other of others) assertEquals(other, first);
  for (const speaker of [0, 1, 2, 3]) {
    const said = first.map((each) => each.split(" ")[1]).filter((each) =>
      each.startsWith(`${speaker},`)
    );
    assertEquals(said, Array.from({ length: 100 }, (_, number) => `${speaker},${number}`));
  }
  // A client that does not follow hears the same, from when it has come.
  const heard: string[] = [];
  while (heard.at(-1) !== "the end") heard.push(text(await plain.receive()));
  assertEquals(heard, first.map((each) => each.replace(/^\S+ /, "")).slice(-heard.length));
});

streamTest(
  "rooms are entered while much is said, and each follower hears it all",
  async (broker) => {
    await using here = await startServer(broker.url, { historyTimeout: 0 });
    await using there = await startServer(broker.url);
    const after = await there.rooms.push("", "the start");
    let isDone = false;
    const visit = async () => {
      while (!isDone) {
        await using plain = await connect(here.url);
        const first = Number(await plain.receive());
        for (let number = first + 1; number < first + 5; number++) {
          assertEquals(Number(await plain.receive()), number);
        }
      }
    };
    const follows: ReturnType<typeof check>[] = [];
    const visits = [visit(), visit()].map((each) => each.catch((error) => assert(isDone, error)));
    const last = 599;
    for (let number = 0; number <= last; number++) {
      await there.rooms.push("", `${number}`);
      if (number % 60 === 50) follows.push(check(follow(here.url, { after }), number));
    }
    for (const heard of await within(Promise.all(follows), "the messages")) {
      assertEquals([heard.lost, heard.gaps], [0, 0]);
    }
    isDone = true;
    await there.server.shutdown();
    await here.server.shutdown();
    await within(Promise.all(visits), "the visitors");
  },
);

streamTest("a server is killed, and its followers lose nothing", async (broker) => {
  const flags = ["--nats", broker.url, "--replay"];
  const start = () => Script.server("broadcast_server.ts", ...flags);
  await using there = await start();
  const push = async (number: number) => {
    const url = there.url.replace("ws:", "http:");
    const answer = await fetch(url, { method: "POST", body: `${number}` });
    assertEquals(answer.status, 202);
    return (await answer.json()).position;
  };
  await using here = await start();
  await using proxy = startProxy(Number(new URL(here.url).port), () => Infinity);
  await withoutPauses(async () => {
    const after = await push(-1);
    const followers = Array.from({ length: 5 }, () => follow(proxy.url, { after }));
    const checks = followers.map((each) => check(each, 199));
    for (let number = 0; number < 200; number++) {
      await push(number);
      if (number === 100) here.kill("SIGKILL");
      if (number === 150) proxy.port = Number(new URL(there.url).port);
    }
    for (const heard of await within(Promise.all(checks), "the last message")) {
      assertEquals(heard, { messages: 200, lost: 0, gaps: 0, unknown: 0 });
    }
  });
});

streamTest("links to NATS are cut at any byte, and nothing is lost or doubled", async (broker) => {
  const below = chance(4);
  await using links = startProxy(broker.port, () => 1_000 + below(30_000));
  const url = links.url.replace("ws:", "nats:");
  await using here = await startServer(url);
  await using there = await startServer(url);
  await using uncut = await startServer(broker.url);
  await withoutPauses(async () => {
    const [before, last] = [400, 599];
    const after = await uncut.rooms.push("", "the start");
    // It takes several links to read that much.
    for (let number = 0; number < before; number++) {
      await uncut.rooms.push("", numbered(number, below(600)));
    }
    const checks = [here, there, here].map((each) => check(follow(each.url, { after }), last));
    for (let number = before; number <= last; number++) {
      await (below(2) ? here : there).rooms.push("", numbered(number, below(300)));
    }
    for (const heard of await within(Promise.all(checks), "the last message")) {
      assertEquals(heard, { messages: last + 1, lost: 0, gaps: 0, unknown: 0 });
    }
  });
  assert(links.cuts > 20);
});

streamTest("what is said while a link is away comes when it is back", async (broker) => {
  await using link = startProxy(broker.port, () => Infinity);
  await using here = await startServer(link.url.replace("ws:", "nats:"));
  await using there = await startServer(broker.url);
  await using plain = await connect(here.url);
  // It comes back when the room is joined.
  await plain.send("before");
  assertEquals(await within(plain.receive(), "its own message"), "before");
  link.port = freePort();
  link.cut();
  await here.lines.next((line) => line.startsWith("NATS is lost"));
  await there.rooms.say("", "meanwhile");
  link.port = broker.port;
  assertEquals(await within(plain.receive(), "the message"), "meanwhile");
});

streamTest(
  "after a restart of NATS, followers are told that messages may be lost",
  async (broker, store) => {
    await using here = await startServer(broker.url);
    await using there = await startServer(broker.url);
    await withoutPauses(async () => {
      const after = await here.rooms.push("", "the start");
      const checks = [here, there].map((each) => check(follow(each.url, { after }), 19));
      const push = async (first: number, last: number) => {
        for (let number = first; number <= last; number++) await here.rooms.push("", `${number}`);
      };
      await push(0, 9);
      await eventually(() =>
        assertEquals([here, there].map(({ rooms }) => rooms.count("")), [1, 1])
      );
      await broker.stop();
      await here.lines.next((line) => line.startsWith("NATS is lost"));
      // What is said while NATS is away waits for it.
      const waiting = push(10, 19);
      await broker.start("-js", "-sd", store);
      await within(waiting, "what waited");
      for (const heard of await within(Promise.all(checks), "the last message")) {
        assertEquals(heard, { messages: 20, lost: 0, gaps: 1, unknown: 1 });
      }
    });
  },
);

streamTest("what NATS has stored is not said again to another stream", async (broker, store) => {
  await using link = startProxy(broker.port, () => Infinity);
  await using here = await startServer(link.url.replace("ws:", "nats:"));
  await using there = await startServer(broker.url);
  await using plain = await connect(there.url);
  // It comes back when the room is joined.
  await plain.send("first");
  assertEquals(await within(plain.receive(), "its own message"), "first");
  link.hold();
  const refused = assertRejects(() => here.rooms.push("", "stored"), ConnectionClosed);
  assertEquals(await within(plain.receive(), "what is not confirmed"), "stored");
  await broker.stop();
  link.cut();
  link.release();
  // JetStream may begin to answer later than NATS.
  await broker.start();
  await eventually(async () => {
    const asked = (await broker.connections()).filter(({ in_msgs }) => in_msgs > 1);
    assertEquals(asked.length, 2);
  });
  await broker.stop();
  await broker.start("-js", "-sd", store);
  assertEquals((await within(refused, "the sender to be told")).code, 1013);
  await there.rooms.push("", "last");
  assertEquals(await within(plain.receive(), "the last message"), "last");
});

streamTest("a room has its last 1,000 messages, and what is gone is told", async (broker) => {
  await using here = await startServer(broker.url);
  await here.rooms.push("other", "the oldest message of all rooms");
  const after = await here.rooms.push("", "the start");
  for (let number = 0; number < 1_100; number++) await here.rooms.push("", `${number}`);
  assertEquals(await within(check(follow(here.url, { after }), 1_099), "the last message"), {
    messages: 1_000,
    lost: 0,
    gaps: 1,
    unknown: 1,
  });
});

streamTest("a stream that was made anew by others is another epoch", async (broker) => {
  await using here = await startServer(broker.url);
  const old = await here.rooms.push("", "the start");
  await using plain = await connect(here.url);
  const checked = check(follow(here.url, { after: old }), 1);
  await eventually(() => assertEquals(here.rooms.count(""), 2));
  await here.rooms.push("", "0");
  const request = "CONNECT {}\r\nPUB $JS.API.STREAM.DELETE.broadcast 0\r\n\r\nPING\r\n";
  using admin = await RawClient.open(broker.port, request);
  while (!new TextDecoder().decode(await admin.read()).includes("PONG"));
  const position = await here.rooms.push("", "1");
  assert(position?.split(".")[0] !== old?.split(".")[0]);
  // A client that does not follow hears what is new in that stream, too.
  assertEquals([await plain.receive(), await plain.receive()], ["0", "1"]);
  const { messages, unknown } = await within(checked, "the last message");
  assertEquals([messages, unknown], [2, 1]);
});

streamTest("any program that speaks NATS can say something to followers", async (broker) => {
  await using here = await startServer(broker.url, { subject: "my.servers" });
  const [red] = await open(here.url, "?room=red&after=");
  using other = await RawClient.open(broker.port, 'CONNECT {"headers":true}\r\n');
  await other.write("PUB my.servers.red.message 5\r\nhello\r\n");
  assertMatch(text(await red.receive()), /^\w{8}\.1\nhello$/);
  const header = "NATS/1.0\r\nContent-Type: application/octet-stream\r\n\r\n";
  await other.write(
    `HPUB my.servers.red.message ${header.length} ${header.length + 2}\r\n${header}hi\r\n`,
  );
  const binary = await red.receive();
  assert(binary instanceof ArrayBuffer);
  assertMatch(text(binary), /^\w{8}\.2\nhi$/);
  // What was not stored is none of it, and no number that a program says harms anything.
  for (const number of ["9", "x", "-1", "9999999999999999"]) {
    const head = `NATS/1.0\r\nNats-Sequence: ${number}\r\nNats-Last-Sequence: ${number}\r\n\r\n`;
    await other.write(
      `HPUB republished.my.servers.red.message ${head.length} ${head.length + 3}\r\n${head}bad\r\n`,
    );
  }
  await other.write("PUB republished.my.servers.red.message 3\r\nbad\r\n");
  await here.rooms.push("red", "3");
  assertMatch(text(await red.receive()), /^\w{8}\.3\n3$/);
  await red.close();
});

streamTest(
  "while NATS is away, nobody can follow, and a message that can't wait is told to its sender",
  async (broker) => {
    await using here = await startServer(broker.url);
    const push = () => here.rooms.push("", "x".repeat(1_000_000));
    await push();
    await broker.stop();
    await here.lines.next((line) => line.startsWith("NATS is lost"));
    const follower = await connect(`${here.url}?after=`);
    const { code } = await within(follower.closed, "the close");
    assertEquals(code, 1013);
    const waiting = Array.from({ length: 4 }, push);
    await assertRejects(push, ConnectionClosed);
    await here.lines.next((line) => /^Messages that .+: 1 \(too much waits\)\.$/.test(line));
    const stopped = here[Symbol.asyncDispose]();
    for (const each of waiting) {
      await assertRejects(() => within(each, "the end"), ConnectionClosed);
    }
    await stopped;
    await here.lines.next((line) => /^Messages that .+: 4 \(.+\)\.$/.test(line));
  },
);

streamTest(
  "a push that can't wait for NATS gets 503, and others get 202 later",
  async (broker, store) => {
    const flags = ["--nats", broker.url, "--replay"];
    await using script = await Script.server("broadcast_server.ts", ...flags);
    const url = script.url.replace("ws:", "http:");
    const push = () => fetch(url, { method: "POST", body: "x".repeat(1_000_000) });
    await broker.stop();
    await script.prints(/NATS is lost/);
    const pushes = Array.from({ length: 5 }, push);
    const refused = await within(Promise.any(pushes), "an answer");
    assertEquals([refused.status, refused.headers.get("Retry-After")], [503, "1"]);
    assertEquals(await refused.text(), "NATS has not confirmed a message.\n");
    await broker.start("-js", "-sd", store);
    const answers = await within(Promise.all(pushes), "the other answers");
    assertEquals(answers.map(({ status }) => status).sort(), [202, 202, 202, 202, 503]);
    for (const answer of answers) if (answer !== refused) await answer.body?.cancel();
  },
);

streamTest(
  "a server that is full takes nothing from NATS, and then tells what is gone meanwhile",
  async (broker) => {
    await using here = await startServer(broker.url);
    await using there = await startServer(broker.url);
    await using plain = await connect(here.url);
    const checked = check(follow(here.url), 1_100);
    await eventually(() => assertEquals(here.rooms.count(""), 2));
    await there.rooms.push("", "0");
    assertEquals(await plain.receive(), "0");
    const waiting = 2 ** 40;
    here.server.countWaiting(waiting);
    // A client that comes now is sent away.
    await assertRejects(async () => await here.rooms.relay?.load?.(""), ConnectionClosed);
    for (let number = 1; number <= 1_100; number++) await there.rooms.push("", `${number}`);
    here.server.countWaiting(-waiting);
    assertEquals(await within(checked, "the last message"), {
      messages: 1_001,
      lost: 0,
      gaps: 1,
      unknown: 1,
    });
    assertEquals(await plain.receive(), "101");
  },
);

natsTest(
  "without JetStream, --replay is one line that says what to do, and exit code 1",
  async (broker) => {
    const flags = ["--port", "0", "--nats", broker.url, "--replay"];
    await using script = new Script("broadcast_server.ts", flags);
    assertEquals(await script.end(), 1);
    assertEquals(script.errors.all, [
      `NATS at 127.0.0.1:${broker.port} can't keep messages (no responders: ` +
      "'$JS.API.STREAM.CREATE.broadcast'): start it with `nats-server -js`.",
    ]);
  },
);

streamTest("a stream of others is not used", async (broker) => {
  await using _here = await startServer(broker.url, { subject: "chat.red" });
  await assertRejects(
    () => startServer(broker.url, { subject: "chat_red" }),
    Error,
    "(stream name already in use with a different configuration): use another `subject`.",
  );
  await assertRejects(
    () => startServer(broker.url, { subject: "republished" }),
    Error,
    "forms a cycle): use another `subject`.",
  );
});
