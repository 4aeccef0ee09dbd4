// Rooms joined through NATS: what is said in a room of one server is heard in it on all others.
//
// Text goes to the subject `SUBJECT.<room>.text` and binary to `SUBJECT.<room>.binary`, both as
// they are, so that any program that speaks NATS can take part.

import type { NatsConnection, Subscription } from "@nats-io/transport-node";
import { deadline, delay } from "@std/async";
import { unescape } from "node:querystring";
import { type Log, usageError } from "./cli.ts";

/** The name is no literal where it is imported, because Deno would fetch it before it is needed. */
const PACKAGE: string = "@nats-io/transport-node";
/** Milliseconds that NATS gets to answer a server that connects, or that stops. */
const TIMEOUT = 3_000;
/** Milliseconds between pings: a NATS that vanished is noticed when two were not answered. */
const PING_INTERVAL = 5_000;
/** Milliseconds between two attempts to reach a NATS that was lost. */
const RECONNECT_WAIT = 1_000;
/** Bytes that may wait while NATS is away: little beside what may wait for clients. */
const MAX_WAITING = 4 * 1024 ** 2;
/** Bytes that a message takes while it waits, beside its content. */
const MESSAGE_COST = 128;

/** How to reach the other servers. The times are by default the constants of the same name. */
export interface RelayOptions {
  /** Where NATS is, such as `nats://user:password@localhost:4222`. */
  url: string;
  /** The NATS subject of the common room, and the beginning of that of all others. */
  subject: string;
  /** Told what is said in a room on another server. */
  receive(room: string, data: string | ArrayBuffer): void;
  log: Log;
  timeout?: number;
  pingInterval?: number;
  reconnectWait?: number;
}

/** A connection of nats.js, with the one part of its inside that is used here. */
type Connection = NatsConnection & { protocol: { transport: { close(): void } } };

/** A room that this server has clients in. */
interface Room {
  /** How often it was entered and not left again. */
  clients: number;
  subscription: Subscription;
  /** Resolves when NATS has confirmed the subscription, or is lost. */
  entered: Promise<void>;
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

/** The way to the other servers. */
export class Relay {
  readonly #rooms = new Map<string, Room>();
  #isLost = false;
  /** When the other servers have had the time to come back to a NATS that was lost. */
  #settledAt = 0;
  #waiting: { subject: string; bytes: Uint8Array }[] = [];
  #waitingBytes = 0;
  #published = Promise.resolve();
  /** How many messages were not relayed since that was last reported. */
  #unrelayed = 0;

  private constructor(private nats: Connection, private options: Required<RelayOptions>) {}

  /**
   * Joins the rooms of this server to those of all servers that use the same NATS and `subject`.
   *
   * @throws {Error} if no NATS answers, or a `usageError` if `url` or `subject` is wrong.
   * @throws {Deno.errors.NotCapable} without the permission to connect to NATS.
   */
  static async connect(given: RelayOptions): Promise<Relay> {
    const options = {
      timeout: TIMEOUT,
      pingInterval: PING_INTERVAL,
      reconnectWait: RECONNECT_WAIT,
      ...given,
    };
    const { subject, log, timeout, pingInterval, reconnectWait } = options;
    const url = URL.parse(options.url);
    if (url?.protocol !== "nats:" || url.host === "") {
      throw usageError("--nats takes a URL such as nats://127.0.0.1:4222.");
    }
    if (!/^[^\s.*>]+(\.[^\s.*>]+)*$/.test(subject)) {
      throw usageError(`--subject takes words with dots between them, not "${subject}".`);
    }
    const { host } = url;
    const { state } = await Deno.permissions.request({ name: "net", host });
    if (state !== "granted") throw new Deno.errors.NotCapable(`Requires net access to "${host}"`);

    let relay: Relay | undefined = undefined;
    contain(log, () => !relay || relay.#isLost && !relay.nats.isClosed());
    const { connect } = await import(PACKAGE);
    const nats: Connection = await connect({
      servers: host,
      user: unescape(url.username),
      pass: unescape(url.password),
      noEcho: true,
      timeout,
      pingInterval,
      maxReconnectAttempts: -1,
      ignoreAuthErrorAbort: true,
      reconnectDelayHandler: () => reconnectWait,
    }).catch(({ message }: Error) => {
      throw new Error(`No NATS server at ${host} (${message}): start nats-server there.`);
    });
    relay = new Relay(nats, options);
    relay.#watch();
    return relay;
  }

  /** Bytes of the largest message that can be published. */
  get maxMessage(): number {
    return this.nats.info?.max_payload ?? Infinity;
  }

  /**
   * Hears a room until `leave` was called as often as `enter`. Resolves when NATS has confirmed
   * that. While NATS is away it resolves at once, and the room is heard when NATS is back.
   */
  async enter(name: string): Promise<void> {
    const room = this.#rooms.get(name) ?? this.#subscribe(name);
    room.clients++;
    if (!this.#isLost) await room.entered;
  }

  #subscribe(name: string) {
    const { subject, receive } = this.options;
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const subscription = this.nats.subscribe(`${roomSubject(subject, name)}.*`, {
      callback(error, { subject, data }) {
        if (error) return;
        if (subject.endsWith(".text")) receive(name, decoder.decode(data));
        if (subject.endsWith(".binary")) receive(name, new Uint8Array(data).buffer);
      },
    });
    const room = { clients: 0, subscription, entered: this.nats.flush().catch(() => {}) };
    this.#rooms.set(name, room);
    return room;
  }

  /** Takes one `enter` back. */
  leave(name: string): void {
    const room = this.#rooms.get(name);
    if (!room || --room.clients > 0) return;
    this.#rooms.delete(name);
    room.subscription.unsubscribe();
  }

  /** Sends a message to the same room of all other servers. */
  publish(name: string, data: string | ArrayBuffer): void {
    const isText = typeof data === "string";
    const subject = `${roomSubject(this.options.subject, name)}.${isText ? "text" : "binary"}`;
    const bytes = isText ? new TextEncoder().encode(data) : new Uint8Array(data);
    const size = bytes.length + MESSAGE_COST;
    // A message that is larger than all that may wait is let through where nothing waits.
    if (this.#waiting.length > 0 && this.#waitingBytes + size > MAX_WAITING) {
      this.#unrelayed++;
      return;
    }
    this.#waiting.push({ subject, bytes });
    this.#waitingBytes += size;
    this.#publishSoon();
  }

  /** Publishes what still waits, counts what NATS does not take within `timeout`, and leaves. */
  async close(): Promise<void> {
    const pause = Math.max(0, this.#settledAt - performance.now());
    await deadline(this.#published, pause + this.options.timeout).catch(() => {});
    await this.nats.close();
    this.#unrelayed += this.#waiting.length;
    this.#report();
  }

  #publishSoon() {
    this.#published = this.#published.then(() => this.#publishWaiting());
  }

  /** Publishes what waits, batch by batch: NATS confirms each one before the next. */
  async #publishWaiting() {
    while (!this.#isLost && this.#waiting.length > 0) {
      const pause = this.#settledAt - performance.now();
      if (pause > 0) {
        await delay(pause);
        continue;
      }
      // All of it counts as not relayed until NATS has confirmed it.
      this.#unrelayed += this.#waiting.length;
      // NATS may take only smaller messages since it is back.
      const batch = this.#waiting.filter(({ bytes }) => bytes.length <= this.maxMessage);
      [this.#waiting, this.#waitingBytes] = [[], 0];
      try {
        for (const { subject, bytes } of batch) this.nats.publish(subject, bytes);
        await this.nats.flush();
        this.#unrelayed -= batch.length;
      } catch {
        // Some of the messages may have arrived.
        this.#lose();
      }
    }
    if (!this.#isLost) this.#report();
  }

  #report() {
    const { log } = this.options;
    if (this.#unrelayed > 0) {
      log(`Messages not relayed to the other servers: ${this.#unrelayed}.`);
    }
    this.#unrelayed = 0;
  }

  /** Changes nothing the second time: nats.js tells of a loss again after each refused attempt. */
  #lose() {
    if (!this.#isLost) this.options.log("NATS is lost: local clients go on, reconnecting.");
    this.#isLost = true;
  }

  /** Follows the connection: nats.js makes it again, with its subscriptions, when it is lost. */
  async #watch() {
    const { log, timeout, reconnectWait } = this.options;
    let reason = "";
    for await (const status of this.nats.status()) {
      if (status.type === "disconnect") {
        this.#lose();
      } else if (status.type === "reconnect" && this.#isLost) {
        log("NATS is back.");
        reason = "";
        this.#isLost = false;
        // Another server may be in an attempt that began just before, and need one more.
        this.#settledAt = performance.now() + timeout + 2 * reconnectWait;
        this.#publishSoon();
      } else if (status.type === "staleConnection") {
        // nats.js would wait until all is written, which never happens if NATS stands still.
        this.nats.protocol.transport.close();
      } else if (status.type === "error") {
        const { message } = status.error;
        // While NATS refuses, each attempt to come back ends with the same error.
        if (!this.#isLost || message !== reason) log(`NATS: ${message}`);
        reason = message;
        if (message.startsWith("Permissions Violation for Publish")) this.#unrelayed++;
        this.#publishSoon();
      }
    }
  }
}

/** Keeps nats.js from ending the process, and from printing raw what it can't read. */
function contain(log: Log, isReconnecting: () => boolean) {
  // When NATS resets a connection that it refuses, nats.js no longer listens for errors of it.
  globalThis.addEventListener("error", (event) => {
    if (event.error?.code === "ECONNRESET" && isReconnecting()) event.preventDefault();
  });
  const { log: print } = console;
  console.log = (...data) =>
    data[0] === "reader closed" ? log(`NATS: ${data[1].message}`) : print(...data);
}
