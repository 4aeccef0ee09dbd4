// What `serve` promises to whoever writes a handler: when its functions are called and with what,
// and that nothing that they do can hurt more than the client for which they were called.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { delay, retry } from "@std/async";
import type { Handler } from "../websockets.ts";
import { ask, frame, handshake, Inbox, RawClient } from "./helpers.ts";
import { startServer, test, TestClient, within } from "./helpers.ts";

const TEXT = 1;

/** Answers everything, so that a test can see whether the server still does. */
const echo: Handler = { message: (socket, data) => socket.send(data) };

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
  return retry(() => assertAnswers(url), { minTimeout: 5, maxAttempts: 10 });
}

// `request`.

test(
  { needs: "net" },
  "`request` sees every request that keeps the rules, and no other",
  async () => {
    const seen: string[] = [];
    const handler: Handler = {
      ...echo,
      request: ({ method, url }) => void seen.push(`${method} ${new URL(url).pathname}`),
      open: (_, { url }) => seen.push(`open ${new URL(url).pathname}`),
    };
    await using server = startServer(handler, { maxClients: 1, maxMessage: 10 });
    const Origin = "https://example.com";
    const cases: [string, number, string[]][] = [
      [handshake({ "Sec-WebSocket-Key": "abc" }), 400, []],
      [handshake({ "Sec-WebSocket-Version": "8" }), 426, []],
      [handshake({}, "POST / HTTP/1.1"), 405, []],
      [handshake({ "Sec-WebSocket-Key": "abc", Origin }), 400, []],
      [handshake({ Origin }), 403, []],
      [plain("POST /", `Origin: ${Origin}`, "Content-Length: 0"), 403, []],
      [plain("POST /"), 411, []],
      [plain("POST /", "Transfer-Encoding: chunked") + "0\r\n\r\n", 411, []],
      [plain("PUT /", "Content-Length: 11"), 413, []],
      [plain("POST /", "Content-Length: 10") + "1234567890", 426, ["POST /"]],
      [plain("POST /", "Content-Length: 0"), 426, ["POST /"]],
      [plain("GET /"), 200, ["GET /"]],
      [plain("GET /", `Origin: ${Origin}`), 200, ["GET /"]],
      [plain("HEAD /"), 200, ["HEAD /"]],
      [plain("GET /elsewhere?x=y"), 426, ["GET /elsewhere"]],
      [plain("OPTIONS /elsewhere"), 426, ["OPTIONS /elsewhere"]],
    ];
    for (const [request, expected, sees] of cases) {
      const { status } = await ask(server.port, request);
      assertEquals([status, seen.splice(0)], [expected, sees], request);
    }

    await using _client = await TestClient.open(`${server.url}/room?x=y`);
    assertEquals(seen.splice(0), ["GET /room", "open /room"]);
    // The server is full now, but its page needs no room.
    for (const request of [handshake(), plain("POST /", "Content-Length: 0")]) {
      assertEquals([(await ask(server.port, request)).status, seen], [503, []]);
    }
    assertEquals((await ask(server.port, plain("GET /"))).status, 200);
    assertEquals(seen, ["GET /"]);
  },
);

test({ needs: "net" }, "`request` may take its time, and `open` gets what it got", async () => {
  const asked = new Inbox<[Request, Deno.NetAddr]>();
  const gate = Promise.withResolvers<void>();
  const opened: Request[] = [];
  const handler: Handler = {
    ...echo,
    async request(request, { remoteAddr }) {
      asked.put([request, remoteAddr]);
      await gate.promise;
    },
    open: (_, request) => opened.push(request),
  };
  await using server = startServer(handler, { maxClients: 1 });
  const opening = TestClient.open(`${server.url}/path?token=x`, { "X-Name": "value" });
  const [request, { hostname, port }] = await asked.next();
  assert(["127.0.0.1", "::1"].includes(hostname) && port > 0, `${hostname}:${port}`);
  // It counts as a client while it waits.
  assertEquals((await ask(server.port, handshake())).status, 503);
  assertEquals(opened, []);
  gate.resolve();
  await using client = await opening;
  client.send("hello");
  assertEquals(await client.next(), "hello");
  assertEquals([opened.length, asked.all.length], [1, 1]);
  assert(opened[0] === request);
  assertEquals(new URL(request.url).search, "?token=x");
  assertEquals(request.headers.get("x-name"), "value");
});

test({ needs: "net" }, "a `Response` of `request` refuses a handshake, or answers", async () => {
  const events: string[] = [];
  const refusal = () =>
    new Response("Who are you?", { status: 401, headers: { "WWW-Authenticate": "Bearer" } });
  const handler: Handler = {
    ...echo,
    async request({ method, url, headers }) {
      await delay(0);
      if (new URL(url).pathname === "/health") return new Response(`${method} is fine`);
      if (headers.has("upgrade") && !headers.has("authorization")) return refusal();
    },
    open: () => events.push("open"),
    close: () => events.push("close"),
  };
  await using server = startServer(handler);
  for (let count = 0; count < 3; count++) {
    const { status, head } = await ask(server.port, handshake());
    assertEquals(status, 401);
    assertMatch(head, /\r\nwww-authenticate: bearer\r\n/);
  }
  assertEquals(events, []);
  for (const method of ["GET", "PUT"]) {
    const response = await fetch(`http://localhost:${server.port}/health`, {
      method,
      body: method === "PUT" ? "x" : null,
    });
    assertEquals([response.status, await response.text()], [200, `${method} is fine`]);
  }
  assertEquals((await ask(server.port, plain("GET /"))).status, 200);
  await using _client = await TestClient.open(server.url, { Authorization: "Bearer x" });
  assertEquals(events, ["open"]);
});

test({ needs: "net" }, "a `request` that takes too long gets 503, and holds no place", async () => {
  const gate = Promise.withResolvers<Response>();
  const opened: Request[] = [];
  const handler: Handler = {
    ...echo,
    request: ({ url }) => new URL(url).pathname === "/late" ? gate.promise : undefined,
    open: (_, request) => opened.push(request),
  };
  await using server = startServer(handler, { maxClients: 1, idleTimeout: 0.2 });
  const answers = await Promise.all([
    ask(server.port, handshake({}, "GET /late HTTP/1.1")),
    ask(server.port, plain("GET /late")),
  ]);
  assertEquals(answers.map(({ status }) => status), [503, 503]);
  assertMatch(await server.log.next(), /^The handler took too long /);
  assertEquals(opened, []);
  await assertAnswers(server.url);
  // What it answers in the end is for nobody.
  gate.resolve(new Response("late"));
  await retryAnswers(server.url);
});

test(
  { needs: "net" },
  "without an `idleTimeout`, `request` may take as long as it likes",
  async () => {
    const gate = Promise.withResolvers<void>();
    const asked = new Inbox<Request>();
    const handler: Handler = {
      ...echo,
      request(request) {
        asked.put(request);
        return gate.promise;
      },
    };
    await using server = startServer(handler, { idleTimeout: 0 });
    const opening = TestClient.open(server.url);
    await asked.next();
    gate.resolve();
    await using _client = await opening;
  },
);

test({ needs: "net" }, "who leaves while `request` decides holds no place", async () => {
  const asked = new Inbox<(refusal: Response) => void>();
  const handler: Handler = {
    ...echo,
    request: ({ url }) =>
      new URL(url).pathname === "/late"
        ? new Promise<Response>((decide) => asked.put(decide))
        : undefined,
  };
  await using server = startServer(handler, { maxClients: 1 });
  for (let count = 0; count < 10; count++) {
    const client = await RawClient.open(server.port, handshake({}, "GET /late HTTP/1.1"));
    const decide = await asked.next();
    client.connection.close();
    assertEquals((await ask(server.port, handshake())).status, 503);
    decide(new Response("no", { status: 401 }));
    await retryAnswers(server.url);
  }
});

test({ needs: "net" }, "a body is in whole for `request`, or is told to be too long", async () => {
  const handler: Handler = {
    ...echo,
    request: async (request) => new Response(`${(await request.bytes()).length}`),
  };
  await using server = startServer(handler, { maxMessage: 100_000 });
  const url = `http://localhost:${server.port}/`;
  const push = async (body: BodyInit | null, method = "POST") => {
    const response = await fetch(url, { method, body });
    return [response.status, await response.text()];
  };
  for (const size of [0, 1, 99_999, 100_000]) {
    assertEquals(await push(new Uint8Array(size)), [200, `${size}`]);
  }
  assertEquals(await push(new Uint8Array(100_001)), [413, "Larger than 100000 bytes.\n"]);
  const stream = ReadableStream.from([new Uint8Array(10)]);
  assertEquals(await push(stream), [411, "The request needs a Content-Length.\n"]);
  // A preflight of a page has no body, and tells no length.
  assertEquals(await push(null, "OPTIONS"), [200, "0"]);
});

test({ needs: "net" }, "a body that breaks off fails for `request` alone", async () => {
  const handler: Handler = {
    ...echo,
    async request(request) {
      if (request.method === "POST") return new Response(await request.text());
    },
  };
  await using server = startServer(handler, { maxClients: 1 });
  using half = await RawClient.open(server.port, plain("POST /", "Content-Length: 10") + "half");
  await retry(async () => assertEquals((await ask(server.port, handshake())).status, 503));
  half.connection.close();
  await server.log.next((line) => line.startsWith("The handler failed:"), "the broken body");
  await retryAnswers(server.url);
});

// `open`, `message` and `close`.

test({ needs: "net" }, "`close` is called once for each `open`, and tells why", async () => {
  const opened = new Inbox<WebSocket>();
  const closed = new Inbox<[number, string]>();
  const handler: Handler = {
    open: (socket) => opened.put(socket),
    message(socket, data) {
      if (data === "reason") socket.close(4001, "because");
      if (data === "nothing") socket.close();
      if (data === "error") throw new Error("broken");
    },
    close: (_, { code, reason }) => closed.put([code, reason]),
  };
  const server = startServer(handler, { maxMessage: 10 });
  const says = (text: string) => async () => {
    await using client = await TestClient.open(server.url);
    client.send(text);
    await within(client.closed, "the close");
  };
  const goes = (code?: number, reason?: string) => async () => {
    const client = await TestClient.open(server.url);
    client.socket.close(code, reason);
    await within(client.closed, "the close");
  };
  const cases: [() => Promise<void>, number, string][] = [
    [goes(1000), 1000, ""],
    [goes(), 1005, ""],
    [goes(3001, "bye"), 3001, "bye"],
    [says("reason"), 4001, "because"],
    [says("nothing"), 1000, ""],
    [says("error"), 1011, "The server failed to handle this."],
    [says("more than ten"), 1009, "Larger than 10 bytes."],
  ];
  for (const [leave, code, reason] of cases) {
    await leave();
    assertEquals(await closed.next(), [code, reason]);
  }

  // Lost clients say nothing: one goes, one is reset by its system, one breaks the protocol.
  const lost = await Promise.all(Array.from({ length: 3 }, () => RawClient.upgraded(server.port)));
  lost[0].connection.close();
  await lost[1].write(frame(TEXT, "x"));
  lost[1].connection.close();
  await lost[2].write(frame(TEXT, new Uint8Array([0xff])));
  for (const _ of lost) assertEquals(await closed.next(), [1006, ""]);
  lost[2].connection.close();

  await using client = await TestClient.open(server.url);
  await server[Symbol.asyncDispose]();
  assertEquals(await closed.next(), [1001, "The server is shutting down."]);
  await client.closed;
  assertEquals(closed.all.length, opened.all.length);
});

test({ needs: "net" }, "`close` takes any reason, as the platform does", async () => {
  const reasons = new Map<unknown, string>([
    [undefined, ""],
    [null, "null"],
    [5, "5"],
    ["\ud800", "\ufffd"],
    ["é".repeat(62), "é".repeat(61)],
    [{ toString: () => "text" }, "text"],
  ]);
  const cases = [...reasons.keys()];
  const handler: Handler = {
    message(socket, data) {
      const [number, size] = String(data).split(" ").map(Number);
      socket.send(new Uint8Array(size));
      socket.close(4000, cases[number] as string);
    },
  };
  await using server = startServer(handler);
  // The larger message still waits when the socket is closed.
  for (const size of [0, 1_000_000]) {
    for (const [number, reason] of cases.entries()) {
      await using client = await TestClient.open(server.url);
      client.send(`${number} ${size}`);
      const event = await within(client.closed, "the close");
      assertEquals([event.code, event.reason, event.wasClean], [4000, reasons.get(reason), true]);
      assertEquals((client.messages.all[0] as ArrayBuffer).byteLength, size);
    }
  }
});

test({ needs: "net" }, "a code that may not be sent is an error of the handler", async () => {
  const handler: Handler = { message: (socket, data) => socket.close(Number(data)) };
  await using server = startServer(handler);
  /** The code in the Close frame that answers. Deno's client does not know all of them. */
  const askFor = async (code: number) => {
    using client = await RawClient.upgraded(server.port);
    await client.write(frame(TEXT, `${code}`));
    const [opcode, , high, low] = await client.read();
    assertEquals(opcode, 0x88);
    return high << 8 | low;
  };
  for (const code of [0, -1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535, 66_536, NaN]) {
    assertEquals(await askFor(code), 1011, `${code}`);
    assertMatch(await server.log.next(), /^The handler failed: InvalidAccessError/);
  }
  const named = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014];
  for (const code of [...named, 3000, 4999]) assertEquals(await askFor(code), code);
  assertEquals(server.log.all.length, 13);
});

test({ needs: "net" }, "a handler that asks for Blobs gets them, and the limit stays", async () => {
  const got = new Inbox<unknown>();
  const handler: Handler = {
    open: (socket) => socket.binaryType = "blob",
    message: (_, data) => got.put(data),
  };
  await using server = startServer(handler, { maxMessage: 300 });
  await using client = await TestClient.open(server.url);
  client.send(new Uint8Array(300));
  const blob = await got.next();
  assert(blob instanceof Blob);
  assertEquals(blob.size, 300);
  client.send(new Uint8Array(301));
  assertEquals((await within(client.closed, "the close")).code, 1009);
  assertEquals(got.all.length, 1);
});

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

for (const moment of ["open", "message", "close"] as const) {
  test(
    { needs: "net" },
    `a handler that fails in \`${moment}\` costs that client only`,
    async () => {
      for (const [name, fail] of Object.entries(failures())) {
        let broken: WebSocket | undefined;
        const failFor = (now: string) => (socket: WebSocket) => {
          if (now === "open") broken ??= socket;
          if (now === moment && socket === broken) return fail();
          if (now === "message") socket.send("hello");
        };
        const handler = {
          open: failFor("open"),
          message: failFor("message"),
          close: failFor("close"),
        };
        await using server = startServer(handler);
        const client = await TestClient.open(server.url);
        await using whole = await TestClient.open(server.url);
        if (moment === "message") client.send("hello");
        if (moment === "close") await client.close();
        else assertEquals((await within(client.closed, `1011 for ${name}`)).code, 1011, name);
        const line = await server.log.next();
        assertMatch(line, /^The handler failed: ./);
        whole.send("hello");
        assertEquals(await whole.next(), "hello");
        assertEquals(server.log.all.length, 1, name);
      }
    },
  );
}

test({ needs: "net" }, "a handler that fails in `request` costs that request only", async () => {
  const none = { "a number": () => 5, "null": () => null, "a status": () => ({ status: 200 }) };
  const late = { "a promise of no response": () => Promise.resolve("text") };
  for (const [name, fail] of Object.entries({ ...failures(), ...none, ...late })) {
    const handler: Handler = {
      ...echo,
      request: ({ url }) => new URL(url).pathname === "/broken" ? fail() : undefined,
    };
    await using server = startServer(handler);
    for (const request of [handshake({}, "GET /broken HTTP/1.1"), plain("GET /broken")]) {
      assertEquals((await ask(server.port, request)).status, 500, name);
      assertMatch(await server.log.next(), /^The handler failed: ./);
    }
    await assertAnswers(server.url);
    assertEquals(server.log.all.length, 2, name);
  }
});

test({ needs: "net" }, "a log that throws costs nothing", async () => {
  const full = () => {
    throw new Error("No space left on device");
  };
  const handler: Handler = {
    message(socket, data) {
      if (data === "fail") throw new Error("broken");
      socket.send(data);
    },
    request({ url }) {
      if (url.endsWith("/broken")) throw new Error("broken");
    },
  };
  await using server = startServer(handler, { log: full, maxClients: 2 });
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
