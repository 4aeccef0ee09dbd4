/// <reference types="./std.d.ts" />
// Reading the READMEs, and what is needed to run what they show.

import { assert } from "@std/assert";
import { fileURLToPath } from "node:url";
import { Program } from "./programs.ts";

export const ROOT = fileURLToPath(new URL("../", import.meta.url));
export const WALK = "README.md";
export const CHINESE_WALK = "README.zh-CN.md";
export const REFERENCE = "websockets/README.md";
export const RECIPES = "websockets/RECIPES.md";
export const ALL = [WALK, CHINESE_WALK, REFERENCE, RECIPES];

/** A block of a text. */
export interface Block {
  /** The heading above it. */
  section: string;
  /** Its language. */
  tag: string;
  text: string;
  /** The file in which a reader saves it, which the paragraph before it names. */
  name: string;
}

/** The text of a file of this repository. */
export function read(path: string): string {
  return Deno.readTextFileSync(ROOT + path);
}

/** The blocks of a file, in their order. */
export function blocksOf(path: string): Block[] {
  const blocks: Block[] = [];
  let [section, paragraph] = ["", ""];
  const parts = read(path).matchAll(/^#+ (.*)$|^```(\w+)\n([^]*?)^```$|^(\S.*)$/gm);
  for (const [, heading, tag, text, line] of parts) {
    if (heading !== undefined) section = heading;
    if (text !== undefined) {
      const names = paragraph.match(RegExp(`(?<=\`)\\w+\\.${tag}(?=\`)`, "g"));
      blocks.push({ section, tag, text, name: names?.at(-1) ?? "" });
    }
    paragraph = line ?? "";
  }
  return blocks;
}

/** The blocks of the walk's step with this number. */
export function stepOf(number: number): Block[] {
  return blocksOf(WALK).filter(({ section }) => section.startsWith(`${number}. `));
}

/** The blocks of the reference and of the recipes. */
export function libraryBlocks(): Block[] {
  return [REFERENCE, RECIPES].flatMap(blocksOf);
}

/** Those with this heading above them. */
export function sectionOf(heading: string): Block[] {
  return libraryBlocks().filter(({ section }) => section === heading);
}

/** The only one of them in this language. */
export function blockOf(tag: string): string {
  const block = libraryBlocks().find((each) => each.tag === tag);
  assert(block, `The reference has no block of ${tag}.`);
  return block.text;
}

/** The commands of a shell block, each with the lines behind `#` that it prints. */
export function commandsOf({ text }: Block): { command: string; lines: string[] }[] {
  const commands = text.matchAll(/((?:^[^#\n].*\n)+)((?:^# .*\n)*)/gm);
  return [...commands].map(([, command, comments]) => {
    const lines = comments.replace(/^# /gm, "").split("\n").slice(0, -1);
    return { command: command.trim(), lines };
  });
}

/** What prints these lines begins like this: … stands for anything, and a time for any time. */
export function patternOf(lines: string[]): RegExp {
  const patterns = lines.map((line) => {
    if (line === "…") return "(?:.*\n)*";
    const escaped = line.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&").replaceAll("…", "[^]*");
    return escaped.replace(/\d{4}-\d\d-\d\d [\d:]+\\\.\d{6}/, String.raw`[\d-]{10} [\d:.]{15}`) +
      "\n";
  });
  return new RegExp(`^${patterns.join("")}`);
}

/** A folder that is removed again. All users may enter it, as nginx gives up being root. */
export async function makeFolder() {
  const path = await Deno.makeTempDir();
  if (Deno.build.os !== "windows") await Deno.chmod(path, 0o755);
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

/** A Deno of its own, such as one with an empty cache. */
export function deno(args: string[], options?: Deno.CommandOptions): Program {
  return new Program(Deno.execPath(), [args[0], "--no-prompt", ...args.slice(1)], options);
}
