// What client.ts promises: the loop, and the interactive client in a pipe and at a terminal.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { describeClose, show } from "../client.ts";
import { echo } from "../server.ts";
import type { Handler } from "../websockets.ts";
import { Inbox, Script, startServer, test, within } from "./helpers.ts";

const silent = () => {};
const ANSWER = /^Data received as "Hello, I am Deno\."\. {2}time: [-\d]{10} [:\d]{8}\.\d{6}$/;

/** A handler that does not answer but tells what it hears, and how its clients leave. */
function listen(events: Inbox<string>): Handler {
  return {
    message: (_socket, data) => events.put(String(data)),
    close: (_socket, { code }) => events.put(`closed with ${code}`),
  };
}

// The loop.

test(
  { needs: "run" },
  "it runs 39 rounds, each a connection of its own that it closes with 1000",
  async () => {
    const closes = new Inbox<number>();
    const handler = {
      ...echo(silent),
      close: (_: WebSocket, { code }: CloseEvent) => closes.put(code),
    };
    await using server = startServer(handler);
    await using client = new Script("client.ts", [server.url, "--interval", "0"]);
    assertEquals([await client.end(), client.errors.all], [0, []]);
    assertEquals(client.lines.all.length, 39);
    for (const line of client.lines.all) assertMatch(line, ANSWER);
    assertEquals(closes.all, Array(39).fill(1000));
  },
);

test({ needs: "run" }, "a server restarted in the middle costs a pause and no round", async () => {
  const first = await Script.server("server.ts", "--quiet");
  const { port } = new URL(first.url);
  const flags = [`ws://localhost:${port}`, "--count", "40", "--interval", "0.02"];
  await using client = new Script("client.ts", flags);
  for (let round = 0; round < 10; round++) await client.lines.next();
  first.kill("SIGKILL");
  await first.end();
  await using _second = await Script.server("server.ts", "--port", port, "--quiet");
  assertEquals([await client.end(), client.errors.all], [0, []]);
  assertEquals(client.lines.all.length, 40);
});

test(
  { needs: "run" },
  "a server that stays away ends it with one line that says what to start",
  async () => {
    await using client = new Script("client.ts", ["ws://localhost:1/x"]);
    assertEquals(await client.end(), 1);
    assertEquals(client.errors.all.length, 1);
    assertMatch(
      client.errors.all[0],
      /^No connection to ws:\/\/localhost:1\/x .*run .*server\.ts$/,
    );
  },
);

test({ needs: "run" }, "an answer that does not come in time ends it with one line", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  await using client = new Script("client.ts", [server.url, "--timeout", "0.2"]);
  assertEquals(await client.end(), 1);
  assertEquals(client.errors.all, [`No answer from ${server.url} within 0.2 s.`]);
  assertEquals(events.all, ["Hello, I am Deno.", "closed with 1000"]);
});

test({ needs: "run" }, "Ctrl-C closes the connection with 1000 and exits with 130", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  await using client = new Script("client.ts", [server.url, "--message", "你好"]);
  assertEquals(await events.next(), "你好");
  client.kill("SIGINT");
  assertEquals([await client.end(), client.errors.all], [130, []]);
  assertEquals(await events.next(), "closed with 1000");

  await using echoing = startServer(echo(silent));
  await using pausing = new Script("client.ts", [echoing.url, "--interval", "1000"]);
  await pausing.lines.next();
  pausing.kill("SIGINT");
  assertEquals([await pausing.end(), pausing.errors.all], [130, []]);
});

test(
  { needs: "run" },
  "a mistake in the command line gets one line, the usage and exit code 2",
  async () => {
    const mistakes = ["http://localhost", "--count=0", "--interval=x", "--timeout=-1", "--nope"];
    for (const mistake of mistakes) {
      await using client = new Script("client.ts", [mistake]);
      assertEquals(await client.end(), 2, mistake);
      assertMatch(client.errors.all[1], /^Usage: deno run --allow-net client\.ts/);
    }
    await using client = new Script("client.ts", [], []);
    assertEquals([await client.end(), client.errors.all.length], [1, 1]);
    assertMatch(client.errors.all[0], /net access.*deno run --allow-net client\.ts/);
  },
);

// The interactive client in a pipe.

/** Runs `client.ts --interactive` with this standard input. */
async function pipe(url: string, input: string, ...flags: string[]) {
  await using client = new Script("client.ts", ["-i", url, ...flags], undefined, "piped");
  const writer = client.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input)).catch(silent);
  await writer.close().catch(silent);
  const code = await client.end();
  return { code, lines: client.lines.all, errors: client.errors.all };
}

test({ needs: "run" }, "in a pipe it sends each line and prints the answers alone", async () => {
  await using server = startServer(echo(silent));
  const { code, lines, errors } = await pipe(server.url, "a\n\n你好\nno newline");
  assertEquals(code, 0);
  assertEquals(errors, [`Connected to ${server.url}.`, "Connection closed: 1000 (OK)."]);
  const sent = lines.map((line) => line.match(/^Data received as "(.*)"\. {2}time: /)?.[1]);
  assertEquals(sent, ["a", "", "你好", "no newline"]);
});

test({ needs: "run" }, "a pipe may be long, and nothing of it is lost or cut", async () => {
  await using server = startServer({ message: (socket, data) => socket.send(data) });
  const input = Array.from({ length: 3_000 }, (_, index) => `${index} ${"x".repeat(1_000)}`);
  const { code, lines } = await pipe(server.url, input.join("\n"));
  assertEquals(code, 0);
  assertEquals(lines, input);
});

test(
  { needs: "run" },
  "answers that do not come are counted, in one line and exit code 1",
  async () => {
    await using server = startServer(listen(new Inbox()));
    const { code, lines, errors } = await pipe(server.url, "a\nb\n", "--timeout", "0.2");
    assertEquals([code, lines], [1, []]);
    assertEquals(errors.slice(1), [
      "Connection closed: 1000 (OK).",
      "2 messages were not answered.",
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
        [1001, "", 0],
        [1008, "policy violation", 1],
        [1009, "message too big", 1],
        [1011, "internal error", 1],
        [4000, "private use", 1],
      ] as const
    ) {
      const handler: Handler = {
        open: (socket) => socket.close(close, "be\x1b\u202egone"),
        message: silent,
      };
      await using server = startServer(handler);
      await using client = new Script("client.ts", ["-i", server.url], undefined, "piped");
      assertEquals(await client.end(), expected);
      assertMatch(
        client.errors.all[1],
        /^Connection closed: \d{4} \(.+\) be\\u{1b}\\u{202e}gone\.$/,
      );
      assertStringIncludes(client.errors.all[1], `${close} (${text}`);
      await client.stdin.close().catch(silent);
    }
  },
);

test({ needs: "run" }, "without a server it says so in one line and exits with 1", async () => {
  const { code, errors } = await pipe("ws://localhost:1", "a\n");
  assertEquals([code, errors.length], [1, 1]);
  assertMatch(errors[0], /^No connection to ws:\/\/localhost:1 /);
});

test(
  { needs: "run" },
  "a server that does not answer the Close frame is waited for, but not for long",
  async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const url = `ws://127.0.0.1:${listener.addr.port}`;
    const piped = pipe(url, "");
    using connection = await listener.accept();
    const request = new Uint8Array(4_096);
    const head = new TextDecoder().decode(request.subarray(0, await connection.read(request) ?? 0));
    const key = head.match(/sec-websocket-key: (.*)\r\n/i)?.[1];
    // RFC 6455 section 1.3 has this constant, and how the key is answered.
    const answered = new TextEncoder().encode(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`);
    const accept = new Uint8Array(await crypto.subtle.digest("SHA-1", answered)).toBase64();
    const lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"];
    lines.push(`Sec-WebSocket-Accept: ${accept}`, "", "");
    await connection.write(new TextEncoder().encode(lines.join("\r\n")));
    const { code, errors } = await piped;
    assertEquals(code, 1);
    assertEquals(errors[1], "Connection closed: 1006 (connection closed abnormally).");
  },
);

// The interactive client at a terminal.

/** A pseudo-terminal of 40 columns, with all that the client wrote to it. */
class Terminal implements AsyncDisposable {
  screen = "";
  readonly #process: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #changes = new Inbox<void>();
  readonly #read: Promise<void>;

  constructor(url: string) {
    const command =
      `stty cols 40 rows 20; exec "${Deno.execPath()}" run --allow-net client.ts -i ${url}`;
    this.#process = new Deno.Command("script", {
      args: ["-qec", command, "/dev/null"],
      cwd: new URL("../", import.meta.url),
      env: { NO_COLOR: "1", TERM: "xterm" },
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#writer = this.#process.stdin.getWriter();
    this.#read = this.#readAll();
  }

  async #readAll() {
    for await (const text of this.#process.stdout.pipeThrough(new TextDecoderStream())) {
      this.screen += text;
      this.#changes.put();
    }
  }

  async type(keys: string) {
    await this.#writer.write(new TextEncoder().encode(keys));
  }

  /** Waits for `text` to be written, and takes all up to its end. */
  async shows(text: string): Promise<string> {
    while (!this.screen.includes(text)) {
      await this.#changes.next(
        undefined,
        `${JSON.stringify(text)} in ${JSON.stringify(this.screen)}`,
      );
    }
    const end = this.screen.indexOf(text) + text.length;
    const taken = this.screen.slice(0, end);
    this.screen = this.screen.slice(end);
    return taken;
  }

  async end(): Promise<number> {
    const { code } = await within(this.#process.status, "the client to end");
    await this.#read;
    return code;
  }

  async [Symbol.asyncDispose]() {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await this.end();
    await this.#writer.close().catch(silent);
  }
}

test(
  { needs: "run" },
  "at a terminal it writes the article's transcript, and Ctrl-D closes with 1000",
  async () => {
    const events = new Inbox<string>();
    await using server = startServer({ ...listen(events), message: echo(silent).message });
    await using terminal = new Terminal(server.url);
    await terminal.shows(`Connected to ${server.url}.\r\n`);
    await terminal.shows("> ");
    await terminal.type("hello, world\r");
    await terminal.shows(`< Data received as "hello, world".  time: `);
    await terminal.shows("> ");
    await terminal.type("\x04");
    await terminal.shows("Connection closed: 1000 (OK).\r\n");
    assertEquals([await terminal.end(), await events.next()], [0, "closed with 1000"]);
  },
);

test({ needs: "run" }, "Ctrl-C at a terminal closes with 1000 as well", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  await using terminal = new Terminal(server.url);
  await terminal.shows("> ");
  await terminal.type("half a line\x03");
  await terminal.shows("Connection closed: 1000 (OK).");
  assertEquals([await terminal.end(), await events.next()], [0, "closed with 1000"]);
});

test(
  { needs: "run" },
  "what arrives is shown above the line being typed, which is kept",
  async () => {
    const sockets: WebSocket[] = [];
    const events = new Inbox<string>();
    await using server = startServer({
      ...listen(events),
      open: (socket) => void sockets.push(socket),
    });
    for (
      const typed of ["half a li", "a line so long that at forty columns it takes several rows"]
    ) {
      await using terminal = new Terminal(server.url);
      await terminal.shows("> ");
      await terminal.type(typed);
      await terminal.shows(typed.slice(-3));
      sockets.at(-1)?.send("news \x1b[31m\u202e");
      await terminal.shows("\x1b[0J< news \\u{1b}[31m\\u{202e}\r\n");
      // The line is written again below the news; two keys to the left, one more is typed.
      await terminal.shows(typed.slice(-3));
      await terminal.type("\x1b[D\x1b[D");
      await terminal.type("X\r");
      assertEquals(await events.next(), `${typed.slice(0, -2)}X${typed.slice(-2)}`);
      // The history has the line.
      await terminal.type("\x1b[A\r");
      assertEquals(await events.next(), `${typed.slice(0, -2)}X${typed.slice(-2)}`);
      await terminal.type("\x04");
      assertEquals([await terminal.end(), await events.next()], [0, "closed with 1000"]);
    }
  },
);

test(
  { needs: "run" },
  "at a terminal too, the server's close ends it, with its code and name",
  async () => {
    await using server = startServer({ message: (socket) => socket.close(1009, "too much") });
    await using terminal = new Terminal(server.url);
    await terminal.shows("> ");
    await terminal.type("hello\r");
    await terminal.shows("Connection closed: 1009 (message too big) too much.");
    assertEquals(await terminal.end(), 1);
  },
);

Deno.test("binary is shown as a line of hexadecimal, cut when long", () => {
  assertEquals(show(new Uint8Array([0, 15, 255]).buffer), "3 bytes: 00 0f ff");
  assertMatch(show(new Uint8Array(1_000).buffer), /^1000 bytes: (00 ){24}…$/);
  assert(show("x".repeat(10_000)).length < 300);
});

Deno.test("a close code is told with its standard name", () => {
  const told = (code: number, reason = "") =>
    describeClose(new CloseEvent("close", { code, reason }));
  assertEquals(told(1000), "1000 (OK)");
  assertEquals(told(1001, "bye"), "1001 (going away) bye");
  assertEquals(told(0), "1006 (connection closed abnormally)");
  assertEquals([told(3000), told(4999), told(1004)], [
    "3000 (registered)",
    "4999 (private use)",
    "1004 (unknown)",
  ]);
});
