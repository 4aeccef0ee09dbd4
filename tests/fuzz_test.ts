// Rounds of random acts, as `deno task fuzz` plays them for longer.

import { assertEquals } from "@std/assert";
import { test } from "./needs.ts";
import { Script } from "./programs.ts";

test({ needs: "linux" }, "random acts of clients leave nothing behind", async () => {
  // In a process of its own, because the descriptors of this one belong to all tests.
  await using rounds = new Script("tests/fuzz.ts", ["--seconds", "2"], ["--allow-all"]);
  const code = await rounds.end();
  // `deno task fuzz --seed` with the seed prints the acts.
  const errors = rounds.errors.all.filter((line) => !/^ {2}\d/.test(line));
  assertEquals(code, 0, errors.join("\n"));
});
