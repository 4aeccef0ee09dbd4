// Lets `request` of the options answer or refuse a request, for so long as that may take.

import { delay } from "@std/async";
import { mayHaveBody, refuse, RETRY_AFTER } from "./handshake.ts";
import { describeError, type Log } from "./lines.ts";
import type { RequestInfo, ServeOptions } from "./options.ts";
import type { Waiting } from "./waiting.ts";

/** What `ask` is told of the server. */
export interface AskOptions {
  /** Milliseconds that the handler may take, and the body without any progress. */
  timeout: number;
  /** Aborts when the server stops. */
  stopping: AbortSignal;
  waiting: Waiting;
  log: Log;
}

/**
 * Asks `request` of the options, which gets a body as it arrives. All of the body counts as waiting
 * from the beginning.
 *
 * @returns Its answer, or a refusal if it took too long or failed; `undefined` to let it go on.
 */
export async function ask(
  decide: NonNullable<ServeOptions["request"]>,
  request: Request,
  { remoteAddr }: RequestInfo,
  { timeout, stopping, waiting, log }: AskOptions,
): Promise<Response | undefined> {
  const { promise: completed, resolve: complete } = Promise.withResolvers<void>();
  // Nobody reads the body of a GET, whatever length it tells.
  const length = mayHaveBody(request) ? Number(request.headers.get("content-length") ?? 0) : 0;
  let arrived = 0;
  let progressAt = performance.now();
  const watched = withBody(request, (bytes) => {
    arrived += bytes;
    progressAt = performance.now();
  });

  /** Waits for the answer, or answers in its place when that takes too long. */
  async function inTime(asked: unknown): Promise<unknown> {
    const answered = new AbortController();
    const signal = AbortSignal.any([answered.signal, stopping]);
    const late = async () => {
      while (!signal.aborted && performance.now() < progressAt + timeout) {
        await delay(progressAt + timeout - performance.now(), { signal }).catch(() => {});
      }
      if (!signal.aborted && arrived < length) {
        return refuse(408, "The body of the request did not arrive in time.");
      }
      complete();
      // What `request` has just done still counts.
      if (!answered.signal.aborted) await delay(0);
      if (!signal.aborted) log("The handler took too long to answer a request.");
      return refuse(503, "The server can't wait for this any longer.", RETRY_AFTER);
    };
    try {
      // `async` makes a rejection of whatever is thrown, also by a `then` of what is awaited.
      return await Promise.race([(async () => await asked)(), late()]);
    } finally {
      answered.abort();
    }
  }

  waiting.count(length);
  try {
    const asked = decide(watched, { remoteAddr, completed });
    // Most answers are there at once.
    const isThere = asked === undefined || asked instanceof Response;
    const response = isThere ? asked : await inTime(asked);
    if (response instanceof Response || response === undefined) return response;
    throw new TypeError("`request` must return a Response or undefined.");
  } catch (error) {
    log(`The handler failed: ${describeError(error)}`);
    return refuse(500, "The server failed to handle this.");
  } finally {
    waiting.count(-length);
    complete();
  }
}

/** The same request, whose body tells how many bytes have arrived. */
function withBody(request: Request, arrive: (bytes: number) => void): Request {
  if (!mayHaveBody(request) || request.body === null) return request;
  const { url, method, headers } = request;
  const body = request.body.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(bytes, controller) {
        arrive(bytes.length);
        controller.enqueue(bytes);
      },
    }),
  );
  return new Request(url, { method, headers, body });
}
