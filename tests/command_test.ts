// What the test command promises, `deno run --allow-net websockets URL`: in a pipe and at a terminal.

import { assert, assertEquals, assertLessOrEqual, assertMatch, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import type { Connection } from "websockets";
import { parseHeaders } from "../websockets/command/command.ts";
import { readMessages, type Separator, show } from "../websockets/command/input_output.ts";
import { freePort, Inbox, startServer, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { Script } from "./programs.ts";
import { echo, listen, listenRaw, readOneLine, serveBare, switchProtocols } from "./peers.ts";

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

test({ needs: "run" }, "its help fits a screen of 24 lines and 80 columns", async () => {
  await using command = new Script("websockets", ["--help"], []);
  assertEquals([await command.end(), command.errors.all], [0, []]);
  assert(command.lines.all.length <= 24, `${command.lines.all.length} lines`);
  for (const line of command.lines.all) assert(line.length <= 80, line);
});

test(
  { needs: "run" },
  "a URL without a scheme is ws, and no token of a query is printed",
  async () => {
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

test({ needs: "run" }, "with --binary it sends bytes as they are, and prints them so", async () => {
  const events = new Inbox<string>();
  await using server = startServer(async (websocket) => {
    for await (const message of websocket) {
      events.put(typeof message);
      websocket.send(message);
    }
  });
  const input = Uint8Array.from({ length: 100_000 }, (_, index) => index % 251);
  const { code, stdout } = await pipeBytes(server.url, input, "--binary");
  assertEquals([code, stdout], [0, input]);
  assertEquals(new Set(events.all), new Set(["object"]));
});

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

test({ needs: "run" }, "with --null a message may have several lines", async () => {
  const received: unknown[] = [];
  await using server = startServer(async (websocket) => {
    for await (const message of websocket) {
      received.push(message);
      websocket.send("got it");
    }
  });
  const { code } = await pipe(server.url, "a\nb\r\0\0c", "--null", "--wait", "0");
  assertEquals([code, received], [0, ["a\nb\r", "", "c"]]);
});

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
        [1001, "", 0],
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

/** Lets time pass in the command only as the server says, by messages that the command never sees. */
const TOLD_TIME = "--preload=data:text/javascript," + encodeURIComponent(`
  let now = 0;
  performance.now = () => now;
  globalThis.WebSocket = class extends WebSocket {
    constructor(...all) {
      super(...all);
      this.addEventListener("message", (event) => {
        const [, milliseconds] = event.data.match(/^pass (\\d+)$/) ?? [];
        if (milliseconds === undefined) return;
        now += Number(milliseconds);
        event.stopImmediatePropagation();
      });
    }
  };
`);

test({ needs: "run" }, "it stays until nothing has arrived for a second", async () => {
  await using greeting = startServer(async (websocket) => {
    websocket.send(`greeting ${await websocket.receive()}`);
    for (const message of ["answer", "more", ""]) {
      websocket.send("pass 999");
      // This is longer than between two looks of the command at the time.
      await delay(50);
      if (message) websocket.send(message);
    }
    websocket.send("pass 1");
    await websocket.closed;
  });
  const permissions = ["--allow-net", TOLD_TIME];
  await using command = new Script("websockets", [greeting.url], permissions, "piped");
  await writeAll(command, "a\n");
  const answers = ["greeting a", "answer", "more"];
  assertEquals([await command.end(), command.lines.all], [0, answers]);

  // Where no time passes, it still ends with --wait 0.
  await using server = startServer(echo());
  const flags = [server.url, "--wait", "0"];
  await using hasty = new Script("websockets", flags, permissions, "piped");
  await writeAll(hasty, "a\n");
  assertEquals([await hasty.end(), hasty.lines.all], [0, ["a"]]);
});

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
    const closed = "Connection closed: 1006 (connection closed abnormally).";
    assertEquals(command.errors.all[1], closed);
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

// At a terminal.

/** How the command is started. */
function start(url: string, flags = ""): string {
  return `"${Deno.execPath()}" run --allow-net websockets ${url} ${flags}`;
}

/** Starts it so that its pauses are short before it connects again. */
function startQuick(url: string, before = ""): string {
  const script = `${before} import { interact } from "./websockets/command/interact.ts";
    Math.random = () => 0.01;
    await interact("${url}", {}, true);
    Deno.exit(0);`;
  return `"${Deno.execPath()}" eval '${script.replaceAll("\n", " ")}'`;
}

/** What a terminal shows: it follows the few sequences that `readline` writes. */
class Screen {
  columns = 40;
  /** All rows, also those that went out at the top of the screen, which has 20. */
  #rows = [""];
  /** Which of them go on in the next row, because the line is longer. */
  #isWrapped = [false];
  #row = 0;
  #column = 0;

  write(text: string) {
    // deno-lint-ignore no-control-regex
    for (const [all, count, command] of text.matchAll(/\x1b\[(\d*)([A-Z])|\x1b\[.*?[a-z]|./gsu)) {
      const number = Number(count || 1);
      if (command === "A") this.#row = Math.max(this.#rows.length - 20, this.#row - number, 0);
      else if (command === "C") this.#column += number;
      else if (command === "D") this.#column -= number;
      else if (command === "G") this.#column = number - 1;
      else if (command === "J") this.#clear();
      else if (all === "\r") this.#column = 0;
      else if (all === "\n") this.#goDown(false);
      else if (all >= " ") this.#put(all);
    }
  }

  /** Changes the width. Some terminals wrap what they show anew, others leave it as it is. */
  resize(columns: number, wrapsAnew: boolean) {
    this.columns = columns;
    if (!wrapsAnew) return;
    const [rows, isWrapped, row, column] = [this.#rows, this.#isWrapped, this.#row, this.#column];
    [this.#rows, this.#isWrapped, this.#row, this.#column] = [[""], [false], 0, 0];
    for (const [index, text] of rows.entries()) {
      const [before, after] = index === row
        ? [text.slice(0, column), text.slice(column)]
        : [text, ""];
      for (const character of before) this.#put(character);
      const cursor = [this.#row, this.#column];
      for (const character of after) this.#put(character);
      if (index === row) return void ([this.#row, this.#column] = cursor);
      if (!isWrapped[index]) this.#goDown(false), this.#column = 0;
    }
  }

  #put(character: string) {
    if (this.#column >= this.columns) {
      this.#goDown(true);
      this.#column = 0;
    }
    const row = this.#rows[this.#row].padEnd(this.#column);
    this.#rows[this.#row] = row.slice(0, this.#column) + character + row.slice(this.#column + 1);
    this.#column++;
  }

  #goDown(isWrapped: boolean) {
    this.#isWrapped[this.#row] = isWrapped;
    this.#row++;
    if (this.#row < this.#rows.length) return;
    this.#rows.push("");
    this.#isWrapped.push(false);
  }

  #clear() {
    this.#rows.length = this.#isWrapped.length = this.#row + 1;
    this.#rows[this.#row] = this.#rows[this.#row].slice(0, this.#column);
  }

  get rows(): string[] {
    return this.#rows.map((row) => row.trimEnd());
  }
}

/** A pseudo-terminal of 40 columns that runs a command, with all that was written to it. */
class Terminal implements AsyncDisposable {
  screen = "";
  readonly drawn = new Screen();
  readonly #process: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #changes = new Inbox<void>();
  readonly #read: Promise<void>;

  constructor(command: string) {
    this.#process = new Deno.Command("script", {
      args: ["-qec", `stty cols 40 rows 20; tty; ${command}`, "/dev/null"],
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
      this.drawn.write(text);
      this.#changes.put();
    }
  }

  async type(keys: string) {
    await this.#writer.write(new TextEncoder().encode(keys));
  }

  /** Waits for `text` to be written, and takes all up to its end. */
  async shows(text: string): Promise<string> {
    let start = -1;
    for (let from = 0; start < 0;) {
      start = this.screen.indexOf(text, from);
      if (start >= 0) break;
      from = Math.max(0, this.screen.length - text.length);
      const end = JSON.stringify(this.screen.slice(-150));
      await this.#changes.next(undefined, `${JSON.stringify(text)}, not ${end}`);
    }
    const end = start + text.length;
    const taken = this.screen.slice(0, end);
    this.screen = this.screen.slice(end);
    return taken;
  }

  /** Changes its width. The command writes nothing for the old one meanwhile. */
  async resize(columns: number, wrapsAnew: boolean) {
    this.drawn.resize(columns, wrapsAnew);
    const args = ["-F", this.drawn.rows[0], "cols", `${columns}`];
    assert((await new Deno.Command("stty", { args }).output()).success);
  }

  async end(): Promise<number> {
    const { code } = await within(this.#process.status, "the command to end");
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
    const websockets: Connection[] = [];
    const events = new Inbox<string>();
    await using server = startServer((websocket, request) => {
      websockets.push(websocket);
      return listen(events)(websocket, request);
    });
    for (
      const typed of ["half a li", "a line so long that at forty columns it takes several rows"]
    ) {
      await using terminal = new Terminal(start(server.url));
      await terminal.shows("> ");
      await terminal.type(typed);
      await terminal.shows(typed.slice(-3));
      websockets.at(-1)?.send("news \x1b[31m\u202e");
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
    await using server = startServer(async (websocket) => {
      await websocket.receive();
      websocket.close(1009, "too much");
    });
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
    await using server = startServer(async (websocket) => {
      await websocket.receive();
      for (let count = 0; count < 100; count++) websocket.send("x".repeat(2_000));
      websocket.send("last");
      await websocket.closed;
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
    // The shell changes the terminal while the command is stopped.
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
    const websockets: Connection[] = [];
    await using server = startServer((websocket, request) => {
      websockets.push(websocket);
      return listen(events)(websocket, request);
    });
    await using terminal = new Terminal(startQuick(server.url));
    await terminal.shows("> ");
    await terminal.type("first\r");
    assertEquals(await events.next(), "first");
    await terminal.type("second");
    await terminal.shows("second");
    for (const code of [1001, 1012, 1013]) {
      websockets.at(-1)?.close(code);
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
    const first = startServer(echo(), { port: freePort() });
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

test(
  { needs: "run" },
  "it connects again also when the host is not found for a while",
  async () => {
    const websockets: Connection[] = [];
    await using server = startServer(async (websocket) => {
      websockets.push(websocket);
      await websocket.closed;
    });
    // The second connection goes to a host whose name is too long to be found.
    const before = `const { WebSocket } = globalThis; let count = 0;
    globalThis.WebSocket = class extends WebSocket {
      constructor(url, options) {
        super(++count === 2 ? "ws://" + "x".repeat(64) : url, options);
      }
    };`;
    await using terminal = new Terminal(startQuick(server.url, before));
    await terminal.shows("> ");
    websockets[0].close(1012);
    await terminal.shows("Connecting again …");
    await terminal.shows(`Connected to ${server.url}.\r\n`);
    await terminal.type("\x04");
    assertEquals(await terminal.end(), 0);
  },
);

test({ needs: "run" }, "keys are read while messages come faster than they are shown", async () => {
  await using server = startServer(async (websocket) => {
    websocket.send("first");
    await websocket.closed;
  });
  // With the first message, all the others arrive at once.
  const before = `globalThis.WebSocket = class extends WebSocket {
    constructor(url, options) {
      super(url, options);
      this.addEventListener("message", () => {
        const messages = [...Array(20_000).fill("more"), "last"];
        for (const data of messages) this.dispatchEvent(new MessageEvent("message", { data }));
      }, { once: true });
    }
  };`;
  await using terminal = new Terminal(startQuick(server.url, before));
  await terminal.shows("< more");
  await terminal.type("abc");
  const shown = await terminal.shows("> abc");
  assert(!shown.includes("< last"), "the key was read after the last message");
});

test({ needs: "run" }, "at a terminal a message is shown whole, and harms nothing", async () => {
  const messages = ["x".repeat(1_000), "❤️ a\tb", new Uint8Array(100), "\x1b[2J"];
  await using server = startServer(async (websocket) => {
    for (const message of messages) websocket.send(message);
    await websocket.closed;
  });
  await using terminal = new Terminal(start(server.url));
  await terminal.shows(`< ${"x".repeat(1_000)}\r\n`);
  await terminal.shows("< ❤️ a\tb\r\n");
  await terminal.shows(`< 100 bytes:${" 00".repeat(100)}\r\n`);
  await terminal.shows("< \\u{1b}[2J\r\n");
  await terminal.type("\x04");
  assertEquals(await terminal.end(), 0);

  await using raw = new Terminal(`true | ${start(server.url, "--binary")}`);
  await raw.shows("\\u{1b}[2J\r\n");
  assertEquals(await raw.end(), 0);
});

test({ needs: "run" }, "a line that ends with a backslash goes on with the next one", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  await using terminal = new Terminal(start(server.url));
  await terminal.shows("> ");
  await terminal.type("one\\\r");
  await terminal.shows("… ");
  await terminal.type("\\\rtwo\r");
  assertEquals(await events.next(), "one\n\ntwo");
  await terminal.shows("> ");
  await terminal.type("three\r");
  assertEquals(await events.next(), "three");
  await terminal.type("\x04");
  assertEquals(await terminal.end(), 0);
});

test({ needs: "run" }, "a long paste is there at once, and each of its lines is sent", async () => {
  const events = new Inbox<string>();
  await using server = startServer(listen(events));
  await using terminal = new Terminal(start(server.url));
  await terminal.shows("> ");
  // Key by key, the line would be drawn more than ten thousand times.
  const long = "你好 hello ".repeat(1_250);
  await terminal.type(`${long}\r`);
  assertEquals(await events.next(), long);
  assertLessOrEqual(terminal.screen.length, 20 * long.length);
  const begun = "z".repeat(45);
  await terminal.type(begun);
  await terminal.shows(begun.slice(-5));
  await terminal.type(`${"a".repeat(20)}\nb\\\r\nc\r${"d".repeat(50)}`);
  assertEquals(await events.next(), begun + "a".repeat(20));
  assertEquals(await events.next(), "b\nc");
  // The end of the paste has no Enter yet, and can be changed.
  await terminal.shows("d".repeat(20));
  await terminal.type("\x7f\x1b[D".repeat(2));
  await terminal.type(`${"e".repeat(20)}\r`);
  const changed = `${"d".repeat(46)}${"e".repeat(20)}dd`;
  assertEquals(await events.next(), changed);
  await terminal.type("\x04");
  assertEquals([await terminal.end(), await events.next()], [0, "closed with 1000"]);
  const shown = terminal.drawn.rows.slice(-6);
  const rows = [
    `> ${changed}`.slice(0, 40),
    `> ${changed}`.slice(40),
    "Connection closed: 1000 (OK).",
  ];
  assertEquals(shown, ["> b\\", "… c", ...rows, ""], terminal.drawn.rows.join("\n"));
});

test({ needs: "run" }, "a resize while something arrives loses no message", async () => {
  const websockets: Connection[] = [];
  await using server = startServer(async (websocket) => {
    websockets.push(websocket);
    await websocket.closed;
  });
  for (const wrapsAnew of [true, false]) {
    await using terminal = new Terminal(`sh -c 'echo $$; exec ${start(server.url)}'; true`);
    await terminal.shows("> ");
    const pid = Number(terminal.drawn.rows[1]);
    const websocket = websockets.at(-1);
    const sent: string[] = [];
    const send = async () => {
      sent.push(`< message ${sent.length}`);
      await websocket?.send(sent[sent.length - 1].slice(2));
    };
    const typed = "typed ".repeat(15);
    // The column of the cursor is the last that is written for a message.
    const showsLast = async () => {
      for (const text of [`${sent.at(-1)}\r\n`, typed.trimEnd(), "G"]) await terminal.shows(text);
    };
    await terminal.type(typed);
    for (let count = 0; count < 4; count++) await send();
    await showsLast();
    for (const columns of [120, 40, 100, 60]) {
      Deno.kill(pid, "SIGSTOP");
      await terminal.resize(columns, wrapsAnew);
      // The command finds the new width and the message at once.
      await send();
      Deno.kill(pid, "SIGCONT");
      await terminal.shows(sent.at(-1) ?? "");
      await send();
      await showsLast();
    }
    // The line is drawn again without a message too.
    await terminal.resize(120, wrapsAnew);
    await terminal.shows(typed.trimEnd());
    const shown = terminal.drawn.rows.join("\n").match(/< message \d+/g);
    assertEquals(shown, sent as RegExpMatchArray, terminal.drawn.rows.join("\n"));
    await terminal.type("\x03");
    assertEquals(await terminal.end(), 0);
  }
});

test({ needs: "run" }, "with --no-reconnect a lost connection ends it", async () => {
  await using server = startServer(async (websocket) => {
    await websocket.receive();
    websocket.close(1012);
  });
  await using terminal = new Terminal(start(server.url, "--no-reconnect"));
  await terminal.shows("> ");
  await terminal.type("hello\r");
  await terminal.shows("Connection closed: 1012 (service restart).\r\n");
  assertEquals(await terminal.end(), 1);
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
async function messagesOf(separator: Separator, ...pieces: string[]): Promise<string[]> {
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
