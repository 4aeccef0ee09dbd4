// What runs a script: its usage, its mistakes in one line, and the signals that end a client.

import { delay } from "@std/async";
import process from "node:process";
import { printable } from "../log.ts";
import { describeFlags, type Flags } from "./flags.ts";

/** Milliseconds after an interruption in which a server may answer the Close frame. */
const GRACE = 500;
/** More reads than the runtime makes in several turns (tokio lets a task make 128 in one). */
const READS = 1024;

/** Thrown out of a script that is told to end. */
class Interrupted extends Error {
  readonly exitCode: number;

  constructor(exitCode: number) {
    super("Interrupted.");
    this.exitCode = exitCode;
  }
}

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
    if (error instanceof Interrupted) Deno.exit(error.exitCode);
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

/**
 * What Ctrl-C and SIGTERM do to a client: `signal` aborts, and the process ends soon, whatever a
 * server still sends, with the exit code of that signal. A second one ends it at once.
 */
export class Interruption {
  readonly #controller = new AbortController();
  /** Aborts when the client is told to end. */
  readonly signal: AbortSignal = this.#controller.signal;

  /** @param exitCode The exit code after Ctrl-C, which is 130 in a shell. */
  constructor(exitCode = 130) {
    process.once("SIGINT", () => this.#end(exitCode));
    process.once("SIGTERM", () => this.#end(143));
  }

  #end(exitCode: number) {
    this.#controller.abort(new Interrupted(exitCode));
    setTimeout(() => Deno.exit(exitCode), GRACE);
  }
}

/**
 * Lets signals and timers have their turn. While small messages flood in, a turn of the runtime may
 * take half a minute, because it ends after a number of reads only. Reads of a channel count as well.
 */
export async function endTurn(): Promise<void> {
  const { port1, port2 } = new MessageChannel();
  for (let count = 0; count < READS; count++) port1.postMessage(null);
  port2.onmessage = () => {};
  await delay(0);
  port1.close();
  port2.close();
}
