// A terminal in which a test runs the test command.

import { assert } from "@std/assert";
import { Inbox, within } from "./helpers.ts";
import { PLAIN } from "./programs.ts";

/** How the command is started. It takes the place of the shell: some shells end by Ctrl-C themselves. */
export function start(url: string, flags = ""): string {
  return `exec "${Deno.execPath()}" run --allow-net websockets ${url} ${flags}`;
}

/** Starts it so that its pauses are short before it connects again, after this code. */
export function startQuick(url: string, before = "", flags = ""): string {
  const script = `${before} Math.random = () => 0.01;`;
  const preload = `--preload=data:text/javascript,${encodeURIComponent(script)}`;
  return start(url, flags).replace(
    "--allow-net",
    `--allow-net "${preload.replaceAll("'", "%27")}"`,
  );
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
export class Terminal implements AsyncDisposable {
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
      env: { ...PLAIN, TERM: "xterm", SHELL: "/bin/sh" },
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
    await this.#writer.close().catch(() => {});
  }
}
