// A server beside an app: `accept` lets clients in at a server that listens already.

import { assertEquals, assertThrows } from "@std/assert";
import { accept, type Handler, isHandshake, serve } from "websockets";
import { eventually, Inbox, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { serveBare } from "./peers.ts";
import { ask, handshake, RawClient } from "./raw.ts";

const echo: Handler = async (websocket) => {
  for await (const message of websocket) websocket.send(message);
};

/** A request that is no handshake. */
function plain(start: string, ...headers: string[]): string {
  return [`${start} HTTP/1.1`, "Host: localhost", ...headers, "", ""].join("\r\n");
}

/** An app with a route of its own, which leaves handshakes to `sockets`. */
function startApp(sockets: ReturnType<typeof accept>) {
  return serveBare((request, info) => {
    return isHandshake(request) ? sockets.answer(request, info) : new Response("own route");
  });
}

test({ needs: "net" }, "beside it, an app keeps its own routes, origins and bodies", async () => {
  await using sockets = accept(echo, {
    maxMessage: 10,
    origins: ["https://friend.example"],
    log: () => {},
  });
  await using app = startApp(sockets);
  const Origin = "https://elsewhere.example";
  const body = ["Content-Length: 20", `Origin: ${Origin}`];
  assertEquals((await ask(app.port, plain("GET /"))).status, 200);
  assertEquals((await ask(app.port, plain("POST /", ...body) + "x".repeat(20))).status, 200);
  assertEquals((await ask(app.port, handshake({ Origin }))).status, 403);
  await using client = await TestClient.open(app.url, { Origin: "https://friend.example" });
  client.send("hello");
  assertEquals(await client.next(), "hello");
});

test({ needs: "net" }, "`clients` has each until it has left and its handler is done", async () => {
  const gate = Promise.withResolvers<void>();
  const started = new Inbox<void>();
  await using sockets = accept(async (websocket) => {
    started.put();
    await websocket.closed;
    await gate.promise;
  });
  await using app = startApp(sockets);
  const opened = await Promise.all([TestClient.open(app.url), TestClient.open(app.url)]);
  for (const _ of opened) await started.next();
  assertEquals(sockets.clients.size, 2);
  await Promise.all([...sockets.clients].map((client) => client.close(4_000)));
  for (const client of opened) assertEquals((await client.closed).code, 4_000);
  assertEquals(sockets.clients.size, 2);
  gate.resolve();
  await eventually(() => assertEquals(sockets.clients.size, 0));
});

test({ needs: "net" }, "`dropped` counts the clients that are dropped", async () => {
  await using sockets = accept(async (websocket) => {
    await websocket.receive();
    while (!websocket.signal.aborted) websocket.send(new Uint8Array(100_000));
  }, { maxWaiting: 2 ** 20, log: () => {} });
  await using app = startApp(sockets);
  await using _stays = await TestClient.open(app.url);
  await using client = await TestClient.open(app.url);
  client.send("go");
  assertEquals((await within(client.closed, "the close")).code, 1008);
  assertEquals(sockets.dropped, 1);
});

test({ needs: "net" }, "its `shutdown` closes with 1001, and the app goes on", async () => {
  const sockets = accept(echo, { log: () => {} });
  await using app = startApp(sockets);
  using unread = await RawClient.upgraded(app.port);
  await using client = await TestClient.open(app.url);
  client.send("hello");
  await client.next();
  const stopped = sockets.shutdown();
  assertEquals((await within(client.closed, "the close")).code, 1001);
  assertEquals((await unread.readClose()).code, 1001);
  assertEquals((await ask(app.port, handshake())).status, 503);
  assertEquals((await ask(app.port, plain("GET /"))).status, 200);
  unread.connection.close();
  await within(stopped, "the clients to leave");
  assertEquals([sockets.clients.size, sockets.waiting], [0, 0]);
});

test({ needs: "net" }, "`serve` answers as `accept` does in `Deno.serve`", async () => {
  const options = {
    maxMessage: 10,
    maxClients: 1,
    subprotocols: ["chat"],
    processRequest: ({ url }: Request) => url.endsWith("/own") ? new Response("own") : undefined,
    log: () => {},
  };
  const requests = [
    plain("GET /"),
    plain("GET /own"),
    plain("OPTIONS /", "Access-Control-Request-Method: POST", "Origin: http://localhost"),
    plain("POST /own", "Content-Length: 11"),
    plain("GET /").replace("localhost", "["),
    handshake({ "Sec-WebSocket-Version": "8" }),
    handshake({ Origin: "https://elsewhere.example" }),
    handshake({ "Sec-WebSocket-Protocol": "chat" }),
  ];
  const answersOf = async (port: number) => {
    const answers: string[] = [];
    for (const request of requests) answers.push((await ask(port, request)).head);
    return answers.map((head) => head.replace(/date: .*\r\n/, ""));
  };
  await using sockets = accept(echo, options);
  await using bare = serveBare(sockets.answer);
  await using server = serve(echo, { port: 0, ...options });
  const answers = await answersOf(bare.port);
  assertEquals(answers, await answersOf(server.addr.port));
  const statuses = answers.map((head) => Number(head.split(" ")[1]));
  assertEquals(statuses, [426, 200, 204, 413, 400, 426, 403, 101]);
});

Deno.test("whatever is meant as a handshake is one for `isHandshake`", () => {
  const isOne = (headers: Record<string, string>) =>
    isHandshake(new Request("http://localhost", { headers }));
  for (const Upgrade of ["websocket", "WebSocket", "WEBSOCKET"]) {
    assertEquals(isOne({ Upgrade, Connection: "keep-alive, Upgrade" }), true);
  }
  assertEquals(isOne({ "Sec-WebSocket-Key": "x" }), true);
  assertEquals([isOne({}), isOne({ Upgrade: "h2c", Connection: "Upgrade" })], [false, false]);
});

Deno.test("what is no number of bytes changes nothing of what waits", async () => {
  await using sockets = accept(echo, { maxWaiting: 1_000 });
  sockets.countWaiting(10);
  for (const bytes of [NaN, Infinity, -Infinity, 0.5, 2 ** 60]) {
    assertThrows(() => sockets.countWaiting(bytes), RangeError, `${bytes} is no number of bytes.`);
    assertEquals([sockets.waiting, sockets.isFull], [10, false]);
  }
  sockets.countWaiting(-10);
  assertEquals(sockets.waiting, 0);
});
