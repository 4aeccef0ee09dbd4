// What makes a script of a client: flags, a URL, and Ctrl-C.

import { ConnectionClosed } from "../connection_closed.ts";
import { errorLog } from "../log.ts";
import { mayPass, Pauses, type RetryOptions } from "../reconnect.ts";
import { advise } from "./advice.ts";
import { type Flags, type FlagValues, parseFlags, usageError } from "./flags.ts";
import { printAll } from "./print.ts";
import { Interruption, runScript, usageOf } from "./run.ts";

/** Milliseconds for which `whileAway` tries again: a restart takes less. */
const PATIENCE = 10_000;

/**
 * Runs a client. It is told the URL and the flags of the command line, and a signal that aborts on
 * Ctrl-C and SIGTERM, half a second before the process ends. When `main` is done, the process ends
 * with 0. A mistake is told in one line, and the process ends with 1, or 2 if a flag or the URL is wrong.
 *
 * @param server The URL unless another one is given.
 */
export async function runClient<const Own extends Flags>(
  server: string,
  flags: Own,
  main: (url: string, flags: FlagValues<Own>, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const explained = `  URL  the server (${server}), or ws://user:password@host`;
  let url = server;
  await runScript(usageOf(flags, "[URL]", explained), async () => {
    const { values, positionals } = parseFlags(flags, true);
    if (positionals.length > 1) throw usageError("One URL is enough.");
    [url = server] = positionals;
    printAll();
    await main(url, values, new Interruption().signal);
    Deno.exit(0);
  }, (error) => advise(error, url));
}

/**
 * Runs what needs a server, such as a question with its answer, and runs it again while the server is
 * away: for 10 seconds after each loss, unless `patience` says otherwise. The log tells after a second
 * that it waits. For a client that stays, loop over `connect(url)` instead.
 *
 * @throws what `run` throws last, or the reason of `signal`.
 */
export async function whileAway<Result>(
  run: () => Promise<Result>,
  options: RetryOptions = {},
): Promise<Result> {
  const pauses = new Pauses({ patience: PATIENCE, log: errorLog, ...options });
  while (true) {
    const startedAt = performance.now();
    try {
      return await run();
    } catch (error) {
      options.signal?.throwIfAborted();
      if (!mayPass(error, false)) throw error;
      if (error instanceof ConnectionClosed) pauses.lose(startedAt);
      await pauses.wait(error);
    }
  }
}
