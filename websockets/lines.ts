// Lines for people: what a log or a script prints, which no peer can misuse, and mistakes told in
// one line. Nothing here is about WebSockets.

import process from "node:process";

/** Characters that are printed of a longer text: about two lines of a terminal. */
const MAX_PRINTED = 200;
/** Lines that a log prints in a second: more than an eye can follow. */
const LINES_PER_SECOND = 40;
/** Characters of an error that are logged: enough for its stack. */
const MAX_ERROR = 2_000;

/** Takes a line for people to read. The line may hold what a peer has sent. */
export type Log = (line: string) => void;

/**
 * Control, bidirectional and invisible characters, without the tab, and without the joiners and
 * selectors that scripts and emoji need.
 */
const HARMFUL =
  /[[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]--[\t\u200c\u200d\p{Variation_Selector}]]/gv;

/** Shows characters that could harm a terminal or its reader as escapes, and cuts a long text. */
export function printable(text: string, length = MAX_PRINTED): string {
  const rest = text.length - length;
  const shown = rest > 0 ? `${text.slice(0, length)}… (${rest} more characters)` : text;
  return shown.replace(
    HARMFUL,
    (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`,
  );
}

/** The same for the lines of an error with its stack. */
function printableLines(text: string): string {
  return text.slice(0, MAX_ERROR).split("\n").map((line) => printable(line, Infinity)).join("\n");
}

/** A log that prints only what is `printable`, and counts the lines that are too many a second. */
export function limited(print: Log, show: (line: string) => string = printable): Log {
  const log = unfailing(print);
  let lines = 0;
  let second = -Infinity;
  const tellRest = () => {
    log(`… and ${lines - LINES_PER_SECOND} more lines.`);
    lines = 0;
  };
  return (line) => {
    const now = performance.now();
    if (now - second >= 1000 && lines <= LINES_PER_SECOND) [second, lines] = [now, 0];
    lines++;
    if (lines <= LINES_PER_SECOND) log(show(line));
    // A timer is there only while lines are left out, so that a quiet log leaves nothing behind.
    else if (lines === LINES_PER_SECOND + 1) setTimeout(tellRest, 1000);
  };
}

/**
 * A log that never fails, not even if it is async: a full disk or a closed pipe must not stop what is
 * being logged, and there is nowhere left to tell it.
 */
export function unfailing(print: Log): Log {
  return (line) => void Promise.try(print, line).catch(() => {});
}

let isQuiet = false;
const printed = limited((line) => console.log(line));

/** Prints a line on standard output: only what is `printable`, and not too many a second. */
export const log: Log = limited((line) => console.log(line));

/** The same on standard error, where a line may be an error with its stack. */
export const errorLog: Log = limited((line) => console.error(line), printableLines);

/** Prints what a peer has said, as the article's `print` does. `silence` turns it off. */
export function print(line: string): void {
  if (!isQuiet) printed(line);
}

/** Turns `print` off, as `--quiet` does. */
export function silence(): void {
  isQuiet = true;
}

/** An error with its stack, as a few printable lines. */
export function describeError(error: unknown): string {
  try {
    return printableLines(Deno.inspect(error));
  } catch {
    // The error has a getter or a custom inspection that throws.
    return "an error that can't be printed";
  }
}

/** Thrown out of a script that Ctrl-C has told to end. */
class Interrupted extends Error {}

/**
 * Runs a script. With `--help` it only prints `usage`. A mistake is told in one line, and the exit
 * code is 1, or 2 and with the usage if the mistake is in the command line.
 *
 * @param usage What `--help` prints; it holds the command that starts the script.
 */
export async function runScript(usage: string, main: () => unknown): Promise<void> {
  if (Deno.args.includes("--help") || Deno.args.includes("-h")) return console.log(usage);
  try {
    await main();
  } catch (error) {
    if (error instanceof Interrupted) Deno.exit(130);
    // This is what a shell reports of a program that ends because nobody reads its output.
    if (error instanceof Deno.errors.BrokenPipe) Deno.exit(141);
    if (!(error instanceof Error)) throw error;
    // The runtime finds what is wrong with a URL, as `parseArgs` does with a flag.
    const isSyntax = error instanceof DOMException && error.name === "SyntaxError";
    const isUsage = isSyntax || "code" in error && `${error.code}`.startsWith("ERR_PARSE_ARGS");
    let line = error.message.replaceAll("\n", " ");
    if (error.name === "TimeoutError") line = "No answer came in time.";
    if (error instanceof Deno.errors.NotCapable) {
      // Deno names the permission that is missing, and the usage has the command to complete.
      const flags = line.includes("--allow-read") ? "--allow-net --allow-read" : "--allow-net";
      const command = usage.match(/deno run .*?(?= \[|$)/m)?.[0];
      line += `: ${command?.replace("--allow-net", flags)}`;
    }
    console.error(printable(line, Infinity) + (isUsage ? `\n${usage}` : ""));
    Deno.exit(isUsage ? 2 : 1);
  }
}

/** A signal that aborts on Ctrl-C, after which `runScript` ends with 130. A second one ends at once. */
export function interruption(): AbortSignal {
  const interrupt = new AbortController();
  process.once("SIGINT", () => interrupt.abort(new Interrupted()));
  return interrupt.signal;
}

/** A mistake in the command line. It is marked like those that `parseArgs` of `node:util` finds. */
export function usageError(message: string): Error {
  return Object.assign(new Error(message), { code: "ERR_PARSE_ARGS_INVALID_OPTION_VALUE" });
}

/**
 * The number that a flag gives.
 *
 * @throws {Error} a `usageError` if `text` is no whole number from `least` to `most`.
 */
export function wholeNumber(flag: string, text: string, least: number, most = 2 ** 40): number {
  if (/^\d+$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text);
  throw usageError(`--${flag} takes a whole number from ${least} to ${most}, not "${text}".`);
}

/** The milliseconds that a flag gives. Deno's timers end after 24 days: more is for ever. */
export function milliseconds(flag: string, text: string): number {
  const number = Number(text) * 1000;
  if (/^\d+(\.\d+)?$/.test(text)) return number < 2 ** 31 ? number : Infinity;
  throw usageError(`--${flag} takes a number of seconds, not "${text}".`);
}
