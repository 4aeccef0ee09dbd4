// How NATS is reached, and reached again.

import type { NatsConnection, NatsConnectionImpl } from "@nats-io/nats-core/internal";
import { delay } from "@std/async";
import { unescape } from "node:querystring";
import { type Log, printable } from "../log.ts";
import { type SocketOptions, SocketTransport } from "./transport.ts";

/** The import below has no literal, because Deno would fetch a literal before it is needed. */
const PACKAGE: string = "@nats-io/nats-core/internal";

/** Loads nats.js, which is fetched when it is needed. */
export function loadNats(): Promise<typeof import("@nats-io/nats-core/internal")> {
  return import(PACKAGE);
}

/** How to reach NATS. All times are in milliseconds. */
export interface LinkOptions {
  /** Where NATS is: `nats://user:password@localhost:4222`, or `tls://token@example.com`. */
  url: string;
  /** Told when NATS is lost and back, and what was not relayed. */
  log: Log;
  /** What NATS may take to let a server in, to answer, and to take the rest when one stops (3,000). */
  timeout?: number;
  /** Between pings: a NATS that vanished is noticed when two were not answered (5,000). */
  pingInterval?: number;
  /** Between two attempts to reach a NATS that was lost (1,000). */
  reconnectWait?: number;
}

/**
 * Connects to a server of NATS: the one in the URL, or another one of its cluster.
 *
 * @throws {Error} if NATS does not let this server in: the message says what to do.
 * @throws {Deno.errors.NotCapable} without the permission to connect.
 */
export async function connectNats(
  host: string,
  { url, timeout, pingInterval }: Required<LinkOptions>,
): Promise<NatsConnection> {
  const { protocol, hostname, username, password } = new URL(url);
  const [user, pass] = [unescape(username), unescape(password)];
  const nats = await loadNats();
  nats.setTransportFactory({ factory: () => new SocketTransport() });
  const options: SocketOptions = {
    servers: host,
    // A name without a password is a token.
    ...(pass ? { user, pass } : { token: user }),
    tls: protocol === "tls:" ? {} : null,
    host: hostname.replace(/^\[|\]$/g, ""),
    // A server does not hear what it has said itself.
    noEcho: true,
    reconnect: false,
    timeout,
    pingInterval,
  };
  try {
    return await nats.NatsConnectionImpl.connect(options);
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
  // This is the error of nats.js when NATS hangs up without saying why.
  if (name === "ConnectionError") reason = "it has hung up";
  return `(${reason}): ${advice}.`;
}

/**
 * Waits until NATS is lost, and then tries it and the other servers of its cluster until one of
 * them answers, or `closing` aborts.
 */
export async function reconnectNats(
  lost: NatsConnection,
  options: Required<LinkOptions>,
  closing: AbortSignal,
): Promise<NatsConnection | undefined> {
  const { url, log, reconnectWait } = options;
  const { message } = await lost.closed() ?? new Error("it has hung up");
  // This ends what still waits for a confirmation of NATS. nats.js itself would let it wait.
  (lost as NatsConnectionImpl).protocol.resetOutbound();
  if (closing.aborted) return;
  log(`NATS is lost (${printable(message.trim())}): local clients go on, reconnecting.`);
  const hosts = new Set([new URL(url).host, ...lost.getServers().map(({ listen }) => listen)]);
  const told = new Map<string, string>();
  while (true) {
    await delay(reconnectWait, { signal: closing }).catch(() => {});
    for (const host of hosts) {
      if (closing.aborted) return;
      const nats = await connectNats(host, options).catch(({ message }: Error) => {
        // Most attempts end as the one before.
        if (told.get(host) !== message && !closing.aborted) log(message);
        told.set(host, message);
      });
      if (nats) return nats;
    }
  }
}
