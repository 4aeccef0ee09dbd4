// Why a connection failed, as data. No password is shown.

import { printable } from "./log.ts";

/** What to do about a URL whose password has a character that means something else in a URL. */
export const ENCODE =
  "in a user name or password, write # / ? % @ and blank as %23 %2F %3F %25 %40 %20";

/** Why a connection failed: an HTTP status other than 101, or what failed before there was one. */
export type FailureKind =
  | "status"
  | "subprotocol"
  | "host"
  | "certificate"
  | "no TLS"
  | "TLS"
  | "proxy"
  | "refused"
  | "timeout"
  | "unknown";

/**
 * The kind of each failure. Deno tells the reason in words, which may change: each pattern looks for
 * few of them, and the first that fits counts.
 */
const KINDS: [pattern: RegExp, kind: FailureKind][] = [
  [/not offered/, "subprotocol"],
  [/status code:? \d{3}$/, "status"],
  [/^dns/, "host"],
  [/certificate/, "certificate"],
  [/corrupt/, "no TLS"],
  [/HTTP version/, "TLS"],
  [/tunnel|^proxy/, "proxy"],
  [/^tcp/, "refused"],
  [/in time/, "timeout"],
];
/** Failures after which another attempt would fail as well. */
const PERMANENT: FailureKind[] = ["subprotocol", "host", "certificate", "no TLS", "TLS"];

/** The connection failed. */
export class ConnectionFailed extends Error {
  /** The name of this class. */
  override readonly name = "ConnectionFailed";
  /** Why it failed. */
  readonly kind: FailureKind;
  /** The same in the words of the runtime. */
  readonly reason: string;
  /** The status of the answer (RFC 9110 section 15), if there was one: 401, 503 and the like. */
  readonly status?: number;
  /** Whether another attempt may succeed: the server may only be away. */
  readonly isPassing: boolean;

  /** Makes an error of what the runtime says. */
  constructor(url: string, { name, message }: { name: string; message: string }) {
    const reason = name === "TimeoutError"
      ? "no answer in time"
      : message.replace(/.*WebSocket: /, "");
    super(printable(`No connection to ${withoutSecrets(url)} (${reason})`, Infinity));
    this.reason = reason;
    [, this.kind] = KINDS.find(([pattern]) => pattern.test(reason)) ?? [/./, "unknown"];
    const status = this.kind === "status" ? Number(reason.slice(-3)) : undefined;
    if (status !== undefined) this.status = status;
    const isPassingStatus = status === undefined || status === 429 || status >= 500;
    this.isPassing = isPassingStatus && !PERMANENT.includes(this.kind);
  }
}

/**
 * Checks a URL before the runtime does, because the errors of the runtime quote it.
 *
 * @throws {DOMException} `SyntaxError` for a URL that can't be a server's.
 */
export function checkUrl(url: string): void {
  const { href = "", username, password } = URL.parse(url) ?? {};
  try {
    decodeURIComponent(`${username}:${password}`);
    if (/^(ws|http)s?:[^#]*$/.test(href)) return;
  } catch {
    // A `%` begins no escape.
  }
  const mistake = `${withoutSecrets(url)} is no URL of a server, such as ws://localhost:9999`;
  const hint = url.includes("@") ? `; ${ENCODE}` : "";
  throw new DOMException(mistake + hint, "SyntaxError");
}

const SCHEME = /^(ws|http)s?:[/\\]*/i;

/** Whether it can't be seen where the credentials of a URL end. */
export function isAmbiguous(url: string): boolean {
  return /[/?#\\].*@/s.test(url.replace(SCHEME, ""));
}

/**
 * A URL that may be printed: without credentials, the values of its query, and its fragment. Where
 * it can't be seen where the credentials end, only the scheme is left.
 */
export function withoutSecrets(url: string): string {
  const [scheme = ""] = url.match(SCHEME) ?? [];
  if (isAmbiguous(url)) return `${scheme}…`;
  const shown = url.slice(scheme.length).replace(/^.*@/s, "");
  const hidden = (query: string) => query.replace(/([?&](?:[^=&]*=)?)[^&]*/g, "$1…");
  return scheme + shown.replace(/#.+$/s, "#…").replace(/\?[^#]*/, hidden);
}
