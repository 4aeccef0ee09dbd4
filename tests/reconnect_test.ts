// A client that stays: a loop over connections, and `whileAway` for a question with its answer.

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { delay } from "@std/async";
import {
  connect,
  type Connection,
  ConnectionClosed,
  ConnectionFailed,
  type Message,
} from "websockets";
import { whileAway } from "websockets/script.ts";
import { Inbox, startServer, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { listenRaw, serveBare, switchProtocols } from "./peers.ts";

/** Connects, and takes the first message. */
async function firstMessage(url: string): Promise<Message> {
  await using websocket = await connect(url);
  return await websocket.receive();
}

/** Runs a test with pauses that take no time: how long each was to be. */
async function withPauses(run: (pauses: number[]) => Promise<void>): Promise<void> {
  const { random } = Math;
  const { setTimeout } = globalThis;
  const pauses: number[] = [];
  // No other timer takes as long as a pause does then.
  Math.random = () => 0.77;
  const shortened = (task: () => void, milliseconds = 0) => {
    if (milliseconds < 77 || milliseconds % 77 > 0) return setTimeout(task, milliseconds);
    pauses.push(milliseconds);
    return setTimeout(task, 0);
  };
  globalThis.setTimeout = shortened as typeof setTimeout;
  try {
    await run(pauses);
  } finally {
    Math.random = random;
    globalThis.setTimeout = setTimeout;
  }
}

/** Runs a test in which chance makes each pause so many times as long as it may be. */
async function withChance(chance: number, run: () => Promise<void>): Promise<void> {
  const { random } = Math;
  Math.random = () => chance;
  try {
    await run();
  } finally {
    Math.random = random;
  }
}

/** Fails unless a signal ends `run` in a pause that would take a day. */
async function assertGivenUp(run: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
  await withChance(1e6, async () => {
    const giveUp = new AbortController();
    const given = assertRejects(() => within(run(giveUp.signal), "the reason"), Error, "enough");
    await delay(50);
    giveUp.abort(new Error("enough"));
    await given;
  });
}

/** Reads until the connection is closed: its code. */
async function readAll(websocket: Connection): Promise<number> {
  try {
    for await (const _ of websocket);
  } catch (error) {
    if (!(error instanceof ConnectionClosed)) throw error;
  }
  return (await websocket.closed).code;
}

// A loop over connections.

test({ needs: "net" }, "each turn has a new connection, however the last one ended", async () => {
  using server = listenRaw();
  const ends = [[0x88, 2, 3, 232], [0x88, 2, 3, 233], [0x88, 0], [0x88, 2, 15, 162], []];
  const serving = (async () => {
    for (const end of ends) {
      using connection = await server.accept();
      await connection.write(await switchProtocols(connection));
      await connection.write(new Uint8Array([0x81, 1, 0x78, ...end]));
      // The client answers a Close frame, and the end of the connection is then no reset.
      if (end.length > 0) await connection.read(new Uint8Array(100));
    }
  })();
  const codes: number[] = [];
  const loop = async () => {
    for await (const websocket of connect(server.url)) {
      assertEquals(await websocket.receive(), "x");
      codes.push(await readAll(websocket));
      if (codes.length === ends.length) break;
    }
  };
  await withPauses(() => within(loop(), "five connections"));
  assertEquals(codes, [1000, 1001, 1005, 4002, 1006]);
  await serving;
});

test({ needs: "net" }, "the connection of a turn is closed with 1000 at its end", async () => {
  const events = new Inbox<string>();
  await using server = startServer(async (websocket) => {
    events.put("comes");
    events.put(`leaves with ${(await websocket.closed).code}`);
  });
  let turns = 0;
  for await (const websocket of connect(server.url)) {
    websocket.send("hello");
    if (++turns === 2) break;
  }
  const expected = ["comes", "leaves with 1000", "comes", "leaves with 1000"];
  for (const event of expected) assertEquals(await events.next(), event);
});

test(
  { needs: "net" },
  "pauses grow where each connection ends at once, and are short after one that has lasted",
  async () => {
    let connections = 0;
    await using server = startServer(async () => {
      if (++connections === 5) await delay(1_100);
    });
    await withPauses(async (pauses) => {
      for await (const websocket of connect(server.url)) {
        await readAll(websocket);
        if (connections === 7) break;
      }
      assertEquals(pauses, [77, 154, 308, 616, 77, 154]);
    });
  },
);

test(
  { needs: "net" },
  "a server that does not answer the Close frame is not said to close each connection",
  async () => {
    using server = listenRaw();
    const serving = (async () => {
      using first = await server.accept();
      await first.write(await switchProtocols(first));
      using second = await server.accept();
      await second.write(await switchProtocols(second));
    })();
    const lines = new Inbox<string>();
    await withPauses(async () => {
      let turns = 0;
      const log = (line: string) => lines.put(line);
      for await (const _ of connect(server.url, { log })) if (++turns === 2) break;
    });
    assertEquals(lines.all, []);
    await serving;
  },
);

test({ needs: "net" }, "a server that is away at first is tried again", async () => {
  await using server = startServer((websocket) => websocket.send("hello"));
  // What the URL is may change: it is asked for before each attempt.
  const urls = ["ws://localhost:1", "ws://localhost:1", server.url, server.url];
  const asked: string[] = [];
  const url = () => {
    asked.push(urls[asked.length]);
    return asked.at(-1) ?? "";
  };
  await withPauses(async (pauses) => {
    let turns = 0;
    for await (const websocket of connect(url)) {
      assertEquals(await websocket.receive(), "hello");
      if (++turns === 2) break;
    }
    assertEquals([asked, pauses], [urls, [77, 154, 308]]);
  });
});

test({ needs: "net" }, "a failure that will not pass leaves the loop", async () => {
  let requests = 0;
  let status = 503;
  await using server = serveBare(() => {
    if (++requests === 3) status = 401;
    return new Response("", { status });
  });
  const loop = async () => {
    for await (const _ of connect(server.url)) throw new Error("It is connected.");
  };
  await withPauses(async () => {
    const error = await assertRejects(loop, ConnectionFailed);
    assertEquals([error.status, requests], [401, 3]);
  });
  status = 503;
  const passing = await assertRejects(() => connect(server.url), ConnectionFailed);
  const away = await assertRejects(() => connect("ws://localhost:1"), ConnectionFailed);
  assertEquals([passing.status, away.status], [503, undefined]);
});

test({ needs: "net" }, "a loss inside the body leaves the loop", async () => {
  let connections = 0;
  await using server = startServer((websocket) => websocket.close(1012, `${++connections}`));
  const loop = async () => {
    for await (const websocket of connect(server.url)) await websocket.receive();
  };
  await assertRejects(loop, ConnectionClosed, "1012 (service restart) 1");
  assertEquals(connections, 1);
});

test({ needs: "net" }, "`signal` ends a loop that waits, and one that is connected", async () => {
  await assertGivenUp(async (signal) => {
    for await (const _ of connect("ws://localhost:1", { signal }));
  });
  await using server = startServer(readAll);
  const connected = new AbortController();
  const reading = async () => {
    for await (const websocket of connect(server.url, connected)) {
      connected.abort(new Error("enough"));
      assertEquals(await readAll(websocket), 1000);
    }
  };
  await assertRejects(() => within(reading(), "the reason"), Error, "enough");
});

test({ needs: "net" }, "a loop that waits for a second tells for what", async () => {
  const lines = new Inbox<string>();
  const [giveUp, leave] = [new AbortController(), new AbortController()];
  const log = (line: string) => {
    lines.put(line);
    throw new Error("This log is full.");
  };
  await withChance(1, async () => {
    const server = startServer(() => {});
    const loop = async () => {
      for await (const websocket of connect(server.url, { log, signal: giveUp.signal })) {
        await readAll(websocket);
      }
    };
    const looping = assertRejects(loop, Error, "enough");
    assertEquals(await lines.next(), "The server closes each connection at once: waiting.");
    giveUp.abort(new Error("enough"));
    await looping;
    await server[Symbol.asyncDispose]();

    const stays = () => whileAway(() => firstMessage(server.url), { log, signal: leave.signal });
    const away = assertRejects(stays, Error, "enough");
    assertMatch(await lines.next(), /^No connection to .*: waiting\.$/);
    leave.abort(new Error("enough"));
    await away;
    assertEquals(lines.all.length, 2);
  });
});

// `whileAway`.

test(
  { needs: "net" },
  "a server that stays away is tried again for as long as `patience` says",
  async () => {
    let tries = 0;
    const run = () => {
      tries++;
      return connect("ws://localhost:1/x");
    };
    const failed = () => whileAway(run, { patience: 1_000 });
    const { message } = await assertRejects(failed, ConnectionFailed);
    assertMatch(message, /^No connection to ws:\/\/localhost:1\/x /);
    assert(tries > 1);
  },
);

test(
  { needs: "net" },
  "a server that refuses, or closes for good, is not asked again, nor one whose TLS fails",
  async () => {
    let requests = 0;
    await using server = serveBare(() => {
      requests++;
      return new Response("", { status: 401 });
    });
    const patient = { patience: 1e9 };
    const refused = () => whileAway(() => firstMessage(server.url), patient);
    await assertRejects(refused, ConnectionFailed, "401");
    assertEquals(requests, 1);

    let rounds = 0;
    await using closing = startServer((websocket) => websocket.close(1009, `${++rounds}`));
    const closed = () => whileAway(() => firstMessage(closing.url), patient);
    await assertRejects(closed, ConnectionClosed, "1009 (message too big) 1");

    const url = server.url.replace("ws:", "wss:");
    const failed = () => whileAway(() => firstMessage(url), patient);
    assertEquals((await assertRejects(failed, ConnectionFailed)).kind, "no TLS");
  },
);

test({ needs: "net" }, "chance decides how long each pause is", async () => {
  let requests = 0;
  await using server = serveBare((request) => {
    if (++requests % 3) return new Response("", { status: 503 });
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onopen = () => socket.send("");
    return response;
  });
  const { random } = Math;
  let pauses = 0;
  Math.random = () => {
    pauses++;
    return 0;
  };
  try {
    await whileAway(() => firstMessage(server.url));
    assertEquals([requests, pauses], [3, 2]);
  } finally {
    Math.random = random;
  }
});

test({ needs: "net" }, "patience counts from each loss", async () => {
  let runs = 0;
  await using server = startServer(async (websocket) => {
    if (++runs > 1) return await websocket.send("there");
    // It is longer than the patience.
    await delay(1_100);
    websocket.close(1012);
  });
  assertEquals(await whileAway(() => firstMessage(server.url), { patience: 500 }), "there");
});

test(
  { needs: "net" },
  "a loop that was left by a loss is run again, and tells nothing",
  async () => {
    const lines: string[] = [];
    let runs = 0;
    await using server = startServer((websocket) => {
      runs++;
      websocket.send(`${runs}`);
      websocket.close(runs < 3 ? 1012 : 1000);
    });
    const read: Message[] = [];
    await whileAway(async () => {
      await using websocket = await connect(server.url);
      for await (const message of websocket) read.push(message);
      // Nobody waits for the server here, however long it takes.
      await delay(1_200);
    }, { log: (line) => lines.push(line) });
    assertEquals([read, lines], [["1", "2", "3"], []]);
  },
);

test({ needs: "net" }, "each time that the server is away is told", async () => {
  const lines = new Inbox<string>();
  let rounds = 0;
  const run = async () => {
    rounds++;
    if (rounds === 5) {
      await delay(1_100);
      throw new ConnectionClosed({ code: 1006 });
    }
    if (rounds === 9) return;
    await connect("ws://localhost:1");
  };
  await withChance(1, () => whileAway(run, { log: (line) => lines.put(line) }));
  assertEquals(lines.all.length, 2);
});

test({ needs: "net" }, "`signal` ends `whileAway` with its reason", async () => {
  const run = () => connect("ws://localhost:1");
  await assertGivenUp((signal) => whileAway(run, { signal }));
});
