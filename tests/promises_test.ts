// From a promise of websockets/README.md to its test: the name of a test that shows a promise or a limit
// begins with the words that stand first in the README, and a colon. No other name has that form.

import { assertEquals } from "@std/assert";
import { test } from "./needs.ts";
import { read, REFERENCE, ROOT } from "./readme.ts";

/** The limits that no test shows, and why. */
const NOT_SHOWN: Record<string, string> = {
  "Slow readers": "The steps depend on the buffers of the system.",
  "Small frames": "How long the others wait depends on the speed of the machine.",
  "Large messages over TLS": "Whether bytes are kept depends on the buffers of the system.",
  "Frozen NATS over TLS": "It takes the time of a lost TCP connection.",
  "Full pipes": "The system does this to every program.",
};

/** The first words of each row, paragraph and point that have tests. */
function promises(): string[] {
  const [promised, limits] = ["What the server promises", "Limits of the runtime"].map(textUnder);
  const [, , ...rows] = promised.matchAll(/^\| (.*?) *\|/gm);
  const paragraphs = promised.matchAll(/^\*\*(.*?)\.\*\*/gm);
  const points = limits.matchAll(/^- (?:● )?(?:\*\*(.*?)\.\*\*)?/gm);
  return [...rows, ...paragraphs, ...points].map(([, words]) => words);
}

function textUnder(heading: string): string {
  return read(REFERENCE).split(/^## /m).find((text) => text.startsWith(`${heading}\n`)) ?? "";
}

/** The words before a colon in the names of tests that begin with a capital letter or with code. */
function claims(): Set<string> {
  const files = [...Deno.readDirSync(`${ROOT}tests`)].map(({ name }) => name);
  const code = files.filter((name) => name.endsWith("_test.ts")).map((name) =>
    read(`tests/${name}`)
  );
  const names =
    /(?:\btest(?:Exchanges)?\(\s*(?:\{ needs: [^}]*\},\s*)?|\bname: )["`]([A-Z`][^"\n]*?): /g;
  return new Set(code.flatMap((each) => [...each.matchAll(names)]).map(([, words]) => words));
}

test({ needs: "run" }, "every promise and limit has a test, or a reason for having none", () => {
  const claimed = claims();
  const missing = promises().filter((words) => !claimed.has(words));
  assertEquals(missing, Object.keys(NOT_SHOWN));
  return Promise.resolve();
});

test({ needs: "run" }, "every test that names a promise or a limit names one of the README", () => {
  const promised = promises();
  assertEquals([...claims()].filter((words) => !promised.includes(words)), []);
  return Promise.resolve();
});
