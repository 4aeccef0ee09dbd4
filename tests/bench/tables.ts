// What the bench tells of its outcomes: figures, tables in Markdown, and the picture of the ratios.

import { BULK, type Case, type Outcome } from "./loads.ts";

/** What was measured of a server, by its heading in the table; NaN where it could not be. */
export type Figures = Record<string, number>;

/** A line of a table: cells by their headings, of which two may be the same. */
export type Row = [heading: string, cell: string][];

/** The part of a core from which on a program of one thread can do no more. */
const FULL_CORE = 0.95;
/** The settings of a case, as the tables show them. */
const SETTINGS = ["clients", "rooms", "stalled", "bytes", "inFlight", "copies"] as const;
/** Figures of which the ratio to the first server is shown as well. */
const COMPARED = /^(KiB each|(MB )?per second|CPU.*|p99 ms)$/;

/** @param cpuTime Milliseconds of the processor that the server has used for all of it. */
export function figuresOf(outcome: Outcome, cpuTime: number, bytes: number): Figures {
  const { count, milliseconds, loadTime, waits, delays } = outcome;
  const isSteady = delays.length > 0;
  // Where the load did all that it could, the server may be better than its figures.
  const isLimited = isSteady
    ? percentile(delays, 0.99) >= percentile(waits, 0.99) / 2
    : loadTime / milliseconds >= FULL_CORE;
  const rate = isSteady ? "sent per second" : "per second";
  const megabytes = count * bytes / 1e6;
  const speed: Figures = bytes < BULK
    ? { [rate]: count / milliseconds * 1000, "CPU µs": cpuTime / count * 1000 }
    : {
      "MB per second": megabytes / milliseconds * 1000,
      "CPU µs per MB": cpuTime / megabytes * 1000,
    };
  const [p50, p99, p999] = [0.5, 0.99, 0.999].map((part) => percentile(waits, part));
  const limit = Number(isLimited);
  return { ...speed, "p50 ms": p50, "p99 ms": p99, "p99.9 ms": p999, limit };
}

/** What a part of all values did not exceed. */
export function percentile(values: number[], part: number): number {
  return Float64Array.from(values).sort()[Math.ceil(part * values.length) - 1] ?? NaN;
}

export function sum(values: number[]): number {
  return values.length > 0 ? values.reduce((total, value) => total + value) : NaN;
}

/** @param rounds The figures of each server, in each round. */
export function rowsOf(names: string[], oneCase: Case, rounds: Figures[][]): Row[] {
  return names.map((name, server) => {
    const row: Row = [["server", name]];
    for (const key of SETTINGS) {
      row.push([key === "inFlight" ? "in flight" : key, format(oneCase[key] ?? 0, 0)]);
    }
    for (const heading of Object.keys(rounds[0][server])) {
      const { median } = summary(rounds.map((round) => round[server][heading]));
      row.push([heading, heading === "limit" ? median > 0.5 ? "load" : "" : format(median)]);
      if (!COMPARED.test(heading)) continue;
      // Ratios within a round are those of servers that ran at the same time.
      const ratio = summary(rounds.map((round) => round[server][heading] / round[0][heading]));
      const range = [ratio.min, ratio.max].map((each) => format(each)).join("–");
      const isKnown = server > 0 && !Number.isNaN(ratio.median);
      row.push(["ratio", isKnown ? `${format(ratio.median)} (${range})` : ""]);
    }
    return row;
  });
}

function summary(values: number[]) {
  const sorted = values.toSorted((a, b) => a - b);
  const [low, high] = [sorted.length - 1, sorted.length].map((twice) => sorted[twice >> 1]);
  return { median: (low + high) / 2, min: sorted[0], max: sorted[sorted.length - 1] };
}

function format(value: number, decimals = value < 100 ? 2 : 0): string {
  if (Number.isNaN(value)) return "–";
  const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return value.toLocaleString("en", digits);
}

/** The rows in Markdown, without empty settings, and as wide as `deno fmt` wants them. */
export function table(rows: Row[]): string {
  const isShown = (_: unknown, column: number) =>
    rows.some((row) => !["0", ""].includes(row[column][1]) || row[column][0] === "limit");
  const cells = rows.map((row) => row.filter(isShown));
  const texts = [
    cells[0].map(([heading]) => heading),
    ...cells.map((row) => row.map(([, cell]) => cell)),
  ];
  const widths = texts[0].map((_, column) => Math.max(...texts.map((text) => text[column].length)));
  const [headings, ...body] = texts.map((text) =>
    text.map((cell, column) => column ? cell.padStart(widths[column]) : cell.padEnd(widths[0]))
  );
  const rule = widths.map((width, column) => `${"-".repeat(width - 1)}${column ? ":" : "-"}`);
  return [headings, rule, ...body].map((line) => `| ${line.join(" | ")} |\n`).join("");
}

/** Pixels of a line, of a letter, of the names at the left, and of a ratio of 1. */
const [LINE, LETTER, LEFT, UNIT] = [20, 7, 440, 260];
/** The ratio at the right end, where all that is better is drawn as well. */
const BEST = 1.5;

/** The cases in README.md that have a bare server, and the speed of each other as a ratio to it. */
function* casesIn(markdown: string) {
  for (const [title, ...lines] of markdown.split(/^### /m).map((section) => section.split("\n"))) {
    const [headings = [], , ...rows] = lines.filter((line) => line.startsWith("|"))
      .map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim()));
    const rate = headings.findIndex((heading) => /^(MB )?per second$/.test(heading));
    if (rate < 0 || rows[0][0] !== "bare") continue;
    const settingsOf = (row: string[]) =>
      headings.slice(1, rate).map((heading, index) => `${row[index + 1]} ${heading}`)
        .join(", ").replaceAll(/\b1 (client|room)s/g, "1 $1");
    for (const [settings, all = []] of Map.groupBy(rows, settingsOf)) {
      const ratios = all.slice(1).map((row) => [row[0], parseFloat(row[rate + 1])] as const);
      yield { name: `${title}: ${settings}`, ratios };
    }
  }
}

/** Draws how fast the servers in the tables of README.md are, beside those that are bare. */
export function picture(markdown: string): string {
  const cases = [...casesIn(markdown)];
  const servers = [...new Set(cases.flatMap(({ ratios }) => ratios.map(([server]) => server)))];
  const marks: string[] = [];
  const write = (x: number, y: number, text: string, anchor = "start") =>
    marks.push(`<text x="${x}" y="${y + 4}" text-anchor="${anchor}">${text}</text>`);
  const dot = (x: number, y: number, server: string) => {
    const hue = Math.round(210 + servers.indexOf(server) / servers.length * 360) % 360;
    marks.push(`<circle cx="${x}" cy="${y}" r="5" fill="hsl(${hue} 70% 50%)"/>`);
  };
  const bottom = (cases.length + 2) * LINE;
  for (const ratio of [0, 0.25, 0.5, 0.75, 1, 1.25, BEST]) {
    const x = LEFT + ratio * UNIT;
    marks.push(`<path d="M${x} ${2 * LINE}V${bottom}" stroke="#8c959f" opacity="0.4"/>`);
    write(x, bottom + LINE, ratio === BEST ? `${ratio} or more` : `${ratio}`, "middle");
  }
  write(LEFT, bottom + 2 * LINE, "messages in the time of one of the bare server: more is better");
  let x = LINE;
  for (const server of servers) {
    dot(x, LINE, server);
    write(x + 10, LINE, server);
    x += 40 + server.length * LETTER;
  }
  for (const [index, { name, ratios }] of cases.entries()) {
    const y = (index + 2.5) * LINE;
    write(LEFT - LINE, y, name, "end");
    // Ours is the first of them, and is drawn above the others.
    for (const [server, ratio] of ratios.toReversed()) {
      dot(LEFT + Math.min(ratio, BEST) * UNIT, y, server);
    }
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${LEFT + 430} ${bottom + 3 * LINE}">
<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } }
</style>
${marks.join("\n")}
</svg>
`;
}
