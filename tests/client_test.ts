// What client.ts promises: the loop, and the interactive client in a pipe and at a terminal.

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import {
  type ClientOptions,
  connect,
  ConnectionError,
  describeClose,
  handshakeError,
  isLost,
  loop,
  parseHeaders,
  readLines,
  show,
  withoutCredentials,
} from "../client.ts";
import type { Handler } from "../websockets.ts";
import { Inbox, Script, startServer, test, within } from "./helpers.ts";

const silent = () => {};

/** A handler that sends back what it receives, and tells how its clients leave. */
function echo(events = new Inbox<string>()): Handler {
  return {
    message: (socket, data) => socket.send(data),
    close: (_socket, { code }) => events.put(`closed with ${code}`),
  };
}

/** A handler that does not answer, but tells what it hears, and how its clients leave. */
function listen(events: Inbox<string>): Handler {
  return { ...echo(events), message: (_socket, data) => events.put(String(data)) };
}

/** A server of Deno's own, that answers each request as it is told. */
function serveBare(answer: (request: Request) => Response) {
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: silent }, answer);
  return {
    url: `ws://127.0.0.1:${server.addr.port}`,
    async [Symbol.asyncDispose]() {
      await within(server.shutdown(), "the server to stop");
    },
  };
}

function optionsFor(url: string, options: Partial<ClientOptions> = {}): ClientOptions {
  const { signal } = new AbortController();
  const times = { timeout: 5_000, pause: 20, interval: 0, patience: 10_000 };
  return { url, count: 1, ...times, reconnect: true, signal, ...options };
}

// The loop.

test(
  { needs: "run" },
  "it runs 39 rounds, each a connection of its own that it closes with 1000",
  async () => {
    const events = new Inbox<string>();
    await using server = startServer(echo(events));
    await using client = new Script("client.ts", [server.url, "--interval", "0"]);
    assertEquals([await client.end(), client.errors.all], [0, []]);
    assertEquals(client.lines.all, Array(39).fill("Hello, I am Deno."));
    assertEquals(events.all, Array(39).fill("closed with 1000"));
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
  { needs: "net" },
  "a server that stays away ends it with one line that says what to start",
  async () => {
    const options = optionsFor("ws://localhost:1/x", { patience: 50 });
    const { message } = await assertRejects(() => loop("hello", options), ConnectionError);
    assertMatch(message, /^No connection to ws:\/\/localhost:1\/x .*run .*server\.ts$/);
  },
);

test(
  { needs: "net" },
  "a server that refuses, or closes for good, is not asked again, nor one whose TLS fails",
  async () => {
    let requests = 0;
    await using server = serveBare(() => {
      requests++;
      return new Response("", { status: 401 });
    });
    const refused = () => loop("hello", optionsFor(server.url, { patience: 1e9 }));
    await assertRejects(refused, Error, "401");
    assertEquals(requests, 1);

    let rounds = 0;
    const message = (socket: WebSocket) => socket.close(1009, `${++rounds}`);
    await using closing = startServer({ message });
    const closed = () => loop("hello", optionsFor(closing.url, { patience: 1e9 }));
    await assertRejects(closed, Error, "1009 (message too big) 1 ");

    const url = server.url.replace("ws:", "wss:");
    const failed = () => loop("hello", optionsFor(url, { patience: 1e9 }));
    await assertRejects(failed, Error, "use ws://");
  },
);

test({ needs: "run" }, "the first message of the server is the answer, every time", async () => {
  await using server = startServer({
    ...echo(),
    open: (socket) => socket.send("welcome"),
  });
  await using client = new Script("client.ts", [server.url, "--interval", "0"]);
  assertEquals([await client.end(), client.errors.all], [0, []]);
  assertEquals(client.lines.all, Array(39).fill("welcome"));
});

test(
  { needs: "run" },
  "a connection dropped right after the handshake costs a pause and no round",
  async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const url = `ws://127.0.0.1:${listener.addr.port}`;
    const flags = [url, "--interval", "0", "--count", "8", "--timeout", "1"];
    await using client = new Script("client.ts", flags);
    for (let connections = 1; connections <= 16; connections++) {
      using connection = await within(listener.accept(), "the client to connect");
      await connection.write(await switchProtocols(connection));
      if (connections % 2) continue;
      await connection.write(new Uint8Array([0x81, 2, 72, 105, 0x88, 2, 0x03, 0xe8]));
      while (await connection.read(new Uint8Array(4_096)).catch(() => null) !== null);
    }
    assertEquals([await client.end(), client.errors.all], [0, []]);
    assertEquals(client.lines.all, Array(8).fill("Hi"));
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
      "--timeout=-1",
      "--header=Authorization secret",
      "--header=Host: secret",
      "--origin=a\nb",
      "--subprotocol=two words",
      "--nope",
    ];
    await Promise.all(mistakes.map(async (mistake) => {
      await using client = new Script("client.ts", [mistake]);
      assertEquals(await client.end(), 2, mistake);
      assertMatch(client.errors.all[1], /^Usage: deno run --allow-net client\.ts/);
      assert(!client.errors.all[0].includes("secret"), client.errors.all[0]);
    }));
    await using client = new Script("client.ts", [], []);
    assertEquals([await client.end(), client.errors.all.length], [1, 1]);
    assertMatch(client.errors.all[0], /net access.*deno run --allow-net client\.ts/);
  },
);

test({ needs: "run" }, "a timeout may be longer than a timer of the runtime", async () => {
  await using server = startServer(echo());
  const flags = [server.url, "--count", "1", "--timeout", "3000000"];
  await using client = new Script("client.ts", flags);
  assertEquals([await client.end(), client.errors.all], [0, []]);
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
    const flags = [url, ...headers, "--subprotocol", "other", "--subprotocol", "chat"];
    await using looping = new Script("client.ts", [...flags, "--count", "1"]);
    assertEquals(await looping.end(), 0);
    assertEquals(looping.errors.all, ["Subprotocol: chat"]);
    const { code, errors } = await pipe(url, "a\n", ...flags.slice(1));
    assertEquals([code, errors[0]], [0, `Connected to ${server.url}, subprotocol chat.`]);
    for (const sent of requests.all) {
      const names = ["x-one", "x-two", "origin", "sec-websocket-protocol", "authorization"];
      assertEquals(names.map((name) => sent.get(name)), [
        "1",
        "a: b",
        "https://a.b",
        "other, chat",
        `Basic ${btoa("us er:p@ss")}`,
      ]);
    }
    assertEquals(requests.all.length, 2);
  },
);

test({ needs: "run" }, "when nobody reads its output any more, it closes and ends", async () => {
  const events = new Inbox<string>();
  await using server = startServer({ ...echo(events) });
  const run = `${Deno.execPath()} run --allow-net client.ts ${server.url}`;
  for (
    const command of [
      `${run} --interval 0.01 --count 500`,
      `yes ${"x".repeat(999)} | ${run} --interactive`,
    ]
  ) {
    const shell = new Deno.Command("bash", {
      args: ["-c", `set -o pipefail; ${command} | head -n 1`],
      cwd: new URL("../", import.meta.url),
      stderr: "piped",
    });
    const { code, stdout } = await within(shell.output(), "the pipe to end");
    assertEquals(code, 141);
    assertEquals(new TextDecoder().decode(stdout).split("\n").length, 2);
  }
  assert(events.all.length < 50, `${events.all.length} connections`);
  assertEquals(new Set(events.all), new Set(["closed with 1000"]));
});

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
  await using server = startServer(echo());
  // The scheme of a URL may be written in capitals.
  const url = server.url.replace("ws", "WS");
  const { code, lines, errors } = await pipe(url, "a\n\n你好\nno newline");
  assertEquals(code, 0);
  assertEquals(errors, [`Connected to ${url}.`, "Connection closed: 1000 (OK)."]);
  assertEquals(lines, ["a", "", "你好", "no newline"]);
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
        [1012, "service restart", 1],
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
      assert(client.errors.all[1].includes(`${close} (${text}`), client.errors.all[1]);
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
  "a greeting is printed and is no answer, in every run",
  async () => {
    await using server = startServer({ ...echo(), open: (socket) => socket.send("welcome") });
    for (let run = 0; run < 5; run++) {
      const { code, lines } = await pipe(server.url, "a\nb\n");
      assertEquals([code, lines], [0, ["welcome", "a", "b"]]);
    }
  },
);

test(
  { needs: "run" },
  "Ctrl-C ends it while the server does not read, and does not answer the Close frame either",
  async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const url = `ws://127.0.0.1:${listener.addr.port}`;
    await using client = new Script("client.ts", ["-i", url], undefined, "piped");
    using connection = await within(listener.accept(), "the client to connect");
    await connection.write(await switchProtocols(connection));
    await client.errors.next((line) => line.startsWith("Connected"));
    // More than fits into what the client and the system keep of it.
    const writer = client.stdin.getWriter();
    const written = writer.write(new TextEncoder().encode(`${"x".repeat(99_999)}\n`.repeat(200)));
    const isWritten = await Promise.race([written.then(() => true), delay(500).then(() => false)]);
    assert(!isWritten, "the client takes everything");
    client.kill("SIGINT");
    assertEquals(await client.end(), 130);
    const closed = "Connection closed: 1006 (connection closed abnormally).";
    assertEquals(client.errors.all[1], closed);
    await written.catch(silent);
    await writer.close().catch(silent);
  },
);

/** The answer to the handshake that arrives on a connection. */
async function switchProtocols(connection: Deno.TcpConn) {
  const request = new Uint8Array(4_096);
  const head = new TextDecoder().decode(request.subarray(0, await connection.read(request) ?? 0));
  const key = head.match(/sec-websocket-key: (.*)\r\n/i)?.[1];
  // RFC 6455 section 1.3 has this constant, and how the key is answered.
  const answered = new TextEncoder().encode(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`);
  const accept = new Uint8Array(await crypto.subtle.digest("SHA-1", answered)).toBase64();
  const lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"];
  lines.push(`Sec-WebSocket-Accept: ${accept}`, "", "");
  return new TextEncoder().encode(lines.join("\r\n"));
}

test(
  { needs: "run" },
  "a server that drops the connection right after the handshake ends it, in every run",
  async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const url = `ws://127.0.0.1:${listener.addr.port}`;
    for (let run = 0; run < 5; run++) {
      await using client = new Script("client.ts", ["-i", url], undefined, "piped");
      const connection = await within(listener.accept(), "the client to connect");
      await connection.write(await switchProtocols(connection));
      connection.close();
      assertEquals(await client.end(), 1);
      assertMatch(client.errors.all.at(-1) ?? "", /^Connection closed: 1006 /);
      await client.stdin.close().catch(silent);
    }
  },
);

// The interactive client at a terminal.

/** How the interactive client is started. */
function start(url: string, flags = ""): string {
  return `"${Deno.execPath()}" run --allow-net client.ts -i ${url} ${flags}`;
}

/** Starts it with a short pause before it connects again. */
function startQuick(url: string): string {
  const script = `import { interact } from "./client.ts";
    const signal = new AbortController().signal;
    await interact({ url: "${url}", timeout: 5_000, pause: 20, reconnect: true, signal });
    Deno.exit(0);`;
  return `"${Deno.execPath()}" eval '${script.replaceAll("\n", " ")}'`;
}

/** A pseudo-terminal of 40 columns that runs a command, with all that was written to it. */
class Terminal implements AsyncDisposable {
  screen = "";
  readonly #process: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #changes = new Inbox<void>();
  readonly #read: Promise<void>;

  constructor(command: string) {
    this.#process = new Deno.Command("script", {
      args: ["-qec", `stty cols 40 rows 20; ${command}`, "/dev/null"],
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
    await using server = startServer(echo(events));
    await using terminal = new Terminal(start(server.url));
    await terminal.shows(`Connected to ${server.url}.\r\n`);
    await terminal.shows("> ");
    await terminal.type("hello, world\r");
    await terminal.shows("< hello, world\r\n");
    await terminal.shows("> ");
    await terminal.type("\x04");
    await terminal.shows("Connection closed: 1000 (OK).\r\n");
    assertEquals([await terminal.end(), await events.next()], [0, "closed with 1000"]);
  },
);

test({ needs: "run" }, "Ctrl-C at a terminal closes with 1000 as well", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  await using terminal = new Terminal(start(server.url));
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
      await using terminal = new Terminal(start(server.url));
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
    await using terminal = new Terminal(start(server.url));
    await terminal.shows("> ");
    await terminal.type("hello\r");
    await terminal.shows("Connection closed: 1009 (message too big) too much.");
    assertEquals(await terminal.end(), 1);
  },
);

test(
  { needs: "run" },
  "what arrives while it closes is shown, without a prompt",
  async () => {
    await using server = startServer({
      ...echo(),
      message: (socket) => {
        for (let count = 0; count < 100; count++) socket.send("x".repeat(2_000));
        socket.send("last");
      },
    });
    await using terminal = new Terminal(start(server.url));
    await terminal.shows("> ");
    await terminal.type("go\r\x04");
    await terminal.shows("< last\r\n");
    const end = await terminal.shows("Connection closed: 1000 (OK).");
    assert(!end.includes("> "), end);
    assertEquals(await terminal.end(), 0);
  },
);

test(
  { needs: "run" },
  "after Ctrl-Z and `fg` the line being typed is there, and the keys work",
  async () => {
    const events = new Inbox<string>();
    await using server = startServer(listen(events));
    // The shell changes the terminal while the client is stopped.
    const shell = `bash -c 'set -m; ${start(server.url)}; stty sane; echo stopped; fg'`;
    await using terminal = new Terminal(shell);
    await terminal.shows("> ");
    await terminal.type("half");
    await terminal.shows("half");
    await terminal.type("\x1a");
    await terminal.shows("stopped");
    await terminal.shows("> half");
    await terminal.type("\x1b[DX\r");
    assertEquals(await events.next(), "halXf");
    await terminal.type("\x04");
    assertEquals([await terminal.end(), await events.next()], [0, "closed with 1000"]);
  },
);

test(
  { needs: "run" },
  "a lost connection comes back, with the history and the line being typed",
  async () => {
    const events = new Inbox<string>();
    const sockets: WebSocket[] = [];
    const handler = { ...listen(events), open: (socket: WebSocket) => void sockets.push(socket) };
    await using server = startServer(handler);
    await using terminal = new Terminal(startQuick(server.url));
    await terminal.shows("> ");
    await terminal.type("first\r");
    assertEquals(await events.next(), "first");
    await terminal.type("second");
    await terminal.shows("second");
    for (const code of [1001, 1012, 1013]) {
      sockets.at(-1)?.close(code);
      await terminal.shows(`Connection closed: ${code} (`);
      await terminal.shows("Connecting again …");
      await terminal.shows(`Connected to ${server.url}.\r\n`);
      await terminal.shows("> second");
      assertEquals(await events.next(), `closed with ${code}`);
    }
    await terminal.type("\r");
    assertEquals(await events.next(), "second");
    await terminal.type("\x1b[A\x1b[A\r");
    assertEquals(await events.next(), "first");
    await terminal.type("\x04");
    assertEquals([await terminal.end(), await events.next()], [0, "closed with 1000"]);
  },
);

test(
  { needs: "run" },
  "a line typed while there is no connection is not sent, and the history has it",
  async () => {
    const events = new Inbox<string>();
    const first = startServer(echo());
    await using terminal = new Terminal(startQuick(first.url));
    await terminal.shows("> ");
    await first[Symbol.asyncDispose]();
    await terminal.shows("Connecting again …");
    await terminal.type("lost?\r");
    await terminal.shows("Not sent: ");
    await using _second = startServer(listen(events), { port: first.port });
    await terminal.shows(`Connected to ${first.url}.`);
    await terminal.type("new\r");
    assertEquals(await events.next(), "new");
    await terminal.type("\x1b[A\x1b[A\r");
    assertEquals(await events.next(), "lost?");
    await terminal.type("\x03");
    assertEquals(await terminal.end(), 0);
  },
);

test(
  { needs: "run" },
  "Ctrl-C ends it while it tries to connect again",
  async () => {
    const server = startServer(listen(new Inbox()));
    await using terminal = new Terminal(start(server.url));
    await terminal.shows("> ");
    await server[Symbol.asyncDispose]();
    await terminal.shows("Connecting again …");
    await terminal.type("\x03");
    assertEquals(await terminal.end(), 0);
  },
);

test({ needs: "run" }, "with --no-reconnect a lost connection ends it", async () => {
  await using server = startServer({ ...echo(), message: (socket) => socket.close(1012) });
  await using terminal = new Terminal(start(server.url, "--no-reconnect"));
  await terminal.shows("> ");
  await terminal.type("hello\r");
  await terminal.shows("Connection closed: 1012 (service restart).\r\n");
  assertEquals(await terminal.end(), 1);
});

test({ needs: "net" }, "chance decides how long each pause is", async () => {
  let requests = 0;
  await using server = serveBare((request) => {
    if (++requests % 3) return new Response("", { status: 503 });
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onmessage = () => socket.send("");
    return response;
  });
  const { random } = Math;
  // Without chance the loop would wait for hours.
  Math.random = () => 0;
  try {
    await loop("hello", optionsFor(server.url, { pause: 1e8, patience: 1e10 }));
    assertEquals(requests, 3);
  } finally {
    Math.random = random;
  }
});

// How a handshake fails.

test({ needs: "net" }, "it says why a handshake failed, and what to do", async () => {
  await using server = serveBare((request) =>
    new Response("", { status: Number(new URL(request.url).pathname.slice(1)) })
  );
  const port = new URL(server.url).port;
  for (
    const [url, isPassing, reason] of [
      [`${server.url}/401`, false, /\(.*401\): .*--header/],
      [`${server.url}/403`, false, /\(.*403\): .*--origin/],
      [`${server.url}/404`, false, /\(.*404\): .*path/],
      [`${server.url}/200`, false, /\(.*200\): .*path/],
      [`${server.url}/503`, true, /\(.*503\): .*later/],
      [`${server.url}/500`, true, /\(.*500\)$/],
      [`wss://127.0.0.1:${port}`, false, /: .* use ws:\/\//],
      ["ws://127.0.0.1:1", true, /: start the server/],
    ] as const
  ) {
    const withPassword = url.replace("//", "//user:secret@");
    const error = await assertRejects(() => connect(optionsFor(withPassword)), Error);
    assert(error.message.startsWith(`No connection to ${url} (`), error.message);
    assertMatch(error.message, reason);
    assertEquals(error instanceof ConnectionError, isPassing, url);
  }
});

test({ needs: "net" }, "a server that does not answer the handshake is given up", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const url = `ws://127.0.0.1:${listener.addr.port}`;
  const failed = assertRejects(
    () => connect(optionsFor(url, { timeout: 50 })),
    ConnectionError,
    "--timeout",
  );
  using _connection = await within(listener.accept(), "the client to connect");
  await failed;
});

test({ needs: "run" }, "a certificate that is not trusted is told with what to do", async () => {
  const directory = await Deno.makeTempDir();
  try {
    const [keyFile, certFile] = [`${directory}/key.pem`, `${directory}/cert.pem`];
    const request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1";
    const args = [...request.split(" "), "-keyout", keyFile, "-out", certFile];
    args.push("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost");
    const openssl = new Deno.Command("openssl", { args, stderr: "piped" });
    assert((await openssl.output()).success);
    const [key, cert] = [Deno.readTextFileSync(keyFile), Deno.readTextFileSync(certFile)];
    await using server = startServer(echo(), { key, cert });
    const url = `wss://localhost:${server.port}`;
    const error = await assertRejects(() => connect(optionsFor(url)), Error, "--cert=FILE");
    assert(!(error instanceof ConnectionError));
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

// What needs no permission.

Deno.test("a host that has no address is told as such, and not tried again", () => {
  const error = handshakeError("ws://nowhere", new Error("dns error"));
  assertEquals(
    error.message,
    "No connection to ws://nowhere (dns error): there is no such host, check the URL",
  );
  assert(!(error instanceof ConnectionError));
});

Deno.test("a reason that is not known is told, and may pass", () => {
  const error = handshakeError("ws://a:b@somewhere", new Error("full moon"));
  assertEquals(error.message, "No connection to ws://somewhere (full moon)");
  assert(error instanceof ConnectionError);
});

Deno.test("credentials of a URL are not shown, wherever they are", () => {
  assertEquals(withoutCredentials("ws://user:secret@host:1/a@b?c@d"), "ws://host:1/a@b?c@d");
  assertEquals(withoutCredentials("WSS://secret@host"), "WSS://host");
  assertEquals(withoutCredentials("ws:///user:sec@ret@host"), "ws:///host");
  assertEquals(withoutCredentials("ws://host/a@b"), "ws://host/a@b");
  assertEquals(withoutCredentials("ws://host\\a@b"), "ws://host\\a@b");
  assertEquals(withoutCredentials("Wrong: 'ws://a:b@c@d:9e9'"), "Wrong: 'ws://d:9e9'");
});

Deno.test("a header is a name, a colon and a value", () => {
  const headers = parseHeaders([
    "Cookie: a=b; c=d",
    "X-Url:ws://host:80/",
    "X-Many: 1",
    "X-Many: 2",
    "X-Empty:",
  ]);
  assertEquals([...headers], [
    ["cookie", "a=b; c=d"],
    ["x-empty", ""],
    ["x-many", "1, 2"],
    ["x-url", "ws://host:80/"],
  ]);
});

Deno.test("a header that can't be sent is refused, and its value is not shown", () => {
  const wrong = ["secret", ": secret", "two words: secret", "A: secret\nB: c", "A: 秘密 secret"];
  for (const line of [...wrong, "Host: secret", "sec-websocket-key: secret"]) {
    const { message } = assertThrows(() => parseHeaders([line]), Error);
    assert(!message.includes("secret"), message);
  }
});

/** The lines that come out of a pipe that brings these pieces. */
async function linesOf(...pieces: string[]): Promise<string[]> {
  const bytes = new TextEncoder().encode(pieces.join(""));
  // A piece may end anywhere, also within a character.
  const chunks = pieces.length > 1 ? [...bytes].map((byte) => Uint8Array.of(byte)) : [bytes];
  const { signal } = new AbortController();
  return await Array.fromAsync(readLines(ReadableStream.from(chunks), signal));
}

Deno.test("a line ends with LF or CR LF, and nothing else is taken away from it", async () => {
  assertEquals(await linesOf("a\r\n\n\ufeffb\u2028c\rd \n\te"), [
    "a",
    "",
    "\ufeffb\u2028c\rd ",
    "\te",
  ]);
  assertEquals(await linesOf("\ufeffa\n"), ["\ufeffa"]);
  assertEquals(await linesOf("你", "好\r", "\nx"), ["你好", "x"]);
  assertEquals(await linesOf(""), []);
});

Deno.test("only a server that is away is worth another connection", () => {
  const codes = [0, 1000, 1001, 1005, 1006, 1008, 1009, 1011, 1012, 1013, 4000];
  const lost = codes.filter((code) => isLost(new CloseEvent("close", { code })));
  assertEquals(lost, [0, 1001, 1006, 1012, 1013]);
});

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
