// The flags of a script, described once: as `--help` prints them.

import { parseArgs } from "node:util";
import { MAX_SECONDS } from "../options.ts";

/**
 * The flags of a script, and what each is for. A name with a word behind it takes a value, and the
 * word says of which kind: `"count COUNT": "rounds (39)"`. With `...` it may be given many times.
 */
export type Flags = Record<string, string>;

/** What a word makes of a value: a number of these kinds, or else a text. */
export type ValueOf<Kind extends string> = Kind extends "COUNT" | "BYTES" | "PORT" | "SECONDS"
  ? number
  : string;

/** What the flags of a command line say. What is not given is `undefined`. */
export type FlagValues<Described extends Flags> = {
  [Flag in keyof Described & string as Flag extends `${infer Name} ${string}` ? Name : Flag]?:
    Flag extends `${string} ${infer Kind}...` ? ValueOf<Kind>[]
      : Flag extends `${string} ${infer Kind}` ? ValueOf<Kind>
      : boolean;
};

/** No machine has more bytes or clients than this. */
const MAX_WHOLE_NUMBER = 2 ** 40;

/** A mistake in the command line. It is marked like those that `parseArgs` of `node:util` finds. */
export function usageError(message: string): Error {
  return Object.assign(new Error(message), { code: "ERR_PARSE_ARGS_INVALID_OPTION_VALUE" });
}

/** Lines that say what each flag is for. */
export function describeFlags(flags: Flags): string {
  const shown = (flag: string) => flag.replace("...", "");
  const width = Math.max(...Object.keys(flags).map((flag) => shown(flag).length));
  const row = ([flag, purpose]: [string, string]) => `  --${shown(flag).padEnd(width)}  ${purpose}`;
  return Object.entries(flags).map(row).join("\n");
}

/**
 * Reads the flags of the command line.
 *
 * @returns Their values, and what is no flag.
 * @throws {Error} a `usageError` if there is no such flag, or a value is of another kind.
 */
export function parseFlags<Described extends Flags>(
  flags: Described,
  allowPositionals = false,
  args: string[] = Deno.args,
): { values: FlagValues<Described>; positionals: string[] } {
  const kinds = Object.keys(flags).map((flag) => {
    const [, name = flag, kind, more] = flag.match(/^([\w-]+)(?: ([A-Z:' ]+?))?(\.\.\.)?$/) ?? [];
    return { name, kind, multiple: more !== undefined };
  });
  const options = Object.fromEntries(kinds.map(({ name, kind, multiple }) => {
    const type: "string" | "boolean" = kind === undefined ? "boolean" : "string";
    return [name, { type, multiple }];
  }));
  const { values, positionals } = parseArgs({ args, options, allowPositionals });
  const read = kinds.flatMap(({ name, kind }) => {
    const given = values[name];
    if (given === undefined) return [];
    const toValue = (each: string | boolean) => valueOf(name, kind, each);
    return [[name, Array.isArray(given) ? given.map(toValue) : toValue(given)]];
  });
  return { values: Object.fromEntries(read) as FlagValues<Described>, positionals };
}

/** What a flag is given, as its kind says. */
function valueOf(name: string, kind: string | undefined, given: string | boolean) {
  const text = `${given}`;
  switch (kind) {
    case undefined:
      return given;
    case "COUNT":
    case "BYTES":
      return wholeNumber(name, text, 1, MAX_WHOLE_NUMBER);
    case "PORT":
      return wholeNumber(name, text, 0, 65_535);
    case "SECONDS":
      return seconds(name, text);
    default:
      return text;
  }
}

function wholeNumber(flag: string, text: string, least: number, most: number): number {
  if (/^\d+$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text);
  throw usageError(`--${flag} takes a whole number from ${least} to ${most}, not "${text}".`);
}

/** A number of seconds. More than 24 days are 24 days. */
function seconds(flag: string, text: string): number {
  if (/^\d+(\.\d+)?$/.test(text)) return Math.min(Number(text), MAX_SECONDS);
  throw usageError(`--${flag} takes a number of seconds, not "${text}".`);
}
