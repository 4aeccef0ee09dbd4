// What the bench promises: a server that loses, spoils or delays messages gets no good figures.

import { assert, assertEquals, assertLessOrEqual, assertRejects } from "@std/assert";
import { delay } from "@std/async";
import process from "node:process";
import { serve } from "websockets";
import { allTables, cpuTime } from "./bench.ts";
import { copiesOf } from "./servers.ts";
import { type Figures, figuresOf, percentile, picture, rowsOf, table } from "./tables.ts";
import { test } from "../needs.ts";
import { Script } from "../programs.ts";
import { BULK, connectAll, disconnect, load, type LoadOptions, Outcome, stall } from "./loads.ts";

type Data = string | ArrayBuffer;

/** How a server brings a message to a client: a good one sends it. */
type Deliver = (client: WebSocket, data: Data) => unknown;

const send: Deliver = (client, data) => client.send(data);

/** Loads a server in this process, which brings each message to all clients of its room. */
async function measure(
  deliver: Deliver,
  { clients = 4, rooms = 4, ...options }: Partial<LoadOptions> = {},
): Promise<Outcome> {
  const members = new Map<string, Set<WebSocket>>();
  const pending: unknown[] = [];
  await using server = Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    const room = members.getOrInsert(request.url, new Set());
    socket.onopen = () => room.add(socket);
    socket.onmessage = ({ data }) => {
      for (const client of room) {
        for (const copy of copiesOf(data)) pending.push(deliver(client, copy.slice(0)));
      }
    };
    socket.onclose = () => room.delete(socket);
    return response;
  });
  const sockets = await connectAll([`ws://localhost:${server.addr.port}`], { clients, rooms });
  try {
    return await load(sockets, { bytes: 20, milliseconds: 30, clients, rooms, ...options });
  } finally {
    await Promise.all(pending);
    await disconnect(sockets);
  }
}

/** Does something else for one message in a thousand; the first time soon. */
function sometimes(otherwise: Deliver): Deliver {
  let count = 996;
  return (client, data) => (++count % 1000 === 0 ? otherwise : send)(client, data);
}

function altered(data: Data): Data {
  return typeof data === "string" ? data.replace(/.$/, "x") : new Uint8Array(data).fill(1).buffer;
}

function otherType(data: Data): Data {
  return typeof data === "string" ? new TextEncoder().encode(data).buffer : `${data.byteLength}`;
}

const SPOILT = "lost, repeated or changed";
const FAULTS: [fault: string, deliver: Deliver, message: string][] = [
  // What follows is out of order, or nothing follows.
  ["is lost", () => {}, " server"],
  ["is cut short", (client, data) => client.send(data.slice(1)), SPOILT],
  ["is altered", (client, data) => client.send(altered(data)), SPOILT],
  ["comes twice", (client, data) => [1, 2].forEach(() => client.send(data)), SPOILT],
  ["changes its type", (client, data) => client.send(otherType(data)), SPOILT],
  ["closes a client", (client) => client.close(1000), "closed a connection"],
];
const LOADS: Record<string, Partial<LoadOptions>> = {
  "an echo": { inFlight: 2 },
  "an echo in bulk": { bytes: BULK, inFlight: 4 },
  "a push": { bytes: BULK, copies: 3 },
  "a steady rate": { rate: 5000 },
  "a broadcast": { rooms: 1, inFlight: 8 },
  "a broadcast in rooms": { rooms: 2, inFlight: 8 },
};

for (const [name, options] of Object.entries(LOADS)) {
  test({ needs: "net" }, `${name} counts what a server sends`, async () => {
    let deliveries = 0;
    const { count, waits } = await measure((client, data) => {
      deliveries++;
      client.send(data);
    }, options);
    assertEquals(count, deliveries);
    const { rooms = 4, copies = 1 } = options;
    assertEquals(waits.length, deliveries / (4 / rooms * copies));
  });
  test({ needs: "net" }, `${name} fails if one message in a thousand is not as sent`, async () => {
    for (const [fault, deliver, message] of FAULTS) {
      // Only what is lost has to be waited for.
      const patience = fault === "is lost" ? 500 : undefined;
      const outcome = measure(sometimes(deliver), { patience, ...options });
      await assertRejects(() => outcome, Error, message, fault);
    }
  });
  test({ needs: "net" }, `${name} fails if messages change places`, async () => {
    const kept = new Map<WebSocket, Data>();
    const outcome = measure((client, data) => {
      const before = kept.get(client);
      if (before === undefined) return kept.set(client, data);
      client.send(data);
      client.send(before);
    }, options);
    await assertRejects(() => outcome, Error, SPOILT);
  });
}

test({ needs: "net" }, "a broadcast in rooms fails if one room hears another", async () => {
  const clients = new Set<WebSocket>();
  const outcome = measure((client, data) => {
    clients.add(client);
    for (const each of clients) each.send(data);
    // With one message alone, the load may be over before anything else arrives.
  }, { rooms: 2, inFlight: 2 });
  await assertRejects(() => outcome, Error, SPOILT);
});

// A wait can be longer than what is asked for here, but never shorter, however slow the machine is.

test({ needs: "net" }, "one late answer in fifty shows in the 99th percentile", async () => {
  let count = 0;
  const { waits } = await measure(async (client, data) => {
    // The first one is late, because a busy machine may take no more than a few.
    if (count++ % 50 === 0) await delay(40);
    client.send(data);
  }, { milliseconds: 200 });
  assert(percentile(waits, 0.99) >= 30);
});

test({ needs: "net" }, "a broadcast waits until the last client has received it", async () => {
  let count = 0;
  const { waits } = await measure(async (client, data) => {
    if (++count % 4 === 0) await delay(40);
    client.send(data);
  }, { rooms: 1 });
  assert(Math.min(...waits) >= 30);
});

/** Keeps this process busy, and with it the load. */
function stop(milliseconds: number) {
  const start = performance.now();
  while (performance.now() - start < milliseconds);
}

for (const [whose, pause] of [["the server", delay], ["the load", stop]] as const) {
  test({ needs: "net" }, `a pause of ${whose} counts for all that was due in it`, async () => {
    let paused: Promise<void> | void | null = null;
    const { waits, delays, loadTime } = await measure(async (client, data) => {
      if (paused === null) paused = pause(100);
      await paused;
      client.send(data);
    }, { milliseconds: 200, rate: 1000 });
    // A quarter of the messages was due in the first half of the pause.
    assert(percentile(waits, 0.76) >= 45);
    if (pause === stop) assert(percentile(delays, 0.76) >= 45);
    assert(loadTime > 0);
  });
}

test({ needs: "net" }, "a steady load sends at its rate, from each client in turn", async () => {
  const received = new Map<WebSocket, number>();
  const { count, delays } = await measure((client, data) => {
    received.set(client, (received.get(client) ?? 0) + 1);
    client.send(data);
  }, { milliseconds: 100, rate: 2000 });
  assertEquals([count, delays.length], [200, 200]);
  assertEquals([...received.values()], [50, 50, 50, 50]);
});

test({ needs: "net" }, "a connection that is refused is an error", async () => {
  await using server = Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, () => {
    return new Response(null, { status: 503 });
  });
  const outcome = connectAll([`ws://localhost:${server.addr.port}`], { clients: 1 });
  await assertRejects(() => outcome, Error, "not open");
});

test({ needs: "net" }, "for stalled clients, much waits in a server", async () => {
  const { promise, resolve } = Promise.withResolvers<number>();
  let waiting = 2;
  await using server = serve(async (websocket) => {
    for (let count = 0; count < 128; count++) websocket.send(await websocket.receive());
    if (--waiting === 0) resolve(server.waiting);
  }, { port: 0 });
  const clients = await stall(`ws://localhost:${server.addr.port}`, 2);
  assert(await promise > BULK);
  for (const client of clients) client[Symbol.dispose]();
});

test({ needs: "linux" }, "processor time is that of all processes together", () => {
  const used = () => Object.values(process.cpuUsage()).reduce((sum, each) => sum + each) / 1000;
  const before = used();
  const both = cpuTime([Deno.pid, Deno.pid]);
  // Linux rounds each of four figures to ticks of 10 ms.
  assert(both >= 2 * before - 40, `${both} of ${before}`);
  assertLessOrEqual(both, 2 * used());
  assertEquals(cpuTime([]), NaN);
  return Promise.resolve();
});

Deno.test("a percentile is the least value that is enough for so many", () => {
  const waits = Array.from({ length: 1000 }, (_, index) => 1000 - index);
  assertEquals([0.5, 0.99, 0.999].map((part) => percentile(waits, part)), [500, 990, 999]);
  assertEquals(percentile([7], 0.5), 7);
  assertEquals(percentile([], 0.5), NaN);
});

const OUTCOME = { count: 2000, waits: [1, 2, 3, 4], delays: [], milliseconds: 500, loadTime: 460 };

Deno.test("figures are those of a message; in bulk, they are those of a megabyte", () => {
  const rest = { "p50 ms": 2, "p99 ms": 4, "p99.9 ms": 4, limit: 0 };
  assertEquals(figuresOf(OUTCOME, 10, 20), { "per second": 4000, "CPU µs": 5, ...rest });
  const inBulk = { "MB per second": 400, "CPU µs per MB": 50, ...rest };
  assertEquals(figuresOf(OUTCOME, 10, 100_000), inBulk);
});

Deno.test("the load is the limit if it takes a whole core, or sends half of the wait late", () => {
  const limitOf = (change: Partial<Outcome>) => figuresOf({ ...OUTCOME, ...change }, 0, 20).limit;
  assertEquals(limitOf({ loadTime: 474 }), 0);
  assertEquals(limitOf({ loadTime: 475 }), 1);
  assertEquals(limitOf({ loadTime: 500, delays: [1.9] }), 0);
  assertEquals(limitOf({ loadTime: 500, delays: [2] }), 1);
});

Deno.test("a table has medians, and the ratios within each round to the first server", () => {
  const rounds = [[12_345.6, 50], [10, 20], [100_000, 90_000]].map(([bare, ours]): Figures[] => [
    { "per second": bare, "p50 ms": 1.5, limit: 0 },
    { "per second": NaN, "p50 ms": 1.5, limit: 0 },
    { "per second": ours, "p50 ms": 250, limit: 1 },
  ]);
  const rows = rowsOf(["bare", "other", "ours"], { clients: 1000, bytes: 0 }, rounds);
  assertEquals(
    table(rows),
    `\
| server | clients | per second |            ratio | p50 ms | limit |
| ------ | ------: | ---------: | ---------------: | -----: | ----: |
| bare   |   1,000 |     12,346 |                  |   1.50 |       |
| other  |   1,000 |          – |                  |   1.50 |       |
| ours   |   1,000 |      50.00 | 0.90 (0.00–2.00) |    250 |  load |
`,
  );
  assertEquals(rowsOf(["bare"], { clients: 1, bytes: 1 }, rounds.slice(0, 2))[0][7][1], "6,178");
});

Deno.test("the picture has a line for each case, and a dot for each server beside bare", () => {
  const rows = (clients: number, heading: string) => {
    const figures = [100, 50, 1000].map((figure) => ({ [heading]: figure }));
    return rowsOf(["bare", "ours", "ws"], { clients, bytes: 20 }, [figures]);
  };
  const rates = table([...rows(1, "per second"), ...rows(9, "MB per second")]);
  const sections = [rates, table(rows(5, "KiB each")), rates.replaceAll("bare", "ours")];
  const svg = picture(sections.map((section) => `### Echo\n\n${section}`).join("\n"));
  const texts = ["Echo: 1 client, 20 bytes", "Echo: 9 clients, 20 bytes"];
  assertEquals(svg.match(/\w+: \d.*(?=<)/g), texts);
  const dots = [...svg.matchAll(/cx="(\d+)" cy="(\d+)" r="5" fill="hsl\((210|30) /g)];
  assertEquals(dots.map((dot) => dot.slice(1)), [
    ...[["20", "20", "210"], ["88", "20", "30"]],
    ...[["830", "50", "30"], ["570", "50", "210"]],
    ...[["830", "70", "30"], ["570", "70", "210"]],
  ]);
});

test({ needs: "run" }, "the bench measures every table", async () => {
  await using bench = new Script("tests/bench/bench.ts", ["--quick"], ["--allow-all"]);
  let lines = 0;
  for (const [title, { servers }] of Object.entries(allTables())) {
    if (servers.length === 0) continue;
    await bench.prints(new RegExp(`^${title}$`));
    lines += 2 + servers.length;
  }
  assertEquals(await bench.end(), 0);
  assertEquals(bench.lines.all.filter((line) => line.startsWith("|")).length, lines);
});
