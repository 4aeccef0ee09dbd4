/// <reference types="./std.d.ts" />
// The flags of scripts: what a command line says, and what it is told of a mistake. It needs no
// permission.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { describeFlags, type Flags, parseFlags, usageError } from "../websockets/script/flags.ts";

/** What a command line with these words says. */
function parse<const Described extends Flags>(flags: Described, ...args: string[]) {
  return parseFlags(flags, true, args);
}

/** What a script says of a mistake in its command line, which is marked as the platform marks it. */
function complaint(flags: Flags, ...args: string[]): string {
  const error = assertThrows(() => parse(flags, ...args), Error);
  assert("code" in error && `${error.code}`.startsWith("ERR_PARSE_ARGS"), `${error}`);
  return error.message;
}

Deno.test("each flag has the type that its word says", () => {
  const flags = { "port PORT": "", "name TEXT": "", "origin ORIGIN...": "", once: "" } as const;
  const { values, positionals } = parse(flags, "--port", "1", "--once", "--origin", "a", "URL");
  const { port, once, origin, name }: {
    port?: number;
    once?: boolean;
    origin?: string[];
    name?: string;
  } = values;
  assertEquals([port, once, origin, name, positionals], [1, true, ["a"], undefined, ["URL"]]);
  // @ts-expect-error There is no such flag.
  assertEquals(values.other, undefined);
});

Deno.test("a flag takes whole numbers within its bounds", () => {
  const numbers = ["0", "007", "65535"].map((text) =>
    parse({ "port PORT": "" }, "--port", text).values.port
  );
  assertEquals(numbers, [0, 7, 65535]);
});

Deno.test("a flag takes nothing else for a whole number, and says what it takes", () => {
  for (const text of ["", "65536", "+1", "1.5", "1e3", "0x10", " 1", "１", "abc"]) {
    const expected = `--port takes a whole number from 0 to 65535, not "${text}".`;
    assertEquals(complaint({ "port PORT": "" }, `--port=${text}`), expected);
  }
  for (const kind of ["COUNT", "BYTES"]) {
    const expected = `--n takes a whole number from 1 to 1099511627776, not "0".`;
    assertEquals(complaint({ [`n ${kind}`]: "" }, "--n", "0"), expected);
  }
});

Deno.test("a flag takes seconds, and more than 24 days are 24 days", () => {
  const numbers = ["0", "1", "0.25", "2073600", "2073601"].map((text) =>
    parse({ "t SECONDS": "" }, "--t", text).values.t
  );
  assertEquals(numbers, [0, 1, 0.25, 2_073_600, 2_073_600]);
});

Deno.test("a flag takes nothing else for seconds, and says what it takes", () => {
  for (const text of ["", "1.", ".5", "1e3", "0x10", "1 s", "NaN", "Infinity"]) {
    const expected = `--timeout takes a number of seconds, not "${text}".`;
    assertEquals(complaint({ "timeout SECONDS": "" }, `--timeout=${text}`), expected);
  }
});

Deno.test("a flag that there is not is refused", () => {
  assert(complaint({ once: "" }, "--twice").startsWith("Unknown option '--twice'"));
  assertEquals(usageError("why").message, "why");
});

Deno.test("the usage has a line for each flag", () => {
  const flags = { "count COUNT": "rounds (39)", "origin ORIGIN...": "pages", once: "one message" };
  assertEquals(describeFlags(flags).split("\n"), [
    "  --count COUNT    rounds (39)",
    "  --origin ORIGIN  pages",
    "  --once           one message",
  ]);
});
