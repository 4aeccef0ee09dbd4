// Uses our servers for long, as clients of every kind do, and bare servers in the same way. It fails
// if an answer is lost or wrong, or if ours keep something when the clients have gone:
//
//   deno task soak                (ten minutes)
//   deno task soak --minutes 60
//
// Every minute all clients leave, and a line for each of the two tells what is left. It needs Linux.

import { assert, assertEquals } from "@std/assert";
import { deadline, delay } from "@std/async";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import net from "node:net";
import process from "node:process";
import { connect, type Connection, serve } from "websockets";
import { log, silence } from "websockets/script.ts";
import * as room from "../../broadcast_server.ts";
import { handler } from "../../server.ts";
import { describeFlags, parseFlags } from "../../websockets/script/flags.ts";
import { runScript } from "../../websockets/script/run.ts";
import { residentMemory } from "./bench.ts";
import { BARE, serveBare } from "./servers.ts";
import { heldMemory } from "../helpers.ts";
import { Script } from "../programs.ts";
import { ask, frame, handshake, RawClient } from "../raw.ts";

/** Clients of each server at a time. */
const AT_ONCE = 50;
/** Milliseconds of the longest pause between two clients, so that the machine has time for others. */
const PAUSE = 50;
/** Milliseconds after which a client that waits for something counts as a failure. */
const VISIT_TIMEOUT = 60_000;
/** Milliseconds until a server has noticed that its clients have left. */
const SETTLING = 2_000;
/**
 * How much more may be left at the end than after the first minute, and than in the bare server: what
 * V8 compiles, and what is just closing.
 */
const LEEWAY = {
  held: 5 * 1024 ** 2,
  resident: 256 * 1024 ** 2,
  descriptors: 10,
  timers: 5,
  waiting: 0,
};

/** What a server holds when its clients have left. */
type State = Record<keyof typeof LEEWAY, number>;

/** The echo server and the broadcast server, in one process. */
class Soaked {
  messages = 0;
  readonly failures: string[] = [];

  private constructor(
    readonly name: string,
    readonly script: Script,
    readonly echo: string,
    readonly room: string,
  ) {}

  static async start(name: string): Promise<Soaked> {
    const permissions = ["--allow-all"];
    const script = new Script("tests/bench/soak.ts", ["--serve", name], permissions, "piped");
    const [echo, room] = (await script.prints(/^ws:/)).split(" ");
    return new Soaked(name, script, echo, room);
  }

  get port(): number {
    return Number(new URL(this.echo).port);
  }

  async state(): Promise<State> {
    const writer = this.script.stdin.getWriter();
    await writer.write(new TextEncoder().encode("\n"));
    writer.releaseLock();
    const inside = JSON.parse(await this.script.prints(/^\{/));
    const { pid } = this.script;
    const descriptors = [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
    return { ...inside, descriptors, resident: residentMemory([pid]) * 1024 };
  }
}

/** What a client does, from coming to leaving. Whatever is not as it should be is thrown. */
const VISITS: ((server: Soaked) => Promise<unknown>)[] = [
  async function talk(server) {
    await using websocket = await connect(server.echo);
    await exchange(server, websocket);
  },
  async function upload(server) {
    await using websocket = await connect(server.echo);
    for (let number = 0; number < 16; number++) {
      const piece = new Uint8Array(64 * 1024).fill(number);
      await websocket.send(piece);
      const back = await websocket.receive();
      assert(typeof back !== "string" && Buffer.from(back).equals(piece));
      server.messages++;
    }
  },
  async function meet(server) {
    const name = crypto.randomUUID();
    const url = `${server.room}?room=${name}`;
    await using speaker = await connect(url);
    await using listener = await connect(url);
    await hear(listener, name, [`${name} here`], () => listener.send(`${name} here`));
    const said = Array.from({ length: 10 }, (_, number) => `${name} ${number}`);
    await hear(listener, name, said, () => said.forEach((text) => speaker.send(text)));
    server.messages += said.length;
  },
  async function push(server) {
    if (server.name === "bare") return;
    const name = crypto.randomUUID();
    await using listener = await connect(`${server.room}?room=${name}`);
    await hear(listener, name, [`${name} here`], () => listener.send(`${name} here`));
    await hear(listener, name, [`${name} pushed`], async () => {
      const text = `${name} pushed`;
      const head =
        `POST /?room=${name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${text.length}`;
      // A `fetch` of this process once waited for ever, and the server had not got its push.
      const { status } = await ask(Number(new URL(server.room).port), `${head}\r\n\r\n${text}`);
      assertEquals(status, 202);
    });
    server.messages++;
  },
  async function readLate(server) {
    using client = await stalled(server);
    let missing = STALLED_MESSAGES * (STALLED.length - MASK);
    while (missing > 0) missing -= (await client.read()).length;
    assertEquals(missing, 0);
    server.messages += STALLED_MESSAGES;
  },
  async function resetWhileStalled(server) {
    // What was not read makes a reset of the end.
    using _client = await stalled(server);
  },
  async function vanish(server) {
    using client = await open(server);
    await client.write(frame(1, "hello"));
    await client.read();
  },
  async function halfClose(server) {
    using client = await open(server);
    await client.connection.closeWrite();
    while ((await client.read()).length > 0);
  },
  async function leaveEarly(server) {
    using _client = await RawClient.open(server.port, handshake());
  },
  async function resetWhenOpen(server) {
    const socket = net.connect(server.port, "127.0.0.1");
    await once(socket, "connect");
    socket.write(handshake());
    await once(socket, "data");
    socket.resetAndDestroy();
  },
  async function fail(server) {
    const wrong: Record<string, string>[] = [
      { "Sec-WebSocket-Version": "8" },
      { "Sec-WebSocket-Key": "abc" },
      { Origin: "https://example.com" },
    ];
    for (const headers of wrong) {
      const { status } = await ask(server.port, handshake(headers));
      assert(server.name === "bare" || [426, 400, 403].includes(status));
    }
  },
];

/** Each of these leaves a descriptor that the runtime never closes: they come in the first minute. */
async function resetEarly(server: Soaked) {
  const socket = net.connect(server.port, "127.0.0.1");
  await once(socket, "connect");
  socket.write(handshake());
  socket.resetAndDestroy();
}

async function exchange(server: Soaked, websocket: Connection) {
  for (let number = 0; number < 10; number++) {
    await websocket.send(`${number}`);
    const answer = await websocket.receive();
    assert(`${answer}`.startsWith(`Data received as "${number}".`), `${answer}`);
    server.messages++;
  }
}

/** Waits for what is said in this room; the bare server brings what is said in others, too. */
async function hear(listener: Connection, name: string, texts: string[], say: () => unknown) {
  const said = say();
  for (const text of texts) {
    let message = await listener.receive();
    while (!`${message}`.startsWith(name)) message = await listener.receive();
    assertEquals(message, text);
  }
  await said;
}

const STALLED_MESSAGES = 16;
const STALLED = frame(2, new Uint8Array(64 * 1024));
/** Bytes by which an answer is shorter: servers don't mask. */
const MASK = 4;

/** A connection that is open, of which only the bytes are seen. */
async function open(server: Soaked): Promise<RawClient> {
  const client = await RawClient.open(server.port, handshake());
  await client.read();
  return client;
}

async function stalled(server: Soaked): Promise<RawClient> {
  const client = await open(server);
  for (let sent = 0; sent < STALLED_MESSAGES; sent++) await client.write(STALLED);
  await delay(100);
  return client;
}

/** Lets clients of these kinds come and go for a while: how many. */
async function visit(
  servers: Soaked[],
  kinds: typeof VISITS,
  milliseconds: number,
): Promise<number> {
  const end = performance.now() + milliseconds;
  let visits = 0;
  const comeAndGo = async () => {
    while (performance.now() < end) {
      const run = kinds[visits++ % kinds.length];
      await Promise.all(
        servers.map((server) =>
          deadline(run(server), VISIT_TIMEOUT)
            .catch(({ message }: Error) => server.failures.push(`${run.name}: ${message}`))
        ),
      );
      await delay(Math.random() * PAUSE);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, comeAndGo));
  return visits;
}

/** Serves, and tells its state for each line of the standard input. */
async function serveAs(name: string) {
  silence();
  const ours = () => [
    serve(handler, { port: 0, log }),
    serve(room.handler, { port: 0, log, processRequest: [room.checkRoom, room.push] }),
  ];
  const bare = () => [BARE.bare, BARE["bare broadcast"]].map(serveBare);
  const servers = name === "ours" ? ours() : bare();
  console.log(servers.map(({ addr }) => `ws://localhost:${addr.port}/`).join(" "));
  for await (const _ of Deno.stdin.readable) {
    const timers = process.getActiveResourcesInfo().filter((each) => each === "Timeout").length;
    const waiting = servers.reduce((sum, each) => sum + ("waiting" in each ? each.waiting : 0), 0);
    console.log(JSON.stringify({ held: heldMemory(), timers, waiting }));
  }
  Deno.exit(0);
}

function describe({ held, resident, descriptors, timers, waiting }: State): string {
  const [inside, all] = [held, resident].map((bytes) => (bytes / 1024 ** 2).toFixed(1));
  return `${inside} MiB held of ${all}, ${descriptors} descriptors, ${timers} timers, ${waiting} waiting`;
}

const FLAGS = {
  "minutes COUNT": "how long (10)",
  "every COUNT": "after how many seconds all clients leave, and it is told what is left (60)",
  "help": "print this",
};
const USAGE = `Usage: deno run --allow-all tests/bench/soak.ts [flags]\n${describeFlags(FLAGS)}`;

async function main() {
  const { values } = parseFlags({ ...FLAGS, "serve NAME": "serve as one of the two" });
  if (values.serve) return await serveAs(values.serve);
  const { minutes = 10, every = 60 } = values;
  await using stack = new AsyncDisposableStack();
  const servers = await Promise.all(["ours", "bare"].map(Soaked.start));
  const residents: Connection[] = [];
  for (const { script, echo } of servers) {
    stack.use(script);
    residents.push(stack.use(await connect(echo)));
  }
  const states: State[][] = [];
  let visits = 0;
  for (let second = every; second <= minutes * 60; second += every) {
    const kinds = states.length === 0 ? [...VISITS, resetEarly] : VISITS;
    visits += await visit(servers, kinds, every * 1000 - SETTLING);
    for (const [index, server] of servers.entries()) await exchange(server, residents[index]);
    await delay(SETTLING);
    const now = await Promise.all(servers.map((server) => server.state()));
    states.push(now);
    for (const [index, { name, messages, failures }] of servers.entries()) {
      const done = `${visits} connections, ${messages} messages, ${failures.length} failures`;
      console.log(`${second} s, ${name}: ${done}, ${describe(now[index])}`);
      for (const failure of new Set(failures)) console.log(`  ${failure}`);
    }
  }
  const [{ failures, script }] = servers;
  failures.push(...script.lines.all.filter((line) => line.startsWith("The handler failed")));
  const [[ours, bare], [oursNow, bareNow]] = [states[0], states[states.length - 1]];
  for (const [name, leeway] of Object.entries(LEEWAY) as [keyof State, number][]) {
    // What the runtime keeps is no fault of ours.
    const growth = oursNow[name] - ours[name] - Math.max(0, bareNow[name] - bare[name]);
    if (growth > leeway) failures.push(`${name} has grown by ${growth} more than in bare`);
  }
  if (failures.length > 0) {
    throw new Error(`The soak failed: ${[...new Set(failures)].slice(0, 10).join("; ")}.`);
  }
  console.log("Nothing was lost, and nothing has grown more than in the bare server.");
}

if (import.meta.main) await runScript(USAGE, main);
