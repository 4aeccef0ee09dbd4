/// <reference types="./std.d.ts" />
// What the reference and the recipes show. Every block of code in them is run, by a test here or in
// deploy_test.ts.

import { assert, assertEquals, assertLessOrEqual, assertMatch } from "@std/assert";
import { Buffer } from "node:buffer";
import { createHmac } from "node:crypto";
import { cp } from "node:fs/promises";
import { dirname } from "node:path";
import { eventually, freePort, TestClient, within } from "./helpers.ts";
import { Machine } from "./machine.ts";
import { CHROMIUM, CHROMIUM_FLAGS, isThere, test } from "./needs.ts";
import { ask, frame, handshake, RawClient } from "./raw.ts";
import type { Program } from "./programs.ts";
import {
  deno,
  libraryBlocks,
  makeFolder,
  read,
  RECIPES,
  REFERENCE,
  ROOT,
  sectionOf,
  stepOf,
} from "./readme.ts";

/** The names of the blocks that are run. */
const tested = new Set<string>();

/** A copy of the library, with the scripts of the reference, whose servers are at this port. */
async function copyLibrary(port: number) {
  const folder = await makeFolder();
  for (const name of ["websockets", "deno.lock"]) {
    await cp(ROOT + name, `${folder.path}/${name}`, { recursive: true });
  }
  for (const block of libraryBlocks().filter(({ name }) => name)) {
    const text = block.text.replace(/(port: |localhost:)8000/, `$1${port}`);
    await Deno.writeTextFile(`${folder.path}/${block.name}`, text);
  }
  return folder;
}

/** Waits until a server listens. */
async function listening(program: Program, port: number) {
  await eventually(async () => {
    (await Deno.connect({ port })).close();
  }).catch(() => Promise.reject(new Error(program.errors.all.join("\n"))));
}

/** Gives constants of a script other values, for what would take long or much. */
async function changeConstants(path: string, constants: Record<string, number>) {
  let text = await Deno.readTextFile(path);
  for (const [name, value] of Object.entries(constants)) {
    const declaration = RegExp(`(?<=^(const|let) ${name} = ).*(?=;$)`, "m");
    assertMatch(text, declaration);
    text = text.replace(declaration, `${value}`);
  }
  await Deno.writeTextFile(path, text);
}

interface AnswerOptions {
  flags?: string[];
  needs?: "linux" | "chromium" | ("linux" | "hono")[];
  /** What is in the folder as well. */
  files?: Record<string, Uint8Array<ArrayBuffer>>;
  /** What the script has in place of its own constants. */
  constants?: Record<string, number>;
  /** What the script says on standard error. */
  errors?: RegExp;
}

/** Registers a test of a script of the reference, on a free port, beside a copy of the library. */
function answer(
  name: string,
  promise: string,
  fn: (url: string, folder: string) => Promise<void>,
  { flags = [], needs = "linux", files = {}, constants = {}, errors = /^$/ }: AnswerOptions = {},
): void {
  tested.add(name);
  test({ needs }, `${name}: ${promise}`, async () => {
    const port = freePort();
    await using folder = await copyLibrary(port);
    for (const [file, bytes] of Object.entries(files)) {
      await Deno.mkdir(dirname(`${folder.path}/${file}`), { recursive: true });
      await Deno.writeFile(`${folder.path}/${file}`, bytes);
    }
    await changeConstants(`${folder.path}/${name}`, constants);
    await using program = deno(["run", "--allow-net", ...flags, name], { cwd: folder.path });
    await listening(program, port);
    await fn(`ws://localhost:${port}/`, folder.path);
    assertMatch(program.errors.all.join("\n"), errors);
  });
}

test({ needs: "linux" }, "stay.ts: it hears the feed, and again after a restart", async () => {
  const port = freePort();
  await using folder = await copyLibrary(port);
  await using client = deno(["run", "--allow-net", "stay.ts"], { cwd: folder.path });
  for (const _ of ["at first", "again"]) {
    await using _feed = deno(["run", "--allow-net", "feed.ts"], { cwd: folder.path });
    for (const value of ["0", "1"]) await client.prints(RegExp(`^${value}$`));
  }
  for (const line of client.errors.all) assertMatch(line, /^No connection to .*: waiting\.$/);
});
tested.add("stay.ts");

answer("users.ts", "only a client with a session comes in, and its user is known", async (url) => {
  await using client = await TestClient.open(url, { cookie: "a=b; session=9f86d081" });
  assertMatch(String(await client.next()), /^Li, (127\.0\.0\.1|::1)$/);
  const { status } = await ask(Number(new URL(url).port), handshake({ cookie: "session=guessed" }));
  assertEquals(status, 401);
}, { errors: /^Refused a client with 401\.$/ });

answer("topics.ts", "a client hears the topics that it has subscribed to", async (url) => {
  await using one = await TestClient.open(url);
  await using two = await TestClient.open(url);
  for (const text of ["+red", "+blue", "red a"]) one.send(text);
  assertEquals(await one.next(), "red a");
  for (const text of ["+red", "red b"]) two.send(text);
  assertEquals([await one.next(), await two.next()], ["red b", "red b"]);
  for (const text of ["-red", "red c", "blue d"]) one.send(text);
  assertEquals([await one.next(), await two.next()], ["blue d", "red c"]);
});

answer("topics.ts", "a client keeps few topics, and short ones", async (url) => {
  await using client = await TestClient.open(url);
  client.send(`+${"x".repeat(33)}`);
  client.send("x".repeat(33));
  for (let topic = 0; topic < 20; topic++) client.send(`+${topic}`);
  client.send("0 is heard");
  assertEquals(await client.next(), "0 is heard");
  client.send("+20");
  assertEquals((await within(client.closed, "the end")).code, 1008);
});

answer("feed.ts", "a client hears the feed, and says how fast", async (url) => {
  await using client = await TestClient.open(url);
  assertEquals(await client.next(), "0");
  const start = performance.now();
  client.send("fast");
  for (let value = 1; value <= 15; value++) assertEquals(await client.next(), `${value}`);
  // At the pace at first, it would take fifteen seconds.
  assert(performance.now() - start < 14_000);
});

answer("room_server.ts", "a client that comes back hears what it has missed", async (url, cwd) => {
  await using plain = await TestClient.open(url);
  const follower = await TestClient.open(`${url}?after=`);
  const position = await follower.next();
  await follower.close();
  plain.send("missed");
  assertEquals(await plain.next(), "missed");
  await using again = await TestClient.open(`${url}?after=${position}`);
  assertEquals(await again.next(), `${position} missed 1`);
  assertMatch(`${await again.next()}`, /^\w+\.1\nmissed$/);
  // The other script says hello, and hears it once, although it may be sent again.
  await using client = deno(["run", "--allow-net", "room_client.ts"], { cwd });
  const said = `${await plain.next()}`;
  await client.prints(/^hello$/);
  for (const text of [said, "no id", "x".repeat(12) + " the end"]) plain.send(text);
  await client.prints(/^the end$/);
  assertEquals(client.lines.all, ["hello", "the end"]);
});
tested.add("room_client.ts");

answer("others.ts", "everyone but the sender hears a message", async (url) => {
  await using one = await TestClient.open(url);
  await using two = await TestClient.open(url);
  one.send("from one");
  assertEquals(await two.next(), "from one");
  two.send("from two");
  assertEquals(await one.next(), "from two");
  assertEquals([one, two].map(({ messages }) => messages.all.length), [1, 1]);
});

answer(
  "newest.ts",
  "a client gets the newest value after each of its answers, and none between",
  async (url) => {
    await using client = await TestClient.open(url);
    const first = Number(await client.next());
    await using other = await TestClient.open(url);
    await eventually(async () => {
      other.send("next");
      assert(Number(await other.next()) > first + 2);
    });
    assertEquals(client.messages.all.length, 1);
    client.send("next");
    assert(Number(await client.next()) > first + 2);
  },
);

/** The uploads in a folder. */
function uploadsIn(folder: string): string[] {
  const names = [...Deno.readDirSync(folder)].map(({ name }) => name);
  return names.filter((name) => name.endsWith(".upload"));
}

answer(
  "upload.ts",
  "an upload is on the disk as it was sent, or not at all",
  async (url, folder) => {
    const bytes = new Uint8Array(200_001).map((_, index) => index * 7);
    await Deno.writeFile(`${folder}/sent`, bytes);
    const args = ["run", "--allow-net", "--allow-read", "send.ts", "sent"];
    await using sender = deno(args, { cwd: folder });
    assertEquals([await sender.end(), sender.errors.all], [0, []]);
    const [name] = uploadsIn(folder);
    assertEquals(sender.lines.all, [`200001 bytes in ${name}.`]);
    const stored = await Deno.readFile(`${folder}/${name}`);
    assertEquals(stored.length, bytes.length);
    assertEquals(stored, bytes);

    await using client = await TestClient.open(url);
    client.send(bytes);
    await client.next();
    assertEquals(uploadsIn(folder).length, 2);
    client.send("text");
    assertEquals((await within(client.closed, "the end")).code, 1003);
    await eventually(() => assertEquals(uploadsIn(folder), [name]));
  },
  { flags: ["--allow-write"] },
);
tested.add("send.ts");

answer("upload.ts", "an upload is bounded, and all of them together are", async (url, folder) => {
  const send = async (client: TestClient, pieces: number) => {
    for (let count = 0; count < pieces; count++) {
      client.send(new Uint8Array(100_000));
      await client.next();
    }
  };
  const refusal = async (client: TestClient) => {
    client.send(new Uint8Array(100_000));
    return (await within(client.closed, "the end")).code;
  };
  await using large = await TestClient.open(url);
  await send(large, 3);
  assertEquals(await refusal(large), 1009);
  await eventually(() => assertEquals(uploadsIn(folder), []));
  await using one = await TestClient.open(url);
  await using two = await TestClient.open(url);
  await send(one, 3);
  await send(two, 1);
  assertEquals(await refusal(two), 1013);
  await one.close();
  await eventually(() => assertEquals(uploadsIn(folder), []));
  // What is removed leaves its room to others.
  await using next = await TestClient.open(url);
  await send(next, 3);
}, { flags: ["--allow-write"], constants: { MAX_UPLOAD: 300_000, room: 450_000 } });

answer("page.ts", "a page of your own gets its answer", async (url) => {
  const { chromium } = await import("playwright-core");
  const options = { executablePath: CHROMIUM, args: CHROMIUM_FLAGS };
  const browser = await chromium.launch(options);
  try {
    const page = await browser.newPage();
    await page.goto(url.replace("ws", "http"));
    await page.getByText("Welcome.").waitFor();
  } finally {
    await browser.close();
  }
}, { needs: "chromium" });
tested.add("my_page.html");

answer("app.ts", "one server has a page, bodies, CORS and clients", async (url) => {
  const http = url.replace("ws", "http");
  assertMatch(await (await fetch(http)).text(), /<title>My page/);
  await using client = await TestClient.open(url);
  assertEquals(await client.next(), "No note yet.");
  const ask = async (method: string, path: string, body?: string) => {
    const response = await fetch(http + path, { method, body });
    await response.body?.cancel();
    return [response.status, response.headers.get("access-control-allow-origin")];
  };
  assertEquals(await ask("OPTIONS", "note"), [204, "https://example.com"]);
  assertEquals(await ask("PUT", "note", "x".repeat(1_001)), [413, "https://example.com"]);
  assertEquals(await ask("PUT", "note", "hello"), [204, "https://example.com"]);
  assertEquals(await client.next(), "hello");
  assertEquals(await ask("GET", "other"), [404, null]);
}, { errors: /^Listening on [^\n]*$/ });

answer("app.ts", "a body that ends early prints nothing", async (url) => {
  const port = Number(new URL(url).port);
  for (let count = 0; count < 5; count++) {
    using _lost = await RawClient.open(port, "PUT /note HTTP/1.1\r\nContent-Length: 9\r\n\r\nhel");
  }
  await using client = await TestClient.open(url);
  assertEquals(await client.next(), "No note yet.");
}, { errors: /^Listening on [^\n]*$/ });

answer("hono.ts", "Hono has its routes, and the library the clients", async (url) => {
  await using client = await TestClient.open(url);
  client.send("hello");
  assertEquals(await client.next(), "hello");
  const get = (path: string) => fetch(url.replace("ws", "http") + path);
  assertEquals(await (await get("clients")).json(), { clients: 1 });
  assertEquals(await (await get("public/style.css")).text(), "p {}");
  const outside = await get("public/..%2fdeno.json");
  assertEquals([outside.status, await outside.text()], [404, "404 Not Found"]);
}, {
  needs: ["linux", "hono"],
  flags: ["--allow-read"],
  files: { "public/style.css": new TextEncoder().encode("p {}") },
  errors: /^(Download .*\n)*Listening on [^\n]*$/,
});

answer(
  "forgotten.ts",
  "a promise that is forgotten is told, and the server goes on",
  async (url) => {
    for (const text of ["one", "two"]) {
      await using client = await TestClient.open(url);
      client.send(text);
      assertEquals(await client.next(), text);
    }
  },
);

answer(
  "json.ts",
  "what fits the schema is taken, and a client hears what is wrong",
  async (url) => {
    await using client = await TestClient.open(url);
    const wrongItem = "`item` is a word of 1 to 20 letters.";
    const wrongCount = "`count` is 1, 2 or 3.";
    const cases: [message: string, answer: unknown][] = [
      ['{"item":"tea","count":2}', { ordered: { item: "tea", count: 2 } }],
      ['{"item":"tea","count":2,"__proto__":{"a":1}}', { ordered: { item: "tea", count: 2 } }],
      ['{"item":"tea","count":"2"}', { errors: [wrongCount] }],
      ['{"item":"tea","count":1e999}', { errors: [wrongCount] }],
      [`{"item":"${"x".repeat(21)}","count":1}`, { errors: [wrongItem] }],
      ['{"__proto__":{"item":"tea","count":2}}', { errors: [wrongItem, wrongCount] }],
      ["null", { errors: [wrongItem, wrongCount] }],
      [`${"[".repeat(400)}${"]".repeat(400)}`, { errors: [wrongItem, wrongCount] }],
      ["no", { errors: ["Send JSON."] }],
    ];
    for (const [message, expected] of cases) {
      client.send(message);
      assertEquals(JSON.parse(String(await client.next())), expected, message);
    }
  },
);

const JWT_KEY = new TextEncoder().encode("a key that nobody guesses");

/** A JWT with these claims, signed with HS256. */
function jwt(claims: Record<string, unknown>, key = JWT_KEY): string {
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
}

answer(
  "jwt.ts",
  "only a client with a JWT that is valid comes in, and its user is known",
  async (url) => {
    const exp = Math.floor(Date.now() / 1000) + 3_600;
    const valid = jwt({ sub: "Li", exp });
    await using client = await TestClient.open(url, { cookie: `a=b; token=${valid}` });
    assertEquals(await client.next(), "Hello Li.");
    const [head, claims, signature] = valid.split(".");
    const others = [
      jwt({ sub: "Li", exp: 1 }),
      jwt({ sub: "Li" }),
      jwt({ sub: "Li", exp }, new Uint8Array(32)),
      `${head}.${claims}.`,
      `${head}.${jwt({ sub: "Wang", exp }).split(".")[1]}.${signature}`,
      "no",
    ];
    for (const token of others) {
      const request = handshake({ cookie: `token=${token}` });
      assertEquals((await ask(Number(new URL(url).port), request)).status, 401, token);
    }
  },
  {
    flags: ["--allow-read"],
    files: { "jwt.key": JWT_KEY },
    errors: /^(Refused a client with 401\.\n?)+$/,
  },
);

answer(
  "presence.ts",
  "everyone hears who is here, and few lists of many who come and go",
  async (url) => {
    const start = performance.now();
    await using one = await TestClient.open(`${url}?name=Li`);
    const lists = () => one.messages.all.length;
    const hears = (list: string) => one.messages.next((message) => message === list, list);
    await hears('["Li"]');
    for (let count = 0; count < 20; count++) {
      await using _other = await TestClient.open(`${url}?name=${"x".repeat(20)}`);
    }
    await using two = await TestClient.open(`${url}?name=Wang`);
    await hears('["Li","Wang"]');
    assertEquals(await two.next(), '["Li","Wang"]');
    await two.close();
    await hears('["Li"]');
    // A list comes after half a second at the earliest.
    assertLessOrEqual(lists(), (performance.now() - start) / 500);
    for (const name of ["", "x".repeat(21), "a%0Ab"]) {
      await using other = await TestClient.open(`${url}?name=${name}`);
      assertEquals((await within(other.closed, "the end")).code, 1008);
    }
  },
);

test({ needs: "linux" }, "calls.ts: both ends call, get an answer and give a call up", async () => {
  const port = freePort();
  await using folder = await copyLibrary(port);
  const run = (name: string) => deno(["run", "--allow-net", name], { cwd: folder.path });
  await using server = run("calls_server.ts");
  await listening(server, port);
  await using client = run("calls_client.ts");
  assertEquals([await client.end(), client.errors.all], [0, []]);
  const [time, ...others] = client.lines.all;
  assertMatch(time, /^\d{13}$/);
  assertEquals(others, ["You are Li.", "TimeoutError"]);
  assertEquals(server.errors.all, []);
});
tested.add("calls.ts").add("calls_client.ts");

answer("calls_server.ts", "a client has ten calls at a time, and gives one up", async (url) => {
  await using client = await TestClient.open(url);
  const tell = (told: unknown) => client.send(JSON.stringify(told));
  const hears = async () => JSON.parse(String(await client.next()));
  const question = "something slow";
  // A number that is in use already is no other call.
  for (const id of [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 11]) tell({ id, question });
  assertEquals([await hears(), await hears()], [{ id: 9, busy: true }, { id: 11, busy: true }]);
  // Its place is free again, for a question that makes the server ask. That is given up with it.
  tell({ id: 1, cancel: true });
  await eventually(async () => {
    tell({ id: 12, question: "my name" });
    assertEquals(await hears(), { id: 1, question: "your name" });
  });
  tell({ id: 12, cancel: true });
  assertEquals(await hears(), { id: 1, cancel: true });
  for (const message of ["no", "null", '{"id":1e999}', '{"id":"1"}']) {
    await using other = await TestClient.open(url);
    other.send(message);
    assertEquals((await within(other.closed, "the end")).code, 1007, message);
  }
});

answer("limits.ts", "an address has three connections, however many come at once", async (url) => {
  const port = Number(new URL(url).port);
  await using stack = new AsyncDisposableStack();
  const clients = await Promise.all(Array.from({ length: 10 }, () => RawClient.open(port)));
  for (const client of clients) stack.use(client);
  for (const client of clients) await client.write(handshake());
  const answers = await Promise.all(clients.map(async (client) => {
    if (!(await client.head()).includes(" 101 ")) return "429";
    await client.write(frame(1, "hello"));
    return new TextDecoder().decode((await client.take(7)).subarray(2));
  }));
  assertEquals(answers.filter((each) => each === "hello").length, 3, `${answers}`);
  for (const client of clients) client[Symbol.dispose]();
  const others: TestClient[] = [];
  for (const _ of ["one", "two", "three"]) {
    others.push(stack.use(await eventually(() => TestClient.open(url))));
  }
  const [fast] = others;
  for (let count = 0; count <= 10; count++) fast.send("hello");
  assertEquals((await within(fast.closed, "the end")).code, 1008);
  assertEquals(fast.messages.all.length, 10);
}, { errors: /^(Refused a client with 429\.\n?)*$/ });

test(
  { needs: "linux" },
  "heartbeat.ts: a server that hangs is noticed, and comes back",
  async () => {
    const port = freePort();
    await using folder = await copyLibrary(port);
    await changeConstants(`${folder.path}/heartbeat.ts`, { PAUSE: 500 });
    const run = (name: string) => deno(["run", "--allow-net", name], { cwd: folder.path });
    await using server = run("forgotten.ts");
    await listening(server, port);
    await using client = run("heartbeat.ts");
    for (const _ of ["at first", "again"]) await client.prints(/^ping$/);
    await server.pause();
    await client.prints(/^The server hangs\.$/);
    server.kill("SIGCONT");
    await client.prints(/^ping$/);
    assertEquals(client.errors.all, []);
  },
);
tested.add("heartbeat.ts");

test(
  { needs: "linux" },
  "metrics.ts: Prometheus sees the clients, and who was refused",
  async () => {
    const [port, metricsPort] = [freePort(), freePort()];
    await using folder = await copyLibrary(port);
    await changeConstants(`${folder.path}/metrics.ts`, { METRICS_PORT: metricsPort });
    await using program = deno(["run", "--allow-net", "metrics.ts"], { cwd: folder.path });
    await listening(program, metricsPort);
    await using _client = await TestClient.open(`ws://localhost:${port}/`);
    const page = handshake({ origin: "https://evil.example" });
    assertEquals((await ask(port, page)).status, 403);
    const response = await fetch(`http://localhost:${metricsPort}/`);
    assertEquals(response.headers.get("content-type"), "text/plain; version=0.0.4");
    const lines = (await response.text()).split("\n");
    assertEquals(lines.pop(), "");
    const values = lines.filter((line) => !/^# TYPE [a-z_]+ (gauge|counter)$/.test(line));
    for (const line of values) assertMatch(line, /^[a-z_]+(\{reason="\w+"\})? \d+$/);
    const expected = ["websocket_clients 1", 'websocket_refused_total{reason="origins"} 1'];
    assertEquals(values.filter((line) => !line.endsWith(" 0")), expected);
  },
);
tested.add("metrics.ts");

test(
  { needs: ["linux", "unshare"] },
  "handler_test.ts passes, the types of all answers are right, and the tasks of deno.json work",
  async () => {
    await using machine = await Machine.start();
    const blocks = libraryBlocks().filter(({ name }) => name !== "hono.ts" || isThere("hono"));
    await machine.save([...stepOf(7), ...blocks]);
    await machine.serve("deno task start");
    const tasks = ["check", "test"].map((task) => machine.run(`deno task ${task}`));
    await Array.fromAsync(machine.follow(sectionOf("How do I test a handler?")));
    for (const task of tasks) assertEquals(await task.end(), 0, task.lines.all.join("\n"));
  },
);
tested.add("handler_test.ts");

test({ needs: "run" }, "deno.json of a copy has the same packages", () => {
  const { imports } = JSON.parse(read("deno.json"));
  const copied = JSON.parse(sectionOf("Copy the library")[0].text).imports;
  assertEquals({ ...imports, ...copied }, imports);
});
tested.add("deno.json");

test(
  { needs: ["nats", "unshare"] },
  "two servers joined by NATS are one room, and count their own clients",
  async () => {
    await using machine = await Machine.start();
    const [{ text }] = sectionOf("More than one server");
    const servers = machine.run(text);
    for (const _ of [1, 2]) await servers.prints(/^Broadcast server on /);
    const url = "ws://localhost:9102/?room=red";
    const client = machine.run(`deno run --allow-net websockets '${url}'`, "pipe");
    await servers.prints(/1 connected/);
    const push = machine.run("curl -s -d hello 'http://localhost:9101/?room=red'");
    await push.prints(/^{"clients":0}$/);
    await client.prints(/^hello$/);
  },
);

test({ needs: "run" }, "every block is run, or is a drawing", () => {
  const shells = ["How do I test a handler?", "More than one server"];
  const blocks = libraryBlocks();
  const others = blocks.filter(({ section, tag, name }) =>
    !tested.has(name) && !["nginx", "ini", "mermaid"].includes(tag) &&
    !(tag === "sh" && shells.includes(section))
  );
  assertEquals(others, []);
  assertEquals(
    blocks.length,
    [REFERENCE, RECIPES].flatMap((path) => read(path).match(/^```\w/gm)).length,
    "a block that is not read",
  );
});
