// What `serve` promises to the author of a handler: one call for each client, and that nothing that a
// handler does can hurt more than the client for which it was called.

import { assert, assertEquals, assertLessOrEqual, assertMatch, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import {
  connect,
  type Connection,
  ConnectionClosed,
  type Handler,
  serve,
  type ServeOptions,
  type Server,
} from "websockets";
import { eventually, freePort, Inbox, startServer, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { ask, frame, handshake, RawClient } from "./raw.ts";

const TEXT = 1;
const CLOSE = 8;
/** 1000, as a Close frame says it. */
const NORMAL = new Uint8Array([3, 232]);

/** Answers everything, so that a test can see whether the server still does. */
const echo: Handler = async (websocket) => {
  for await (const message of websocket) websocket.send(message);
};

/** Fails unless the server at `url` still answers a newcomer. */
async function assertAnswers(url: string): Promise<void> {
  await using client = await TestClient.open(url);
  client.send("hello");
  assertEquals(await client.next(), "hello");
}

/** A request without a handshake, as it is written to the connection. */
function plain(start: string, ...headers: string[]): string {
  return [`${start} HTTP/1.1`, "Host: localhost", ...headers, "", ""].join("\r\n");
}

/** Connects again until there is room, as the server may not have noticed yet that one left. */
function retryAnswers(url: string): Promise<void> {
  return eventually(() => assertAnswers(url));
}

function urlOf({ addr }: Server): string {
  return `ws://localhost:${addr.port}`;
}

function pathOf({ url }: Request): string {
  return new URL(url).pathname;
}

// One call for each client.

test(
  { needs: "net" },
  "Order: one message is handled after the other, however long one takes",
  async () => {
    await using server = startServer(async (websocket) => {
      for await (const message of websocket) {
        if (message === "1") await delay(60);
        websocket.send(message);
      }
    });
    await using client = await TestClient.open(server.url);
    client.send("1");
    client.send("2");
    assertEquals([await client.next(), await client.next()], ["1", "2"]);
  },
);

test({ needs: "net" }, "a handler that starts slowly loses no message", async () => {
  const started = new Inbox<void>();
  const gate = Promise.withResolvers<void>();
  await using server = serve(async (websocket) => {
    started.put();
    await gate.promise;
    for await (const message of websocket) websocket.send(message);
  }, { port: 0 });
  await using client = await TestClient.open(urlOf(server));
  await started.next();
  const sent = Array.from({ length: 1_500 }, (_, number) => `${number}`.padEnd(1_000));
  for (const message of sent) client.send(message);
  // All of them wait for the handler.
  await eventually(() => assert(server.waiting >= 1_500_000));
  gate.resolve();
  for (const message of sent) assertEquals(await client.next(), message);
});

test({ needs: "net" }, "a slow handler still gets what a client sent before it left", async () => {
  const got = new Inbox<string>();
  await using server = serve(async (websocket) => {
    await websocket.closed;
    for await (const message of websocket) got.put(`${message}`);
    got.put("the end");
  }, { port: 0 });
  using client = await RawClient.upgraded(server.addr.port);
  const frames = [frame(TEXT, "1"), frame(TEXT, "2"), frame(CLOSE, NORMAL)];
  await client.write(new Uint8Array(frames.flatMap((each) => [...each])));
  assertEquals((await client.readClose()).code, 1000);
  assertEquals([await got.next(), await got.next(), await got.next()], ["1", "2", "the end"]);
  assertEquals(server.waiting, 0);
});

test(
  { needs: "net" },
  "20 clients that come and go during an `await` are all forgotten",
  async () => {
    const online = new Set<Connection>();
    const left = new Inbox<Connection>();
    const [started, gate] = [new Inbox<void>(), Promise.withResolvers<void>()];
    await using server = startServer(async (websocket) => {
      started.put();
      await gate.promise;
      online.add(websocket);
      try {
        for await (const message of websocket) websocket.send(message);
      } finally {
        online.delete(websocket);
        left.put(websocket);
      }
    });
    const clients = await Promise.all(
      Array.from({ length: 20 }, () => TestClient.open(server.url)),
    );
    for (const _ of clients) await started.next();
    await Promise.all(clients.map((client) => client.close()));
    assertEquals(online.size, 0);
    gate.resolve();
    for (const _ of clients) await left.next();
    await assertAnswers(server.url);
    await left.next();
    assertEquals([online.size, left.all.length, new Set(left.all).size], [0, 21, 21]);
  },
);

test({ needs: "net" }, "a local variable of a handler belongs to one client", async () => {
  await using server = startServer(async (websocket) => {
    let name = "nobody";
    for await (const message of websocket) {
      websocket.send(name);
      name = `${message}`;
    }
  });
  await using first = await TestClient.open(server.url);
  await using second = await TestClient.open(server.url);
  const heard = [];
  for (
    const [client, name] of [[first, "a"], [second, "b"], [first, "c"], [second, "d"]] as const
  ) {
    client.send(name);
    heard.push(await client.next());
  }
  assertEquals(heard, ["nobody", "nobody", "a", "b"]);
});

test({ needs: "net" }, "a handler gets the URL and the headers of the handshake", async () => {
  const requests = new Inbox<Request>();
  const handler: Handler = async (websocket, request) => {
    await delay(0);
    requests.put(request);
    await echo(websocket, request);
  };
  // A function around a handler may take whatever it is given.
  const around: Handler = (...all) => handler(...all);
  for (const each of [handler, around]) {
    await using server = startServer(each);
    await using _client = await TestClient.open(`${server.url}/a/b?x=y`, { "X-Name": "value" });
    const { url, headers } = await requests.next();
    assertEquals([new URL(url).pathname, new URL(url).search], ["/a/b", "?x=y"]);
    assertEquals(headers.get("x-name"), "value");
  }
});

test(
  { needs: "net" },
  "The handler returns: the client gets what was sent before, and then 1000",
  async () => {
    const [count, size] = [10, 1_000_000];
    await using server = startServer((websocket) => {
      for (let sent = 0; sent < count; sent++) websocket.send(new Uint8Array(size));
    });
    using client = await RawClient.upgraded(server.port);
    let bytes = 0;
    while (bytes < (count - 2) * size) {
      bytes += (await client.read()).length;
      // A slow reader: the server looks in vain whether all is taken.
      await delay(1);
    }
    const { code, before } = await client.readClose();
    assertEquals([code, bytes + before], [1000, count * (size + 10)]);
    await client.write(frame(CLOSE, NORMAL));
    assertEquals(server.log.all, []);
  },
);

// Handlers that fail.

/** All the ways to fail. Some errors can't be printed, and some promises are none. */
function failures(): Record<string, () => unknown> {
  const fail = (error: unknown) => () => {
    throw error;
  };
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  const unprintable = { [Symbol.for("Deno.customInspect")]: fail(new Error("inspect")) };
  const error = Object.defineProperty(new Error("text"), "stack", { get: fail(new Error("get")) });
  return {
    "an error": fail(new Error("\x1b[31mbroken")),
    "a text": fail("text"),
    "nothing": fail(undefined),
    "an object without a prototype": fail(Object.create(null)),
    "a symbol": fail(Symbol("s")),
    "a revoked proxy": fail(proxy),
    "what throws when it is printed": fail(unprintable),
    "an error that throws when it is read": fail(error),
    "a promise that rejects": () => Promise.reject(new Error("broken")),
    "a promise of what can't be printed": () => Promise.reject(proxy),
    "a thenable that rejects": () => ({
      then: (_: unknown, reject: (error: unknown) => void) => reject(new Error("broken")),
    }),
    "a thenable that throws": () => ({ then: fail(new Error("then")) }),
    "a `then` that throws when it is read": () =>
      Object.defineProperty({}, "then", { get: fail(new Error("get")) }),
    "a promise that can't be waited for": () =>
      Object.assign(Promise.reject(new Error("broken")), { then: fail(new Error("then")) }),
    "a promise whose errors can't be caught": () =>
      Object.assign(Promise.reject(new Error("broken")), { catch: fail(new Error("catch")) }),
  };
}

const failing: Record<string, (fail: () => unknown) => Handler> = {
  "before it reads": (fail) => () => fail(),
  "while it reads": (fail) => async (websocket) => {
    for await (const _ of websocket) await fail();
  },
  "after it has read": (fail) => async (websocket) => {
    for await (const _ of websocket);
    await fail();
  },
};

for (const [moment, failingWith] of Object.entries(failing)) {
  test(
    { needs: "net" },
    `The handler throws: ${moment}, it costs that client only, and a line in the log`,
    async () => {
      for (const [name, fail] of Object.entries(failures())) {
        const broken = failingWith(fail);
        await using server = startServer((websocket, request) =>
          (pathOf(request) === "/broken" ? broken : echo)(websocket, request)
        );
        await using whole = await TestClient.open(server.url);
        const client = await TestClient.open(`${server.url}/broken`);
        if (moment === "while it reads") client.send("hello");
        if (moment === "after it has read") {
          await client.close();
        } else {
          const { code, reason } = await within(client.closed, `1011 for ${name}`);
          assertEquals([code, reason], [1011, "The server failed to handle this."], name);
        }
        assertMatch(await server.log.next(), /^The handler failed: ./);
        whole.send("hello");
        assertEquals(await whole.next(), "hello");
        assertEquals(server.log.all.length, 1, name);
      }
    },
  );
}

/** Keeps what is printed on standard error. */
function watchErrors(): { lines: Inbox<string> } & Disposable {
  const lines = new Inbox<string>();
  const { error } = console;
  console.error = (line: string) => lines.put(line);
  return { lines, [Symbol.dispose]: () => console.error = error };
}

function failDeeply(depth: number, message: string): never {
  if (depth === 0) throw new Error(message);
  return failDeeply(depth - 1, message);
}

test(
  { needs: "net" },
  "the log tells the whole stack of an error, up to 2,000 characters",
  async () => {
    using errors = watchErrors();
    const messages = ["broken \x1b[31m", "x".repeat(3_000)];
    await using server = serve(() => failDeeply(5, messages.shift() ?? ""), { port: 0 });
    await using _first = await TestClient.open(urlOf(server));
    const [first, ...stack] = (await errors.lines.next()).split("\n");
    assertEquals(first, String.raw`The handler failed: Error: broken \u{1b}[31m`);
    assert(stack.length >= 6 && stack.every((line) => line.startsWith("    at ")), `${stack}`);
    await using _second = await TestClient.open(urlOf(server));
    const { length } = await errors.lines.next();
    assert(1_990 < length && length <= 2_000, `${length} characters`);
    assertEquals(errors.lines.all.length, 2);
  },
);

test({ needs: "net" }, "a client puts no line of its own into the log", async () => {
  using errors = watchErrors();
  const handler: Handler = async (websocket) => JSON.parse(String(await websocket.receive()));
  await using server = serve(handler, { port: 0 });
  await using client = await TestClient.open(urlOf(server));
  client.send("\nIt left.");
  const [first, second, ...stack] = (await errors.lines.next()).split("\n");
  assertMatch(first, /^The handler failed: SyntaxError: /);
  assertEquals(second, '    It left." is not valid JSON');
  assert(stack.length > 0 && stack.every((line) => line.startsWith("    at ")), `${stack}`);
});

test({ needs: "net" }, "a test of a handler that fails leaves nothing behind", async () => {
  // This is the test that a user writes. The sanitizers of Deno see what it leaves.
  using errors = watchErrors();
  const handler: Handler = async (websocket) => {
    throw new Error(`broken by ${await websocket.receive()}`);
  };
  await using server = serve(handler, { port: 0 });
  await using websocket = await connect(urlOf(server));
  websocket.send("hello");
  assertEquals((await websocket.closed).code, 1011);
  assertMatch(await errors.lines.next(), /^The handler failed: Error: broken by hello\n/);
});

test({ needs: "net" }, "a log that throws costs nothing", async () => {
  const full = () => {
    throw new Error("No space left on device");
  };
  const handler: Handler = async (websocket) => {
    for await (const message of websocket) {
      if (message === "fail") throw new Error("broken");
      websocket.send(message);
    }
  };
  const processRequest: ServeOptions["processRequest"] = ({ url }) => {
    if (url.endsWith("/broken")) throw new Error("broken");
  };
  await using server = startServer(handler, { processRequest, log: full, maxClients: 2 });
  await using whole = await TestClient.open(server.url);
  assertEquals((await ask(server.port, handshake({ Origin: "null" }))).status, 403);
  assertEquals((await ask(server.port, plain("GET /broken"))).status, 500);
  await using client = await TestClient.open(server.url);
  assertEquals((await ask(server.port, handshake())).status, 503);
  client.send("fail");
  assertEquals((await within(client.closed, "1011")).code, 1011);
  whole.send("hello");
  assertEquals(await whole.next(), "hello");
});

// `processRequest`.

test(
  { needs: "net" },
  "`processRequest` sees every request that keeps the rules, and no other",
  async () => {
    const seen: string[] = [];
    const handler: Handler = (websocket, request) => {
      seen.push(`handler ${pathOf(request)}`);
      return echo(websocket, request);
    };
    const processRequest: ServeOptions["processRequest"] = (request) => {
      seen.push(`${request.method} ${pathOf(request)}`);
    };
    await using server = startServer(handler, { processRequest, maxClients: 1, maxMessage: 10 });
    const Origin = "https://example.com";
    const cases: [string, number, string[]][] = [
      [handshake({ "Sec-WebSocket-Key": "abc" }), 400, []],
      [handshake({ "Sec-WebSocket-Version": "8" }), 426, []],
      [handshake({}, "POST / HTTP/1.1"), 405, []],
      [handshake({ "Sec-WebSocket-Key": "abc", Origin }), 400, []],
      [handshake({ Origin }), 403, []],
      [plain("POST /", `Origin: ${Origin}`, "Content-Length: 0"), 403, []],
      [plain("POST /", "Transfer-Encoding: chunked") + "0\r\n\r\n", 411, []],
      [plain("PUT /", "Content-Length: 11"), 413, []],
      [plain("POST /", "Content-Length: 10") + "1234567890", 426, ["POST /"]],
      [plain("POST /"), 426, ["POST /"]],
      [plain("GET /"), 426, ["GET /"]],
      [plain("GET /", `Origin: ${Origin}`), 426, ["GET /"]],
      [plain("HEAD /"), 426, ["HEAD /"]],
      [plain("GET /elsewhere?x=y"), 426, ["GET /elsewhere"]],
      [plain("OPTIONS /elsewhere"), 204, ["OPTIONS /elsewhere"]],
    ];
    for (const [request, expected, sees] of cases) {
      const { status } = await ask(server.port, request);
      assertEquals([status, seen.splice(0)], [expected, sees], request);
    }

    await using _client = await TestClient.open(`${server.url}/room?x=y`);
    assertEquals(seen.splice(0), ["GET /room", "handler /room"]);
    // The server is full now, but what is no client needs no room.
    const { status, head } = await ask(server.port, handshake());
    assertEquals([status, seen], [503, []]);
    assertMatch(head, /\r\nretry-after: 1\r\n/);
    for (const request of [plain("GET /"), plain("POST /", "Content-Length: 0")]) {
      assertEquals((await ask(server.port, request)).status, 426);
    }
    assertEquals(seen, ["GET /", "POST /"]);
  },
);

test(
  { needs: "net" },
  "`processRequest` may take its time, and the handler is called after it",
  async () => {
    const asked = new Inbox<[Request, Deno.NetAddr]>();
    const gate = Promise.withResolvers<void>();
    let calls = 0;
    const handler: Handler = (websocket, request) => {
      calls++;
      return echo(websocket, request);
    };
    await using server = startServer(handler, {
      maxClients: 1,
      async processRequest(request, { remoteAddr }) {
        asked.put([request, remoteAddr]);
        await gate.promise;
      },
    });
    const opening = TestClient.open(`${server.url}/path?token=x`, { "X-Name": "value" });
    const [request, { hostname, port }] = await asked.next();
    assert(["127.0.0.1", "::1"].includes(hostname) && port > 0, `${hostname}:${port}`);
    assertEquals([new URL(request.url).search, request.headers.get("x-name")], [
      "?token=x",
      "value",
    ]);
    // It counts as a client while it waits.
    assertEquals((await ask(server.port, handshake())).status, 503);
    assertEquals(calls, 0);
    gate.resolve();
    await using client = await opening;
    client.send("hello");
    assertEquals(await client.next(), "hello");
    assertEquals([calls, asked.all.length], [1, 1]);
  },
);

test(
  { needs: "net" },
  "A request is no handshake: a `Response` of `processRequest` answers",
  async () => {
    let calls = 0;
    const handler: Handler = (websocket, request) => {
      calls++;
      return echo(websocket, request);
    };
    const refusal = () =>
      new Response("Who are you?", { status: 401, headers: { "WWW-Authenticate": "Bearer" } });
    await using server = startServer(handler, {
      async processRequest(request) {
        const { method, headers } = request;
        await delay(0);
        if (pathOf(request) === "/health") return new Response(`${method} is fine`);
        if (headers.has("upgrade") && !headers.has("authorization")) return refusal();
      },
    });
    for (let count = 0; count < 3; count++) {
      const { status, head } = await ask(server.port, handshake());
      assertEquals(status, 401);
      assertMatch(head, /\r\nwww-authenticate: bearer\r\n/);
    }
    assertEquals(calls, 0);
    for (const method of ["GET", "PUT"]) {
      const response = await fetch(`http://localhost:${server.port}/health`, {
        method,
        body: method === "PUT" ? "x" : null,
      });
      assertEquals([response.status, await response.text()], [200, `${method} is fine`]);
    }
    assertEquals((await ask(server.port, plain("GET /"))).status, 426);
    await using client = await TestClient.open(server.url, { Authorization: "Bearer x" });
    client.send("hello");
    assertEquals(await client.next(), "hello");
    assertEquals(calls, 1);
  },
);

test(
  { needs: "net" },
  "`processRequest` takes too long, or throws: 503 if it is late",
  async () => {
    const gate = Promise.withResolvers<Response>();
    const handled: string[] = [];
    const handler: Handler = (websocket, request) => {
      handled.push(pathOf(request));
      return echo(websocket, request);
    };
    await using server = startServer(handler, {
      maxClients: 1,
      // The client that is let in answers pings in this time as well.
      idleTimeout: 2,
      processRequest: (request) => pathOf(request) === "/late" ? gate.promise : undefined,
    });
    const answers = await Promise.all([
      ask(server.port, handshake({}, "GET /late HTTP/1.1")),
      ask(server.port, plain("GET /late")),
    ]);
    assertEquals(answers.map(({ status }) => status), [503, 503]);
    assertMatch(await server.log.next(), /^`processRequest` took too long /);
    await assertAnswers(server.url);
    // What it answers in the end is for nobody.
    gate.resolve(new Response("late"));
    await retryAnswers(server.url);
    assert(!handled.includes("/late"));
  },
);

test(
  { needs: "net" },
  "without an `idleTimeout`, `processRequest` may take as long as it likes",
  async () => {
    const gate = Promise.withResolvers<void>();
    const asked = new Inbox<void>();
    await using server = startServer(echo, {
      idleTimeout: 0,
      processRequest() {
        asked.put();
        return gate.promise.then(() => undefined);
      },
    });
    const opening = TestClient.open(server.url);
    await asked.next();
    // A time limit of 0 would be over by now.
    await delay(20);
    gate.resolve();
    await using _client = await opening;
  },
);

test(
  { needs: "net" },
  "a client that leaves while `processRequest` decides holds no place",
  async () => {
    const asked = new Inbox<(refusal: Response) => void>();
    await using server = startServer(echo, {
      maxClients: 1,
      processRequest: (request) =>
        pathOf(request) === "/late"
          ? new Promise<Response>((decide) => asked.put(decide))
          : undefined,
    });
    for (let count = 0; count < 10; count++) {
      const client = await RawClient.open(server.port, handshake({}, "GET /late HTTP/1.1"));
      const decide = await asked.next();
      client.connection.close();
      assertEquals((await ask(server.port, handshake())).status, 503);
      decide(new Response("no", { status: 401 }));
      await retryAnswers(server.url);
    }
  },
);

test(
  { needs: "net" },
  "a method that no `Request` can have is refused, and holds no place",
  async () => {
    await using server = startServer(echo, { maxClients: 1, processRequest: () => undefined });
    for (const method of ["TRACE", "TRACK", "CONNECT", "get", "head"]) {
      assertEquals((await ask(server.port, plain(`${method} /`))).status, 400, method);
    }
    await assertAnswers(server.url);
  },
);

test({ needs: "net" }, "a GET that tells the length of a body makes nothing wait", async () => {
  let waiting = NaN;
  const server = serve(echo, { port: 0, processRequest: () => void (waiting = server.waiting) });
  await using _ = server;
  const request = plain("GET /", "Content-Length: 999999999999");
  assertEquals((await ask(server.addr.port, request)).status, 426);
  assertEquals(waiting, 0);
});

test({ needs: "net" }, "`processRequest` takes too long, or throws: 500 if it throws", async () => {
  const none = { "a number": () => 5, "null": () => null, "a status": () => ({ status: 200 }) };
  const late = { "a promise of no response": () => Promise.resolve("text") };
  for (const [name, fail] of Object.entries({ ...failures(), ...none, ...late })) {
    await using server = startServer(echo, {
      processRequest: (request) =>
        // What the types forbid, JavaScript does.
        pathOf(request) === "/broken" ? fail() as never : undefined,
    });
    for (const request of [handshake({}, "GET /broken HTTP/1.1"), plain("GET /broken")]) {
      assertEquals((await ask(server.port, request)).status, 500, name);
      assertMatch(await server.log.next(), /^`processRequest` failed: ./);
    }
    await assertAnswers(server.url);
    assertEquals(server.log.all.length, 2, name);
  }
});

test(
  { needs: "net" },
  "`processRequest` takes too long, or throws: 503 if it throws a `ConnectionClosed` with 1013",
  async () => {
    const answers: [code: number, reason: string, status: number, text: string][] = [
      [1013, "The database is away.", 503, "The database is away.\n"],
      [1013, "", 503, "Try again later.\n"],
      [1011, "a secret", 500, "The server failed to handle this.\n"],
    ];
    for (const [code, reason, status, text] of answers) {
      const fail = () => {
        throw new ConnectionClosed({ code, reason });
      };
      for (const processRequest of [fail, () => delay(1).then(fail)]) {
        await using server = startServer(echo, { processRequest });
        for (const request of [handshake(), plain("GET /")]) {
          const answer = await ask(server.port, request);
          assertEquals(answer.status, status);
          assertEquals(answer.head.includes("\r\nretry-after: 1\r\n"), status === 503);
          const line = await server.log.next();
          if (status === 503) assertEquals(line, "Refused a client with 503.");
          else assertMatch(line, /^`processRequest` failed: /);
        }
        const response = await fetch(server.url.replace("ws:", "http:"));
        assertEquals(await response.text(), text);
      }
    }
  },
);

// `subprotocols`.

test(
  { needs: "net" },
  "The client offers subprotocols: the first one of the server that is among them is spoken",
  async () => {
    const handler: Handler = (websocket) => void websocket.send(websocket.subprotocol);
    await using server = startServer(handler, { subprotocols: ["v2", "v1"] });
    const header = "Sec-WebSocket-Protocol";
    const offers: [offer: string, spoken: string][] = [
      ["v1", "v1"],
      ["v1, v2", "v2"],
      ["v1,v2", "v2"],
      [" v0 ,\tv1 ", "v1"],
      ["v12", ""],
      [`v1\r\n${header}: v2`, "v2"],
      [`v0,v1\r\n${header}: x`, "v1"],
      ["v0, V1", ""],
    ];
    for (const [offer, spoken] of offers) {
      using client = await RawClient.open(server.port, handshake({ [header]: offer }));
      const head = await client.head();
      assertMatch(head, /^HTTP\/1\.1 101 /);
      const answer = head.match(/^sec-websocket-protocol: (.*)\r$/im)?.[1] ?? "";
      const [, length, ...text] = (await client.read()).subarray(0, 2 + spoken.length);
      assertEquals([answer, length], [spoken, spoken.length], offer);
      assertEquals(String.fromCharCode(...text), spoken, offer);
    }

    for (const [offer, spoken] of [[["v1", "v2"], "v2"], [["v0"], ""], [[], ""]] as const) {
      await using websocket = await connect(server.url, { subprotocols: [...offer] });
      assertEquals([websocket.subprotocol, await websocket.receive()], [spoken, spoken]);
    }
  },
);

// Limits.

test({ needs: "net" }, "a limit out of its bounds is a RangeError of `serve`", () => {
  const numbers = [NaN, Infinity, -1];
  const wrong = {
    maxMessage: [...numbers, 0, 1.5, "10"],
    maxBody: [...numbers, 0, 1.5, null],
    maxClients: [...numbers, 0, 1.5, 10n],
    maxWaiting: [...numbers, 0, 1.5, null],
    idleTimeout: [...numbers, 1e10, "soon"],
  };
  for (const [name, limits] of Object.entries(wrong)) {
    for (const limit of limits) {
      const refused = () => serve(echo, { port: 0, [name]: limit });
      assertThrows(refused, RangeError, `not ${limit}.`);
      assertThrows(refused, RangeError, `\`${name}\` is a`);
    }
  }
  return Promise.resolve();
});

test({ needs: "net" }, "a certificate without its key starts no server", () => {
  for (const half of [{ cert: "x" }, { key: "x" }, { cert: "", key: "" }]) {
    assertThrows(() => serve(echo, { port: 0, ...half }), TypeError, "key");
  }
  return Promise.resolve();
});

// Stopping.

test({ needs: "net" }, "The server stops: `shutdown` waits for every handler", async () => {
  const events: string[] = [];
  const started = new Inbox<void>();
  const handler: Handler = async (websocket) => {
    started.put();
    try {
      for await (const _ of websocket);
    } finally {
      await delay(50);
      events.push(`finally ${(await websocket.closed).code}`);
    }
  };
  const server = serve(handler, { port: 0 });
  const opening = [TestClient.open(urlOf(server)), TestClient.open(urlOf(server))];
  const clients = await Promise.all(opening);
  for (const _ of clients) await started.next();
  // It may be called twice, and neither call is done before the other.
  const stops = [server.shutdown(), server.shutdown()].map((stop) =>
    stop.then(() => events.push("stopped"))
  );
  await within(Promise.all([...stops, server.finished]), "the server to stop");
  await server.shutdown();
  assertEquals(events, ["finally 1001", "finally 1001", "stopped", "stopped"]);
  for (const client of clients) {
    const { code, reason } = await within(client.closed, "the close");
    assertEquals([code, reason], [1001, "The server is shutting down."]);
  }
});

test({ needs: "net" }, "The server stops: `shutdown` waits for 5 seconds at most", async () => {
  const gate = Promise.withResolvers<void>();
  const lines: string[] = [];
  const server = serve(() => gate.promise, { port: 0, log: (line) => lines.push(line) });
  const client = await TestClient.open(urlOf(server));
  const start = performance.now();
  const stops = [server.shutdown(), server.shutdown()];
  await within(Promise.all(stops), "the server to stop");
  const milliseconds = performance.now() - start;
  assertLessOrEqual(5_000, Math.ceil(milliseconds));
  assertEquals((await within(client.closed, "the close")).code, 1001);
  // The second call has done nothing of its own.
  assertEquals(lines.length, 1);
  gate.resolve();
});

test({ needs: "net" }, "`await using` stops a server at the end of its block", async () => {
  const port = freePort();
  let isReturned = false;
  let client: TestClient;
  {
    const handler: Handler = async (websocket, request) => {
      await echo(websocket, request);
      await delay(20);
      isReturned = true;
    };
    await using server = await eventually(() => serve(handler, { port }));
    client = await TestClient.open(urlOf(server));
    client.send("hello");
    await client.next();
  }
  assert(isReturned);
  assertEquals((await within(client.closed, "the close")).code, 1001);
  // The port is free again.
  await using _next = await eventually(() => serve(echo, { port }));
});

test({ needs: "net" }, "The server stops: `signal` stops it as `shutdown` does", async () => {
  const stop = new AbortController();
  // More than the kernel takes, so that most of it waits in the server.
  const count = 20;
  const handler: Handler = async (websocket) => {
    for (let sent = 0; sent < count; sent++) websocket.send(new Uint8Array(1_000_000));
    await websocket.closed;
  };
  const server = serve(handler, { port: 0, signal: stop.signal });
  using client = await RawClient.upgraded(server.addr.port);
  await eventually(() => assert(server.waiting > 1_000_000));
  stop.abort();
  const reason = "The server is shutting down.";
  assertEquals(await client.readClose(), { code: 1001, reason, before: count * 1_000_010 });
  await client.write(frame(CLOSE));
  await within(server.finished, "the server to stop");
  const aborted = serve(handler, { port: 0, signal: AbortSignal.abort() });
  await within(aborted.finished, "a server that may not start");
});

test({ needs: "net" }, "The server stops: who waits for `processRequest` gets 503", async () => {
  const asked = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<Response>();
  const processRequest = () => {
    asked.resolve();
    return answer.promise;
  };
  const server = serve(() => {}, { port: 0, processRequest });
  const asking = ask(server.addr.port, plain("GET /"));
  await within(asked.promise, "the request");
  await within(server.shutdown(), "the server to stop");
  assertEquals((await asking).status, 503);
});

test({ needs: "net" }, "The server stops: `processRequest` may stop it", async () => {
  const processRequest = async () => {
    await server.shutdown();
    return new Response("stopped");
  };
  const server = serve(() => {}, { port: 0, processRequest, idleTimeout: 0 });
  const { status } = await ask(server.addr.port, plain("GET /"));
  assertEquals(status, 503);
  await within(server.finished, "the server to stop");
});

test({ needs: "net" }, "two servers in one process know nothing of each other", async () => {
  const naming = (name: string): Handler => async (websocket, request) => {
    if (pathOf(request) === "/large") websocket.send(new Uint8Array(20_000_000));
    for await (const message of websocket) websocket.send(`${name} ${message}`);
  };
  await using stays = serve(naming("stays"), { port: 0, maxClients: 1 });
  await using client = await TestClient.open(urlOf(stays));
  {
    await using stops = serve(naming("stops"), { port: 0, maxClients: 2 });
    await using other = await TestClient.open(urlOf(stops));
    client.send("hello");
    other.send("hello");
    assertEquals([await client.next(), await other.next()], ["stays hello", "stops hello"]);
    using unread = await RawClient.open(stops.addr.port, handshake({}, "GET /large HTTP/1.1"));
    await unread.head();
    await eventually(() => assert(stops.waiting > 1_000_000));
    assertLessOrEqual(stays.waiting, 10_000);
  }
  client.send("hello again");
  assertEquals(await client.next(), "stays hello again");
});
