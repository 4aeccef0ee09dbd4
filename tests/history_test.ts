// What a room keeps: each boundary of it, and whatever a peer may say that its position is.

import { assertEquals, assertThrows } from "@std/assert";
import { History, MAX_POSITION } from "../websockets/rooms/history.ts";
import type { Message } from "websockets";

/** Bytes of a message of one character, with its position and what it takes while it is kept. */
const ONE = "e.1\nx".length + 400;

/** A history that keeps so many bytes, with the bytes that it has told. */
function keeping(maxBytes: number, start?: number) {
  const told = { bytes: 0 };
  const history = new History("e", (bytes) => told.bytes += bytes, start);
  history.maxBytes = maxBytes;
  return { history, told };
}

/** Adds messages of one character, numbered from 1 on. */
function filled(count: number, maxBytes: number) {
  const kept = keeping(maxBytes);
  for (let number = 1; number <= count; number++) kept.history.add("x");
  return kept;
}

/** What is replayed: the first line without the count of the messages, and their numbers. */
function replayed(history: History, after: string): [string, ...number[]] {
  const [first, ...messages] = history.replay(after);
  const [start, count = "0"] = `${first}`.split(" missed ");
  assertEquals(count, `${messages.length}`);
  return [
    start,
    ...messages.map((message) => Number(`${message}`.match(/^e\.(\d+)\nx$/)?.[1])),
  ];
}

Deno.test("a history gives again what came after a position, at each boundary of what it keeps", () => {
  const { history } = filled(10, 3 * ONE + 1);
  // The position of the last one is a character longer.
  assertEquals(replayed(history, "e.10"), ["e.10"]);
  assertEquals(replayed(history, "e.9"), ["e.9", 10]);
  assertEquals(replayed(history, "e.8"), ["e.8", 9, 10]);
  assertEquals(replayed(history, "e.7"), ["e.7", 8, 9, 10]);
  assertEquals(replayed(history, "e.6"), ["e.7 lost 1", 8, 9, 10]);
  assertEquals(replayed(history, "e.1"), ["e.7 lost 6", 8, 9, 10]);
  assertEquals(replayed(history, "e.0"), ["e.7 lost 7", 8, 9, 10]);
});

Deno.test("one byte less, and one message less is kept", () => {
  assertEquals(replayed(filled(9, 3 * ONE).history, "e.0"), ["e.6 lost 6", 7, 8, 9]);
  assertEquals(replayed(filled(9, 3 * ONE - 1).history, "e.0"), ["e.7 lost 7", 8, 9]);
});

Deno.test("a follower without a position goes on from now", () => {
  assertEquals(keeping(ONE).history.replay(""), ["e.0"]);
  assertEquals(replayed(filled(3, 3 * ONE).history, ""), ["e.3"]);
});

Deno.test("in a room in which nothing was said, nothing is missed", () => {
  const { history } = keeping(ONE);
  assertEquals(history.replay("e.0"), ["e.0"]);
  assertEquals(history.replay("f.0"), ["e.0 lost"]);
});

Deno.test("a position that is not one of this history is told as lost, and all that is kept follows", () => {
  const { history } = filled(3, 2 * ONE);
  const hostile = [
    ...["e.4", "f.3", "e", "e.", ".", ".3", "e3", "ee.3", "E.3", " e.3", "e.3 ", "e.3\n", "e. 3"],
    ...["e.03", "e.3.0", "e.3.", "e.+3", "e.-1", "e.-0", "e.1e0", "e.0x3", "e.1e999", "e.Infinity"],
    ...["e.NaN", "e.2.5", `e.${2 ** 53}`, `e.${2 ** 53 - 1}`, "e.9007199254740993", "e.3\0"],
    ...["e.٣", "e.３", "e.³", "e.undefined", "e.null", "e.[3]", "e.__proto__", "__proto__.3"],
    ...["lost", "e.3 lost", "e.3 lost 1", "%", "\ud800", "🦕", "(a+)+$", "e." + "3".repeat(10_000)],
    ...["e".repeat(10_000), "e." + "0".repeat(MAX_POSITION) + "3"],
  ];
  for (const after of hostile) assertEquals(replayed(history, after), ["e.1 lost", 2, 3], after);
});

Deno.test("a message that is larger than all that may be kept is gone, and those before it too", () => {
  const { history, told } = filled(3, 3 * ONE);
  assertEquals(history.add("x".repeat(3 * ONE)), `e.4\n${"x".repeat(3 * ONE)}`);
  assertEquals([history.bytes, told.bytes], [0, 0]);
  assertEquals(replayed(history, "e.4"), ["e.4"]);
  assertEquals(replayed(history, "e.2"), ["e.4 lost 2"]);
  history.add("x");
  assertEquals(replayed(history, "e.4"), ["e.4", 5]);
});

Deno.test("what was freed is told exactly, and what comes then is kept", () => {
  const { history, told } = filled(3, 3 * ONE);
  assertEquals([history.bytes, told.bytes], [3 * ONE, 3 * ONE]);
  history.clear();
  assertEquals([history.bytes, told.bytes], [0, 0]);
  assertEquals(replayed(history, "e.1"), ["e.3 lost 2"]);
  assertEquals(replayed(history, "e.3"), ["e.3"]);
  history.add("x");
  assertEquals(replayed(history, "e.1"), ["e.3 lost 2", 4]);
});

Deno.test("it may be cleared while it tells how much it keeps", () => {
  let isFull = false;
  const history: History = new History(
    "e",
    (bytes) => void (isFull && bytes > 0 && history.clear()),
  );
  history.maxBytes = 10 * ONE;
  history.add("x");
  isFull = true;
  assertEquals(history.add("x"), "e.2\nx");
  assertEquals(history.bytes, 0);
  isFull = false;
  history.add("x");
  assertEquals(replayed(history, "e.0"), ["e.2 lost 2", 3]);
});

Deno.test("without bytes to keep, messages are only numbered", () => {
  const { history, told } = keeping(0);
  for (const message of ["x", new ArrayBuffer(3)]) assertEquals(history.add(message), undefined);
  assertEquals([history.position, told.bytes], ["e.2", 0]);
  history.maxBytes = ONE;
  history.add("x");
  assertEquals(replayed(history, "e.2"), ["e.2", 3]);
  assertEquals(replayed(history, "e.0"), ["e.2 lost 2", 3]);
});

Deno.test("texts and bytes come again as they were, with their position before them", () => {
  const { history } = keeping(100_000);
  const bytes = new Uint8Array([0, 10, 255]);
  const messages: Message[] = ["", "\ufeff你好 🦕\n", bytes.buffer, new ArrayBuffer(0)];
  const live = messages.map((message) => history.add(message));
  bytes.fill(1);
  const head = (number: number) => [...new TextEncoder().encode(`e.${number}\n`)];
  const expected = [
    "e.1\n",
    "e.2\n\ufeff你好 🦕\n",
    new Uint8Array([...head(3), 0, 10, 255]),
    new Uint8Array(head(4)),
  ];
  assertEquals(live, expected);
  assertEquals(history.replay("e.0"), ["e.0 missed 4", ...expected]);
});

Deno.test("numbers may be given, with gaps: then nobody knows how many are lost", () => {
  const { history } = keeping(2 * ("e.100\nx".length + 400), 99);
  assertEquals(history.replay("e.99"), ["e.99"]);
  assertEquals(history.replay("e.98"), ["e.99 lost"]);
  for (const number of [102, 110, 200]) history.add("x", number);
  assertEquals(replayed(history, "e.200"), ["e.200"]);
  assertEquals(replayed(history, "e.150"), ["e.150", 200]);
  assertEquals(replayed(history, "e.110"), ["e.110", 200]);
  assertEquals(replayed(history, "e.102"), ["e.102", 110, 200]);
  assertEquals(replayed(history, "e.101"), ["e.102 lost", 110, 200]);
  for (const number of [200, 1, -1, NaN, Infinity, 200.5, 2 ** 53]) {
    assertThrows(() => history.add("x", number), RangeError, `${number} is no number after 200.`);
  }
});

Deno.test("what it keeps stays within its bytes, whatever is said", () => {
  const { history, told } = keeping(20 * ONE);
  for (let number = 1; number < 5_000; number++) {
    history.add("x".repeat(number * 7919 % 3_000));
    const messages = history.replay("e.0").slice(1);
    const bytes = messages.reduce((sum, message) => sum + `${message}`.length + 400, 0);
    assertEquals([bytes <= 20 * ONE, told.bytes, history.bytes], [true, bytes, bytes]);
    if (messages.length > 0) assertEquals(`${messages.at(-1)}`.split("\n")[0], `e.${number}`);
  }
});
