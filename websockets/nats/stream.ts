// The stream of NATS JetStream that keeps what is said in all rooms, by plain requests to NATS.
//
// Each room has one subject, `SUBJECT.<room>.message`, so that text and binary have one order. When
// NATS has stored a message, it sends it as `republished.SUBJECT.<room>.message`, with its number and
// that of the message before it in the same room.

import type { Msg, MsgHdrs, NatsConnection } from "@nats-io/nats-core/internal";
import type { Message } from "../message.ts";
import { printable } from "../log.ts";
import { loadNats } from "./connect.ts";
import type { Link } from "./link.ts";
import { roomSubject } from "./rooms.ts";

/** Messages of each room. They are read one by one, each in about 0.15 ms. */
export const MAX_KEPT = 1_000;
/** Bytes of all rooms, in the memory of NATS. */
const MAX_BYTES = 64 * 1024 ** 2;
/** Nanoseconds of a day. If a room is silent for so long, nobody knows whether something is gone. */
const MAX_AGE = 24 * 60 * 60 * 1e9;
/** Milliseconds in which NATS knows a message again that is sent twice. */
export const DUPLICATE_WINDOW = 120_000;
/** What tells that a message is binary. All others are text. */
const BINARY = "application/octet-stream";

/** What is in the stream. */
export interface StreamState {
  /** What tells this stream from one that was there before, with other messages of the same numbers. */
  epoch: string;
  /** The number of the first message in it; 0 if there was none. */
  first: number;
  /** The number of the last message that was ever in it. */
  last: number;
}

/** A message in the stream. */
export interface Stored {
  number: number;
  message: Message;
}

/** The stream of all rooms with one subject. */
export class Stream {
  readonly #link: Link;
  readonly #name: string;
  readonly #config: string;
  readonly #subject: string;
  readonly #makeHeaders: () => MsgHdrs;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** What the ids of the messages of this server begin with. */
  readonly #id = crypto.randomUUID();
  #ids = 0;
  /** What was told last, and by which connection to NATS. */
  #told?: { nats: NatsConnection; state: StreamState };

  private constructor(link: Link, subject: string, makeHeaders: () => MsgHdrs) {
    this.#link = link;
    this.#subject = subject;
    this.#makeHeaders = makeHeaders;
    // The name of a stream has no dots.
    this.#name = subject.replaceAll(".", "_");
    this.#config = JSON.stringify({
      name: this.#name,
      subjects: [this.subjectOf(""), `${subject}.*.message`],
      storage: "memory",
      retention: "limits",
      discard: "old",
      max_msgs_per_subject: MAX_KEPT,
      max_bytes: MAX_BYTES,
      max_age: MAX_AGE,
      duplicate_window: DUPLICATE_WINDOW * 1e6,
      allow_direct: true,
      republish: { src: ">", dest: "republished.>" },
    });
  }

  /** @throws {Error} if NATS does not keep the stream: the message says what to do. */
  static async open(link: Link, subject: string): Promise<Stream> {
    const { headers } = await loadNats();
    const stream = new Stream(link, subject, headers);
    await stream.state().catch(({ message }: Error) => {
      const { host } = new URL(link.options.url);
      const advice = adviceFor(message);
      throw new Error(`NATS at ${host} can't keep messages (${printable(message)}): ${advice}.`);
    });
    return stream;
  }

  /** The subject of a room in the stream. */
  subjectOf(room: string): string {
    return `${roomSubject(this.#subject, room)}.message`;
  }

  /**
   * Makes the stream if it is not there, and tells what is in it.
   *
   * @throws {Error} if NATS does not answer, or keeps no stream.
   */
  async state(): Promise<StreamState> {
    const { nats } = this.#link;
    const { created, state } = await this.#ask(`$JS.API.STREAM.CREATE.${this.#name}`, this.#config);
    const time = Date.parse(`${created}`);
    const { first_seq, last_seq } = Object(state);
    if (!Number.isFinite(time) || !isNumber(first_seq) || !isNumber(last_seq)) {
      throw new Error("NATS tells no state of the stream");
    }
    const told = { epoch: time.toString(36), first: first_seq, last: last_seq };
    this.#told = { nats, state: told };
    return told;
  }

  /** The state that this connection to NATS has told last, which may be some time ago. */
  async current(): Promise<StreamState> {
    return this.#told?.nats === this.#link.nats ? this.#told.state : await this.state();
  }

  /**
   * Reads the first message of a room after a number, if there is one.
   *
   * @throws {Error} if NATS does not answer.
   */
  async next(room: string, number: number): Promise<Stored | undefined> {
    const request = JSON.stringify({ next_by_subj: this.subjectOf(room), seq: number + 1 });
    const answer = await this.#request(`$JS.API.DIRECT.GET.${this.#name}`, request);
    if (answer.headers?.code === 404) return undefined;
    const stored = this.read(answer);
    if (stored && stored.number > number) return stored;
    throw new Error(`NATS gives no message: ${answer.headers?.description}`);
  }

  /** A message that NATS gives, or `undefined` for what is none of the stream's. */
  read({ headers, data }: Msg): Stored | undefined {
    const number = numberIn(headers, "Nats-Sequence");
    if (!number) return undefined;
    // It is a copy, so that a handler may keep it without all that was read beside it.
    const isBinary = headers?.get("Content-Type") === BINARY;
    const message = isBinary ? new Uint8Array(data).buffer : this.#decoder.decode(data);
    return { number, message };
  }

  /** Makes a function that sends a message. NATS stores it once, however often that is called. */
  prepare(room: string, message: Message): () => Promise<number> {
    const headers = this.#makeHeaders();
    headers.set("Nats-Msg-Id", `${this.#id}.${this.#ids++}`);
    if (typeof message !== "string") headers.set("Content-Type", BINARY);
    const bytes = typeof message === "string" ? message : new Uint8Array(message);
    const subject = this.subjectOf(room);
    return async () => {
      const { seq } = await this.#ask(subject, bytes, headers);
      if (isNumber(seq) && seq > 0) return seq;
      throw new Error("NATS tells no number of a message");
    };
  }

  /** What NATS answers, as an object of which nothing is believed. */
  async #ask(subject: string, data: string | Uint8Array, headers?: MsgHdrs) {
    const answer = await this.#request(subject, data, headers);
    const read: Record<string, unknown> = Object(answer.json());
    if (read.error) throw new RefusedError(`${Object(read.error).description}`);
    return read;
  }

  #request(subject: string, data: string | Uint8Array, headers?: MsgHdrs): Promise<Msg> {
    const { timeout } = this.#link.options;
    return this.#link.nats.request(subject, data, { timeout, ...headers && { headers } });
  }
}

/** What JetStream refuses. */
export class RefusedError extends Error {}

/** Whether nobody has heard a request, because there is no stream or no JetStream. */
export function isUnheard(error: unknown): boolean {
  return error instanceof Error && error.message.startsWith("no responders");
}

/** A number that a header tells, or `undefined`. */
export function numberIn(headers: MsgHdrs | undefined, name: string): number | undefined {
  const text = headers?.get(name) ?? "";
  return /^\d{1,16}$/.test(text) && isNumber(Number(text)) ? Number(text) : undefined;
}

function isNumber(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0;
}

/** What to do when NATS does not keep the stream. */
function adviceFor(message: string): string {
  if (/no responders|not enabled/.test(message)) return "start it with `nats-server -js`";
  if (/configuration|overlap|cycle/.test(message)) return "use another `subject`";
  if (/Permissions/.test(message)) return "let this user publish to `$JS.API.>`";
  return "look into its log";
}
