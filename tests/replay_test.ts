// Nothing is lost without being told: followers whose connections are cut at any byte hear each
// message once and in order, and are told exactly what is gone.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { delay } from "@std/async";
import { ConnectionFailed, follow, type Followed, Rooms, serve } from "websockets";
import { startProxy } from "./proxy.ts";
import { chance, check, inRooms, numbered, withoutPauses } from "./followers.ts";
import { eventually, Inbox, startServer, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { serveBare } from "./peers.ts";

/** A server with one room, whose clients are heard in it. */
function startRoom(options: { maxHistory?: number; maxWaiting?: number; port?: number } = {}) {
  const rooms = new Rooms(options);
  const server = rooms.join(serve(inRooms(rooms), { port: 0, log() {}, ...options }));
  const stop = async () => {
    await within(server.shutdown(), "the server to stop");
    await rooms.close();
    assertEquals(server.waiting, 0);
  };
  const { port } = server.addr;
  return { rooms, server, port, url: `ws://localhost:${port}/`, [Symbol.asyncDispose]: stop };
}

test({ needs: "net" }, "followers that are cut at any byte lose nothing", async () => {
  const below = chance(1);
  await using room = startRoom();
  await using proxy = startProxy(room.port, () => below(4_000));
  await withoutPauses(async () => {
    const last = 499;
    // With a position from the start, one that is cut before it hears its first is told all as well.
    const after = await room.rooms.push("", "the start");
    const followers = Array.from({ length: 10 }, () => follow(proxy.url, { after }));
    const checks = followers.map((each) => check(each, last));
    await eventually(() => assert(room.rooms.count("") > 0));
    for (let number = 0; number <= last; number++) {
      await room.rooms.push("", numbered(number, below(300)));
      if (below(10) === 0) await delay(0);
    }
    for (const heard of await within(Promise.all(checks), "the last message")) {
      assertEquals([heard.messages, heard.gaps], [last + 1, 0]);
    }
  });
  assert(proxy.cuts > 100);
});

test(
  { needs: "net" },
  "followers of a room that keeps little are told exactly what is gone",
  async () => {
    const below = chance(2);
    await using room = startRoom({ maxHistory: 10_000 });
    await using proxy = startProxy(room.port, () => below(6_000));
    await withoutPauses(async () => {
      const last = 999;
      const after = await room.rooms.push("", "the start");
      const followers = Array.from({ length: 20 }, () => follow(proxy.url, { after }));
      const checks = followers.map((each) => check(each, last));
      await eventually(() => assert(room.rooms.count("") > 0));
      for (let number = 0; number <= last; number++) {
        await room.rooms.push("", numbered(number, below(300)));
        if (below(30) === 0) await delay(0);
      }
      let lost = 0;
      for (const heard of await within(Promise.all(checks), "the last message")) {
        assertEquals([heard.messages + heard.lost, heard.unknown], [last + 1, 0]);
        lost += heard.lost;
      }
      assert(lost > 0);
    });
  },
);

test(
  { needs: "net" },
  "a follower that is dropped because it reads too little comes back",
  async () => {
    await using room = startRoom({ maxWaiting: 4_000_000, maxHistory: 2_000_000 });
    await using slow = startProxy(room.port, () => Infinity);
    const last = 399;
    const after = await room.rooms.push("", "the start");
    const [one, other] = [follow(slow.url, { after }), follow(room.url, { after })];
    const heard = new Inbox<number>();
    const checks = [check(one, last), check(other, last, (number) => heard.put(number))];
    await eventually(() => assertEquals(room.rooms.count(""), 2));
    slow.hold();
    const dropped = [...room.server.clients].map(({ closed }) => closed);
    for (let number = 0; number <= last; number++) {
      await room.rooms.push("", numbered(number, 100_000));
      await heard.next();
    }
    assertEquals((await within(Promise.race(dropped), "the drop")).code, 1008);
    slow.release();
    const [late, prompt] = await within(Promise.all(checks), "the last message");
    assertEquals(late.messages + late.lost, last + 1);
    assert(late.lost > 0);
    assertEquals(prompt, { messages: last + 1, lost: 0, gaps: 0, unknown: 0 });
  },
);

test(
  { needs: "net" },
  "after a restart of the server, a follower is told that messages may be lost",
  async () => {
    const first = startRoom();
    await using proxy = startProxy(first.port, () => Infinity);
    await withoutPauses(async () => {
      const checked = check(follow(proxy.url), 9);
      await eventually(() => assertEquals(first.rooms.count(""), 1));
      for (let number = 0; number < 5; number++) await first.rooms.push("", `${number}`);
      await first[Symbol.asyncDispose]();
      await using second = startRoom();
      proxy.port = second.port;
      // Nothing is kept before somebody follows the new server.
      for (let number = 7; number <= 9; number++) await second.rooms.push("", `${number}`);
      await eventually(() => assertEquals(second.rooms.count(""), 1));
      for (let number = 7; number <= 9; number++) await second.rooms.push("", `${number}`);
      assertEquals(await within(checked, "the last message"), {
        messages: 5 + 3,
        lost: 0,
        gaps: 1,
        unknown: 1,
      });
    });
  },
);

test(
  { needs: "net" },
  "what is sent is heard back, and a follower without a connection can't send",
  async () => {
    await using room = startRoom();
    const follower = follow(room.url);
    await assertRejects(() => follower.send("too early"), Error, "There is no connection now.");
    follower.send("nobody awaits this");
    const events = new Inbox<Followed>();
    const loop = (async () => {
      for await (const event of follower) {
        events.put(event);
        if (event.message === "the end") break;
      }
    })();
    await eventually(() => follower.send("hello"));
    const { message, lost, position } = await events.next();
    assertEquals([message, lost], ["hello", 0]);
    await room.rooms.push("", "the end");
    await loop;
    await assertRejects(() => follower.send("too late"), Error, "There is no connection now.");
    // A program that starts again goes on from the position that it has stored.
    for await (const event of follow(room.url, { after: position })) {
      assertEquals([event.message, event.lost], ["the end", 0]);
      break;
    }
  },
);

test(
  { needs: "net" },
  "a signal ends the loop with its reason, and a query stays as it is",
  async () => {
    await using room = startRoom();
    const giveUp = new AbortController();
    const follower = follow(() => new URL(`${room.url}?a=b%20c`), { signal: giveUp.signal });
    await room.rooms.push("", "1");
    const loop = check(follower, 9);
    await eventually(() => assertEquals(room.rooms.count(""), 1));
    giveUp.abort(new Error("enough"));
    await assertRejects(() => within(loop, "the reason"), Error, "enough");
  },
);

test(
  { needs: "net" },
  "a server that tells no positions is an error, whatever it says",
  async () => {
    const message = "The server tells no positions";
    const firsts = ["hello", "", "e.1\n", "e.1 lost x", "e.1 ", "e.", "lost", new ArrayBuffer(3)];
    for (const first of firsts) {
      await using server = startServer((websocket) =>
        websocket.send(first).then(() => websocket.closed)
      );
      await assertRejects(() => check(follow(server.url), 0), Error, message);
    }
    for (const second of ["hello", "e.2", new TextEncoder().encode("e.2 x\n")]) {
      await using server = startServer(async (websocket) => {
        await websocket.send("e.1");
        await websocket.send(second);
        await websocket.closed;
      });
      await assertRejects(() => check(follow(server.url), 0), Error, message);
    }
    await using silent = startServer((websocket) => websocket.closed);
    await assertRejects(() => check(follow(silent.url, { timeout: 200 }), 0), Error, message);
    await using refusing = serveBare(() => new Response("no", { status: 400 }));
    await assertRejects(() => check(follow(refusing.url), 0), ConnectionFailed);
    await assertRejects(() => check(follow("no URL"), 0), DOMException);
  },
);
