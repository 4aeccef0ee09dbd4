// What the chaos promises: our servers go through it, and what a worse server does is counted.

import { assertEquals, assertMatch } from "@std/assert";
import { test } from "../needs.ts";
import { Script } from "../programs.ts";
import { Ledger } from "./ledger.ts";

/** Milliseconds that two seconds of it may take on a busy machine, where 200 followers come back late. */
const PATIENCE = 600_000;

const KINDS = [["ours, one process", "run"], ["ours, two with JetStream", "nats"]] as const;
for (const [kind, needs] of KINDS) {
  test({ needs }, `resets and kills cost nothing that is not told: ${kind}`, async () => {
    const flags = ["--seconds", "2", "--only", kind];
    await using chaos = new Script("tests/bench/chaos.ts", flags, ["--allow-all"]);
    const code = await chaos.end(PATIENCE);
    const { lines, errors } = chaos;
    assertEquals([code, ...errors.all], [0], lines.all.join("\n"));
    const table = lines.all.filter((line) => line.startsWith("|"));
    const [headings, , row] = table.map((line) => line.split("|").map((cell) => cell.trim()));
    const cell = (heading: string) => `${heading} ${row[headings.indexOf(heading)]}`;
    // One process knows whether anything is gone.
    const faults = ["lost", "doubled", "out of order", "untold"];
    for (const heading of needs === "run" ? ["in vain", ...faults] : faults) {
      assertEquals(cell(heading), `${heading} none`);
    }
    const broken = ["resets", "kills", ...needs === "nats" ? ["NATS restarts"] : []];
    for (const heading of [...broken, "heard"]) assertMatch(cell(heading), / \d/);
  });
}

/**
 * What is wrong if messages 0 to 4 stand at e.1 to e.5 in their room, and followers hear this: a message
 * with its position, such as `e.3 2`, or what is gone up to a position, such as `e.3 lost 2`.
 */
function faultsOf(...followers: string[][]): Record<string, number> {
  const ledger = new Ledger();
  for (let number = 1; number <= 5; number++) ledger.accept(ledger.say("red"), `e.${number}`);
  for (const heard of followers) {
    const follower = ledger.follow("red");
    for (const line of heard) {
      const [position, message, lost = 0] = line.split(" ");
      const isGap = message === "lost";
      ledger.hear(follower, { position, message: isGap ? undefined : message, lost: Number(lost) });
    }
  }
  ledger.check();
  const faults = Object.entries(ledger.faults).filter(([, count]) => count > 0);
  assertEquals(ledger.lines.length, faults.reduce((sum, [, count]) => sum + count, 0));
  return Object.fromEntries(faults);
}

const [first, second, third, fourth, fifth] = ["e.1 0", "e.2 1", "e.3 2", "e.4 3", "e.5 4"];
const all = [first, second, third, fourth, fifth];

Deno.test("what is heard once and in order, and what is told exactly, is no fault", () => {
  assertEquals(faultsOf(all, [third, fourth]), {});
  assertEquals(faultsOf([first, "e.3 lost 2", fourth, fifth]), {});
  assertEquals(faultsOf([first, "e.2 lost 1", "e.4 lost 2", fifth]), {});
  assertEquals(faultsOf([first, "e.3 lost Infinity", fourth]), {});
  assertEquals(faultsOf([first, "f.0 lost Infinity"], ["e.5 lost 0"]), {});
});

Deno.test("each fault is counted as what it is", () => {
  const cases: [heard: string[], faults: Record<string, number>][] = [
    [[first, second, third, fifth], { lost: 1 }],
    [[first, fourth, fifth], { lost: 2 }],
    [[first, "e.3 lost 2", fifth], { lost: 1 }],
    [[first, second, second, third], { doubled: 1 }],
    [[...all, third, "e.6 4"], { doubled: 2 }],
    [[first, third, second, fourth], { "out of order": 1 }],
    [[first, "e.3 1", third], { "out of order": 2 }],
    [[first, "f.2 1"], { "out of order": 1, untold: 1 }],
    [[first, "e.3 lost 1", fourth], { untold: 1 }],
    [[first, "e.3 lost 3", fourth], { untold: 1 }],
    [[first, "e.1 lost 1", second], { untold: 1 }],
    [[first, "f.0 lost 4"], { untold: 1 }],
  ];
  for (const [heard, faults] of cases) assertEquals(faultsOf(heard), faults, heard.join(", "));
});
