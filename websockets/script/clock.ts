// The clock of the article's sentence.

/** When the second began that was told last, on the clock of `performance`, and how it is written. */
let second = { start: -Infinity, text: "" };

/**
 * The local time as Python prints it, such as `2026-11-23 09:24:14.787357`. An echo says it in each
 * answer, so all but the fraction is written once a second.
 */
export function now(): string {
  let since = performance.now() - second.start;
  if (since >= 1_000) {
    const date = new Date();
    since = date.getMilliseconds() + performance.now() % 1;
    // Sweden writes a date as Python does.
    second = { start: performance.now() - since, text: date.toLocaleString("sv") };
  }
  return `${second.text}.${Math.floor(since * 1000).toString().padStart(6, "0")}`;
}
