/// <reference types="./std.d.ts" />
// What can be tested without any permission, so that a plain `deno test` tests it: the functions
// that the servers are made of, with a stand-in for the socket.

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { parseArgs } from "node:util";
import { broadcast, room, type Rooms } from "../broadcast_server.ts";
import { limited, printable, unfailing, usageError, wholeNumber } from "../cli.ts";
import { echo } from "../server.ts";
import { type Handler, refuseHandshake, requireToken } from "../websockets.ts";
import { runServer, SERVER_FLAGS } from "../websockets.ts";

const silent = () => {};
const REPLY = /^Data received as "hello"\. {2}time: (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d{6}$/;

/** A socket that only notes what it is told. */
function standIn() {
  const sent: (string | ArrayBuffer)[] = [];
  const closed: (number | undefined)[] = [];
  const socket = {
    send: (data: string | ArrayBuffer) => sent.push(data),
    close: (code?: number) => closed.push(code),
  };
  return { sent, closed, socket: socket as unknown as WebSocket };
}

// Logs.

Deno.test("printable text keeps what can be seen", () => {
  assertEquals(printable("Grüße, 你好 👋 é"), "Grüße, 你好 👋 é");
});

Deno.test("printable text shows control characters as escapes", () => {
  assertEquals(printable("\x00\x1b\x7f\x9b"), String.raw`\u{0}\u{1b}\u{7f}\u{9b}`);
});

Deno.test("printable text shows what turns or hides text as escapes", () => {
  assertEquals(printable("a\u202eb\u2066c\ufeffd"), String.raw`a\u{202e}b\u{2066}c\u{feff}d`);
  assertEquals(printable("\u2028\u00ad\u3164\ud800"), String.raw`\u{2028}\u{ad}\u{3164}\u{d800}`);
});

Deno.test("printable text is cut, and tells how much is missing", () => {
  assertEquals(printable("abcdef", 3), "abc… (3 more characters)");
  assertEquals(printable("👋👋", 1), String.raw`\u{d83d}… (3 more characters)`);
  assertEquals(printable("x".repeat(200)), "x".repeat(200));
  assertEquals(printable("x".repeat(201)), `${"x".repeat(200)}… (1 more characters)`);
});

/** Runs `use` with timers that wait until `pass` is called. */
function withStoppedTime(use: (pass: () => void) => void): void {
  const { setTimeout } = globalThis;
  const timers: (() => void)[] = [];
  const stopped = (callback: () => void, milliseconds: number) => {
    assertEquals(milliseconds, 1000);
    timers.push(callback);
  };
  globalThis.setTimeout = stopped as typeof setTimeout;
  try {
    use(() => timers.splice(0).forEach((callback) => callback()));
  } finally {
    globalThis.setTimeout = setTimeout;
  }
}

Deno.test("a limited log prints 40 lines in a second and counts the others", () => {
  withStoppedTime((pass) => {
    const lines: string[] = [];
    const log = limited((line) => lines.push(line));
    for (let count = 1; count <= 500; count++) log(`line ${count}`);
    assertEquals([lines.length, lines[0], lines[39]], [40, "line 1", "line 40"]);
    pass();
    assertEquals(lines.slice(40), ["… and 460 more lines."]);
  });
});

Deno.test("a limited log prints again in the next second, and counts nothing twice", () => {
  withStoppedTime((pass) => {
    const lines: string[] = [];
    const log = limited((line) => lines.push(line));
    for (const count of [41, 40, 1]) {
      for (let line = 0; line < count; line++) log("line");
      pass();
      assertEquals(lines.filter((line) => line === "line").length, Math.min(count, 40));
      assertEquals(lines.splice(0).length, count === 41 ? 41 : count);
    }
    pass();
    assertEquals(lines, []);
  });
});

Deno.test("a limited log prints nothing that acts on a terminal", () => {
  withStoppedTime(() => {
    const lines: string[] = [];
    limited((line) => lines.push(line))("\x1b[31m" + "x".repeat(1_000));
    assertEquals(lines, [String.raw`\u{1b}[31m` + "x".repeat(195) + "… (805 more characters)"]);
  });
});

Deno.test("a log that can't be written fails alone", () => {
  const lines: string[] = [];
  const full = (line: string) => {
    lines.push(line);
    throw new Error("No space left on device");
  };
  unfailing(full)("one");
  withStoppedTime((pass) => {
    const log = limited(full);
    for (let count = 0; count < 41; count++) log("two");
    pass();
  });
  assertEquals([lines.length, lines[0], lines.at(-1)], [42, "one", "… and 1 more lines."]);
});

// Flags.

Deno.test("a flag takes whole numbers within its bounds", () => {
  const numbers = ["1", "007", "65535"].map((text) => wholeNumber("port", text, 1, 65535));
  assertEquals(numbers, [1, 7, 65535]);
});

Deno.test("a flag takes nothing else for a number, and says what it takes", () => {
  for (const text of ["", "0", "65536", "-1", "+1", "1.5", "1e3", "0x10", " 1", "１", "abc"]) {
    const error = assertThrows(() => wholeNumber("port", text, 1, 65535), Error);
    assertEquals(error.message, `--port takes a whole number from 1 to 65535, not "${text}".`);
  }
});

Deno.test("a mistake in the command line is marked as those that the platform finds", () => {
  const codeOf = (error: Error) => `${"code" in error && error.code}`;
  const found = assertThrows(() => parseArgs({ args: ["--no-such-flag"] }), Error);
  const own = assertThrows(() => wholeNumber("port", "x", 0), Error);
  for (const error of [found, own, usageError("why")]) assertMatch(codeOf(error), /^ERR_PARSE_AR/);
  assertEquals(usageError("why").message, "why");
});

/** What a server says of its flags. It never gets as far as to listen. */
function complaint(...args: string[]): string {
  const { values } = parseArgs({ args, options: SERVER_FLAGS });
  const run = () => runServer("Server", { message: silent }, values, { port: 0 });
  return assertThrows(run, Error).message;
}

Deno.test("a certificate without its key is refused, and a key without its certificate", () => {
  assertEquals(complaint("--cert", "a.pem"), "--cert and --key need each other.");
  assertEquals(complaint("--key", "a.pem"), "--cert and --key need each other.");
});

Deno.test("an origin that no page can have is refused", () => {
  const origins = ["example.com", "https://example.com/", "https://*.example.com", "wss://x"];
  origins.push("https://EXAMPLE.com", "https://example.com:443", "file://", "", "**", "https://");
  for (const origin of origins) {
    const line = complaint("--origin", origin);
    assert(/^--origin takes/.test(line) && line.endsWith(`not "${origin}".`), line);
  }
});

Deno.test("origins that pages have are taken", () => {
  const origins = ["*", "null", "https://example.com", "http://example.com:8080", "http://[::1]"];
  const flags = origins.flatMap((origin) => ["--origin", origin]);
  // The next mistake is told, so there was none before it.
  assertMatch(complaint(...flags, "--port", "x"), /^--port takes/);
});

Deno.test("every limit refuses what is no number in its bounds", () => {
  const cases = [["port", "65536"], ["max-message", "0"], ["max-clients", "0"]];
  for (const [flag, text] of [...cases, ["max-waiting", "1 GiB"]]) {
    const start = `--${flag} takes a whole number from `;
    assert(complaint(`--${flag}`, text).startsWith(start), flag);
  }
});

// Handshakes.

/** The article's handshake, changed; `null` leaves a header out. */
function handshake(changes: Record<string, string | null> = {}, init: RequestInit = {}): Request {
  const headers = new Headers({
    Host: "localhost",
    Upgrade: "websocket",
    Connection: "Upgrade",
    "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7w==",
    "Sec-WebSocket-Version": "13",
  });
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) headers.delete(name);
    else headers.set(name, value);
  }
  return new Request("http://localhost/", { headers, ...init });
}

const statusFor = (changes: Record<string, string | null>) =>
  refuseHandshake(handshake(changes))?.status;

Deno.test("the article's handshake is let in", () => {
  assertEquals(refuseHandshake(handshake()), undefined);
});

Deno.test("the words of a handshake may be in capitals and in lists", () => {
  for (const Upgrade of ["WebSocket", "WEBSOCKET", "h2c, websocket", "websocket,h2c"]) {
    for (const Connection of ["upgrade", "UPGRADE", "keep-alive, Upgrade"]) {
      assertEquals(statusFor({ Upgrade, Connection }), undefined, `${Upgrade}, ${Connection}`);
    }
  }
});

Deno.test("who does not ask for a WebSocket is told to upgrade", () => {
  for (const Upgrade of [null, "", "h2c", "websockets", "web socket"]) {
    assertEquals(statusFor({ Upgrade }), 426, `${Upgrade}`);
  }
  for (const Connection of [null, "close", "keep-alive"]) {
    assertEquals(statusFor({ Connection }), 426, `${Connection}`);
  }
  assertEquals(refuseHandshake(handshake({ Upgrade: null }))?.headers.get("upgrade"), "websocket");
});

Deno.test("a handshake that is no GET is told so", () => {
  for (const method of ["POST", "HEAD", "OPTIONS"]) {
    const response = refuseHandshake(handshake({}, { method }));
    assertEquals([response?.status, response?.headers.get("allow")], [405, "GET"]);
  }
});

Deno.test("another version of the protocol is told which one is spoken", () => {
  for (const version of [null, "8", "12", "013", "13, 8", "x"]) {
    const response = refuseHandshake(handshake({ "Sec-WebSocket-Version": version }));
    const headers = ["sec-websocket-version", "upgrade"].map((name) => response?.headers.get(name));
    assertEquals([response?.status, ...headers], [426, "13", "websocket"]);
  }
});

Deno.test("the key of a handshake is 16 bytes in base64", () => {
  const whole = "wDqumtseNBJdhkihL6PW7w==";
  for (const key of [null, "", "abc", whole.slice(0, -2), `${whole}=`, whole.replace("w", "!")]) {
    assertEquals(statusFor({ "Sec-WebSocket-Key": key }), 400, `${key}`);
  }
});

Deno.test("a handshake says which host it wants", async () => {
  const response = refuseHandshake(handshake({ Host: null }));
  assertEquals(response?.status, 400);
  assertEquals(await response?.text(), "A handshake needs a Host header.\n");
});

// Tokens.

const TOKEN = "correct horse battery staple";

/** The status with which a request is refused, and what is logged of it. */
function askForToken(request: Request): [number | undefined, string[]] {
  const lines: string[] = [];
  const response = requireToken(TOKEN, (line) => lines.push(line))(request);
  if (response) assertEquals(response.headers.get("www-authenticate"), "Bearer");
  return [response?.status, lines];
}

const REFUSED: ReturnType<typeof askForToken> = [401, [
  "Refused a client without the right token.",
]];
const withQuery = (query: string) => new Request(`http://localhost/${query}`, handshake());

Deno.test("the right token opens, in a header or in the URL", () => {
  for (const scheme of ["Bearer", "bearer", "BEARER "]) {
    assertEquals(askForToken(handshake({ Authorization: `${scheme} ${TOKEN}` })), [undefined, []]);
  }
  const query = `?room=red&token=${encodeURIComponent(TOKEN)}`;
  assertEquals(askForToken(withQuery(query)), [undefined, []]);
});

Deno.test("no token, or another one, is refused, and the log does not repeat it", () => {
  assertEquals(askForToken(handshake()), REFUSED);
  assertEquals(askForToken(withQuery("?token")), REFUSED);
  for (const token of ["", "x", TOKEN.slice(1), TOKEN.slice(0, -1), `${TOKEN}s`, TOKEN + TOKEN]) {
    assertEquals(askForToken(handshake({ Authorization: `Bearer ${token}` })), REFUSED, token);
    assertEquals(askForToken(withQuery(`?token=${encodeURIComponent(token)}`)), REFUSED, token);
  }
  assertEquals(askForToken(handshake({ Authorization: `Basic ${btoa(TOKEN)}` })), REFUSED);
  assertEquals(askForToken(handshake({ Authorization: TOKEN })), REFUSED);
});

Deno.test("a wrong token in the header is not made good by one in the URL", () => {
  const headers = handshake({ Authorization: "Bearer x" }).headers;
  const url = `http://localhost/?token=${encodeURIComponent(TOKEN)}`;
  assertEquals(askForToken(new Request(url, { headers })), REFUSED);
});

Deno.test("the page needs no token, a push does", () => {
  for (const method of ["GET", "HEAD"]) {
    assertEquals(askForToken(new Request("http://localhost/", { method })), [undefined, []]);
  }
  const push = { method: "POST", body: "hello" };
  assertEquals(askForToken(new Request("http://localhost/", push)), REFUSED);
  const headers = { Authorization: `Bearer ${TOKEN}` };
  const allowed = new Request("http://localhost/", { ...push, headers });
  assertEquals(askForToken(allowed), [undefined, []]);
});

// Echo.

Deno.test("echo answers text in the article's sentence, and prints both", () => {
  const { sent, closed, socket } = standIn();
  const printed: string[] = [];
  echo((line) => printed.push(line)).message(socket, "hello");
  assertMatch(`${sent}`, REPLY);
  assertEquals(printed, [`${sent}`, "Send reply"]);
  assertEquals(closed, []);
});

Deno.test("echo tells the local time, which never runs backwards", () => {
  const { sent, socket } = standIn();
  const handler = echo(silent);
  const before = Temporal.Now.plainDateTimeISO().subtract({ seconds: 1 });
  for (let count = 0; count < 2_000; count++) handler.message(socket, "hello");
  assertEquals(sent, sent.toSorted());
  const [, time] = `${sent[0]}`.match(REPLY) ?? [];
  const stamp = Temporal.PlainDateTime.from(time.replace(" ", "T"));
  assert(Temporal.PlainDateTime.compare(before, stamp) <= 0, `${stamp} is before ${before}`);
  assert(Temporal.PlainDateTime.compare(stamp, Temporal.Now.plainDateTimeISO()) <= 0);
});

Deno.test("echo sends binary back as it is, and prints how much it was", () => {
  const { sent, socket } = standIn();
  const printed: string[] = [];
  const data = new Uint8Array([0, 255, 128]).buffer;
  echo((line) => printed.push(line)).message(socket, data);
  assert(sent[0] === data);
  assertEquals(printed, ["Data received, 3 bytes of binary.", "Send reply"]);
});

Deno.test("echo closes with 1000 after the first answer, if it is told to", () => {
  const { sent, closed, socket } = standIn();
  echo(silent, { once: true }).message(socket, "hello");
  assertEquals([sent.length, closed], [1, [1000]]);
});

// Rooms.

/** A room handler with what it prints, and with clients that are only stood in for. */
function startRooms(refuse?: (request: Request) => Response | undefined) {
  const rooms: Rooms = new Map();
  const [lines, said]: string[][] = [[], []];
  const handler: Handler = room(rooms, {
    log: (line) => lines.push(line),
    print: (line) => said.push(line),
    refuse,
  });
  const urlOf = (name?: string) =>
    `http://localhost/${name === undefined ? "" : `?room=${encodeURIComponent(name)}`}`;
  return {
    rooms,
    lines,
    said,
    enter(name?: string) {
      const client = standIn();
      handler.open?.(client.socket, new Request(urlOf(name)));
      return {
        ...client,
        say: (data: string | ArrayBuffer) => handler.message(client.socket, data),
        leave: (code: number) => handler.close?.(client.socket, new CloseEvent("close", { code })),
      };
    },
    /** Makes a request, and returns the status of the answer with its text. */
    async ask(query: string, init?: RequestInit): Promise<[number, string] | undefined> {
      const request = new Request(`http://localhost/${query}`, init);
      const info = { completed: new Promise(() => {}) } as Deno.ServeHandlerInfo<Deno.NetAddr>;
      const response = await handler.request?.(request, info);
      if (response instanceof Response) return [response.status, await response.text()];
    },
  };
}

Deno.test("a broadcast reaches everyone it is meant for", () => {
  const clients = [standIn(), standIn(), standIn()];
  broadcast(clients.slice(1).map(({ socket }) => socket), "hello");
  assertEquals(clients.map(({ sent }) => sent), [[], ["hello"], ["hello"]]);
});

Deno.test("who is in a room hears everything in it as it was said, the sender too", () => {
  const { enter, said } = startRooms();
  const clients = [enter(), enter()];
  const data = new Uint8Array([0, 255]).buffer;
  clients[0].say("hello");
  clients[1].say(data);
  for (const { sent } of clients) {
    assertEquals(sent, ["hello", data]);
    assert(sent[1] === data);
  }
  assertEquals(said, ["hello", "2 bytes of binary."]);
});

Deno.test("who has left hears nothing more, and the lines tell who comes and goes", () => {
  const { enter, lines } = startRooms();
  const [first, second] = [enter(), enter("red")];
  const third = enter();
  first.leave(1000);
  third.say("hello");
  assertEquals([first.sent, second.sent, third.sent], [[], [], ["hello"]]);
  second.leave(1006);
  assertEquals(lines, [
    "A client joined, 1 connected.",
    "A client joined (room red), 1 connected.",
    "A client joined, 2 connected.",
    "A client left (1000), 1 connected.",
    "A client left (1006) (room red), 0 connected.",
  ]);
});

Deno.test("rooms do not mix, and the common room is one of its own", () => {
  const { enter } = startRooms();
  const [common, red, blue, other] = [enter(), enter("red"), enter("blue"), enter("red")];
  common.say("to all in common");
  red.say("to red");
  blue.say("to blue");
  assertEquals(common.sent, ["to all in common"]);
  assertEquals(red.sent, ["to red"]);
  assertEquals(blue.sent, ["to blue"]);
  assertEquals(other.sent, ["to red"]);
});

Deno.test("an empty room is forgotten", () => {
  const { enter, rooms } = startRooms();
  const clients = [enter("red"), enter("red"), enter()];
  assertEquals([...rooms.keys()], ["red", ""]);
  clients[0].leave(1000);
  assertEquals([...rooms.keys()], ["red", ""]);
  for (const client of clients.slice(1)) client.leave(1000);
  assertEquals(rooms.size, 0);
  // It can be entered again.
  const back = enter("red");
  back.say("hello");
  assertEquals(back.sent, ["hello"]);
});

Deno.test("the name of a room is any text of 1 to 100 characters, given once", async () => {
  const { ask } = startRooms();
  for (const query of ["", "?token=x", "?room=red", `?room=${"👋".repeat(100)}`, "?room=a%20b"]) {
    assertEquals(await ask(query), undefined, query);
  }
  for (const query of ["?room=", "?room", "?room=a&room=b", `?room=${"x".repeat(101)}`]) {
    assertEquals((await ask(query))?.[0], 400, query);
  }
});

Deno.test("a push is heard in its room, and the answer tells by how many", async () => {
  const { ask, enter, said } = startRooms();
  const [common, red] = [enter(), enter("red")];
  const push = (body: BodyInit) => ({ method: "POST", body });
  assertEquals(await ask("", push("hello 🦕")), [202, '{"clients":1}\n']);
  assertEquals(await ask("?room=red", push("")), [202, '{"clients":1}\n']);
  assertEquals(await ask("?room=blue", push("hello?")), [202, '{"clients":0}\n']);
  assertEquals([common.sent, red.sent], [["hello 🦕"], [""]]);
  assertEquals(said, ["hello 🦕", "Room red: ", "Room blue: hello?"]);
});

Deno.test("what is no text, or is pushed elsewhere, is heard by nobody", async () => {
  const { ask, enter } = startRooms();
  const { sent } = enter();
  const push = (body: BodyInit) => ({ method: "POST", body });
  assertEquals((await ask("", push(new Uint8Array([0xff]))))?.[0], 400);
  assertEquals(await ask("elsewhere", push("hello")), undefined);
  assertEquals(await ask("", { method: "PUT", body: "hello" }), undefined);
  assertEquals(sent, []);
});

Deno.test("who is refused can't push", async () => {
  const { ask, enter } = startRooms(requireToken(TOKEN, silent));
  const { sent } = enter();
  const push = { method: "POST", body: "hello" };
  assertEquals((await ask("", push))?.[0], 401);
  assertEquals(sent, []);
  const headers = { Authorization: `Bearer ${TOKEN}` };
  assertEquals((await ask("", { ...push, headers }))?.[0], 202);
  assertEquals(sent, ["hello"]);
});
