/// <reference types="./std.d.ts" />
// The clock of the article's sentence, by clocks that the test sets.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { now } from "websockets/script.ts";
import { test } from "./needs.ts";
import { Program } from "./programs.ts";

/** Runs `run`, which sets the clock of the system and that of the process, in milliseconds. */
function withClocks(run: (set: (system: number, process: number) => void) => void): void {
  const { Date: SystemDate } = globalThis;
  let [system, process] = [0, 0];
  class SetDate extends SystemDate {
    constructor(time = SetDate.now()) {
      super(time);
    }
    static override now() {
      return Math.floor(system);
    }
  }
  globalThis.Date = SetDate as DateConstructor;
  performance.now = () => process;
  try {
    run((...clocks) => [system, process] = clocks);
  } finally {
    globalThis.Date = SystemDate;
    // What is left is the method that all objects of its class have.
    Reflect.deleteProperty(performance, "now");
  }
}

/** The local time as the runtime tells it, up to the milliseconds. */
function localTime(time: number): string {
  const { timeZone } = Intl.DateTimeFormat().resolvedOptions();
  const local = Temporal.Instant.fromEpochMilliseconds(time).toZonedDateTimeISO(timeZone);
  return local.toPlainDateTime().toString({ smallestUnit: "millisecond" }).replace("T", " ");
}

const DAY = 86_400_000;
const START = Date.UTC(2026, 10, 23, 8, 59, 58, 500);
/** The processes' clocks, which have begun at any part of a millisecond. */
const BEGUN = [0, 0.001, 0.25, 0.5, 0.75, 0.999, 12_345.678];

Deno.test("the time is written as Python does, with six digits of the second", () => {
  assertMatch(now(), /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}$/);
});

Deno.test("the time never goes backwards, within a second and from one to the next", () => {
  withClocks((set) => {
    for (const [index, begun] of BEGUN.entries()) {
      const times: string[] = [];
      for (let passed = 0; passed < 3_000; passed += 0.137) {
        set(START + index * DAY + passed, (index + 1) * DAY + begun + passed);
        times.push(now());
      }
      const backwards = times.filter((time, index) => index > 0 && time < times[index - 1]);
      assertEquals(backwards, [], `begun at ${begun}`);
      // Nearly each has microseconds of its own.
      assert(new Set(times).size > times.length - 10);
    }
  });
});

Deno.test("the time is the system's to the millisecond, also when that is set", () => {
  withClocks((set) => {
    let passed = 10 * DAY;
    for (const step of [0, 3_600_000, -7_200_000, 400, -400, DAY, 30 * DAY]) {
      for (const pause of [0, 0.4, 0.9, 1, 10, 600, 1_500]) {
        passed += pause;
        set(START + step + passed, passed);
        assertEquals(now().slice(0, -3), localTime(Math.floor(START + step + passed)));
      }
    }
  });
});

test({ needs: "run" }, "the time is the local one", async () => {
  const script = `import { now } from "websockets/script.ts"; console.log(now());`;
  const cwd = new URL("../", import.meta.url);
  for (const TZ of ["Asia/Shanghai", "America/Lima"]) {
    await using program = new Program(Deno.execPath(), ["eval", script], { cwd, env: { TZ } });
    const time = Temporal.PlainDateTime.from((await program.lines.next()).replace(" ", "T"));
    const late = time.until(Temporal.Now.plainDateTimeISO(TZ)).total("minutes");
    assert(0 <= late && late < 60, `${time} in ${TZ}`);
  }
});
