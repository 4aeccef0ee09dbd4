// What the broadcast server promises: everyone in a room hears everything in it, nobody else hears
// any of it, and nobody can spoil it.

import { assert, assertEquals, assertLessOrEqual, assertMatch } from "@std/assert";
import type { Connection, ServeOptions } from "websockets";
import { push, rooms } from "../broadcast_server.ts";
import { eventually, Inbox, startServer, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { Program, Script } from "./programs.ts";
import { ask, frame, handshake, RawClient } from "./raw.ts";

/** Random bytes in base64. */
const TOKEN = "3q2+7w/Zb4==";
const LARGE = new Uint8Array(64 * 1024).fill(120);

/** The script, with its port. */
async function start(...flags: string[]) {
  const server = await Script.server("broadcast_server.ts", ...flags);
  return Object.assign(server, { port: Number(new URL(server.url).port) });
}

/** The query that names a room, or none for the common room. */
function query(name: string): string {
  return name && `?${new URLSearchParams({ room: name })}`;
}

/** Lets clients into an empty room, and waits until the room knows all of them. */
async function join(
  { url, lines }: { url: string; lines: Inbox<string> },
  count: number,
  name = "",
) {
  const open = () => TestClient.open(`${url}/${query(name)}`);
  const clients = await Promise.all(Array.from({ length: count }, open));
  await heard(lines, `A client joined${name && ` (room ${name})`}, ${count} connected.`);
  const leave = async () => void await Promise.all(clients.map((client) => client.close()));
  return Object.assign(clients, { [Symbol.asyncDispose]: leave });
}

function heard(lines: Inbox<string>, line: string): Promise<string> {
  return lines.next((each) => each === line, `"${line}"`);
}

/** Waits until so many clients have joined any room. */
async function joined({ lines }: { lines: Inbox<string> }, count: number): Promise<void> {
  const isJoin = (line: string) => line.startsWith("A client joined");
  while (count-- > 0) await lines.next(isJoin, "a client that joins");
}

/** Ends a connection as a crash does: where bytes are unread, the system sends a TCP reset. */
async function reset({ connection }: RawClient): Promise<void> {
  await within(connection.read(new Uint8Array(1)), "the first of many bytes");
  connection.close();
}

/** Pushes: the status, and the answer without its position. */
async function say(url: string, body: BodyInit, target = "/"): Promise<[number, string]> {
  const address = new URL(target, url.replace("ws:", "http:"));
  const response = await fetch(address, { method: "POST", body });
  return [response.status, (await response.text()).replace(/,"position":"\w+\.\d+"/, "")];
}

/** A push as it is written to the connection, with more headers. */
function pushed(body: string, headers: string[], target = "/"): string {
  return [`POST ${target} HTTP/1.1`, "Host: localhost", ...headers, "", body].join("\r\n");
}

/** A request for the page. */
function page(target: string, headers: string[] = []): string {
  return [`GET ${target} HTTP/1.1`, "Host: localhost", ...headers, "", ""].join("\r\n");
}

/** A push that has promised more bytes than it sends. */
function unfinished({ port }: { port: number }): Promise<RawClient> {
  return RawClient.open(port, pushed("hello", ["Content-Length: 10"]));
}

/** The pushes of a server in this process, with what a listener in its common room hears of them. */
function startPushes(processRequest: ServeOptions["processRequest"] = push, idleTimeout?: number) {
  const messages: unknown[] = [];
  const listener: Connection = Object.create({ send: (data: unknown) => messages.push(data) });
  rooms.enter("", listener, new Request("http://localhost/"));
  const server = startServer(() => {}, { processRequest, idleTimeout });
  return {
    ...server,
    messages,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      rooms.leave("", listener);
    },
  };
}

test(
  { needs: "run" },
  "everyone hears every message, its sender too, unchanged and in order",
  async () => {
    await using server = await start();
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
  { needs: "run" },
  "Order: 16 clients send 128 messages at once, and all see all in the same order",
  async () => {
    await using server = await start("--quiet");
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
  { needs: "run" },
  "16 clients in 4 rooms speak and are pushed to at once, and no room hears another",
  async () => {
    await using server = await start("--quiet");
    const names = ["", "red", "Red", "你好"];
    const rooms = await Promise.all(names.map((name) =>
      Promise.all(
        Array.from({ length: 4 }, () => TestClient.open(`${server.url}/${query(name)}`)),
      )
    ));
    await joined(server, 16);
    const pushes = names.map((name) => say(server.url, `${name}:pushed`, `/${query(name)}`));
    for (let count = 0; count < 32; count++) {
      for (const [index, clients] of rooms.entries()) {
        for (const client of clients) client.send(`${names[index]}:${count}`);
      }
    }
    assertEquals(await Promise.all(pushes), Array(4).fill([202, `{"clients":4}\n`]));
    for (const [index, clients] of rooms.entries()) {
      for (const client of clients) {
        while (client.messages.all.length < 4 * 32 + 1) await client.next();
        // What was sent to a client by mistake comes before the answer to its close.
        await client.close();
        assertEquals(client.messages.all.length, 4 * 32 + 1);
        assert(client.messages.all.every((each) => `${each}`.startsWith(`${names[index]}:`)));
        assertEquals(client.messages.all, clients[0].messages.all);
      }
    }
  },
);

test({ needs: "run" }, "the path does not matter, only the room", async () => {
  await using server = await start();
  const paths = ["/", "/handler", "/?room=red", "/handler?room=red", "/a/b?x=1&room=red"];
  const clients = await Promise.all(paths.map((path) => TestClient.open(server.url + path)));
  await joined(server, paths.length);
  clients[0].send("in the common room");
  clients[2].send("in the red room");
  const received = await Promise.all(clients.map((client) => client.next()));
  const [common, red] = ["in the common room", "in the red room"];
  assertEquals(received, [common, common, red, red, red]);
  await Promise.all(clients.map((client) => client.close()));
});

test(
  { needs: "run" },
  "a room may have any name of 1 to 100 characters, however the URL spells it",
  async () => {
    await using server = await start();
    const names = ["/", "a.b", "*", ">", "..", " ", "你好", "%2F", "\0\n", "+", "__proto__"];
    names.push("x".repeat(100), "🦕".repeat(100));
    const open = (name: string) => TestClient.open(`${server.url}/${query(name)}`);
    const clients = await Promise.all(names.map(open));
    await joined(server, names.length);
    for (const name of names) {
      const target = `/?room=${encodeURIComponent(name)}`;
      assertEquals(await say(server.url, name, target), [202, `{"clients":1}\n`], name);
      assertEquals((await ask(server.port, page(target))).status, 200, name);
    }
    for (const client of clients) await client.close();
    assertEquals(clients.map((client) => client.messages.all), names.map((name) => [name]));
  },
);

test(
  { needs: "run" },
  "a name that is empty, too long or one of two is refused, and the page with it",
  async () => {
    await using server = await start();
    const long = ["x".repeat(101), encodeURIComponent("🦕".repeat(101))];
    for (const name of ["", "&room=a", "a&room=b", "a&room=a", "a&room=", ...long]) {
      const target = `/?room=${name}`;
      const requests = [handshake({}, `GET ${target} HTTP/1.1`), page(target)];
      requests.push(pushed("hello", ["Content-Length: 5"], target));
      for (const request of requests) {
        assertEquals((await ask(server.port, request)).status, 400, request);
      }
    }
    assertEquals(server.lines.all.length, 1, "This is the first line, with the address.");
  },
);

test(
  { needs: "run" },
  "a client that leaves or breaks off is forgotten at once, and the others notice nothing",
  async () => {
    await using server = await start("--quiet");
    await using clients = await join(server, 2);
    const sent: string[] = [];
    const sendSome = () => {
      for (let count = 0; count < 20; count++) {
        clients[0].send(`${sent.push(`${sent.length}`) - 1}`);
      }
    };
    for (let round = 0; round < 20; round++) {
      sendSome();
      // A client that hears itself is in the room.
      using breaks = await RawClient.upgraded(server.port);
      await breaks.write(frame(1, "hello"));
      const leaves = await TestClient.open(server.url);
      leaves.send("hello");
      await leaves.messages.next((message) => message === "hello");
      sendSome();
      await Promise.all([reset(breaks), leaves.close()]);
      const count = async () => (await say(server.url, "hello"))[1];
      await eventually(async () => assertEquals(await count(), `{"clients":2}\n`));
    }
    assert(server.lines.all.some((line) => line.startsWith("A client left (1006)")));
    for (const { messages } of clients) {
      await messages.next((message) => message === sent.at(-1));
      assertEquals(messages.all.filter((message) => message !== "hello"), sent);
    }
  },
);

/** Enters and leaves rooms, and prints how many are left, and the bytes for 10,000 more of them. */
const VISITS = `
import { handler, rooms } from "./broadcast_server.ts";
import { heldMemory } from "./tests/helpers.ts";
console.log = () => {};
async function memoryAfter(count) {
  for (let number = 0; number < count; number++) {
    const websocket = {
      async *[Symbol.asyncIterator]() {
        yield "hello";
      },
      send() {},
      closed: Promise.resolve({ code: 1000, reason: "" }),
    };
    await handler(websocket, new Request("http://localhost/?room=" + count + "-" + number));
  }
  return heldMemory();
}
await memoryAfter(1000);
const few = await memoryAfter(1000);
console.error(JSON.stringify([rooms.size, await memoryAfter(10_000) - few]));
Deno.exit();
`;

test(
  { needs: "run" },
  "10,000 rooms entered and left one after the other are forgotten, and take no memory",
  async () => {
    const root = new URL("..", import.meta.url);
    await using visits = new Program(Deno.execPath(), ["eval", VISITS], { cwd: root });
    const [size, bytes] = JSON.parse(await visits.errors.next());
    assertEquals(size, 0);
    assertLessOrEqual(bytes, 10_000 * 32);
  },
);

test(
  { needs: "run" },
  "what is pushed is heard by all in the room, and the answer tells how many they are",
  async () => {
    await using server = await start();
    assertEquals(await say(server.url, "hello, nobody", "/?room=red"), [202, `{"clients":0}\n`]);
    await using common = await join(server, 1);
    await using red = await join(server, 2, "red");
    // Text stays as it is: empty, or with the mark that some programs write before a text.
    for (const text of ["hello 🦕", "", "\ufeffhello\ufeff"]) {
      assertEquals(await say(server.url, text, "/?room=red"), [202, `{"clients":2}\n`]);
      for (const client of red) assertEquals(await client.next(), text);
    }
    assertEquals(await say(server.url, "hello, common room"), [202, `{"clients":1}\n`]);
    assertEquals(await common[0].next(), "hello, common room");
  },
);

test(
  { needs: "run" },
  "with ?after=, a client hears positions, and a push tells its own",
  async () => {
    await using server = await start("--max-history", "1500", "--history-timeout", "0");
    await using plain = await join(server, 1, "red");
    await using follower = await TestClient.open(`${server.url}/?room=red&after=`);
    const epoch = `${await follower.next()}`.replace(/\.0$/, "");
    assertMatch(epoch, /^\w+$/);
    const push = () =>
      fetch(new URL("/?room=red", server.url.replace("ws:", "http:")), {
        method: "POST",
        body: "hello",
      });
    assertEquals(await (await push()).json(), { clients: 2, position: `${epoch}.1` });
    plain[0].send("x".repeat(1000));
    assertEquals(await follower.next(), `${epoch}.1\nhello`);
    assertEquals(await follower.next(), `${epoch}.2\n${"x".repeat(1000)}`);
    assertEquals([await plain[0].next(), await plain[0].next()], ["hello", "x".repeat(1000)]);
    await using again = await TestClient.open(`${server.url}/?after=${epoch}.0&room=red`);
    assertEquals(await again.next(), `${epoch}.1 lost 1 missed 1`);
    await using back = await TestClient.open(`${server.url}/?after=${epoch}.1&room=red`);
    assertEquals(await back.next(), `${epoch}.1 missed 1`);
    assertEquals(await back.next(), `${epoch}.2\n${"x".repeat(1000)}`);
    for (const client of [follower, again, back, plain[0]]) await client.close();
    await heard(server.lines, "A client left (1000) (room red), 0 connected.");
    await eventually(async () => {
      await using late = await TestClient.open(`${server.url}/?room=red&after=${epoch}.2`);
      assertMatch(`${await late.next()}`, /^\w+\.0 lost$/);
    });
  },
);

test(
  { needs: "run" },
  "a push that is no text, too large, of unknown length or to another path is refused",
  async () => {
    await using server = await start("--max-message", "10");
    await using clients = await join(server, 1);
    const notText = [[0xff], [0xc3], [0xed, 0xa0, 0x80], [0x68, 0x69, 0xc0, 0x80]];
    for (const bytes of notText) {
      assertEquals((await say(server.url, new Uint8Array(bytes)))[0], 400, `${bytes}`);
    }
    assertEquals((await say(server.url, "more than ten bytes"))[0], 413);
    assertEquals((await say(server.url, "é".repeat(6)))[0], 413, "These are 12 bytes.");
    assertEquals((await say(server.url, "hello", "/file"))[0], 426);
    const chunked = pushed("5\r\nhello\r\n0\r\n\r\n", ["Transfer-Encoding: chunked"]);
    assertEquals((await ask(server.port, chunked)).status, 411);
    assertEquals((await say(server.url, "ten bytes!"))[0], 202);
    assertEquals(await clients[0].next(), "ten bytes!");
    assertEquals((await ask(server.port, pushed("", []))).status, 202, "It has no body.");
    assertEquals(await clients[0].next(), "");
  },
);

test({ needs: "run" }, "a page that may not connect may not push either", async () => {
  await using server = await start("--origin", "https://friend.example");
  const cases: [string, number][] = [["https://friend.example", 202], ["https://example.com", 403]];
  for (const [Origin, expected] of [...cases, ["http://localhost", 202], ["null", 403]] as const) {
    const request = pushed("hello", [`Origin: ${Origin}`, "Content-Length: 5"]);
    assertEquals((await ask(server.port, request)).status, expected, Origin);
  }
});

/** The same pushes, and when each of them begins. */
function startSeenPushes() {
  const begun = new Inbox<void>();
  const server = startPushes((...all) => {
    begun.put();
    return push(...all);
  });
  return Object.assign(server, { begun });
}

test({ needs: "net" }, "a push that breaks off is heard by nobody, and is no error", async () => {
  await using server = startSeenPushes();
  using half = await unfinished(server);
  await server.begun.next();
  half.connection.close();
  assertEquals(await server.log.next(), "Refused a client with 503.");
  assertEquals([server.messages, server.log.all.length], [[], 1]);
});

test(
  { needs: "run" },
  "a push that stalls holds up nobody, ends with 408, and is not heard later either",
  async () => {
    // The pushes that do not stall have to be in whole in this time as well.
    await using server = startPushes(push, 2);
    using stalled = await unfinished(server);
    assertEquals(await say(server.url, "pushed"), [202, `{"clients":1}\n`]);
    assertMatch(await stalled.head(), /^HTTP\/1\.1 408 /);
    await stalled.write("world");
    assertEquals((await say(server.url, "the end"))[0], 202);
    assertEquals(server.messages, ["pushed", "the end"]);
  },
);

test(
  { needs: "net" },
  "a push that has not ended when the server stops is answered, and not heard",
  async () => {
    const server = startSeenPushes();
    using half = await unfinished(server);
    await server.begun.next();
    await server[Symbol.asyncDispose]();
    assertMatch(await half.head(), /^HTTP\/1\.1 503 /);
    assertEquals(server.messages, []);
  },
);

test(
  { needs: "net" },
  "while the server stops, a push that was heard is answered 202, and one that is refused is not heard",
  async () => {
    const statuses = new Set<number>();
    // The push is whole a little before the server stops, or a little after that.
    for (let turns = -20; turns <= 20; turns++) {
      const entered = Promise.withResolvers<void>();
      const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
      const writer = writable.getWriter();
      const { messages, ...server } = startPushes((request, info) => {
        entered.resolve();
        return push(new Request(request, { body: readable }), info);
      });
      const answer = fetch(server.url.replace("ws", "http"), { method: "POST", body: "" });
      await within(entered.promise, "the push");
      const steps = [() => void writer.close(), () => void server[Symbol.asyncDispose]()];
      if (turns > 0) steps.reverse();
      for (const step of steps) {
        step();
        for (let turn = 0; turn < Math.abs(turns); turn++) await Promise.resolve();
      }
      const { status, body } = await answer;
      await body?.cancel();
      await server[Symbol.asyncDispose]();
      assertEquals(status, messages.length > 0 ? 202 : 503, `${turns}`);
      statuses.add(status);
    }
    assertEquals(statuses, new Set([202, 503]));
  },
);

test(
  { needs: "run" },
  "The token is wrong or missing: it gets 401, for a push as well, and the token is never printed",
  async () => {
    const file = await Deno.makeTempFile();
    await Deno.writeTextFile(file, `${TOKEN}\r\n`);
    const flags = ["--port", "0", "--token-file", file];
    await using server = new Script("broadcast_server.ts", flags, ["--allow-net", "--allow-read"]);
    const port = Number((await server.lines.next()).match(/ws:\/\/localhost:(\d+)/)?.[1]);
    await Deno.remove(file);
    const bearer = (token: string) => [`Authorization: Bearer ${token}`];
    const offer = (token: string) => {
      const bytes = new TextEncoder().encode(token);
      const encoded = bytes.toBase64({ alphabet: "base64url", omitPadding: true });
      return [`Sec-WebSocket-Protocol: bearer, ${encoded}`];
    };
    const cases: [target: string, headers: string[], isRight: boolean][] = [
      ["/", bearer(TOKEN), true],
      ["/?room=red", [`authorization: bearer  ${TOKEN}`], true],
      ["/?room=red", offer(TOKEN), true],
      ["/", [], false],
      ["/?room=red", [], false],
      [`/?token=${encodeURIComponent(TOKEN)}`, [], false],
      ["/", bearer(""), false],
      ["/", bearer(TOKEN.slice(1)), false],
      ["/", bearer(`${TOKEN}=`), false],
      ["/", bearer(TOKEN.toLowerCase()), false],
      ["/", [`Authorization: ${TOKEN}`], false],
      ["/", [...offer(TOKEN), ...bearer("wrong")], false],
      ["/", offer("wrong"), false],
      ["/", ["Sec-WebSocket-Protocol: bearer"], false],
      ["/", [`Sec-WebSocket-Protocol: bearer, ${TOKEN}`], false],
    ];
    for (const [target, headers, isRight] of cases) {
      const socket = handshake({}, `GET ${target} HTTP/1.1`)
        .replace("\r\n\r\n", ["", ...headers, "", ""].join("\r\n"));
      const text = pushed("hi", [...headers, "Content-Length: 2"], target);
      for (const [request, status] of [[socket, 101], [text, 202]] as const) {
        const answer = await ask(port, request);
        assertEquals(answer.status, isRight ? status : 401, request);
        if (!isRight) assertMatch(answer.head, /\r\nwww-authenticate: bearer\r\n/);
      }
      assertEquals((await ask(port, page(target, headers))).status, 200, "Everyone gets the page.");
    }
    // What is wrong for another reason is not printed either.
    const [right] = bearer(TOKEN);
    const wrong: [request: string, status: number][] = [
      [handshake({ Host: "localhost:99999", Authorization: `Bearer ${TOKEN}` }), 400],
      [page("/", [right]).replace("localhost", "256.256.256.256"), 400],
      [pushed("x", [right, "Content-Length: 1"]).replace("localhost", "a:b"), 400],
      [pushed("x", [right, "Content-Length: 1"], "/?room=red&room=blue"), 400],
      [pushed("x", [right, "Content-Length: x"]), 400],
      [pushed("x", [right, "Content-Length: 9999999"]), 413],
      [`GET / HTTP/9\r\n${right}\r\n\r\n`, 400],
    ];
    for (const [request, status] of wrong) {
      assertEquals((await ask(port, request)).status, status, request);
    }
    server.kill("SIGTERM");
    assertEquals(await server.end(), 0);
    const printed = [...server.lines.all, ...server.errors.all].join("\n");
    assertEquals(printed.match(/3q2|7w|M3E|Mz/), null, printed);
    const refused = cases.filter(([, , isRight]) => !isRight);
    const refusals = printed.match(/^Refused a client with 401\.$/gm);
    assertEquals(refusals?.length, 2 * refused.length);
    const said = server.lines.all.filter((line) => line.endsWith("hi"));
    assertEquals(said, ["hi", "Room red: hi", "Room red: hi"]);
  },
);

test(
  { needs: "run" },
  "it prints where it is, who comes and goes, and what is said, disarmed",
  async () => {
    await using server = await start();
    const { host, port } = new URL(server.url);
    assertEquals(server.lines.all, [`Broadcast server on ws://${host}, page at http://${host}/`]);
    const page = await fetch(`http://${host}/`);
    assertMatch(await page.text(), /^<!doctype html>/i);
    assertEquals((await ask(Number(port), handshake({ Origin: "null" }))).status, 403);
    await heard(server.errors, "Refused a page from elsewhere: null. See --origin.");
    {
      await using clients = await join(server, 1);
      for (const message of ["\x1b[31m\u202e", new Uint8Array(3).buffer]) {
        clients[0].send(message);
        assertEquals(await clients[0].next(), message);
      }
      await say(server.url, "hello");
    }
    await heard(server.lines, "A client left (1000), 0 connected.");
    const said = ["\\u{1b}[31m\\u{202e}", "3 bytes of binary.", "hello"];
    assertEquals(server.lines.all.slice(2, -1), said);
  },
);

test(
  { needs: "run" },
  "its lines name the room, disarmed and cut as what is said",
  async () => {
    await using server = await start();
    for (const name of ["red", "\x1b[31m\u202e\n", "🦕".repeat(100)]) {
      await using _client = await TestClient.open(`${server.url}/${query(name)}`);
      await server.lines.next();
    }
    while (server.lines.all.length < 7) await server.lines.next();
    const escaped = "\\u{1b}[31m\\u{202e}\\u{a}";
    const [, ...lines] = server.lines.all;
    assertEquals(lines.slice(0, 4), [
      "A client joined (room red), 1 connected.",
      "A client left (1000) (room red), 0 connected.",
      `A client joined (room ${escaped}), 1 connected.`,
      `A client left (1000) (room ${escaped}), 0 connected.`,
    ]);
    assertMatch(lines[4], /^A client joined \(room (🦕)+… \(\d\d more characters\)$/u);
    assertMatch(lines[5], /^A client left \(1000\) \(room (🦕)+.*… \(\d\d more characters\)$/u);
  },
);

test(
  { needs: "run" },
  "its flags set the limits, and --quiet keeps back what is said",
  async () => {
    const flags = ["--quiet", "--max-clients", "1", "--max-message", "10", "--origin", "null"];
    await using server = await start(...flags);
    await using client = await TestClient.open(server.url, { Origin: "null" });
    await heard(server.lines, "A client joined, 1 connected.");
    client.send("it fits");
    assertEquals(await client.next(), "it fits");
    assertEquals((await ask(server.port, handshake())).status, 503);
    const long = "more than ten bytes";
    client.send(long);
    assertEquals((await within(client.closed, "the close")).code, 1009);
    await heard(server.lines, "A client left (1009), 0 connected.");
    assertEquals((await say(server.url, long))[0], 413);
    assertEquals(server.lines.all.length, 3, "The lines are the first, the join and the leave.");
  },
);

for (const signal of ["SIGTERM", "SIGHUP"] as const) {
  test(
    { needs: "run" },
    `The server stops: ${signal} ends it with 0, and all get 1001`,
    async () => {
      await using server = await start();
      await using clients = await join(server, 3);
      server.kill(signal);
      for (const client of clients) {
        assertEquals((await within(client.closed, "the close")).code, 1001);
      }
      assertEquals(await server.end(), 0);
      assertEquals(server.errors.all, []);
    },
  );
}
