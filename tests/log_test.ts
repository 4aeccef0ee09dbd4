/// <reference types="./std.d.ts" />
// Logs that no peer can misuse, and errors in them. It needs no permission.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { describeError, limited, printable, unfailing } from "../websockets/log.ts";

// Text that a peer has sent.

Deno.test("printable text keeps what can be seen", () => {
  assertEquals(printable("Grüße, 你好 👋 é"), "Grüße, 你好 👋 é");
  const joined = "a\tb ❤\ufe0f 👩\u200d💻 می\u200cخواهم 葛\u{e0100}";
  assertEquals(printable(joined), joined);
});

Deno.test("printable text shows control characters as escapes", () => {
  assertEquals(printable("\x00\x1b\n\x7f\x9b"), String.raw`\u{0}\u{1b}\u{a}\u{7f}\u{9b}`);
});

Deno.test("printable text shows what turns or hides text as escapes", () => {
  assertEquals(printable("a\u202eb\u2066c\ufeffd"), String.raw`a\u{202e}b\u{2066}c\u{feff}d`);
  assertEquals(printable("\u2028\u00ad\u3164\ud800"), String.raw`\u{2028}\u{ad}\u{3164}\u{d800}`);
});

Deno.test("printable text is cut, and tells how much is missing", () => {
  assertEquals(printable("abcdef", 3), "abc… (3 more characters)");
  assertEquals(printable("👋👋", 1), String.raw`\u{d83d}… (3 more characters)`);
  assertEquals(printable("x".repeat(200)), "x".repeat(200));
  assertEquals(printable("x".repeat(201)), `${"x".repeat(200)}… (1 more characters)`);
});

// Logs.

/** Runs `use` on a clock that stands still until `pass` is called, which lets a second go by. */
function withStoppedTime(use: (pass: () => void) => void): void {
  const { setTimeout } = globalThis;
  let now = 0;
  const timers: (() => void)[] = [];
  const stopped = (callback: () => void, milliseconds: number) => {
    assertEquals(milliseconds, 1000);
    timers.push(callback);
  };
  globalThis.setTimeout = stopped as typeof setTimeout;
  Object.defineProperty(performance, "now", { value: () => now, configurable: true });
  try {
    use(() => {
      now += 1000;
      timers.splice(0).forEach((callback) => callback());
    });
  } finally {
    globalThis.setTimeout = setTimeout;
    // What is left is the method that all objects of its class have.
    Reflect.deleteProperty(performance, "now");
  }
}

Deno.test("Logs: 40 lines are printed in a second, and the others are counted", () => {
  withStoppedTime((pass) => {
    const lines: string[] = [];
    const log = limited((line: string) => lines.push(line));
    for (let count = 1; count <= 500; count++) log(`line ${count}`);
    assertEquals([lines.length, lines[0], lines[39]], [40, "line 1", "line 40"]);
    pass();
    assertEquals(lines.slice(40), ["… and 460 more lines."]);
  });
});

Deno.test("a limited log prints again in the next second, and counts nothing twice", () => {
  withStoppedTime((pass) => {
    const lines: string[] = [];
    const log = limited((line: string) => lines.push(line));
    for (const count of [41, 40, 1]) {
      for (let line = 0; line < count; line++) log("line");
      pass();
      assertEquals(lines.filter((line) => line === "line").length, Math.min(count, 40));
      assertEquals(lines.splice(0).length, count === 41 ? 41 : count);
    }
    pass();
    assertEquals(lines, []);
  });
});

Deno.test("a limited log that leaves out no line leaves no timer behind", () => {
  // The real clock runs here, so that a timer would be one that this test has leaked.
  const lines: string[] = [];
  const log = limited((line: string) => lines.push(line));
  for (let count = 0; count < 40; count++) log("line");
  assertEquals(lines.length, 40);
});

Deno.test("a limited log prints nothing that acts on a terminal", () => {
  const lines: string[] = [];
  limited((line: string) => lines.push(line))("\x1b[31m" + "x".repeat(1_000));
  assertEquals(lines, [String.raw`\u{1b}[31m` + "x".repeat(195) + "… (805 more characters)"]);
});

Deno.test("a log that can't be written fails alone", () => {
  const lines: string[] = [];
  const full = (line: string) => {
    lines.push(line);
    throw new Error("No space left on device");
  };
  unfailing(full)("one");
  withStoppedTime((pass) => {
    const log = limited(full);
    for (let count = 0; count < 41; count++) log("two");
    pass();
  });
  assertEquals([lines.length, lines[0], lines.at(-1)], [42, "one", "… and 1 more lines."]);
});

Deno.test("a log is told a line alone where no option says so, as `console.error` prints all", () => {
  const told: unknown[][] = [];
  const log = unfailing((...line) => told.push(line));
  log("one");
  log("two", "origins");
  assertEquals(told, [["one"], ["two", "origins"]]);
});

// Errors.

Deno.test("an error is described with its stack, each line of it printable", () => {
  const [first, second, ...stack] = describeError(new Error("\x1b[31mbroken\nin two")).split("\n");
  assertEquals([first, second], [String.raw`Error: \u{1b}[31mbroken`, "    in two"]);
  assertMatch(stack[0], /^ {4}at .*log_test\.ts:\d+:\d+/);
});

Deno.test("no line of an error looks like a line of the log, whatever its message says", () => {
  const cause = new Error("\n\u200dA client left.\n A client left.\r\vA client left.");
  const [, ...lines] = describeError(new Error("\nA client left.", { cause })).split("\n");
  assert(lines.length > 5);
  assertEquals(lines.filter((line) => !/^ {4}/.test(line)), []);
});

Deno.test("an error is described in 2,000 characters", () => {
  assertEquals(describeError(new Error("x".repeat(5_000))).length, 2_000);
});
