// The way to NATS: a connection of nats.js, which is made anew whenever it is lost.

import type { NatsConnection } from "@nats-io/nats-core/internal";
import { delay } from "@std/async";
import { unescape } from "node:querystring";
import { type Log, printable, usageError } from "../lines.ts";
import { SocketTransport } from "./transport.ts";

/** The name is no literal where it is imported, because Deno would fetch it before it is needed. */
const PACKAGE: string = "@nats-io/nats-core/internal";
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

/** The way to NATS, which is found again when it is lost. */
export class Link {
  /** Aborted when this server leaves NATS. */
  readonly closing = new AbortController();
  #lost = new AbortController();
  #followed?: Promise<void>;
  /** When the other servers have had the time to come back to a NATS that was lost. */
  #settledAt = 0;

  private constructor(readonly options: Required<LinkOptions>, private current: NatsConnection) {}

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
    return new Link(options, await connectTo(url.host, options));
  }

  /** The connection, if NATS is there as far as this side knows. */
  get nats(): NatsConnection | undefined {
    return this.current.isClosed() ? undefined : this.current;
  }

  /** Aborts when the connection is lost: a `flush` of nats.js then waits for ever. */
  get lost(): AbortSignal {
    return this.#lost.signal;
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
  async close(): Promise<void> {
    this.closing.abort();
    await this.current.close();
    await this.#followed;
  }

  async #follow(back: () => void, refuse: () => void) {
    const { log, timeout, reconnectWait } = this.options;
    while (true) {
      this.#tellErrors(refuse);
      const { message } = await this.current.closed() ?? new Error("it has hung up");
      this.#lost.abort();
      if (!this.closing.signal.aborted) {
        log(`NATS is lost (${printable(message.trim())}): local clients go on, reconnecting.`);
        await this.#reconnect();
      }
      if (this.closing.signal.aborted) return await this.current.close();
      this.#lost = new AbortController();
      log("NATS is back.");
      // Another server may be in an attempt that began just before, and need one more.
      this.#settledAt = performance.now() + timeout + 2 * reconnectWait;
      back();
    }
  }

  /** Tries NATS, and the other servers of its cluster, until one of them answers. */
  async #reconnect() {
    const { url, reconnectWait, log } = this.options;
    const { signal } = this.closing;
    const others = this.current.getServers().map(({ listen }) => listen);
    const told = new Set<string>();
    while (!this.nats) {
      await delay(reconnectWait, { signal }).catch(() => {});
      for (const host of new Set([new URL(url).host, ...others])) {
        if (signal.aborted || this.nats) return;
        try {
          this.current = await connectTo(host, this.options);
        } catch (error) {
          const { message } = error as Error;
          // Most attempts end as others did.
          if (!told.has(message) && !signal.aborted) log(message);
          told.add(message);
        }
      }
    }
  }

  async #tellErrors(refuse: () => void) {
    for await (const status of this.current.status()) {
      if (status.type !== "error") continue;
      const { message } = status.error;
      this.options.log(`NATS: ${printable(message)}`);
      if (message.startsWith("Permissions Violation for Publish")) refuse();
    }
  }
}

/** Connects to one server of NATS: the one in the URL, or another one of its cluster. */
async function connectTo(
  host: string,
  { url, timeout, pingInterval }: Required<LinkOptions>,
): Promise<NatsConnection> {
  const { protocol, username, password } = new URL(url);
  const [user, pass] = [unescape(username), unescape(password)];
  const nats: typeof import("@nats-io/nats-core/internal") = await import(PACKAGE);
  nats.setTransportFactory({ factory: () => new SocketTransport() });
  try {
    return await nats.NatsConnectionImpl.connect({
      servers: host,
      // A name without a password is a token.
      ...(pass ? { user, pass } : { token: user }),
      tls: protocol === "tls:" ? {} : null,
      // A server does not hear what it has said itself.
      noEcho: true,
      reconnect: false,
      timeout,
      pingInterval,
    });
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new Error(`No NATS server at ${host} ${describeFailure(error as Error)}`);
  }
}

/** Why NATS can't be used, and what to do about it. */
function describeFailure({ name, message }: Error): string {
  let advice = "start nats-server there";
  if (/certificate/.test(message)) advice = "trust it with: deno run --cert=FILE --allow-net …";
  if (/no TLS/.test(message)) advice = "it does not speak TLS, use nats:// instead of tls://";
  if (/^Auth/.test(message)) advice = "put user:password@ or token@ before the host";
  let reason = printable(message).replace(/ \(os error.*/, "");
  if (name === "TimeoutError") reason = "no answer in time";
  // nats.js calls it refused when NATS hangs up without a reason.
  if (name === "ConnectionError") reason = "it has hung up";
  return `(${reason}): ${advice}.`;
}
