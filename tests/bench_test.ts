// What the bench promises: a server that loses, spoils or delays messages gets no good figures.

import { assert, assertEquals, assertLessOrEqual, assertRejects } from "@std/assert";
import { delay } from "@std/async";
import process from "node:process";
import { allTables, cpuTime, turnFigures } from "./bench.ts";
import { type Figures, percentile, picture, rowsOf, table } from "./bench_tables.ts";
import { serve } from "websockets";
import { Script, test } from "./helpers.ts";
import { broadcast, BULK, connectAll, disconnect, echo } from "./loads.ts";
import { type Load, type LoadOptions, type Outcome, push, stall } from "./loads.ts";

type Data = string | ArrayBuffer;

/** How a server brings a message to a client: a good one sends it. */
type Deliver = (client: WebSocket, data: Data) => unknown;

const send: Deliver = (client, data) => client.send(data);

interface Options extends Partial<LoadOptions> {
  /** Whether the server brings a message to all rooms. */
  ignoresRooms?: boolean;
}

/** Loads a server in this process, which broadcasts or echoes. */
async function measure(
  load: Load,
  deliver: Deliver,
  { ignoresRooms, clients = 4, ...options }: Options = {},
): Promise<Outcome> {
  const rooms = new Map<WebSocket, string | null>();
  await using server = Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    const room = ignoresRooms ? null : new URL(request.url).searchParams.get("room");
    socket.onopen = () => rooms.set(socket, room);
    socket.onmessage = ({ data }) => {
      if (load !== broadcast) return deliver(socket, data);
      for (const [client, each] of rooms) if (each === room) deliver(client, data);
    };
    socket.onclose = () => rooms.delete(socket);
    return response;
  });
  const urls = [`ws://localhost:${server.addr.port}`];
  const sockets = await connectAll(urls, { clients, rooms: options.rooms });
  try {
    return await load(sockets, { bytes: 20, milliseconds: 30, clients, ...options });
  } finally {
    await disconnect(sockets);
  }
}

/** Does something else for one message in a thousand; the first time soon. */
function sometimes(otherwise: Deliver): Deliver {
  let count = 996;
  return (client, data) => (++count % 1000 === 0 ? otherwise : send)(client, data);
}

const SPOILT = "lost, repeated or changed";
const FAULTS: [fault: string, deliver: Deliver, message: string][] = [
  ["is cut short", (client, data) => client.send(data.slice(1)), SPOILT],
  ["is altered", (client, data) => client.send(altered(data)), SPOILT],
  ["comes twice", (client, data) => [1, 2].forEach(() => client.send(data)), SPOILT],
  ["changes its type", (client, data) => client.send(otherType(data)), SPOILT],
  ["closes a client", (client) => client.close(1000), "closed a connection"],
];

function altered(data: Data): Data {
  return typeof data === "string" ? data.replace(/.$/, "x") : new Uint8Array(data).fill(1).buffer;
}

function otherType(data: Data): Data {
  return typeof data === "string" ? new TextEncoder().encode(data).buffer : `${data.byteLength}`;
}

const LOADS: [name: string, load: Load, options: Partial<LoadOptions>][] = [
  ["echo", echo, {}],
  ["echo in bulk", echo, { bytes: BULK, inFlight: 4 }],
  ["a steady rate", echo, { rate: 5000 }],
  ["broadcast", broadcast, { inFlight: 8 }],
];

for (const [name, load, options] of LOADS) {
  test({ needs: "net" }, `${name} counts what a server sends`, async () => {
    let deliveries = 0;
    const { count, waits } = await measure(load, (client, data) => {
      deliveries++;
      client.send(data);
    }, options);
    assertEquals(count, deliveries);
    assertEquals(waits.length, load === broadcast ? deliveries / 4 : deliveries);
  });
  test({ needs: "net" }, `${name} fails if one message in a thousand is lost`, async () => {
    // What follows is out of order, or nothing follows.
    const outcome = measure(load, sometimes(() => {}), { ...options, patience: 50 });
    await assertRejects(() => outcome, Error, "A server ");
  });

  for (const [fault, deliver, message] of FAULTS) {
    test({ needs: "net" }, `${name} fails if one message in a thousand ${fault}`, async () => {
      await assertRejects(() => measure(load, sometimes(deliver), options), Error, message);
    });
  }
}

for (const [name, load, options] of LOADS.slice(1)) {
  test({ needs: "net" }, `${name} fails if messages change places`, async () => {
    let kept: Data | undefined;
    const outcome = measure(load, (client, data) => {
      if (kept === undefined) return kept = data;
      client.send(data);
      client.send(kept);
      kept = undefined;
    }, { ...options, clients: 1 });
    await assertRejects(() => outcome, Error, SPOILT);
  });
}

/** A server that pushes pieces with these numbers. */
function pushing(...numbers: number[]): Deliver {
  return (client) => {
    for (const number of numbers) {
      const piece = new DataView(new ArrayBuffer(BULK));
      piece.setUint32(0, number);
      client.send(piece);
    }
  };
}

test(
  { needs: "net" },
  "push counts pieces, and fails if one is lost, repeated or cut",
  async () => {
    const options = { clients: 1, pieces: 3 };
    const { count, waits } = await measure(push, pushing(0, 1, 2), options);
    assertEquals(count, waits.length * 3);
    for (const numbers of [[0, 2], [0, 1, 1], [0, 2, 1]]) {
      await assertRejects(() => measure(push, pushing(...numbers), options), Error, SPOILT);
    }
    await assertRejects(() => measure(push, send, options), Error, SPOILT);
    const lacking = measure(push, pushing(0, 1), { ...options, patience: 50 });
    await assertRejects(() => lacking, Error, "stopped answering");
  },
);

test({ needs: "net" }, "broadcast measures rooms, and fails if one hears another", async () => {
  const { count, waits } = await measure(broadcast, send, { rooms: 2 });
  assertEquals(count, waits.length * 2);
  const leaking = measure(broadcast, send, { rooms: 2, ignoresRooms: true });
  await assertRejects(() => leaking, Error, SPOILT);
});

// A wait can be longer than what is asked for here, but never shorter, however slow the machine is.

test({ needs: "net" }, "one late answer in fifty shows in the 99th percentile", async () => {
  let count = 0;
  const { waits } = await measure(echo, async (client, data) => {
    if (++count % 50 === 0) await delay(40);
    client.send(data);
  }, { milliseconds: 200 });
  assert(percentile(waits, 0.99) >= 30);
});

test({ needs: "net" }, "a broadcast waits until the last client has received it", async () => {
  let count = 0;
  const { waits } = await measure(broadcast, async (client, data) => {
    if (++count % 4 === 0) await delay(40);
    client.send(data);
  });
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
    const { waits, delays } = await measure(echo, async (client, data) => {
      if (paused === null) paused = pause(100);
      await paused;
      client.send(data);
    }, { milliseconds: 200, rate: 1000 });
    // A quarter of the messages was due in the first half of the pause.
    assert(percentile(waits, 0.76) >= 45);
    if (pause === stop) assert(percentile(delays, 0.76) >= 45);
  });
}

test({ needs: "net" }, "a steady load sends at its rate, from each client in turn", async () => {
  const received = new Map<WebSocket, number>();
  const { count, delays } = await measure(echo, (client, data) => {
    received.set(client, (received.get(client) ?? 0) + 1);
    client.send(data);
  }, { milliseconds: 100, rate: 2000 });
  assertEquals([count, delays.length], [200, 200]);
  assertEquals([...received.values()], [50, 50, 50, 50]);
});

test({ needs: "net" }, "a connection that is refused or not answered is an error", async () => {
  let count = 0;
  await using server = Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, (request) => {
    if (++count === 3) return new Response(null, { status: 503 });
    return Deno.upgradeWebSocket(request).response;
  });
  using silent = Deno.listen({ hostname: "localhost", port: 0 });
  for (const { port } of [server.addr, silent.addr as Deno.NetAddr]) {
    const outcome = connectAll([`ws://localhost:${port}`], { clients: 3 }, { patience: 1000 });
    await assertRejects(() => outcome, Error, "Of 3 connections");
  }
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

const TURN = { count: 1000, waits: [1, 2], delays: [], elapsed: 250, loadTime: 230 };
const WAITS = { "p50 ms": 2, "p99 ms": 4, "p99.9 ms": 4, limit: 0 };

Deno.test("figures are those of all turns; in bulk, they are those of a megabyte", () => {
  const turns = [TURN, { ...TURN, waits: [3, 4] }];
  assertEquals(turnFigures(turns, 10, 20), { "per second": 4000, "CPU µs": 5, ...WAITS });
  assertEquals(turnFigures(turns, 10, 100_000), {
    "MB per second": 400,
    "CPU µs per MB": 50,
    ...WAITS,
  });
});

Deno.test("the load is the limit if it takes a whole core, or sends half of the wait late", () => {
  const limitOf = (change: Partial<typeof TURN> | { delays: number[] }) =>
    turnFigures([{ ...TURN, ...change }], 0, 20).limit;
  assertEquals(limitOf({ loadTime: 237 }), 0);
  assertEquals(limitOf({ loadTime: 238 }), 1);
  assertEquals(limitOf({ loadTime: 250, delays: [0.9] }), 0);
  assertEquals(limitOf({ loadTime: 250, delays: [1] }), 1);
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
  const svg = picture(`### Echo\n\n${rates}\n### Idle\n\n${table(rows(5, "KiB each"))}`);
  const texts = ["Echo: 1 clients, 20 bytes", "Echo: 9 clients, 20 bytes"];
  assertEquals(svg.match(/\w+: \d.*(?=<)/g), texts);
  const dots = [...svg.matchAll(/cx="(\d+)" cy="(\d+)" r="5" fill="(#2f81f7|#3fb950)"/g)];
  assertEquals(dots.slice(-4).map(([, x, y]) => [x, y]), [
    ["540", "60"],
    ["800", "60"],
    ["540", "80"],
    ["800", "80"],
  ]);
});

test({ needs: "run" }, "the bench measures every table", async () => {
  await using bench = new Script("tests/bench.ts", ["--quick"], ["--allow-all"]);
  let lines = 0;
  for (const [title, { servers }] of Object.entries(allTables())) {
    if (servers.length === 0) continue;
    await bench.prints(new RegExp(`^${title}$`));
    lines += 2 + servers.length;
  }
  assertEquals(await bench.end(), 0);
  assertEquals(bench.lines.all.filter((line) => line.startsWith("|")).length, lines);
});
