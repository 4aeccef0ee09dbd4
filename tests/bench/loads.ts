// The load of the bench: what clients send, when they send it, and which answers they take. A server
// that loses, changes or repeats a message ends it with an error.

import { pooledMap } from "@std/async";
import { Buffer } from "node:buffer";
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import { TestClient, within } from "../helpers.ts";
import { frame, RawClient } from "../raw.ts";

/** Bytes from which on a message is bulk: it is binary, and is counted in megabytes. */
export const BULK = 64 * 1024;
/** Connections opened at a time: enough to keep a server busy, too few to overflow its backlog. */
export const OPENING = 50;
/** Messages of `BULK` that a stalled client has sent, without reading the answers. */
const STALLED_MESSAGES = 128;
/** Milliseconds after which missing answers are given up. */
const PATIENCE = 30_000;

/** Which clients there are, and what they send. */
export interface Case {
  clients: number;
  /** Bytes of each message. */
  bytes: number;
  /**
   * Client 0 is in room 0, client 1 in room 1 and so on. The first of each room sends, and all of the
   * room receive. Unless given, each client is alone, as it is with an echo server.
   */
  rooms?: number;
  /** Further clients, which have sent much and read nothing. */
  stalled?: number;
  /** Messages that each sender has under way at a time; 1 unless given. */
  inFlight?: number;
  /** How often a server sends each message to each client; once unless given. */
  copies?: number;
  /**
   * The part of the highest rate at which messages are sent, whether or not answers come; 0 for
   * connections that stay silent. Unless given, each answer makes the next message.
   */
  part?: number;
}

export interface LoadOptions extends Case {
  /** For how long messages are sent. Then the load waits for those that are under way. */
  milliseconds: number;
  /** Messages a second, whether or not answers come. Unless given, each answer makes the next one. */
  rate?: number;
  /** Milliseconds until what is still under way counts as lost. */
  patience?: number;
}

/** What has come of one load, or of several that are counted together. */
export class Outcome {
  /** Messages that have arrived. */
  count = 0;
  /** Milliseconds from when a message was sent, or was due at a rate, until all have it. */
  readonly waits: number[] = [];
  /** Milliseconds by which each message was sent later than it was due. */
  readonly delays: number[] = [];
  milliseconds = 0;
  /** Milliseconds of the processor that the load itself has used. */
  loadTime = 0;
}

interface Sent {
  data: string | Uint8Array<ArrayBuffer>;
  at: number;
  /** How many deliveries have not arrived yet. */
  missing: number;
}

/**
 * Loads a server through clients that are connected, and adds what came of it to `outcome`.
 *
 * @throws {Error} if a message is lost, wrong, out of order, or if a connection is closed.
 */
export async function load(sockets: WebSocket[], options: LoadOptions, outcome = new Outcome()) {
  const { bytes, rooms = sockets.length, inFlight = 1, copies = 1, rate, milliseconds } = options;
  const start = performance.now();
  const usedBefore = process.cpuUsage();
  const sent = Array.from({ length: rooms }, (): Sent[] => []);
  const received = sockets.map(() => 0);
  const messages = rate ? Math.ceil(rate * milliseconds / 1000) : rooms * inFlight;
  let missing = messages;
  const { promise: finished, resolve, reject } = Promise.withResolvers<void>();
  // An error is thrown below, when all has been sent.
  finished.catch(() => {});

  const send = (room: number, at: number) => {
    const data = nextMessage(bytes, copies);
    sent[room].push({ data, at, missing: sockets.length / rooms * copies });
    sockets[room].send(data);
  };
  const receive = (client: number, data: string | ArrayBuffer) => {
    const room = client % rooms;
    const message = sent[room][Math.floor(received[client] / copies)];
    if (!message || !isAnswer(data, message.data, copies - received[client]++ % copies)) {
      return reject(new Error("A server lost, repeated or changed a message."));
    }
    outcome.count++;
    if (--message.missing > 0) return;
    const now = performance.now();
    outcome.waits.push(now - message.at);
    // A turn in bulk would keep hundreds of megabytes.
    message.data = "";
    if (!rate && now - start < milliseconds) send(room, now);
    else if (--missing === 0) resolve();
  };
  for (const [client, socket] of sockets.entries()) {
    socket.onmessage = ({ data }) => receive(client, data);
    socket.onclose = ({ code }) => reject(new Error(`A server closed a connection (${code}).`));
  }

  for (let number = 0; number < messages; number++) {
    const due = start + (rate ? number / rate * 1000 : 0);
    // A timer would be a millisecond late or more.
    while (performance.now() < due) await setImmediate();
    if (rate) outcome.delays.push(performance.now() - due);
    send(number % rooms, due);
  }
  await within(finished, "the answers of a server", options.patience ?? milliseconds + PATIENCE);
  const { user, system } = process.cpuUsage(usedBefore);
  outcome.loadTime += (user + system) / 1000;
  outcome.milliseconds += performance.now() - start;
  return outcome;
}

let messageNumber = 0;

/** A message that was not sent before, so that no other is taken for it; bulk says how often. */
function nextMessage(bytes: number, copies: number): Sent["data"] {
  messageNumber++;
  if (bytes < BULK) return `${messageNumber}`.padStart(bytes, "0");
  const words = new Uint32Array(bytes / 4).fill(messageNumber);
  words[0] = copies;
  return new Uint8Array(words.buffer);
}

/** Whether this is what was sent, or the article's sentence with it, with `left` copies to come. */
function isAnswer(data: string | ArrayBuffer, sent: Sent["data"], left: number): boolean {
  if (typeof sent === "string") {
    return data === sent || `${data}`.startsWith(`Data received as "${sent}".  time: `);
  }
  new DataView(sent.buffer).setUint32(0, left, true);
  return typeof data !== "string" && Buffer.from(data).equals(sent);
}

/**
 * Opens connections, some at a time.
 *
 * @param waits Gets the milliseconds until each was open.
 */
export async function connectAll(
  urls: string[],
  { clients, rooms = 1 }: Pick<Case, "clients" | "rooms">,
  waits: number[] = [],
): Promise<WebSocket[]> {
  const open = async (client: number) => {
    const start = performance.now();
    const room = client % rooms;
    // Every room has clients of every instance, and so has the sender of every room.
    const url = new URL(urls[(room + Math.floor(client / rooms)) % urls.length]);
    if (rooms > 1) url.searchParams.set("room", `${room}`);
    const { socket } = await TestClient.open(url.href);
    waits.push(performance.now() - start);
    return socket;
  };
  try {
    return await Array.fromAsync(pooledMap(OPENING, Array(clients).keys(), open));
  } catch (cause) {
    const advice = "does the server run, and is ulimit -n enough?";
    throw new Error(`${urls[0]} did not open all of ${clients} connections: ${advice}`, { cause });
  }
}

export async function disconnect(sockets: WebSocket[]): Promise<void> {
  await Promise.all(sockets.map((socket) =>
    new Promise<unknown>((resolve) => {
      if (socket.readyState === WebSocket.CLOSED) resolve(null);
      socket.onclose = resolve;
      socket.close(1000);
    })
  ));
}

/** Connects clients for which much waits, because they read no answer. */
export function stall(url: string, count = 0): Promise<RawClient[]> {
  const message = frame(2, new Uint8Array(BULK));
  return Promise.all(Array.from({ length: count }, async () => {
    const client = await RawClient.upgraded(Number(new URL(url).port));
    for (let sent = 0; sent < STALLED_MESSAGES; sent++) await client.write(message);
    return client;
  }));
}
