// Measures what the rules of our servers cost, each beside a bare server of a few lines:
//
//   deno task bench                           (all: about half an hour)
//   deno task bench --only Echo --rounds 3
//
// Read loads.ts first: what clients send. Then `takeTurns`, which makes the figures of two servers
// comparable on a machine that does other things as well. README.md explains rows and columns.

import { delay } from "@std/async";
import { cpus } from "node:os";
import { describeFlags, parseFlags, usageError } from "../../websockets/script/flags.ts";
import { runScript } from "../../websockets/script/run.ts";
import { type Figures, figuresOf, picture, rowsOf, sum, table } from "./tables.ts";
import { NATS_SERVER, PYTHON } from "../needs.ts";
import { Program, Script } from "../programs.ts";
import { BULK, type Case, connectAll, disconnect, load, OPENING, Outcome, stall } from "./loads.ts";

/** Time under load of each server, in each case and round. */
const SECONDS = 2;
/** Milliseconds of a server's turn: long beside its start, short beside what else is going on. */
const TURN = 250;
/** Turns before those that count, in which V8 compiles what turns out to be hot. */
const WARM_UP = 4;
/** Milliseconds in which a server notices its clients, and its memory comes to rest. */
const SETTLING = 500;
/** Connections of the load at a time: many systems let a process have 20,000 descriptors or so. */
const MAX_CONNECTIONS = 15_000;
/** Milliseconds of one tick in /proc/PID/stat: Linux counts 100 a second for every program. */
const TICK = 10;

/**
 * Keeps glibc from giving memory back to the system after each burst and taking it anew. By default
 * it does so with messages of 64 KiB, by chance in one server more than in another: all are slower
 * then, and their ratio is anything from 0.6 to 1.6.
 */
const MALLOC = { MALLOC_TRIM_THRESHOLD_: "67108864", MALLOC_MMAP_THRESHOLD_: "33554432" };

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

/**
 * Loads the servers in short turns, so that what else the machine does meets all of them: their
 * ratio keeps within some percent while the figures themselves halve and double.
 *
 * The clients are WebSocket objects in this process. They work as hard as the server does, but hide
 * nothing: a microsecond more for each answer of the bare server, which takes 8, was shown as 0.87
 * to 0.90. Frames written to plain TCP were no faster, as most of the time goes into system calls.
 */
async function takeTurns(servers: Server[], oneCase: Case, { seconds, rate }: Options) {
  const milliseconds = Math.min(TURN, seconds * 1000);
  await using stalled = new AsyncDisposableStack();
  const players = [];
  for (const server of servers) {
    const sockets = await connectAll(server.urls, oneCase);
    players.push({ ...server, sockets, outcome: new Outcome(), before: 0 });
    for (const each of await stall(server.urls[0], oneCase.stalled)) stalled.use(each);
  }
  // A server learns of a client a moment after the client does, and shall know all of them.
  await delay(Math.min(SETTLING, seconds * 1000));
  let highest = Infinity;
  for (const player of players) {
    for (let turn = 0; turn < WARM_UP; turn++) {
      player.outcome = await load(player.sockets, { ...oneCase, milliseconds });
    }
    highest = Math.min(highest, player.outcome.count / player.outcome.milliseconds * 1000);
    player.outcome = new Outcome();
  }
  for (const player of players) player.before = cpuTime(player.processIds);
  const { part } = oneCase;
  const options = { ...oneCase, milliseconds, rate: part && (rate ?? part * highest) };
  for (let turn = 0; turn * milliseconds < seconds * 1000; turn++) {
    // Each is the first as often as the others: two turns in a row are an advantage.
    const first = turn % players.length;
    for (const { sockets, outcome } of [...players.slice(first), ...players.slice(0, first)]) {
      await load(sockets, options, outcome);
    }
  }
  const figures = players.map(({ processIds, outcome, before }) =>
    figuresOf(outcome, cpuTime(processIds) - before, oneCase.bytes)
  );
  await disconnect(players.flatMap(({ sockets }) => sockets));
  return figures;
}

/** Opens connections that then stay silent, and looks how much larger they have made a server. */
async function openAll({ urls, processIds }: Server, oneCase: Case, { seconds }: Options) {
  // What a server compiles for its first clients, and how its heap grows, is not their price.
  for (let wave = 0; wave < 10 * seconds; wave++) {
    await disconnect(await connectAll(urls, { clients: OPENING }));
  }
  await delay(Math.min(SETTLING, seconds * 1000));
  const [memory, before] = [residentMemory(processIds), cpuTime(processIds)];
  const start = performance.now();
  const outcome = new Outcome();
  const sockets = await connectAll(urls, oneCase, outcome.waits);
  outcome.count = sockets.length;
  outcome.milliseconds = performance.now() - start;
  await delay(Math.min(SETTLING, seconds * 1000));
  const { limit: _, ...figures } = figuresOf(outcome, cpuTime(processIds) - before, oneCase.bytes);
  const memoryEach = (residentMemory(processIds) - memory) / sockets.length;
  await disconnect(sockets);
  return { ...figures, "KiB each": memoryEach };
}

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

/** Starts a server, which ends with the round. */
type Start = (round: AsyncDisposableStack) => Promise<Server>;

/** Starts a server that prints its address. */
function starting(name: string, program: () => Program): Start {
  return async (round) => {
    const started = round.use(program());
    const [url] = (await started.prints(/ws:/)).match(/ws:[^\s,]+/) ?? [];
    return { name, urls: [`${url}`], processIds: [started.pid] };
  };
}

function script(name: string, file: string, ...flags: string[]): Start {
  const args = ["--port", "0", "--max-clients", "100000", ...flags];
  return starting(name, () => new Script(file, args));
}

function plain(name: string, handler = name): Start {
  return starting(name, () => new Script("tests/bench/servers.ts", [handler]));
}

/** Starts instances of the broadcast server that are joined through a NATS server. */
function joined(name: string, instances: number): Start {
  return async (round) => {
    const args = ["--addr", "127.0.0.1", "--port", "-1"];
    const nats = round.use(new Program(NATS_SERVER ?? "", args));
    const line = await nats.errors.next((line) => line.includes("client connections"), "NATS");
    const flags = ["--quiet", "--nats", `nats://${line.split(" ").pop()}`];
    const start = () => script(name, "broadcast_server.ts", ...flags)(round);
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

const TEXT = new URL("README.md", import.meta.url);

/** The code of a server that README.md shows. */
export function sourceOf(language: string): string {
  return Deno.readTextFileSync(TEXT).split("```" + language + "\n")[1].split("```")[0];
}

interface Table {
  /** All are compared with the first. */
  servers: Start[];
  cases: Case[];
}

/** The tables by their headings in README.md, which says there what their clients do. */
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
      servers: [bare, ours, printing, ...echoes],
      cases: [20, 200].flatMap((clients) => [20, 1024].map((bytes) => ({ clients, bytes }))),
    },
    "From callbacks to rules": {
      servers: [bare, plain("callbacks"), plain("loop"), ours],
      cases: [{ clients: 20, bytes: 20 }],
    },
    "Echo in bulk": {
      servers: [bare, ours, ...echoes],
      cases: [
        { clients: 1, bytes: BULK, inFlight: 16 },
        { clients: 1, bytes: 16 * BULK, inFlight: 4 },
        { clients: 10, bytes: BULK, inFlight: 8 },
        { clients: 1, bytes: BULK, inFlight: 1 },
      ],
    },
    "Push": {
      servers: [...pushes, ...others("push", ws)],
      cases: [{ clients: 1, bytes: BULK, copies: 3200 }],
    },
    "Echo at a steady rate": {
      servers: [bare, ours],
      cases: [
        ...[20, 200, 1000].map((clients) => ({ clients, bytes: 20, part: 0.5 })),
        { clients: 1000, bytes: 20, part: 0.5, stalled: 20 },
      ],
    },
    "Broadcast": {
      servers: [bareRoom, room, ...rooms],
      cases: [10, 100, 1000].map((clients) => ({ clients, rooms: 1, bytes: 20, inFlight: 8 })),
    },
    "Broadcast to very many": {
      servers: [bareRoom, room],
      cases: [1, 8].map((inFlight) => ({ clients: 10_000, rooms: 1, bytes: 20, inFlight })),
    },
    "Broadcast in bulk": {
      servers: [bareRoom, room, ...rooms],
      cases: [{ clients: 10, rooms: 1, bytes: BULK, inFlight: 8 }],
    },
    "Broadcast by several instances": {
      servers: NATS_SERVER ? [room, joined("two", 2), joined("four", 4)] : [],
      cases: [100, 1000, 1000].map((clients, index) => (
        { clients, bytes: 20, inFlight: 8, rooms: [1, 1, 10][index] }
      )),
    },
    "Connections": {
      servers: [bare, ours],
      cases: [1000, 10_000].map((clients) => ({ clients, bytes: 0, part: 0 })),
    },
  };
}

/** Measures a case, each round with new processes, as no two of a server are equally fast. */
async function compare(starts: Start[], oneCase: Case, rounds: number, options: Options) {
  const samples: Figures[][] = [];
  let names: string[] = [];
  for (let round = 0; round < rounds; round++) {
    await using stack = new AsyncDisposableStack();
    const servers = await Promise.all(starts.map((start) => start(stack)));
    names = servers.map(({ name }) => name);
    // The load has a connection of each client to each server that takes turns with others.
    const isLarge = oneCase.clients * servers.length > MAX_CONNECTIONS;
    const groups = isLarge ? servers.map((server) => [server]) : [servers];
    const measure = (group: Server[]) =>
      oneCase.part === 0
        ? Array.fromAsync(group, (server) => openAll(server, oneCase, options))
        : takeTurns(group, oneCase, options);
    samples.push((await Array.fromAsync(groups, measure)).flat());
  }
  return rowsOf(names, oneCase, samples);
}

/** The same with so little that it only shows that it works. */
function small(oneCase: Case): Case {
  const entries = Object.entries(oneCase).map(([name, value]) => [name, Math.min(value, 10)]);
  return { ...Object.fromEntries(entries), bytes: oneCase.bytes };
}

/** Puts a table into README.md in place of the one there, and draws bench.svg of all in it. */
function write(title: string, text: string, conditions: string): void {
  const before = new RegExp(`(?<=^### ${title}\n[^|#]*)\\|[^]*?\\n(?=\\n)`, "m");
  const all = Deno.readTextFileSync(TEXT)
    .replace(/^Medians of .*$/m, () => conditions)
    .replace(before, () => text);
  Deno.writeTextFileSync(TEXT, all);
  Deno.writeTextFileSync(new URL("bench.svg", TEXT), picture(all));
}

const FLAGS = {
  "only TABLE": 'measure only this table, such as "Echo in bulk"',
  "rounds COUNT": "rounds of each case, each with new processes (5)",
  "rate COUNT": "messages a second of the steady rate (half of the highest)",
  "ws FOLDER": "measure the package ws of Node, too, which is installed there",
  "url URL": "add a server that runs already to the table of --only",
  "quick": "show in two seconds of load that the bench works; the figures mean nothing",
  "write": "write tests/bench/README.md and tests/bench/bench.svg",
  "help": "print this",
};
const USAGE = `Usage: deno run --allow-all tests/bench/bench.ts [flags]\n${describeFlags(FLAGS)}`;

async function main(): Promise<void> {
  const { values } = parseFlags(FLAGS);
  const { only, quick, ws, url, rate } = values;
  for (const [name, value] of Object.entries(MALLOC)) Deno.env.set(name, value);
  const seconds = quick ? 0.01 : SECONDS;
  const { rounds = quick ? 1 : 5 } = values;
  const tables = allTables(ws);
  if (only && !(only in tables)) {
    throw usageError(`--only takes one of: ${Object.keys(tables).join(", ")}.`);
  }
  if (url && !only) throw usageError("--url takes --only as well.");
  const each = `${rounds} rounds of ${seconds} s for each server`;
  const machine = `${cpus().length} cores (${cpus()[0].model}) that run the clients as well`;
  const system = `${Deno.build.os}, Deno ${Deno.version.deno}`;
  const conditions = `Medians of ${each}, on ${machine}, ${system}.`;
  console.log(conditions);
  for (const [title, all] of Object.entries(tables)) {
    if (title !== (only ?? title) || all.servers.length === 0) continue;
    const rows = [];
    if (url) all.servers.push(() => Promise.resolve({ name: url, urls: [url], processIds: [] }));
    for (const oneCase of quick ? all.cases.slice(-1).map(small) : all.cases) {
      rows.push(...await compare(all.servers, oneCase, rounds, { seconds, rate }));
    }
    const text = table(rows);
    console.log(`\n${title}\n\n${text}`);
    if (values.write) write(title, text, conditions);
  }
}

if (import.meta.main) await runScript(USAGE, main);
