// What client.ts promises: the article's loop.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { freePort, Inbox, startServer } from "./helpers.ts";
import { test } from "./needs.ts";
import { Script } from "./programs.ts";
import { echo, Flood, listen, listenRaw, readOneLine, switchProtocols } from "./peers.ts";

test(
  { needs: "run" },
  "it runs 39 rounds, each a connection of its own that it closes with 1000",
  async () => {
    const events = new Inbox<string>();
    await using server = startServer(echo(events));
    await using client = new Script("client.ts", [server.url, "--interval", "0"]);
    assertEquals([await client.end(), client.errors.all], [0, []]);
    assertEquals(client.lines.all, Array(39).fill("Hello, I am Deno."));
    for (let round = 0; round < 39; round++) assertEquals(await events.next(), "closed with 1000");
  },
);

test({ needs: "run" }, "a server restarted in the middle costs a pause and no round", async () => {
  const port = `${freePort()}`;
  const first = await Script.server("server.ts", "--port", port, "--quiet");
  const flags = [`ws://localhost:${port}`, "--count", "40", "--interval", "0.02"];
  await using client = new Script("client.ts", flags);
  for (let round = 0; round < 10; round++) await client.lines.next();
  first.kill("SIGKILL");
  await first.end();
  await using _second = await Script.server("server.ts", "--port", port, "--quiet");
  // A restart that takes longer than a second is told.
  const mistakes = () => client.errors.all.filter((line) => !line.endsWith(": waiting."));
  assertEquals([await client.end(), mistakes()], [0, []]);
  assertEquals(client.lines.all.length, 40);
});

test(
  { needs: "run" },
  "a connection dropped right after the handshake costs a pause and no round",
  async () => {
    using server = listenRaw();
    await using client = new Script("client.ts", [server.url, "--interval", "0", "--count", "8"]);
    for (let connections = 1; connections <= 16; connections++) {
      using connection = await server.accept();
      await connection.write(await switchProtocols(connection));
      if (connections % 2) continue;
      await connection.read(new Uint8Array(4_096));
      await connection.write(new Uint8Array([0x81, 2, 72, 105, 0x88, 2, 0x03, 0xe8]));
      while (await connection.read(new Uint8Array(4_096)).catch(() => null) !== null);
    }
    // On a busy machine, it takes longer than a second until it is let in, which is told.
    const mistakes = () => client.errors.all.filter((line) => !line.endsWith(": waiting."));
    assertEquals([await client.end(), mistakes()], [0, []]);
    assertEquals(client.lines.all, Array(8).fill("Hi"));
  },
);

test({ needs: "run" }, "a server that closes before it answers ends it, in one line", async () => {
  let rounds = 0;
  await using server = startServer((websocket) => websocket.close(1009, `\x1b ${++rounds}`));
  await using client = new Script("client.ts", [server.url]);
  assertEquals(await client.end(), 1);
  assertEquals(client.errors.all, [
    "The connection is closed: 1009 (message too big) \\u{1b} 1",
  ]);
});

test({ needs: "run" }, "the first message of the server is the answer, every time", async () => {
  await using server = startServer(async (websocket, request) => {
    websocket.send("welcome");
    await echo()(websocket, request);
  });
  await using client = new Script("client.ts", [server.url, "--interval", "0"]);
  assertEquals([await client.end(), client.errors.all], [0, []]);
  assertEquals(client.lines.all, Array(39).fill("welcome"));
});

test({ needs: "run" }, "a text is printed byte for byte where that is no terminal", async () => {
  await using server = startServer(echo());
  const message = "I ❤️ you\ta\x1b";
  const flags = ["--count", "1", "--message", message];
  await using client = new Script("client.ts", [server.url, ...flags]);
  assertEquals([await client.end(), client.lines.all], [0, [message]]);
});

test({ needs: "run" }, "an answer that does not come in time ends it with one line", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  await using client = new Script("client.ts", [server.url, "--timeout", "0.3"]);
  assertEquals(await events.next(), "Hello, I am Deno.");
  assertEquals(await client.end(), 1);
  assertEquals(client.errors.all, ["No answer came in time."]);
  assertEquals(await events.next(), "closed with 1000");
});

test({ needs: "run" }, "Ctrl-C closes the connection with 1000 and exits with 130", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  await using client = new Script("client.ts", [server.url, "--message", "你好"]);
  assertEquals(await events.next(), "你好");
  client.kill("SIGINT");
  assertEquals([await client.end(), client.errors.all], [130, []]);
  assertEquals(await events.next(), "closed with 1000");

  await using echoing = startServer(echo());
  await using pausing = new Script("client.ts", [echoing.url, "--interval", "1000"]);
  await pausing.lines.next();
  pausing.kill("SIGINT");
  assertEquals([await pausing.end(), pausing.errors.all], [130, []]);
});

test(
  { needs: "run" },
  "a mistake in the command line gets one line, the usage and exit code 2",
  async () => {
    const mistakes = [
      "wss://user:secret@localhost:99999",
      "ftp://user:secret@localhost",
      "localhost",
      "ws://user:secret@localhost/#x",
      "--count=0",
      "--interval=x",
      "--timeout=x",
      "--nope",
      "ws://localhost ws://localhost",
    ];
    await Promise.all(mistakes.map(async (mistake) => {
      await using client = new Script("client.ts", mistake.split(" "));
      assertEquals(await client.end(), 2, mistake);
      assertMatch(client.errors.all[1], /^Usage: deno run --allow-net client\.ts/);
      assert(!client.errors.all[0].includes("secret"), client.errors.all[0]);
    }));
    await using client = new Script("client.ts", [], []);
    assertEquals([await client.end(), client.errors.all.length], [1, 1]);
    assertMatch(client.errors.all[0], /net access.*deno run --allow-net client\.ts/);
  },
);

test({ needs: "run" }, "when nobody reads its output any more, it closes and ends", async () => {
  const events = new Inbox<string>();
  await using server = startServer(echo(events));
  await readOneLine(`client.ts ${server.url} --interval 0.01 --count 500`);
  assertEquals(await events.next(), "closed with 1000");
  assert(events.all.length < 500, `${events.all.length} connections`);
});

test({ needs: "run" }, "it ends when it has closed, whatever floods in", async () => {
  using server = listenRaw();
  await using client = new Script("client.ts", [server.url, "--count", "1"]);
  using connection = await server.accept();
  const flood = new Flood(connection, 40_000_000);
  assertEquals([await client.end(), client.lines.all], [0, [""]]);
  await flood.ended;
  assert(!flood.isOver, "the flood was over first");
});
