// What server.ts promises to those who run it and those who connect to it.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { delay } from "@std/async";
import { handler } from "../server.ts";
import { startServer, TestClient } from "./helpers.ts";
import { test } from "./needs.ts";
import { certify, Script } from "./programs.ts";
import { ask, frame, handshake, RawClient } from "./raw.ts";

const TEXT = 1;
const REPLY = /^Data received as "hello"\. {2}time: (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6})$/;

/** Whether this machine has an address: not every container has IPv6. */
async function canListen(hostname: string): Promise<boolean> {
  try {
    await using _listener = Deno.listen({ hostname, port: 0 });
    return true;
  } catch {
    return false;
  }
}

test(
  { needs: "net" },
  "the article's handshake gets the accept key that the article shows",
  async () => {
    await using server = startServer(handler);
    const { status, head } = await ask(server.port, handshake());
    assertEquals(status, 101);
    assertStringIncludes(head, "sec-websocket-accept: 0ffp+2nmnif/h+4bp36k9uzrygk=");
  },
);

test(
  { needs: "net" },
  "text comes back in the article's sentence, whose time goes on",
  async () => {
    await using server = startServer(handler);
    await using client = await TestClient.open(server.url);
    const times = [];
    for (let count = 0; count < 2; count++) {
      if (count > 0) await delay(5);
      client.send("hello");
      const reply = String(await client.next());
      assertMatch(reply, REPLY);
      times.push(reply.match(REPLY)?.[1] ?? "");
    }
    assert(times[0] !== times[1], `${times}`);
  },
);

test(
  { needs: "net" },
  "text of every script, also an empty text, comes back unchanged",
  async () => {
    await using server = startServer(handler);
    await using client = await TestClient.open(server.url);
    for (const text of ["", "你好，世界", "👩‍👩‍👧 e\u0301", '"quoted" \\ \n', "\u0000"]) {
      client.send(text);
      assertStringIncludes(String(await client.next()), `Data received as "${text}".  time: `);
    }
  },
);

test(
  { needs: "net" },
  "binary comes back byte for byte, from nothing to the largest message",
  async () => {
    await using server = startServer(handler);
    await using client = await TestClient.open(server.url);
    for (const size of [0, 1, 125, 126, 65_535, 65_536, 1024 * 1024]) {
      const data = new Uint8Array(size).map((_, index) => index * 31 % 251);
      client.send(data);
      assertEquals(new Uint8Array(await client.next() as ArrayBuffer), data);
    }
  },
);

test({ needs: "net" }, "any path will do, with any query", async () => {
  await using server = startServer(handler);
  for (const path of ["/handler", "/a/b?c=d", "/%E4%BD%A0"]) {
    await using client = await TestClient.open(server.url + path);
    client.send("hello");
    assertMatch(String(await client.next()), REPLY);
  }
});

test({ needs: "run" }, "A request is no handshake: GET / gets the page, others 426", async () => {
  await using server = await Script.server("server.ts");
  const page = await Deno.readTextFile(new URL("../client.html", import.meta.url)).catch(() => "");
  const root = server.url.replace("ws:", "http:") + "/";
  const got = await fetch(root);
  assertEquals(got.headers.get("content-type"), "text/html; charset=utf-8");
  const policy = got.headers.get("content-security-policy") ?? "";
  const html = await got.text();
  assertStringIncludes(`${policy};`, "frame-ancestors 'none';");
  const rest = policy.replace("frame-ancestors 'none'; ", "");
  if (page) assertStringIncludes(html, `content="${rest}"`);
  assertMatch(html, /^<!doctype html>/i);
  if (page) assertEquals(html, page);
  const head = await fetch(root, { method: "HEAD" });
  assertEquals([head.status, await head.text()], [200, ""]);
  for (const [method, path] of [["GET", "handler"], ["POST", ""], ["PUT", ""]]) {
    const response = await fetch(root + path, { method });
    await response.body?.cancel();
    assertEquals([response.status, response.headers.get("upgrade")], [426, "websocket"]);
  }
});

test({ needs: "run" }, "its first line is its real URL, and SIGTERM ends it with 0", async () => {
  await using server = await Script.server("server.ts");
  const port = new URL(server.url).port;
  assert(port !== "0" && port !== "9999");
  assertEquals(
    server.lines.all[0],
    `Echo server on ws://localhost:${port}, page at http://localhost:${port}/`,
  );
  server.kill();
  assertEquals(await server.end(), 0);
  assertEquals(server.errors.all, []);
});

test({ needs: "run" }, "the URL that it prints can be opened, whatever the --host", async () => {
  const hasIPv6 = await canListen("::1");
  for (const [host, name] of [["0.0.0.0", "localhost"], ["127.0.0.1"], ["::1"], ["[::1]"]]) {
    if (host.includes(":") && !hasIPv6) continue;
    await using server = await Script.server("server.ts", "--host", host);
    assertEquals(new URL(server.url).hostname, name ?? (host.includes(":") ? "[::1]" : host));
    await using client = await TestClient.open(server.url);
    client.send("hello");
    assertMatch(String(await client.next()), REPLY);
  }
});

test(
  { needs: "run" },
  "it prints each reply and `Send reply`, and neither with --quiet",
  async () => {
    for (const flags of [[], ["--quiet"]]) {
      await using server = await Script.server("server.ts", ...flags);
      await using client = await TestClient.open(server.url);
      client.send("hello");
      const reply = String(await client.next());
      client.send(new Uint8Array(5));
      await client.next();
      await client.close();
      server.kill();
      await server.end();
      const expected = [reply, "Send reply", "5 bytes of binary.", "Send reply"];
      assertEquals(server.lines.all.slice(1), flags.length ? [] : expected);
    }
  },
);

test({ needs: "run" }, "--once answers one message and closes with 1000", async () => {
  await using server = await Script.server("server.ts", "--once");
  for (let connections = 0; connections < 2; connections++) {
    using client = await RawClient.upgraded(Number(new URL(server.url).port));
    await client.write(new Uint8Array([...frame(TEXT, "hello"), ...frame(TEXT, "not answered")]));
    const reply = `Data received as "hello".  time: 2026-11-23 09:24:14.787357`;
    assertEquals(await client.readClose(), { code: 1000, reason: "", before: 2 + reply.length });
  }
});

test(
  { needs: "run" },
  "no peer can make it print what acts on a terminal or fills it",
  async () => {
    await using server = await Script.server("server.ts");
    await using client = await TestClient.open(server.url);
    client.send("\x1b[31m\r\n\u202e\u200b\u{e0041}\x07" + "x".repeat(1_000_000));
    await client.next();
    const line = await server.lines.next();
    assertStringIncludes(line, String.raw`\u{1b}[31m\u{d}\u{a}\u{202e}\u{200b}\u{e0041}\u{7}xxx`);
    assert(line.length < 400, `a line of ${line.length} characters`);
  },
);

test(
  { needs: "run" },
  "a mistake gets one clear line and exit code 1, a wrong flag 2 and the usage",
  async () => {
    await using other = startServer(handler);
    const taken = `${other.port}`;
    const cases: [string[], number, RegExp, string[]?][] = [
      [["--port", taken], 1, new RegExp(`^Port ${taken} is taken: .* --port\\.$`)],
      [["--host", "host.invalid"], 1, /^host\.invalid is no address of this machine: .* --host\.$/],
      [["--host", "192.0.2.1"], 1, /^192\.0\.2\.1 is no address of this machine: .* --host\.$/],
      [[], 1, /net access.*--allow-net flag: deno run --allow-net server\.ts$/, []],
      [["--port", "70000"], 2, /^--port takes a whole number from 0 to 65535, not "70000"\.$/],
      [["--origin", "https://*.example.com"], 2, /^--origin takes .*, not "https:\/\/\*\.example/],
      [["--origin", "wss://x"], 2, /^--origin takes .*, not "wss:\/\/x"\.$/],
      [["--no-such-flag"], 2, /--no-such-flag/],
      [["surplus"], 2, /surplus/],
    ];
    await Promise.all(cases.map(async ([flags, code, line, permissions]) => {
      await using script = new Script("server.ts", flags, permissions);
      assertEquals(await script.end(), code, flags.join(" "));
      const [first, ...others] = script.errors.all;
      assertMatch(first, line);
      assertEquals(others.some((each) => each.startsWith("Usage:")), code === 2, flags.join(" "));
      assertEquals([others.length > 0, script.lines.all], [code === 2, []], flags.join(" "));
    }));
  },
);

test(
  { needs: "run" },
  "with a certificate it speaks wss, and serves the page over https",
  async () => {
    const folder = await Deno.makeTempDir();
    try {
      const { cert, key } = await certify(folder, "DNS:localhost");
      const flags = ["--port", "0", "--cert", cert, "--key", key];
      await using server = new Script("server.ts", flags, ["--allow-net", "--allow-read"]);
      const line = await server.lines.next();
      assertMatch(
        line,
        /^Echo server on wss:\/\/localhost:\d+, page at https:\/\/localhost:\d+\/$/,
      );
      const url = line.match(/wss:[^,]+/)?.[0] ?? "";
      const trust = ["--allow-net", `--cert=${cert}`];
      await using client = new Script("client.ts", [url, "--count", "1"], trust);
      assertEquals([await client.end(), client.errors.all], [0, []]);
      assertMatch(client.lines.all[0], /^Data received as "Hello, I am Deno\."/);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

test(
  { needs: "net" },
  "a client that leaves in the middle of a frame troubles nobody",
  async () => {
    await using server = startServer(handler);
    using raw = await RawClient.upgraded(server.port);
    await raw.write(new Uint8Array([0x82, 0xfe, 0x10]));
    raw.connection.close();
    await using client = await TestClient.open(server.url);
    client.send("hello");
    assertMatch(String(await client.next()), REPLY);
  },
);
