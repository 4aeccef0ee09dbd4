// `processRequest` as several functions, of which the first answer counts. What it sees, and how long
// it may take, is tested with `serve`.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { delay } from "@std/async";
import { accept, type ProcessRequest, type RequestInfo } from "websockets";
import { startServer } from "./helpers.ts";
import { test } from "./needs.ts";
import { ask, handshake } from "./raw.ts";

/** What a function answers, by its name; `undefined` lets the request go on. */
const ANSWERS: Record<string, () => unknown> = {
  none: () => undefined,
  answer: () => new Response("answer", { status: 401 }),
  "late none": () => delay(1),
  "late answer": () => delay(1).then(() => new Response("late answer", { status: 402 })),
  "thenable none": () => ({ then: (resolve: () => void) => resolve() }),
  "thenable answer": () => ({
    then: (resolve: (answer: Response) => void) =>
      resolve(new Response("thenable answer", { status: 403 })),
  }),
  null: () => null,
  true: () => true,
  "a number": () => 401,
  "a late text": () => delay(1).then(() => "text"),
};

/** A server with functions of these names. It tells which were asked, and when each was done. */
function startAsking(...names: string[]) {
  const events: string[] = [];
  const processRequest = names.map((name): ProcessRequest => () => {
    events.push(name);
    const answer = ANSWERS[name]();
    if (answer instanceof Promise) answer.then(() => events.push(`${name} is there`));
    // What the types forbid, JavaScript does.
    return answer as undefined;
  });
  return Object.assign(startServer(() => {}, { processRequest }), { events });
}

const PUSH = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
const GET = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

test({ needs: "net" }, "the first answer counts, and who comes after it is not asked", async () => {
  const cases: [names: string[], status: number | undefined, asked: number][] = [
    [[], undefined, 0],
    [["none", "late none", "thenable none", "none"], undefined, 4],
    [["answer", "late answer"], 401, 1],
    [["late answer", "answer"], 402, 1],
    [["none", "thenable answer", "answer"], 403, 2],
    [["late none", "answer", "late answer"], 401, 2],
    [["none", "late none", "none", "late answer", "answer"], 402, 4],
    [["thenable none", "late none", "none", "answer"], 401, 4],
  ];
  for (const [names, status, asked] of cases) {
    for (const [request, otherwise] of [[handshake(), 101], [PUSH, 426], [GET, 426]] as const) {
      await using server = startAsking(...names);
      assertEquals((await ask(server.port, request)).status, status ?? otherwise, `${names}`);
      // Nobody is asked before the one before has answered.
      const expected = names.slice(0, asked).flatMap((name) =>
        name.startsWith("late") ? [name, `${name} is there`] : [name]
      );
      assertEquals(server.events, expected);
    }
  }
});

test(
  { needs: "net" },
  "what is no answer gets 500, and who comes after it is not asked",
  async () => {
    for (const name of ["null", "true", "a number", "a late text"]) {
      for (const before of ["none", "late none"]) {
        await using server = startAsking(before, name, "answer");
        assertEquals((await ask(server.port, handshake())).status, 500, name);
        assert(!server.events.includes("answer"), name);
        assertMatch(
          await server.log.next(),
          /^`processRequest` failed: TypeError: .* a Response or /,
        );
      }
    }
  },
);

test({ needs: "net" }, "who comes after one that is late is not asked", async () => {
  const gate = Promise.withResolvers<undefined>();
  let isAsked = false;
  const next = () => {
    isAsked = true;
    return undefined;
  };
  await using server = startServer(() => {}, {
    idleTimeout: 0.1,
    processRequest: [() => gate.promise, next],
  });
  assertEquals((await ask(server.port, GET)).status, 503);
  gate.resolve(undefined);
  await delay(0);
  assert(!isAsked);
});

Deno.test("what all answer at once is there at once, without a promise", async () => {
  const info: RequestInfo = {
    remoteAddr: { transport: "tcp", hostname: "127.0.0.1", port: 1 },
    completed: Promise.resolve(),
  };
  const headers = { Host: "localhost", Upgrade: "websocket", Connection: "Upgrade" };
  const more = { "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7w==", "Sec-WebSocket-Version": "13" };
  const handshake = new Request("http://localhost/", { headers: { ...headers, ...more } });
  const refuse = () => new Response("no", { status: 401 });
  await using sockets = accept(() => {}, {
    processRequest: [() => undefined, refuse],
    log: () => {},
  });
  const answer = sockets.answer(handshake, info);
  assertEquals(answer instanceof Response && answer.status, 401);
});
