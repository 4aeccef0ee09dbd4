/// <reference types="./std.d.ts" />
// What the tests of the READMEs share: reading them, and a machine on which a reader follows them.

import { assert, assertMatch } from "@std/assert";
import { retry } from "@std/async";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { UNSHARE } from "./needs.ts";
import { Program } from "./programs.ts";

export const ROOT = fileURLToPath(new URL("../", import.meta.url));
export const WALK = "README.md";
export const CHINESE_WALK = "README.zh-CN.md";
export const REFERENCE = "websockets/README.md";
/** For what happens soon, without an event that tells of it. */
export const SOON = { minTimeout: 20, maxTimeout: 200, maxAttempts: 600 };

/** Blocks that no test here runs as they stand, by a part of them. */
export const NOT_RUN: Record<string, string> = {
  "sequenceDiagram": "It is a drawing.",
  "flowchart LR": "It is a drawing; that of the imports is compared with them.",
  "deno@2.9.6 task test": "It is this suite. The first command of the block is run.",
};

// Reading a file.

/** A command or a file that stands in a text, in a block or in a line. */
export interface Item {
  /** The heading above it. */
  section: string;
  /** The language of a block, or `inline`. */
  tag: string;
  text: string;
  /** The file that the paragraph before it names, such as `bare.ts`. */
  name: string;
  /** What a command in a line prints, where the line says so. */
  prints?: string;
}

/** The text of a file of this repository. */
export function read(path: string): string {
  return Deno.readTextFileSync(ROOT + path);
}

/** The blocks of a text, and the commands in its lines, in their order. A table compares words. */
export function itemsOf(markdown: string): Item[] {
  const items: Item[] = [];
  let [section, name] = ["", ""];
  const parts = markdown.matchAll(/^#+ (.*)$|^```(\w+)\n([^]*?)^```$|^(?!#|```|\|)(\S.*)$/gm);
  for (const [, heading, tag, text, line] of parts) {
    if (heading !== undefined) [section, name] = [heading, ""];
    if (text !== undefined) items.push({ section, tag, text, name });
    if (line === undefined) continue;
    name = [...line.matchAll(/`(\w+\.(?:ts|html))`/g)].at(-1)?.[1] ?? "";
    const spans = line.matchAll(/`([^`]+)`(?: (?:prints|会打印) `([^`]+)`)?/g);
    for (const [, text, prints] of spans) {
      if (!/^(deno run|curl|printf) \S/.test(text)) continue;
      items.push({ section, tag: "inline", text, name: "", prints });
    }
  }
  return items;
}

/** The items of the step with this number. */
export function stepOf(path: string, number: number): Item[] {
  return itemsOf(read(path)).filter(({ section }) => section.startsWith(`${number}. `));
}

/** The items of the reference with this heading above them. */
export function sectionOf(heading: string): Item[] {
  return itemsOf(read(REFERENCE)).filter(({ section }) => section === heading);
}

/** The text of the step with this number. */
export function proseOf(path: string, number: number): string {
  return read(path).match(new RegExp(`^## ${number}\\. [^]*?(?=^## )`, "m"))?.[0] ?? "";
}

/** The block of the reference with this language and name. */
export function blockOf(tag: string, name = ""): string {
  const block = itemsOf(read(REFERENCE)).find((each) => each.tag === tag && each.name === name);
  assert(block, `The reference has no block of ${tag} ${name}.`);
  return block.text;
}

/** The commands of a shell block, each with what it prints. */
export function commandsOf(text: string): { command: string; lines: string[] }[] {
  const commands = text.matchAll(/((?:^[^#\n].*\n)+)((?:^# .*\n)*)/gm);
  return [...commands].map(([, command, comments]) => {
    return {
      command: command.trim(),
      lines: comments.replace(/^# /gm, "").split("\n").slice(0, -1),
    };
  });
}

/** What prints these lines matches: … stands for anything, and a time for any time. */
function patternOf(lines: string[]): RegExp {
  const patterns = lines.map((line) => {
    if (line === "…") return "(?:.*\n)*";
    const escaped = line.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&").replaceAll("…", ".*");
    return escaped.replace(/\d{4}-\d\d-\d\d [\d:]+\\\.\d{6}/, String.raw`[\d-]{10} [\d:.]{15}`) +
      "\n";
  });
  return new RegExp(`^${patterns.join("")}$`);
}

// Running it.

/** A folder that is removed again. All users may enter it, as nginx gives up being root. */
export async function makeFolder() {
  const path = await Deno.makeTempDir();
  if (Deno.build.os !== "windows") await Deno.chmod(path, 0o755);
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

/** Copies files and folders of this repository to another folder. */
export async function copy(names: string[], to: string): Promise<void> {
  for (const name of names) {
    if ((await Deno.stat(ROOT + name)).isFile) {
      await Deno.copyFile(ROOT + name, `${to}/${name}`);
    } else {
      await Deno.mkdir(`${to}/${name}`);
      const inside = [...Deno.readDirSync(ROOT + name)].map((each) => `${name}/${each.name}`);
      await copy(inside, to);
    }
  }
}

/** A cache of its own, which has the packages of this machine. */
async function makeCache(path: string): Promise<void> {
  await Deno.mkdir(path, { recursive: true });
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["info", "--json"] }).output();
  const { npmCache } = JSON.parse(new TextDecoder().decode(stdout));
  await Deno.symlink(npmCache, `${path}/npm`, { type: "junction" });
}

/**
 * A machine on which a reader follows the text: a fresh copy of the repository, and a network in
 * which all ports are free, so that nothing else on this computer is in the way.
 */
export class Machine implements AsyncDisposable {
  readonly #programs: { program: Program; stdin: string }[] = [];
  readonly #folder: string;
  readonly #holder: Program;
  readonly #network: string;

  private constructor(folder: string, holder: Program) {
    [this.#folder, this.#holder] = [folder, holder];
    this.#network = networkOf(holder.pid);
    // All that runs in this network is killed in the end.
    assert(this.#network !== networkOf("self"));
  }

  static async start(): Promise<Machine> {
    const folder = await Deno.makeTempDir();
    const clone = `${folder}/clone`;
    await Deno.mkdir(clone);
    await makeCache(`${folder}/cache`);
    const files = [...Deno.readDirSync(ROOT)].filter(({ isFile }) => isFile);
    await copy([...files.map(({ name }) => name), "websockets"], clone);
    // A machine with Node has `npx`, which fetches the Deno that it is told to.
    await Deno.mkdir(`${folder}/bin`);
    const npx = `[ "$1 $2" = "-y deno@${version()}" ] && shift 2 && exec deno "$@"`;
    await Deno.writeTextFile(`${folder}/bin/npx`, `#!/bin/sh\n${npx}\n`, { mode: 0o755 });
    const wait = "ip link set lo up && echo ready && exec sleep infinity";
    const holder = new Program("unshare", [...UNSHARE, "sh", "-c", wait]);
    await holder.prints(/ready/);
    return new Machine(folder, holder);
  }

  /** Starts what a line of a shell says, with nothing to read, an open pipe, or a terminal. */
  run(command: string, stdin: "nothing" | "pipe" | "terminal" = "nothing"): Program {
    const enter = ["--preserve-credentials", "--user", "--net", "--target", `${this.#holder.pid}`];
    const env = {
      PATH: `${this.#folder}/bin:${dirname(Deno.execPath())}:${Deno.env.get("PATH")}:/usr/sbin`,
      DENO_DIR: `${this.#folder}/cache`,
      NO_COLOR: "1",
    };
    // With `exec` a signal reaches the program, and not a shell that waits for it.
    const isOne = !/[|&\n]/.test(command);
    const shell = stdin === "terminal"
      ? ["script", "-qec", command, "/dev/null"]
      : ["sh", "-ec", isOne ? `exec ${command}` : command];
    const program = new Program("nsenter", [...enter, ...shell], {
      cwd: `${this.#folder}/clone`,
      env,
      stdin: stdin === "nothing" ? "null" : "piped",
    });
    this.#programs.push({ program, stdin });
    return program;
  }

  async write(name: string, text: string): Promise<void> {
    await Deno.writeTextFile(`${this.#folder}/clone/${name}`, text);
  }

  /** Starts a server, and waits until it listens. */
  async serve(command: string): Promise<Program> {
    const before = this.#listening();
    const program = this.run(command);
    await retry(() => assert(this.#listening() > before, program.errors.all.join("\n")), SOON);
    return program;
  }

  /** How many addresses there are servers at. */
  #listening(): number {
    const tables = ["tcp", "tcp6"].map((each) => `/proc/${this.#holder.pid}/net/${each}`);
    const rows = tables.flatMap((each) => Deno.readTextFileSync(each).split("\n"));
    return rows.filter((row) => row.split(/\s+/)[4] === "0A").length;
  }

  /** Does what the items say, one after the other. Each is there when it has been done. */
  async *follow(items: Item[]): AsyncGenerator<{ command: string; program: Program }> {
    for (const { tag, text, name, prints } of items) {
      if (name && tag !== "sh") await this.write(name, text);
      if (tag === "inline") yield await this.#do(text, prints === undefined ? [] : [prints]);
      if (tag !== "sh") continue;
      for (const { command, lines } of commandsOf(text)) {
        if (Object.keys(NOT_RUN).some((part) => command.includes(part))) continue;
        yield await this.#do(command, lines);
      }
    }
  }

  async #do(command: string, lines: string[]) {
    const typed = lines.some((line) => line.startsWith("> "));
    const isServer = /(server|bare)\.ts/.test(command);
    const stdin = typed ? "terminal" : "nothing";
    const program = isServer ? await this.serve(command) : this.run(command, stdin);
    if (typed) await type(program, lines);
    else if (lines.length > 0) await assertPrints(program, lines);
    if (/^(curl|printf|deno test)/.test(command)) {
      await program.end();
      assertMatch(outputOf(program), patternOf(lines));
    }
    return { command, program };
  }

  async [Symbol.asyncDispose]() {
    for (const { name } of Deno.readDirSync("/proc")) {
      try {
        if (networkOf(name) === this.#network) Deno.kill(Number(name), "SIGKILL");
      } catch {
        // It is no process, or has ended.
      }
    }
    for (const { program, stdin } of this.#programs) {
      await program.end();
      if (stdin !== "nothing") await program.stdin.close().catch(() => {});
    }
    await this.#holder[Symbol.asyncDispose]();
    await Deno.remove(this.#folder, { recursive: true });
  }
}

/** The network that a process is in. */
function networkOf(pid: number | string): string {
  return Deno.readLinkSync(`/proc/${pid}/ns/net`);
}

/** The Deno that `npx` fetches in the README. */
export function version(): string {
  return read(WALK).match(/npx -y deno@([\d.]+)/)?.[1] ?? "";
}

function outputOf(program: Program): string {
  const output = program.lines.all.map((line) => `${line.replace(/\r$/, "")}\n`).join("");
  return output.replace(/\n+$/, "\n");
}

/** Waits until a program has printed these lines. */
export async function assertPrints(program: Program, lines: string[]): Promise<void> {
  const wanted = patternOf(lines);
  while (!wanted.test(outputOf(program))) {
    await program.lines.next(undefined, `${lines.join("\n")}\nafter\n${outputOf(program)}`);
  }
}

/** Types the lines with a prompt, and waits for all others. */
async function type(program: Program, lines: string[]): Promise<void> {
  const writer = program.stdin.getWriter();
  for (const line of lines) {
    if (line.startsWith("> ")) await writer.write(new TextEncoder().encode(`${line.slice(2)}\n`));
    else await shows(program, patternOf([line]));
  }
  writer.releaseLock();
}

/** Waits until a terminal shows this line. It is cleared in front of each line that it shows. */
export async function shows(program: Program, wanted: RegExp): Promise<void> {
  // deno-lint-ignore no-control-regex
  const shown = (raw: string) => raw.replace(/.*\x1b\[0J/, "").replace(/\r+$/, "");
  await program.lines.next((raw) => wanted.test(`${shown(raw)}\n`), `${wanted}`);
}

/** A Deno of its own, such as one with an empty cache. */
export function deno(args: string[], options?: Deno.CommandOptions): Program {
  return new Program(Deno.execPath(), [args[0], "--no-prompt", ...args.slice(1)], options);
}
