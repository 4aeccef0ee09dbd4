// What the test command promises at a terminal.

import { assert, assertEquals, assertLessOrEqual, assertMatch } from "@std/assert";
import type { Connection } from "websockets";
import { eventually, freePort, Inbox, startServer, startServerAt } from "./helpers.ts";
import { test } from "./needs.ts";
import { echo, Flood, listen, listenRaw } from "./peers.ts";
import { start, startQuick, Terminal } from "./terminal.ts";

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
    const shell = `bash -c 'set -m; (${start(server.url)}); stty sane; echo stopped; fg'`;
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
    const first = await startServerAt(freePort(), echo());
    await using terminal = new Terminal(startQuick(first.url));
    await terminal.shows("> ");
    await first[Symbol.asyncDispose]();
    await terminal.shows("Connecting again …");
    await terminal.type("lost?\r");
    await terminal.shows("Not sent: ");
    await using _second = await startServerAt(first.port, listen(events));
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
        const messages = [...Array(200_000).fill("more"), "last"];
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
  // Key by key, or piece by piece, the line would be drawn again and again.
  const long = "你好 hello ".repeat(10_000);
  await terminal.type(`${long}\r`);
  assertEquals(await events.next(), long);
  assertLessOrEqual(terminal.screen.length, 8 * long.length);
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
    await using terminal = new Terminal(`sh -c 'echo $$; ${start(server.url)}'; exit`);
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
    await terminal.type("\r\x04");
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

test({ needs: "run" }, "Ctrl-C ends it at once, whatever floods in", async () => {
  using server = listenRaw();
  await using terminal = new Terminal(start(server.url));
  using connection = await server.accept();
  const flood = new Flood(connection, 12_000_000);
  await eventually(() => assertLessOrEqual(2_000_000, flood.sent));
  const { length } = terminal.screen;
  await terminal.type("\x03");
  assertEquals(await terminal.end(), 0);
  await flood.ended;
  // It was more than a million where the runtime read as long as it could before it looked for Ctrl-C.
  assertLessOrEqual(terminal.screen.length - length, 400_000);
  assert(!flood.isOver, "the flood was over first");
});

test(
  { needs: "linux" },
  "SIGTERM leaves the terminal as it was, and closes with 1000",
  async () => {
    const events = new Inbox<string>();
    await using server = startServer(listen(events));
    const command = `sh -c 'echo $$; ${start(server.url)}'; echo ended with $?; stty -a`;
    await using terminal = new Terminal(command);
    await terminal.shows("> ");
    Deno.kill(Number(terminal.drawn.rows[1]), "SIGTERM");
    await terminal.shows("Connection closed: 1000 (OK).");
    await terminal.shows("ended with 143");
    await terminal.end();
    for (const mode of [/\sisig\s/, /\sicanon\s/, /\secho\s/]) assertMatch(terminal.screen, mode);
    assertEquals(await events.next(), "closed with 1000");
  },
);

test(
  { needs: "run" },
  "at a terminal too, a --message is sent on every connection, and --count ends it",
  async () => {
    const websockets: Connection[] = [];
    const events = new Inbox<string>();
    await using server = startServer((websocket, request) => {
      websockets.push(websocket);
      return echo(events)(websocket, request);
    });
    const flags = "--message hello --time --count 2";
    await using terminal = new Terminal(startQuick(server.url, "", flags));
    await terminal.shows(" < hello\r\n");
    await websockets[0].close(1012);
    await terminal.shows("Connecting again …");
    const shown = await terminal.shows(" < hello\r\n");
    assertMatch(shown, /\d\d\.\d{6} Connected to .*\d\d\.\d{6} < hello\r\n$/s);
    assertEquals(await terminal.end(), 0);
    assertEquals(await events.next(), "closed with 1012");
    assertEquals(await events.next(), "closed with 1000");
  },
);
