// How the end of a connection reaches those who have to know it, at both ends: `send` rejects, the
// loop says why it ended, `signal` aborts, and what has arrived is still read.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import { type Close, type Connection, ConnectionClosed, type Message, serve } from "websockets";
import { Budget } from "../websockets/budget.ts";
import { Connection as BareConnection } from "../websockets/connection.ts";
import { Outbox } from "../websockets/outbox.ts";
import { type RawPeer, withBothEnds, withRawClient, withRawPeers } from "./ends.ts";
import { Inbox, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { frame, RawClient } from "./raw.ts";

const TEXT = 1;
/** More than the kernel and the runtime take for somebody who does not read. */
const LARGE = new Uint8Array(16_000_000);
const RESERVED = 3;

/** Fails unless a promise rejects with `ConnectionClosed`: how the connection was closed. */
async function endOf(promise: Promise<unknown>): Promise<Close> {
  const { code, reason } = await assertRejects(
    () => within(promise, "the end of the connection"),
    ConnectionClosed,
  );
  return { code, reason };
}

/** Reads until the loop ends: what arrived, how often its `finally` ran, and what it threw. */
async function loop(near: Connection) {
  const read: Message[] = [];
  let finals = 0;
  let error: unknown;
  const run = async () => {
    try {
      for await (const message of near) read.push(message);
    } finally {
      finals++;
    }
  };
  await within(run(), "the loop to end").catch((thrown) => error = thrown);
  return { read, finals, code: error instanceof ConnectionClosed ? error.code : error };
}

// `send`.

test(
  { needs: "net" },
  "`send` rejects from the own `close` on, and after that of the other end, and tells how it was",
  async () => {
    await withBothEnds(async (near, far) => {
      near.close(4001, "because");
      assertEquals(await endOf(near.send("after the own close")), {
        code: 4001,
        reason: "because",
      });
      await far.closed;
      assertEquals(await endOf(far.send("after theirs")), { code: 4001, reason: "because" });
      // Nothing that was refused is sent later.
      assertEquals(await endOf(far.receive()), { code: 4001, reason: "because" });
    });
  },
);

const ENDS: Record<string, [(near: Connection, far: RawPeer) => unknown, number]> = {
  "this end closes": [(near) => void near.close(4001), 4001],
  "the other end closes": [(_, far) => Promise.all([far.sendClose(4002), far.readAll()]), 4002],
  "the connection is reset": [(_, far) => far.reset(), 1006],
};
for (const [what, [end, code]] of Object.entries(ENDS)) {
  test({ needs: "net" }, `every \`send\` that waits rejects when ${what}`, async () => {
    await withRawPeers(async (near, far) => {
      // The runtime takes one message of any size at once.
      await near.send(LARGE);
      const waiting = [near.send(LARGE), near.send("small")];
      const ended = waiting.map(endOf);
      await Promise.all([end(near, far), ...ended]);
      for (const each of ended) assertEquals((await each).code, code);
    });
  });
}

Deno.test("while the runtime has not told how a connection ended, `send` waits for it", async () => {
  class Socket extends EventTarget {
    readyState: number = WebSocket.OPEN;
    bufferedAmount = 0;
    send() {}
  }
  const socket = new Socket();
  const outbox = new Outbox(socket as unknown as WebSocket, new Budget(Infinity, Infinity));
  const options = { maxMessage: Infinity, isClient: true };
  const websocket = new BareConnection(outbox, options, "localhost");
  socket.readyState = WebSocket.CLOSING;
  let isDone = false;
  const sent = websocket.send("too late").finally(() => isDone = true);
  sent.catch(() => {});
  await delay(0);
  assert(!isDone && !websocket.signal.aborted, "The end was guessed.");
  socket.dispatchEvent(new CloseEvent("close", { code: 1000, wasClean: true }));
  assertEquals((await endOf(sent)).code, 1000);
});

test({ needs: "net" }, "a reader and a writer side by side end with the connection", async () => {
  await withBothEnds(async (near, far) => {
    const consumer = async () => {
      for await (const _ of near);
    };
    const producer = async () => {
      while (true) {
        await near.send("tick");
        await delay(1);
      }
    };
    const both = Promise.all([consumer(), producer()]);
    assertEquals(await far.receive(), "tick");
    far.close();
    assertEquals(await endOf(both), { code: 1000, reason: "" });
  });
});

// `receive`.

test({ needs: "net" }, "`receive` that is given up loses no message", async () => {
  await withBothEnds(async (near, far) => {
    const giveUp = new AbortController();
    const given = near.receive(giveUp);
    giveUp.abort(new Error("enough"));
    await assertRejects(() => within(given, "the reason"), Error, "enough");
    await assertRejects(() => within(near.receive(giveUp), "the reason"), Error, "enough");
    const late = () => near.receive({ signal: AbortSignal.timeout(1) });
    assertEquals((await assertRejects(late, DOMException)).name, "TimeoutError");
    far.send("1");
    far.send("2");
    const { signal } = new AbortController();
    assertEquals([await near.receive({ signal }), await near.receive()], ["1", "2"]);
    // A signal that aborts at the end takes nothing away from what the end says.
    const last = near.receive({ signal });
    far.close(4001);
    assertEquals((await endOf(last)).code, 4001);
  });
});

test(
  { needs: "net" },
  "whenever `receive` is given up, each message is read once and in order",
  async () => {
    await withBothEnds(async (near, far) => {
      const numbers = Array.from({ length: 200 }, (_, number) => `${number}`);
      const read: Message[] = [];
      let pauses = 0;
      const reader = async () => {
        while (read.length < numbers.length) {
          const giveUp = new AbortController();
          const reading = near.receive(giveUp).then((message) => read.push(message), () => {});
          // Sooner or later than the message, and in the same turn as well.
          for (let turn = 0; turn < pauses % 4; turn++) await delay(0);
          giveUp.abort();
          await reading;
          pauses++;
        }
      };
      const reading = reader();
      for (const number of numbers) {
        far.send(number);
        await delay(0);
      }
      await within(reading, "all numbers");
      assertEquals(read, numbers);
    });
  },
);

test({ needs: "net" }, "a stream of a connection that is cancelled takes no message", async () => {
  await withBothEnds(async (near, far) => {
    const reader = ReadableStream.from(near).getReader();
    const read = reader.read();
    await delay(0);
    await within(reader.cancel(), "the stream to end");
    assertEquals((await read).done, true);
    far.send("next");
    assertEquals(await within(near.receive(), "the message"), "next");
  });
});

test({ needs: "net" }, "a second `receive` is told to await the first one", async () => {
  await withBothEnds(async (near, far) => {
    const first = near.receive();
    await assertRejects(() => near.receive(), Error, "await that one first");
    const next = () => near[Symbol.asyncIterator]().next();
    await assertRejects(next, Error, "await that one first");
    far.send("1");
    assertEquals(await first, "1");
  });
});

// The loop.

for (const code of [1000, 1001, undefined]) {
  const name = code === undefined ? "without a code" : `with ${code}`;
  test({ needs: "net" }, `the loop ends when the connection is closed ${name}`, async () => {
    await withRawPeers(async (near, far) => {
      await far.send([TEXT, "last"]);
      await far.sendClose(code);
      assertEquals(await loop(near), { read: ["last"], finals: 1, code: undefined });
      assertEquals((await endOf(near.receive())).code, code ?? 1005);
    });
  });
}

const LOSSES: Record<string, [(far: RawPeer) => Promise<void>, number]> = {
  "is reset": [(far) => far.reset(), 1006],
  "ends without a Close frame": [(far) => far.leave(), 1006],
  "breaks off with a bad frame": [(far) => far.send([RESERVED, "?"]), 1006],
  "breaks off with bad UTF-8": [(far) => far.send([TEXT, new Uint8Array([0xff])]), 1006],
};
for (const code of [1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4002]) {
  LOSSES[`is closed with ${code}`] = [(far) => far.sendClose(code), code];
}
for (const [what, [lose, code]] of Object.entries(LOSSES)) {
  test({ needs: "net" }, `the loop throws when the connection ${what}`, async () => {
    await withRawPeers(async (near, far) => {
      await far.send([TEXT, "last"]);
      await lose(far);
      assertEquals(await loop(near), { read: ["last"], finals: 1, code });
    });
  });
}

test({ needs: "net" }, "the loop throws when a message is too large", async () => {
  await withRawClient(async (near, far) => {
    await far.send([TEXT, "last"], [TEXT, "larger than ten"], [TEXT, "not read"]);
    assertEquals(await loop(near), { read: ["last"], finals: 1, code: 1009 });
  }, { maxMessage: 10 });
});

test({ needs: "net" }, "the loop throws when a ping is not answered", async () => {
  await withRawClient(async (near, far) => {
    await far.send([TEXT, "last"]);
    assertEquals(await loop(near), { read: ["last"], finals: 1, code: 1006 });
    assertEquals((await near.closed).code, 1006);
  }, { idleTimeout: 0.2 });
});

test({ needs: "net" }, "the own `close` inside the loop counts as any other", async () => {
  for (const [own, code] of [[1000, undefined], [4002, 4002]] as const) {
    await withBothEnds(async (near, far) => {
      far.send("go");
      const closing = (async () => {
        for await (const _ of near) near.close(own);
      })();
      const thrown = await within(closing, "the loop to end").catch((error) => error);
      assertEquals(thrown instanceof ConnectionClosed ? thrown.code : thrown, code);
    });
  }
});

// What has arrived.

const NUMBERS = Array.from({ length: 100 }, (_, number) => `${number}`);
const TEXTS = NUMBERS.map((text): [number, string] => [TEXT, text]);
for (const what of ["is reset", "ends without a Close frame", "breaks off with a bad frame"]) {
  test({ needs: "net" }, `what came before the connection ${what} is read`, async () => {
    await withRawPeers(async (near, far) => {
      await far.send(...TEXTS);
      const read = [await near.receive()];
      await LOSSES[what][0](far);
      await within(near.closed, "the end");
      // A reader that takes its time, such as for a database.
      for (const _ of NUMBERS.slice(1)) {
        await delay(0);
        read.push(await near.receive());
      }
      assertEquals(read, NUMBERS);
      assertEquals((await endOf(near.receive())).code, 1006);
    });
  });
}

test({ needs: "net" }, "what a lost client has sent counts until it is read", async () => {
  const connected = new Inbox<Connection>();
  const gate = Promise.withResolvers<void>();
  await using server = serve(async (websocket) => {
    connected.put(websocket);
    await gate.promise;
  }, { port: 0 });
  using client = await RawClient.upgraded(server.addr.port);
  const websocket = await connected.next();
  const payload = "x".repeat(1_000);
  await client.write(new Uint8Array(TEXTS.flatMap(() => [...frame(TEXT, payload)])));
  client.connection.close();
  await within(websocket.closed, "the end");
  assert(server.waiting >= 100 * payload.length, `${server.waiting} bytes wait`);
  for (let count = 0; count < 99; count++) assertEquals(await websocket.receive(), payload);
  assert(server.waiting >= payload.length && server.waiting < 2 * payload.length);
  assertEquals(await websocket.receive(), payload);
  assertEquals(server.waiting, 0);
  gate.resolve();
});

test({ needs: "net" }, "what is unread of a client that the server closes is freed", async () => {
  const connected = new Inbox<Connection>();
  const gate = Promise.withResolvers<void>();
  await using server = serve(async (websocket) => {
    connected.put(websocket);
    await gate.promise;
  }, { port: 0, maxWaiting: 2_000_000, log: () => {} });
  const unread = async () => {
    const client = await RawClient.upgraded(server.addr.port);
    const websocket = await connected.next();
    await client.write(new Uint8Array([...frame(TEXT, "first"), ...frame(TEXT, "unread")]));
    assertEquals(await websocket.receive(), "first");
    return { client, websocket };
  };
  const closes = await unread();
  closes.websocket.close(4001);
  assertEquals((await endOf(closes.websocket.receive())).code, 4001);
  const drops = await unread();
  for (let count = 0; count < 4; count++) {
    await drops.client.write(frame(TEXT, new Uint8Array(900_000)));
  }
  await within(drops.websocket.closed, "the drop");
  assertEquals((await endOf(drops.websocket.receive())).code, 1008);
  assertEquals(server.waiting, 0);
  gate.resolve();
  closes.client[Symbol.dispose]();
  drops.client[Symbol.dispose]();
});

// `signal`.

const ABORTS: Record<string, (near: Connection, far: RawPeer) => unknown> = {
  "this end closes": (near) => void near.close(4001),
  "the other end closes": (_, far) => far.sendClose(4002),
  "the other end closes with 1000": (_, far) => far.sendClose(1000),
  "the connection is reset": (_, far) => far.reset(),
};
for (const [what, end] of Object.entries(ABORTS)) {
  test({ needs: "net" }, `\`signal\` aborts with what \`send\` throws when ${what}`, async () => {
    await withRawPeers(async (near, far) => {
      const { signal } = near;
      assert(!signal.aborted && near.signal === signal);
      const aborted = Promise.withResolvers<Promise<void>>();
      signal.addEventListener("abort", () => aborted.resolve(near.send("in the listener")));
      await end(near, far);
      const sent = await assertRejects(
        () => within(aborted.promise, "it to abort"),
        ConnectionClosed,
      );
      assert(signal.reason === sent, "The reasons are not the same.");
      assert(assertThrows(() => near.signal.throwIfAborted()) === sent);
    });
  });

  test({ needs: "net" }, `\`signal\` may be asked for after ${what}`, async () => {
    await withRawPeers(async (near, far) => {
      await far.send([TEXT, "unread"]);
      await end(near, far);
      far[Symbol.dispose]();
      await within(near.closed, "the end");
      const sent = await assertRejects(() => near.send("late"), ConnectionClosed);
      assert(near.signal.aborted && near.signal.reason === sent, "The reasons are not the same.");
    });
  });
}

test({ needs: "net" }, "what has arrived is read after `signal` has aborted", async () => {
  await withBothEnds(async (near, far) => {
    const { signal } = near;
    far.send("last");
    far.close();
    await near.closed;
    assert(signal.aborted);
    assertEquals((await loop(near)).read, ["last"]);
  });
});
