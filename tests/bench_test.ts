// What the bench promises: a server that loses, spoils or delays messages gets no good figures.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import process from "node:process";
import { cpuTime, isBroadcastServer, markdownTable, parseServer, percentiles } from "./bench.ts";
import { type Row, summarize, turnFigures } from "./bench.ts";
import { test } from "./helpers.ts";
import { broadcast, connectAll, disconnect, echo, handshakes } from "./loads.ts";
import { type Load, type LoadOptions, type Outcome, steady } from "./loads.ts";

/** How a server brings a text to a client: a good one sends it. */
type Deliver = (client: WebSocket, text: string) => void;

interface Options extends Partial<LoadOptions> {
  clients?: number;
  /** Whether the server brings a message to all rooms. */
  ignoresRooms?: boolean;
}

/** Starts a server in this process: it broadcasts, or it echoes. */
function startServer(isBroadcast: boolean, deliver: Deliver, ignoresRooms = false) {
  const rooms = new Map<WebSocket, string | null>();
  const server = Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    const room = ignoresRooms ? null : new URL(request.url).searchParams.get("room");
    socket.onopen = () => rooms.set(socket, room);
    socket.onmessage = ({ data }) => {
      if (!isBroadcast) return deliver(socket, data);
      for (const [client, each] of rooms) if (each === room) deliver(client, data);
    };
    socket.onclose = () => rooms.delete(socket);
    return response;
  });
  return { server, urls: [`ws://localhost:${server.addr.port}`] };
}

async function measure(
  load: Load,
  deliver: Deliver,
  { clients = 4, ignoresRooms, ...options }: Options = {},
): Promise<Outcome> {
  const { server, urls } = startServer(load === broadcast, deliver, ignoresRooms);
  const sockets = await connectAll(urls, clients, options.rooms);
  try {
    return await load(sockets, { bytes: 20, milliseconds: 30, rate: 5000, ...options });
  } finally {
    await disconnect(sockets);
    await server.shutdown();
  }
}

const send: Deliver = (client, text) => client.send(text);

/** Does something else for one message in a thousand; the first time soon. */
function sometimes(otherwise: Deliver): Deliver {
  let count = 996;
  return (client, text) => (++count % 1000 === 0 ? otherwise : send)(client, text);
}

const FAULTS: [fault: string, deliver: Deliver, message: string][] = [
  ["is cut short", (client, text) => client.send(text.slice(1)), "lost, repeated or changed"],
  [
    "is altered",
    (client, text) => client.send(text.replace(/.$/, "x")),
    "lost, repeated or changed",
  ],
  [
    "comes twice",
    (client, text) => [1, 2].forEach(() => client.send(text)),
    "lost, repeated or changed",
  ],
  [
    "comes as binary",
    (client, text) => client.send(new TextEncoder().encode(text)),
    "lost, repeated or changed",
  ],
  ["closes a client", (client) => client.close(1000), "closed a connection"],
];

for (const [name, load] of Object.entries({ echo, steady, broadcast })) {
  test({ needs: "net" }, `${name} counts what a server sends`, async () => {
    let deliveries = 0;
    const { count, waits } = await measure(load, (client, text) => {
      deliveries++;
      client.send(text);
    });
    assertEquals(count, deliveries);
    assertEquals(waits.length, load === broadcast ? deliveries / 4 : deliveries);
  });

  test({ needs: "net" }, `${name} fails if one message in a thousand is lost`, async () => {
    // What follows is out of order, or nothing follows.
    const outcome = measure(load, sometimes(() => {}), { patience: 50 });
    await assertRejects(() => outcome, Error, "A server ");
  });

  for (const [fault, deliver, message] of FAULTS) {
    test({ needs: "net" }, `${name} fails if one message in a thousand ${fault}`, async () => {
      await assertRejects(() => measure(load, sometimes(deliver)), Error, message);
    });
  }
}

for (const [name, load] of Object.entries({ steady, broadcast })) {
  test({ needs: "net" }, `${name} fails if messages change places`, async () => {
    let kept: string | undefined;
    const outcome = measure(load, (client, text) => {
      if (kept === undefined) return kept = text;
      client.send(text);
      client.send(kept);
      kept = undefined;
    }, { clients: 1 });
    await assertRejects(() => outcome, Error, "lost, repeated or changed");
  });
}

test({ needs: "net" }, "broadcast measures rooms, and fails if one hears another", async () => {
  const { count, waits } = await measure(broadcast, send, { rooms: 2 });
  assertEquals(count, waits.length * 2);
  const leaking = measure(broadcast, send, { rooms: 2, ignoresRooms: true });
  await assertRejects(() => leaking, Error, "lost, repeated or changed");
});

test({ needs: "net" }, "one late answer in fifty shows in the 99th percentile", async () => {
  let count = 0;
  const { waits } = await measure(echo, (client, text) => {
    setTimeout(() => client.send(text), ++count % 50 === 0 ? 40 : 0);
  }, { milliseconds: 200 });
  assert(percentiles(waits)(0.99) >= 40);
});

test({ needs: "net" }, "a broadcast waits until the last client has received it", async () => {
  let count = 0;
  const { waits } = await measure(broadcast, (client, text) => {
    if (++count % 4 === 0) setTimeout(() => client.send(text), 40);
    else client.send(text);
  });
  assert(Math.min(...waits) >= 40);
});

test({ needs: "net" }, "a pause of the server counts for all that was due in it", async () => {
  let pause: Promise<void> | undefined;
  const { waits } = await measure(steady, async (client, text) => {
    pause ??= delay(100);
    await pause;
    client.send(text);
  }, { milliseconds: 200, rate: 1000 });
  // A quarter of the messages was due in the first half of the pause.
  assert(percentiles(waits)(0.76) >= 50);
});

test(
  { needs: "net" },
  "a message that the load itself sends late waits since it was due",
  async () => {
    let isFirst = true;
    const { waits, delays = [] } = await measure(steady, (client, text) => {
      const start = performance.now();
      // The load runs in this process, and can't send meanwhile.
      while (isFirst && performance.now() - start < 100);
      isFirst = false;
      client.send(text);
    }, { milliseconds: 200, rate: 1000 });
    assert(percentiles(waits)(0.76) >= 50);
    assert(percentiles(delays)(0.76) >= 50);
  },
);

test({ needs: "net" }, "a steady load sends at its rate, from each client in turn", async () => {
  const received = new Map<WebSocket, number>();
  const start = performance.now();
  const { count } = await measure(steady, (client, text) => {
    received.set(client, (received.get(client) ?? 0) + 1);
    client.send(text);
  }, { milliseconds: 100, rate: 2000 });
  assert(performance.now() - start >= 99);
  assertEquals(count, 200);
  assertEquals([...received.values()], [50, 50, 50, 50]);
});

test({ needs: "net" }, "handshakes counts those that fail, and times the others", async () => {
  let count = 0;
  const late = async (request: Request) => {
    if (++count % 3 === 0) return new Response(null, { status: 503 });
    await delay(30);
    return Deno.upgradeWebSocket(request).response;
  };
  await using server = Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, late);
  const urls = [`ws://localhost:${server.addr.port}`];
  const { sockets, waits, failures } = await handshakes(urls, 60);
  await disconnect(sockets);
  assertEquals([sockets.length, waits.length, failures], [40, 40, 20]);
  assert(Math.min(...waits) >= 29);
  await assertRejects(() => connectAll(urls, 3), Error, "1 of 3 connections");
});

test({ needs: "net" }, "handshakes gives up those that are never answered", async () => {
  using listener = Deno.listen({ hostname: "localhost", port: 0 });
  const urls = [`ws://localhost:${listener.addr.port}`];
  const { sockets, failures } = await handshakes(urls, 3, { patience: 50 });
  assertEquals([sockets.length, failures], [0, 3]);
});

test({ needs: "net" }, "a server with --url is tried: does it broadcast, or answer?", async () => {
  await Promise.all([true, false].map(async (isBroadcast) => {
    const { server, urls } = startServer(isBroadcast, send);
    assertEquals(await isBroadcastServer({ name: "", urls, processIds: [] }), isBroadcast);
    await server.shutdown();
  }));
});

test({ needs: "linux" }, "processor time is that of all processes together", async () => {
  const start = performance.now();
  while (performance.now() - start < 100);
  const { user, system } = process.cpuUsage();
  const measured = await cpuTime([Deno.pid, Deno.pid]);
  const difference = measured.user + measured.system - 2 * (user + system) / 1000;
  assert(Math.abs(difference) < 60, `${difference} ms`);
});

Deno.test("processor time is not known without a process", async () => {
  assertEquals(await cpuTime([]), { user: NaN, system: NaN });
});

Deno.test("a percentile is the least wait that is enough for so many", () => {
  const waits = Array.from({ length: 1000 }, (_, index) => 1000 - index);
  assertEquals([0.5, 0.99, 0.999, 1].map(percentiles(waits)), [500, 990, 999, 1000]);
  assertEquals(percentiles([7])(0.5), 7);
  assertEquals(percentiles([])(0.5), NaN);
});

Deno.test("figures are those of all turns, and of the processor in between", () => {
  const turn = { count: 1000, waits: [1, 2], elapsed: 250, loadTime: 125 };
  const turns = [turn, { ...turn, waits: [3, 4] }];
  const figures = turnFigures(turns, { user: 10, system: 20 }, { user: 16, system: 24 });
  assertEquals(figures, {
    "per second": 4000,
    "CPU µs": 5,
    "user µs": 3,
    "system µs": 2,
    "p50 ms": 2,
    "p99 ms": 4,
    "p99.9 ms": 4,
    "max ms": 4,
    "load cores": 0.5,
  });
});

Deno.test("a steady load tells how late it sent", () => {
  const delays = Array.from({ length: 100 }, (_, index) => index + 1);
  const turn = { count: 100, waits: delays, delays, elapsed: 100, loadTime: 100 };
  const none = { user: 0, system: 0 };
  assertEquals(turnFigures([turn], none, none)["late ms"], 99);
});

Deno.test("ratios are those within a round, to the first server", () => {
  const rounds = [[100, 50], [10, 20], [1000, 900]].map((round) => round.map((rate) => ({ rate })));
  const [first, second] = summarize(rounds);
  assertEquals(first, { rate: { median: 100 } });
  assertEquals(second, { rate: { median: 50, ratio: { median: 0.9, min: 0.5, max: 2 } } });
  assertEquals(summarize(rounds.slice(0, 2))[0].rate.median, 55);
});

/** The last column of a row with these figures. */
function limitOf(figures: Record<string, number>): string | undefined {
  const medians = Object.entries(figures).map(([name, median]) => [name, { median }]);
  const row: Row = { server: "ours", clients: 1, bytes: 1, figures: Object.fromEntries(medians) };
  return markdownTable([row]).trim().split("|").at(-2)?.trim();
}

Deno.test("a row says when the load tool was the limit, and not the server", () => {
  assertEquals(limitOf({ "load cores": 0.94 }), "");
  assertEquals(limitOf({ "load cores": 0.95 }), "load");
  assertEquals(limitOf({ "p99 ms": 2, "late ms": 0.9 }), "");
  assertEquals(limitOf({ "p99 ms": 2, "late ms": 1 }), "load");
});

Deno.test("a table has the columns and the numbers that are needed", () => {
  const figures = { "per second": { median: 12_345.6 }, "CPU µs": { median: 7.128 } };
  const ratio = { median: 0.987, min: 0.9, max: 1.1 };
  const rows: Row[] = [{ server: "bare", clients: 1000, bytes: 0, figures }, {
    server: "ours",
    clients: 1000,
    bytes: 0,
    figures: { "per second": { median: NaN, ratio }, "CPU µs": { median: 8, ratio } },
  }];
  assertEquals(
    markdownTable(rows),
    `\
| server | clients | per second |            ratio | CPU µs |            ratio | limit |
| ------ | ------: | ---------: | ---------------: | -----: | ---------------: | ----: |
| bare   |   1,000 |     12,346 |                  |   7.13 |                  |       |
| ours   |   1,000 |          – | 0.99 (0.90–1.10) |   8.00 | 0.99 (0.90–1.10) |       |
`,
  );
});

Deno.test("--url takes a name, an address and a process, of which one is needed", () => {
  const url = "ws://localhost:1/?a=b";
  assertEquals(parseServer(url), { name: url, urls: [url], processIds: [] });
  assertEquals(parseServer(`ws=${url},12`), { name: "ws", urls: [url], processIds: [12] });
  for (const wrong of ["", "ws", "http://localhost", `${url},x`, "ws=ws://"]) {
    assertThrows(() => parseServer(wrong), Error, "--url takes");
  }
});
