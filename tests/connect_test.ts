// What `connect` promises a client, and how it is told why a connection failed.

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import { connect, ConnectionClosed, ConnectionFailed } from "websockets";
import { describeClose, isLost } from "../websockets/close_codes.ts";
import { withoutSecrets } from "../websockets/failures.ts";
import { advise } from "../websockets/script/advice.ts";
import { Inbox, startServer, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { echo, letGo, listen, listenRaw, serveBare, switchProtocols } from "./peers.ts";

// `connect`.

test({ needs: "net" }, "a timeout that is not valid rejects, and ends nothing", async () => {
  using silent = listenRaw();
  await assertRejects(() => connect(silent.url, { timeout: -1 }), ConnectionFailed, "timeout");
  // The runtime reports only later that the handshake was canceled.
  await delay(10);
});

test({ needs: "net" }, "its signal gives up the handshake, and closes the connection", async () => {
  const events = new Inbox<string>();
  const giveUp = new AbortController();
  using silent = listenRaw();
  const given = assertRejects(() => connect(silent.url, giveUp), Error, "enough");
  using _connection = await silent.accept();
  giveUp.abort(new Error("enough"));
  await given;

  await using server = startServer(listen(events));
  await assertRejects(() => connect(server.url, giveUp), Error, "enough");
  const leave = new AbortController();
  const websocket = await connect(server.url, leave);
  leave.abort();
  assertEquals(await within(websocket.closed, "the end"), { code: 1000, reason: "" });
  assertEquals(await events.next(), "closed with 1000");
});

test({ needs: "net" }, "a server that does not answer the handshake is given up", async () => {
  using server = listenRaw();
  const failed = assertRejects(() => connect(server.url, { timeout: 500 }), ConnectionFailed);
  using _connection = await server.accept();
  const { kind, isPassing } = await failed;
  assertEquals([kind, isPassing], ["timeout", true]);
});

test({ needs: "net" }, "a subprotocol that was not offered fails the connection", async () => {
  const events = new Inbox<string>();
  await using server = serveBare((request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onclose = ({ code, reason }) => events.put(`${code} ${reason}`);
    response.headers.set("sec-websocket-protocol", "evil");
    return response;
  });
  for (const subprotocols of [undefined, ["chat"]]) {
    const { kind, isPassing, message } = await assertRejects(
      () => connect(server.url, { subprotocols }),
      ConnectionFailed,
    );
    assertMatch(message, /\(the server selected the subprotocol evil, which was not offered\)$/);
    assertEquals([kind, isPassing], ["subprotocol", false]);
    assertEquals(await events.next(), "1000 This subprotocol was not offered.");
  }
  await using websocket = await connect(server.url, { subprotocols: ["chat", "evil"] });
  assertEquals(websocket.subprotocol, "evil");
});

test(
  { needs: "net" },
  "a message that comes with the handshake is answered, though a bad frame is behind it",
  async () => {
    const [text, reserved] = [[0x81, 2, ...new TextEncoder().encode("hi")], [0x83, 0]];
    using server = listenRaw();
    const echoing = (async () => {
      const websocket = await connect(server.url);
      for await (const message of websocket) await websocket.send(message);
    })();
    const ended = assertRejects(() => echoing, ConnectionClosed);
    using connection = await server.accept();
    const handshake = await switchProtocols(connection);
    await connection.write(new Uint8Array([...handshake, ...text, ...reserved]));
    await within(ended, "the end");
    const answer = new Uint8Array(100);
    const length = await within(connection.read(answer), "the answer");
    // A text of two bytes, and the four of its mask.
    assertEquals([...answer.subarray(0, length ?? 0)].toSpliced(2), [0x81, 0x82]);
    assertEquals(length, 2 + 4 + 2);
  },
);

test({ needs: "net" }, "a server that takes nothing for `timeout` is lost", async () => {
  using server = listenRaw();
  // The handshake has this time as well.
  const opened = connect(server.url, { timeout: 2_000 });
  using connection = await server.accept();
  await connection.write(await switchProtocols(connection));
  const websocket = await opened;
  const idle = await Promise.race([websocket.closed, delay(3_000)]);
  assertEquals(idle, undefined, "a server that has nothing to take was lost");
  for (let count = 0; count < 20; count++) websocket.send(new Uint8Array(2 ** 20));
  const close = await within(websocket.closed, "the end");
  assertEquals(close, { code: 1006, reason: "The server took nothing for too long." });
  assert(isLost(close));
  await letGo(connection);
});

test({ needs: "net" }, "a server that does not answer the Close frame is given up", async () => {
  using server = listenRaw();
  const opened = connect(server.url, { timeout: 1e9 });
  using connection = await server.accept();
  await connection.write(await switchProtocols(connection));
  const closed = (await opened).close();
  assertEquals(await within(closed, "the end"), { code: 1006, reason: "" });
  await letGo(connection);
});

test({ needs: "net" }, "a client may not send a code that the runtime refuses", async () => {
  await using server = startServer(echo());
  await using websocket = await connect(server.url);
  for (const code of [1001, 1011, 2999, 5000]) {
    assertThrows(() => websocket.close(code), RangeError, "use 1000, or 3000 to 4999");
  }
  assertEquals((await websocket.close(3000, "bye")).code, 3000);
});

// Why a handshake failed.

test({ needs: "net" }, "it says why a handshake failed, and what to do", async () => {
  await using server = serveBare((request) =>
    new Response("", { status: Number(new URL(request.url).pathname.slice(1)) })
  );
  for (
    const [url, isPassing, reason] of [
      [`${server.url}/401`, false, /\(.*401\): .*user:password@/],
      [`${server.url}/403`, false, /\(.*403\): .*origin/],
      [`${server.url}/404`, false, /\(.*404\): .*path/],
      [`${server.url}/200`, false, /\(.*200\): .*path/],
      [`${server.url}/429`, true, /\(.*429\): .*later/],
      [`${server.url}/503`, true, /\(.*503\): .*later/],
      [`${server.url}/500`, true, /\(.*500\)$/],
      [`wss://127.0.0.1:${server.port}`, false, /: .* use ws:\/\//],
      ["ws://127.0.0.1:1", true, /: start the server/],
    ] as const
  ) {
    const withPassword = url.replace("//", "//user:secret@");
    const error = await assertRejects(() => connect(withPassword), ConnectionFailed);
    const message = await advise(error, withPassword);
    assert(message.startsWith(`No connection to ${url} (`), message);
    assertMatch(message, reason);
    const [, status] = url.match(/\/(\d+)$/) ?? [];
    assertEquals(error.status, status && Number(status));
    assertEquals(error.isPassing, isPassing, url);
  }
});

test({ needs: "net" }, "a URL that can't be used is told without its password", async () => {
  const encode = /; in a user name or password, write # .* as %23 /;
  for (const character of ["#", "?", "/", "%", "%2", "\\"]) {
    const url = `ws://mallory:secret${character}secret@localhost:1/?token=secret`;
    const { name, message } = await assertRejects(() => connect(url), DOMException);
    assertEquals(name, "SyntaxError");
    assertMatch(message, encode);
    assert(!/secret|mallory/.test(message), message);
  }
  // These are URLs, of another server than was meant.
  for (const character of ["#", "?", "/", "\\"]) {
    const url = `ws://127.0.0.1:1${character}secret@localhost:1`;
    const error = await assertRejects(() => connect(url), Error);
    const message = await advise(error, url);
    assertMatch(message, encode);
    assert(!/secret|127/.test(message), message);
  }
  for (const url of ["ws://localhost:99999", "ftp://localhost", "localhost", "ws://localhost/#"]) {
    const { message } = await assertRejects(() => connect(url), DOMException);
    assertMatch(message, / is no URL of a server, such as ws:\/\/localhost:9999$/);
  }
});

// What needs no permission.

Deno.test("a host that has no address is told as such, and not tried again", async () => {
  const error = new ConnectionFailed("ws://nowhere", new Error("dns error"));
  assertEquals(
    await advise(error, "ws://nowhere"),
    "No connection to ws://nowhere (dns error): there is no such host, check the URL",
  );
  assert(!error.isPassing);
});

Deno.test("an unknown reason is told as it is, and counts as one that may pass", async () => {
  const url = "ws://a:b@somewhere";
  const error = new ConnectionFailed(url, new Error("full moon"));
  assertEquals(await advise(error, url), "No connection to ws://somewhere (full moon)");
  assert(error.isPassing);
});

Deno.test("a name in the reason of a failure changes nothing in the advice", async () => {
  const certificate = new Error('certificate not valid for name "dns.tcp"');
  const failed = new ConnectionFailed("wss://dns.tcp", certificate);
  assertMatch(await advise(failed, "wss://dns.tcp"), /subjectAltName=DNS:NAME$/);
  const subprotocol = new Error("the server selected the subprotocol tcp, which was not offered");
  const error = new ConnectionFailed("ws://localhost", subprotocol);
  assertEquals([error.kind, error.isPassing], ["subprotocol", false]);
});

Deno.test("credentials of a URL are not shown, nor the values of its query", () => {
  for (
    const [url, shown] of [
      ["ws://user:secret@host:1/a?b", "ws://host:1/a?…"],
      ["WSS://secret@host", "WSS://host"],
      ["ws:///user:sec@ret@host", "ws:///host"],
      ["user:secret@host", "host"],
      ["ws://us er:pa ss@host", "ws://host"],
      ["ws://host/a?token=secret&secret&b==secret=", "ws://host/a?token=…&…&b=…"],
      // A password may have these characters too, and then it does not end where it seems to.
      ["ws://sec/ret@host", "ws://…"],
      ["ws://sec?ret@host", "ws://…"],
      ["ws://sec#ret@host", "ws://…"],
      ["ws://sec\\ret@host", "ws://…"],
      ["ws://host/a?b=secret@secret", "ws://…"],
      ["ftp://user:secret@host", "…"],
    ]
  ) assertEquals(withoutSecrets(url), shown);
});

Deno.test("only a server that is away is worth another connection", () => {
  const codes = [1000, 1001, 1005, 1006, 1008, 1009, 1011, 1012, 1013, 4000];
  const lost = codes.filter((code) => isLost({ code, reason: "" }));
  assertEquals(lost, [1001, 1006, 1012, 1013]);
});

Deno.test("a close code is told with its standard name", () => {
  const told = (code: number, reason = "") => describeClose({ code, reason });
  assertEquals(told(1000), "1000 (OK)");
  assertEquals(told(1001, "bye"), "1001 (going away) bye");
  assertEquals(told(1006), "1006 (connection closed abnormally)");
  assertEquals([told(3000), told(4999), told(1004)], [
    "3000 (registered)",
    "4999 (private use)",
    "1004 (unknown)",
  ]);
});

test(
  { needs: "net" },
  "a client that closes without reading what has arrived leaves nothing behind",
  async () => {
    await using server = startServer(async (websocket) => {
      for (const text of ["1", "2", "3"]) websocket.send(text);
      await websocket.receive();
    });
    const websocket = await connect(server.url);
    assertEquals(await websocket.receive(), "1");
    await websocket.close();
  },
);
