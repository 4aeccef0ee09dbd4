// Rooms in a server of one's own: who hears what, what is kept for those that come back, and when it
// ends. Two servers are joined by a relay that is a list in memory.

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { delay } from "@std/async";
import {
  connect,
  type Connection,
  ConnectionFailed,
  type Message,
  type RoomRelay,
  Rooms,
  type RoomsOptions,
  serve,
  type ServeOptions,
  type Server,
} from "websockets";
import { inRooms } from "./followers.ts";
import { eventually, within } from "./helpers.ts";
import { test } from "./needs.ts";

interface Started extends AsyncDisposable {
  rooms: Rooms;
  server: Server;
  url: string;
}

/** A server whose clients are in the room that their URL names. */
function start(options: RoomsOptions & ServeOptions = {}, relay?: RoomRelay): Started {
  const rooms = new Rooms(options);
  rooms.relay = relay;
  const server = rooms.join(serve(inRooms(rooms), rooms.limit({ port: 0, log() {}, ...options })));
  return {
    rooms,
    server,
    url: `ws://localhost:${server.addr.port}/`,
    async [Symbol.asyncDispose]() {
      await within(server.shutdown(), "the server to stop");
      await rooms.close();
      assertEquals(server.waiting, 0);
    },
  };
}

/** A client that has its first message: the position from which it goes on, and what is lost. */
async function open(url: string, query = "?after="): Promise<[Connection, string]> {
  const websocket = await connect(url + query);
  return [websocket, String(await websocket.receive()).replace(/ missed \d+$/, "")];
}

/** The next messages of a client, as texts. */
async function take(websocket: Connection, count: number): Promise<string[]> {
  const texts: string[] = [];
  while (texts.length < count) texts.push(text(await websocket.receive()));
  return texts;
}

function text(message: Message): string {
  return typeof message === "string" ? message : new TextDecoder().decode(message);
}

/** The next position. */
function next(position: string, by = 1): string {
  return position.replace(/\d+$/, (number) => `${Number(number) + by}`);
}

test(
  { needs: "net" },
  "a follower hears positions, and all others the messages alone",
  async () => {
    await using server = start();
    const [follower, position] = await open(server.url);
    assertMatch(position, /^\w{13,23}\.0$/);
    await using plain = await connect(server.url);
    await plain.send("hello");
    await plain.send(new Uint8Array([0, 10, 255]));
    assertEquals(await follower.receive(), `${next(position)}\nhello`);
    const head = new TextEncoder().encode(`${next(position, 2)}\n`);
    assertEquals(await follower.receive(), new Uint8Array([...head, 0, 10, 255]).buffer);
    assertEquals(await plain.receive(), "hello");
    assertEquals(await plain.receive(), new Uint8Array([0, 10, 255]).buffer);
    await follower.close();
  },
);

test(
  { needs: "net" },
  "a follower that comes back hears what it has missed, then what is new",
  async () => {
    await using server = start();
    const [first, position] = await open(server.url);
    await server.rooms.push("", "1");
    assertEquals(await take(first, 1), [`${next(position)}\n1`]);
    await first.close();
    for (const message of ["2", new TextEncoder().encode("3").buffer]) {
      await server.rooms.push(
        "",
        message,
      );
    }
    const [second, from] = await open(server.url, `?after=${next(position)}`);
    await server.rooms.push("", "4");
    assertEquals(from, next(position));
    const missed = [2, 3, 4].map((number) => `${next(position, number)}\n${number}`);
    assertEquals(await take(second, 3), missed);
    await second.close();
  },
);

test({ needs: "net" }, "one that has heard nothing yet has a position, too", async () => {
  await using server = start();
  const [first, position] = await open(server.url);
  await first.close();
  await server.rooms.push("", "missed");
  const [second, from] = await open(server.url, `?after=${position}`);
  assertEquals([from, ...await take(second, 1)], [position, `${next(position)}\nmissed`]);
  await second.close();
});

test(
  { needs: "net" },
  "what is gone is told exactly, and a position of another epoch as lost",
  async () => {
    await using server = start({ maxHistory: 2 * 430 });
    const [first, position] = await open(server.url);
    await first.close();
    for (const message of ["1", "2", "3", "4", "5"]) await server.rooms.push("", message);
    const kept = [4, 5].map((number) => `${next(position, number)}\n${number}`);
    for (const [after, told] of [[position, " lost 3"], ["other.3", " lost"], ["x", " lost"]]) {
      const [follower, from] = await open(server.url, `?after=${after}`);
      assertEquals(from, next(position, 3) + told);
      assertEquals(await take(follower, 2), kept);
      await follower.close();
      // The position that was told is one to come back with.
      const [again, same] = await open(server.url, `?after=${from.split(" ")[0]}`);
      assertEquals([same, ...await take(again, 2)], [next(position, 3), ...kept]);
      await again.close();
    }
  },
);

test({ needs: "net" }, "each room has positions of its own", async () => {
  await using server = start();
  const [red, first] = await open(server.url, "?room=red&after=");
  await server.rooms.push("red", "for red");
  assertEquals(await take(red, 1), [`${next(first)}\nfor red`]);
  const [blue, lost] = await open(server.url, `?room=blue&after=${next(first)}`);
  assertMatch(lost, /^\w+\.0 lost$/);
  await red.close();
  await blue.close();
});

test(
  { needs: "net" },
  "a push tells its position, and nothing is kept before somebody follows",
  async () => {
    await using server = start();
    await using plain = await connect(server.url);
    await plain.send("1");
    await plain.receive();
    const position = await server.rooms.push("", "2") ?? "";
    await server.rooms.push("", "x".repeat(100_000));
    await take(plain, 2);
    await eventually(() => assertEquals(server.server.waiting, 0));
    const [follower, from] = await open(server.url, `?after=${position}`);
    assertEquals(from, `${next(position)} lost 1`);
    await server.rooms.push("", "x".repeat(100_000));
    assert(server.server.waiting > 100_000, "What is kept does not count.");
    await follower.close();
  },
);

test(
  { needs: "net" },
  "a room that nobody has followed or pushed to is forgotten at once",
  async () => {
    await using server = start();
    const plain = await connect(server.url);
    await plain.send("hello");
    await plain.receive();
    assertEquals(server.rooms.size, 1);
    await plain.close();
    await eventually(() => assertEquals(server.rooms.size, 0));
  },
);

test(
  { needs: "net" },
  "what an empty room keeps ends after a while, and the next epoch is another",
  async () => {
    await using server = start({ historyTimeout: 0.05 });
    const [first, position] = await open(server.url);
    await server.rooms.push("", "1");
    await first.close();
    await eventually(() => assertEquals([server.rooms.size, server.server.waiting], [0, 0]));
    const [second, from] = await open(server.url, `?after=${next(position)}`);
    assert(from.endsWith(".0 lost") && !from.startsWith(position.split(".")[0] + "."), from);
    // Who comes back in time keeps it.
    await server.rooms.push("", "1");
    await delay(100);
    const [third, same] = await open(server.url, `?after=${from.split(" ")[0]}`);
    assertEquals([same, ...await take(third, 1)], [from.split(" ")[0], `${next(same)}\n1`]);
    await second.close();
    await third.close();
  },
);

test(
  { needs: "net" },
  "many rooms that were pushed to keep no more than so many positions",
  async () => {
    await using server = start();
    const [follower, position] = await open(server.url, "?room=first&after=");
    for (let number = 0; number < 10_100; number++) await server.rooms.push(`${number}`, "x");
    assertEquals(server.rooms.size, 10_001);
    await follower.close();
    await eventually(() => assertEquals(server.rooms.count("first"), 0));
    const [again, from] = await open(server.url, `?room=first&after=${position}`);
    assertEquals(from, position);
    await again.close();
  },
);

test(
  { needs: "net" },
  "what is kept gives way before a client has to go, and is told exactly",
  async () => {
    await using server = start({ maxWaiting: 1_000_000, maxHistory: 600_000 });
    const [red, first] = await open(server.url, "?room=red&after=");
    const [blue, second] = await open(server.url, "?room=blue&after=");
    await red.close();
    for (const name of ["red", "blue"]) {
      for (let number = 0; number < 4; number++) {
        await server.rooms.push(name, "x".repeat(100_000));
        if (name === "blue") await blue.receive();
      }
    }
    assert(server.server.waiting > 800_000, "What is kept does not count.");
    server.server.countWaiting(300_000);
    assert(!server.server.isFull, "The server is full.");
    assert(server.server.waiting > 700_000, "More was freed than had to be.");
    const [again, lost] = await open(server.url, `?room=red&after=${next(first)}`);
    assertEquals(lost, `${next(first, 4)} lost 3`);
    const [back, from] = await open(server.url, `?room=blue&after=${next(second, 3)}`);
    assertEquals(from, next(second, 3));
    server.server.countWaiting(-300_000);
    for (const websocket of [again, back, blue]) await websocket.close();
  },
);

test(
  { needs: "net" },
  "what a client that leaves makes others say comes after, for all",
  async () => {
    await using server = start();
    const [first] = await open(server.url);
    const [second] = await open(server.url);
    const [dropped] = server.server.clients;
    dropped.signal.addEventListener("abort", () => server.rooms.say("", "somebody left"));
    const { send } = dropped;
    dropped.send = (message) => {
      dropped.send = send;
      dropped.close(1008);
      return send.call(dropped, message);
    };
    await server.rooms.push("", "hello");
    const texts = (await take(second, 2)).map((each) => each.split("\n")[1]);
    assertEquals(texts, ["hello", "somebody left"]);
    await first.close();
    await second.close();
  },
);

test({ needs: "net" }, "rooms that no server has joined replay nothing, and say so", async () => {
  const rooms = new Rooms();
  const handler = (websocket: Connection, request: Request) => rooms.enter("", websocket, request);
  const given = { port: 0, log() {}, processRequest: () => undefined };
  for (const options of [given, rooms.limit(given), rooms.limit({ port: 0, log() {} })]) {
    await using server = serve(handler, options);
    const url = `ws://localhost:${server.addr.port}/?after=`;
    if (options !== given) {
      const failure = await assertRejects(() => connect(url), ConnectionFailed);
      assertEquals([failure.status, failure.isPassing], [400, false]);
    } else {
      const websocket = await connect(url);
      assertEquals((await websocket.closed).code, 1013);
    }
  }
  assertEquals(await rooms.push("", "hello"), undefined);
  await rooms.close();
});

test({ needs: "net" }, "wrong options are told", () => {
  for (const maxHistory of [0, -1, NaN, 1.5, Infinity]) {
    assertThrows(() => new Rooms({ maxHistory }), RangeError, "`maxHistory` is a whole number");
  }
  for (const historyTimeout of [-1, NaN, Infinity, 24 * 24 * 60 * 60 + 1]) {
    assertThrows(() => new Rooms({ historyTimeout }), RangeError, "`historyTimeout` is a number");
  }
});

// A relay that gives all servers one order, as a stream does.

/** What all servers have said: each message has its place in the list as its number. */
class Stream {
  readonly messages: { room: string; message: Message }[] = [];
  readonly readers = new Set<StreamRelay>();
  epoch = "stream";
}

class StreamRelay implements RoomRelay {
  readonly rooms = new Map<string, Promise<void>>();
  readonly #loaded = new Set<string>();
  readonly #stream: Stream;
  target: Rooms | undefined;
  isAway = false;

  constructor(stream: Stream) {
    this.#stream = stream;
    stream.readers.add(this);
  }

  async enter(room: string) {
    await delay(1);
    this.rooms.set(room, Promise.resolve());
  }

  leave(room: string) {
    this.rooms.delete(room);
    this.#loaded.delete(room);
  }

  async load(room: string) {
    await delay(1);
    if (this.isAway || this.#loaded.has(room)) return;
    this.rooms.set(room, Promise.resolve());
    this.#loaded.add(room);
    this.reload(room);
  }

  reload(room: string) {
    const { epoch } = this.#stream;
    const numbered = this.#stream.messages.entries();
    const messages = numbered.filter(([, each]) => each.room === room)
      .map(([index, { message }]): [number, Message] => [index + 1, message]);
    this.target?.load(room, { epoch, start: 0, messages });
  }

  async publish(room: string, message: Message) {
    await delay(1);
    const number = this.#stream.messages.push({ room, message });
    for (const { rooms, target } of this.#stream.readers) {
      if (rooms.has(room)) target?.receive(room, message, number);
    }
    return `${this.#stream.epoch}.${number}`;
  }

  limit(options: ServeOptions) {
    return options;
  }

  join() {}

  close() {
    return Promise.resolve();
  }
}

Deno.test("a push to a relay that keeps one order has a position, also without a server", async () => {
  const rooms = new Rooms();
  rooms.relay = new StreamRelay(new Stream());
  assertEquals(await rooms.push("", "hello"), "stream.1");
});

/** A server that is joined to others by a stream. */
function startJoined(stream: Stream) {
  const relay = new StreamRelay(stream);
  const started = start({ historyTimeout: 0.05 }, relay);
  relay.target = started.rooms;
  return { ...started, relay, [Symbol.asyncDispose]: () => started[Symbol.asyncDispose]() };
}

test(
  { needs: "net" },
  "with one order for all servers, a position holds on each of them",
  async () => {
    const stream = new Stream();
    await using here = startJoined(stream);
    await using there = startJoined(stream);
    const [first, position] = await open(here.url);
    await using plain = await connect(there.url);
    await plain.send("1");
    assertEquals(await take(first, 1), ["stream.1\n1"]);
    assertEquals(await take(plain, 1), ["1"]);
    await first.close();
    assertEquals(await there.rooms.push("other", "2"), "stream.2");
    assertEquals(await here.rooms.push("", "3"), "stream.3");
    const [second, from] = await open(there.url, "?after=stream.1");
    assertEquals([position, from], ["stream.0", "stream.1"]);
    await here.rooms.push("", "4");
    assertEquals(await take(second, 2), ["stream.3\n3", "stream.4\n4"]);
    assertEquals(await take(plain, 2), ["3", "4"]);
    await second.close();
  },
);

test(
  { needs: "net" },
  "what a relay loads anew sends the followers back, and tells another epoch",
  async () => {
    const stream = new Stream();
    await using here = startJoined(stream);
    const [first] = await open(here.url);
    await using plain = await connect(here.url);
    await here.rooms.push("", "1");
    assertEquals(await take(first, 1), ["stream.1\n1"]);
    stream.epoch = "other";
    here.relay.reload("");
    assertEquals((await first.closed).code, 1012);
    const [second, from] = await open(here.url, "?after=stream.1");
    assertEquals([from, ...await take(second, 1)], ["other.0 lost", "other.1\n1"]);
    assertEquals(await take(plain, 1), ["1"]);
    await second.close();
  },
);

test(
  { needs: "net" },
  "where a relay has nothing to replay, a follower is told to try again",
  async () => {
    await using here = startJoined(new Stream());
    here.relay.isAway = true;
    const follower = await connect(`${here.url}?after=`);
    assertEquals((await follower.closed).code, 1013);
    await eventually(() => assertEquals(here.rooms.size, 0));
  },
);

test({ needs: "net" }, "a room is heard as long as it is remembered, and then left", async () => {
  await using here = startJoined(new Stream());
  const [first] = await open(here.url);
  await first.close();
  assert(here.relay.rooms.has(""), "The room was left at once.");
  await eventually(() => assertEquals([here.relay.rooms.size, here.rooms.size], [0, 0]));
});
