// What a script needs so that people can run it: mistakes told in one line, numbers from flags,
// and logs that no peer can misuse. Nothing here is about WebSockets.

/** Characters that are printed of a longer text: about two lines of a terminal. */
const MAX_PRINTED = 200;
/** Lines that a log prints in a second: more than an eye can follow. */
const LINES_PER_SECOND = 40;

/** Takes a line for people to read. The line may hold what a peer has sent. */
export type Log = (line: string) => void;

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
    if (!(error instanceof Error)) throw error;
    const isUsage = "code" in error && `${error.code}`.startsWith("ERR_PARSE_ARGS");
    let line = error.message.replaceAll("\n", " ");
    if (error instanceof Deno.errors.NotCapable) {
      // Deno names the permission that is missing, and the usage has the command to complete.
      const flags = line.includes("--allow-read") ? "--allow-net --allow-read" : "--allow-net";
      line += `: ${usage.match(/deno run .*\.ts/)?.[0].replace("--allow-net", flags)}`;
    }
    console.error(printable(line, Infinity) + (isUsage ? `\n${usage}` : ""));
    Deno.exit(isUsage ? 2 : 1);
  }
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

/** Shows control, bidirectional and invisible characters as escapes, and cuts a long text. */
export function printable(text: string, length = MAX_PRINTED): string {
  const rest = text.length - length;
  const shown = rest > 0 ? `${text.slice(0, length)}… (${rest} more characters)` : text;
  return shown.replace(
    /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu,
    (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`,
  );
}

/** A log that prints only what is `printable`, and counts the lines that are too many a second. */
export function limited(print: Log): Log {
  const log = unfailing(print);
  let lines = 0;
  const startSecond = () => {
    if (lines > LINES_PER_SECOND) log(`… and ${lines - LINES_PER_SECOND} more lines.`);
    lines = 0;
  };
  return (line) => {
    if (lines === 0) setTimeout(startSecond, 1000);
    if (++lines <= LINES_PER_SECOND) log(printable(line));
  };
}

/** A log that never throws: a full disk or a closed pipe must not stop what is being logged. */
export function unfailing(print: Log): Log {
  return (line) => {
    try {
      print(line);
    } catch {
      // There is nowhere left to tell it.
    }
  };
}
