// Rooms joined through NATS: what is said in a room of one server is heard in it on all others.
//
// Text goes to the subject `SUBJECT.<room>.text` and binary to `SUBJECT.<room>.binary`, both as
// they are, so that any program that speaks NATS can take part. Read `roomSubject` first, then
// `connectRelay` from its end, where the functions of a `Relay` are.

import type * as Transport from "@nats-io/transport-node";
import { abortable, deadline, delay } from "@std/async";
import { type Log, usageError } from "./cli.ts";

/** The name is no literal where it is imported, because Deno would fetch it before it is needed. */
const PACKAGE: string = "@nats-io/transport-node";
/** Milliseconds that NATS gets to answer, when a server starts and when it stops. */
const TIMEOUT = 3_000;
/** Milliseconds between pings: a NATS that vanished is noticed when two were not answered. */
const PING_INTERVAL = 5_000;
/** Milliseconds before each attempt to reach a NATS that was lost. */
const RECONNECT_WAIT = 1_000;
/** Bytes that may wait while NATS is away: little beside what may wait for clients. */
const MAX_WAITING_BYTES = 4 * 1024 ** 2;
/** Messages that may wait while NATS is away: a short one takes more than its bytes. */
const MAX_WAITING = 32_768;

/** The way to the other servers. */
export interface Relay {
  /** Bytes of the largest message that can be published. */
  maxMessage: number;
  /**
   * Hears a room until `leave` was called as often as `enter`. Resolves when NATS has confirmed
   * that. While NATS is away it resolves at once, and the room is heard when NATS is back.
   */
  enter(room: string): Promise<void>;
  /** Takes one `enter` back. */
  leave(room: string): void;
  /** Sends a message to the same room of all other servers. */
  publish(room: string, data: string | ArrayBuffer): void;
  /** Publishes what still waits, and leaves. */
  close(): Promise<void>;
}

/** How to reach the other servers. */
export interface RelayOptions {
  /** Where the NATS server is, such as `nats://user:password@localhost:4222`. */
  url: string;
  /** The NATS subject of the common room, and the beginning of that of all others. */
  subject: string;
  /** Told what is said in a room on another server. */
  receive(room: string, data: string | ArrayBuffer): void;
  log: Log;
  /** Milliseconds between pings (5,000). */
  pingInterval?: number;
  /** Milliseconds before each attempt to reach a NATS that was lost (1,000). */
  reconnectWait?: number;
}

/** A room that this server has clients in. */
interface Room {
  /** How often it was entered and not left again. */
  clients: number;
  /** Missing where the room was entered while NATS was away. */
  subscription?: Transport.Subscription;
  /** Resolves when NATS has confirmed the subscription, or is lost. */
  entered?: Promise<void>;
}

/**
 * What the subjects of a room begin with. The name of the room becomes one word of it: `red` stays
 * `red`, `a b` becomes `a%20b`, and `decodeURIComponent` gives the name back.
 */
export function roomSubject(subject: string, room: string): string {
  // In a subject, a dot separates words and an asterisk stands for any word.
  const word = encodeURIComponent(room).replaceAll(".", "%2E").replaceAll("*", "%2A");
  return room === "" ? subject : `${subject}.${word}`;
}

/** Where NATS is, and who this server is there. */
function parseServer(url: string): { host: string; user: string; pass: string } {
  try {
    const { protocol, host, username, password } = new URL(url);
    const [user, pass] = [username, password].map(decodeURIComponent);
    if (protocol === "nats:" && host !== "") return { host, user, pass };
  } catch {
    // Neither `URL` nor `decodeURIComponent` says what is expected.
  }
  throw usageError("--nats takes a URL such as nats://127.0.0.1:4222.");
}

/**
 * Joins the rooms of this server to those of all servers that use the same NATS and `subject`.
 *
 * @throws {Error} if no NATS answers, or a `usageError` if `url` or `subject` is wrong.
 * @throws {Deno.errors.NotCapable} without the permission to connect to NATS.
 */
export async function connectRelay(options: RelayOptions): Promise<Relay> {
  const { subject, receive, log, pingInterval = PING_INTERVAL } = options;
  const { reconnectWait = RECONNECT_WAIT } = options;
  const { host, user, pass } = parseServer(options.url);
  if (!/^[^\s.*>]+(\.[^\s.*>]+)*$/.test(subject)) {
    throw usageError(`--subject takes words with dots between them, not "${subject}".`);
  }
  const transport: typeof Transport = await import(PACKAGE);
  const encoder = new TextEncoder();
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const rooms = new Map<string, Room>();
  let waiting: { subject: string; bytes: Uint8Array }[] = [];
  let waitingBytes = 0;
  let published = Promise.resolve();
  /** How many messages were not relayed since that was last reported. */
  let lost = 0;
  let nats: Transport.NatsConnection;
  /** Where NATS can be reached: it tells where the rest of its cluster is. */
  let servers = [host];
  /** Aborted when NATS is lost: nats.js leaves a `flush` that is under way without an answer. */
  let loss = new AbortController();
  /** Whether NATS is there, and the other servers have had the time to come back to it. */
  let isSettled = false;
  const closing = new AbortController();

  // When NATS resets a connection that it refuses, nats.js no longer listens for errors of it.
  globalThis.addEventListener("error", (event) => {
    const { code, syscall } = event.error ?? {};
    if (!isSettled && code === "ECONNRESET" && syscall === "read") event.preventDefault();
  }, { signal: closing.signal });
  // When nats.js can't read what NATS sends, it prints that as it is, and only stops reading.
  const { log: print } = console;
  console.log = (...data) => {
    if (data[0] !== "reader closed") return print(...data);
    log(`NATS: ${data[1].message}`);
    // It may come together with what completes the connection.
    setTimeout(() => nats?.close());
  };

  function dial(): Promise<Transport.NatsConnection> {
    // Where a connection is stuck, nats.js would never end it and reconnect, so that is done here.
    const limits = { timeout: TIMEOUT, pingInterval, reconnect: false };
    return transport.connect({ servers, user, pass, noEcho: true, ...limits });
  }

  async function stayConnected() {
    while (true) {
      watch(nats);
      await nats.closed();
      isSettled = false;
      loss.abort();
      if (closing.signal.aborted) return;
      log("NATS is lost: local clients go on, reconnecting.");
      const connection = await reconnect();
      if (closing.signal.aborted) return connection.close();
      log("NATS is back.");
      nats = connection;
      loss = new AbortController();
      for (const [name, room] of rooms) room.subscription = subscribe(name);
      // After twice the wait, the other servers have come back as well.
      delay(2 * reconnectWait, { signal: loss.signal }).then(() => {
        isSettled = true;
        publishSoon();
      }, () => {});
    }
  }

  async function reconnect(): Promise<Transport.NatsConnection> {
    let reason = "";
    while (true) {
      await delay(reconnectWait);
      try {
        return await dial();
      } catch (error) {
        const { message } = error as Error;
        if (message !== reason) log(`NATS: ${message}`);
        reason = message;
      }
    }
  }

  async function watch(connection: Transport.NatsConnection) {
    servers = [host, ...connection.info?.connect_urls ?? []];
    for await (const status of connection.status()) {
      if (status.type === "update") servers.push(...status.added ?? []);
      if (status.type === "staleConnection") connection.close();
      if (status.type !== "error") continue;
      const { error } = status;
      log(`NATS: ${error.message}`);
      if (error instanceof transport.PermissionViolationError && error.operation === "publish") {
        lost++;
        publishSoon();
      }
    }
  }

  function subscribe(name: string): Transport.Subscription {
    return nats.subscribe(`${roomSubject(subject, name)}.*`, {
      callback(error, { subject, data }) {
        if (error) return;
        if (subject.endsWith(".text")) receive(name, decoder.decode(data));
        if (subject.endsWith(".binary")) receive(name, new Uint8Array(data).buffer);
      },
    });
  }

  /** Resolves when NATS has what it was sent so far. Rejects if NATS is lost before. */
  function confirm(): Promise<void> {
    return abortable(nats.flush(), loss.signal);
  }

  function publishSoon() {
    published = published.then(publishWaiting);
  }

  /** Publishes what waits. A batch that NATS does not confirm is lost, though some may arrive. */
  async function publishWaiting() {
    while (isSettled && waiting.length > 0) {
      const batch = waiting;
      [waiting, waitingBytes] = [[], 0];
      let count = batch.length;
      for (const { subject, bytes } of batch) {
        try {
          nats.publish(subject, bytes);
        } catch {
          // NATS takes only smaller messages since it is back.
          count--;
          lost++;
        }
      }
      await confirm().catch(() => lost += count);
    }
    if (isSettled) reportLost();
  }

  function reportLost() {
    const what = lost === 1 ? "message was" : "messages were";
    if (lost > 0) log(`${lost} ${what} not relayed to the other instances.`);
    lost = 0;
  }

  nats = await dial().catch((error) => {
    if (error instanceof Deno.errors.NotCapable) throw error;
    // This is how Deno's `node:dns` reports that the permission is missing.
    if (error.code === "EPERM") {
      throw new Deno.errors.NotCapable(`Requires net access to "${host}"`);
    }
    throw new Error(`No NATS server at ${host} (${error.message}): start nats-server there.`);
  });
  isSettled = true;
  stayConnected();

  return {
    maxMessage: nats.info?.max_payload ?? Infinity,
    async enter(name) {
      const room: Room = rooms.get(name) ?? { clients: 0 };
      rooms.set(name, room);
      if (++room.clients === 1 && !nats.isClosed()) {
        room.subscription = subscribe(name);
        room.entered = confirm().catch(() => {});
      }
      await room.entered;
    },
    leave(name) {
      const room = rooms.get(name);
      if (!room || --room.clients > 0) return;
      rooms.delete(name);
      room.subscription?.unsubscribe();
    },
    publish(name, data) {
      const isText = typeof data === "string";
      const bytes = isText ? encoder.encode(data) : new Uint8Array(data);
      const isFull = waitingBytes + bytes.length > MAX_WAITING_BYTES ||
        waiting.length === MAX_WAITING;
      // A message that is larger than all that may wait is let through where nothing waits.
      if (isFull && waiting.length > 0) {
        lost++;
        return;
      }
      const kind = isText ? "text" : "binary";
      waiting.push({ subject: `${roomSubject(subject, name)}.${kind}`, bytes });
      waitingBytes += bytes.length;
      publishSoon();
    },
    async close() {
      closing.abort();
      isSettled = !nats.isClosed();
      await deadline(published.then(publishWaiting), TIMEOUT).catch(() => {});
      await nats.close();
      await published;
      lost += waiting.length;
      reportLost();
    },
  };
}
