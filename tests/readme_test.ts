/// <reference types="./std.d.ts" />
// What the walk says. A reader follows every block of it as it stands, in a fresh copy, and what is
// printed is compared with the lines behind `#`. Then the reader breaks it, as the walk says.

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { existsSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { Machine, prints, shows } from "./machine.ts";
import { test } from "./needs.ts";
import { PLAIN } from "./programs.ts";
import {
  ALL,
  type Block,
  blocksOf,
  CHINESE_WALK,
  commandsOf,
  read,
  REFERENCE,
  ROOT,
  stepOf,
  WALK,
} from "./readme.ts";

const ECHO_SERVER = "deno run --allow-net server.ts";

/** Registers a test of a reader who follows the text. */
function follow(name: string, fn: (machine: Machine) => Promise<void>): void {
  test({ needs: ["linux", "unshare"] }, name, async () => {
    await using machine = await Machine.start();
    await fn(machine);
  });
}

/** The numbers of the steps that are followed. */
const followed = new Set<number>();

/** Registers a test of a reader who follows a step, and then breaks it. */
function step(
  number: number,
  name: string,
  fn: (machine: Machine, blocks: Block[]) => Promise<void>,
) {
  followed.add(number);
  follow(`step ${number}: ${name}`, (machine) => fn(machine, stepOf(number)));
}

follow(
  "the first command starts the echo server, and the second is this suite",
  async (machine) => {
    const [first, second] = commandsOf(blocksOf(WALK)[0]);
    await prints(await machine.serve(first.command), first.lines);
    assert(second.command.endsWith(" task test"));
  },
);

step(0, "the bare server answers the handshake, of any origin", async (machine, blocks) => {
  await Array.fromAsync(machine.follow(blocks));
});

step(1, "the echo server refuses a page of another site", async (machine) => {
  await machine.save(stepOf(0));
  const server = await machine.serve(ECHO_SERVER);
  await machine.run("deno run --allow-net by_hand.ts").prints(/^HTTP\/1\.1 403 /);
  await server.prints(/https:\/\/evil\.example/);
});

step(2, "a restart in round 5 costs the client no round", async (machine, [block]) => {
  const [{ command, lines }] = commandsOf(block);
  const server = await machine.serve(ECHO_SERVER);
  await prints(machine.run(command), lines);
  const client = machine.run(`${command} --interval 0.05`);
  await client.lines.next(() => client.lines.all.length >= 5, "round 5");
  server.kill("SIGINT");
  assertEquals(await server.end(), 0);
  await machine.serve(ECHO_SERVER);
  // A restart that takes longer than a second is told.
  const answers = () => client.lines.all.filter((line) => !line.endsWith(": waiting."));
  assertEquals([await client.end(), answers().length], [0, 39]);
});

step(4, "the test command sends what is typed, and comes back", async (machine, [block]) => {
  const [{ command, lines }] = commandsOf(block);
  const server = await machine.serve(ECHO_SERVER);
  const terminal = machine.run(command, "terminal");
  const keys = terminal.stdin.getWriter();
  for (const line of lines) {
    if (line.startsWith("> ")) {
      await keys.write(new TextEncoder().encode(`${line.slice(2)}\n`));
      continue;
    }
    await shows(terminal, line);
  }
  server.kill("SIGINT");
  assertEquals(await server.end(), 0);
  await machine.serve(ECHO_SERVER);
  await shows(terminal, "Connection closed: 1001 (going away) … Connecting again …");
  await shows(terminal, lines[0]);
  keys.releaseLock();
});

step(5, "a reader that is stopped has to leave, and no other", async (machine, blocks) => {
  const url = "ws://localhost:9998";
  const connect = () => machine.run(`deno run --allow-net websockets ${url}`, "pipe");
  const following = machine.follow(blocks);
  const { value: server } = await following.next();
  const tabs = [connect(), connect()];
  await server.prints(/2 connected/);
  await following.next();
  for (const tab of tabs) await tab.prints(/^hello$/);
  const stopped = connect();
  await server.prints(/3 connected/);
  stopped.kill("SIGSTOP");
  machine.run("curl -s -d 'still here' http://localhost:9998/");
  for (const tab of tabs) await tab.prints(/^still here$/);
  await server.prints(/A client left \(1006\), 2 connected/);
  assert((await following.next()).done);
});

step(
  6,
  "what was said while a follower was away comes when it is back",
  async (machine, [block]) => {
    const [{ command, lines }] = commandsOf(block);
    const server = await machine.serve("deno run --allow-net broadcast_server.ts --idle-timeout 2");
    const follower = machine.run(command, "pipe");
    await prints(follower, lines);
    await server.prints(/1 connected/);
    follower.kill("SIGSTOP");
    await server.prints(/A client left \(1006\)/);
    const pushed = ["one", "two", "three"];
    for (const text of pushed) await machine.run(`curl -s -d ${text} http://localhost:9998/`).end();
    follower.kill("SIGCONT");
    await follower.prints(/missed, and come now: 3\.$/);
    for (const text of pushed) await follower.prints(RegExp(`^${text}$`));
  },
);

step(
  7,
  "an error in a handler closes one client, and the server goes on",
  async (machine, blocks) => {
    await Array.fromAsync(machine.follow(blocks));
    const [, { command, lines }] = blocks.filter(({ tag }) => tag === "sh").flatMap(commandsOf);
    await prints(machine.run(command), lines);
  },
);

test({ needs: "run" }, "both walks have the same blocks, but for the words in a drawing", () => {
  const blocksIn = (path: string) =>
    blocksOf(path).filter(({ text }) => !text.startsWith("sequence"))
      .map(({ tag, text, name }) => ({ tag, text, name }));
  assertEquals(blocksIn(CHINESE_WALK), blocksIn(WALK));
});

test({ needs: "run" }, "every block of the walk is run, or is a drawing", () => {
  const blocks = blocksOf(WALK);
  const isRun = ({ tag, section }: Block) =>
    ["sh", "ts"].includes(tag) && followed.has(parseInt(section)) || tag === "mermaid";
  // The first block is that of the first command.
  assertEquals(blocks.slice(1).filter((each) => !isRun(each)), []);
  assertEquals(blocks.length, read(WALK).match(/^```\w/gm)?.length, "a block that is not read");
});

test({ needs: "run" }, "the drawing shows which file imports which", () => {
  const drawn = read(REFERENCE).match(/flowchart LR\n([^`]*)/)?.[1] ?? "";
  const edges = drawn.matchAll(/^ *(.*) -->\|imports\| (.*)$/gm);
  const shown = [...edges].flatMap(([, from, to]) =>
    from.split(" & ").flatMap((script) => to.split(" & ").map((file) => [script, file]))
  );
  const { imports } = JSON.parse(read("deno.json"));
  const resolve = (name: string) =>
    imports[name] ?? name.replace(/^websockets\//, imports["websockets/"]);
  const imported = [...new Set(shown.map(([from]) => from))].flatMap((script) => {
    const names = [...read(script).matchAll(/^(?:import|\}) .*from "(.*?)"/gm)];
    const files = names.map(([, name]) => String(resolve(name)));
    return [...new Set(files.filter((file) => file.startsWith("./")))]
      .map((file) => [script, file.slice(2)]);
  });
  assertEquals(shown.map(String).sort(), imported.map(String).sort());
});

/** What GitHub makes of a heading: the part of an address behind `#`. */
function anchorOf(heading: string): string {
  return heading.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, "").replace(/\s/g, "-");
}

test({ needs: "run" }, "every link leads to a file and a heading that are there", () => {
  for (const path of ALL) {
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

test({ needs: "run" }, "the life of a connection names every file of the library", () => {
  const text = read(REFERENCE).split(/^## /m).find((each) => each.startsWith("The life of"));
  const files = ["", "rooms/"].flatMap((folder) =>
    [...Deno.readDirSync(`${ROOT}websockets/${folder}`)].map(({ name }) => folder + name)
  );
  const doors = ["script.ts", "nats.ts"];
  const library = files.filter((name) => name.endsWith(".ts") && !doors.includes(name));
  assertEquals(library.filter((name) => !text?.includes(`](${name})`)), []);
});

test({ needs: "run" }, "every flag that is named is one of a script, or of Deno", async () => {
  const scripts = ["server.ts", "client.ts", "broadcast_server.ts", "websockets"];
  const helps = await Promise.all(["run", ...scripts].map(async (script) => {
    const args = script === "run" ? [script, "--help=full"] : ["run", script, "--help"];
    const { stdout } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT, env: PLAIN })
      .output();
    return new TextDecoder().decode(stdout);
  }));
  const known = new Set(helps.join("\n").match(/(?<![\w-])--[a-z-]+/g));
  for (const path of ALL) {
    // What other programs than Deno are told is no business of this test.
    const text = read(path).replace(
      /^( *|ExecStartPost=\S*)(curl|npm|npx) .*$|`(apt|certbot|curl|systemctl) [^`]*`/gm,
      "",
    );
    const named = text.match(/(?<![\w-])--[a-z][a-z-]*/g) ?? [];
    assertEquals(named.filter((flag) => !known.has(flag)), [], path);
  }
});

test({ needs: "run" }, "every dependency that is in use is explained, and no other", () => {
  const { imports } = JSON.parse(read("deno.json"));
  const library = ["", "rooms/", "script/", "command/", "nats/"].map((name) =>
    `websockets/${name}`
  );
  const files = ["", ...library, "tests/", "tests/bench/"].flatMap((folder) =>
    [...Deno.readDirSync(ROOT + folder)].map(({ name }) => folder + name)
  );
  const code = files.filter((file) => file.endsWith(".ts")).map(read).join("\n");
  const isUsed = (name: string) => new RegExp(`(from|import) ?\\(?"${name}"`).test(code);
  const [, list = ""] = read(REFERENCE).match(/^## What it is made of$([^]*)/m) ?? [];
  const explained = [...list.matchAll(/^\| `(.*?)`/gm)].map(([, name]) => name);
  const used = Object.keys(imports).filter((name) => name !== "websockets" && isUsed(name));
  assertEquals(explained.sort(), used.sort());
});
