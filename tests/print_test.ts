/// <reference types="./std.d.ts" />
// What a script prints: `print` is what people have said, and `log` what the server did.

import { assertEquals } from "@std/assert";
import { log, print, silence } from "websockets/script.ts";

/** The lines that are printed while `run` runs. */
function printed(run: () => void): string[] {
  const lines: string[] = [];
  const { log: print } = console;
  console.log = (line: string) => lines.push(line);
  try {
    run();
  } finally {
    console.log = print;
  }
  return lines;
}

Deno.test("`print` puts blanks between parts that are not empty, and tells the size of binary", () => {
  const lines = printed(() => {
    print("Room red:", "", "hello");
    print("", new ArrayBuffer(3));
    print("");
    print();
  });
  assertEquals(lines, ["Room red: hello", "3 bytes of binary.", "", ""]);
});

Deno.test("nothing that is printed acts on a terminal", () => {
  const lines = printed(() => {
    print("\x1b[31m", "\n");
    log("\u202e");
  });
  assertEquals(lines, ["\\u{1b}[31m \\u{a}", "\\u{202e}"]);
});

Deno.test("a terminal that is gone harms nobody who prints", () => {
  const { log: bare } = console;
  console.log = () => {
    throw new Deno.errors.BrokenPipe();
  };
  try {
    print("hello");
    log("hello");
  } finally {
    console.log = bare;
  }
});

Deno.test("after `silence`, only `log` prints", () => {
  const lines = printed(() => {
    silence();
    print("hello");
    log("A client joined.");
  });
  assertEquals(lines, ["A client joined."]);
});
