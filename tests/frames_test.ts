// What a user sees of the frames of RFC 6455. The runtime reads and writes them, so each case is sent
// to a bare server of Deno as well: a new Deno that changes one is seen here.

import { assertEquals } from "@std/assert";
import type { Handler, Message } from "websockets";
import { Inbox, startServer } from "./helpers.ts";
import { test } from "./needs.ts";
import { serveBare } from "./peers.ts";
import { frame, RawClient } from "./raw.ts";

const [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG] = [0, 1, 2, 8, 9, 10];
const RESERVED_BIT = 0x40;
const LAST = 0x80;
const MASK = [0, 0, 0, 0];
const MAX_MESSAGE = 100;

interface Expected {
  /** What the client sends at once. */
  sends: Uint8Array[];
  /** What the server answers. Its handler hears the messages among it. */
  gets: string[];
  /** How the connection ends by that. Where it stays open, the client closes it with 1000. */
  closed?: string;
}

interface Case extends Expected {
  name: string;
  /** What a bare server does, where ours differs on purpose. */
  bare?: Omit<Expected, "sends">;
}

/** What is known of a connection that ended without a right Close frame. */
const BROKEN = "1006";

const cases: Case[] = [
  // Messages.
  { name: "an empty text is a message", sends: [frame(TEXT)], gets: ["text "] },
  {
    name: "a text in three pieces is one message",
    sends: [frame(TEXT, "o", false), frame(CONTINUATION, "n", false), frame(CONTINUATION, "e")],
    gets: ["text one"],
  },
  {
    name: "a character may be cut in two between the pieces of a text",
    sends: [frame(TEXT, bytes(0xc3), false), frame(CONTINUATION, bytes(0xa9))],
    gets: ["text é"],
  },
  {
    name: "a ping between pieces is answered before the message",
    sends: [frame(TEXT, "o", false), frame(PING, "?"), frame(CONTINUATION, "ne")],
    gets: ["pong ?", "text one"],
  },
  {
    name: "a pong that nobody asked for is ignored",
    sends: [frame(PONG, "?"), frame(PING, "!")],
    gets: ["pong !"],
  },
  {
    name: "a mask may be any",
    sends: [bytes(LAST | TEXT, 0x82, 1, 2, 3, 4, 0x68 ^ 1, 0x69 ^ 2)],
    gets: ["text hi"],
  },
  {
    name: "a length may be longer than it has to be",
    sends: [
      bytes(LAST | TEXT, 0xfe, 0, 2, ...MASK, 0x68, 0x69),
      bytes(LAST | TEXT, 0xff, 0, 0, 0, 0, 0, 0, 0, 2, ...MASK, 0x68, 0x69),
    ],
    gets: ["text hi", "text hi"],
  },
  {
    name: "Lenient checks: a frame that is not masked is accepted",
    sends: [bytes(LAST | TEXT, 2, 0x68, 0x69)],
    gets: ["text hi"],
  },
  {
    name: "A message is too large: one that fits in a frame gets 1009",
    sends: [frame(BINARY, new Uint8Array(MAX_MESSAGE + 1))],
    gets: [`close 1009 Larger than ${MAX_MESSAGE} bytes.`],
    closed: "1009",
    // The runtime has no limit under 64 MiB.
    bare: { gets: [`binary of ${MAX_MESSAGE + 1} bytes`] },
  },
  {
    name: "Large messages: the runtime ends a connection that announces a frame of over 64 MiB",
    sends: [bytes(LAST | BINARY, 0xff, 0, 0, 0, 0, 4, 0, 0, 1, ...MASK)],
    gets: [],
    closed: BROKEN,
  },

  // Closing.
  { name: "a Close frame may be empty", sends: [frame(CLOSE)], gets: ["close"], closed: "1005" },
  {
    name: "a Close frame says a code and a reason",
    sends: [close(4000, "bye")],
    gets: ["close 4000 bye"],
    closed: "4000 bye",
  },
  {
    name: "nothing is heard after a Close frame",
    sends: [close(1000), frame(TEXT, "late")],
    gets: ["close 1000"],
    closed: "1000",
  },
  ...[999, 1005, 5000].map((code) => ({
    name: `a Close frame may not say ${code}, which is answered with 1002`,
    sends: [close(code)],
    gets: ["close 1002"],
    closed: BROKEN,
  })),
  {
    name: "Lenient checks: a Close frame over 125 bytes is answered",
    sends: [close(1000, "x".repeat(124))],
    gets: [`close 1000 ${"x".repeat(124)}`],
    closed: `1000 ${"x".repeat(124)}`,
  },

  // What breaks the protocol.
  ...Object.entries({
    "a text that is not UTF-8": [frame(TEXT, bytes(0xff))],
    "a text that ends within a character": [frame(TEXT, bytes(0xc3))],
    "a Close frame whose reason is not UTF-8": [frame(CLOSE, bytes(3, 232, 0xff))],
    "a Close frame of one byte": [frame(CLOSE, "x")],
    "a continuation without a start": [frame(CONTINUATION, "x")],
    "a new message within another one": [frame(TEXT, "x", false), frame(TEXT, "y")],
    "a reserved bit": [frame(RESERVED_BIT | TEXT, "x")],
    "a reserved opcode": [frame(3, "x")],
    "a reserved opcode of control frames": [frame(11, "x")],
    "a ping over 125 bytes": [frame(PING, "x".repeat(126))],
    "a ping in pieces": [frame(PING, "x", false)],
    "a length over 63 bits": [bytes(LAST | BINARY, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, ...MASK)],
  }).map(([what, sends]) => ({
    name: `Broken frames: ${what} ends the connection without a Close frame`,
    sends,
    gets: [],
    closed: BROKEN,
  })),
];

for (const { name, bare, ...expected } of cases) {
  test({ needs: "net" }, name, async () => {
    const seen = new Inbox<string>();
    const handler: Handler = async (websocket) => {
      try {
        for await (const message of websocket) {
          seen.put(describe(message));
          websocket.send(message);
        }
      } finally {
        const { code, reason } = await websocket.closed;
        seen.put(`${code} ${reason}`.trim());
      }
    };
    await using server = startServer(handler, { maxMessage: MAX_MESSAGE });
    await assertAnswers(server.port, seen, expected);

    const seenBare = new Inbox<string>();
    await using bareServer = serveBare((request) => {
      const { socket, response } = Deno.upgradeWebSocket(request);
      socket.onmessage = ({ data }) => {
        seenBare.put(describe(data));
        socket.send(data);
      };
      // The runtime says 0 of a connection that broke, where ours says what RFC 6455 does.
      socket.onclose = ({ code, reason }) => seenBare.put(`${code || BROKEN} ${reason}`.trim());
      return response;
    });
    await assertAnswers(bareServer.port, seenBare, { sends: expected.sends, ...bare ?? expected });
  });
}

/** Sends the frames of a case, and compares what comes back and what the server sees. */
async function assertAnswers(port: number, seen: Inbox<string>, expected: Expected) {
  const { sends, gets, closed } = expected;
  using client = await RawClient.upgraded(port);
  await client.write(join(sends));
  const answers: string[] = [];
  for await (const answer of framesOf(client)) {
    answers.push(answer);
    if (answers.length !== gets.length || sends.some(isClose)) continue;
    const [, code = "1000"] = answer.match(/^close (\d+)/) ?? [];
    await client.write(close(Number(code)));
  }
  assertEquals(answers, closed === undefined ? [...gets, "close 1000"] : gets);
  await seen.next((each) => !isMessage(each), "the end of the connection");
  assertEquals(seen.all, [...gets.filter(isMessage), closed ?? "1000"]);
}

/** The frames that a client gets until the connection ends. None of a server is masked. */
async function* framesOf(client: RawClient): AsyncGenerator<string> {
  let rest = new Uint8Array();
  for (let read = await client.read(); read.length > 0; read = await client.read()) {
    rest = join([rest, read]);
    while (true) {
      // No frame here is so long that its length takes more than two bytes.
      const [start, length] = rest[1] === 126 ? [4, rest[2] << 8 | rest[3]] : [2, rest[1]];
      if (rest.length < 2 || rest.length < start + length) break;
      yield describeFrame(rest[0], rest.slice(start, start + length));
      rest = rest.slice(start + length);
    }
  }
}

function describeFrame(first: number, payload: Uint8Array): string {
  const text = new TextDecoder().decode(payload);
  switch (first) {
    case LAST | TEXT:
      return `text ${text}`;
    case LAST | BINARY:
      return `binary of ${payload.length} bytes`;
    case LAST | PONG:
      return `pong ${text}`;
    case LAST | CLOSE:
      return describeClose(payload);
  }
  return `a frame that starts with ${first}`;
}

function describeClose(payload: Uint8Array): string {
  if (payload.length === 0) return "close";
  const reason = new TextDecoder().decode(payload.subarray(2));
  return `close ${payload[0] << 8 | payload[1]} ${reason}`.trim();
}

/** What a handler hears, as `describeFrame` tells what a client gets. */
function describe(message: Message): string {
  return typeof message === "string" ? `text ${message}` : `binary of ${message.byteLength} bytes`;
}

function isMessage(description: string): boolean {
  return /^(text|binary) /.test(description);
}

function isClose([first]: Uint8Array): boolean {
  return first === (LAST | CLOSE);
}

/** A Close frame of a client. */
function close(code: number, reason = ""): Uint8Array {
  return frame(CLOSE, join([bytes(code >> 8, code & 0xff), new TextEncoder().encode(reason)]));
}

function bytes(...values: number[]): Uint8Array {
  return new Uint8Array(values);
}

function join(parts: Uint8Array[]) {
  return new Uint8Array(parts.flatMap((part) => [...part]));
}
