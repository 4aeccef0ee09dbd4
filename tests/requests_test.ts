// Requests that are no handshakes: what they may bring, for how long, and that they keep no client out.
// The same holds over HTTP/1.1 and over HTTP/2, where a body may come without its length.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { delay } from "@std/async";
import {
  accept,
  type ProcessRequest,
  type RequestInfo,
  requireToken,
  serve,
  type ServeOptions,
} from "websockets";
import { type Exchange, exchange, type Exchanges, PROTOCOLS, testExchanges } from "./exchanges.ts";
import { eventually, Inbox, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { Script } from "./programs.ts";
import { ask, handshake, RawClient } from "./raw.ts";

/** A push that tells its length. */
const lengthOf = (length: number) => ({ "Content-Length": `${length}` });

/** Answers a push with 200 when it has arrived whole. */
const read: ProcessRequest = async (request) => {
  if (request.method === "GET") return;
  return new Response(`${(await request.bytes()).length}`);
};

/** A server with its log, that reads pushes unless `options` say otherwise. */
function start(options: ServeOptions = {}) {
  const lines = new Inbox<string>();
  const log = (line: string) => lines.put(line);
  const server = serve((websocket) => websocket.closed, {
    port: 0,
    processRequest: read,
    log,
    ...options,
  });
  return Object.assign(server, { lines });
}

/** What is counted, without zeros. */
function refusalsOf({ refused }: { refused: object }): Record<string, number> {
  return Object.fromEntries(Object.entries(refused).filter(([, count]) => count > 0));
}

/** Opens so many pushes that send some bytes, and then nothing. */
async function stall(clients: Exchanges[], count: number, length = 10): Promise<Exchange[]> {
  const pushes: Exchange[] = [];
  while (pushes.length < count) {
    for (const client of clients) {
      const push = await client.open("POST /", lengthOf(length + 1));
      await push.write(new Uint8Array(length));
      pushes.push(push);
    }
  }
  return pushes;
}

// Sizes.

testExchanges(
  "A request body has no length, or is too large: it gets 413 if it is larger than `maxBody`",
  async (connect) => {
    await using server = start({ maxBody: 1_000, maxMessage: 5 });
    await using client = connect(server.addr.port);
    for (const size of [0, 1, 999, 1_000, 1_001]) {
      const { status } = await exchange(client, "POST /", lengthOf(size), new Uint8Array(size));
      assertEquals(status, size > 1_000 ? 413 : 200, `${size}`);
    }
    assertEquals([server.waiting, refusalsOf(server)], [0, { body: 1 }]);
  },
);

test({ needs: "net" }, "A request body has no length, or is too large: 411", async () => {
  await using server = start();
  await using client = PROTOCOLS["HTTP/1.1"](server.addr.port);
  const chunked = { "Transfer-Encoding": "chunked" };
  assertEquals((await exchange(client, "POST /", chunked, "0\r\n\r\n")).status, 411);
  // A POST may have no body, and then it tells no length.
  assertEquals((await exchange(client, "POST /")).status, 200);
});

test({ needs: "net" }, "a body of HTTP/2 without a length is heard up to the limit", async () => {
  await using server = start({ maxBody: 1_000 });
  await using client = PROTOCOLS["HTTP/2"](server.addr.port);
  for (const method of ["POST", "PUT", "OPTIONS"]) {
    for (const [size, expected] of [[0, 200], [1_000, 200], [1_001, 413], [1_000_000, 413]]) {
      const { status } = await exchange(client, `${method} /`, {}, new Uint8Array(size));
      assertEquals([status, server.waiting], [expected, 0], `${method} ${size}`);
    }
  }
});

test({ needs: "net" }, "a body of HTTP/2 with two lengths gets 400", async () => {
  await using server = start();
  await using client = PROTOCOLS["HTTP/2"](server.addr.port);
  const push = await client.open("POST /", { "content-length": ["5", "5"] });
  assertEquals((await push.answered()).status, 400);
  assertEquals([server.waiting, server.isFull, refusalsOf(server)], [0, false, { body: 1 }]);
  assertEquals((await exchange(client, "POST /", lengthOf(5), "hello")).status, 200);
});

// Times. The clock is that of the test, so

/** A clock that stands still until the test moves it. */
function stopClock(): { pass(milliseconds: number): void } & Disposable {
  const { now } = performance;
  let milliseconds = now.call(performance);
  performance.now = () => milliseconds;
  return {
    pass: (more) => void (milliseconds += more),
    [Symbol.dispose]: () => void (performance.now = now),
  };
}

/** Keeps a timer of so many milliseconds from going off, until the test runs what it would run. */
function keepTimer(milliseconds: number): { run(): void } & Disposable {
  const { setTimeout } = globalThis;
  const kept = {
    run() {},
    [Symbol.dispose]: () => void Object.assign(globalThis, { setTimeout }),
  };
  const keep = (run: () => void, after: number) => {
    if (Math.round(after) !== milliseconds) return setTimeout(run, after);
    kept.run = run;
  };
  Object.assign(globalThis, { setTimeout: keep });
  return kept;
}

/** A server that tells which parts of a body arrive. Its timeout is so short that it looks often. */
function startArrivals(idleTimeout = 0.05) {
  const arrived = new Inbox<number>();
  const processRequest: ProcessRequest = async ({ body }) => {
    for await (const { length } of body ?? []) arrived.put(length);
    return new Response("all of it");
  };
  return Object.assign(start({ processRequest, idleTimeout }), { arrived });
}

testExchanges("A request body arrives too slowly: 408 if it stops arriving", async (connect) => {
  await using server = startArrivals();
  await using client = connect(server.addr.port);
  const stalled = await client.open("POST /", lengthOf(10));
  await stalled.write("half");
  assertEquals((await stalled.answered()).status, 408);
  assertEquals([server.waiting, refusalsOf(server)], [0, { body: 1 }]);
});

testExchanges(
  "A request body arrives too slowly: a byte now and then gets 408, and 500 bytes a second do not",
  async (connect) => {
    await using server = startArrivals(0.8);
    await using client = connect(server.addr.port);
    for (const [size, expected] of [[1, 408], [25, 200]]) {
      using clock = stopClock();
      using look = keepTimer(800);
      const push = await client.open("POST /", lengthOf(20 * size));
      for (let pieces = 1; pieces < 20; pieces++) {
        await push.write(new Uint8Array(size));
        await server.arrived.next();
        clock.pass(49);
      }
      // The server looks at the time before the last one.
      look.run();
      await push.write(new Uint8Array(size)).catch(() => {});
      push.end();
      assertEquals((await push.answered()).status, expected);
    }
  },
);

testExchanges(
  "A request body arrives too slowly: 408 after 5 minutes, also without an `idleTimeout`",
  async (connect) => {
    await using server = startArrivals(0);
    await using client = connect(server.addr.port);
    using clock = stopClock();
    using look = keepTimer(300_000);
    const push = await client.open("POST /", lengthOf(100_000));
    await push.write(new Uint8Array(1_000));
    await server.arrived.next();
    // Much more than the least rate does not help.
    clock.pass(299_999);
    await push.write(new Uint8Array(1_000));
    await server.arrived.next();
    clock.pass(2);
    look.run();
    assertEquals((await push.answered()).status, 408);
  },
);

// What waits.

testExchanges(
  "a body counts as far as it has arrived, for so long as it lasts",
  async (connect) => {
    await using server = start({ maxBody: 100_000, maxWaiting: 1_000_000 });
    await using client = connect(server.addr.port);
    const [push] = await stall([client], 1, 90_000);
    await eventually(() => assertEquals(server.waiting, 90_000));
    push.reset();
    await eventually(() => assertEquals(server.waiting, 0));
    assertMatch(await server.lines.next(), /^`processRequest` failed: /);
  },
);

testExchanges(
  "Other requests: what bodies hold keeps no client out, and the oldest has to go",
  async (connect) => {
    await using server = start({ maxBody: 100_000, maxWaiting: 10_000 });
    await using client = connect(server.addr.port);
    const [first, second] = await stall([client], 2, 40_000);
    await eventually(() => assertEquals(server.waiting, 80_000));
    // All of this is more than may wait for clients.
    assertEquals(server.isFull, false);
    assertEquals((await ask(server.addr.port, handshake())).status, 101);
    assertEquals(
      (await exchange(client, "POST /", lengthOf(50_000), new Uint8Array(50_000))).status,
      200,
    );
    assertEquals((await first.answered()).status, 503);
    await second.write("x");
    second.end();
    assertEquals((await second.answered()).status, 200);
    assertEquals([server.waiting, refusalsOf(server)], [0, { body: 1 }]);
  },
);

test({ needs: "net" }, "Bodies over HTTP/2: one that breaks off looks whole", async () => {
  const arrived = new Inbox<number>();
  const processRequest: ProcessRequest = async (request) => {
    arrived.put((await request.bytes()).length);
    return new Response();
  };
  await using server = start({ processRequest });
  await using client = PROTOCOLS["HTTP/2"](server.addr.port);
  const push = await client.open("POST /");
  await push.write("half");
  await eventually(() => assertEquals(server.waiting, 4));
  push.reset();
  assertEquals(await arrived.next(), 4);
});

testExchanges("an answer may be made of the body while it arrives", async (connect) => {
  await using server = start({ processRequest: ({ body }) => new Response(body) });
  await using client = connect(server.addr.port);
  const push = await client.open("POST /", lengthOf(10));
  await push.write("half,");
  assertEquals((await push.answered()).status, 200);
  await push.write("whole");
  push.end();
  await push.heard("half,whole");
  assertEquals(server.waiting, 0);
});

testExchanges("a body whose answer is no `Response` makes nothing wait", async (connect) => {
  const processRequest = async (request: Request) => await request.text() as unknown as Response;
  await using server = start({ processRequest });
  await using client = connect(server.addr.port);
  assertEquals((await exchange(client, "POST /", lengthOf(10), "0123456789")).status, 500);
  assertEquals(server.waiting, 0);
});

testExchanges(
  "Other requests: slow bodies keep neither a client out nor a push that is whole",
  async (connect) => {
    await using server = start({ maxClients: 1 });
    const port = server.addr.port;
    // Over HTTP/2, a connection may have 200 requests at a time.
    const clients = Array.from({ length: 6 }, () => connect(port));
    try {
      await stall(clients, 1_020);
      // The oldest make room for the newest, and so it goes on.
      await eventually(() => assertEquals(refusalsOf(server), { body: 20 }));
      await using honest = connect(port);
      assertEquals((await exchange(honest, "POST /", lengthOf(5), "hello")).status, 200);
      await using _client = await TestClient.open(`ws://localhost:${port}`);
      assertEquals(server.clients.size, 1);
    } finally {
      for (const client of clients) await client[Symbol.asyncDispose]();
    }
  },
  ["net", "descriptors"],
);

/** A request with a body that goes on, from an address. */
function from(hostname: string): [Request, RequestInfo] {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  writable.getWriter().write(new Uint8Array(1)).catch(() => {});
  const remoteAddr = { transport: "tcp" as const, hostname, port: 1 };
  const request = new Request("http://localhost/", { method: "POST", body: readable });
  return [request, { remoteAddr, completed: new Promise(() => {}) }];
}

Deno.test("Other requests: the address with most slow bodies has to give way", async () => {
  const answered: string[] = [];
  await using sockets = accept(() => {}, { processRequest: read, log: () => {} });
  const ask = (hostname: string) => {
    const answer = Promise.resolve(sockets.answer(...from(hostname)));
    return answer.then(({ status }) => void answered.push(`${hostname} ${status}`));
  };
  const all = [ask("192.0.2.1"), ask("192.0.2.1")];
  for (let count = 0; count < 998; count++) all.push(ask("192.0.2.2"));
  await delay(0);
  assertEquals(answered, []);
  for (let count = 0; count < 10; count++) all.push(ask("192.0.2.3"));
  await delay(0);
  assertEquals(answered, Array(10).fill("192.0.2.2 503"));
  await sockets.shutdown();
  await Promise.all(all);
  assertEquals(new Set(answered.slice(10).map((each) => each.slice(-3))), new Set(["503"]));
});

test(
  { needs: "net" },
  "Other requests: where 1,000 wait for `processRequest`, the next gets 503, and a client comes in",
  async () => {
    const gate = Promise.withResolvers<void>();
    let asked = 0;
    const processRequest: ProcessRequest = async ({ headers }) => {
      if (headers.has("upgrade")) return;
      asked++;
      await gate.promise;
      return new Response("late");
    };
    await using server = start({ processRequest, maxClients: 1 });
    const clients = Array.from({ length: 6 }, () => PROTOCOLS["HTTP/2"](server.addr.port));
    const pages: Exchange[] = [];
    for (let count = 0; count < 1_000; count++) pages.push(await clients[count % 6].open("GET /"));
    await eventually(() => assertEquals(asked, 1_000));
    assertEquals((await exchange(clients[5], "GET /")).status, 503);
    assertEquals((await ask(server.addr.port, handshake())).status, 101);
    gate.resolve();
    const { status } = await pages[0].answered();
    for (const client of clients) await client[Symbol.asyncDispose]();
    assertEquals(status, 200);
  },
);

// Who may ask.

testExchanges("The token is wrong or missing: a request with a body gets 401", async (connect) => {
  await using server = start({ processRequest: [requireToken("secret"), read] });
  await using client = connect(server.addr.port);
  const push = (token: Record<string, string>) =>
    exchange(client, "POST /", { ...token, ...lengthOf(5) }, "hello");
  for (const token of ["Bearer wrong", "Bearer ", "secret"]) {
    const { status, headers } = await push({ Authorization: token });
    assertEquals([status, headers.get("www-authenticate")], [401, "Bearer"]);
  }
  assertEquals((await push({})).status, 401);
  assertEquals((await push({ Authorization: "Bearer secret" })).status, 200);
  assertEquals((await exchange(client, "GET /")).status, 426);
  assertEquals(refusalsOf(server), { processRequest: 4 });
});

const FRIEND = "https://friend.example";
const PREFLIGHT = {
  "Access-Control-Request-Method": "POST",
  "Access-Control-Request-Headers": "authorization",
};

testExchanges(
  "A page comes from an unknown origin: it may not push, and others may and read the answer",
  async (connect) => {
    const processRequest = ({ method }: Request) =>
      method === "OPTIONS"
        ? undefined
        : new Response("heard", { status: 202, headers: { Vary: "Accept" } });
    await using server = start({ origins: [FRIEND], processRequest });
    await using client = connect(server.addr.port);
    const ask = async (method: string, Origin: string, more = {}) => {
      const { status, headers } = await exchange(client, `${method} /`, { Origin, ...more });
      return [status, headers.get("access-control-allow-origin")];
    };
    for (const origin of [FRIEND, "http://localhost:3000"]) {
      assertEquals(await ask("OPTIONS", origin, PREFLIGHT), [204, origin]);
      assertEquals(await ask("POST", origin), [202, origin]);
    }
    assertEquals(await ask("OPTIONS", "https://evil.example", PREFLIGHT), [204, null]);
    assertEquals(await ask("POST", "https://evil.example"), [403, null]);
    assertEquals(refusalsOf(server), { origins: 1 });
    const { headers } = await exchange(client, "OPTIONS /", { Origin: FRIEND, ...PREFLIGHT });
    assertEquals(
      ["methods", "headers"].map((name) => headers.get(`access-control-allow-${name}`)),
      ["GET, HEAD, POST", "content-type, authorization"],
    );
    assertEquals(headers.get("vary"), "Origin");
  },
);

testExchanges(
  "A request is no handshake: `processRequest` sees a preflight first",
  async (connect) => {
    const headers = {
      "Access-Control-Allow-Methods": "PUT, DELETE",
      "Access-Control-Allow-Headers": "x-api-key",
    };
    const processRequest = ({ method }: Request) =>
      method === "OPTIONS" ? new Response(null, { status: 204, headers }) : undefined;
    await using server = start({ origins: [FRIEND], processRequest });
    await using client = connect(server.addr.port);
    const answer = await exchange(client, "OPTIONS /own", { Origin: FRIEND, ...PREFLIGHT });
    const named = ["origin", "methods", "headers"].map((name) =>
      answer.headers.get(`access-control-allow-${name}`)
    );
    assertEquals(named, [FRIEND, "PUT, DELETE", "x-api-key"]);
  },
);

testExchanges("Health: `OPTIONS /`, as HAProxy asks, gets 204", async (connect) => {
  for (const processRequest of [undefined, read]) {
    await using server = start({ processRequest: processRequest && (() => undefined) });
    await using client = connect(server.addr.port);
    assertEquals((await exchange(client, "OPTIONS /")).status, 204);
  }
});

// Counts.

testExchanges("`refused` counts each refusal by what has refused it", async (connect) => {
  const processRequest: ProcessRequest[] = [({ url }) => {
    if (url.endsWith("/refused")) return new Response("no", { status: 402 });
    if (url.endsWith("/broken")) throw new Error("broken");
  }, read];
  const server = start({ processRequest, maxBody: 10, maxClients: 1, maxWaiting: 1_000 });
  const { port } = server.addr;
  await using client = connect(port);
  const push = async (path: string, headers = {}) =>
    (await exchange(client, `POST ${path}`, { ...lengthOf(0), ...headers })).status;
  assertEquals(await push("/refused"), 402);
  assertEquals(await push("/broken"), 500);
  assertEquals(await push("/", { Origin: "https://evil.example" }), 403);
  assertEquals((await exchange(client, "POST /", lengthOf(11), "hello, room")).status, 413);
  assertEquals((await ask(port, handshake({ "Sec-WebSocket-Version": "8" }))).status, 426);
  server.countWaiting(2_000);
  assertEquals(await push("/"), 503);
  server.countWaiting(-2_000);
  // It does not answer the Close frame.
  using full = await RawClient.upgraded(port);
  assertEquals((await ask(port, handshake())).status, 503);
  // What is no handshake and has no body refuses nobody.
  assertEquals((await exchange(client, "GET /")).status, 426);
  const expected = { handshake: 1, origins: 1, maxClients: 1, maxWaiting: 1, body: 1 };
  assertEquals(refusalsOf(server), { ...expected, processRequest: 2 });
  const stopped = server.shutdown();
  assertEquals(await push("/"), 503);
  assertEquals(refusalsOf(server), { ...expected, processRequest: 2, shutdown: 1 });
  full[Symbol.dispose]();
  await within(stopped, "the server to stop");
});

// Hooks that do what they should not.

/** A server whose `processRequest` upgrades each handshake itself, until one of them is closed. */
const UPGRADING = `
  import { delay } from "@std/async";
  import { serve } from "websockets";
  const answers = {
    "/nothing": () => undefined,
    "/late": () => delay(1),
    "/another": () => new Response("no", { status: 401 }),
    "/error": () => { throw new Error("broken"); },
  };
  const processRequest = (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onopen = () => socket.send("own");
    socket.onclose = async () => {
      await server.shutdown();
      console.log("refused " + server.refused.processRequest + ", and stopped");
      Deno.exit();
    };
    const answer = answers[new URL(request.url).pathname];
    return answer ? answer() : response;
  };
  const server = serve(() => {}, { port: 0, processRequest });
  console.log(server.addr.port);
`;

test(
  { needs: "run" },
  "a handshake that `processRequest` upgrades itself gets 500 unless its response is returned",
  async () => {
    // It is a process of its own, because the runtime never forgets such an upgrade.
    await using server = new Script("-", [], ["--allow-net"], "piped");
    const writer = server.stdin.getWriter();
    await writer.write(new TextEncoder().encode(UPGRADING));
    await writer.close();
    const port = Number(await server.prints(/./));
    for (const path of ["/nothing", "/late", "/another", "/error"]) {
      assertEquals((await ask(port, handshake({}, `GET ${path} HTTP/1.1`))).status, 500, path);
    }
    const [first] = server.errors.all;
    assertMatch(first, /^`processRequest` failed: .* the response with which it has upgraded /);
    // The server listens as before.
    await using client = await TestClient.open(`ws://localhost:${port}/right`);
    assertEquals(await client.next(), "own");
    await client.close();
    await server.prints(/^refused 4, and stopped$/);
    assertEquals(await server.end(), 0);
  },
);

test(
  { needs: "net" },
  "a `processRequest` that answers after its client has gone harms nothing",
  async () => {
    const asked = new Inbox<(answer: Response | undefined) => void>();
    const processRequest: ProcessRequest = () =>
      new Promise<Response | undefined>((decide) => asked.put(decide));
    await using server = start({ processRequest, maxClients: 1 });
    const { port } = server.addr;
    const push = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhe";
    const late = () => new Response("late");
    // A handshake that is let in after a reset would be left behind by the runtime.
    for (
      const [request, answer] of [[handshake(), late], [push, late], [push, () => {}]] as const
    ) {
      const client = await RawClient.open(port, request);
      const decide = await asked.next();
      client.connection.close();
      await delay(1);
      decide(answer() ?? undefined);
    }
    const opening = TestClient.open(`ws://localhost:${port}`);
    (await asked.next())(undefined);
    await using _client = await opening;
    await eventually(() => assert(server.clients.size === 1));
    assertEquals(server.waiting, 0);
  },
);
