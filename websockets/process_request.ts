// Lets `processRequest` of the options answer or refuse a request, for so long as that may take.

import { delay } from "@std/async";
import { isHandshake, mayHaveBody, refuse, RETRY_AFTER } from "./handshake.ts";
import { describeError, type Log } from "./log.ts";
import type { ProcessRequest, RequestInfo } from "./options.ts";
import { Body, type BodyLimits } from "./request_body.ts";

type Answer = Response | undefined;

/** What the server says about the requests that it lets `processRequest` decide about. */
export interface RequestLimits extends BodyLimits {
  /** Milliseconds that an answer may take, and the body without any progress. */
  timeout: number;
  /** Aborts when the server stops. */
  stopping: AbortSignal;
  log: Log;
}

/**
 * Asks `processRequest`.
 *
 * @param all The functions to ask, of which the first answer counts.
 * @returns The answer, at once if it is there at once. A refusal, if it took too long or failed.
 * `undefined` lets the request go on.
 */
export function askFirst(
  all: ProcessRequest[],
  request: Request,
  { remoteAddr }: RequestInfo,
  limits: RequestLimits,
): Answer | Promise<Answer> {
  const info = new Info(remoteAddr);
  const body = mayHaveBody(request) ? new Body(request, limits) : undefined;
  try {
    const asked = askEach(all, 0, body?.request ?? request, info);
    if (!isAnswer(asked)) return waitFor(asked, request, info, limits, body);
    // What is there at once costs a handshake no promise and no timer.
    body?.free();
    return toldRefusal(asked, request, limits);
  } catch (error) {
    body?.free();
    return failed(error, limits);
  }
}

/** Asks one after the other, from `first` on, until one answers. */
function askEach(all: ProcessRequest[], first: number, request: Request, info: Info): unknown {
  for (let next = first; next < all.length; next++) {
    const asked: unknown = all[next](request, info);
    if (asked instanceof Response) return asked;
    if (asked !== undefined) return askOthers(asked, all, next + 1, request, info);
  }
}

async function askOthers(
  asked: unknown,
  all: ProcessRequest[],
  next: number,
  request: Request,
  info: Info,
): Promise<unknown> {
  const answer = await asked;
  return answer === undefined ? askEach(all, next, request, info) : answer;
}

async function waitFor(
  asked: unknown,
  request: Request,
  info: Info,
  limits: RequestLimits,
  body?: Body,
): Promise<Answer> {
  const answer = async () => {
    const answered = await asked;
    if (isAnswer(answered)) return toldRefusal(answered, request, limits);
    throw new TypeError("`processRequest` must return a Response or undefined.");
  };
  try {
    return await inTime(answer(), info, limits, body);
  } catch (error) {
    return failed(error, limits);
  } finally {
    info.complete();
    body?.free();
  }
}

function isAnswer(asked: unknown): asked is Answer {
  return asked === undefined || asked instanceof Response;
}

/** Tells in the log that a client was refused. */
function toldRefusal(answer: Answer, request: Request, { log }: RequestLimits): Answer {
  const isRefusal = answer !== undefined && answer.status >= 400;
  if (isRefusal && (isHandshake(request) || mayHaveBody(request))) {
    log(`Refused a client: \`processRequest\` answered ${answer.status}.`);
  }
  return answer;
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
