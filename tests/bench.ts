// Measures what the rules of our servers cost, each beside a bare server of a few lines:
//
//   deno task bench                           (all: about twenty minutes)
//   deno task bench --only echo --rounds 3
//   deno task bench --only echo --url ws://localhost:8080
//
// Read loads.ts first: what clients send. Then `takeTurns`, which makes the figures of two servers
// comparable on a machine that does other things as well. bench.md explains the columns.

import { delay } from "@std/async";
import process from "node:process";
import { parseArgs } from "node:util";
import { runScript, usageError, wholeNumber } from "../cli.ts";
import { NATS_SERVER } from "./helpers.ts";
import { broadcast, connectAll, disconnect, echo, handshakes, IN_FLIGHT } from "./loads.ts";
import { type Load, type LoadOptions, OPENING, type Outcome, steady } from "./loads.ts";

/** Milliseconds of a server's turn: long beside its start, short beside what else is going on. */
const TURN = 250;
/** Milliseconds of load before the first turn, in which V8 compiles what turns out to be hot. */
const WARM_UP = 750;
/** Milliseconds in which a server notices its clients, and its memory comes to rest. */
const SETTLING = 500;
/** Milliseconds of one tick in /proc/PID/stat: Linux counts 100 a second for every program. */
const TICK = 10;
/** The part of a core from which on a program of one thread can do no more. */
const FULL_CORE = 0.95;
/** Flags of our servers, whose own limit of clients is lower than what is opened here. */
const LIMITS = ["--port", "0", "--max-clients", "100000"];
/** Figures of which the ratio to the first server is shown. */
const COMPARED = ["per second", "CPU µs", "KiB each"];

interface Server {
  name: string;
  /** Where the clients connect: in turn, if a server has several instances. */
  urls: string[];
  /** All of its processes; none if they are not known. */
  processIds: number[];
}

/** What was measured of a server, by its heading in the table; NaN where it could not be. */
export type Figures = Record<string, number>;

interface Case {
  clients: number;
  bytes: number;
  rooms?: number;
}

/**
 * Loads the servers in short turns, so that what else the machine does meets all of them: their
 * ratio keeps within some percent while the figures themselves halve and double.
 *
 * The clients are WebSocket objects in this process. They work as hard as the server does, but hide
 * nothing: a microsecond more for each answer of the bare server, which takes 8, was shown as 0.87
 * to 0.90. Frames written to plain TCP were no faster, as most of the time goes into system calls.
 *
 * @param warmUp The load that finds the highest rate, half of which is `rate` if that is left out.
 */
export async function takeTurns(
  servers: Server[],
  { clients, bytes, rooms }: Case,
  seconds: number,
  load: Load,
  { warmUp = load, rate = NaN } = {},
): Promise<Figures[]> {
  const players: Player[] = [];
  for (const server of servers) {
    const sockets = await connectAll(server.urls, clients, rooms);
    players.push({ server, sockets, turns: [], before: { user: NaN, system: NaN } });
  }
  // A server learns of a client a moment after the client does, and shall know all of them.
  await delay(SETTLING);
  let highest = Infinity;
  for (const player of players) {
    await play(player, warmUp, { bytes, rooms, milliseconds: WARM_UP });
    const { count, elapsed } = await play(player, warmUp, { bytes, rooms, milliseconds: TURN });
    highest = Math.min(highest, count / elapsed * 1000);
  }
  const options = { bytes, rooms, milliseconds: TURN, rate: rate || highest / 2 };
  for (const player of players) player.before = await cpuTime(player.server.processIds);
  for (let turn = 0; turn * TURN < seconds * 1000; turn++) {
    // Each is the first as often as the others: who has two turns in a row has an advantage.
    const first = turn % players.length;
    for (const player of [...players.slice(first), ...players.slice(0, first)]) {
      player.turns.push(await play(player, load, options));
    }
  }
  const figures: Figures[] = [];
  for (const { server, turns, before } of players) {
    figures.push(turnFigures(turns, before, await cpuTime(server.processIds)));
  }
  await disconnect(players.flatMap(({ sockets }) => sockets));
  return figures;
}

interface Player {
  server: Server;
  sockets: WebSocket[];
  turns: Turn[];
  /** What the server had used of the processor before the first turn. */
  before: CpuTime;
}

/** A turn, with its milliseconds, and those of the processor that the load itself has used. */
export type Turn = Outcome & { elapsed: number; loadTime: number };

async function play({ server, sockets }: Player, load: Load, options: LoadOptions): Promise<Turn> {
  const [start, before] = [performance.now(), process.cpuUsage()];
  const outcome = await load(sockets, options).catch((error: unknown) => {
    throw error instanceof Error ? new Error(`${server.name}: ${error.message}`) : error;
  });
  const { user, system } = process.cpuUsage(before);
  return { ...outcome, elapsed: performance.now() - start, loadTime: (user + system) / 1000 };
}

export function turnFigures(turns: Turn[], before: CpuTime, after: CpuTime): Figures {
  const count = sum(turns.map(({ count }) => count));
  const elapsed = sum(turns.map(({ elapsed }) => elapsed));
  const wait = percentiles(turns.flatMap(({ waits }) => waits));
  const delays = turns.flatMap(({ delays = [] }) => delays);
  return {
    [delays.length > 0 ? "sent per second" : "per second"]: count / elapsed * 1000,
    ...cpuFigures(before, after, count),
    ...{ "p50 ms": wait(0.5), "p99 ms": wait(0.99), "p99.9 ms": wait(0.999), "max ms": wait(1) },
    // A steady load is never at rest, but should send on time.
    ...delays.length > 0
      ? { "late ms": percentiles(delays)(0.99) }
      : { "load cores": sum(turns.map(({ loadTime }) => loadTime)) / elapsed },
  };
}

/** Whether the load tool did all that it could: the server may be better than its figures. */
export function isLimitedByLoad(figures: Row["figures"]): boolean {
  const [cores, late, wait] = ["load cores", "late ms", "p99 ms"].map((name) =>
    figures[name]?.median
  );
  return cores >= FULL_CORE || late >= wait / 2;
}

/** Opens connections that then stay silent, and looks how much larger they have made a server. */
async function idle(servers: Server[], { clients }: Case): Promise<Figures[]> {
  const figures: Figures[] = [];
  for (const { urls, processIds } of servers) {
    // What a server compiles for its first clients, and how its heap grows, is not their price.
    for (let wave = 0; wave < 20; wave++) await disconnect(await connectAll(urls, OPENING));
    await delay(SETTLING);
    const [memory, before] = [await residentMemory(processIds), await cpuTime(processIds)];
    const start = performance.now();
    const { sockets, waits, failures } = await handshakes(urls, clients);
    const elapsed = performance.now() - start;
    await delay(SETTLING);
    const wait = percentiles(waits);
    figures.push({
      "KiB each": (await residentMemory(processIds) - memory) / sockets.length,
      "per second": sockets.length / elapsed * 1000,
      ...cpuFigures(before, await cpuTime(processIds), sockets.length),
      ...{ "p50 ms": wait(0.5), "p99 ms": wait(0.99), failures },
    });
    await disconnect(sockets);
  }
  return figures;
}

/** Milliseconds of the processor, in a program's own code and in the system on its behalf. */
export interface CpuTime {
  user: number;
  system: number;
}

function cpuFigures(before: CpuTime, after: CpuTime, count: number): Figures {
  const [user, system] = [after.user - before.user, after.system - before.system];
  const microseconds = (time: number) => time * 1000 / count;
  return {
    "CPU µs": microseconds(user + system),
    "user µs": microseconds(user),
    "system µs": microseconds(system),
  };
}

/** What processes have used since they started, all together; NaN if there are none. */
export async function cpuTime(processIds: number[]): Promise<CpuTime> {
  const all = await Promise.all(processIds.map((id) => cat(`/proc/${id}/stat`)));
  // Fields 14 and 15 of proc(5). Field 2 is the program's name, which may hold spaces and brackets.
  const fields = all.map((stat) => stat.slice(stat.lastIndexOf(")") + 2).split(" "));
  const milliseconds = (field: number) => sum(fields.map((each) => Number(each[field - 3]) * TICK));
  return { user: milliseconds(14), system: milliseconds(15) };
}

/** Kibibytes that processes occupy, all together; NaN if there are none. */
async function residentMemory(processIds: number[]): Promise<number> {
  const all = await Promise.all(processIds.map((id) => cat(`/proc/${id}/status`)));
  return sum(all.map((status) => Number(status.match(/VmRSS:\s+(\d+) kB/)?.[1] ?? NaN)));
}

/** A file of Linux. Deno lets only a script that may do everything read /proc itself. */
async function cat(path: string): Promise<string> {
  if (Deno.build.os !== "linux") return "";
  const { stdout } = await new Deno.Command("cat", { args: [path] }).output();
  return new TextDecoder().decode(stdout);
}

/** A bare server, which prints its address as the others do. */
const BARE: Deno.ServeTcpOptions = {
  hostname: "localhost",
  port: 0,
  onListen: ({ port }) => console.log(`Bare server on ws://localhost:${port}`),
};

/** Its answers are as long as those of server.ts. */
function bareEcho() {
  Deno.serve(BARE, (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    const time = "2026-11-23 09:24:14.787357";
    socket.onmessage = ({ data }) => socket.send(`Data received as "${data}".  time: ${time}`);
    return response;
  });
}

function bareBroadcast() {
  const clients = new Set<WebSocket>();
  Deno.serve(BARE, (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onopen = () => clients.add(socket);
    socket.onmessage = ({ data }) => {
      for (const client of clients) client.send(data);
    };
    socket.onclose = () => clients.delete(socket);
    return response;
  });
}

const processes = new Set<Deno.ChildProcess>();

/** Starts a program, and finds its address in what it prints. What it prints later is thrown away. */
async function start(
  program: string,
  args: string[],
  stream: "stdout" | "stderr",
  addressPattern: RegExp,
): Promise<{ address: string; processId: number }> {
  const process = new Deno.Command(program, { args, [stream]: "piped" }).spawn();
  processes.add(process);
  process.status.then(() => processes.delete(process));
  const output = process[stream].pipeThrough(new TextDecoderStream());
  let printed = "";
  for await (const text of output.values({ preventCancel: true })) {
    printed += text;
    const address = printed.match(addressPattern)?.[0];
    if (!address) continue;
    output.pipeTo(new WritableStream()).catch(() => {});
    return { address, processId: process.pid };
  }
  throw new Error(`${program} ${args.join(" ")} did not start.`);
}

async function startScript(name: string, script: string, ...flags: string[]): Promise<Server> {
  const args = ["run", "--allow-net", import.meta.resolve(script), ...flags];
  const { address, processId } = await start(Deno.execPath(), args, "stdout", /ws:[^\s,]+(?=.*\n)/);
  return { name, urls: [address], processIds: [processId] };
}

/** Starts instances of the broadcast server that are joined through a NATS server. */
async function startJoined(name: string, instances: number): Promise<Server> {
  const args = ["--addr", "127.0.0.1", "--port", "-1"];
  const ready = /127\.0\.0\.1:\d+(?=[^]*Server is ready)/;
  const nats = await start(NATS_SERVER ?? "nats-server", args, "stderr", ready);
  const joined: Server = { name, urls: [], processIds: [nats.processId] };
  for (let instance = 0; instance < instances; instance++) {
    const flags = [...LIMITS, "--quiet", "--nats", `nats://${nats.address}`];
    const { urls, processIds } = await startScript(name, "../broadcast_server.ts", ...flags);
    joined.urls.push(...urls);
    joined.processIds.push(...processIds);
  }
  return joined;
}

async function stopAll(): Promise<void> {
  const stopped = Array.from(processes, (process) => process.status);
  for (const process of processes) process.kill("SIGKILL");
  await Promise.all(stopped);
}

/** A server that runs already: `[NAME=]URL[,PROCESS_ID]`. */
export function parseServer(text: string): Server {
  const [, name, url, processId] = text.match(/^(?:([^=]+)=)?(wss?:\/\/[^,]+)(?:,(\d+))?$/) ?? [];
  if (!URL.canParse(url)) throw usageError(`--url takes [NAME=]URL[,PROCESS_ID], not "${text}".`);
  return { name: name ?? url, urls: [url], processIds: processId ? [Number(processId)] : [] };
}

/** Whether a server sends what one client says to another one, too. It has to answer either way. */
export async function isBroadcastServer({ urls }: Server): Promise<boolean> {
  const [speaker, listener] = await connectAll(urls, 2);
  let isHeard = false;
  listener.onmessage = () => isHeard = true;
  await echo([speaker], { bytes: 20, milliseconds: TURN });
  await disconnect([speaker, listener]);
  return isHeard;
}

interface Table {
  name: string;
  title: string;
  explanation: string;
  /** All are compared with the first. */
  servers: (() => Server | Promise<Server>)[];
  cases: Case[];
  measure(servers: Server[], oneCase: Case): Promise<Figures[]>;
}

function allTables(seconds: number, rate?: number): Table[] {
  const bare = () => startScript("bare", "./bench.ts", "--bare", "echo");
  const ours = () => startScript("ours", "../server.ts", ...LIMITS, "--quiet");
  const printing = () => startScript("ours, printing", "../server.ts", ...LIMITS);
  const bareRoom = () => startScript("bare", "./bench.ts", "--bare", "broadcast");
  const room = () => startScript("ours", "../broadcast_server.ts", ...LIMITS, "--quiet");
  return [{
    name: "echo",
    title: "Echo",
    explanation: "Every client sends a text, waits for the answer and sends the next.",
    servers: [bare, ours, printing],
    cases: [20, 200].flatMap((clients) => [20, 1024].map((bytes) => ({ clients, bytes }))),
    measure: (servers, oneCase) => takeTurns(servers, oneCase, seconds, echo),
  }, {
    name: "steady",
    title: "Echo at a steady rate",
    explanation: "The clients send at a fixed rate, half of what the slower server can answer. " +
      "A message waits from the moment it was due, so that a pause of the server shows in full.",
    servers: [bare, ours],
    cases: [20, 200, 1000].map((clients) => ({ clients, bytes: 20 })),
    measure: (servers, oneCase) =>
      takeTurns(servers, oneCase, seconds, steady, { warmUp: echo, rate }),
  }, {
    name: "broadcast",
    title: "Broadcast",
    explanation: `One client sends, all receive, and ${IN_FLIGHT} messages are under way.`,
    servers: [bareRoom, room],
    cases: [10, 100, 1000].map((clients) => ({ clients, bytes: 20 })),
    measure: (servers, oneCase) => takeTurns(servers, oneCase, seconds, broadcast),
  }, {
    name: "joined",
    title: "Broadcast by several instances",
    explanation: "The same with one server, and with two and four that are joined through NATS. " +
      "The processor time is that of all of them and of NATS.",
    servers: [room, () => startJoined("two", 2), () => startJoined("four", 4)],
    cases: [
      { clients: 100, bytes: 20 },
      { clients: 1000, bytes: 20 },
      { clients: 1000, bytes: 20, rooms: 10 },
    ],
    measure: (servers, oneCase) => takeTurns(servers, oneCase, seconds, broadcast),
  }, {
    name: "idle",
    title: "Connections",
    explanation: "Connections are opened, 50 at a time, and stay silent.",
    servers: [bare, ours],
    cases: [{ clients: 1000, bytes: 0 }, { clients: 10_000, bytes: 0 }],
    measure: idle,
  }];
}

/** A line of a table. */
export interface Row extends Case {
  server: string;
  figures: Record<string, { median: number; ratio?: Summary }>;
}

type Summary = ReturnType<typeof summary>;

/** Measures a case, each round with new processes, as no two of a server are equally fast. */
async function compare(table: Table, oneCase: Case, rounds: number): Promise<Row[]> {
  const samples: Figures[][] = [];
  let names: string[] = [];
  for (let round = 1; round <= rounds; round++) {
    progress(`${table.title}, ${oneCase.clients} clients: round ${round} of ${rounds}`);
    const servers: Server[] = [];
    for (const startServer of table.servers) servers.push(await startServer());
    names = servers.map(({ name }) => name);
    samples.push(await table.measure(servers, oneCase));
    await stopAll();
    progress("");
  }
  const figures = summarize(samples);
  return names.map((server, index) => ({ server, ...oneCase, figures: figures[index] }));
}

/** The medians of each server's figures, and of their ratios to those of the first server. */
export function summarize(rounds: Figures[][]): Row["figures"][] {
  return rounds[0].map((figures, server) => {
    const summarized: Row["figures"] = {};
    for (const name of Object.keys(figures)) {
      const { median } = summary(rounds.map((round) => round[server][name]));
      const ratio = summary(rounds.map((round) => round[server][name] / round[0][name]));
      summarized[name] = server > 0 ? { median, ratio } : { median };
    }
    return summarized;
  });
}

function summary(values: number[]) {
  const sorted = values.toSorted((a, b) => a - b);
  const [low, high] = [sorted.length - 1, sorted.length].map((twice) => sorted[twice >> 1]);
  return { median: (low + high) / 2, min: sorted[0], max: sorted[sorted.length - 1] };
}

/** Which wait a part of all did not exceed. */
export function percentiles(waits: number[]): (part: number) => number {
  const sorted = Float64Array.from(waits).sort();
  return (part) => sorted[Math.ceil(part * sorted.length) - 1] ?? NaN;
}

function sum(values: number[]): number {
  return values.length > 0 ? values.reduce((total, value) => total + value) : NaN;
}

function format(value: number, decimals = value < 100 ? 2 : 0): string {
  if (Number.isNaN(value)) return "–";
  return value.toLocaleString("en", {
    minimumFractionDigits: decimals,
    maximumFractionDigits: decimals,
  });
}

/** The rows in Markdown, with the columns as wide as `deno fmt` wants them. */
export function markdownTable(rows: Row[]): string {
  const lines = rows.map(({ server, figures, ...oneCase }) => {
    const line = [["server", server]];
    for (const name of ["clients", "rooms", "bytes"] as const) {
      if (rows.some((row) => row[name])) line.push([name, format(oneCase[name] ?? 1, 0)]);
    }
    for (const [name, { median, ratio }] of Object.entries(figures)) {
      line.push([name, name === "failures" ? format(median, 0) : format(median)]);
      if (!COMPARED.includes(name)) continue;
      const isKnown = ratio && !Number.isNaN(ratio.median);
      const range = isKnown && `(${format(ratio.min)}–${format(ratio.max)})`;
      line.push(["ratio", isKnown ? `${format(ratio.median)} ${range}` : ""]);
    }
    line.push(["limit", isLimitedByLoad(figures) ? "load" : ""]);
    return line;
  });
  const texts = [
    lines[0].map(([heading]) => heading),
    ...lines.map((line) => line.map(([, cell]) => cell)),
  ];
  const widths = texts[0].map((_, column) => Math.max(...texts.map((text) => text[column].length)));
  const [headings, ...body] = texts.map((text) =>
    text.map((cell, column) => column ? cell.padStart(widths[column]) : cell.padEnd(widths[0]))
  );
  const rule = widths.map((width, column) => `${"-".repeat(width - 1)}${column ? ":" : "-"}`);
  return [headings, rule, ...body].map((line) => `| ${line.join(" | ")} |\n`).join("");
}

/** Shows on a terminal what is being done, in place of what it showed before. */
function progress(text: string): void {
  if (Deno.stderr.isTerminal()) Deno.stderr.writeSync(new TextEncoder().encode(`\r\x1b[K${text}`));
}

const USAGE = `Usage: deno run --allow-net --allow-run --allow-read tests/bench.ts [flags]
  --seconds SECONDS  time under load of each server, case and round (2)
  --rounds COUNT     rounds of each case, each with new processes (5)
  --only TABLE       measure only echo, steady, broadcast, joined or idle
  --url [NAME=]URL[,PROCESS_ID]
                     add a server that runs already to the table of echo or broadcast, whichever it
                     does, or to that of --only; its process for its processor time and its memory
  --rate MESSAGES    messages a second in the table steady (half of the highest rate)
  --markdown         write the tables into tests/bench.md, too; takes --allow-write
  --json             print JSON
  --help             print this`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seconds: { type: "string", default: "2" },
      rounds: { type: "string", default: "5" },
      only: { type: "string" },
      url: { type: "string", multiple: true, default: [] },
      rate: { type: "string" },
      markdown: { type: "boolean" },
      json: { type: "boolean" },
      bare: { type: "string" },
    },
  });
  if (values.bare) return values.bare === "echo" ? bareEcho() : bareBroadcast();
  const seconds = wholeNumber("seconds", values.seconds, 1, 60);
  const rounds = wholeNumber("rounds", values.rounds, 1, 100);
  const rate = values.rate === undefined ? undefined : wholeNumber("rate", values.rate, 1, 10 ** 7);
  const names = allTables(seconds).map(({ name }) => name);
  if (values.only && !names.includes(values.only)) {
    throw usageError(`--only takes ${names.join(", ")}, not "${values.only}".`);
  }
  let tables = allTables(seconds, rate).filter(({ name }) => name === (values.only ?? name));
  if (!NATS_SERVER && tables.some(({ name }) => name === "joined")) {
    console.error("Leaving out servers joined through NATS: there is no nats-server.");
    tables = tables.filter(({ name }) => name !== "joined");
  }
  for (const server of values.url.map(parseServer)) {
    const name = values.only ?? (await isBroadcastServer(server) ? "broadcast" : "echo");
    tables.find((table) => table.name === name)?.servers.push(() => server);
  }

  // However this ends, by Ctrl-C or an error, the servers end with it.
  addEventListener("unload", stopAll);
  Deno.addSignalListener("SIGINT", () => Deno.exit(130));
  if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", () => Deno.exit(143));

  const machine =
    `Medians of ${rounds} rounds of ${seconds} s for each server, on ${await system()}`;
  const results: Record<string, Row[]> = {};
  const texts: string[] = [];
  for (const table of tables) {
    const rows: Row[] = [];
    for (const oneCase of table.cases) rows.push(...await compare(table, oneCase, rounds));
    results[table.name] = rows;
    const text = `### ${table.title}\n\n${table.explanation}\n\n${markdownTable(rows)}`;
    texts.push(text);
    if (!values.json) console.log(text);
  }
  if (values.json) console.log(JSON.stringify({ machine, results }, null, 2));
  else console.log(`${machine}\nThe columns are explained in tests/bench.md.`);
  if (values.markdown) writeMarkdown(`${machine}\n\n${texts.join("\n")}`);
}

/** Puts figures into bench.md, in place of those that are there. */
function writeMarkdown(figures: string): void {
  const file = new URL("bench.md", import.meta.url);
  const text = Deno.readTextFileSync(file);
  const section = /(?<=^## The figures\n\n)[^]*?(?=\n## )/m;
  Deno.writeTextFileSync(file, text.replace(section, () => figures));
}

async function system(): Promise<string> {
  const { os, arch } = Deno.build;
  const model = (await cat("/proc/cpuinfo")).match(/model name\s*: (.*)/)?.[1] ?? arch;
  const cores = navigator.hardwareConcurrency;
  return `${cores} cores (${model}) that run the clients as well, ${os}, Deno ${Deno.version.deno}.`;
}

if (import.meta.main) await runScript(USAGE, main);
