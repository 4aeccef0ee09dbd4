// Promises that reject with `ConnectionClosed` while nobody awaits them: a client has left, which is
// no reason to end the process.

import { ConnectionClosed } from "./connection.ts";

/** Whether an error tells of the end of a connection. */
export function isConnectionClosed(error: unknown): error is ConnectionClosed {
  // A proxy is no error, and `instanceof` throws for one that is revoked.
  return Error.isError(error) && error instanceof ConnectionClosed;
}

let servers = 0;

/**
 * Keeps a rejection from ending the process if it only tells of the end of a connection. Async code of
 * a user that awaits `send` in a timer, for one, makes a promise of its own, which nobody awaits.
 *
 * @returns Ends that, when each server has called it.
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
