// The end of a connection as an error, which no promise may turn into the end of the process.

import { type Close, describeClose } from "./close_codes.ts";

/**
 * The connection is closed, or closing: as in Python, `receive` and `send` throw it, and the loop
 * does so after every end that is not a normal one. A handler that throws one of its own closes the
 * connection with its code.
 */
export class ConnectionClosed extends Error implements Close {
  /** The name of this class. */
  override readonly name = "ConnectionClosed";
  /** The close code (RFC 6455 section 7.4). It is 1006 if the connection broke. */
  readonly code: number;
  /** What the other end has said about it, or "". */
  readonly reason: string;

  /** Makes an error of how a connection was closed. */
  constructor({ code, reason = "" }: { code: number; reason?: string }) {
    super(`The connection is closed: ${describeClose({ code, reason })}`);
    this.code = code;
    this.reason = reason;
  }
}

/** Whether an error tells of the end of a connection. */
export function isConnectionClosed(error: unknown): error is ConnectionClosed {
  // A proxy is no error, and `instanceof` throws for one that is revoked.
  return Error.isError(error) && error instanceof ConnectionClosed;
}

/** Marks a promise, so that the process goes on if it rejects and nobody awaits it. */
export function handled<Promised extends Promise<unknown>>(promise: Promised): Promised {
  promise.catch(() => {});
  return promise;
}

let servers = 0;

/**
 * Keeps a rejection from ending the process if it only tells of the end of a connection. For
 * example, async code that awaits `send` in a timer makes a promise of its own, which nobody awaits.
 *
 * @returns Ends this, when each server has called its own.
 */
export function overlookRejections(): () => void {
  if (servers++ === 0) addEventListener("unhandledrejection", overlook);
  return () => {
    if (--servers === 0) removeEventListener("unhandledrejection", overlook);
  };
}

function overlook(event: PromiseRejectionEvent) {
  if (isConnectionClosed(event.reason)) event.preventDefault();
}
