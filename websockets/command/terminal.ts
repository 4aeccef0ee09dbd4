// The terminal of the test command: a prompt with a history, and lines that are printed above it.

import process from "node:process";
import readline from "node:readline";
import { Readable, Writable } from "node:stream";
import { write } from "../script/print.ts";

const PROMPT = "> ";
/** The prompt of a line that goes on with the message of the one before. */
const NEXT_LINE = "… ";
/** Characters that come at once only if they are pasted. A key sends fewer. */
const MIN_PASTE = 16;
/** Milliseconds after which a paste is over: its pieces follow each other faster. */
const PASTE_PAUSE = 50;
const CONTROL_CHARACTERS = /[^\P{Cc}\t\r\n]/u;

/** Reads messages at the terminal, and prints lines above the one being typed. */
export class Terminal {
  readonly #screen = new Screen();
  readonly #lines: readline.Interface;
  /** What was typed of a message whose last line is not there yet. */
  #begun = "";
  #isClosed = false;
  /** What was pasted last, and is not there yet. */
  #pasted = "";
  #pasting: ReturnType<typeof setTimeout> | undefined;

  /**
   * @param signal Ends the prompt when it aborts.
   * @param take Takes a message: a line, or several where each but the last ends with `\`.
   * @param leave Called when the prompt has ended, by the user or by `signal`.
   */
  constructor(signal: AbortSignal, take: (message: string) => void, leave: () => void) {
    const keys = Object.assign(new Readable({ read() {} }), { setRawMode });
    const lines = readline.createInterface({
      input: keys,
      output: this.#screen,
      terminal: true,
      prompt: PROMPT,
      signal,
    });
    this.#lines = lines;
    lines.on("line", (line) => this.#takeLine(line, take));
    lines.on("close", () => {
      clearTimeout(this.#pasting);
      process.stdin.pause();
      this.#clear();
      this.#isClosed = true;
      leave();
    });
    process.stdin.setEncoding("utf8").on("end", () => {
      this.#paste();
      lines.close();
    });
    process.stdin.on("data", (text: string) => {
      clearTimeout(this.#pasting);
      const isPasted = text.length >= MIN_PASTE || this.#pasted !== "";
      if (!isPasted || CONTROL_CHARACTERS.test(text)) {
        this.#paste();
        return void keys.emit("data", text);
      }
      // The system hands a paste over in pieces, and the line is drawn once for all of them.
      this.#pasted += text;
      this.#pasting = setTimeout(() => this.#paste(), PASTE_PAUSE);
    });
    process.stdout.on("resize", () => this.#fit());
    // The shell changes the terminal while this process is stopped.
    process.on("SIGCONT", () => this.#resume());
  }

  /** Prints a line above the one being typed, which may take several rows and is kept. */
  tell(line: string): void {
    if (this.#isClosed) return void this.#screen.write(`${line}\n`);
    this.#fit();
    const rows = this.#clear();
    // `prompt` first goes up the rows that the typed line had, so they must be there again.
    this.#screen.write(`${line}\n${"\n".repeat(rows)}`);
    this.#lines.prompt(true);
  }

  #resume() {
    if (this.#isClosed) return;
    setRawMode(true);
    this.#fit();
    this.#lines.prompt(true);
  }

  #takeLine(line: string, take: (message: string) => void) {
    const isWhole = !line.endsWith("\\");
    const message = this.#begun + (isWhole ? line : line.slice(0, -1));
    this.#begun = isWhole ? "" : `${message}\n`;
    this.#lines.setPrompt(isWhole ? PROMPT : NEXT_LINE);
    if (isWhole) take(message);
    this.#lines.prompt();
  }

  /** Takes what was pasted at once. Deno's `readline` draws the whole line again for each key. */
  #paste() {
    const text = this.#pasted;
    if (text === "") return;
    this.#pasted = "";
    const { line, cursor } = this.#lines;
    const hasLines = /[\r\n]/.test(text);
    const rows = hasLines ? 0 : this.#rows;
    this.#lines.write(text);
    if (cursor < line.length && !hasLines || this.#lines.getCursorPos().cols === 0) return;
    // `readline` has written the text at the end of the line, and takes the line for as high as it
    // was. So it is drawn again, from where it began.
    readline.moveCursor(this.#screen, 0, rows - this.#rows);
    this.#lines.prompt(true);
  }

  /** How many rows the cursor is below the first row of the line being typed. */
  get #rows(): number {
    return this.#lines.getCursorPos().rows;
  }

  /** Clears the line being typed, and returns how many rows the cursor was below its first row. */
  #clear(): number {
    const rows = this.#rows;
    readline.moveCursor(this.#screen, 0, -rows);
    readline.cursorTo(this.#screen, 0);
    readline.clearScreenDown(this.#screen);
    return rows;
  }

  /**
   * Draws the line being typed again when the terminal has another width. A terminal may have put
   * that line on fewer rows already, so that what was printed above it is there now: it must not be
   * cleared. Some terminals then show a part of the line twice.
   */
  #fit() {
    const { columns } = Deno.consoleSize();
    if (this.#isClosed || columns === this.#screen.columns) return;
    const before = this.#rows;
    this.#screen.columns = columns;
    // `prompt` goes up the rows that the line had before.
    this.#screen.write("\n".repeat(Math.max(0, before - this.#rows)));
    this.#lines.prompt(true);
  }
}

/** Leaves Ctrl-C to the system, where it can: as a key it would not be read while messages flood in. */
function setRawMode(isRaw: boolean) {
  Deno.stdin.setRaw(isRaw, { cbreak: Deno.build.os !== "windows" });
}

/** Standard output as `readline` sees it: with the width for which the typed line was drawn. */
class Screen extends Writable {
  columns = Deno.consoleSize().columns;

  override _write(bytes: Uint8Array, _encoding: string, done: () => void) {
    write(bytes);
    done();
  }
}
