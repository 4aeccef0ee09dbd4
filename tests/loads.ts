// The loads of the bench: what clients send, when they send it, and which answers they take. A load
// measures only a server that does its work: all that is lost, wrong or late is seen here.

import { deadline } from "@std/async";
import { setImmediate } from "node:timers/promises";

/** Messages of a room under way at a time: with one, the server would wait for the load. */
export const IN_FLIGHT = 8;
/** Connections opened at a time: enough to keep a server busy, too few to overflow its backlog. */
export const OPENING = 50;
/** Milliseconds after which missing connections or answers are given up. */
const PATIENCE = 30_000;
const SPOILT = "A server lost, repeated or changed a message.";

export interface LoadOptions {
  /** Bytes of each message. */
  bytes: number;
  /** For how long messages are sent. Then the load waits for those that are under way. */
  milliseconds: number;
  /** Client 0 is in room 0, client 1 in room 1 and so on. All are in one if this is left out. */
  rooms?: number;
  /** Messages a second of a `steady` load. */
  rate?: number;
  /** Milliseconds until what is still under way counts as lost. */
  patience?: number;
}

export interface Outcome {
  /** Messages that were answered, or deliveries. */
  count: number;
  /** Milliseconds that each message waited for its answer, or until the last one received it. */
  waits: number[];
  /** Milliseconds by which each message was sent later than it was due. */
  delays?: number[];
}

/**
 * Loads a server through clients that are connected.
 *
 * @throws {Error} if a message is lost, wrong, out of order, or if a connection is closed.
 */
export type Load = (sockets: WebSocket[], options: LoadOptions) => Promise<Outcome>;

/** Every client sends a text, waits for the answer and sends the next. */
export const echo: Load = async (sockets, options) => {
  const end = performance.now() + options.milliseconds;
  const waits: number[] = [];
  const sent: { text: string; at: number }[] = [];
  let waiting = sockets.length;
  const send = (client: number) => {
    sent[client] = { text: nextText(options.bytes), at: performance.now() };
    sockets[client].send(sent[client].text);
  };
  const finished = listen(sockets, options, (client, data) => {
    const now = performance.now();
    if (!data.includes(sent[client].text)) throw new Error(SPOILT);
    waits.push(now - sent[client].at);
    if (now < end) send(client);
    else waiting--;
    return waiting === 0;
  });
  for (const client of sockets.keys()) send(client);
  await finished;
  return { count: waits.length, waits };
};

/** The first client of each room sends the next text whenever one has reached all of the room. */
export const broadcast: Load = async (sockets, options) => {
  const { bytes, milliseconds, rooms = 1 } = options;
  const end = performance.now() + milliseconds;
  const waits: number[] = [];
  const sent: { text: string; at: number; deliveries: number }[][] = [];
  const received = sockets.map(() => 0);
  let underWay = 0;
  const send = (room: number) => {
    underWay++;
    const message = { text: nextText(bytes), at: performance.now(), deliveries: 0 };
    sent[room].push(message);
    sockets[room].send(message.text);
  };
  const finished = listen(sockets, options, (client, data) => {
    const room = client % rooms;
    const message = sent[room][received[client]++];
    if (data !== message?.text) throw new Error(SPOILT);
    if (++message.deliveries < sockets.length / rooms) return false;
    const now = performance.now();
    waits.push(now - message.at);
    underWay--;
    if (now < end) send(room);
    return underWay === 0;
  });
  for (let room = 0; room < rooms; room++) {
    sent[room] = [];
    for (let message = 0; message < IN_FLIGHT; message++) send(room);
  }
  await finished;
  return { count: waits.length * sockets.length / rooms, waits };
};

/**
 * Clients send in turn, at a fixed rate, whether or not answers come. A wait begins when its message
 * was due, so that all that were due while a server stood still count, and not only the first.
 */
export const steady: Load = async (sockets, options) => {
  const { bytes, milliseconds, rate = 1000 } = options;
  const start = performance.now();
  const [waits, delays]: number[][] = [[], []];
  const sent: { text: string; due: number }[][] = sockets.map(() => []);
  const total = Math.ceil(rate * milliseconds / 1000);
  const finished = listen(sockets, options, (client, data) => {
    const message = sent[client].shift();
    if (!message || !data.includes(message.text)) throw new Error(SPOILT);
    waits.push(performance.now() - message.due);
    return waits.length === total;
  });
  // An error is thrown below, when all has been sent.
  finished.catch(() => {});
  while (delays.length < total) {
    const due = start + delays.length / rate * 1000;
    const delay = performance.now() - due;
    if (delay >= 0) {
      const client = delays.length % sockets.length;
      sent[client].push({ text: nextText(bytes), due });
      sockets[client].send(sent[client][sent[client].length - 1].text);
      delays.push(delay);
    } else {
      // A timer would be a millisecond late or more.
      await setImmediate();
    }
  }
  await finished;
  return { count: total, waits, delays };
};

let texts = 0;

/** A text that was not sent before, so that no other is taken for it. */
function nextText(bytes: number): string {
  return `${++texts}`.padStart(bytes, "0");
}

/** Gives `receive` all that arrives until it returns true, or something is wrong. */
async function listen(
  sockets: WebSocket[],
  { milliseconds, patience = PATIENCE }: LoadOptions,
  receive: (client: number, data: string) => boolean,
): Promise<void> {
  const finished = new Promise<void>((resolve, reject) => {
    for (const [client, socket] of sockets.entries()) {
      socket.onmessage = ({ data }) => {
        try {
          if (receive(client, typeof data === "string" ? data : "")) resolve();
        } catch (error) {
          reject(error);
        }
      };
      socket.onclose = ({ code }) => reject(new Error(`A server closed a connection (${code}).`));
    }
  });
  await deadline(finished, milliseconds + patience).catch((error: unknown) => {
    throw error instanceof DOMException ? new Error("A server has stopped answering.") : error;
  });
}

/** Opens connections, some at a time. What is not open after `patience` counts as failed. */
export async function handshakes(
  urls: string[],
  count: number,
  { rooms = 1, patience = PATIENCE } = {},
): Promise<{ sockets: WebSocket[]; waits: number[]; failures: number }> {
  const end = performance.now() + patience;
  const sockets: WebSocket[] = [];
  const waits: number[] = [];
  let [started, failures] = [0, 0];
  const openNext = async () => {
    while (started < count) {
      const client = started++;
      const room = client % rooms;
      // Every room has clients of every instance, and so has the sender of every room.
      const url = new URL(urls[(room + Math.floor(client / rooms)) % urls.length]);
      if (rooms > 1) url.searchParams.set("room", `${room}`);
      const start = performance.now();
      const socket = new WebSocket(url);
      const opened = new Promise<void>((resolve, reject) => {
        socket.onopen = () => resolve();
        socket.onerror = reject;
      });
      await deadline(opened, Math.max(0, end - start)).then(() => {
        waits.push(performance.now() - start);
        sockets[client] = socket;
      }, () => {
        failures++;
        socket.close();
      });
    }
  };
  await Promise.all(Array.from({ length: OPENING }, openNext));
  // Of a failure, no hole is left.
  return { sockets: sockets.filter(() => true), waits, failures };
}

export async function connectAll(urls: string[], count: number, rooms = 1): Promise<WebSocket[]> {
  const { sockets, failures } = await handshakes(urls, count, { rooms });
  if (failures === 0) return sockets;
  await disconnect(sockets);
  throw new Error(
    `${failures} of ${count} connections to ${
      urls[0]
    } failed: does the server run, and is ulimit -n enough?`,
  );
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
