// Measures what the rules of our servers cost, each beside a bare server of a few lines:
//
//   deno task bench                           (all: about eight minutes)
//   deno task bench --only echo --rounds 3
//   deno task bench --url ws://localhost:9999
//
// Read `echo` and `broadcast` first: they are the loads. Then `takeTurns`, which makes the figures
// of two servers comparable on a machine that does other things as well.

import { deadline, delay } from "@std/async";
import { parseArgs } from "node:util";
import { command, usageError, wholeNumber } from "../server.ts";
import { NATS_SERVER } from "./helpers.ts";

/** Milliseconds of a server's turn: long beside its start, short beside what else is going on. */
const TURN = 250;
/** Milliseconds of load before the first turn, in which V8 compiles what turns out to be hot. */
const WARM_UP = 750;
/** Messages under way at a time in a broadcast: with one, the server would wait for the load. */
const IN_FLIGHT = 8;
/** Connections opened at a time: enough to keep a server busy, too few to overflow its backlog. */
const OPENING = 50;
/** Milliseconds in which a server notices its clients, and its memory comes to rest. */
const SETTLING = 500;
/** Milliseconds after which missing connections or answers are given up. */
const TIMEOUT = 30_000;

interface Server {
  name: string;
  /** Where the clients connect: in turn, if a server has several instances. */
  urls: string[];
  /** Not known of a server that was not started here. */
  processId?: number;
}

/** What was measured of a server, by its heading in the table; NaN where it could not be. */
type Figures = Record<string, number>;

interface Group {
  name: string;
  explanation: string;
  /** Each server is compared with the one before it. */
  servers: (() => Server | Promise<Server>)[];
  cases: [connections: number, bytes: number][];
  measure(servers: Server[], connections: number, bytes: number): Promise<Figures[]>;
}

/** A line of a table. */
interface Result {
  group: string;
  connections: number;
  bytes: number;
  server: string;
  figures: Record<string, Summary & { ratio?: Summary }>;
}

type Summary = ReturnType<typeof summary>;

/** Every connection sends a text, waits for the answer and sends the next; returns the waits. */
async function echo(sockets: WebSocket[], text: string, end: number): Promise<number[]> {
  const waits: number[] = [];
  await Promise.all(sockets.map((socket) =>
    new Promise<void>((resolve) => {
      let sentAt = performance.now();
      socket.onmessage = () => {
        const now = performance.now();
        waits.push(now - sentAt);
        if (now >= end) return resolve();
        sentAt = now;
        socket.send(text);
      };
      socket.send(text);
    })
  ));
  return waits;
}

/** The first client sends the next text whenever one has reached all, itself included. */
async function broadcast(sockets: WebSocket[], text: string, end: number): Promise<number[]> {
  const waits: number[] = [];
  const sentAt: number[] = [];
  let deliveries = 0;
  const send = () => {
    sentAt.push(performance.now());
    sockets[0].send(text);
  };
  await new Promise<void>((resolve) => {
    const onmessage = () => {
      if (++deliveries % sockets.length > 0) return;
      const now = performance.now();
      waits.push(now - sentAt[waits.length]);
      if (now < end) send();
      else if (waits.length === sentAt.length) resolve();
    };
    for (const socket of sockets) socket.onmessage = onmessage;
    for (let sent = 0; sent < IN_FLIGHT; sent++) send();
  });
  return waits;
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

/**
 * Loads the servers in short turns, A B C C B A and so on, so that what else the machine does meets
 * all of them: their ratio keeps within some percent while the figures themselves halve and double.
 *
 * The clients are WebSocket objects in this process. They work as hard as the server does, but hide
 * nothing: a microsecond more for each answer of the bare server, which takes 8, was shown as 0.87
 * to 0.90. Frames written to plain TCP were no faster, as most of the time goes into system calls.
 */
async function takeTurns(
  servers: Server[],
  connections: number,
  bytes: number,
  seconds: number,
  load: typeof echo,
): Promise<Figures[]> {
  const players: { sockets: WebSocket[]; waits: number[]; elapsed: number }[] = [];
  for (const { urls } of servers) {
    players.push({ sockets: await connectAll(urls, connections), waits: [], elapsed: 0 });
  }
  // A server learns of a client a moment after the client does, and shall know all of them.
  await delay(SETTLING);
  const play = ({ sockets }: { sockets: WebSocket[] }, milliseconds: number) =>
    deadline(load(sockets, "x".repeat(bytes), performance.now() + milliseconds), TIMEOUT)
      .catch(() => Promise.reject(new Error("A server has stopped answering.")));
  for (const player of players) await play(player, WARM_UP);
  for (let turn = 0; turn * TURN < seconds * 1000; turn++) {
    for (const player of turn % 2 === 0 ? players : players.toReversed()) {
      const start = performance.now();
      player.waits = player.waits.concat(await play(player, TURN));
      player.elapsed += performance.now() - start;
    }
  }
  await disconnect(players.flatMap(({ sockets }) => sockets));
  return players.map(({ waits, elapsed }) => {
    const sorted = Float64Array.from(waits).sort();
    const percentile = (part: number) => sorted[Math.ceil(part * sorted.length) - 1];
    const rate = waits.length / elapsed * 1000;
    return {
      ...load === broadcast ? { "deliveries/s": rate * connections } : { "messages/s": rate },
      ...{ "p50 ms": percentile(0.5), "p99 ms": percentile(0.99), "max ms": percentile(1) },
    };
  });
}

/** Opens connections that then stay silent, and looks how much larger they have made a server. */
async function idle(servers: Server[], connections: number): Promise<Figures[]> {
  const figures: Figures[] = [];
  for (const server of servers) {
    // What a server compiles for its first clients, and how its heap grows, is not their price.
    for (let wave = 0; wave < 20; wave++) await disconnect(await connectAll(server.urls, OPENING));
    await delay(SETTLING);
    const before = await residentMemory(server);
    const start = performance.now();
    const sockets = await connectAll(server.urls, connections).catch(() => []);
    const rate = sockets.length > 0 ? connections / (performance.now() - start) * 1000 : NaN;
    await delay(SETTLING);
    const memory = sockets.length > 0 ? await residentMemory(server) - before : NaN;
    await disconnect(sockets);
    figures.push({ "KiB each": memory / connections, "connections/s": rate });
  }
  return figures;
}

/** Kibibytes that a server occupies. Deno shows /proc only to scripts that may do all: hence cat. */
async function residentMemory({ processId }: Server): Promise<number> {
  if (Deno.build.os !== "linux") return NaN;
  const cat = new Deno.Command("cat", { args: [`/proc/${processId}/status`] });
  const status = new TextDecoder().decode((await cat.output()).stdout);
  return Number(status.match(/VmRSS:\s+(\d+) kB/)?.[1] ?? NaN);
}

async function connect(url: string): Promise<WebSocket> {
  const socket = new WebSocket(url);
  await new Promise<void>((resolve, reject) => {
    socket.onopen = () => resolve();
    socket.onerror = () => reject(new Error(`Could not connect to ${url}.`));
  });
  return socket;
}

async function connectAll(urls: string[], count: number): Promise<WebSocket[]> {
  const sockets = [await connect(urls[0])];
  let started = 1;
  const connectNext = async () => {
    while (started++ < count) sockets.push(await connect(urls[started % urls.length]));
  };
  const opening = Promise.allSettled(Array.from({ length: OPENING }, connectNext));
  await deadline(opening, TIMEOUT).catch(() => started = count);
  if (sockets.length === count) return sockets;
  await disconnect(sockets);
  throw new Error(`Only ${sockets.length} of ${count} connections were opened, see ulimit -n.`);
}

async function disconnect(sockets: WebSocket[]): Promise<void> {
  await Promise.all(sockets.map((socket) =>
    new Promise<void>((resolve) => {
      socket.onclose = () => resolve();
      socket.close(1000);
    })
  ));
}

const processes = new Set<Deno.ChildProcess>();

/** Starts a server and waits for its address. What it prints later is read and thrown away. */
async function start(name: string, ...command: string[]): Promise<Server> {
  const args = ["run", "--allow-net", ...command];
  const process = new Deno.Command(Deno.execPath(), { args, stdout: "piped" }).spawn();
  processes.add(process);
  process.status.then(() => processes.delete(process));
  const output = process.stdout.pipeThrough(new TextDecoderStream());
  let printed = "";
  for await (const text of output.values({ preventCancel: true })) {
    printed += text;
    if (printed.includes("\n")) break;
  }
  output.pipeTo(new WritableStream()).catch(() => {});
  const url = printed.match(/ws:[^\s,]+/)?.[0];
  if (!url) throw new Error(`The server did not start: ${name}`);
  return { name, urls: [url], processId: process.pid };
}

/** Starts instances of the broadcast server that are joined through a NATS server. */
async function startJoined(name: string, instances: string[][]): Promise<Server> {
  const args = ["--addr", "127.0.0.1", "--port", "-1"];
  const nats = new Deno.Command(NATS_SERVER ?? "", { args, stderr: "piped" }).spawn();
  processes.add(nats);
  nats.status.then(() => processes.delete(nats));
  const output = nats.stderr.pipeThrough(new TextDecoderStream());
  let printed = "";
  for await (const text of output.values({ preventCancel: true })) {
    printed += text;
    if (printed.includes("Server is ready")) break;
  }
  output.pipeTo(new WritableStream()).catch(() => {});
  const address = printed.match(/127\.0\.0\.1:\d+/)?.[0];
  const started: Server[] = [];
  for (const command of instances) {
    started.push(await start(name, ...command, "--nats", `nats://${address}`));
  }
  return { name, urls: started.flatMap(({ urls }) => urls) };
}

async function stopAll(): Promise<void> {
  const stopped = Array.from(processes, (process) => process.status);
  for (const process of processes) process.kill("SIGKILL");
  await Promise.all(stopped);
}

function allGroups(seconds: number, url?: string): Group[] {
  const limits = ["--port", "0", "--max-clients", "100000"];
  const echoServer = import.meta.resolve("../server.ts");
  const broadcastServer = import.meta.resolve("../broadcast_server.ts");
  const bare = () => start("bare", import.meta.url, "--bare", "echo");
  const quiet = () => start("quiet", echoServer, "--quiet", ...limits);
  const printing = () => start("printing", echoServer, ...limits);
  const bareRoom = () => start("bare", import.meta.url, "--bare", "broadcast");
  const quietRoom = () => start("quiet", ...room);
  const room = [broadcastServer, "--quiet", ...limits];
  const one = () => start("one", ...room);
  const two = () => startJoined("two", [room, room]);
  const under = (load: typeof echo): Group["measure"] => (servers, connections, bytes) =>
    takeTurns(servers, connections, bytes, seconds, load);
  return [{
    name: "echo",
    explanation: "Echo: every connection sends a text, waits for the answer and sends the next.",
    servers: url ? [bare, () => ({ name: url, urls: [url] })] : [bare, quiet, printing],
    cases: [[20, 20], [20, 1024], [200, 20], [200, 1024]],
    measure: under(echo),
  }, {
    name: "broadcast",
    explanation: `Broadcast: one client sends, all receive, ${IN_FLIGHT} messages are under way.`,
    servers: [bareRoom, quietRoom],
    cases: [[10, 20], [100, 20], [1000, 20]],
    measure: under(broadcast),
  }, {
    name: "joined",
    explanation: "Joined: the same with one server, and with two that are joined through NATS.",
    servers: [one, two],
    cases: [[100, 20], [1000, 20], [1000, 1024]],
    measure: under(broadcast),
  }, {
    name: "idle",
    explanation: "Idle: connections are opened and stay silent.",
    servers: [bare, quiet],
    cases: [[1000, 0], [10_000, 0]],
    measure: idle,
  }];
}

/** Measures a case, each round with new processes, as no two of a server are equally fast. */
async function compare(
  { name: group, servers, measure }: Group,
  connections: number,
  bytes: number,
  rounds: number,
): Promise<Result[]> {
  const samples: Figures[][] = [];
  let names: string[] = [];
  for (let round = 1; round <= rounds; round++) {
    progress(`${group}, ${connections} connections, ${bytes} bytes: round ${round} of ${rounds}`);
    const started: Server[] = [];
    for (const startServer of servers) started.push(await startServer());
    names = started.map(({ name }) => name);
    samples.push(await measure(started, connections, bytes));
    await stopAll();
    progress("");
  }
  return names.map((server, index) => {
    const figures: Result["figures"] = {};
    for (const name of Object.keys(samples[0][index])) {
      figures[name] = summary(samples.map((round) => round[index][name]));
      if (index === 0) continue;
      const ratios = samples.map((round) => round[index][name] / round[index - 1][name]);
      figures[name].ratio = summary(ratios);
    }
    return { group, connections, bytes, server, figures };
  });
}

function summary(values: number[]) {
  const sorted = values.toSorted((a, b) => a - b);
  const [low, high] = [sorted.length - 1, sorted.length].map((twice) => sorted[twice >> 1]);
  return { median: (low + high) / 2, min: sorted[0], max: sorted[sorted.length - 1] };
}

function format(value: number): string {
  if (Number.isNaN(value)) return "–";
  return value < 100 ? value.toFixed(2) : Math.round(value).toLocaleString("en");
}

function range(min: number, max: number): string {
  return Number.isNaN(min) ? "–" : `${format(min)}–${format(max)}`;
}

function table(results: Result[]): string {
  const lines = results.map(({ server, connections, bytes, figures }) => {
    const line = [["server", server], ["clients", connections.toLocaleString("en")]];
    line.push(["bytes", bytes.toLocaleString("en")]);
    for (const [name, { median, min, max, ratio }] of Object.entries(figures)) {
      line.push([name, format(median)]);
      // Of the latencies the median is enough here, --json has the rest.
      if (name.endsWith(" ms")) continue;
      line.push(["min–max", range(min, max)], ["ratio", ratio ? format(ratio.median) : ""]);
      line.push(["min–max", ratio ? range(ratio.min, ratio.max) : ""]);
    }
    return line;
  });
  const rows = [
    lines[0].map(([heading]) => heading),
    ...lines.map((line) => line.map((cell) => cell[1])),
  ];
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const pad = (cell: string, column: number) =>
    column === 0 ? cell.padEnd(widths[0]) : cell.padStart(widths[column]);
  return rows.map((row) => row.map(pad).join("  ").trimEnd()).join("\n");
}

/** Shows on a terminal what is being done, in place of what it showed before. */
function progress(text: string): void {
  if (Deno.stderr.isTerminal()) Deno.stderr.writeSync(new TextEncoder().encode(`\r\x1b[K${text}`));
}

const USAGE = `Usage: deno run --allow-net --allow-run --allow-read tests/bench.ts [flags]
  --seconds SECONDS  time under load of each server, case and round (2)
  --rounds COUNT     rounds of each case, each with new processes (5)
  --only GROUP       measure only echo, broadcast, joined or idle
  --url URL          load the echo server at this address instead of ours
  --json             print JSON
  --help             print this`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seconds: { type: "string", default: "2" },
      rounds: { type: "string", default: "5" },
      only: { type: "string" },
      url: { type: "string" },
      json: { type: "boolean" },
      bare: { type: "string" },
    },
  });
  if (values.bare) return values.bare === "echo" ? bareEcho() : bareBroadcast();
  const seconds = wholeNumber("seconds", values.seconds, 1, 60);
  const rounds = wholeNumber("rounds", values.rounds, 1, 100);
  const only = values.url ? "echo" : values.only;
  let groups = allGroups(seconds, values.url).filter(({ name }) => !only || name === only);
  if (groups.length === 0) throw usageError("--only takes echo, broadcast, joined or idle.");
  if (!NATS_SERVER && groups.some(({ name }) => name === "joined")) {
    console.error("Leaving out two servers joined through NATS: there is no nats-server.");
    groups = groups.filter(({ name }) => name !== "joined");
  }

  // However this ends, by Ctrl-C or an error, the servers end with it.
  addEventListener("unload", stopAll);
  Deno.addSignalListener("SIGINT", () => Deno.exit(130));
  if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", () => Deno.exit(143));

  const results: Result[] = [];
  for (const group of groups) {
    const ofGroup: Result[] = [];
    for (const [connections, bytes] of group.cases) {
      ofGroup.push(...await compare(group, connections, bytes, rounds));
    }
    results.push(...ofGroup);
    if (!values.json) console.log(`${group.explanation}\n\n${table(ofGroup)}\n`);
  }
  const system =
    `Deno ${Deno.version.deno}, ${Deno.build.os}, ${navigator.hardwareConcurrency} processors`;
  if (values.json) {
    return console.log(JSON.stringify({ system, seconds, rounds, results }, null, 2));
  }
  console.log(`bare      a server of a few lines, which keeps none of our rules
quiet     our server with --quiet
printing  our server without; what it prints is read and thrown away
ratio     to the server in the line above, measured in turns with it: 0.95 of messages/s is 5 %
          slower, 1.05 of KiB is 5 % larger
–         not measured: KiB need Linux, clients a file descriptor each (ulimit -n)
Medians of ${rounds} rounds of ${seconds} s. ${system}, shared by server and clients.`);
}

if (import.meta.main) await command(USAGE, main);
