// What `serve` promises to all that connect, in whatever way: each promise of the README has a test.

import {
  assert,
  assertEquals,
  assertLessOrEqual,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { handler } from "../server.ts";
import { type Handler, serve, type ServeOptions } from "websockets";
import { MAX_MESSAGE } from "../websockets/options.ts";
import {
  eventually,
  freePort,
  heldMemory,
  Inbox,
  seededRandom,
  startServer,
  TestClient,
  within,
} from "./helpers.ts";
import { test } from "./needs.ts";
import { assertDescriptors, countDescriptors, Program, Script } from "./programs.ts";
import { ask, frame, handshake, RawClient } from "./raw.ts";
import { listen } from "./peers.ts";

const silent = () => {};
const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;
const PING = 9;
const PONG = 10;

/** Fails unless the server at `url` still answers a newcomer. */
async function assertAnswers(url: string): Promise<void> {
  await using client = await TestClient.open(url);
  client.send("hello");
  assertMatch(String(await client.next()), /^Data received as "hello"\./);
}

/** Waits until there is room for so many clients, and no more are counted that have left. */
function assertRoomFor(count: number, url: string): Promise<void> {
  return eventually(async () => {
    const opening = Array.from({ length: count }, () => TestClient.open(url));
    const opened = await Promise.allSettled(opening);
    const clients = opened.flatMap((each) => each.status === "fulfilled" ? [each.value] : []);
    await Promise.all(clients.map((client) => client.close()));
    assertEquals(clients.length, count);
  });
}

/** Random handshakes for each script. 50,000 were tried as well. */
const HANDSHAKES = 1_500;

const SERVER = `"${Deno.execPath()}" run --allow-net server.ts`;

/** Starts a server as a shell does, where more can be set than in a command of Deno. */
function startShell(command: string): Program {
  return new Program("sh", ["-c", command], { cwd: new URL("../", import.meta.url) });
}

// Handshake.

/** A change of a handshake for each value of a header; `null` leaves it out. */
function each(name: string, values: (string | null)[]): Record<string, string | null>[] {
  return values.map((value) => ({ [name]: value }));
}

test(
  { needs: "net" },
  "A handshake breaks a rule of RFC 6455: it is told which, and never gets a 500",
  async () => {
    await using server = startServer(handler);
    const rules: [changes: Record<string, string | null>[], status: number, header?: string][] = [
      [each("Upgrade", [null, "", "h2c", "websockets", "web socket"]), 426, "upgrade: websocket"],
      [each("Upgrade", ["h2c, websocket", "websocket,h2c", "websocket, websocket"]), 426],
      [each("Upgrade", ["h2c\r\nUpgrade: websocket"]), 426],
      [each("Connection", [null, "close", "keep-alive"]), 426, "upgrade: websocket"],
      [
        each("Sec-WebSocket-Version", [null, "8", "12", "013", "13, 8", "x"]),
        426,
        "sec-websocket-version: 13",
      ],
      [each("Sec-WebSocket-Key", [null, "", "abc", "wDqumtseNBJdhkihL6PW7w"]), 400],
      [each("Sec-WebSocket-Key", ["wDqumtseNBJdhkihL6PW7wA=", "wDqumtseNBJdhkihL6PW7!=="]), 400],
      [each("Host", [null, "["]), 400],
      [[{ Host: "[", Upgrade: null, "Sec-WebSocket-Key": null }], 400],
      [each("Upgrade", ["websocket", "WebSocket", "WEBSOCKET"]), 101],
      [each("Connection", ["upgrade", "keep-alive, UPGRADE", "upgrade,x"]), 101],
      [each("Sec-WebSocket-Protocol", ["chat"]), 101],
    ];
    const cases = rules.flatMap(([all, ...answer]) =>
      all.map((changes) => [handshake(changes), ...answer] as const)
    );
    const methods = ["POST", "HEAD", "OPTIONS"].map((method) =>
      [handshake({}, `${method} / HTTP/1.1`), 405, "allow: get"] as const
    );
    const socketIo = [
      handshake({}, "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1"),
      400,
    ] as const;
    for (const [request, expected, header = ""] of [...cases, ...methods, socketIo]) {
      const { status, head } = await ask(server.port, request);
      assertEquals(status, expected, request);
      assertStringIncludes(head, `\r\n${header}`);
    }
    await assertAnswers(server.url);
  },
);

// Origin.

test(
  { needs: "net" },
  "A page comes from an unknown origin: it gets 403, and programs and pages of this machine come in",
  async () => {
    await using server = startServer(handler);
    await using open = startServer(handler, {
      origins: ["null", "https://example.com", "http://example.com:8080"],
    });
    await using wide = startServer(handler, { origins: ["*"] });
    const cases: [string | null, number, number][] = [
      [null, 101, 101],
      ["http://localhost", 101, 101],
      ["https://localhost:3000", 101, 101],
      ["http://127.0.0.1:8000", 101, 101],
      ["http://[::1]:8000", 101, 101],
      ["null", 403, 101],
      ["https://example.com", 403, 101],
      ["http://example.com:8080", 403, 101],
      ["http://example.com", 403, 403],
      ["https://example.com.evil.test", 403, 403],
      ["http://localhost.evil.test", 403, 403],
      ["http://evil.test:80/localhost", 403, 403],
      ["http://localhost@evil.test", 403, 403],
      ["http://127.0.0.1.evil.test", 403, 403],
      ["file://", 403, 403],
      ["", 403, 403],
    ];
    for (const [Origin, expected, expectedOpen] of cases) {
      assertEquals((await ask(server.port, handshake({ Origin }))).status, expected, `${Origin}`);
      assertEquals((await ask(open.port, handshake({ Origin }))).status, expectedOpen, `${Origin}`);
      assertEquals((await ask(wide.port, handshake({ Origin }))).status, 101, `${Origin}`);
    }
    assertMatch(
      await server.log.next(),
      /^Refused a page from elsewhere: null\.$/,
    );
  },
);

test(
  { needs: "net" },
  "A page comes from an unknown origin: it gets 403 also if its origin is the Host, as in DNS rebinding",
  async () => {
    await using server = startServer(handler);
    const Host = `evil.test:${server.port}`;
    const { status } = await ask(server.port, handshake({ Host, Origin: `http://${Host}` }));
    assertEquals(status, 403);
  },
);

// Size.

test(
  { needs: "net" },
  "A message is too large: with one byte over the limit it gets 1009",
  async () => {
    const got: (string | ArrayBuffer)[] = [];
    const handler: Handler = async (websocket) => {
      for await (const message of websocket) got.push(message);
    };
    await using server = startServer(handler, { maxMessage: 300 });
    for (const fits of [new Uint8Array(300), "x".repeat(300), "é".repeat(150), "好".repeat(100)]) {
      await using client = await TestClient.open(server.url);
      client.send(fits);
      client.send("after");
      assertEquals((await client.close()).code, 1000);
      assertEquals(got.splice(0).length, 2);
    }
    for (const over of [new Uint8Array(301), "x".repeat(301), "é".repeat(151), "好".repeat(101)]) {
      await using client = await TestClient.open(server.url);
      client.send(over);
      client.send("after");
      const { code, reason } = await within(client.closed, "the close");
      assertEquals([code, reason], [1009, "Larger than 300 bytes."]);
      assertEquals(got, []);
    }
  },
);

test(
  { needs: "net" },
  "A message is too large: in pieces it gets 1009 just the same",
  async () => {
    await using server = startServer(handler);
    using client = await RawClient.upgraded(server.port);
    const piece = new Uint8Array(65_535);
    await client.write(frame(BINARY, piece, false));
    for (let size = piece.length; size <= MAX_MESSAGE; size += piece.length) {
      await client.write(frame(0, piece, false));
    }
    await client.write(frame(0, piece));
    const answer = await client.take(4);
    assertEquals([...answer.subarray(0, 1), ...answer.subarray(2)], [
      0x80 | CLOSE,
      3,
      1009 - 768,
    ]);
  },
);

// Number.

test(
  { needs: "net" },
  "There are too many clients: a handshake gets 503, until one leaves",
  async () => {
    await using server = startServer(handler, { maxClients: 2 });
    const first = await TestClient.open(server.url);
    await using _second = await TestClient.open(server.url);
    assertEquals((await ask(server.port, handshake())).status, 503);
    await first.close();
    await eventually(() => assertAnswers(server.url));
  },
);

test(
  { needs: "net" },
  "There are too many clients: in a burst, those over the limit get 503 or 1013",
  async () => {
    let calls = 0;
    const counted: Handler = (websocket) => {
      calls++;
      return handler(websocket);
    };
    // Where one handshake is over before the next one arrives, all others get 503, and it is no burst.
    for (let isBurst = false, burst = 0; !isBurst; burst++) {
      assert(burst < 50, "In no burst a client was closed with 1013.");
      calls = 0;
      await using server = startServer(counted, { maxClients: 5 });
      const attempts = Array.from({ length: 50 }, () => TestClient.open(server.url));
      const opened = await Promise.allSettled(attempts);
      const clients = opened.flatMap((each) => each.status === "fulfilled" ? [each.value] : []);
      // Each is asked, so that each has either answered or been closed.
      for (const client of clients) client.send("hello");
      const answered = await Promise.all(clients.map(async (client) => {
        const code = await Promise.race([client.next(), client.closed.then(({ code }) => code)]);
        return typeof code === "number" ? assertEquals(code, 1013) : client;
      }));
      const stayed = answered.filter((client) => client !== undefined);
      assertEquals([stayed.length, calls], [5, 5]);
      isBurst = clients.length > 5;
      await Promise.all(stayed.map((client) => client.close()));
    }
  },
);

test(
  { needs: "net" },
  "Too much waits for all clients together: a new client gets 503, until enough is taken",
  async () => {
    await using server = serve(handler, { port: 0, maxWaiting: 1_000, log: silent });
    const { port } = server.addr;
    server.countWaiting(1_001);
    const { status, head } = await ask(port, handshake());
    assertEquals(status, 503);
    assertMatch(head, /\r\nretry-after: 1\r\n/);
    server.countWaiting(-1_001);
    await assertAnswers(`ws://localhost:${port}`);
  },
);

test({ needs: "run" }, "handshakes that are reset keep nobody out, and it can stop", async () => {
  await using server = await Script.server("server.ts", "--max-clients", "10");
  const port = Number(new URL(server.url).port);
  const page = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
  const reset = async () => {
    using client = await RawClient.open(port, page);
    await client.head();
    await client.write(handshake());
    // The system resets a connection that is closed before all of it is read, as the page here.
  };
  // A handshake that was done before the reset counts until the server hears of the reset.
  for (let batch = 0; batch < 20; batch++) await Promise.all(Array.from({ length: 12 }, reset));
  await assertRoomFor(10, server.url);
  server.kill();
  assertEquals(await server.end(), 0);
  assert(server.errors.all.every((line) => line.includes("--max-clients")), `${server.errors.all}`);
});

test(
  { needs: "linux" },
  "Descriptors: a server that has none left says so and ends, to be started again",
  async () => {
    await using server = startShell(`ulimit -n 64; exec ${SERVER} --port 0`);
    const port = Number((await server.prints(/ws:/)).match(/localhost:(\d+)/)?.[1]);
    const clients: RawClient[] = [];
    for (let count = 0; count < 64; count++) {
      await RawClient.open(port).then((client) => clients.push(client), silent);
    }
    assertEquals(await server.end(), 1);
    assertMatch(server.errors.all.join("\n"), /^Stopped listening \(.*\): raise ulimit -n .*$/);
    for (const client of clients) client[Symbol.dispose]();
  },
);

// What clients of other makes send.

test(
  { needs: "net" },
  "what comes together with the handshake is heard, up to a message that is cut in two",
  async () => {
    const heard = new Inbox<string>();
    await using server = startServer(listen(heard));
    using client = await RawClient.open(server.port);
    const last = frame(TEXT, "three");
    const start = [handshake(), frame(TEXT, "one"), frame(TEXT, "two"), last.subarray(0, 8)];
    await client.write(await new Blob(start).bytes());
    assertMatch(await client.head(), /^HTTP\/1\.1 101 /);
    assertEquals([await heard.next(), await heard.next()], ["one", "two"]);
    await client.write(last.subarray(8));
    assertEquals(await heard.next(), "three");
  },
);

test({ needs: "net" }, "one connection brings a GET, a POST and then a handshake", async () => {
  const heard = new Inbox<string>();
  const processRequest: ServeOptions["processRequest"] = async ({ method, headers, body }) => {
    if (!headers.has("upgrade")) {
      return new Response(`${method} ${await new Response(body).text()}.`);
    }
  };
  await using server = startServer(listen(heard), { processRequest });
  using client = await RawClient.open(server.port);
  const get = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
  const post = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody";
  for (const [text, answer] of [[get, "GET ."], [post, "POST body."]]) {
    await client.write(text);
    await client.head();
    assertEquals(new TextDecoder().decode(await client.read()), answer);
  }
  await client.write(handshake());
  assertMatch(await client.head(), /^HTTP\/1\.1 101 /);
  await client.write(frame(TEXT, "hello"));
  assertEquals(await heard.next(), "hello");
});

test({ needs: "net" }, "a handshake may have 95 headers, and a cookie of 60 kB", async () => {
  const seen = new Inbox<[count: number, cookie?: number]>();
  await using server = startServer((_websocket, { headers }) => {
    seen.put([[...headers].length, headers.get("cookie")?.length]);
  });
  const more = Array.from({ length: 89 }, (_, index) => [`X-${index}`, "x"]);
  const headers = { Cookie: "c".repeat(60_000), ...Object.fromEntries(more) };
  assertEquals((await ask(server.port, handshake(headers))).status, 101);
  assertEquals(await seen.next(), [95, 60_000]);
});

// Dead peers.

test(
  { needs: "net" },
  "A client is silent: it gets 1001 if it answers no ping, and may stay if it does",
  async () => {
    const closed = new Inbox<number>();
    const watched: Handler = async (websocket) => {
      websocket.closed.then(({ code }) => closed.put(code));
      await handler(websocket);
    };
    await using server = startServer(watched, { idleTimeout: 3 });
    using dead = await RawClient.upgraded(server.port);
    using idle = await RawClient.upgraded(server.port);
    // The other one gets its second ping when the dead one is dropped.
    for (let pings = 0; pings < 2; pings++) {
      assertEquals(await idle.read(), new Uint8Array([0x80 | PING, 0]));
      await idle.write(frame(PONG));
    }
    assertEquals(await closed.next(), 1006);
    // The runtime reports it once more when it is gone.
    dead.connection.close();
    await idle.write(frame(CLOSE));
    await closed.next((code) => code === 1005, "the end of the other one");
    assertEquals(closed.all, [1006, 1005]);
  },
);

// Stopping.

test(
  { needs: "run" },
  "The server stops: each client gets what waits for it and 1001, and nobody is let in",
  async () => {
    await using server = await Script.server("broadcast_server.ts");
    const port = Number(new URL(server.url).port);
    await using idle = await TestClient.open(server.url);
    using slow = await RawClient.upgraded(port);
    await server.lines.next((line) => line === "A client joined, 2 connected.");
    // More than the kernel takes: some of it waits in the server.
    const size = 1_000_000;
    for (let sent = 0; sent < 20; sent++) idle.send(new Uint8Array(size));
    for (let heard = 0; heard < 20; heard++) await idle.next();
    server.kill("SIGINT");
    const { code, reason } = await within(idle.closed, "1001");
    assertEquals([code, reason], [1001, "The server is shutting down."]);
    assertEquals((await ask(port, handshake())).status, 503);
    const last = await slow.readClose();
    assertEquals([last.code, last.before], [1001, 20 * (size + 10)]);
    await slow.write(frame(CLOSE));
    assertEquals(await server.end(), 0);
    assertEquals(server.errors.all, []);
  },
);

test(
  { needs: "run" },
  "The server stops: a client that does not read can't hold it up",
  async () => {
    const start = async () => {
      const server = await Script.server("server.ts", "--quiet");
      const client = await RawClient.upgraded(Number(new URL(server.url).port));
      const idle = await TestClient.open(server.url);
      // Far more than the kernel takes, so that most of it waits in the server.
      const large = frame(BINARY, new Uint8Array(1_000_000));
      for (let sent = 0; sent < 40; sent++) await client.write(large);
      server.kill();
      // This shows that the signal was heard.
      assertEquals((await within(idle.closed, "1001")).code, 1001);
      return Object.assign(server, { client });
    };
    await using patient = await start();
    await using urgent = await start();
    urgent.kill();
    assertEquals(await urgent.end(), 1, "A second signal ends it at once.");
    assertEquals(urgent.errors.all, []);
    assertEquals(await patient.end(), 0);
    assertMatch(
      patient.errors.all.join("\n"),
      /^Stopped .* returned: 0, .* waiting for them: 1\.$/,
    );
    for (const { client } of [patient, urgent]) client[Symbol.dispose]();
  },
);

// Logs.

test(
  { needs: "run" },
  "Logs: nothing that a peer sends can write to the terminal",
  async () => {
    await using server = await Script.server("server.ts");
    const port = Number(new URL(server.url).port);
    const Origin = "http://evil.test/\u009b31m\u202e" + "x".repeat(5_000);
    assertEquals((await ask(port, handshake({ Origin }))).status, 403);
    const line = await server.errors.next();
    assertMatch(
      line,
      /^Refused a page from elsewhere: http:\/\/evil\.test.* See --origin\.$/,
    );
    // deno-lint-ignore no-control-regex
    assert(!/[\x00-\x1f\x7f-\x9f\u202e]/.test(line) && line.length < 400, JSON.stringify(line));
  },
);

test(
  { needs: "linux" },
  "Logs: a full disk keeps a server neither from starting nor from serving",
  async () => {
    const port = freePort();
    await using server = startShell(`exec ${SERVER} --port ${port} > /dev/full 2> /dev/full`);
    const url = `ws://localhost:${port}`;
    await eventually(() => assertAnswers(url));
    assertEquals((await ask(port, handshake({ Origin: "null.test" }))).status, 403);
    await assertAnswers(url);
    server.kill();
    assertEquals(await server.end(), 0);
  },
);

// All of it at once.

test(
  { needs: "run" },
  "2,000 random handshakes and 2,000 random frames end nothing, and leave nothing behind",
  async () => {
    const random = seededRandom(6455);
    const noise = (length: number) => Uint8Array.from({ length }, () => random(256));
    await using server = await Script.server("server.ts", "--quiet", "--max-clients", "50");
    const port = Number(new URL(server.url).port);
    const before = countDescriptors(server);

    const whole = new TextEncoder().encode(handshake());
    const shakeHands = async () => {
      using client = await RawClient.open(port);
      const bytes = whole.slice();
      for (let changes = random(4); changes >= 0; changes--) {
        bytes[random(bytes.length)] = random(256);
      }
      const sent = bytes.subarray(0, random(8) ? undefined : random(bytes.length));
      // The other end may have closed already, which is its answer.
      await client.write(sent).catch(silent);
      // A handshake that is reset before its answer would keep its descriptor, which is a limit of the
      // runtime.
      const isWhole = new TextDecoder().decode(sent).endsWith("\r\n\r\n");
      if (isWhole) await client.read().catch(silent);
    };
    for (let batch = 0; batch < 40; batch++) {
      await Promise.all(Array.from({ length: 50 }, shakeHands));
    }

    for (let connection = 0; connection < 20; connection++) {
      using client = await RawClient.upgraded(port);
      const frames = [];
      for (let count = 0; count < 100; count++) {
        const head = frame(random(3) ? random(3) : random(16), noise(random(200)), random(4) > 0);
        if (random(20) === 0) head[0] = random(256);
        if (random(20) === 0) head[1] = random(256);
        frames.push(...head);
      }
      await client.write(new Uint8Array(frames)).catch(silent);
    }

    // Of all these clients, none is still counted.
    await assertRoomFor(50, server.url);
    await assertDescriptors(server, before);
  },
);

test(
  { needs: ["run", "descriptors"] },
  "more clients than 1,024 descriptors, the usual limit, are all answered",
  async () => {
    const server = await Script.server("server.ts", "--quiet");
    const clients: TestClient[] = [];
    while (clients.length < 1_100) {
      clients.push(
        ...await Promise.all(Array.from({ length: 100 }, () => TestClient.open(server.url))),
      );
    }
    for (const [index, client] of clients.entries()) client.send(`client ${index}`);
    for (const [index, client] of clients.entries()) {
      assertStringIncludes(String(await client.next()), `"client ${index}"`);
    }
    await Promise.all(clients.map((client) => client.close()));
    server.kill();
    assertEquals(await server.end(), 0);
  },
);

test({ needs: "net" }, "a message leaves nothing behind once it is answered", async () => {
  await using server = startServer(handler);
  using client = await RawClient.upgraded(server.port);
  const questions = new Uint8Array(Array(200).fill([...frame(TEXT, "x")]).flat());
  const answerLength = 2 + `Data received as "x".  time: 2026-11-23 09:24:14.787357`.length;
  const buffer = new Uint8Array(65_536);
  const exchange = async () => {
    for (let sent = 0; sent < 20_000; sent += 200) {
      await client.write(questions);
      for (let due = 200 * answerLength; due > 0;) {
        due -= await client.connection.read(buffer) ?? Infinity;
      }
    }
    return heldMemory();
  };
  // This is 5 bytes for each message, which is less than a number takes.
  const most = 100_000;
  // What V8 compiles and keeps in between is not there each time, and what messages leave is.
  let [before, grown] = [await exchange(), Infinity];
  for (let count = 0; count < 5 && grown > most; count++) {
    const after = await exchange();
    [before, grown] = [after, after - before];
  }
  assertLessOrEqual(grown, most);
});

// Requests that a browser makes for a page, and requests that are no handshake.

test(
  { needs: "net" },
  "Health: while a server stops, every request gets 503, so that a balancer looks elsewhere",
  async () => {
    const gate = Promise.withResolvers<void>();
    const slow: Handler = async (websocket) => {
      for await (const _ of websocket);
      await gate.promise;
    };
    const server = startServer(slow, {
      processRequest: ({ headers }) => headers.has("upgrade") ? undefined : new Response("fine"),
    });
    await using client = await TestClient.open(server.url);
    const page = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assertEquals((await ask(server.port, page)).status, 200);
    const stopped = server[Symbol.asyncDispose]();
    assertEquals((await within(client.closed, "the close")).code, 1001);
    for (const request of [page, handshake()]) {
      const { status, head } = await ask(server.port, request);
      assertEquals(status, 503);
      assertMatch(head, /\r\nretry-after: 1\r\n/);
    }
    gate.resolve();
    await stopped;
  },
);

test(
  { needs: "run" },
  "Health: GET / answers 200 with the page, also when it is full",
  async () => {
    await using server = await Script.server("server.ts", "--max-clients", "1");
    await using _client = await TestClient.open(server.url);
    const port = Number(new URL(server.url).port);
    assertEquals((await ask(port, handshake())).status, 503);
    const { status, head } = await ask(port, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assertEquals(status, 200);
    assertMatch(head, /\r\ncontent-type: text\/html/);
  },
);

test({ needs: "run" }, "no combination of a handshake's headers ends a server", async () => {
  const random = seededRandom(2026);
  const pick = <T>(items: T[]) => items[random(items.length)];
  const values: Record<string, string[]> = {
    "Host": ["localhost", "localhost:9999", "", "["],
    "Upgrade": ["websocket", "WebSocket", "h2c", "h2c, websocket", "websocket,", " websocket ", ""],
    "Connection": ["Upgrade", "keep-alive, Upgrade", "upgrade,close", "close", "keep-alive"],
    "Sec-WebSocket-Key": ["wDqumtseNBJdhkihL6PW7w==", "abc", ""],
    "Sec-WebSocket-Version": ["13", "8", "13, 8"],
    "Sec-WebSocket-Protocol": ["chat", "a,b", "a, b", ",", "bearer, YWJj"],
    "Sec-WebSocket-Extensions": ["permessage-deflate"],
    "Origin": ["http://localhost", "null", "https://evil.example"],
    "Content-Length": ["0", "3"],
    "Transfer-Encoding": ["chunked"],
  };
  const randomRequest = () => {
    const lines = [];
    for (const [name, choices] of Object.entries(values)) {
      // Mostly once, so that many handshakes are nearly right.
      for (let copies = pick([0, 1, 1, 1, 1, 1, 2]); copies > 0; copies--) {
        const written = pick([name, name, name.toLowerCase(), name.toUpperCase()]);
        lines.push([
          `${written}:${pick(["", " ", "  "])}${pick(random(2) ? choices : choices.slice(0, 1))}`,
        ]);
      }
    }
    lines.sort(() => random(3) - 1);
    return `${pick(["GET", "GET", "GET", "POST"])} / HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`;
  };
  for (const script of ["server.ts", "broadcast_server.ts"]) {
    await using server = await Script.server(script, "--quiet");
    const port = Number(new URL(server.url).port);
    const before = countDescriptors(server);
    const shakeHands = async () => {
      using client = await RawClient.open(port);
      await client.write(randomRequest()).catch(silent);
      if (random(2)) await client.connection.read(new Uint8Array(1_000)).catch(silent);
    };
    for (let batch = 0; batch < HANDSHAKES / 50; batch++) {
      await Promise.all(Array.from({ length: 50 }, shakeHands));
    }
    await using client = await TestClient.open(server.url);
    client.send("hello");
    assertStringIncludes(String(await client.next()), "hello");
    await client.close();
    await assertDescriptors(server, before);
    server.kill();
    assertEquals(await server.end(), 0);
  }
});
