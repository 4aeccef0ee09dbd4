// The way to NATS: connections of nats.js, which is NATS's own client for Node.

import type { NatsConnection } from "@nats-io/transport-node";
import { delay } from "@std/async";
import { isIP } from "node:net";
import { unescape } from "node:querystring";
import { type Log, printable, usageError } from "./lines.ts";
import { greeting, hold, letGo, reading } from "./nats_workarounds.ts";

/** The name is no literal where it is imported, because Deno would fetch it before it is needed. */
const PACKAGE: string = "@nats-io/transport-node";
/** Milliseconds that NATS gets to let a server in, and to take what waits when a server stops. */
const TIMEOUT = 3_000;
/** Milliseconds between pings: a NATS that vanished is noticed when two were not answered. */
const PING_INTERVAL = 5_000;
/** Milliseconds between two attempts to reach a NATS that was lost. */
const RECONNECT_WAIT = 1_000;

/** How to reach NATS. The times are by default the constants of the same name. */
export interface LinkOptions {
  /** Where NATS is: `nats://user:password@localhost:4222`, or `tls://token@example.com`. */
  url: string;
  log: Log;
  timeout?: number;
  pingInterval?: number;
  reconnectWait?: number;
}

/** A connection that NATS has let in. */
interface Session {
  nats: NatsConnection;
  /** Aborts with the reason when the connection is lost. */
  lost: AbortController;
}

/** The way to NATS, which is found again when it is lost. */
export class Link {
  #followed?: Promise<void>;
  #closed?: Promise<void>;
  /** When the other servers have had the time to come back to a NATS that was lost. */
  #settledAt = 0;

  private constructor(
    private session: Session,
    readonly options: Required<LinkOptions>,
    /** Aborted when this server leaves NATS. */
    readonly closing: AbortController,
  ) {}

  /**
   * Connects to NATS.
   *
   * @throws {Error} if NATS does not let this server in: the message says what to do.
   * @throws {Deno.errors.NotCapable} without the permission to connect.
   */
  static async open(given: LinkOptions): Promise<Link> {
    const times = { timeout: TIMEOUT, pingInterval: PING_INTERVAL, reconnectWait: RECONNECT_WAIT };
    const url = URL.parse(given.url);
    if (!url || !/^(nats|tls):$/.test(url.protocol) || url.host === "") {
      throw usageError("NATS has a URL such as nats://127.0.0.1:4222 or tls://token@example.com.");
    }
    url.port ||= "4222";
    const options = { ...times, ...given, url: url.href };
    const closing = new AbortController();
    hold();
    try {
      const session = await connectTo(url.host, options, closing.signal);
      return new Link(session, options, closing);
    } catch (error) {
      letGo();
      throw error;
    }
  }

  /** The connection, if NATS is there as far as this side knows. */
  get nats(): NatsConnection | undefined {
    const { nats } = this.session;
    return this.lost.aborted || nats.isClosed() ? undefined : nats;
  }

  /** Aborts when the connection is lost: a `flush` of nats.js then waits for ever. */
  get lost(): AbortSignal {
    return this.session.lost.signal;
  }

  /** Milliseconds that the other servers may need until they are back, too. */
  get pause(): number {
    return Math.max(0, this.#settledAt - performance.now());
  }

  /** Connects again whenever NATS is lost, and tells when it is `back` or refuses a message. */
  follow(back: () => void, refuse: () => void): void {
    this.#followed = this.#follow(back, refuse);
  }

  /** Leaves NATS. It may be called more than once. */
  close(): Promise<void> {
    return this.#closed ??= this.#close();
  }

  async #close() {
    this.closing.abort();
    await this.session.nats.close();
    await this.#followed;
    // What Deno has still to tell of the connection comes before this is done.
    await delay(0);
    letGo();
  }

  async #follow(back: () => void, refuse: () => void) {
    const { log, timeout, reconnectWait } = this.options;
    while (true) {
      const { message } = await this.#watch(refuse);
      if (this.closing.signal.aborted) return;
      log(`NATS is lost (${printable(message.trim())}): local clients go on, reconnecting.`);
      const session = await this.#reconnect();
      if (!session) return;
      this.session = session;
      if (this.closing.signal.aborted) return await session.nats.close();
      log("NATS is back.");
      // Another server may be in an attempt that began just before, and need one more.
      this.#settledAt = performance.now() + timeout + 2 * reconnectWait;
      back();
    }
  }

  /** Tries NATS, and the other servers of its cluster, until one of them answers. */
  async #reconnect(): Promise<Session | undefined> {
    const { url, reconnectWait, log } = this.options;
    const { signal } = this.closing;
    const others = this.session.nats.getServers().map(({ listen }) => listen);
    const told = new Set<string>();
    while (!signal.aborted) {
      await delay(reconnectWait, { signal }).catch(() => {});
      for (const host of new Set([new URL(url).host, ...others])) {
        try {
          return await connectTo(host, this.options, signal);
        } catch (error) {
          const { message } = error as Error;
          // Most attempts end as others did.
          if (!told.has(message) && !signal.aborted) log(message);
          told.add(message);
        }
      }
    }
  }

  /** Why the connection is lost, as soon as it is. */
  async #watch(refuse: () => void): Promise<Error> {
    const { nats, lost } = this.session;
    const statuses = nats.status();
    lost.signal.onabort = () => nats.close();
    // What came with its answer may have been too much for nats.js already.
    if (lost.signal.aborted) nats.close();
    for await (const status of statuses) {
      // nats.js would wait until all is written, which never happens if NATS stands still.
      if (status.type === "staleConnection") lost.abort(new Error("it does not answer"));
      if (status.type !== "error") continue;
      const { message } = status.error;
      this.options.log(`NATS: ${printable(message)}`);
      if (message.startsWith("Permissions Violation for Publish")) refuse();
    }
    lost.abort(await nats.closed() || new Error("it has hung up"));
    return lost.signal.reason;
  }
}

/** Connects to one server of NATS: the one in the URL, or another one of its cluster. */
async function connectTo(
  host: string,
  { url, timeout, pingInterval }: Required<LinkOptions>,
  closing: AbortSignal,
): Promise<Session> {
  const { protocol, hostname, username, password } = new URL(url);
  const { connect } = await import(PACKAGE);
  const [user, pass] = [unescape(username), unescape(password)];
  const name = hostname.replace(/^\[|\]$/g, "");
  // Without this, nats.js wants a certificate for `localhost` where the host is an address.
  const identity = isIP(name) ? { host: name } : { servername: name };
  const lost = new AbortController();
  try {
    const info = await greeting(host, AbortSignal.any([AbortSignal.timeout(timeout), closing]));
    const isSecure = protocol === "tls:" || info.includes('"tls_required":true');
    const nats: NatsConnection = await reading.run(lost, () =>
      connect({
        servers: host,
        // A name without a password is a token.
        ...(pass ? { user, pass } : { token: user }),
        tls: isSecure ? identity : null,
        // A server does not hear what it has said itself.
        noEcho: true,
        reconnect: false,
        timeout,
        pingInterval,
      }));
    return { nats, lost };
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new Error(`No NATS server at ${host} ${describeFailure(error as Error)}`);
  }
}

/** Why NATS can't be used, and what to do about it. */
function describeFailure({ name, message }: Error): string {
  let advice = "start nats-server there";
  if (/certificate/.test(message)) advice = "trust it with: deno run --cert=FILE --allow-net …";
  if (/support 'tls'/.test(message)) {
    advice = "it does not speak TLS, use nats:// instead of tls://";
  }
  if (/^Auth/.test(message)) advice = "put user:password@ or token@ before the host";
  const reason = name === "TimeoutError" ? "no answer in time" : message;
  return `(${printable(reason).replace(/ \(os error.*/, "")}): ${advice}.`;
}
