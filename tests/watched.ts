/// <reference types="./std.d.ts" />
// What the tests of messages that wait share: servers that know who is there, clients that read
// nothing unless the test does, and messages with numbers.

import { assert, assertEquals } from "@std/assert";
import {
  type Close,
  type Connection,
  type Handler,
  type Message,
  serve,
  type ServeOptions,
} from "websockets";
import { eventually, Inbox, TestClient, within } from "./helpers.ts";
import { frame, RawClient } from "./raw.ts";

export const TEXT = 1;
export const BINARY = 2;
export const CLOSE = 8;
export const MEBIBYTE = 1024 ** 2;
export const silent = () => {};

/** A server that knows who is there. Once it has stopped, each handler must have ended once. */
export function startWatched(handler: Handler, options?: ServeOptions) {
  const members = new Set<Connection>();
  const log = new Inbox<string>();
  const left = new Inbox<Close>();
  let started = 0;
  let ended = 0;
  const watched: Handler = async (websocket, request) => {
    started++;
    members.add(websocket);
    try {
      await handler(websocket, request);
    } finally {
      ended++;
      members.delete(websocket);
      websocket.close().then((close) => left.put(close));
    }
  };
  const server = serve(watched, { port: 0, log: (line) => log.put(line), ...options });
  const { port } = server.addr;
  return {
    url: `ws://localhost:${port}`,
    port,
    log,
    members,
    left,
    /** Bytes that wait. */
    get waiting() {
      return server.waiting;
    },
    async [Symbol.asyncDispose]() {
      await within(server.shutdown(), "the server to stop");
      assertEquals(ended, started);
      assertEquals(server.waiting, 0);
    },
  };
}

export type Watched = ReturnType<typeof startWatched>;

/** Sends a message to all. Nobody is waited for. */
export function broadcast(clients: Iterable<Connection>, message: Message): void {
  for (const client of clients) client.send(message);
}

/** A room whose members hear what each of them sends, and what is pushed. */
export function startRoom(
  options?: ServeOptions,
  prepare: () => Promise<void> | void = silent,
): Watched {
  const room: Watched = startWatched(async (websocket) => {
    for await (const message of websocket) {
      const isReady = prepare();
      if (isReady) await isReady;
      broadcast(room.members, message);
    }
  }, {
    async processRequest(request) {
      if (request.method !== "POST") return;
      broadcast(room.members, await request.text());
      return new Response(`${room.members.size}`, { status: 202 });
    },
    ...options,
  });
  return room;
}

/** Pushes a text into a room. */
export async function push({ port }: { port: number }, body: string) {
  const answer = await fetch(`http://localhost:${port}`, { method: "POST", body });
  return { status: answer.status, headers: answer.headers, text: await answer.text() };
}

/** Waits until so many are in the room. */
export const joined = ({ members }: Watched, count: number) =>
  eventually(() => assertEquals(members.size, count));

/** Connects so many clients. They leave together. */
export async function connect(url: string, count: number) {
  const clients = await Promise.all(Array.from({ length: count }, () => TestClient.open(url)));
  const leave = async () => void await Promise.all(clients.map((client) => client.close()));
  return Object.assign(clients, { [Symbol.asyncDispose]: leave });
}

/** Connects so many clients that read nothing unless the test does. */
export async function connectRaw(port: number, count: number) {
  const clients = await Promise.all(Array.from({ length: count }, () => RawClient.upgraded(port)));
  const leave = () => clients.forEach((client) => client[Symbol.dispose]());
  return Object.assign(clients, { [Symbol.dispose]: leave });
}

/** Frames of so many messages with the same content, in one piece. */
export function frames(opcode: number, payload: string | Uint8Array, count: number): Uint8Array {
  const one = frame(opcode, payload);
  const all = new Uint8Array(one.length * count);
  for (let at = 0; at < all.length; at += one.length) all.set(one, at);
  return all;
}

/** A message that begins with its number, so that one can see its place. */
export function numbered(number: number, size: number): Uint8Array<ArrayBuffer> {
  const message = new Uint8Array(size);
  if (size >= 4) new DataView(message.buffer).setUint32(0, number);
  return message;
}

/** Waits for so many messages, and fails unless their numbers are 0, 1, 2 and so on. */
export async function assertInOrder(
  client: TestClient,
  count: number,
  size: number,
): Promise<void> {
  for (let number = 0; number < count; number++) {
    assertNumber(await client.next(), number, size);
  }
}

export function assertNumber(message: string | ArrayBuffer, number: number, size: number) {
  assert(message instanceof ArrayBuffer);
  assertEquals([new DataView(message).getUint32(0), message.byteLength], [number, size]);
}

/** Sends one thing again and again and reads nothing, until the server takes no more of it. */
export async function flood(client: RawClient, bytes: Uint8Array): Promise<void> {
  try {
    while (true) await client.write(bytes);
  } catch {
    // The connection is reset, or the test has closed it.
  }
}
