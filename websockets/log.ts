// Lines of a log, which no peer can misuse.

/** Characters that are printed of a longer text: about two lines of a terminal. */
const MAX_PRINTED = 200;
/** Lines that a log prints in a second: more than an eye can follow. */
const LINES_PER_SECOND = 40;
/** Characters of an error that are logged: enough for its stack. */
const MAX_ERROR = 2_000;

/**
 * Takes a line for people to read. The line may hold what a peer has sent.
 *
 * @param option The option of `serve` on which the line depends, if there is one.
 */
export type Log = (line: string, option?: string) => unknown;

/**
 * Control, bidirectional and invisible characters, without the tab, and without the joiners and
 * selectors that scripts and emoji need.
 */
const HARMFUL =
  /[[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]--[\t\u200c\u200d\p{Variation_Selector}]]/gv;

/** Shows characters that could harm a terminal or its reader as escapes, and cuts a long text. */
export function printable(text: string, length: number = MAX_PRINTED): string {
  const rest = text.length - length;
  const shown = rest > 0 ? `${text.slice(0, length)}… (${rest} more characters)` : text;
  return shown.replace(
    HARMFUL,
    (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`,
  );
}

/**
 * The same for an error with its stack. Each line after the first is indented, so that none of them
 * looks like a line of the log.
 */
function printableLines(text: string): string {
  const lines = text.slice(0, MAX_ERROR).split("\n").map((line) => printable(line, Infinity));
  return lines.join("\n").replace(/\n(?! {4})/g, "\n    ");
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
  return (line, option) => {
    const now = performance.now();
    if (now - second >= 1000 && lines <= LINES_PER_SECOND) [second, lines] = [now, 0];
    lines++;
    if (lines <= LINES_PER_SECOND) log(option ? `${show(line)} See \`${option}\`.` : show(line));
    // A timer is there only while lines are left out, so that a quiet log leaves nothing behind.
    else if (lines === LINES_PER_SECOND + 1) setTimeout(tellRest, 1000);
  };
}

/**
 * A log that never fails, not even if it is async: a full disk or a closed pipe must not stop what is
 * being logged, and there is nowhere left to tell it.
 */
export function unfailing(print: Log): Log {
  return (...told) => void Promise.try(print, ...told).catch(() => {});
}

/** A log on standard error, where a line may be an error with its stack. */
export const errorLog: Log = limited((line) => console.error(line), printableLines);

/** An error with its stack, as a few printable lines. */
export function describeError(error: unknown): string {
  try {
    return printableLines(Deno.inspect(error));
  } catch {
    // The error has a getter or a custom inspection that throws.
    return "an error that can't be printed";
  }
}
