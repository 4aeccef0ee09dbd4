// Rooms joined through NATS: what is said in a room of one server is heard in it on all others.
//
// Text goes to `SUBJECT.<room>.text` and binary to `SUBJECT.<room>.binary`, both as they are, so
// that every program that speaks NATS can take part. Read `roomSubject` first, then `connectRelay`.

import { connect, type NatsConnection, PermissionViolationError } from "@nats-io/transport-node";
import { abortable, deadline, delay } from "@std/async";
import { type Log, usageError } from "./cli.ts";

/** Milliseconds that NATS gets to answer, when a server starts and when it stops. */
const TIMEOUT = 3_000;
/** Milliseconds between pings: a NATS that vanished is noticed when two were not answered. */
const PING_INTERVAL = 5_000;
/** Milliseconds before each attempt to reach a NATS that was lost. */
const RECONNECT_WAIT = 1_000;
/** Milliseconds until NATS is used again: by then, the other servers have come back as well. */
const SETTLE_TIME = 2 * RECONNECT_WAIT;
/** Bytes that may wait while NATS is away: some seconds of a busy room. */
const MAX_WAITING_BYTES = 4 * 1024 ** 2;
/** Messages that may wait while NATS is away: short ones take more memory than their bytes. */
const MAX_WAITING_MESSAGES = 32_768;

/** The way to the other servers. */
export interface Relay {
  /** Bytes of the largest message that can be published. */
  maxMessage: number;
  /**
   * Hears a room until `leave` was called as often as `enter`. Resolves when NATS has confirmed
   * that, or at once while NATS is away: the room is heard when it is back.
   */
  enter(room: string): Promise<void>;
  /** Takes back one `enter`. */
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
}

/** A room that this server has clients in. */
interface Room {
  /** How many times it was entered and not left. */
  count: number;
  entered?: Promise<void>;
  unsubscribe?: () => void;
}

/**
 * The beginning of a room's subjects. Its name becomes one token, as in a URL: `red` stays `red`,
 * `a.b` is `a%2Eb`, and `decodeURIComponent` gives the name back.
 */
export function roomSubject(subject: string, room: string): string {
  // Dots separate tokens, and an asterisk stands for any of them, but a URL may hold both.
  const token = encodeURIComponent(room).replaceAll(".", "%2E").replaceAll("*", "%2A");
  return room === "" ? subject : `${subject}.${token}`;
}

/**
 * Joins the rooms of this server to those of all others that use the same NATS and `subject`.
 *
 * @throws {Error} a `usageError` if `url` or `subject` is wrong, or if no NATS answers there.
 * @throws {Deno.errors.NotCapable} without permission for the address of NATS.
 */
export async function connectRelay(options: RelayOptions): Promise<Relay> {
  const { subject, receive, log } = options;
  const url = URL.parse(options.url);
  if (url?.protocol !== "nats:" || url.host === "") {
    throw usageError("--nats takes a URL such as nats://127.0.0.1:4222.");
  }
  if (!/^[^\s.*>]+(\.[^\s.*>]+)*$/.test(subject)) {
    throw usageError(`--subject takes words with dots between them, not "${subject}".`);
  }

  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const rooms = new Map<string, Room>();
  let waiting: { subject: string; data: string | Uint8Array }[] = [];
  let waitingBytes = 0;
  let lost = 0;
  let published = Promise.resolve();
  let isClosing = false;
  /** Whether NATS is there, and the other servers have had the time to come back to it. */
  let isSettled = false;
  let loss = new AbortController();

  const dial = () =>
    connect({
      servers: url.host,
      user: decodeURIComponent(url.username) || undefined,
      pass: decodeURIComponent(url.password) || undefined,
      noEcho: true,
      timeout: TIMEOUT,
      pingInterval: PING_INTERVAL,
      // nats.js can't give up a connection that is stuck, so all of this is done here.
      reconnect: false,
    });

  /** Resolves when NATS has what it was sent so far. Rejects if NATS is lost before that. */
  const confirm = () => abortable(nats.flush(), loss.signal);

  function subscribe(name: string): () => void {
    const subscription = nats.subscribe(`${roomSubject(subject, name)}.*`, {
      callback(error, message) {
        if (error) return;
        if (message.subject.endsWith(".text")) receive(name, decoder.decode(message.data));
        if (message.subject.endsWith(".binary")) receive(name, new Uint8Array(message.data).buffer);
      },
    });
    return () => subscription.unsubscribe();
  }

  /** Publishes what waits. A batch that NATS does not confirm is lost, though some may arrive. */
  async function publishWaiting() {
    while (isSettled && waiting.length > 0) {
      let batch = waiting.length;
      const messages = waiting;
      [waiting, waitingBytes] = [[], 0];
      for (const { subject, data } of messages) {
        try {
          nats.publish(subject, data);
        } catch {
          lost++;
          batch--;
        }
      }
      await confirm().catch(() => lost += batch);
    }
    if (isSettled || isClosing) reportLost();
  }

  function reportLost() {
    if (lost > 0) log(`${lost} messages were not relayed to the other instances.`);
    lost = 0;
  }

  async function watch(connection: NatsConnection) {
    for await (const status of connection.status()) {
      if (status.type === "staleConnection") connection.close();
      if (status.type !== "error") continue;
      log(`NATS: ${status.error.message}`);
      const { error } = status;
      if (error instanceof PermissionViolationError && error.operation === "publish") {
        lost++;
        published = published.then(publishWaiting);
      }
    }
  }

  async function stayConnected() {
    while (true) {
      watch(nats);
      const settling = setTimeout(() => {
        isSettled = true;
        published = published.then(publishWaiting);
      }, SETTLE_TIME);
      await nats.closed();
      clearTimeout(settling);
      isSettled = false;
      loss.abort();
      if (isClosing) return;
      log("NATS is lost: local clients go on, reconnecting.");
      let connection;
      do {
        await delay(RECONNECT_WAIT);
        connection = await dial().catch(() => undefined);
      } while (!connection);
      nats = connection;
      loss = new AbortController();
      for (const [name, room] of rooms) room.unsubscribe = subscribe(name);
      log("NATS is back.");
    }
  }

  let nats = await dial().catch((error) => {
    throw new Error(`No NATS server at ${url.host} (${error.message}): start nats-server there.`);
  });
  isSettled = true;
  stayConnected();

  return {
    maxMessage: nats.info?.max_payload ?? Infinity,
    async enter(name) {
      const room: Room = rooms.get(name) ?? { count: 0 };
      room.count++;
      if (room.count === 1) {
        rooms.set(name, room);
        if (nats.isClosed()) return;
        room.unsubscribe = subscribe(name);
        room.entered = confirm().then(() => {}, () => {});
      }
      await room.entered;
    },
    leave(name) {
      const room = rooms.get(name);
      if (!room || --room.count > 0) return;
      rooms.delete(name);
      room.unsubscribe?.();
    },
    publish(name, data) {
      const isText = typeof data === "string";
      const size = isText ? data.length : data.byteLength;
      const isFull = waitingBytes + size > MAX_WAITING_BYTES ||
        waiting.length === MAX_WAITING_MESSAGES;
      if (isFull && waiting.length > 0) {
        lost++;
        return;
      }
      const kind = isText ? "text" : "binary";
      waiting.push({
        subject: `${roomSubject(subject, name)}.${kind}`,
        data: isText ? data : new Uint8Array(data),
      });
      waitingBytes += size;
      published = published.then(publishWaiting);
    },
    async close() {
      isClosing = true;
      if (!nats.isClosed()) {
        isSettled = true;
        await deadline(published.then(publishWaiting), TIMEOUT).catch(() => {});
      }
      lost += waiting.length;
      reportLost();
      await nats.close();
    },
  };
}
