// What the words of a connection promise, at both of its ends: `for await`, `receive`, `send`,
// `close`, `closed`, `remoteAddress` and `await using`.

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import {
  connect,
  type Connection,
  ConnectionClosed,
  type Handler,
  type Message,
  serve,
} from "websockets";
import { withBothEnds } from "./ends.ts";
import { Inbox, startServer, TestClient, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { frame, handshake, RawClient } from "./raw.ts";

const TEXT = 1;
/** More than the kernel and the runtime take for a client that does not read. */
const LARGE = new Uint8Array(16_000_000);

/** Answers everything. */
const echo: Handler = async (websocket) => {
  for await (const message of websocket) websocket.send(message);
};

// Reading.

test(
  { needs: "net" },
  "both ends read texts and bytes in order, with `for await` and with `receive`",
  async () => {
    await withBothEnds(async (near, far) => {
      const sent: Message[] = ["one", "", new Uint8Array([0, 255]).buffer, "你好", "five"];
      for (const message of sent) far.send(message);
      assertEquals([await near.receive(), await near.receive()], sent.slice(0, 2));
      const read: Message[] = [];
      for await (const message of near) {
        read.push(message);
        // A loop may be left, and reading goes on after it.
        if (read.length === 2) break;
      }
      assertEquals([...read, await near.receive()], sent.slice(2));
      assert(read[0] instanceof ArrayBuffer);
    });
  },
);

test(
  { needs: "net" },
  "the last message before the close is read, and `receive` throws how it was closed",
  async () => {
    await withBothEnds(async (near, far) => {
      far.send("the last");
      const closed = far.close(4001, "because");
      await near.closed;
      assertEquals(await near.receive(), "the last");
      for (let count = 0; count < 2; count++) {
        const error = await assertRejects(() => near.receive(), ConnectionClosed);
        assertEquals([error.code, error.reason, error.name], [4001, "because", "ConnectionClosed"]);
        assertMatch(error.message, /^The connection is closed: 4001 .*because$/);
      }
      assertEquals(await closed, { code: 4001, reason: "because" });
    });
  },
);

test(
  { needs: "net" },
  "`receive` throws as soon as the connection is closed or breaks",
  async () => {
    const errors = new Inbox<unknown>();
    await using server = startServer(async (websocket) => {
      await websocket.receive().catch((error) => errors.put(error));
    });
    const leave: [(client: RawClient) => unknown, number, string][] = [
      [(client) => client.write(frame(8, new Uint8Array([0x0f, 0xa1, 0x78]))), 4001, "x"],
      [(client) => client.connection.close(), 1006, ""],
    ];
    for (const [leaves, code, reason] of leave) {
      using client = await RawClient.upgraded(server.port);
      await leaves(client);
      const error = await errors.next();
      assert(error instanceof ConnectionClosed);
      assertEquals([error.code, error.reason], [code, reason]);
    }
  },
);

test({ needs: "net" }, "a `ConnectionClosed` that gets out of a handler is no error", async () => {
  const left = new Inbox<void>();
  await using server = startServer(async (websocket) => {
    try {
      while (true) websocket.send(await websocket.receive());
    } finally {
      left.put();
    }
  });
  await using client = await TestClient.open(server.url);
  client.send("hello");
  assertEquals(await client.next(), "hello");
  assertEquals((await client.close()).code, 1000);
  await left.next();
  // What is logged of a handler is logged before its client is forgotten.
  await server[Symbol.asyncDispose]();
  assertEquals(server.log.all, []);
});

test(
  { needs: "net" },
  "a second `receive` at the same time is an error, and costs no message",
  async () => {
    await withBothEnds(async (near, far) => {
      const first = near.receive();
      const second = () => within(near.receive(), "the error");
      const error = await assertRejects(second, Error, "Another call waits");
      assert(!(error instanceof ConnectionClosed));
      far.send("1");
      far.send("2");
      assertEquals([await first, await near.receive()], ["1", "2"]);
    });
  },
);

// Sending.

test({ needs: "net" }, "`send` throws a TypeError for anything but text and bytes", async () => {
  const wrong = [undefined, null, 5, 5n, true, {}, ["x"], Symbol("s"), new Blob(["x"]), () => {}];
  const isWrong = (websocket: Connection) => {
    for (const message of wrong) {
      const error = assertThrows(() => websocket.send(message as never), TypeError);
      assertMatch(error.message, /^A message is a string or bytes, not \[object \w+\]: .*\.$/);
    }
  };
  await withBothEnds(async (near, far) => {
    isWrong(near);
    near.send("after");
    assertEquals(await far.receive(), "after");
    await near.close();
    // It is a mistake just the same when nobody is there.
    isWrong(near);
  });
});

test({ needs: "net" }, "bytes are sent as a buffer or as any view of it", async () => {
  await withBothEnds(async (near, far) => {
    const { buffer } = new Uint8Array([1, 2, 3, 4]);
    const views = [buffer, new Uint8Array(buffer, 1, 2), new DataView(buffer, 2)];
    // This type, which encoders of msgpack and protobuf return, may stand for shared memory too.
    const encoded: Uint8Array = new Uint8Array(buffer, 3);
    for (const view of [...views, new Uint16Array(buffer), encoded]) near.send(view);
    const received = [];
    for (let count = 0; count < 5; count++) {
      received.push([...new Uint8Array(await far.receive() as ArrayBuffer)]);
    }
    assertEquals(received, [[1, 2, 3, 4], [2, 3], [3, 4], [1, 2, 3, 4], [4]]);
  });
});

test(
  { needs: "net" },
  "`send` to a client that has left harms nobody, awaited or not, in a timer or not",
  async () => {
    const left = new Inbox<void>();
    await using server = startServer(async (websocket, request) => {
      if (new URL(request.url).pathname === "/stays") return await echo(websocket, request);
      const ticks = new Inbox<void>();
      const timer = setInterval(() => {
        websocket.send("tick");
        ticks.put();
      }, 1);
      try {
        for await (const _ of websocket);
        for (let count = 0; count < 3; count++) await ticks.next();
        websocket.send("hello?");
        await websocket.send(LARGE);
      } finally {
        clearInterval(timer);
        left.put();
      }
      await websocket.send("hello?");
    });
    await using stays = await TestClient.open(`${server.url}/stays`);
    using breaks = await RawClient.upgraded(server.port);
    const leaves = await TestClient.open(server.url);
    breaks.connection.close();
    await leaves.close();
    for (let count = 0; count < 2; count++) await left.next();
    stays.send("hello");
    assertEquals(await stays.next(), "hello");
    assertEquals(server.log.all, []);
  },
);

test(
  { needs: "net" },
  "a client that leaves while the handler awaits `send` ends the handler at once",
  async () => {
    const events = new Inbox<string>();
    // The server itself gives no client up.
    await using server = startServer(async (websocket) => {
      events.put("sends");
      await websocket.send(LARGE);
      await websocket.send("after it").catch(({ code }) => events.put(`ends with ${code}`));
    }, { idleTimeout: 0 });
    using client = await RawClient.upgraded(server.port);
    assertEquals(await events.next(), "sends");
    // It waits, because the client does not read.
    await delay(50);
    assertEquals(events.all.length, 1);
    client.connection.close();
    assertEquals(await events.next(), "ends with 1006");
  },
);

test({ needs: "net" }, "a `send` that is awaited goes on when the client reads", async () => {
  const events = new Inbox<string>();
  await using server = startServer(async (websocket) => {
    await websocket.send(LARGE);
    await websocket.send("after it");
    events.put("goes on");
    await websocket.receive();
  });
  using client = await RawClient.upgraded(server.port);
  await delay(50);
  assertEquals(events.all, []);
  for (let size = 0; size < LARGE.length;) size += (await client.read()).length;
  assertEquals(await events.next(), "goes on");
});

// Closing.

test({ needs: "net" }, "`closed` tells both ends how the connection was closed", async () => {
  const closed = new Inbox<[number, string]>();
  const handler: Handler = async (websocket) => {
    try {
      for await (const message of websocket) {
        if (message === "reason") websocket.close(4001, "because");
        if (message === "nothing") websocket.close();
        if (message === "error") throw new Error("broken");
      }
    } finally {
      websocket.closed.then(({ code, reason }) => closed.put([code, reason]));
    }
  };
  const server = startServer(handler, { maxMessage: 10 });
  const says = (text: string) => (client: Connection) => client.send(text);
  const goes = (code?: number, reason?: string) => (client: Connection) =>
    client.close(code, reason);
  const cases: [(client: Connection) => unknown, number, string][] = [
    [goes(), 1000, ""],
    [goes(3001, "bye"), 3001, "bye"],
    [says("reason"), 4001, "because"],
    [says("nothing"), 1000, ""],
    [says("error"), 1011, "The server failed to handle this."],
    [says("more than ten"), 1009, "Larger than 10 bytes."],
  ];
  for (const [leave, code, reason] of cases) {
    const client = await connect(server.url);
    leave(client);
    assertEquals(await within(client.closed, "the close"), { code, reason });
    assertEquals(await closed.next(), [code, reason]);
  }

  // These say nothing: one sends an empty Close frame, one goes, one has sent what is not read, and
  // one breaks the protocol.
  const silent = await Promise.all(
    Array.from({ length: 4 }, () => RawClient.upgraded(server.port)),
  );
  await silent[0].write(frame(8));
  assertEquals(await closed.next(), [1005, ""]);
  silent[1].connection.close();
  await silent[2].write(frame(TEXT, "x"));
  silent[2].connection.close();
  await silent[3].write(frame(TEXT, new Uint8Array([0xff])));
  for (let count = 0; count < 3; count++) assertEquals(await closed.next(), [1006, ""]);
  silent[0].connection.close();
  silent[3].connection.close();

  const client = await connect(server.url);
  await server[Symbol.asyncDispose]();
  const stopped = { code: 1001, reason: "The server is shutting down." };
  assertEquals(await within(client.closed, "the close"), stopped);
  assertEquals(await closed.next(), [1001, stopped.reason]);
  assertEquals(closed.all.length, cases.length + 4 + 1);
});

test(
  { needs: "net" },
  "a server does not read from a client that it closes, and a client reads on",
  async () => {
    const read = new Inbox<Message>();
    await using server = startServer(async (websocket) => {
      for await (const message of websocket) {
        read.put(message);
        if (message !== "go") continue;
        for (let count = 0; count < 3; count++) websocket.send(`${count}`);
        websocket.close();
      }
    });
    using client = await RawClient.upgraded(server.port);
    const frames = [frame(TEXT, "go"), frame(TEXT, "not read")];
    await client.write(new Uint8Array(frames.flatMap((each) => [...each])));
    assertEquals((await client.readClose()).code, 1000);
    await client.write(frame(8, new Uint8Array([0x03, 0xe8])));

    const websocket = await connect(server.url);
    websocket.send("go");
    const closed = websocket.close();
    const answers = [];
    for await (const message of websocket) answers.push(message);
    assertEquals(answers, ["0", "1", "2"]);
    await within(closed, "the close");
    assertEquals(read.all, ["go", "go"]);
  },
);

test({ needs: "net" }, "`close` may be called again, and the first one counts", async () => {
  await withBothEnds(async (near, far) => {
    const closes = [near.close(4001, "first"), near.close(4002, "second"), near.close()];
    near.send("after the close");
    const first = { code: 4001, reason: "first" };
    assertEquals(await Promise.all([...closes, near.closed, far.closed]), Array(5).fill(first));
    await assertRejects(() => far.receive(), ConnectionClosed, "first");
  });
});

test({ needs: "net" }, "`close` takes any reason, and cuts it to 123 bytes", async () => {
  const reasons = new Map<unknown, string>([
    [undefined, ""],
    [null, "null"],
    [5, "5"],
    ["\ud800", "\ufffd"],
    ["x".repeat(123), "x".repeat(123)],
    ["é".repeat(62), "é".repeat(61)],
    [{ toString: () => "text" }, "text"],
  ]);
  const connected = new Inbox<Connection>();
  await using server = startServer(async (websocket) => {
    connected.put(websocket);
    await websocket.closed;
  });
  for (const [reason, expected] of reasons) {
    // The larger message still waits when the connection is closed.
    for (const bytes of [0, LARGE.length]) {
      await using client = await TestClient.open(server.url);
      const websocket = await connected.next();
      websocket.send(LARGE.subarray(0, bytes));
      websocket.close(4000, reason as string);
      const event = await within(client.closed, "the close");
      assertEquals([event.code, event.reason, event.wasClean], [4000, expected, true]);
      assertEquals((client.messages.all[0] as ArrayBuffer).byteLength, bytes);
    }
  }
});

test({ needs: "net" }, "`close` throws a RangeError for a code that may not be sent", async () => {
  const numbers = [0, -1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535, 66_536];
  const wrong = [...numbers, NaN, Infinity, 1000.5, 1.5, 4000n, "1000", null, {}];
  await withBothEnds(async (near, far) => {
    for (const code of wrong) {
      const error = assertThrows(() => near.close(code as never), RangeError);
      assertMatch(
        error.message,
        /^The close code .* may not be sent: use 1000, or 3000 to 4999\.$/,
      );
    }
    near.send("It is still open.");
    assertEquals(await far.receive(), "It is still open.");
  });
});

test({ needs: "net" }, "every other code arrives as it was sent", async () => {
  await using server = startServer((websocket, request) =>
    void websocket.close(Number(new URL(request.url).pathname.slice(1)))
  );
  const named = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014];
  for (const code of [...named, 3000, 4999]) {
    // Deno's client does not know all of them.
    using client = await RawClient.open(server.port, handshake({}, `GET /${code} HTTP/1.1`));
    await client.head();
    assertEquals((await client.readClose()).code, code);
  }
});

test({ needs: "net" }, "`await using` closes with 1000 at the end of its block", async () => {
  const closed = new Inbox<number>();
  await using server = startServer(async (websocket) => {
    closed.put((await websocket.closed).code);
  });
  let isClosed = false;
  {
    await using websocket = await connect(server.url);
    websocket.closed.then(() => isClosed = true);
  }
  assert(isClosed, "It did not wait until the server had closed.");
  assertEquals(await closed.next(), 1000);
});

// Who is there.

test(
  { needs: "net" },
  "`remoteAddress` is the client's address, or the server's host",
  async () => {
    const handler: Handler = async (websocket) => {
      await websocket.send(websocket.remoteAddress);
    };
    await using local = serve(handler, { port: 0, hostname: "127.0.0.1" });
    const url = `ws://127.0.0.1:${local.addr.port}/`;
    await using websocket = await connect(url);
    assertEquals([websocket.remoteAddress, await websocket.receive()], ["127.0.0.1", "127.0.0.1"]);
    await using server = startServer(handler);
    await using named = await connect(server.url);
    assertEquals(named.remoteAddress, "localhost");
    assertMatch(`${await named.receive()}`, /^(127\.0\.0\.1|::1)$/);
  },
);
