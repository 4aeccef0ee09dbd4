// Lets `processRequest` of the options answer or refuse a request, for so long as that may take.

import { delay } from "@std/async";
import { isHandshake, mayHaveBody, refuse, RETRY_AFTER } from "./handshake.ts";
import { describeError, type Log } from "./lines.ts";
import type { RequestInfo, ServeOptions } from "./options.ts";

type Answer = Response | undefined;

/** What the server says about the requests that it lets `processRequest` decide about. */
export interface RequestLimits {
  /** Milliseconds that an answer may take, and the body without any progress. */
  timeout: number;
  /** Bytes of the largest body. */
  maxBody: number;
  /** Aborts when the server stops. */
  stopping: AbortSignal;
  /** Counts bytes of a body that wait; less of them if negative. */
  count(bytes: number): void;
  log: Log;
}

/**
 * Asks `processRequest`.
 *
 * @returns Its answer, at once if it gives that at once. A refusal, if it took too long or failed.
 * `undefined` lets the request go on.
 */
export function askFirst(
  processRequest: NonNullable<ServeOptions["processRequest"]>,
  request: Request,
  { remoteAddr }: RequestInfo,
  limits: RequestLimits,
): Answer | Promise<Answer> {
  const info = new Info(remoteAddr);
  const body = mayHaveBody(request) ? new Body(request, limits) : undefined;
  const answerOf = async (asked: unknown) => {
    const answer = await asked;
    if (!isAnswer(answer)) {
      throw new TypeError("`processRequest` must return a Response or undefined.");
    }
    return tellRefusal(answer);
  };
  const wait = async (asked: unknown) => {
    try {
      return await inTime(answerOf(asked), info, limits, body);
    } catch (error) {
      return failed(error, limits);
    } finally {
      info.complete();
      body?.free();
    }
  };
  const tellRefusal = (answer: Answer) => {
    const isClient = body !== undefined || isHandshake(request);
    if (answer && answer.status >= 400 && isClient) {
      limits.log(`Refused a client: \`processRequest\` answered ${answer.status}.`);
    }
    return answer;
  };
  try {
    const asked: unknown = processRequest(body?.request ?? request, info);
    // What is there at once costs a handshake no promise and no timer.
    if (!isAnswer(asked)) return wait(asked);
    body?.free();
    return tellRefusal(asked);
  } catch (error) {
    body?.free();
    return failed(error, limits);
  }
}

function isAnswer(asked: unknown): asked is Answer {
  return asked === undefined || asked instanceof Response;
}

function failed(error: unknown, { log }: RequestLimits): Response {
  log(`\`processRequest\` failed: ${describeError(error)}`);
  return refuse(500, "The server failed to handle this.");
}

/** Waits for an answer, or answers in its place when that takes too long or the server stops. */
async function inTime(
  asked: Promise<Answer>,
  info: Info,
  { timeout, stopping, log }: RequestLimits,
  body?: Body,
): Promise<Answer> {
  const { promise, resolve } = Promise.withResolvers<Response>();
  let isAnswered = false;
  const giveUp = async () => {
    if (body?.isLate && !stopping.aborted) {
      return resolve(refuse(408, "The body of the request did not arrive in time."));
    }
    info.complete();
    // What `processRequest` has just done still counts.
    await delay(0);
    if (!isAnswered && !stopping.aborted) {
      log("`processRequest` took too long to answer a request.");
    }
    resolve(refuse(503, "The server can't wait for this any longer.", RETRY_AFTER));
  };
  const start = performance.now();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const look = () => {
    const rest = (body?.progressAt ?? start) + timeout - performance.now();
    if (rest <= 0) giveUp();
    else if (rest < Infinity) timer = setTimeout(look, rest);
  };
  look();
  stopping.addEventListener("abort", giveUp);
  try {
    return await Promise.race([asked, promise, ...body ? [body.refused] : []]);
  } finally {
    isAnswered = true;
    clearTimeout(timer);
    stopping.removeEventListener("abort", giveUp);
  }
}

/** What `processRequest` is told beside the request. Few ask for `completed`. */
class Info implements RequestInfo {
  #completed?: PromiseWithResolvers<void>;
  #isComplete = false;

  constructor(readonly remoteAddr: Deno.NetAddr) {}

  /** Done when nobody waits for the answer any longer. */
  get completed(): Promise<void> {
    this.#completed ??= Promise.withResolvers();
    if (this.#isComplete) this.#completed.resolve();
    return this.#completed.promise;
  }

  complete(): void {
    this.#isComplete = true;
    this.#completed?.resolve();
  }
}

/** A body on its way to `processRequest`: each byte counts as it arrives, whatever was declared. */
class Body {
  /** The request whose body is counted. */
  readonly request: Request;
  /** Settles only if the body is too large. */
  readonly refused: Promise<Response>;
  progressAt = performance.now();
  #arrived = 0;
  #isComplete = false;
  #isFree = false;

  constructor(request: Request, private readonly limits: RequestLimits) {
    const { promise, resolve } = Promise.withResolvers<Response>();
    this.refused = promise;
    const { maxBody } = limits;
    const counting = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform: (bytes, controller) => {
        this.progressAt = performance.now();
        this.#count(bytes.length);
        if (this.#arrived <= maxBody) return controller.enqueue(bytes);
        resolve(refuse(413, `Larger than ${maxBody} bytes.`));
        controller.error(new RangeError(`The body is larger than ${maxBody} bytes.`));
      },
      flush: () => {
        this.#isComplete = true;
      },
    });
    const { url, method, headers } = request;
    this.request = new Request(url, { method, headers, body: request.body?.pipeThrough(counting) });
  }

  /** Whether somebody reads it, and there is more to come. */
  get isLate(): boolean {
    return this.request.bodyUsed && !this.#isComplete;
  }

  /** Counts it no more. */
  free(): void {
    this.#isFree = true;
    this.limits.count(-this.#arrived);
  }

  #count(bytes: number) {
    if (this.#isFree) return;
    this.#arrived += bytes;
    this.limits.count(bytes);
  }
}
