// The limits of the runtime, as websockets/README.md tells them. Where a new Deno has one no more, its
// test fails, and the README is to be corrected. Those of frames are in `frames_test.ts`.

import { assert, assertEquals, assertLessOrEqual, assertMatch, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import { connect, type Handler, serve } from "websockets";
import { Inbox, startServer, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { echo, listenRaw } from "./peers.ts";
import { assertDescriptors, countDescriptors, Script } from "./programs.ts";
import { ask, frame, handshake, RawClient } from "./raw.ts";

const [TEXT, CLOSE] = [1, 8];
const MEBIBYTE = 1024 ** 2;
const PAGE = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

// Connections.

test(
  { needs: "net" },
  "Silent connections: they stay open for longer than a client may be silent, and are not counted",
  async () => {
    const events = new Inbox<string>();
    await using server = startServer(echo(events), { idleTimeout: 0.2, maxClients: 2 });
    using silent = await RawClient.open(server.port);
    using keptAlive = await RawClient.open(
      server.port,
      "HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    await keptAlive.head();
    using client = await RawClient.upgraded(server.port);
    assertEquals(await events.next(), "closed with 1006");
    client.connection.close();
    for (const connection of [silent, keptAlive]) {
      await connection.write(handshake());
      assertMatch(await connection.head(), /^HTTP\/1\.1 101 /);
    }
  },
);

test({ needs: "linux" }, "Reset handshakes: each keeps its descriptor", async () => {
  await using server = await Script.server("server.ts", "--quiet");
  const port = Number(new URL(server.url).port);
  const before = countDescriptors(server);
  const clients = await Promise.all(Array.from({ length: 20 }, () => RawClient.open(port, PAGE)));
  for (const client of clients) {
    await client.head();
    // The system resets a connection that is closed while some of what came is unread, as this page.
    await client.take(1);
  }
  // While the server is stopped, it answers no handshake before its reset.
  await server.pause();
  for (const client of clients) {
    await client.write(handshake());
    client.connection.close();
  }
  server.kill("SIGCONT");
  await using client = await TestClient.open(server.url);
  client.send("hello");
  await client.next();
  await client.close();
  await assertDescriptors(server, before + clients.length);
  assertEquals(countDescriptors(server), before + clients.length);
});

/** A frame of HTTP/2 (RFC 9113 section 4.1). */
function http2Frame(type: number, flags: number, stream: number, payload: number[]): Uint8Array {
  return new Uint8Array([0, 0, payload.length, type, flags, 0, 0, 0, stream, ...payload]);
}

test(
  { needs: "run" },
  "HTTP/2 resets: each connection prints a line, and with `deno run --quiet` none",
  async () => {
    const [HEADERS, RST_STREAM, SETTINGS, CANCEL] = [1, 3, 4, 8];
    // GET and / over http, in the static table of HPACK (RFC 7541).
    const get = [0x82, 0x84, 0x86];
    const streams = Array.from({ length: 60 }, (_, number) => 1 + 2 * number);
    const frames = [
      http2Frame(SETTINGS, 0, 0, []),
      ...streams.flatMap((stream) => [
        http2Frame(HEADERS, 5, stream, get),
        http2Frame(RST_STREAM, 0, stream, [0, 0, 0, CANCEL]),
      ]),
    ];
    const preface = new TextEncoder().encode("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    const bytes = new Uint8Array([preface, ...frames].flatMap((each) => [...each]));
    const isReset = (line: string) => line.startsWith("recv_reset; ");
    for (const [flags, lines] of [[[], 2], [["--quiet"], 0]] as const) {
      await using server = new Script("server.ts", ["--port", "0"], ["--allow-net", ...flags]);
      const port = Number((await server.prints(/ws:/)).match(/:(\d+)/)?.[1]);
      for (let count = 0; count < 2; count++) {
        using client = await RawClient.open(port);
        await client.write(bytes);
        while ((await client.read()).length > 0);
      }
      server.kill();
      await server.end();
      assertEquals(server.errors.all.filter(isReset).length, lines);
    }
  },
);

test({ needs: "net" }, "Handshakes with a body: they get an empty 400", async () => {
  await using server = startServer(echo());
  for (const [name, value] of [["Content-Length", "0"], ["Transfer-Encoding", "chunked"]]) {
    const { status, head } = await ask(server.port, handshake({ [name]: value }));
    assertEquals(status, 400);
    assertMatch(head, /\r\ncontent-length: 0\r\n/);
  }
});

test(
  { needs: "net" },
  "Certificates: while a server listens, no other can on its port",
  async () => {
    await using server = startServer(echo());
    assertThrows(() => serve(echo(), { port: server.port }), Deno.errors.AddrInUse);
  },
);

test(
  { needs: "net" },
  "HTTP/2: a server does not say that it takes WebSockets over it",
  async () => {
    await using server = startServer(echo());
    using client = await RawClient.open(server.port, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    const emptySettings = new Uint8Array([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    await client.write(emptySettings);
    const [, , length, type] = await client.take(9);
    assertEquals(type, 4, "a SETTINGS frame");
    const settings = await client.take(length);
    const names = Array.from({ length: length / 6 }, (_, index) => settings[6 * index + 1]);
    // RFC 8441 section 3: SETTINGS_ENABLE_CONNECT_PROTOCOL.
    assert(names.length > 0 && !names.includes(8), `${names}`);
  },
);

// What waits.

test({ needs: "net" }, "Closing: what waits for a client that closes is not sent", async () => {
  const [count, size] = [40, 1_000_000];
  const events = new Inbox<string>();
  const handler: Handler = async (websocket) => {
    await websocket.receive();
    for (let sent = 0; sent < count; sent++) websocket.send(new Uint8Array(size));
    events.put(`closed with ${(await websocket.closed).code}`);
  };
  await using server = startServer(handler);
  using client = await RawClient.upgraded(server.port);
  await client.write(frame(TEXT, "go"));
  await client.read();
  await client.write(frame(CLOSE, new Uint8Array([3, 232])));
  const { code, before } = await client.readClose();
  assertEquals(code, 1000);
  assertLessOrEqual(before, count * size / 2);
  assertEquals(await events.next(), "closed with 1000");
});

test(
  { needs: "net" },
  "Loops without a pause: they drop a client that reads, and one that awaits `send` does not",
  async () => {
    const [count, size] = [100, 100_000];
    const handler: Handler = async (websocket) => {
      const pauses = await websocket.receive() === "with pauses";
      for (let sent = 0; sent < count; sent++) {
        const taken = websocket.send(new Uint8Array(size));
        if (pauses) await taken;
      }
      await websocket.closed;
    };
    await using server = startServer(handler, { maxWaiting: 2 * MEBIBYTE });
    await using patient = await TestClient.open(server.url);
    patient.send("with pauses");
    for (let heard = 0; heard < count; heard++) await patient.next();
    await using hurried = await TestClient.open(server.url);
    hurried.send("without");
    assertEquals((await within(hurried.closed, "the close")).code, 1008);
    assertEquals(server.log.all.length, 1);
  },
);

test(
  { needs: "net" },
  "Late pings: a message that takes longer than a client may be silent does not arrive",
  async () => {
    const events = new Inbox<string>();
    await using server = startServer(echo(events), { idleTimeout: 0.4 });
    using client = await RawClient.upgraded(server.port);
    const isClosed = events.next();
    // A pong can't be in the middle of a frame, and each byte of the frame is no sign of life.
    const message = frame(TEXT, "x".repeat(MEBIBYTE));
    let sent = 0;
    while (events.all.length === 0 && sent < message.length) {
      await client.write(message.subarray(sent, ++sent)).catch(() => {});
      await delay(1);
    }
    assertEquals(await isClosed, "closed with 1006");
  },
);

// Clients.

test({ needs: "net" }, "Pings of a client: there is no way to send one", async () => {
  await using server = startServer(echo());
  await using client = await TestClient.open(server.url);
  assert(!("ping" in client.socket));
});

test(
  { needs: "net" },
  "User-Agent: what a client gives is added to the runtime's own",
  async () => {
    await using server = startServer((websocket, { headers }) =>
      websocket.send(`${headers.get("user-agent")}`)
    );
    await using websocket = await connect(server.url, { headers: { "User-Agent": "mine" } });
    assertMatch(`${await websocket.receive()}`, /^Deno\/.*, mine$/);
  },
);

test({ needs: "net" }, "Lenient checks: a client accepts a wrong accept key", async () => {
  using server = listenRaw();
  const opened = connect(server.url);
  using connection = await server.accept();
  await connection.read(new Uint8Array(4_096));
  const lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"];
  const answer = [...lines, "Sec-WebSocket-Accept: wrong", "", ""].join("\r\n");
  await connection.write(new TextEncoder().encode(answer));
  await using websocket = await opened;
  await connection.write(new Uint8Array([0x80 | TEXT, 2, 0x68, 0x69]));
  assertEquals(await websocket.receive(), "hi");
  await connection.write(new Uint8Array([0x80 | CLOSE, 0]));
});

// Handshakes.

test({ needs: "net" }, "Lenient checks: a handshake over HTTP/1.0 is answered", async () => {
  await using server = startServer(echo());
  assertEquals((await ask(server.port, handshake({}, "GET / HTTP/1.0"))).status, 101);
});

test(
  { needs: "net" },
  "Compression: permessage-deflate is not taken when it is offered",
  async () => {
    await using server = startServer(echo());
    const offer = handshake({ "Sec-WebSocket-Extensions": "permessage-deflate" });
    const { status, head } = await ask(server.port, offer);
    assertEquals([status, head.includes("sec-websocket-extensions")], [101, false]);
  },
);
