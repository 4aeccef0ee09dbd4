/// <reference types="./std.d.ts" />
// A machine on which a reader follows a text.

import { assert, assertMatch } from "@std/assert";
import { eventually } from "./helpers.ts";
import { cp } from "node:fs/promises";
import { dirname } from "node:path";
import { UNSHARE } from "./needs.ts";
import { Program } from "./programs.ts";
import { type Block, commandsOf, makeFolder, patternOf, ROOT } from "./readme.ts";

/**
 * A fresh copy of the repository, and a network in which all ports are free, so that nothing else
 * on this computer is in the way.
 */
export class Machine implements AsyncDisposable {
  private constructor(
    /** What is left behind otherwise. */
    private readonly stack: AsyncDisposableStack,
    private readonly folder: string,
    /** A process that keeps the network. */
    private readonly holder: Program,
    private readonly network: string,
  ) {}

  static async start(): Promise<Machine> {
    await using stack = new AsyncDisposableStack();
    const folder = stack.use(await makeFolder()).path;
    const files = [...Deno.readDirSync(ROOT)].filter(({ isFile }) => isFile);
    for (const name of [...files.map(({ name }) => name), "websockets"]) {
      await cp(ROOT + name, `${folder}/clone/${name}`, { recursive: true });
    }
    // A machine with Node has `npx`, which fetches the Deno that it is told to.
    await Deno.mkdir(`${folder}/bin`);
    const npx = `[ "$1" = -y ] && shift 2 && exec deno "$@"`;
    await Deno.writeTextFile(`${folder}/bin/npx`, `#!/bin/sh\n${npx}\n`, { mode: 0o755 });
    const wait = "ip link set lo up && echo ready && exec sleep infinity";
    const holder = stack.use(new Program("unshare", [...UNSHARE, "sh", "-c", wait]));
    await holder.prints(/ready/);
    // All that runs in this network is killed in the end.
    const network = networkOf(holder.pid);
    assert(network !== networkOf("self"));
    return new Machine(stack.move(), folder, holder, network);
  }

  /**
   * Starts what a line of a shell says, with nothing to read, an open pipe, or a terminal. What it
   * prints as an error is among its lines, as a reader sees it.
   */
  run(command: string, stdin: "nothing" | "pipe" | "terminal" = "nothing"): Program {
    const enter = ["--preserve-credentials", "--user", "--net", "--target", `${this.holder.pid}`];
    const path = [
      `${this.folder}/bin`,
      dirname(Deno.execPath()),
      Deno.env.get("PATH"),
      "/usr/sbin",
    ];
    // With `exec` a signal reaches the program, and not a shell that waits for it.
    const isOne = !/[|&\n]/.test(command);
    const shell = stdin === "terminal"
      ? ["script", "-qec", command, "/dev/null"]
      : ["sh", "-ec", `exec 2>&1\n${isOne ? "exec " : ""}${command}`];
    const program = this.stack.use(
      new Program("nsenter", [...enter, ...shell], {
        cwd: `${this.folder}/clone`,
        env: { PATH: path.join(":"), SHELL: "/bin/sh" },
        stdin: stdin === "nothing" ? "null" : "piped",
      }),
    );
    if (stdin !== "nothing") this.stack.defer(() => program.stdin.close().catch(() => {}));
    return program;
  }

  /** Starts a server, and waits until it listens. */
  async serve(command: string): Promise<Program> {
    const before = this.#listening();
    const program = this.run(command);
    await eventually(() => assert(this.#listening() > before, outputOf(program)));
    return program;
  }

  /** How many addresses there are servers at. */
  #listening(): number {
    const tables = ["tcp", "tcp6"].map((each) => `/proc/${this.holder.pid}/net/${each}`);
    const rows = tables.flatMap((each) => Deno.readTextFileSync(each).split("\n"));
    return rows.filter((row) => row.split(/\s+/)[4] === "0A").length;
  }

  /** Saves the blocks that have a name. */
  async save(blocks: Block[]): Promise<void> {
    for (const { name, text } of blocks) {
      if (name) await Deno.writeTextFile(`${this.folder}/clone/${name}`, text);
    }
  }

  /**
   * Saves and runs what the blocks say, one after the other, and compares what is printed. Gives
   * each server when it listens, and each other program when it has ended. In the end of a block,
   * its servers have printed their lines.
   */
  async *follow(blocks: Block[]): AsyncGenerator<Program> {
    for (const block of blocks) {
      await this.save([block]);
      if (block.name || block.tag !== "sh") continue;
      const servers: [Program, string[]][] = [];
      for (const { command, lines } of commandsOf(block)) {
        const isServer = /(server|bare)\.ts/.test(command);
        const program = isServer ? await this.serve(command) : this.run(command);
        if (isServer) servers.push([program, lines]);
        else await assertOutput(program, lines);
        yield program;
      }
      for (const [program, lines] of servers) await prints(program, lines);
    }
  }

  async [Symbol.asyncDispose]() {
    for (const { name } of Deno.readDirSync("/proc")) {
      try {
        if (networkOf(name) === this.network) Deno.kill(Number(name), "SIGKILL");
      } catch {
        // It is no process, or has ended.
      }
    }
    await this.stack.disposeAsync();
  }
}

/** The network that a process is in. */
function networkOf(pid: number | string): string {
  return Deno.readLinkSync(`/proc/${pid}/ns/net`);
}

/** What it has printed, without empty lines at the end, and without the `\r` of HTTP. */
function outputOf(program: Program): string {
  const output = program.lines.all.map((line) => `${line.replace(/\r$/, "")}\n`).join("");
  return output.replace(/\n+$/, "\n");
}

/** Waits until a program has printed these lines. */
export async function prints(program: Program, lines: string[]): Promise<void> {
  const wanted = patternOf(lines);
  while (!wanted.test(outputOf(program))) {
    await program.lines.next(undefined, `${lines.join("\n")}\nafter\n${outputOf(program)}`);
  }
}

/** Waits until a program has ended, and has printed these lines and no other. */
async function assertOutput(program: Program, lines: string[]): Promise<void> {
  await program.end();
  assertMatch(outputOf(program), RegExp(`${patternOf(lines).source}$`));
}

/** Waits until a terminal shows this line. It is cleared in front of each line that it shows. */
export async function shows(terminal: Program, line: string): Promise<void> {
  const wanted = patternOf([line]);
  // deno-lint-ignore no-control-regex
  const shown = (raw: string) => raw.replace(/.*\x1b\[0J/, "").replace(/\r+$/, "");
  await terminal.lines.next((raw) => wanted.test(`${shown(raw)}\n`), line);
}
