// What the test command promises, `deno run --allow-net websockets URL`: in a pipe and at a terminal.

import { assert, assertEquals, assertLessOrEqual, assertMatch, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import type { Handler } from "websockets";
import { parseHeaders } from "../websockets/command/command.ts";
import { readMessages, type Separator, show } from "../websockets/command/input_output.ts";
import { eventually, freePort, Inbox, startServer, startServerAt, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { PLAIN, Script } from "./programs.ts";
import {
  echo,
  Flood,
  listen,
  listenRaw,
  readOneLine,
  serveBare,
  switchProtocols,
} from "./peers.ts";

const silent = () => {};

// The command line.

test(
  { needs: "run" },
  "a mistake in the command line gets one line, the usage and exit code 2",
  async () => {
    const mistakes = [
      "wss://user:secret@localhost:99999",
      "ws://user:secret@localhost/#x",
      "ws://user:secret#secret@localhost",
      "ws://user:50%secret@localhost",
      "--timeout=-1",
      "--wait=x",
      "--header=User-Agent: secret",
      "--header=Authorization secret",
      "--header=Host: secret",
      "--origin=a\nb",
      "--subprotocol=two words",
      "--nope",
    ];
    await Promise.all(mistakes.map(async (mistake) => {
      await using command = new Script("websockets", [mistake]);
      assertEquals(await command.end(), 2, mistake);
      assertMatch(command.errors.all[1], /^Usage: deno run --allow-net websockets/);
      assert(!command.errors.all[0].includes("secret"), command.errors.all[0]);
    }));
    await using command = new Script("websockets", [], []);
    assertEquals([await command.end(), command.errors.all.length], [1, 1]);
    assertMatch(command.errors.all[0], /net access.*deno run --allow-net websockets$/);
  },
);

test(
  { needs: "run" },
  "its help has 30 lines of 90 characters at most, and an example of each use",
  async () => {
    await using command = new Script("websockets", ["--help"], []);
    assertEquals([await command.end(), command.errors.all], [0, []]);
    const help = command.lines.all;
    assert(help.length <= 30, `${help.length} lines`);
    for (const line of help) assert(line.length <= 90, line);
    const uses = ["At a terminal", "In a pipe", "As a listener"];
    for (const use of uses) {
      const example = help[help.findIndex((line) => line.startsWith(use)) + 1];
      assertMatch(example, /^ {2}.*deno run --allow-net websockets .*ws:/);
    }
  },
);

test(
  { needs: "run" },
  "a URL without a scheme is ws, and no token of a query or a fragment is printed",
  async () => {
    await using wrong = new Script("websockets", ["http://localhost:1/?a=secret#token=secret"]);
    assertEquals(await wrong.end(), 2);
    assertMatch(wrong.errors.all[0], /^http:\/\/localhost:1\/\?a=…#… is no URL of a server/);

    await using server = startServer(echo());
    const url = `localhost:${server.port}/?token=ws://secret`;
    const { code, errors } = await pipe(url, "", "--wait", "0");
    assertEquals([code, errors[0]], [0, `Connected to ws://localhost:${server.port}/?token=….`]);
  },
);

test({ needs: "run" }, "a timeout may be longer than a timer of the runtime", async () => {
  await using server = startServer(echo());
  const { code, lines } = await pipe(server.url, "a\n", "--timeout", "3000000", "--wait", "0");
  assertEquals([code, lines], [0, ["a"]]);
});

test(
  { needs: "run" },
  "it sends the headers, the origin, the subprotocols and the credentials it is given",
  async () => {
    const requests = new Inbox<Headers>();
    await using server = serveBare((request) => {
      requests.put(new Headers(request.headers));
      const { socket, response } = Deno.upgradeWebSocket(request, { protocol: "chat" });
      socket.onmessage = ({ data }) => socket.send(data);
      return response;
    });
    const url = server.url.replace("//", "//us%20er:p%40ss@");
    const headers = ["--header", "X-One: 1", "--header", "X-Two: a: b", "--origin", "https://a.b"];
    const flags = [...headers, "--subprotocol", "other", "--subprotocol", "chat", "--wait", "0"];
    const { code, errors } = await pipe(url, "a\n", ...flags);
    assertEquals([code, errors[0]], [0, `Connected to ${server.url}, subprotocol chat.`]);
    const sent = await requests.next();
    const names = ["x-one", "x-two", "origin", "sec-websocket-protocol", "authorization"];
    assertEquals(names.map((name) => sent.get(name)), [
      "1",
      "a: b",
      "https://a.b",
      "other, chat",
      `Basic ${btoa("us er:p@ss")}`,
    ]);
  },
);

// In a pipe.

/** Writes all of a program's standard input. The program may have ended without reading it. */
async function writeAll({ stdin }: Script, input: string): Promise<void> {
  const writer = stdin.getWriter();
  await writer.write(new TextEncoder().encode(input)).catch(silent);
  await writer.close().catch(silent);
}

/** Runs the command with this standard input. */
async function pipe(url: string, input: string, ...flags: string[]) {
  await using command = new Script("websockets", [url, ...flags], undefined, "piped");
  await writeAll(command, input);
  const code = await command.end();
  return { code, lines: command.lines.all, errors: command.errors.all };
}

test({ needs: "run" }, "in a pipe it sends each line and prints the answers alone", async () => {
  await using server = startServer(echo());
  // The scheme of a URL may be written in capitals.
  const url = server.url.replace("ws", "WS");
  const { code, lines, errors } = await pipe(url, "a\n\n你好\nno newline", "--wait", "0");
  assertEquals(code, 0);
  assertEquals(errors, [`Connected to ${url}.`, "Connection closed: 1000 (OK)."]);
  assertEquals(lines, ["a", "", "你好", "no newline"]);
});

/** Runs the command as `pipe` does, with bytes in and out. */
async function pipeBytes(url: string, input: Uint8Array, ...flags: string[]) {
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-net", "websockets", url, "--wait", "0", ...flags],
    cwd: new URL("../", import.meta.url),
    env: PLAIN,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = command.stdin.getWriter();
  await writer.write(input as Uint8Array<ArrayBuffer>);
  await writer.close();
  const { code, stdout, stderr } = await within(command.output(), "the command to end");
  return { code, stdout, errors: new TextDecoder().decode(stderr).trim().split("\n") };
}

test({ needs: "run" }, "a pipe gets texts byte for byte", async () => {
  await using server = startServer(echo());
  const input = new TextEncoder().encode('I ❤️ you\t{"a":\t"\x1b\u202e"}\n\ufeff👩‍💻\n');
  const { code, stdout } = await pipeBytes(server.url, input);
  assertEquals([code, stdout], [0, input]);
});

test(
  { needs: "run" },
  "with --binary it sends all bytes as one message, and prints bytes as they are",
  async () => {
    const sizes = new Inbox<unknown>();
    await using server = startServer(async (websocket) => {
      for await (const message of websocket) {
        sizes.put(typeof message === "string" ? message : message.byteLength);
        websocket.send(message);
      }
    });
    const input = Uint8Array.from({ length: 300_000 }, (_, index) => index % 251);
    const { code, stdout } = await pipeBytes(server.url, input, "--binary");
    assertEquals([code, stdout], [0, input]);
    assertEquals(sizes.all, [input.length]);
  },
);

test({ needs: "run" }, "without --binary, binary is printed whole, in hexadecimal", async () => {
  await using server = startServer(async (websocket) => {
    await websocket.receive();
    await websocket.send(new Uint8Array(1_000));
    await websocket.closed;
  });
  const { lines } = await pipe(server.url, "a\n", "--wait", "0");
  assertEquals(lines, [`1000 bytes:${" 00".repeat(1_000)}`]);
});

test({ needs: "run" }, "input that is not UTF-8 is told with its line, and not sent", async () => {
  await using server = startServer(echo());
  const input = new Uint8Array([0x61, 10, 0x62, 10, 0xff, 10, 0x63, 10]);
  const { code, stdout, errors } = await pipeBytes(server.url, input);
  assertEquals([code, new TextDecoder().decode(stdout)], [1, "a\nb\n"]);
  assertEquals(
    errors.at(-1),
    "Line 3 of standard input is not UTF-8: --binary sends any bytes.",
  );
  const last = await pipeBytes(server.url, new Uint8Array([0x61, 0, 0xe4]), "--null");
  assertMatch(last.errors.at(-1) ?? "", /^Message 2 of standard input/);
});

test(
  { needs: "run" },
  "with --null a message may have several lines, and an answer too",
  async () => {
    const received: unknown[] = [];
    await using server = startServer(async (websocket) => {
      for await (const message of websocket) {
        received.push(message);
        websocket.send(`got\n${message}`);
      }
    });
    const input = new TextEncoder().encode("a\nb\r\0\0c");
    const { code, stdout } = await pipeBytes(server.url, input, "--null");
    assertEquals([code, received], [0, ["a\nb\r", "", "c"]]);
    assertEquals(new TextDecoder().decode(stdout), "got\na\nb\r\0got\n\0got\nc\0");
  },
);

test({ needs: "run" }, "a pipe may be long, and nothing of it is lost or cut", async () => {
  await using server = startServer(echo());
  const input = Array.from({ length: 3_000 }, (_, index) => `${index} ${"x".repeat(1_000)}`);
  const { code, lines } = await pipe(server.url, input.join("\n"), "--wait", "0");
  assertEquals(code, 0);
  assertEquals(lines, input);
});

test(
  { needs: "run" },
  "answers that do not come are counted, in one line and exit code 1",
  async () => {
    await using server = startServer(listen(new Inbox()));
    // The handshake has this time as well.
    const { code, lines, errors } = await pipe(server.url, "a\nb\n", "--timeout", "2");
    assertEquals([code, lines], [1, []]);
    assertEquals(errors.slice(1), [
      "Connection closed: 1000 (OK).",
      "Messages without an answer: 2.",
    ]);
  },
);

test(
  { needs: "run" },
  "when the server closes, it says why and ends, whatever comes through the pipe",
  async () => {
    for (
      const [close, text, expected] of [
        [1000, "", 0],
        [1001, "going away", 1],
        [1008, "policy violation", 1],
        [1009, "message too big", 1],
        [1011, "internal error", 1],
        [1012, "service restart", 1],
        [4000, "private use", 1],
      ] as const
    ) {
      await using server = startServer((websocket) => websocket.close(close, "be\x1b\u202egone"));
      await using command = new Script("websockets", [server.url], undefined, "piped");
      assertEquals(await command.end(), expected);
      assertMatch(
        command.errors.all[1],
        /^Connection closed: \d{4} \(.+\) be\\u{1b}\\u{202e}gone\.$/,
      );
      assert(command.errors.all[1].includes(`${close} (${text}`), command.errors.all[1]);
      await command.stdin.close().catch(silent);
    }
  },
);

test({ needs: "run" }, "a Close frame without a code is a normal end", async () => {
  using server = listenRaw();
  await using command = new Script("websockets", [server.url], undefined, "piped");
  using connection = await server.accept();
  await connection.write(await switchProtocols(connection));
  await connection.write(Uint8Array.of(0x88, 0));
  assertEquals(await command.end(), 0);
  assertEquals(command.errors.all[1], "Connection closed: 1005 (no status received).");
  await command.stdin.close().catch(silent);
});

test({ needs: "run" }, "a server may go away when it has answered all", async () => {
  await using server = startServer(async (websocket) => {
    await websocket.send(`${await websocket.receive()}!`);
    await delay(50);
    await websocket.close(1001);
  });
  const { code, lines, errors } = await pipe(server.url, "a\n", "--wait", "60");
  assertEquals([code, lines, errors[1]], [0, ["a!"], "Connection closed: 1001 (going away)."]);
});

test({ needs: "run" }, "a reason that ends with a full stop gets no second one", async () => {
  await using server = startServer((websocket) => websocket.close(1009, "Larger than 9 bytes."));
  const { errors } = await pipe(server.url, "");
  assertEquals(errors[1], "Connection closed: 1009 (message too big) Larger than 9 bytes.");
});

test({ needs: "run" }, "without a server it says so in one line and exits with 1", async () => {
  const { code, errors } = await pipe("ws://localhost:1", "a\n");
  assertEquals([code, errors.length], [1, 1]);
  assertMatch(errors[0], /^No connection to ws:\/\/localhost:1 /);
});

test(
  { needs: "run" },
  "a greeting is printed and is no answer, in every run",
  async () => {
    await using server = startServer(async (websocket, request) => {
      websocket.send("welcome");
      await echo()(websocket, request);
    });
    const runs = Array.from({ length: 5 }, () => pipe(server.url, "a\nb\n"));
    for (const { code, lines } of await Promise.all(runs)) {
      assertEquals([code, lines], [0, ["welcome", "a", "b"]]);
    }
  },
);

/** A handler of a room where something is said all the time, beside the answers. */
const tick: Handler = async (websocket) => {
  let count = 0;
  const timer = setInterval(() => websocket.send(`tick ${++count}`), 50);
  websocket.signal.addEventListener("abort", () => clearInterval(timer));
  await websocket.receive();
  await websocket.closed;
};

test(
  { needs: "run" },
  "it stays for a second after the last answer that was due, whatever else arrives",
  async () => {
    await using server = startServer(tick);
    const { code, lines } = await pipe(server.url, "a\n");
    assertEquals(code, 0);
    assert(lines.length > 1, `${lines.length} messages`);
  },
);

test({ needs: "run" }, "without input it listens for as long as --wait says", async () => {
  let sent = 0;
  await using server = startServer(async (websocket) => {
    let isOpen = true;
    websocket.closed.then(() => isOpen = false);
    while (isOpen) {
      await delay(20);
      websocket.send(`${++sent}`);
    }
  });
  const { code, lines } = await pipe(server.url, "", "--wait", "1");
  assertEquals(code, 0);
  assert(lines.length > 5, `${lines.length} messages`);
});

test(
  { needs: "run" },
  "Ctrl-C ends it while the server does not read, and does not answer the Close frame either",
  async () => {
    using server = listenRaw();
    await using command = new Script("websockets", [server.url], undefined, "piped");
    using connection = await server.accept();
    await connection.write(await switchProtocols(connection));
    await command.errors.next((line) => line.startsWith("Connected"));
    // More than fits into what the command and the system keep of it.
    const writer = command.stdin.getWriter();
    const written = writer.write(new TextEncoder().encode(`${"x".repeat(99_999)}\n`.repeat(200)));
    const isWritten = await Promise.race([written.then(() => true), delay(500).then(() => false)]);
    assert(!isWritten, "the command takes everything");
    command.kill("SIGINT");
    assertEquals(await command.end(), 130);
    // It does not wait for the other Close frame, and so does not know how this ends.
    assertEquals(command.errors.all.length, 1);
    await written.catch(silent);
    await writer.close().catch(silent);
  },
);

test({ needs: "run" }, "when nobody reads its output any more, it closes and ends", async () => {
  const events = new Inbox<string>();
  await using server = startServer(echo(events));
  await readOneLine(`websockets ${server.url}`, `yes ${"x".repeat(999)} |`);
  assertEquals(await events.next(), "closed with 1000");
});

test(
  { needs: "run" },
  "a server that drops the connection right after the handshake ends it, in every run",
  async () => {
    using server = listenRaw();
    for (let run = 0; run < 5; run++) {
      await using command = new Script("websockets", [server.url], undefined, "piped");
      const connection = await server.accept();
      await connection.write(await switchProtocols(connection));
      connection.close();
      assertEquals(await command.end(), 1);
      assertMatch(command.errors.all.at(-1) ?? "", /^Connection closed: 1006 /);
      await command.stdin.close().catch(silent);
    }
  },
);

test({ needs: "run" }, "with --no-wait no answer is due, and all is sent", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  const { code, errors } = await pipe(server.url, "a\nb\n", "--no-wait");
  assertEquals([code, errors.at(-1)], [0, "Connection closed: 1000 (OK)."]);
  for (const event of ["a", "b", "closed with 1000"]) assertEquals(await events.next(), event);
});

test({ needs: "run" }, "with --count it ends well after so many messages", async () => {
  await using server = startServer(tick);
  const { code, lines } = await pipe(server.url, "", "--count", "3");
  assertEquals([code, lines], [0, ["tick 1", "tick 2", "tick 3"]]);

  await using short = startServer((websocket) => websocket.send("only one"));
  const { code: failed, errors } = await pipe(short.url, "", "--count", "2");
  assertEquals([failed, errors.at(-1)], [1, "Messages that came: 1 of 2."]);
});

test({ needs: "run" }, "with --time the time stands before each line", async () => {
  await using server = startServer(echo());
  const { lines, errors } = await pipe(server.url, "a\nb\n", "--time", "--wait", "0");
  const time = /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} /;
  for (const line of [...lines, ...errors]) assertMatch(line, time);
  assertEquals(lines.map((line) => line.replace(time, "")), ["a", "b"]);
});

// As a listener.

test(
  { needs: "run" },
  "each --message is sent on every connection, and the listener survives restarts",
  async () => {
    const port = freePort();
    const flags = ["--message", "subscribe red", "--message", "subscribe blue"];
    // A server that was never there is not waited for.
    await using early = new Script("websockets", [`ws://localhost:${port}`, ...flags]);
    assertEquals(await early.end(), 1);

    let first = await startServerAt(port, echo());
    // It has no input.
    await using listener = new Script("websockets", [first.url, ...flags]);
    for (let run = 0; run < 3; run++) {
      for (const line of ["subscribe red", "subscribe blue"]) {
        assertEquals(await listener.lines.next(), line);
      }
      await first[Symbol.asyncDispose]();
      await listener.errors.next((line) => line.endsWith("Connecting again …"));
      first = await startServerAt(port, echo());
    }
    assertEquals(await listener.lines.next(), "subscribe red");
    listener.kill("SIGTERM");
    assertEquals(await listener.end(), 143);
    await first[Symbol.asyncDispose]();
  },
);

test({ needs: "run" }, "with --no-reconnect a --message is sent once", async () => {
  await using server = startServer(async (websocket) => {
    await websocket.send(`${await websocket.receive()}!`);
    websocket.close(1012);
  });
  const { code, lines } = await pipe(server.url, "", "--message", "a", "--no-reconnect");
  assertEquals([code, lines], [1, ["a!"]]);
});

test(
  { needs: "run" },
  "with --reconnect a line goes to the server that is there then",
  async () => {
    const port = freePort();
    const first = await startServerAt(port, echo());
    await using command = new Script("websockets", [first.url, "--reconnect"], undefined, "piped");
    await command.errors.next((line) => line.startsWith("Connected"));
    const writer = command.stdin.getWriter();
    const type = (line: string) => writer.write(new TextEncoder().encode(`${line}\n`));
    await type("to the first");
    assertEquals(await command.lines.next(), "to the first");
    await first[Symbol.asyncDispose]();
    await command.errors.next((line) => line.endsWith("Connecting again …"));
    await type("to the second");
    await writer.close();
    await using _second = await startServerAt(port, echo());
    assertEquals(await command.lines.next(), "to the second");
    assertEquals(await command.end(), 0);
  },
);

test(
  { needs: "linux" },
  "with --idle a server that has fallen silent is lost, and found again",
  async () => {
    const port = `${freePort()}`;
    const first = await Script.server("broadcast_server.ts", "--port", port);
    const flags = [first.url, "--reconnect", "--idle", "1"];
    await using command = new Script("websockets", flags);
    await command.errors.next((line) => line.startsWith("Connected"));
    await first.pause();
    await command.errors.next((line) =>
      line === "Connection closed: 1006 (connection closed abnormally) " +
          "Nothing has come for 1 s. Connecting again …"
    );
    await first[Symbol.asyncDispose]();
    await using _second = await Script.server("broadcast_server.ts", "--port", port);
    await command.errors.next((line) => line.startsWith("Connected"));
    command.kill("SIGINT");
    assertEquals(await command.end(), 130);
  },
);

test({ needs: "run" }, "Ctrl-C ends it at once in a pipe too, whatever floods in", async () => {
  using server = listenRaw();
  await using command = new Script("websockets", [server.url], undefined, "piped");
  using connection = await server.accept();
  const flood = new Flood(connection, 12_000_000);
  await eventually(() => assertLessOrEqual(1_000_000, flood.sent));
  command.kill("SIGINT");
  assertEquals(await command.end(), 130);
  await flood.ended;
  assert(!flood.isOver, "the flood was over first");
  await command.stdin.close().catch(silent);
});

// What needs no permission.

Deno.test("a header is a name, a colon and a value", () => {
  const headers = parseHeaders([
    "Cookie: a=b; c=d",
    "cookie: e=f ",
    "X-Url:ws://host:80/",
    "X-Many: 1",
    "X-Many: 2",
    "X-Empty:",
  ]);
  assertEquals([...headers], [
    ["cookie", "a=b; c=d; e=f"],
    ["x-empty", ""],
    ["x-many", "1, 2"],
    ["x-url", "ws://host:80/"],
  ]);
});

Deno.test("a header that can't be sent is refused, and its value is not shown", () => {
  const wrong = ["secret", ": secret", "two words: secret", "A: secret\nB: c", "A: 秘密 secret"];
  for (
    const line of [...wrong, "Host: secret", "sec-websocket-key: secret", "User-Agent: secret"]
  ) {
    const { message } = assertThrows(() => parseHeaders([line]), Error);
    assert(!message.includes("secret"), message);
  }
});

/** The messages that come out of a pipe that brings these pieces. */
async function messagesOf(separator: Separator, ...pieces: string[]) {
  const bytes = new TextEncoder().encode(pieces.join(""));
  // A piece may end anywhere, also within a character.
  const chunks = pieces.length > 1 ? [...bytes].map((byte) => Uint8Array.of(byte)) : [bytes];
  return await Array.fromAsync(readMessages(ReadableStream.from(chunks), separator));
}

Deno.test("a line ends with LF or CR LF, and nothing else is taken away from it", async () => {
  assertEquals(await messagesOf("\n", "a\r\n\n\ufeffb\u2028c\rd \n\te"), [
    "a",
    "",
    "\ufeffb\u2028c\rd ",
    "\te",
  ]);
  assertEquals(await messagesOf("\n", "\ufeffa\n"), ["\ufeffa"]);
  assertEquals(await messagesOf("\n", "你", "好\r", "\nx"), ["你好", "x"]);
  assertEquals(await messagesOf("\n", ""), []);
});

Deno.test("binary is shown as a line of hexadecimal", () => {
  assertEquals(show(new Uint8Array([0, 15, 255]).buffer), "3 bytes: 00 0f ff");
});
