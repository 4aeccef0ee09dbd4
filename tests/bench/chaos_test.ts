// What the chaos promises: our servers go through it, and what a worse server does is counted.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { test } from "../needs.ts";
import { Script } from "../programs.ts";
import { contentOf, Follower, Ledger } from "./ledger.ts";

/** Two seconds of it: the cells of its table by their headings. */
async function runShort(kind: string): Promise<Map<string, string>> {
  const flags = ["--seconds", "2", "--only", kind];
  await using chaos = new Script("tests/bench/chaos.ts", flags, ["--allow-all"]);
  const code = await chaos.end();
  assertEquals([code, ...chaos.errors.all], [0]);
  const [headings, , cells] = chaos.lines.all.map((line) => line.split("|").map((t) => t.trim()));
  return new Map(headings.map((heading, column) => [heading, cells[column]]));
}

const KINDS = [["ours, one process", "run"], ["ours, two with JetStream", "nats"]] as const;
for (const [kind, needs] of KINDS) {
  test({ needs }, `resets and kills cost nothing that is not told: ${kind}`, async () => {
    const cells = await runShort(kind);
    for (const fault of ["lost", "doubled", "out of order", "untold"]) {
      assertEquals(cells.get(fault), "none", fault);
    }
    const broken = ["heard", "resets", "kills", ...needs === "nats" ? ["NATS restarts"] : []];
    for (const heading of broken) assertMatch(`${cells.get(heading)}`, /^\d/, heading);
  });
}

/** What a follower is sent: `e.3 lost 2`, or a message with its position, such as `e.3 2`. */
type Wire = string[];

/** Messages 0 to 4 get the positions e.1 to e.5, and two followers hear what is given. */
function heard(...wires: Wire[]): Record<string, number> {
  const ledger = new Ledger();
  const connection = {};
  const all = Array.from({ length: 5 }, () => ledger.say("", 20, "sent", connection));
  for (const [index, said] of all.entries()) ledger.accept(said, `e.${index + 1}`, "202");
  for (const wire of wires) {
    const follower = new Follower(ledger, "");
    for (const line of wire) {
      const [, position, id] = line.match(/^(\S+) (\d+)$/) ?? [];
      if (id === undefined) follower.begin(line);
      else follower.hear(position, contentOf({ ...all[0], id: Number(id) }));
    }
  }
  ledger.check([all[4]]);
  const faults = Object.entries(ledger.faults).filter(([, count]) => count > 0);
  assertEquals(ledger.firstFault === "", faults.length === 0);
  return Object.fromEntries(faults);
}

const ALL = ["e.1 0", "e.2 1", "e.3 2", "e.4 3", "e.5 4"];

Deno.test("what is heard once and in order, and what is told exactly, is no fault", () => {
  assertEquals(heard(["e.0", ...ALL], ["e.3", "e.4 3", "e.5 4"]), {});
  assertEquals(heard(["e.0", "e.1 0", "e.1", ...ALL.slice(1)]), {});
  assertEquals(heard(["e.0", "e.1 0", "e.3 lost 2", ...ALL.slice(3)]), {});
  assertEquals(heard(["old.7", "e.0 lost", ...ALL], ["e.0", "e.4 lost", "e.5 4"]), {});
});

Deno.test("each fault is counted as what it is", () => {
  const [first, second, third, fourth, fifth] = ALL;
  const cases: [wire: Wire, faults: Record<string, number>][] = [
    [["e.0", first, second, third, fifth], { lost: 1 }],
    [["e.0", first, second, third, fourth], { lost: 1 }],
    [["e.1", third, fourth, fifth], { lost: 1 }],
    [["e.0", first, "e.1", third, fourth, fifth], { lost: 1 }],
    [["e.0", first, second, second, third, fourth, fifth], { doubled: 1 }],
    [["e.0", first, second, "e.2", second, third, fourth, fifth], { doubled: 1 }],
    [["e.0", first, third, second, fourth, fifth], { "out of order": 1 }],
    [["e.0", first, "e.2 1", "e.3 3"], { doubled: 1, "out of order": 1, lost: 2 }],
    [["e.0", first, "e.3 lost 1", fourth, fifth], { untold: 1 }],
    [["e.0", first, "e.3 lost 3", fourth, fifth], { untold: 1 }],
    [["e.0", first, "e.3", fourth, fifth], { untold: 1 }],
    [["old.7", "e.0", ...ALL], { untold: 1 }],
    [["old.7", "e.0 lost 1", ...ALL], { untold: 1 }],
    [["hello", "e.0", ...ALL], { untold: 1 }],
    [["e.0", "e.1 7", ...ALL], { "out of order": 1 }],
    [[first, "e.0", ...ALL], { "out of order": 1 }],
  ];
  for (const [wire, faults] of cases) assertEquals(heard(wire), faults, wire.join(", "));
});

Deno.test("what one connection has sent is in one history in its order and without a gap", () => {
  const faultsOf = (...positions: (string | undefined)[]) => {
    const ledger = new Ledger();
    const connection = {};
    const sent = positions.map(() => ledger.say("", 20, "sent", connection));
    for (const [index, position] of positions.entries()) {
      if (position) ledger.accept(sent[index], position, "heard");
    }
    ledger.check([]);
    return [ledger.faults.lost, ledger.faults["out of order"]];
  };
  assertEquals(faultsOf("e.1", "e.2", undefined), [0, 0]);
  assertEquals(faultsOf("e.1", undefined, "e.2"), [1, 0]);
  assertEquals(faultsOf("e.2", "e.1"), [0, 1]);
  assertEquals(faultsOf("e.2", undefined, "other.1"), [0, 0]);
});

Deno.test("the first fault is told with the way of its message", () => {
  const ledger = new Ledger();
  const said = ledger.say("", 20, "pushed");
  const follower = new Follower(ledger, "");
  follower.begin("e.0");
  for (let times = 0; times < 2; times++) follower.hear("e.1", contentOf(said));
  const time = String.raw`\d+\.\d{3} s: `;
  const message = `message 0 \\(${time}pushed, ${time}follower 0 hears it as e\\.1\\)`;
  const hearer = `follower 0 \\(${time}is told e\\.0\\)`;
  assertMatch(ledger.firstFault, new RegExp(`^${time}doubled: ${message}: ${hearer}$`));
  assert(follower.hasHeard(said));
});
