// The exercises of the walk: what each solution promises, seen by its clients.

import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import type { Handler } from "websockets";
import { startServer, TestClient } from "./helpers.ts";
import { test } from "./needs.ts";
import * as history from "./exercises/history.ts";
import { checkName, handler as nicknames } from "./exercises/nicknames.ts";
import { handler as online } from "./exercises/online.ts";
import { handler as privately } from "./exercises/private.ts";
import { handler as typing } from "./exercises/typing.ts";

/** A server with a solution of an exercise, and a way to come in with a name. */
function startChat(handler: Handler, options = {}) {
  const server = startServer(handler, { processRequest: checkName, ...options, port: 0 });
  const enter = (name: string) =>
    TestClient.open(`${server.url}/?name=${encodeURIComponent(name)}`);
  return { enter, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

test({ needs: "net" }, "exercise 1: everyone sees who says what", async () => {
  await using chat = startChat(nicknames);
  await using li = await chat.enter("Li");
  await using wang = await chat.enter("王芳");
  wang.send("你好");
  assertEquals([await li.next(), await wang.next()], ["王芳: 你好", "王芳: 你好"]);
  li.send("hello");
  assertEquals(await wang.next(), "Li: hello");
});

test(
  { needs: "net" },
  "exercise 1: nobody comes in without a name, or with one that could deceive",
  async () => {
    await using chat = startChat(nicknames);
    for (const name of ["", "Li: hello", "a\nb", "x".repeat(21)]) {
      const { message } = await assertRejects(() => chat.enter(name), Error);
      assertStringIncludes(message, "400", name);
    }
  },
);

test(
  { needs: "net" },
  "exercise 2: the others are told who is typing, once in a while",
  async () => {
    await using chat = startChat(typing);
    await using li = await chat.enter("Li");
    await using wang = await chat.enter("Wang");
    wang.send("I am here");
    assertEquals([await li.next(), await wang.next()], ["Wang: I am here", "Wang: I am here"]);
    for (const text of ["", "", "hello", "", "bye"]) li.send(text);
    const heard = [await wang.next(), await wang.next(), await wang.next(), await wang.next()];
    assertEquals(heard, ["Li is typing …", "Li: hello", "Li is typing …", "Li: bye"]);
    assertEquals([await li.next(), await li.next()], ["Li: hello", "Li: bye"]);
  },
);

test(
  { needs: "net" },
  "exercise 3: everyone sees who comes and leaves, and may ask who is there",
  async () => {
    await using chat = startChat(online);
    await using li = await chat.enter("Li");
    assertEquals(await li.next(), "Li is here.");
    const wang = await chat.enter("Wang");
    assertEquals([await li.next(), await wang.next()], ["Wang is here.", "Wang is here."]);
    li.send("/who");
    assertEquals(await li.next(), "Li, Wang");
    await wang.close();
    assertEquals(await li.next(), "Wang has left.");
    li.send("/who");
    assertEquals(await li.next(), "Li");
  },
);

for (const [number, handler] of [[3, online], [5, privately]] as const) {
  test(
    { needs: "net" },
    `exercise ${number}: a name that is taken is refused with 4409, and stays taken`,
    async () => {
      await using chat = startChat(handler);
      await using li = await chat.enter("Li");
      for (let attempt = 0; attempt < 2; attempt++) {
        await using other = await chat.enter("Li");
        assertEquals((await other.closed).code, 4409);
      }
      li.send("still here");
      await li.messages.next((message) => message === "Li: still here");
    },
  );
}

test(
  { needs: "net" },
  "exercise 4: a newcomer gets the last ten messages, and then the new ones",
  async () => {
    await using chat = startChat(history.handler, history.options);
    await using li = await chat.enter("Li");
    for (let number = 1; number <= 12; number++) li.send(`${number}`);
    await li.messages.next((message) => message === "Li: 12");
    await using wang = await chat.enter("Wang");
    li.send("13");
    const heard = [];
    for (let number = 3; number <= 13; number++) heard.push(await wang.next());
    assertEquals(heard, Array.from({ length: 11 }, (_, index) => `Li: ${index + 3}`));
  },
);

test({ needs: "net" }, "exercise 4: what is kept is bounded in bytes as well", async () => {
  await using chat = startChat(history.handler, history.options);
  await using li = await chat.enter("Li");
  li.send("x".repeat(1_001));
  assertEquals((await li.closed).code, 1009);
});

test({ needs: "net" }, "exercise 5: only the one to whom a message is sent gets it", async () => {
  await using chat = startChat(privately);
  await using li = await chat.enter("Li");
  await using wang = await chat.enter("Wang");
  await using zhao = await chat.enter("Zhao");
  for (const text of ["/to Wang a secret", "/to Nobody hello", "to all"]) li.send(text);
  assertEquals([await li.next(), await li.next()], ["Nobody is not here.", "Li: to all"]);
  assertEquals([await wang.next(), await wang.next()], [
    "Li, to you alone: a secret",
    "Li: to all",
  ]);
  assertEquals(await zhao.next(), "Li: to all");
});
