/// <reference types="./std.d.ts" />
// What the reference and the recipes show. Every block of code in them is run, by a test here or in
// deploy_test.ts.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { cp } from "node:fs/promises";
import { eventually, freePort, TestClient, within } from "./helpers.ts";
import { Machine } from "./machine.ts";
import { CHROMIUM, CHROMIUM_FLAGS, test } from "./needs.ts";
import { ask, handshake } from "./raw.ts";
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

interface AnswerOptions {
  flags?: string[];
  needs?: "linux" | "chromium";
  /** What the script says on standard error. */
  errors?: RegExp;
}

/** Registers a test of a script of the reference, on a free port, beside a copy of the library. */
function answer(
  name: string,
  promise: string,
  fn: (url: string, folder: string) => Promise<void>,
  { flags = [], needs = "linux", errors = /^$/ }: AnswerOptions = {},
): void {
  tested.add(name);
  test({ needs }, `${name}: ${promise}`, async () => {
    const port = freePort();
    await using folder = await copyLibrary(port);
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
  for (const value of ["1", "2", "3", "4", "5"]) assertEquals(await client.next(), value);
  // At the pace at first, it would take five seconds.
  assert(performance.now() - start < 4_000);
});

answer("room_server.ts", "a client that comes back hears what it has missed", async (url, cwd) => {
  await using plain = await TestClient.open(url);
  const follower = await TestClient.open(`${url}?after=`);
  const position = await follower.next();
  await follower.close();
  plain.send("missed");
  assertEquals(await plain.next(), "missed");
  await using again = await TestClient.open(`${url}?after=${position}`);
  assertEquals(await again.next(), position);
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

answer("upload.ts", "an upload is on the disk as it was sent", async (url, folder) => {
  await using client = await TestClient.open(url);
  const pieces = [1, 2, 3].map((seed) => new Uint8Array(100_000).map((_, index) => index * seed));
  for (const piece of pieces) {
    client.send(piece);
    assertEquals(await client.next(), "100000 bytes written.");
  }
  const [{ name }] = [...Deno.readDirSync(folder)].filter(({ name }) => name.endsWith(".upload"));
  const stored = await Deno.readFile(`${folder}/${name}`);
  assertEquals(stored, new Uint8Array(await new Blob(pieces).arrayBuffer()));
  client.send("text");
  assertEquals((await within(client.closed, "the end")).code, 1003);
}, { flags: ["--allow-write"] });

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

answer("app.ts", "one server has routes and clients", async (url) => {
  const response = await fetch(url.replace("ws", "http"));
  assertEquals(await response.text(), "This is the rest of the app.\n");
  await using client = await TestClient.open(url);
  client.send("hello");
  assertEquals(await client.next(), "hello");
}, { errors: /^Listening on [^\n]*$/ });

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
  { errors: /^Nobody awaited this: Error: It is forgotten\.\n/ },
);

answer("json.ts", "JSON is answered, and anything else closes with 1007", async (url) => {
  await using client = await TestClient.open(url);
  client.send(`{"name":"Li"}`);
  assertMatch(String(await client.next()), /^\{"order":\{"name":"Li"\},"at":\d+\}$/);
  client.send("no");
  const { code, reason } = await within(client.closed, "the end");
  assertEquals([code, reason], [1007, "Send JSON."]);
});

test(
  { needs: ["linux", "unshare"] },
  "handler_test.ts passes, the types of all answers are right, and the tasks of deno.json work",
  async () => {
    await using machine = await Machine.start();
    await machine.save([...stepOf(6), ...libraryBlocks()]);
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
