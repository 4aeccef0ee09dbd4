// What the codes of a Close frame mean, and which of them may be sent.

import { printable } from "./log.ts";

/** How a connection was closed (RFC 6455 section 7.4). */
export interface Close {
  /** Such as 1000, or 1006 if the connection broke. */
  code: number;
  /** A text for people, or "". */
  reason: string;
}

/** Bytes that RFC 6455 section 5.5.1 leaves for the reason in a Close frame. */
const MAX_REASON = 123;
/** Close codes (RFC 6455 section 7.4.1 and IANA's registry), as Python names them. */
const CLOSE_CODES: Record<number, string> = {
  1000: "OK",
  1001: "going away",
  1002: "protocol error",
  1003: "unsupported data",
  1005: "no status received",
  1006: "connection closed abnormally",
  1007: "invalid frame payload data",
  1008: "policy violation",
  1009: "message too big",
  1011: "internal error",
  1012: "service restart",
  1013: "try again later",
  1014: "bad gateway",
};

/** How a connection was closed, such as `1000 (OK)`. */
export function describeClose({ code, reason }: Close): string {
  const range = code >= 4000 ? "private use" : code >= 3000 ? "registered" : "unknown";
  return printable(`${code} (${CLOSE_CODES[code] ?? range}) ${reason}`.trim());
}

/** Whether this is an end that both sides meant, as in Python: 1000, 1001 or no code. */
export function isNormal({ code }: Close): boolean {
  return [1000, 1001, 1005].includes(code);
}

/** Whether another connection may succeed after this end. */
export function isLost({ code }: Close): boolean {
  return [1001, 1006, 1012, 1013].includes(code);
}

/** Whether a code may be sent. The runtime lets a client send fewer of them than a server. */
export function isSendable(code: number, isClient: boolean): boolean {
  const ranges: [number, number][] = isClient
    ? [[1000, 1000], [3000, 4999]]
    : [[1000, 1003], [1007, 1014], [3000, 4999]];
  return Number.isInteger(code) && ranges.some(([least, most]) => least <= code && code <= most);
}

/** A reason as it fits into a Close frame. */
export function cutReason(reason: string): string {
  const text = `${reason}`.toWellFormed();
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(MAX_REASON));
  return text.slice(0, read);
}
