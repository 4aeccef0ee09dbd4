// What the codes of a Close frame mean, and which of them may be sent.

import { printable } from "./lines.ts";
import type { Close } from "./outbox.ts";

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

/** The same as a sentence. A reason may end with a full stop of its own. */
export function describeEnd(close: Close): string {
  return `Connection closed: ${describeClose(close)}.`.replace(/([.!?…])\.$/, "$1");
}

/** Whether another connection may last after this one. */
export function isLost({ code }: Close): boolean {
  return [1001, 1006, 1012, 1013].includes(code);
}

/**
 * Checks that a code may be sent.
 *
 * @throws {RangeError} if it may not.
 */
export function sendableCode(code: number, isClient: boolean): number {
  // The runtime lets a client send no other.
  const ranges = isClient
    ? [[1000, 1000], [3000, 4999]]
    : [[1000, 1003], [1007, 1014], [3000, 4999]];
  const isSendable = Number.isInteger(code) &&
    ranges.some(([least, most]) => least <= code && code <= most);
  if (isSendable) return code;
  throw new RangeError(`The close code ${code} may not be sent: use 1000, or 3000 to 4999.`);
}
