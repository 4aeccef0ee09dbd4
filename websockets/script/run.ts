// What runs a script: its usage, its mistakes in one line, and Ctrl-C.

import process from "node:process";
import { printable } from "../log.ts";
import { describeFlags, type Flags } from "./flags.ts";

/** Thrown out of a script that Ctrl-C has told to end. */
class Interrupted extends Error {}

/**
 * The usage of a script.
 *
 * @param flags What each flag is for; `--help` is added.
 * @param operands What stands behind the flags, such as `[URL]`, and lines that explain it.
 */
export function usageOf(flags: Flags, operands = "", explained = ""): string {
  const script = new URL(Deno.mainModule).pathname.split("/").at(-1);
  const usage = `Usage: deno run --allow-net ${script} [flags] ${operands}`.trim();
  const all = describeFlags({ ...flags, help: "print this" });
  return [usage, ...explained ? [explained] : [], all].join("\n");
}

/**
 * Runs a script. With `--help` it only prints `usage`. A mistake is told in one line, and the exit
 * code is 1, or 2 and with the usage if the mistake is in the command line.
 *
 * @param usage What `--help` prints; it holds the command that starts the script.
 * @param advise Adds to the message of an error what to do about it.
 */
export async function runScript(
  usage: string,
  main: () => unknown,
  advise = (error: Error): string | Promise<string> => error.message,
): Promise<void> {
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
    let line = (await advise(error)).replaceAll("\n", " ");
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
