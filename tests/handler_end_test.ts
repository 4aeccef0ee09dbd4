// What the end of a connection does to a handler, to the other clients and to a server that stops.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { delay, retry } from "@std/async";
import { type Connection, ConnectionClosed, type Handler, serve, type Server } from "websockets";
import { Inbox, startServer, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { echo } from "./peers.ts";
import { Script } from "./programs.ts";
import { frame, handshake, RawClient } from "./raw.ts";

const [TEXT, CLOSE] = [1, 8];
/** 1000, as a Close frame says it. */
const NORMAL = new Uint8Array([3, 232]);

/** Fails unless the server at `url` answers a newcomer. */
async function assertAnswers(url: string): Promise<void> {
  await using client = await TestClient.open(url);
  client.send("hello");
  assertEquals(await client.next(), "hello");
}

/** How a client leaves whom the server sends more than it reads. */
const LEAVES: Record<string, (client: RawClient) => unknown> = {
  "with a Close frame": async (client) => {
    await client.write(frame(CLOSE, NORMAL));
    while ((await client.read()).length > 0);
  },
  "by a reset": ({ connection }) => connection.close(),
  "by the end of its connection": ({ connection }) => connection.closeWrite(),
};

for (const [how, leave] of Object.entries(LEAVES)) {
  const code = how === "with a Close frame" ? 1000 : 1006;

  test(
    { needs: "net" },
    `a handler that only sends ends when its client leaves ${how}, and keeps nobody waiting`,
    async () => {
      const ends = new Inbox<unknown>();
      const echoing = echo();
      await using server = startServer(async (websocket, request) => {
        if (request.url.endsWith("/echo")) return await echoing(websocket, request);
        try {
          for (let n = 0;; n++) await websocket.send(`${n}`);
        } catch (error) {
          ends.put(error);
          throw error;
        }
      });
      using client = await RawClient.upgraded(server.port);
      await client.read();
      await assertAnswers(`${server.url}/echo`);
      await leave(client);
      const end = await ends.next();
      assertEquals(end instanceof ConnectionClosed ? end.code : end, code);
      await assertAnswers(`${server.url}/echo`);
      await server[Symbol.asyncDispose]();
      assertEquals(server.log.all, []);
    },
  );

  test({ needs: "net" }, `a clock ends when its client leaves ${how}`, async () => {
    const ends = new Inbox<string>();
    const clock: Handler = async (websocket) => {
      try {
        while (true) {
          await websocket.send("tick");
          await delay(1);
        }
      } finally {
        ends.put("finally");
      }
    };
    await using server = startServer(clock, { maxClients: 1 });
    for (let count = 0; count < 3; count++) {
      // Its place is free as soon as its end is known.
      const open = async () => {
        const client = await RawClient.open(server.port, handshake());
        if ((await client.head()).startsWith("HTTP/1.1 101 ")) return client;
        client[Symbol.dispose]();
        throw new Error("There is no place.");
      };
      using client = await retry(open, { minTimeout: 5, multiplier: 1, maxAttempts: 500 });
      await client.read();
      await leave(client);
      assertEquals(await ends.next(), "finally");
    }
    await server[Symbol.asyncDispose]();
    assertEquals(ends.all.length, 3);
    assertEquals(server.log.all.filter((line) => !line.includes("`maxClients`")), []);
  });
}

test(
  { needs: "net" },
  "a handler that only sends empty messages keeps nobody waiting either",
  async () => {
    const ends = new Inbox<unknown>();
    await using server = startServer(async (websocket) => {
      // Without an end of its own, the test itself could not fail.
      let count = 0;
      try {
        while (count++ < 2_000_000) await websocket.send("");
      } finally {
        ends.put(count);
      }
    });
    await using client = await TestClient.open(server.url);
    await client.next();
    await client.close();
    const count = await ends.next();
    assert(Number(count) < 2_000_000, "It never left its turn.");
  },
);

test({ needs: "net" }, "however a connection ends, that is no line in the log", async () => {
  const ends = new Inbox<string>();
  await using server = startServer(async (websocket) => {
    try {
      for await (const _ of websocket);
    } finally {
      ends.put("finally");
    }
  }, { maxMessage: 10, idleTimeout: 0.2 });
  const leaves: ((client: RawClient) => unknown)[] = [
    ...Object.values(LEAVES),
    (client) => client.write(frame(CLOSE, new Uint8Array([3, 243]))),
    (client) => client.write(frame(TEXT, new Uint8Array([0xff]))),
    (client) => client.write(frame(TEXT, "more than ten")),
    // It answers no ping.
    () => {},
  ];
  for (const leave of leaves) {
    using client = await RawClient.upgraded(server.port);
    await leave(client);
    assertEquals(await ends.next(), "finally");
  }
  await server[Symbol.asyncDispose]();
  assertEquals([ends.all.length, server.log.all], [leaves.length, []]);
});

test(
  { needs: "net" },
  "a `ConnectionClosed` that a handler throws closes with its code, or with 1011",
  async () => {
    await using server = startServer((_, request) => {
      const code = Number(new URL(request.url).pathname.slice(1));
      throw new ConnectionClosed({ code, reason: "because" });
    });
    for (const [code, told] of [[4400, 4400], [1000, 1000], [1006, 1011], [1005, 1011]]) {
      const client = await TestClient.open(`${server.url}/${code}`);
      const close = await within(client.closed, "the close");
      assertEquals([close.code, close.reason], [told, "because"]);
    }
    assertEquals(server.log.all, []);
  },
);

test({ needs: "net" }, "the handler gets the very request that `processRequest` saw", async () => {
  const users = new WeakMap<Request, string>();
  const seen = new Inbox<string>();
  const handler: Handler = async (_, request) => {
    await delay(0);
    seen.put(`${users.get(request)} ${request.headers.get("x-name")}`);
  };
  const name = (request: Request) => {
    users.set(request, "Ada");
    return undefined;
  };
  const later = async (request: Request) => {
    await delay(1);
    return name(request);
  };
  const defaults: Handler = (websocket, request = new Request("http://localhost")) =>
    handler(websocket, request);
  for (const each of [handler, defaults, (...all: Parameters<Handler>) => handler(...all)]) {
    for (const processRequest of [name, later]) {
      await using server = startServer(each, { processRequest });
      await using _client = await TestClient.open(server.url, { "X-Name": "Lovelace" });
      assertEquals(await seen.next(), "Ada Lovelace");
    }
  }
});

test(
  { needs: "net" },
  "a client that is silent is not to blame for what a timer of its handler sends to all",
  async () => {
    const members = new Set<Connection>();
    const joined = new Inbox<void>();
    let timer: ReturnType<typeof setInterval> | undefined;
    await using server = startServer(async (websocket) => {
      members.add(websocket);
      const isFirst = members.size === 1;
      joined.put();
      if (isFirst) {
        await websocket.receive();
        // What it has said then makes nobody send anything any more.
        await delay(2_200);
        timer = setInterval(() => {
          const message = new Uint8Array(100_000);
          for (const member of members) member.send(message);
        }, 1);
      }
      await websocket.closed;
    }, { maxWaiting: 20_000_000 });
    try {
      using first = await RawClient.upgraded(server.port);
      await joined.next();
      using _second = await RawClient.upgraded(server.port);
      using _third = await RawClient.upgraded(server.port);
      await first.write(frame(TEXT, "start"));
      const dropped = await server.log.next((line) => line.startsWith("Dropped"));
      assertEquals(dropped, "Dropped a client. It read too little while too much was waiting.");
    } finally {
      clearInterval(timer);
    }
  },
);

test({ needs: "net" }, "what a handler sends when `signal` aborts drops nobody else", async () => {
  const members = new Set<Connection>();
  const joined = new Inbox<void>();
  const sendToEach = () => {
    for (const member of members) member.send(new Uint8Array(100_000));
  };
  await using server = startServer(async (websocket) => {
    members.add(websocket);
    websocket.signal.addEventListener("abort", () => {
      members.delete(websocket);
      sendToEach();
    });
    joined.put();
    await websocket.closed;
  }, { maxWaiting: 4_000_000 });
  using _first = await RawClient.upgraded(server.port);
  await joined.next();
  using _second = await RawClient.upgraded(server.port);
  await joined.next();
  // Neither of them reads.
  while (members.size === 2) {
    sendToEach();
    await delay(1);
  }
  await server.log.next();
  assertEquals([members.size, server.log.all.length], [1, 1]);
});

test({ needs: "net" }, "a log that is async and fails costs nothing", async () => {
  let lines = 0;
  const log = async () => {
    lines++;
    await delay(0);
    throw new Error("No space left on device");
  };
  await using server = startServer(() => {
    throw new Error("broken");
  }, { log });
  for (let count = 1; count <= 2; count++) {
    const client = await TestClient.open(server.url);
    assertEquals((await within(client.closed, "the close")).code, 1011);
    // A rejection that nobody has caught ends the test.
    await delay(10);
    assertEquals(lines, count);
  }
});

// Stopping.

/** Stops a server at once that waits for somebody: what it says. */
async function stopLine(handler: Handler): Promise<string[]> {
  const called = new Inbox<void>();
  const gone = new Inbox<void>();
  const lines: string[] = [];
  const server: Server = serve((websocket, request) => {
    called.put();
    return handler(websocket, request);
  }, { port: 0, log: (line) => lines.push(line) });
  const { upgradeWebSocket } = Deno;
  Deno.upgradeWebSocket = (...given) => {
    const upgraded = upgradeWebSocket(...given);
    upgraded.socket.addEventListener("close", () => gone.put());
    return upgraded;
  };
  {
    using _client = await RawClient.upgraded(server.addr.port);
    Deno.upgradeWebSocket = upgradeWebSocket;
    await called.next();
    await within(server.shutdown({ timeout: 10 }), "the server to stop");
  }
  // The runtime keeps the connection until it has seen that the client is gone.
  await gone.next();
  return lines;
}

test(
  { needs: "net" },
  "`shutdown` waits for its `timeout`, and says who was waited for",
  async () => {
    const gate = Promise.withResolvers<void>();
    assertEquals(await stopLine(() => gate.promise), [
      "Stopped without waiting longer. Handlers that had not returned: 1, clients that had not read what was waiting for them: 0.",
    ]);
    gate.resolve();
    assertEquals(
      await stopLine(async (websocket) => await websocket.closed.then(() => {}, () => {})),
      [
        "Stopped without waiting longer. Handlers that had not returned: 1, clients that had not read what was waiting for them: 0.",
      ],
    );
    assertEquals(await stopLine((websocket) => void websocket.send(new Uint8Array(16_000_000))), [
      "Stopped without waiting longer. Handlers that had not returned: 0, clients that had not read what was waiting for them: 1.",
    ]);
  },
);

test({ needs: "run" }, "`--stop-timeout` says how long a script waits when it stops", async () => {
  const stop = async (...flags: string[]) => {
    const server = await Script.server("server.ts", ...flags);
    const client = await RawClient.upgraded(Number(new URL(server.url).port));
    await client.write(frame(TEXT, "hello"));
    await client.read();
    server.kill("SIGTERM");
    return { server, client };
  };
  // Neither client answers the Close frame.
  const [long, short] = await Promise.all([
    stop("--stop-timeout", "1000"),
    stop("--stop-timeout", "0.01"),
  ]);
  assertEquals(await short.server.end(), 0);
  assertMatch(short.server.errors.all.join("\n"), /^Stopped without waiting longer\. .*: 1\.$/);
  // The other one waits still, and answering ends that.
  await long.client.write(frame(CLOSE, NORMAL));
  assertEquals(await long.server.end(), 0);
  assertEquals(long.server.errors.all, []);
  for (const { client } of [long, short]) client[Symbol.dispose]();
});
