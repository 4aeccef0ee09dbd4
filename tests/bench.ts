// Measures what the rules of our servers cost, each beside a bare server of a few lines:
//
//   deno task bench                           (all: about half an hour)
//   deno task bench --only Echo --rounds 3
//
// Read loads.ts first: what clients send. Then `takeTurns`, which makes the figures of two servers
// comparable on a machine that does other things as well. bench.md explains rows and columns.

import { delay } from "@std/async";
import { cpus } from "node:os";
import process from "node:process";
import { parseArgs } from "node:util";
import { runScript, usageError, wholeNumber } from "websockets";
import { type Figures, percentile, picture, type Row, rowsOf, sum, table } from "./bench_tables.ts";
import { NATS_SERVER, Program, PYTHON, Script } from "./helpers.ts";
import { broadcast, BULK, type Case, connectAll, disconnect, echo, type Load } from "./loads.ts";
import { type LoadOptions, OPENING, type Outcome, push, stall } from "./loads.ts";

/** Milliseconds of a server's turn: long beside its start, short beside what else is going on. */
const TURN = 250;
/** Turns before those that count, in which V8 compiles what turns out to be hot. */
const WARM_UP = 3;
/** Milliseconds in which a server notices its clients, and its memory comes to rest. */
const SETTLING = 500;
/** Milliseconds of one tick in /proc/PID/stat: Linux counts 100 a second for every program. */
const TICK = 10;
/** The part of a core from which on a program of one thread can do no more. */
const FULL_CORE = 0.95;

interface Server {
  name: string;
  /** Where the clients connect: in turn, if a server has several instances. */
  urls: string[];
  /** All of its processes; none if they are not known. */
  processIds: number[];
}

interface Options {
  /** Seconds under load of each server, case and round. */
  seconds: number;
  /** Messages a second of a steady load; half of the highest rate unless given. */
  rate?: number;
}

type Measure = (servers: Server[], oneCase: Case, options: Options) => Promise<Figures[]>;

/**
 * Loads the servers in short turns, so that what else the machine does meets all of them: their
 * ratio keeps within some percent while the figures themselves halve and double.
 *
 * The clients are WebSocket objects in this process. They work as hard as the server does, but hide
 * nothing: a microsecond more for each answer of the bare server, which takes 8, was shown as 0.87
 * to 0.90. Frames written to plain TCP were no faster, as most of the time goes into system calls.
 */
function takeTurns(load: Load, isSteady = false): Measure {
  return async (servers, oneCase, { seconds, rate }) => {
    const milliseconds = Math.min(TURN, seconds * 1000);
    const options: LoadOptions = { ...oneCase, milliseconds };
    await using stalled = new AsyncDisposableStack();
    const players: Player[] = [];
    for (const server of servers) {
      const sockets = await connectAll(server.urls, oneCase);
      players.push({ server, sockets, turns: [], before: NaN });
      for (const each of await stall(server.urls[0], oneCase.stalled)) stalled.use(each);
    }
    // A server learns of a client a moment after the client does, and shall know all of them.
    await delay(Math.min(SETTLING, seconds * 1000));
    const rates: number[] = [];
    for (const player of players) {
      for (let turn = 0; turn < WARM_UP; turn++) await play(player, load, options);
      const { count, elapsed } = await play(player, load, options);
      rates.push(count / elapsed * 1000);
      player.before = cpuTime(player.server.processIds);
    }
    if (isSteady) options.rate = rate ?? Math.min(...rates) / 2;
    for (let turn = 0; turn * milliseconds < seconds * 1000; turn++) {
      // Each is the first as often as the others: who has two turns in a row has an advantage.
      const first = turn % players.length;
      for (const player of [...players.slice(first), ...players.slice(0, first)]) {
        player.turns.push(await play(player, load, options));
      }
    }
    const figures: Figures[] = [];
    for (const { server, turns, before } of players) {
      const used = cpuTime(server.processIds) - before;
      figures.push(turnFigures(turns, used, oneCase.bytes));
    }
    await disconnect(players.flatMap(({ sockets }) => sockets));
    return figures;
  };
}

interface Player {
  server: Server;
  sockets: WebSocket[];
  turns: Turn[];
  /** What the server had used of the processor before the first turn. */
  before: number;
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

/** @param cpuTime Milliseconds of the processor that the server has used in all turns. */
export function turnFigures(turns: Turn[], cpuTime: number, bytes: number): Figures {
  const [count, elapsed, loadTime] = (["count", "elapsed", "loadTime"] as const).map((name) =>
    sum(turns.map((turn) => turn[name]))
  );
  const waits = turns.flatMap(({ waits }) => waits);
  const delays = turns.flatMap(({ delays }) => delays);
  const isSteady = delays.length > 0;
  // Where the load tool did all that it could, the server may be better than its figures.
  const isLimited = isSteady
    ? percentile(delays, 0.99) >= percentile(waits, 0.99) / 2
    : loadTime / elapsed >= FULL_CORE;
  const rate = isSteady ? "sent per second" : "per second";
  const megabytes = count * bytes / 1e6;
  const speed: Figures = bytes < BULK
    ? { [rate]: count / elapsed * 1000, "CPU µs": cpuTime / count * 1000 }
    : { "MB per second": megabytes / elapsed * 1000, "CPU µs per MB": cpuTime / megabytes * 1000 };
  return { ...speed, ...waitFigures(waits), limit: Number(isLimited) };
}

function waitFigures(waits: number[]): Figures {
  const [p50, p99, p999] = [0.5, 0.99, 0.999].map((part) => percentile(waits, part));
  return { "p50 ms": p50, "p99 ms": p99, "p99.9 ms": p999 };
}

/** Opens connections that then stay silent, and looks how much larger they have made a server. */
const idle: Measure = async (servers, oneCase, { seconds }) => {
  const figures: Figures[] = [];
  for (const { urls, processIds } of servers) {
    // What a server compiles for its first clients, and how its heap grows, is not their price.
    for (let wave = 0; wave < 10 * seconds; wave++) {
      await disconnect(await connectAll(urls, { clients: OPENING }));
    }
    await delay(Math.min(SETTLING, seconds * 1000));
    const [memory, before] = [residentMemory(processIds), cpuTime(processIds)];
    const start = performance.now();
    const waits: number[] = [];
    const sockets = await connectAll(urls, oneCase, { waits });
    const elapsed = performance.now() - start;
    await delay(Math.min(SETTLING, seconds * 1000));
    figures.push({
      "per second": sockets.length / elapsed * 1000,
      "KiB each": (residentMemory(processIds) - memory) / sockets.length,
      "CPU µs": (cpuTime(processIds) - before) / sockets.length * 1000,
      ...waitFigures(waits),
    });
    await disconnect(sockets);
  }
  return figures;
};

/** Milliseconds of the processor that processes have used, all together; NaN if there are none. */
export function cpuTime(processIds: number[]): number {
  return sum(processIds.map((id) => {
    // Fields 14 and 15 of proc(5). Field 2 is the program's name, which may hold spaces and brackets.
    const fields = read(`/proc/${id}/stat`).replace(/.*\) /, "").split(" ");
    return (Number(fields[14 - 3]) + Number(fields[15 - 3])) * TICK;
  }));
}

/** Kibibytes that processes occupy, all together; NaN if there are none. */
export function residentMemory(processIds: number[]): number {
  return sum(
    processIds.map((id) => Number(read(`/proc/${id}/status`).match(/VmRSS:\s+(\d+)/)?.[1])),
  );
}

/** A file of Linux, or nothing elsewhere. */
function read(path: string): string {
  return Deno.build.os === "linux" ? Deno.readTextFileSync(path) : "";
}

/** What was started, and ends with the round or with this script. */
const running: Program[] = [];

async function stopAll(): Promise<void> {
  await Promise.all(running.splice(0).map((program) => program[Symbol.asyncDispose]()));
}

type Start = () => Promise<Server>;

/** Starts a server that prints its address. */
function starting(name: string, program: () => Program): Start {
  return async () => {
    const started = program();
    running.push(started);
    const [url] = (await started.prints(/ws:/)).match(/ws:[^\s,]+/) ?? [];
    return { name, urls: [`${url}`], processIds: [started.pid] };
  };
}

function script(name: string, file: string, ...flags: string[]): Start {
  const args = ["--port", "0", "--max-clients", "100000", ...flags];
  return starting(name, () => new Script(file, args));
}

function plain(name: string, handler = name): Start {
  return starting(name, () => new Script("tests/bench_servers.ts", [handler]));
}

/** Starts instances of the broadcast server that are joined through a NATS server. */
function joined(name: string, instances: number): Start {
  return async () => {
    const nats = new Program(NATS_SERVER ?? "", ["--addr", "127.0.0.1", "--port", "-1"]);
    running.push(nats);
    const line = await nats.errors.next((line) => line.includes("client connections"), "NATS");
    const flags = ["--quiet", "--nats", `nats://${line.split(" ").pop()}`];
    const start = script(name, "broadcast_server.ts", ...flags);
    const all = await Promise.all(Array.from({ length: instances }, start));
    return {
      name,
      urls: all.flatMap(({ urls }) => urls),
      processIds: [nats.pid, ...all.flatMap(({ processIds }) => processIds)],
    };
  };
}

/** Python's `websockets`, and Node's `ws` if it is installed in the folder `ws`. */
function others(handler: string, ws?: string): Start[] {
  const python = () => new Program(PYTHON ?? "", ["-c", sourceOf("python"), handler]);
  const node = () => new Program("node", ["-e", sourceOf("js"), handler], { cwd: ws });
  return [
    ...PYTHON ? [starting("websockets", python)] : [],
    ...ws ? [starting("ws", node)] : [],
  ];
}

const TEXT = new URL("bench.md", import.meta.url);

/** The code of a server that bench.md shows. */
function sourceOf(language: string): string {
  return Deno.readTextFileSync(TEXT).split("```" + language + "\n")[1].split("```")[0];
}

interface Table {
  measure: Measure;
  /** All are compared with the first. */
  servers: Start[];
  cases: Case[];
}

/** The tables by their headings in bench.md, which says there what their clients do. */
export function allTables(ws?: string): Record<string, Table> {
  const bare = plain("bare");
  const ours = script("ours", "server.ts", "--quiet");
  const printing = script("ours, printing", "server.ts");
  const bareRoom = plain("bare", "bare broadcast");
  const room = script("ours", "broadcast_server.ts", "--quiet");
  const pushes = [plain("bare", "bare push"), plain("ours, at once"), plain("ours, awaiting")];
  const [echoes, rooms] = [others("echo", ws), others("broadcast", ws)];
  return {
    "Echo": {
      measure: takeTurns(echo),
      servers: [bare, ours, printing, ...echoes],
      cases: [20, 200].flatMap((clients) => [20, 1024].map((bytes) => ({ clients, bytes }))),
    },
    "From callbacks to rules": {
      measure: takeTurns(echo),
      servers: [bare, plain("callbacks"), plain("loop"), ours],
      cases: [{ clients: 20, bytes: 20 }],
    },
    "Echo in bulk": {
      measure: takeTurns(echo),
      servers: [bare, ours, ...echoes],
      cases: [
        { clients: 1, bytes: BULK, inFlight: 16 },
        { clients: 1, bytes: 16 * BULK, inFlight: 4 },
        { clients: 10, bytes: BULK, inFlight: 8 },
        { clients: 1, bytes: BULK, inFlight: 1 },
      ],
    },
    "Push": {
      measure: takeTurns(push),
      servers: [...pushes, ...others("push", ws)],
      cases: [{ clients: 1, bytes: BULK, pieces: 3200 }],
    },
    "Echo at a steady rate": {
      measure: takeTurns(echo, true),
      servers: [bare, ours],
      cases: [
        ...[20, 200, 1000].map((clients) => ({ clients, bytes: 20 })),
        { clients: 1000, bytes: 20, stalled: 20 },
      ],
    },
    "Broadcast": {
      measure: takeTurns(broadcast),
      servers: [bareRoom, room, ...rooms],
      cases: [10, 100, 1000].map((clients) => ({ clients, bytes: 20, inFlight: 8 })),
    },
    "Broadcast in bulk": {
      measure: takeTurns(broadcast),
      servers: [bareRoom, room, ...rooms],
      cases: [{ clients: 10, bytes: BULK, inFlight: 8 }],
    },
    "Broadcast by several instances": {
      measure: takeTurns(broadcast),
      servers: NATS_SERVER ? [room, joined("two", 2), joined("four", 4)] : [],
      cases: [100, 1000, 1000].map((clients, index) => (
        { clients, bytes: 20, inFlight: 8, rooms: [1, 1, 10][index] }
      )),
    },
    "Connections": {
      measure: idle,
      servers: [bare, ours],
      cases: [{ clients: 1000, bytes: 0 }, { clients: 10_000, bytes: 0 }],
    },
  };
}

/** Measures a case, each round with new processes, as no two of a server are equally fast. */
async function compare(
  { measure, servers }: Table,
  oneCase: Case,
  rounds: number,
  options: Options,
) {
  const samples: Figures[][] = [];
  let names: string[] = [];
  for (let round = 0; round < rounds; round++) {
    const started = await Promise.all(servers.map((start) => start()));
    names = started.map(({ name }) => name);
    samples.push(await measure(started, oneCase, options));
    await stopAll();
  }
  return rowsOf(names, oneCase, samples);
}

/** The same with so little that it only shows that it works. */
function small(oneCase: Case): Case {
  const entries = Object.entries(oneCase).map(([name, value]) => [name, Math.min(value, 10)]);
  return { ...Object.fromEntries(entries), bytes: oneCase.bytes };
}

/** Puts a table into bench.md in place of the one there, and draws bench.svg of all in it. */
function write(title: string, text: string, conditions: string): void {
  const before = new RegExp(`(?<=^### ${title}\n[^|#]*)\\|[^]*?\\n(?=\\n)`, "m");
  const all = Deno.readTextFileSync(TEXT)
    .replace(/^Medians of .*$/m, () => conditions)
    .replace(before, () => text);
  Deno.writeTextFileSync(TEXT, all);
  Deno.writeTextFileSync(new URL("bench.svg", TEXT), picture(all));
}

const USAGE = `Usage: deno run --allow-all tests/bench.ts [flags]
  --only TABLE       measure only this table, such as "Echo in bulk"
  --seconds SECONDS  time under load of each server, case and round (2)
  --rounds COUNT     rounds of each case, each with new processes (5)
  --rate MESSAGES    messages a second of the steady rate (half of the highest)
  --ws FOLDER        measure the package ws of Node, too, which is installed there
  --url URL          add a server that runs already to the table of --only
  --quick            show in two seconds of load that the bench works; the figures mean nothing
  --write            write tests/bench.md and tests/bench.svg
  --help             print this`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      only: { type: "string" },
      seconds: { type: "string", default: "2" },
      rounds: { type: "string", default: "5" },
      rate: { type: "string" },
      ws: { type: "string" },
      url: { type: "string" },
      quick: { type: "boolean" },
      write: { type: "boolean" },
    },
  });
  const { only, quick, ws, url } = values;
  const seconds = quick ? 0.01 : wholeNumber("seconds", values.seconds, 1, 60);
  const rounds = quick ? 1 : wholeNumber("rounds", values.rounds, 1, 100);
  const rate = values.rate === undefined ? undefined : wholeNumber("rate", values.rate, 1);
  const tables = allTables(ws);
  if (only && !(only in tables)) {
    throw usageError(`--only takes one of: ${Object.keys(tables).join(", ")}.`);
  }
  if (url && !only) throw usageError("--url takes --only as well.");
  // However this ends, by Ctrl-C or an error, the servers end with it.
  addEventListener("unload", () => running.forEach((program) => program.kill("SIGKILL")));
  for (const signal of Deno.build.os === "windows" ? [] : ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => Deno.exit(130));
  }

  const each = `${rounds} rounds of ${seconds} s for each server`;
  const machine = `${cpus().length} cores (${cpus()[0].model}) that run the clients as well`;
  const system = `${Deno.build.os}, Deno ${Deno.version.deno}`;
  const conditions = `Medians of ${each}, on ${machine}, ${system}.`;
  console.log(conditions);
  for (const [title, all] of Object.entries(tables)) {
    if (title !== (only ?? title) || all.servers.length === 0) continue;
    const rows: Row[] = [];
    if (url) all.servers.push(() => Promise.resolve({ name: url, urls: [url], processIds: [] }));
    for (const oneCase of quick ? all.cases.slice(-1).map(small) : all.cases) {
      rows.push(...await compare(all, oneCase, rounds, { seconds, rate }));
    }
    const text = table(rows);
    console.log(`\n${title}\n\n${text}`);
    if (values.write) write(title, text, conditions);
  }
}

if (import.meta.main) await runScript(USAGE, main);
