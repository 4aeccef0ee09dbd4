// What `serve` promises whoever connects, and however: each promise of the README has a test here.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { delay, retry } from "@std/async";
import { echo } from "../server.ts";
import { type Handler, MAX_MESSAGE } from "../websockets.ts";
import {
  ask,
  frame,
  handshake,
  Inbox,
  RawClient,
  Script,
  startServer,
  test,
  TestClient,
  within,
} from "./helpers.ts";

const silent = () => {};
const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;

/** Fails unless the server at `url` still answers a newcomer. */
async function assertAnswers(url: string): Promise<void> {
  await using client = await TestClient.open(url);
  client.send("hello");
  assertMatch(String(await client.next()), /^Data received as "hello"\./);
}

/** A handler that keeps its sockets, for tests that look at them. */
function keep(sockets: WebSocket[], handler: Handler = echo(silent)): Handler {
  return { ...handler, open: (socket) => void sockets.push(socket) };
}

// Handshake.

test(
  { needs: "net" },
  "a handshake that breaks a rule is told which, and is never a 500",
  async () => {
    await using server = startServer(echo(silent));
    const cases: [string, number, RegExp?][] = [
      [handshake({ Upgrade: null }), 426, /\r\nupgrade: websocket\r\n/],
      [handshake({ Upgrade: "h2c" }), 426, /\r\nupgrade: websocket\r\n/],
      [handshake({ Connection: null }), 426, /\r\nupgrade: websocket\r\n/],
      [handshake({ Connection: "close" }), 426, /\r\nupgrade: websocket\r\n/],
      [handshake({ "Sec-WebSocket-Version": null }), 426, /\r\nsec-websocket-version: 13\r\n/],
      [handshake({ "Sec-WebSocket-Version": "8" }), 426, /\r\nsec-websocket-version: 13\r\n/],
      [handshake({ "Sec-WebSocket-Version": "13, 8" }), 426, /\r\nsec-websocket-version: 13\r\n/],
      [handshake({ "Sec-WebSocket-Key": null }), 400],
      [handshake({ "Sec-WebSocket-Key": "abc" }), 400],
      [handshake({ "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7w" }), 400],
      [handshake({ "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7wA=" }), 400],
      [handshake({ "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7!==" }), 400],
      [handshake({ Host: null }), 400],
      [handshake({}, "POST / HTTP/1.1"), 405, /\r\nallow: get\r\n/],
      [handshake({}, "HEAD / HTTP/1.1"), 405, /\r\nallow: get\r\n/],
      [handshake({ Host: "[" }, "GET /[ HTTP/1.1"), 101],
      [handshake({ Host: "[", Upgrade: null, "Sec-WebSocket-Key": null }), 400],
      [handshake({ Upgrade: "WebSocket", Connection: "keep-alive, UPGRADE" }), 101],
      [handshake({ Upgrade: "h2c, websocket" }), 101],
      [handshake({ "Sec-WebSocket-Protocol": "chat" }), 101],
    ];
    for (const [request, expected, header = /./] of cases) {
      const { status, head } = await ask(server.port, request);
      assertEquals(status, expected, request);
      assertMatch(head, header);
    }
    await assertAnswers(server.url);
  },
);

// Origin.

test(
  { needs: "net" },
  "pages from this machine and programs come in, pages from elsewhere do not",
  async () => {
    await using server = startServer(echo(silent));
    await using open = startServer(echo(silent), {
      origins: ["null", "https://example.com", "http://example.com:8080"],
    });
    await using wide = startServer(echo(silent), { origins: ["*"] });
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
    assertMatch(await server.log.next(), /^Refused a page from null, see --origin/);
  },
);

test(
  { needs: "net" },
  "DNS rebinding gains nothing: an Origin that equals Host is no reason",
  async () => {
    await using server = startServer(echo(silent));
    const Host = `evil.test:${server.port}`;
    const { status } = await ask(server.port, handshake({ Host, Origin: `http://${Host}` }));
    assertEquals(status, 403);
  },
);

// Size.

test(
  { needs: "net" },
  "a message of the limit is answered, one byte more closes with 1009",
  async () => {
    const got: (string | ArrayBuffer)[] = [];
    const handler = { message: (_socket: WebSocket, data: string | ArrayBuffer) => got.push(data) };
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
  "a message over the limit in pieces closes with 1009 just the same",
  async () => {
    await using server = startServer(echo(silent));
    using client = await RawClient.upgraded(server.port);
    const piece = new Uint8Array(65_535);
    await client.write(frame(BINARY, piece, false));
    for (let size = piece.length; size <= MAX_MESSAGE; size += piece.length) {
      await client.write(frame(0, piece, false));
    }
    await client.write(frame(0, piece));
    const answer = await client.read();
    assertEquals([...answer.subarray(0, 1), ...answer.subarray(2, 4)], [
      0x80 | CLOSE,
      3,
      1009 - 768,
    ]);
  },
);

// Queues.

/** Sends what is echoed, and reads none of it, until the server has muted the client. */
async function sendUnread(client: RawClient, frames: Uint8Array, log: Inbox<string>) {
  const muted = log.next((line) => line.startsWith("A client does not read"), "the muting");
  let isOver = false;
  const stop = () => isOver = true;
  muted.then(stop, stop);
  // Once it is muted, it may be closed at any time.
  while (!isOver) await within(client.write(frames).catch(silent), "room to write");
  await muted;
}

/** Reads all that comes: the Close frame at its end, and how many bytes were before it. */
async function readClose(client: RawClient) {
  let tail = new Uint8Array();
  let total = 0;
  while (true) {
    const bytes = await client.read();
    total += bytes.length;
    tail = new Uint8Array([...tail, ...bytes.slice(-127)]).slice(-127);
    for (let start = 0; start < tail.length - 3; start++) {
      if (tail[start] !== (0x80 | CLOSE) || tail[start + 1] !== tail.length - start - 2) continue;
      const code = tail[start + 2] << 8 | tail[start + 3];
      const reason = new TextDecoder().decode(tail.slice(start + 4));
      return { code, reason, before: total - (tail.length - start) };
    }
    assert(bytes.length > 0, "the connection ended without a Close frame");
  }
}

test(
  { needs: "net" },
  "a client that sends and never reads is muted, and gets 1008 when it reads",
  async () => {
    const sockets: WebSocket[] = [];
    await using server = startServer(keep(sockets), { maxClients: 2 });
    using client = await RawClient.upgraded(server.port);
    await sendUnread(client, frame(BINARY, new Uint8Array(65_535)), server.log);
    const [socket] = sockets;
    const waiting = socket.bufferedAmount;
    assert(waiting <= MAX_BUFFERED + MAX_MESSAGE, `${waiting} bytes wait`);

    // Whatever it sends now is neither answered nor queued, yet it still counts as a client.
    await client.write(frame(BINARY, new Uint8Array(65_535)));
    await assertAnswers(server.url);
    assertEquals([socket.bufferedAmount, socket.readyState], [waiting, WebSocket.OPEN]);
    await using other = await TestClient.open(server.url);
    assertEquals((await ask(server.port, handshake())).status, 503);
    await other.close();

    const { code, reason } = await readClose(client);
    assertEquals([code, reason], [1008, "Too slow: too much was waiting to be read."]);
  },
);

test(
  { needs: "net" },
  "messages too small to weigh anything are bounded by their number",
  async () => {
    for (const size of [0, 1]) {
      const sockets: WebSocket[] = [];
      await using server = startServer(keep(sockets));
      using client = await RawClient.upgraded(server.port);
      const many = new Uint8Array(5_000 * (6 + size));
      for (let at = 0; at < many.length; at += 6 + size) {
        many.set(frame(BINARY, new Uint8Array(size)), at);
      }
      await sendUnread(client, many, server.log);
      assert(sockets[0].bufferedAmount < 100_000, `${sockets[0].bufferedAmount} bytes wait`);
    }
  },
);

test(
  { needs: "net" },
  "what a handler closes is delivered first, however slowly it is read",
  async () => {
    const handler: Handler = {
      message(socket) {
        socket.send(new Uint8Array(4_000_000));
        socket.send(new Uint8Array(4_000_000));
        socket.close(4000, "x".repeat(122) + "é");
        socket.send("after the end");
        socket.close(1000);
      },
    };
    await using server = startServer(handler);
    await using client = await TestClient.open(server.url);
    client.send("go");
    const { code, reason } = await within(client.closed, "the close");
    assertEquals([code, reason], [4000, "x".repeat(122)]);
    assertEquals(client.messages.all.length, 2);
  },
);

// Number.

test(
  { needs: "net" },
  "over the limit of clients a handshake gets 503, until one leaves",
  async () => {
    await using server = startServer(echo(silent), { maxClients: 2 });
    const first = await TestClient.open(server.url);
    await using _second = await TestClient.open(server.url);
    assertEquals((await ask(server.port, handshake())).status, 503);
    await first.close();
    await retry(() => assertAnswers(server.url), { minTimeout: 10 });
  },
);

const countDescriptors = (pid: number) => [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
const residentBytes = (pid: number) =>
  Number(Deno.readTextFileSync(`/proc/${pid}/statm`).split(" ")[1]) * 4096;

test({ needs: "linux" }, "200 clients that flood and never read leave nothing behind", async () => {
  await using server = await Script.server("server.ts", "--quiet");
  const port = Number(new URL(server.url).port);
  const large = frame(BINARY, new Uint8Array(65_535));
  let peers = 0;
  const flood = async () => {
    using client = await RawClient.upgraded(port);
    // Far more than what may wait and the buffers of the kernel together.
    for (let sent = 0; sent < 320; sent++) await client.write(large);
    // Every other one says that it leaves.
    if (peers % 2) await client.write(frame(CLOSE));
  };
  for (; peers < 20; peers++) await flood();
  const [descriptors, bytes] = [countDescriptors(server.pid), residentBytes(server.pid)];
  for (; peers < 220; peers++) await flood();
  await retry(() => assert(countDescriptors(server.pid) <= descriptors), { minTimeout: 20 });
  const growth = residentBytes(server.pid) - bytes;
  assert(growth < 64 * 1024 * 1024, `200 clients left ${growth} bytes behind`);
  await assertAnswers(server.url);
});

test(
  { needs: "linux" },
  "handshakes that are reset before the answer do not count for long",
  async () => {
    await using server = await Script.server("server.ts", "--max-clients", "5");
    const port = Number(new URL(server.url).port);
    const page = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (let count = 0; count < 100; count++) {
      // What it has not read makes the system reset the connection that it closes.
      using client = await RawClient.open(port, page);
      await client.head();
      await client.write(handshake());
    }
    await retry(() => assertAnswers(server.url), {
      minTimeout: 200,
      multiplier: 1,
      maxAttempts: 150,
    });
  },
);

test(
  { needs: "linux" },
  "a server out of descriptors says so and ends, to be started again",
  async () => {
    const args = [
      "-c",
      `ulimit -n 64; exec "${Deno.execPath()}" run --allow-net server.ts --port 0`,
    ];
    const process = new Deno.Command("sh", {
      args,
      cwd: new URL("../", import.meta.url),
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const output = process.stdout.pipeThrough(new TextDecoderStream()).getReader();
    const port = Number((await output.read()).value?.match(/localhost:(\d+)/)?.[1]);
    const errors = new Response(process.stderr).text();
    const clients: RawClient[] = [];
    for (let count = 0; count < 64; count++) {
      await RawClient.open(port).then((client) => clients.push(client), silent);
    }
    assertEquals((await within(process.status, "the server to end")).code, 1);
    assertMatch(await errors, /^Stopped listening \(.*\): raise ulimit -n .*\n$/);
    for (const client of clients) client[Symbol.dispose]();
    await output.cancel();
  },
);

// Dead peers.

test(
  { needs: "net" },
  "a client that answers no ping is dropped once, one that does may stay idle",
  async () => {
    const closed = new Inbox<number>();
    const handler = {
      ...echo(silent),
      close: (_: WebSocket, { code }: CloseEvent) => closed.put(code),
    };
    await using server = startServer(handler, { idleTimeout: 1 });
    await using idle = await TestClient.open(server.url);
    using dead = await RawClient.upgraded(server.port);
    assertEquals(await closed.next(undefined, "the timeout"), 1001);
    dead.connection.close();
    // By now the runtime has pinged the other client too, and has reported the dead one twice.
    await delay(1_500);
    assertEquals([closed.all, idle.socket.readyState], [[1001], WebSocket.OPEN]);
  },
);

// Handlers that fail.

test(
  { needs: "net" },
  "a handler that throws or rejects closes that client with 1011, and no other",
  async () => {
    // An error may be of any kind, and must not fail again where it is logged.
    const errors = [
      new Error("\x1b[31mbroken"),
      "text",
      undefined,
      Object.create(null),
      Symbol("s"),
    ];
    for (const error of errors) {
      for (const moment of ["open", "message", "close"]) {
        for (
          const how of [() => Promise.reject(error), () => {
            throw error;
          }]
        ) {
          const fail = (now: string) => (socket: WebSocket) => {
            if (now !== moment || socket !== sockets[0]) {
              return echo(silent).message(
                socket,
                "hello",
              );
            }
            return how();
          };
          const sockets: WebSocket[] = [];
          await using server = startServer({
            open(socket) {
              sockets.push(socket);
              if (moment === "open") return fail("open")(socket);
            },
            message: fail("message"),
            close: moment === "close" ? fail("close") : undefined,
          });
          const broken = await TestClient.open(server.url);
          await using whole = await TestClient.open(server.url);
          broken.send("hello");
          if (moment === "close") await broken.close();
          else assertEquals((await within(broken.closed, "1011")).code, 1011);
          assertMatch(await server.log.next(), /^The handler failed: ./);
          whole.send("hello");
          assertMatch(String(await whole.next()), /^Data received/);
        }
      }
    }
  },
);

test(
  { needs: "net" },
  "a push that the handler fails on gets 500, and the server goes on",
  async () => {
    const post = () => {
      throw new Error("broken");
    };
    await using server = startServer({ ...echo(silent), post });
    const response = await fetch(`http://localhost:${server.port}/`, { method: "POST", body: "x" });
    assertEquals([response.status, await response.text()], [
      500,
      "The server failed to handle this.\n",
    ]);
    assertMatch(await server.log.next(), /^The handler failed: Error: broken/);
    await assertAnswers(server.url);
  },
);

// Stopping.

/** Waits until nobody listens at `port` any more. */
async function refusesConnections(port: number): Promise<void> {
  await retry(async () => {
    const connection = await Deno.connect({ port }).catch(() => undefined);
    connection?.close();
    assert(!connection, "the server still takes connections");
  }, { minTimeout: 10, multiplier: 1, maxAttempts: 200 });
}

test(
  { needs: "run" },
  "a stopping server delivers what is queued, says 1001 and lets nobody in",
  async () => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      await using server = await Script.server("server.ts");
      const port = Number(new URL(server.url).port);
      await using idle = await TestClient.open(server.url);
      using slow = await RawClient.upgraded(port);
      // Less than may wait, yet more than the kernel takes: some of it waits in the server.
      const size = 300_000;
      for (let sent = 0; sent < 13; sent++) await slow.write(frame(BINARY, new Uint8Array(size)));
      for (let sent = 0; sent < 13; sent++) {
        await server.lines.next((line) => line === "Send reply");
      }
      server.kill(signal);
      assertEquals((await within(idle.closed, "1001")).code, 1001);
      await refusesConnections(port);
      const { code, before } = await readClose(slow);
      assertEquals([code, before], [1001, 13 * (size + 10)]);
      await slow.write(frame(CLOSE));
      assertEquals(await server.end(), 0);
    }
  },
);

test({ needs: "run" }, "a client that does not read can't keep it from stopping", async () => {
  await using server = await Script.server("server.ts", "--quiet");
  using client = await RawClient.upgraded(Number(new URL(server.url).port));
  await sendUnread(client, frame(BINARY, new Uint8Array(65_535)), server.errors);
  server.kill();
  assertEquals(await server.end(), 0);
  assertStringIncludes(server.errors.all.join("\n"), "Stopped before everyone was done");
});

test({ needs: "run" }, "a second signal ends it at once", async () => {
  await using server = await Script.server("server.ts", "--quiet");
  using client = await RawClient.upgraded(Number(new URL(server.url).port));
  await sendUnread(client, frame(BINARY, new Uint8Array(65_535)), server.errors);
  server.kill();
  // This shows that the first signal was heard.
  await refusesConnections(Number(new URL(server.url).port));
  server.kill();
  assertEquals(await server.end(), 1);
});

// Logs.

test(
  { needs: "net" },
  "nothing a peer sends can write to the terminal through a log line",
  async () => {
    await using server = await Script.server("server.ts");
    const port = Number(new URL(server.url).port);
    const Origin = "http://evil.test/\u009b31m\u202e" + "x".repeat(5_000);
    assertEquals((await ask(port, handshake({ Origin }))).status, 403);
    const line = await server.errors.next();
    assertMatch(line, /^Refused a page from http:\/\/evil\.test/);
    // deno-lint-ignore no-control-regex
    assert(!/[\x00-\x1f\x7f-\x9f\u202e]/.test(line) && line.length < 400, JSON.stringify(line));
  },
);

// All of it at once.

/** Small and seeded, so that a failure can be repeated: the generator known as mulberry32. */
function seededRandom(seed: number): (limit: number) => number {
  return (limit) => {
    seed = seed + 0x6d2b79f5 | 0;
    let mixed = Math.imul(seed ^ seed >>> 15, seed | 1);
    mixed ^= mixed + Math.imul(mixed ^ mixed >>> 7, mixed | 61);
    return ((mixed ^ mixed >>> 14) >>> 0) % limit;
  };
}

test(
  { needs: "net" },
  "20,000 random handshakes and 20,000 random frames end nothing",
  async () => {
    const random = seededRandom(6455);
    const noise = (length: number) => Uint8Array.from({ length }, () => random(256));
    await using server = startServer(echo(silent), { maxClients: 50 });

    const whole = new TextEncoder().encode(handshake());
    const shakeHands = async () => {
      using client = await RawClient.open(server.port);
      const bytes = whole.slice();
      for (let changes = random(4); changes >= 0; changes--) {
        bytes[random(bytes.length)] = random(256);
      }
      // The other end may have closed already, which is its answer.
      await client.write(bytes.subarray(0, random(8) ? undefined : random(bytes.length))).catch(
        silent,
      );
    };
    for (let batch = 0; batch < 400; batch++) {
      await Promise.all(Array.from({ length: 50 }, shakeHands));
    }

    for (let connection = 0; connection < 200; connection++) {
      using client = await retry(() => RawClient.upgraded(server.port), { minTimeout: 5 });
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
    await retry(async () => {
      const clients = await Promise.all(
        Array.from({ length: 50 }, () => TestClient.open(server.url)),
      );
      await Promise.all(clients.map((client) => client.close()));
    }, { minTimeout: 50 });
    await assertAnswers(server.url);
  },
);

test(
  { needs: "net" },
  "2,000 clients are connected at the same time and all are answered",
  async () => {
    const server = await Script.server("server.ts", "--quiet");
    const clients: TestClient[] = [];
    while (clients.length < 2_000) {
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

test({ needs: "net" }, "text that is not UTF-8 ends its connection and no other", async () => {
  await using server = startServer(echo(silent));
  using client = await RawClient.upgraded(server.port);
  await client.write(frame(TEXT, new Uint8Array([0xff, 0xfe])));
  assertEquals((await client.read()).length, 0);
  await assertAnswers(server.url);
});

test(
  { needs: "linux" },
  "a million messages leave nothing behind, in a heap that could not hold them",
  async () => {
    const flags = ["--allow-net", "--v8-flags=--max-old-space-size=32"];
    await using server = new Script("server.ts", ["--port", "0"], flags);
    const url = (await server.lines.next()).match(/ws:[^,]+/)?.[0] ?? "";
    using client = await RawClient.upgraded(Number(new URL(url).port));
    const question = frame(TEXT, "x");
    const questions = new Uint8Array(1_000 * question.length);
    for (let at = 0; at < questions.length; at += question.length) questions.set(question, at);
    const answerLength = 2 + `Data received as "x".  time: 2026-11-23 09:24:14.787357`.length;
    const exchange = async (thousands: number) => {
      for (let sent = 0; sent < thousands; sent++) {
        await client.write(questions);
        for (let due = 1_000 * answerLength; due > 0;) due -= (await client.read()).length;
      }
    };
    await exchange(100);
    const bytes = residentBytes(server.pid);
    await exchange(1_000);
    const growth = residentBytes(server.pid) - bytes;
    assert(growth < 32 * 1024 * 1024, `a million messages left ${growth} bytes behind`);
  },
);
