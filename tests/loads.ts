// The loads of the bench: what clients send, when they send it, and which answers they take. A load
// measures only a server that does its work: all that is lost, wrong or late is seen here.

import { deadline } from "@std/async";
import { Buffer } from "node:buffer";
import { setImmediate } from "node:timers/promises";
import { frame, RawClient } from "./helpers.ts";

/** Bytes from which on a message is bulk: it is binary, and is counted in megabytes. */
export const BULK = 64 * 1024;
/** Connections opened at a time: enough to keep a server busy, too few to overflow its backlog. */
export const OPENING = 50;
/** Messages of `BULK` that a stalled client has sent, without reading the answers. */
const STALLED_MESSAGES = 128;
/** Milliseconds after which missing connections or answers are given up. */
const PATIENCE = 30_000;
const SPOILT = "A server lost, repeated or changed a message.";

/** Which clients there are, and what they send. */
export interface Case {
  clients: number;
  /** Bytes of each message. */
  bytes: number;
  /** Client 0 is in room 0, client 1 in room 1 and so on. All are in one unless given. */
  rooms?: number;
  /** Further clients, which have sent much and read nothing. */
  stalled?: number;
  /** Messages that each sender has under way at a time; 1 unless given. */
  inFlight?: number;
  /** Messages that the server pushes for each that it gets. */
  pieces?: number;
}

export interface LoadOptions extends Case {
  /** For how long messages are sent. Then the load waits for those that are under way. */
  milliseconds: number;
  /** Messages a second, whether or not answers come. Unless given, an answer makes the next one. */
  rate?: number;
  /** Milliseconds until what is still under way counts as lost. */
  patience?: number;
}

export interface Outcome {
  /** Messages that have arrived. */
  count: number;
  /** Milliseconds from when a message was sent, or was due at a rate, until it has arrived. */
  waits: number[];
  /** Milliseconds by which each message was sent later than it was due. */
  delays: number[];
}

/**
 * Loads a server through clients that are connected.
 *
 * @throws {Error} if a message is lost, wrong, out of order, or if a connection is closed.
 */
export type Load = (sockets: WebSocket[], options: LoadOptions) => Promise<Outcome>;

/** Every client sends, and has the answers. */
export const echo: Load = (sockets, options) =>
  broadcast(sockets, { ...options, rooms: sockets.length });

/** The first client of each room sends. A message has arrived when all clients of the room have it. */
export const broadcast: Load = async (sockets, options) => {
  const { bytes, milliseconds, rooms = 1, inFlight = 1, rate } = options;
  const start = performance.now();
  const [waits, delays]: number[][] = [[], []];
  const sent = Array.from({ length: rooms }, (): Sent[] => []);
  const received = sockets.map(() => 0);
  let underWay = 0;
  let isSending = true;
  const send = (room: number, at = performance.now()) => {
    underWay++;
    const message = { data: nextMessage(bytes), at, missing: sockets.length / rooms };
    sent[room].push(message);
    sockets[room].send(message.data);
  };
  const finished = listen(sockets, options, (client, data) => {
    const room = client % rooms;
    const message = sent[room][received[client]++];
    if (!message || !isAnswer(data, message.data)) throw new Error(SPOILT);
    if (--message.missing > 0) return false;
    const now = performance.now();
    waits.push(now - message.at);
    // A turn in bulk would keep hundreds of megabytes.
    message.data = "";
    underWay--;
    if (!rate && now - start < milliseconds) send(room);
    return underWay === 0 && !isSending;
  });
  // An error is thrown below, when all has been sent.
  finished.catch(() => {});
  for (let number = 0; rate && number < rate * milliseconds / 1000; number++) {
    const due = start + number / rate * 1000;
    // A timer would be a millisecond late or more.
    while (performance.now() < due) await setImmediate();
    delays.push(performance.now() - due);
    send(number % rooms, due);
  }
  for (let number = 0; !rate && number < rooms * inFlight; number++) send(number % rooms);
  isSending = false;
  await finished;
  return { count: waits.length * sockets.length / rooms, waits, delays };
};

/** One client asks for pieces, each of `BULK` bytes with its number, and waits for the last. */
export const push: Load = async ([socket], options) => {
  const { milliseconds, pieces = 1 } = options;
  const start = performance.now();
  const waits: number[] = [];
  let [at, received] = [start, 0];
  const finished = listen([socket], options, (_, data) => {
    const isPiece = typeof data !== "string" && data.byteLength === BULK;
    if (!isPiece || new DataView(data).getUint32(0) !== received) throw new Error(SPOILT);
    if (++received < pieces) return false;
    const now = performance.now();
    waits.push(now - at);
    [at, received] = [now, 0];
    if (now - start >= milliseconds) return true;
    socket.send(`${pieces}`);
    return false;
  });
  socket.send(`${pieces}`);
  await finished;
  return { count: waits.length * pieces, waits, delays: [] };
};

type Data = string | ArrayBuffer;

interface Sent {
  data: string | Uint8Array<ArrayBuffer>;
  at: number;
  /** How many clients don't have it yet. */
  missing: number;
}

let messages = 0;

/** A message that was not sent before, so that no other is taken for it. */
function nextMessage(bytes: number): Sent["data"] {
  messages++;
  if (bytes < BULK) return `${messages}`.padStart(bytes, "0");
  return new Uint8Array(new Uint32Array(bytes / 4).fill(messages).buffer);
}

/** Whether this is what was sent, or the article's sentence with it. */
function isAnswer(data: Data, sent: Sent["data"]): boolean {
  if (typeof sent !== "string") return typeof data !== "string" && Buffer.from(data).equals(sent);
  return data === sent ||
    typeof data === "string" && data.startsWith(`Data received as "${sent}".  time: `);
}

/** Gives `receive` all that arrives until it returns true, or something is wrong. */
async function listen(
  sockets: WebSocket[],
  { milliseconds, patience = PATIENCE }: LoadOptions,
  receive: (client: number, data: Data) => boolean,
): Promise<void> {
  const { promise: finished, resolve, reject } = Promise.withResolvers<void>();
  for (const [client, socket] of sockets.entries()) {
    socket.onmessage = ({ data }) => {
      try {
        if (receive(client, data)) resolve();
      } catch (error) {
        reject(error);
      }
    };
    socket.onclose = ({ code }) => reject(new Error(`A server closed a connection (${code}).`));
  }
  await deadline(finished, milliseconds + patience).catch((error: unknown) => {
    throw error instanceof DOMException ? new Error("A server has stopped answering.") : error;
  });
}

/**
 * Opens connections, some at a time.
 *
 * @param waits Gets the milliseconds until each was open.
 * @throws {Error} if one is not open within `patience`.
 */
export async function connectAll(
  urls: string[],
  { clients, rooms = 1 }: Pick<Case, "clients" | "rooms">,
  { waits = [] as number[], patience = PATIENCE } = {},
): Promise<WebSocket[]> {
  const sockets: WebSocket[] = [];
  const openNext = async () => {
    while (sockets.length < clients) {
      const [client, start] = [sockets.length, performance.now()];
      const room = client % rooms;
      // Every room has clients of every instance, and so has the sender of every room.
      const url = new URL(urls[(room + Math.floor(client / rooms)) % urls.length]);
      if (rooms > 1) url.searchParams.set("room", `${room}`);
      const socket = sockets[client] = new WebSocket(url);
      socket.binaryType = "arraybuffer";
      const opened = new Promise<void>((resolve, reject) => {
        socket.addEventListener("open", () => resolve());
        socket.addEventListener("close", () => reject());
      });
      await deadline(opened, patience);
      waits.push(performance.now() - start);
    }
  };
  try {
    await Promise.all(Array.from({ length: OPENING }, openNext));
    return sockets;
  } catch {
    await disconnect(sockets);
    const advice = "does the server run, and is ulimit -n enough?";
    throw new Error(`Of ${clients} connections to ${urls[0]}, not all were opened: ${advice}`);
  }
}

export async function disconnect(sockets: WebSocket[]): Promise<void> {
  await Promise.all(sockets.map((socket) =>
    new Promise<void>((resolve) => {
      if (socket.readyState === WebSocket.CLOSED) resolve();
      socket.onclose = () => resolve();
      socket.close(1000);
    })
  ));
}

/** Connects clients for which much waits, because they read no answer. */
export async function stall(url: string, count = 0): Promise<RawClient[]> {
  const message = frame(2, new Uint8Array(BULK));
  return await Promise.all(Array.from({ length: count }, async () => {
    const client = await RawClient.upgraded(Number(new URL(url).port));
    for (let sent = 0; sent < STALLED_MESSAGES; sent++) await client.write(message);
    return client;
  }));
}
