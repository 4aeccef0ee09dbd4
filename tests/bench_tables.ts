// What the bench tells of its figures: medians, tables in Markdown, and the picture of the ratios.

import type { Case } from "./loads.ts";

/** What was measured of a server, by its heading in the table; NaN where it could not be. */
export type Figures = Record<string, number>;

/** A line of a table: cells by their headings, of which two may be the same. */
export type Row = [heading: string, cell: string][];

/** The settings of a case that are shown, if there are any. */
const CASE_HEADINGS: [keyof Case, string][] = [
  ["clients", "clients"],
  ["rooms", "rooms"],
  ["stalled", "stalled"],
  ["bytes", "bytes"],
  ["inFlight", "in flight"],
  ["pieces", "pieces"],
];
/** Figures of which the ratio to the first server is shown as well. */
const COMPARED = /^(KiB each|(MB )?per second|CPU.*|p99 ms)$/;

/** @param rounds The figures of each server, in each round. */
export function rowsOf(names: string[], oneCase: Case, rounds: Figures[][]): Row[] {
  return names.map((name, server) => {
    const row: Row = [["server", name]];
    for (const [key, heading] of CASE_HEADINGS) row.push([heading, format(oneCase[key] ?? 0, 0)]);
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

/** What a part of all values did not exceed. */
export function percentile(values: number[], part: number): number {
  return Float64Array.from(values).sort()[Math.ceil(part * values.length) - 1] ?? NaN;
}

export function sum(values: number[]): number {
  return values.length > 0 ? values.reduce((total, value) => total + value) : NaN;
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

/** The colour of each server in the picture. */
const COLORS: Record<string, string> = {
  "ours": "#2f81f7",
  "ours, printing": "#a5d6ff",
  "ours, at once": "#a371f7",
  "ours, awaiting": "#39c5cf",
  "callbacks": "#8c959f",
  "loop": "#db61a2",
  "websockets": "#d29922",
  "ws": "#3fb950",
};
/** Pixels of a line, of a letter, of the names at the left, and of a ratio of 1. */
const [LINE, LETTER, LEFT, UNIT] = [20, 7, 410, 260];
/** The ratio at the right end, where all that is better is drawn as well. */
const BEST = 1.5;

/** Draws how fast the servers in the tables of bench.md are, beside those that are bare. */
export function picture(markdown: string): string {
  const marks: string[] = [];
  const write = (x: number, y: number, text: string, anchor: string) =>
    marks.push(`<text x="${x}" y="${y + 4}" text-anchor="${anchor}">${text}</text>`);
  const dot = (x: number, y: number, server: string) =>
    marks.push(`<circle cx="${x}" cy="${y}" r="5" fill="${COLORS[server]}"/>`);
  let x = LINE;
  for (const server of Object.keys(COLORS)) {
    dot(x, LINE, server);
    write(x + 10, LINE, server, "start");
    x += 40 + server.length * LETTER;
  }
  let y = 2 * LINE;
  for (const section of markdown.split(/^### /m).slice(1)) {
    const lines = section.match(/^\|.*(?=\|$)/gm) ?? [];
    const [headings = [], , ...rows] = lines.map((line) =>
      line.split("|").slice(1).map((cell) => cell.trim())
    );
    const rate = headings.findIndex((heading) => /^(MB )?per second$/.test(heading));
    if (rate < 0 || rows[0][0] !== "bare") continue;
    for (const row of rows) {
      if (row[0] === "bare") {
        const settings = headings.slice(1, rate).map((name, index) => `${row[index + 1]} ${name}`);
        const [title] = section.split("\n");
        write(LEFT - LINE, y += LINE, `${title}: ${settings.join(", ")}`, "end");
      } else {
        dot(LEFT + Math.round(Math.min(parseFloat(row[rate + 1]), BEST) * UNIT), y, row[0]);
      }
    }
  }
  const [width, height] = [LEFT + BEST * UNIT + 2 * LINE, y + 4 * LINE];
  for (const ratio of [0, 0.25, 0.5, 0.75, 1, 1.25, BEST]) {
    const x = LEFT + ratio * UNIT;
    marks.unshift(`<path d="M${x} ${2 * LINE}V${y + LINE}" stroke="#8c959f" opacity="0.4"/>`);
    write(x, y + 2 * LINE, ratio === BEST ? `${ratio} or more` : `${ratio}`, "middle");
  }
  write(
    LEFT,
    y + 3 * LINE,
    "messages in the time of one of the bare server: more is better",
    "start",
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}">
<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } }
</style>
${marks.join("\n")}
</svg>
`;
}
