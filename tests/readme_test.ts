/// <reference types="./std.d.ts" />
// What the READMEs say. Every block of code in them is run as it stands, in a fresh copy, and what
// it prints is compared with the lines behind `#`. `NOT_RUN` has the blocks that are not, and why.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { retry } from "@std/async";
import { existsSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { freePort, TestClient, within } from "./helpers.ts";
import { CHROMIUM, CHROMIUM_FLAGS, test } from "./needs.ts";
import { type Program } from "./programs.ts";
import { ask, handshake } from "./raw.ts";
import { CHINESE_WALK, REFERENCE, ROOT, SOON, WALK } from "./readme.ts";
import { assertPrints, copy, deno, Machine, makeFolder } from "./readme.ts";
import { commandsOf, type Item, itemsOf, NOT_RUN, proseOf, read, sectionOf } from "./readme.ts";
import { shows, stepOf, version } from "./readme.ts";

/** Registers a test that only reads, for which it needs the permission. */
function compare(name: string, fn: () => void): void {
  test({ needs: "run" }, name, () => Promise.resolve().then(fn));
}

const EACH_SECOND = { minTimeout: 1_000, multiplier: 1, jitter: 0 };
const ECHO_SERVER = "deno run --allow-net server.ts";
const TEST_COMMAND = "deno run --allow-net websockets";

/** Registers a test of a reader who follows the text. */
function follow(
  name: string,
  fn: (machine: Machine) => Promise<void>,
  needs: "linux" | "nats" = "linux",
): void {
  const run = async () => {
    await using machine = await Machine.start();
    await fn(machine);
  };
  test({ needs: [needs, "unshare"] }, name, run);
}

// The walk.

/** The numbers of the steps that are followed. */
const followed = new Set<number>();

/** Registers a test of a reader who follows a step, and then breaks it. */
function step(
  number: number,
  name: string,
  fn: (machine: Machine, items: Item[]) => Promise<void>,
) {
  followed.add(number);
  follow(`step ${number}: ${name}`, (machine) => fn(machine, stepOf(WALK, number)));
}

follow("the first command starts the echo server", async (machine) => {
  const items = itemsOf(read(WALK)).filter(({ section }) => section.startsWith("WebSocket"));
  const done = await Array.fromAsync(machine.follow(items));
  const commands = done.map(({ command }) => command);
  assertEquals(commands, [`npx -y deno@${version()} run --allow-net server.ts`]);
});

/** The handshake of step 0, with the origin that is to break it. */
function foreignHandshake(): string {
  const { text = "" } = stepOf(WALK, 0).find(({ tag }) => tag === "sh") ?? {};
  const [origin] = proseOf(WALK, 0).match(/-H 'Origin: .*?'/) ?? [];
  return commandsOf(text)[0].command.replace(" | ", ` ${origin} | `);
}

step(0, "the bare server answers the handshake, of any origin", async (machine, items) => {
  await Array.fromAsync(machine.follow(items));
  const asked = machine.run(foreignHandshake());
  await assertPrints(asked, ["HTTP/1.1 101 Switching Protocols", "…"]);
});

step(1, "the echo server refuses a page of another site", async (machine, items) => {
  const [{ program: server }] = await Array.fromAsync(machine.follow(items));
  const asked = machine.run(foreignHandshake());
  const [, status] = proseOf(WALK, 1).match(/`(HTTP.*?)`/) ?? [];
  await assertPrints(asked, [status, "…"]);
  await server.errors.next((line) => line.includes("https://evil.example"), "the reason");
});

step(2, "a restart in round 5 costs the client no round", async (machine, items) => {
  const server = await machine.serve(ECHO_SERVER);
  const [{ program }] = await Array.fromAsync(machine.follow(items));
  const round = (count: number) =>
    program.lines.next(() => program.lines.all.length >= count, `round ${count}`);
  await round(5);
  server.kill("SIGINT");
  assertEquals(await server.end(), 0);
  await machine.serve(ECHO_SERVER);
  await round(8);
  program.kill("SIGINT");
  assertEquals([await program.end(), program.errors.all], [130, []]);
});

step(4, "the test command sends what is typed, and comes back", async (machine, items) => {
  const server = await machine.serve(ECHO_SERVER);
  const [{ program }] = await Array.fromAsync(machine.follow(items));
  server.kill("SIGINT");
  await shows(program, /^Connection closed: 1001 .* Connecting again …/);
  assertEquals(await server.end(), 0);
  await machine.serve(ECHO_SERVER);
  await shows(program, /^Connected to /);
});

step(5, "a reader that is stopped has to leave, and no other", async (machine, items) => {
  const connect = () => machine.run(`${TEST_COMMAND} ws://localhost:9998`, "pipe");
  const programs: Program[] = [];
  for await (const { program } of machine.follow(items)) {
    programs.push(program);
    if (programs.length > 1) continue;
    programs.push(connect(), connect());
    await program.prints(/2 connected/);
  }
  const [server, ...tabs] = programs;
  const stopped = connect();
  await server.prints(/3 connected/);
  stopped.kill("SIGSTOP");
  const [, left = ""] = proseOf(WALK, 5).match(/prints `(A client left .*?)`/) ?? [];
  const seconds = Number(proseOf(WALK, 5).match(/Within (\d+) seconds/)?.[1]);
  const isGone = () => assert(left && server.lines.all.includes(left), `${server.lines.all}`);
  await retry(isGone, { ...EACH_SECOND, maxAttempts: seconds + 5 });
  machine.run("curl -s -d 'still here' http://localhost:9998/");
  for (const tab of tabs.slice(0, 2)) await tab.prints(/^still here$/);
});

step(
  6,
  "an error in a handler closes one client, and the server goes on",
  async (machine, items) => {
    const done = await Array.fromAsync(machine.follow(items));
    const [{ program: server }, { command }] = done;
    const broken = machine.run(`printf hello | ${TEST_COMMAND} ws://localhost:8000`);
    assertEquals(await broken.end(), 1);
    assertMatch(broken.errors.all.join("\n"), /^Connection closed: 1011 /m);
    await server.errors.next((line) => line.includes("SyntaxError"), "the error");
    assertEquals(await machine.run(command).end(), 0);
  },
);

compare("each function that the walk tells to read is there", () => {
  for (const path of [WALK, CHINESE_WALK]) {
    const places = read(path).matchAll(/((?:`\w+`[^`[\n]{1,5})+)\[[\w.]+\]\(([\w./]+)\)/g);
    const wanted = [...places].map(([, names, file]) =>
      [...names.matchAll(/\w+(?=`)/g)].map(([name]) => `${file} ${name}`)
    ).flat();
    assert(wanted.length >= 7, `${path} names ${wanted}`);
    const isThere = (each: string) => {
      const [file, name] = each.split(" ");
      return new RegExp(`function ${name}\\(`).test(read(file));
    };
    assertEquals(wanted.filter((each) => !isThere(each)), []);
  }
});

compare("both walks have the same commands and the same code", () => {
  const itemsIn = (path: string) =>
    itemsOf(read(path)).filter(({ text }) => !text.startsWith("sequence"))
      .map(({ tag, text, name, prints }) => ({ tag, text, name, prints }));
  assertEquals(itemsIn(CHINESE_WALK), itemsIn(WALK));
});

test({ needs: "run" }, "the drawing shows which file imports which", async () => {
  const drawn = read(WALK).match(/flowchart LR\n([^`]*)/)?.[1] ?? "";
  const edges = drawn.matchAll(/^ *(.*) -->\|imports\| (.*)$/gm);
  const shown = [...edges].flatMap(([, from, to]) => from.split(" & ").map((each) => [each, to]));
  const scripts = [...new Set(shown.map(([from]) => from))];
  const imported = await Promise.all(scripts.map(async (script) => {
    const command = new Deno.Command(Deno.execPath(), {
      args: ["info", "--json", script],
      cwd: ROOT,
    });
    const { modules } = JSON.parse(new TextDecoder().decode((await command.output()).stdout));
    const root = new URL("../", import.meta.url).href;
    const { dependencies } = modules.find(({ specifier }: { specifier: string }) =>
      specifier === root + script
    );
    return dependencies.map(({ code }: { code?: { specifier: string } }) => code?.specifier ?? "")
      .filter((each: string) => each.startsWith(root))
      .map((each: string) => [script, each.slice(root.length)]);
  }));
  assertEquals(shown.map(String).sort(), imported.flat().map(String).sort());
});

// All of them.

/** What GitHub makes of a heading: the part of an address behind `#`. */
function anchorOf(heading: string): string {
  return heading.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, "").replace(/\s/g, "-");
}

compare("every link leads to a file and a heading that are there", () => {
  for (const path of [WALK, CHINESE_WALK, REFERENCE]) {
    const links = [...read(path).matchAll(/(?:\]\(|src=")(?!http)([^)"#]*)#?([^)"]*)[)"]/g)];
    const broken = links.filter(([, file, anchor]) => {
      const target = file ? normalize(join(dirname(path), file)) : path;
      if (!existsSync(ROOT + target)) return true;
      const headings = anchor ? [...read(target).matchAll(/^#+ (.*)$/gm)] : [];
      return anchor && !headings.some(([, heading]) => anchorOf(heading) === anchor);
    });
    assertEquals(broken.map(([link]) => `${path}: ${link}`), []);
  }
  const [first, second] = [WALK, CHINESE_WALK].map((path) => read(path).split("\n")[0]);
  assertStringIncludes(first, `](${CHINESE_WALK})`);
  assertStringIncludes(second, `](${WALK})`);
});

test({ needs: "run" }, "every flag that is named is one of a script, or of Deno", async () => {
  const scripts = ["server.ts", "client.ts", "broadcast_server.ts", "websockets"];
  const helps = await Promise.all(["run", ...scripts].map(async (script) => {
    const args = script === "run" ? [script, "--help=full"] : ["run", script, "--help"];
    const { stdout } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).output();
    return new TextDecoder().decode(stdout);
  }));
  const known = new Set(helps.join("\n").match(/(?<![\w-])--[a-z-]+/g));
  for (const path of [WALK, CHINESE_WALK, REFERENCE]) {
    // What other programs than Deno are told is no business of this test.
    const text = read(path).replace(/^ *(curl|npm|npx) .*$|`curl [^`]*`/gm, "");
    const named = text.match(/(?<![\w-])--[a-z][a-z-]*/g) ?? [];
    assertEquals(named.filter((flag) => !known.has(flag)), [], path);
  }
});

// The answers of the reference.

/** The names of the blocks that are run. */
const tested = new Set<string>();

/** Registers a test of a script of the reference, on a free port, beside a copy of the library. */
function answer(
  name: string,
  promise: string,
  fn: (url: string, folder: string) => Promise<void>,
  { flags = [], needs = "linux" }: { flags?: string[]; needs?: "linux" | "chromium" } = {},
): void {
  tested.add(name);
  test({ needs }, `${name}: ${promise}`, async () => {
    await using folder = await makeFolder();
    await copy(["websockets", "deno.json"], folder.path);
    const port = freePort();
    for (const item of itemsOf(read(REFERENCE))) {
      const text = item.text.replace("port: 8000", `port: ${port}`);
      if (item.name && item.tag !== "sh") {
        await Deno.writeTextFile(`${folder.path}/${item.name}`, text);
      }
    }
    await using program = deno(["run", "--allow-net", ...flags, name], { cwd: folder.path });
    await retry(async () => {
      (await Deno.connect({ port })).close();
    }, SOON).catch(() => Promise.reject(new Error(program.errors.all.join("\n"))));
    await fn(`ws://localhost:${port}/`, folder.path);
    assertEquals(program.errors.all, []);
  });
}

answer("users.ts", "only a client with a session comes in, and its user is known", async (url) => {
  await using client = await TestClient.open(url, { cookie: "a=b; session=9f86d081" });
  assertMatch(String(await client.next()), /^Li, (127\.0\.0\.1|::1)$/);
  const { status } = await ask(Number(new URL(url).port), handshake({ cookie: "session=guessed" }));
  assertEquals(status, 401);
});

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
    await retry(async () => {
      other.send("next");
      assert(Number(await other.next()) > first + 2);
    }, SOON);
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

answer("json.ts", "JSON is answered, and anything else closes with 1007", async (url) => {
  await using client = await TestClient.open(url);
  client.send(`{"name":"Li"}`);
  assertMatch(String(await client.next()), /^\{"order":\{"name":"Li"\},"at":\d+\}$/);
  client.send("no");
  const { code, reason } = await within(client.closed, "the end");
  assertEquals([code, reason], [1007, "Send JSON."]);
});

follow("handler_test.ts passes, and the types of all answers are right", async (machine) => {
  await Array.fromAsync(machine.follow(sectionOf("How do I test a handler?")));
  const files = itemsOf(read(REFERENCE)).filter(({ tag }) => tag === "ts" || tag === "html");
  await Array.fromAsync(machine.follow(files));
  const scripts = files.map(({ name }) => name).filter((name) => name.endsWith(".ts"));
  const checked = machine.run(`deno check ${scripts.join(" ")}`);
  assertEquals(await checked.end(), 0, checked.errors.all.join("\n"));
});
tested.add("handler_test.ts");

follow("two servers joined by NATS are one room, and count their own clients", async (machine) => {
  const [{ text }] = sectionOf("More than one server").filter(({ tag }) => tag === "sh");
  const servers = machine.run(text);
  for (const _ of [1, 2]) await servers.prints(/^Broadcast server on /);
  const client = machine.run(`${TEST_COMMAND} 'ws://localhost:9102/?room=red'`, "pipe");
  await servers.prints(/1 connected/);
  const push = machine.run("curl -s -d hello 'http://localhost:9101/?room=red'");
  await assertPrints(push, [`{"clients":0}`]);
  await client.prints(/^hello$/);
}, "nats");

compare("every block is run, or is known not to be", () => {
  for (const path of [WALK, CHINESE_WALK, REFERENCE]) {
    const blocks = itemsOf(read(path)).filter(({ tag }) => tag !== "inline");
    const isKnown = ({ section, tag, text, name }: Item) =>
      Object.keys(NOT_RUN).some((part) => text.includes(part)) || tested.has(name) ||
      path === REFERENCE && ["nginx", "ini"].includes(tag) ||
      path === REFERENCE && tag === "sh" && /test a handler|More than one/.test(section) ||
      path !== REFERENCE && ["sh", "ts"].includes(tag) && followed.has(parseInt(section));
    assertEquals(blocks.filter((each) => !isKnown(each)), [], path);
    const count = read(path).match(/^```\w/gm)?.length;
    assertEquals(blocks.length, count, "a block that is not read");
  }
});

compare("every dependency that is in use is explained, and no other", () => {
  const { imports } = JSON.parse(read("deno.json"));
  const files = ["", "websockets/", "tests/"].flatMap((folder) =>
    [...Deno.readDirSync(ROOT + folder)].map(({ name }) => folder + name)
  );
  const code = files.filter((file) => file.endsWith(".ts")).map(read).join("\n");
  const isUsed = (name: string) => new RegExp(`(from|import) ?\\(?"${name}"`).test(code);
  const [, list = ""] = read(REFERENCE).match(/^## What it is made of$([^]*)/m) ?? [];
  const explained = [...list.matchAll(/^\| `(.*?)`/gm)].map(([, name]) => name);
  const used = Object.keys(imports).filter((name) => name !== "websockets" && isUsed(name));
  assertEquals(explained.sort(), used.sort());
});
