// Rooms joined through NATS: what is said in a room of one server is heard in it on all others.
//
// Text goes to the subject `SUBJECT.<room>.text` and binary to `SUBJECT.<room>.binary`, both as
// they are, so that any program that speaks NATS can take part.

import { deadline, delay } from "@std/async";
import type { Message } from "./connection.ts";
import { type Log, unfailing, usageError } from "./lines.ts";
import { NatsConnection } from "./nats_connection.ts";
import { NatsQueue } from "./nats_queue.ts";
import type { Server } from "./serve.ts";

/** Milliseconds that NATS gets to let a server in, and to take what waits when a server stops. */
const TIMEOUT = 3_000;
/** Milliseconds that a newcomer waits at the most until its room is joined. */
const JOIN_TIMEOUT = 1_000;
/** Milliseconds between pings: a NATS that vanished is noticed when two were not answered. */
const PING_INTERVAL = 5_000;
/** Milliseconds between two attempts to reach a NATS that was lost. */
const RECONNECT_WAIT = 1_000;
/** Milliseconds between lines that count what was not taken. */
const REPORT_INTERVAL = 1_000;

/** How to reach the other servers. The times are by default the constants of the same name. */
export interface RelayOptions {
  /** Where NATS is: `nats://user:password@localhost:4222`, or `tls://token@example.com`. */
  url: string;
  /** The NATS subject of the common room, and the beginning of that of all others. */
  subject: string;
  /** Told what is said in a room on another server. */
  receive(room: string, message: Message): void;
  log: Log;
  timeout?: number;
  pingInterval?: number;
  reconnectWait?: number;
}

/** A room that this server has clients in, with its subscription. */
interface Room {
  id: number;
  subject: string;
  /** How often it was entered and not left again. */
  clients: number;
  /** Done when NATS has confirmed the subscription, or nobody is to wait for that any longer. */
  joined: Promise<void>;
}

/**
 * What the subjects of a room begin with. The name of the room becomes one word of it, such as
 * `a%20b`, of which `decodeURIComponent` makes the name again.
 */
export function roomSubject(subject: string, room: string): string {
  // In a subject, a dot separates words and an asterisk stands for any word.
  const word = encodeURIComponent(room).replaceAll(".", "%2E").replaceAll("*", "%2A");
  return room === "" ? subject : `${subject}.${word}`;
}

/** The way to the other servers. */
export class Relay {
  readonly #rooms = new Map<string, Room>();
  readonly #closing = new AbortController();
  readonly #followed: Promise<void>;
  readonly #queue: NatsQueue;
  #lastId = 0;
  /** How many messages of other servers were not taken since that was last told. */
  #untaken = 0;

  private constructor(
    private nats: NatsConnection,
    private readonly options: Required<RelayOptions>,
  ) {
    this.#queue = new NatsQueue(nats, options.log);
    this.#followed = this.#follow();
  }

  /**
   * Joins the rooms of this server to those of all servers that use the same NATS and `subject`.
   *
   * @throws {Error} if no NATS answers, or a `usageError` if `url` or `subject` is wrong.
   * @throws {Deno.errors.NotCapable} without the permission to connect to NATS.
   */
  static async connect(given: RelayOptions): Promise<Relay> {
    const times = { timeout: TIMEOUT, pingInterval: PING_INTERVAL, reconnectWait: RECONNECT_WAIT };
    const options = { ...times, ...given, log: unfailing(given.log) };
    const url = URL.parse(options.url);
    if (!url || !/^(nats|tls):$/.test(url.protocol) || url.host === "") {
      throw usageError("NATS has a URL such as nats://127.0.0.1:4222 or tls://token@example.com.");
    }
    if (!/^[^\s.*>]+(\.[^\s.*>]+)*$/.test(options.subject)) {
      throw usageError(`A NATS subject is words with dots between them, not "${options.subject}".`);
    }
    return new Relay(await NatsConnection.open({ ...options, url, host: url.host }), options);
  }

  /** What waits for NATS counts in the budget of this server. Where it is full, nothing is taken. */
  set server(server: Server) {
    this.#queue.server = server;
  }

  /** Bytes of the largest message that can be published. */
  get maxMessage(): number {
    return this.nats.info.max_payload;
  }

  /**
   * Hears a room until `leave` was called as often as `enter`. Done when NATS has confirmed that,
   * or after a second: the room is joined as soon as NATS answers, or is back.
   */
  async enter(name: string): Promise<void> {
    const room = this.#rooms.get(name) ?? this.#join(name);
    room.clients++;
    await room.joined;
  }

  #join(name: string): Room {
    const [id, subject] = [++this.#lastId, `${roomSubject(this.options.subject, name)}.*`];
    const room = { id, subject, clients: 0, joined: Promise.resolve() };
    this.#rooms.set(name, room);
    if (this.nats.isOpen) {
      this.nats.subscribe(subject, id);
      room.joined = deadline(this.nats.ping(), JOIN_TIMEOUT).catch((error: unknown) => {
        if (!(error instanceof DOMException)) return;
        const which = name ? `Room ${name}` : "The common room";
        this.options.log(`${which} is not joined yet, because NATS does not answer.`);
      });
    }
    return room;
  }

  /** Takes one `enter` back. */
  leave(name: string): void {
    const room = this.#rooms.get(name);
    if (!room || --room.clients > 0) return;
    this.#rooms.delete(name);
    this.nats.unsubscribe(room.id);
  }

  /** Sends a message to this room of the other servers. Done when little waits for NATS. */
  publish(name: string, message: Message): Promise<void> {
    const isText = typeof message === "string";
    const subject = `${roomSubject(this.options.subject, name)}.${isText ? "text" : "binary"}`;
    const bytes = isText ? new TextEncoder().encode(message) : new Uint8Array(message);
    return this.#queue.push(subject, bytes);
  }

  /** Publishes what still waits, counts what NATS does not take within `timeout`, and leaves. */
  async close(): Promise<void> {
    await this.#queue.close(this.options.timeout);
    this.#closing.abort();
    this.nats.close();
    await this.#followed;
  }

  /** Takes what NATS sends, and connects again when NATS is lost. */
  async #follow() {
    const { log, timeout, reconnectWait } = this.options;
    while (true) {
      const reason = await this.nats.listen({
        receive: (subject, data) => this.#receive(subject, data),
        refuse: (reason) => {
          log(`NATS: ${reason}`);
          if (reason.startsWith("Permissions Violation for Publish")) this.#queue.lose();
        },
      });
      if (this.#closing.signal.aborted) return;
      log(`NATS is lost (${reason.message}): local clients go on, reconnecting.`);
      const nats = await this.#reconnect();
      if (!nats) return;
      log("NATS is back.");
      this.nats = nats;
      for (const { subject, id } of this.#rooms.values()) nats.subscribe(subject, id);
      // Another server may be in an attempt that began just before, and need one more.
      this.#queue.resume(nats, timeout + 2 * reconnectWait);
    }
  }

  /** Tries NATS, and the other servers of its cluster, until one of them answers. */
  async #reconnect(): Promise<NatsConnection | undefined> {
    const url = new URL(this.options.url);
    const { signal } = this.#closing;
    const told = new Set<string>();
    while (!signal.aborted) {
      await delay(this.options.reconnectWait, { signal }).catch(() => {});
      for (const host of [url.host, ...this.nats.info.connect_urls ?? []]) {
        try {
          return await NatsConnection.open({ ...this.options, url, host, signal });
        } catch (error) {
          const { message } = error as Error;
          // Most attempts end as others did.
          if (!told.has(message) && !signal.aborted) this.options.log(message);
          told.add(message);
        }
      }
    }
  }

  #receive(subject: string, data: Uint8Array<ArrayBuffer>) {
    const [kind, word = ""] = subject.slice(this.options.subject.length + 1).split(".").reverse();
    const room = decodeURIComponent(word);
    if (!this.#rooms.has(room) || (kind !== "text" && kind !== "binary")) return;
    if (this.#queue.server?.isFull) return void this.#leaveOut();
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.options.receive(room, kind === "text" ? decoder.decode(data) : data.buffer);
  }

  /** Counts a message that is not taken, and tells how many they are a little later. */
  async #leaveOut() {
    if (this.#untaken++ > 0) return;
    await delay(REPORT_INTERVAL, { signal: this.#closing.signal }).catch(() => {});
    this.options.log(`Messages of other servers not taken, too much waits: ${this.#untaken}.`);
    this.#untaken = 0;
  }
}
