// The clock of the article's sentence.

/** Milliseconds that the fraction of a millisecond has at the most. */
const LAST = 0.9995;
/** One moment on the clock of the system and on that of the process: only the latter tells microseconds. */
let moment = { system: 0, process: 0 };
/** The second that was told last, and how it is written: that takes long. */
let second = { number: NaN, text: "" };

/**
 * The local time as Python prints it, such as `2026-11-23 09:24:14.787357`. It never goes backwards
 * unless the clock of the system is set.
 */
export function now(): string {
  const [system, process] = [Date.now(), performance.now()];
  let fraction = process - moment.process - (system - moment.system);
  if (fraction < 0 || fraction >= 1) {
    fraction = fraction < 0 ? 0 : LAST;
    moment = { system, process: process - fraction };
  }
  const number = Math.floor(system / 1000);
  // Sweden writes a date as Python does.
  if (number !== second.number) second = { number, text: new Date(system).toLocaleString("sv") };
  const microseconds = Math.floor((system % 1000 + fraction) * 1000);
  return `${second.text}.${microseconds.toString().padStart(6, "0")}`;
}
