// Connecting again, for a client that stays.

import { delay } from "@std/async";
import { isLost } from "./close_codes.ts";
import type { Connection } from "./connection.ts";
import { ConnectionClosed } from "./connection_closed.ts";
import { ConnectionFailed } from "./failures.ts";
import { type Log, unfailing } from "./log.ts";

/** Milliseconds of the first pause, at the most. Each next one may be twice as long. */
const PAUSE = 100;
/** Milliseconds of a pause at the most: a server that was away for long is found soon. */
const MAX_PAUSE = 30_000;
/** Milliseconds that a connection lasts where the server is well, so that pauses are short again. */
const LONG_ENOUGH = 1_000;
/** Milliseconds after which the log tells why nothing happens. */
const SILENCE = 1_000;

/** How long attempts go on, and who is told. */
export interface RetryOptions {
  /** Milliseconds after each loss in which other attempts are made. */
  patience?: number | undefined;
  /** Told when the server has been away for a second. */
  log?: Log | undefined;
  /** Gives up when it aborts. */
  signal?: AbortSignal | undefined;
}

/**
 * The pauses between attempts, which grow while the server is away. Chance decides how long each is,
 * because otherwise all clients of a server that restarts would return at once.
 */
export class Pauses {
  readonly #options: RetryOptions;
  #longest = PAUSE;
  #lostAt = performance.now();
  #isTold = false;

  constructor(options: RetryOptions) {
    this.#options = options;
  }

  /** Notes the end of a connection that was opened at this time. */
  lose(openedAt: number): void {
    // A server that closes each connection at once is not asked more often than one that is away.
    if (performance.now() - openedAt < LONG_ENOUGH) return;
    this.#lostAt = performance.now();
    this.#longest = PAUSE;
    this.#isTold = false;
  }

  /** Waits until the next attempt is due, or throws `error` after `patience`. */
  async wait(error?: Error): Promise<void> {
    const { patience = Infinity, signal } = this.#options;
    const lasted = performance.now() - this.#lostAt;
    if (error && lasted >= patience) throw error;
    const timer = setTimeout(() => this.#tell(error), Math.max(SILENCE - lasted, 0));
    try {
      await delay(Math.random() * this.#longest, signal && { signal });
    } finally {
      clearTimeout(timer);
    }
    this.#longest = Math.min(2 * this.#longest, MAX_PAUSE);
  }

  #tell(error?: Error) {
    if (this.#isTold) return;
    this.#isTold = true;
    const { log = () => {} } = this.#options;
    unfailing(log)(`${error?.message ?? "The server closes each connection at once"}: waiting.`);
  }
}

/** Whether the server may only be away. A computer that has just woken up finds no host. */
export function mayPass(error: unknown, wasThere: boolean): error is Error {
  if (error instanceof ConnectionClosed) return isLost(error);
  if (!(error instanceof ConnectionFailed)) return false;
  return error.isPassing || wasThere && error.kind === "host";
}

/**
 * Connections to a server, one after the other, as `async for websocket in connect(url)` in Python:
 * each turn of the loop has a new one, however the last one ended. It ends when the loop is left, and
 * throws a failure that will not pass.
 *
 * @param first The first attempt.
 * @param next Makes another one.
 */
export async function* connections(
  first: Promise<Connection>,
  next: () => Promise<Connection>,
  options: RetryOptions,
): AsyncGenerator<Connection, undefined> {
  const pauses = new Pauses(options);
  let wasThere = false;
  for (let attempt = first;; attempt = next()) {
    let failure: Error | undefined;
    try {
      const websocket = await attempt;
      wasThere = true;
      const openedAt = performance.now();
      try {
        yield websocket;
      } finally {
        await websocket.close();
      }
      pauses.lose(openedAt);
    } catch (error) {
      if (!mayPass(error, wasThere)) throw error;
      failure = error;
    }
    await pauses.wait(failure);
  }
}
