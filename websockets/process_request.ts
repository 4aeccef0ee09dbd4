// Lets `processRequest` of the options answer or refuse a request, in the time that it has for that.

import { delay } from "@std/async";
import { isHandshake, refuse, RETRY_AFTER } from "./handshake.ts";
import { describeError, type Log } from "./log.ts";
import type { ProcessRequest, RequestInfo } from "./options.ts";
import { Body, type BodyLimits } from "./request_body.ts";

/** What the server allows a request that `processRequest` decides about. */
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
 * @returns The answer, without a promise if it is there at once. It is a refusal if `processRequest`
 * took too long or failed. `undefined` lets the request go on.
 */
export function askFirst(
  all: ProcessRequest[],
  request: Request,
  { remoteAddr }: RequestInfo,
  limits: RequestLimits,
): Response | undefined | Promise<Response | undefined> {
  const { log } = limits;
  // The runtime gives GET and HEAD no body. Every other body counts, also that of an OPTIONS.
  const isBodyless = request.method === "GET" || request.method === "HEAD";
  const body = isBodyless ? undefined : new Body(request, limits);
  const completed = Promise.withResolvers<void>();
  const info = { remoteAddr, completed: completed.promise };
  let isEnded = false;
  const end = () => {
    isEnded = true;
    completed.resolve();
    body?.free();
  };
  const finish = (answer: unknown) => {
    if (answer !== undefined && !(answer instanceof Response)) throw new TypeError(NO_RESPONSE);
    end();
    if (answer && answer.status >= 400 && (body || isHandshake(request))) {
      log(`Refused a client with ${answer.status}.`);
    }
    return answer;
  };
  const fail = (error: unknown) => {
    end();
    log(`\`processRequest\` failed: ${describeError(error)}`);
    return refuse(500, "The server failed to handle this.");
  };
  try {
    // When one has taken too long, the request is refused, and the others must not act on it.
    const ask = (processRequest: ProcessRequest) =>
      isEnded ? undefined : processRequest(body?.request ?? request, info);
    const asked = askEach(all, ask);
    // What is there at once costs a handshake no timer.
    if (asked === undefined || asked instanceof Response) return finish(asked);
    return inTime(asked, completed.resolve, limits, body).then(finish).catch(fail);
  } catch (error) {
    return fail(error);
  }
}

const NO_RESPONSE = "`processRequest` must return a Response or undefined.";

/** Asks one after the other until one answers. */
function askEach(
  [first, ...others]: ProcessRequest[],
  ask: (processRequest: ProcessRequest) => unknown,
): unknown {
  if (!first) return;
  const asked = ask(first);
  if (asked instanceof Response) return asked;
  const goOn = () => askEach(others, ask);
  return asked === undefined ? goOn() : answerOf(asked, goOn);
}

/** Waits until one has answered, before the others are asked. */
async function answerOf(asked: unknown, goOn: () => unknown): Promise<unknown> {
  const answer = await asked;
  return answer === undefined ? goOn() : answer;
}

/** Waits for an answer, or answers in its place when that takes too long or the server stops. */
async function inTime(
  asked: unknown,
  complete: () => void,
  { timeout, stopping, log }: RequestLimits,
  body?: Body,
): Promise<unknown> {
  const late = Promise.withResolvers<Response>();
  let isAnswered = false;
  const giveUp = async () => {
    if (body?.isLate && !stopping.aborted) {
      return late.resolve(refuse(408, "The body of the request did not arrive in time."));
    }
    complete();
    // What `processRequest` has just done still counts.
    await delay(0);
    if (isAnswered) return;
    if (!stopping.aborted) log("`processRequest` took too long to answer a request.");
    late.resolve(refuse(503, "The server can't wait for this any longer.", RETRY_AFTER));
  };
  const start = performance.now();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const tick = () => {
    const rest = (body?.progressAt ?? start) + timeout - performance.now();
    if (rest <= 0) giveUp();
    else if (rest < Infinity) timer = setTimeout(tick, rest);
  };
  tick();
  stopping.addEventListener("abort", giveUp);
  // `processRequest` itself may have stopped the server.
  if (stopping.aborted) giveUp();
  try {
    return await Promise.race([asked, late.promise, ...body ? [body.refused] : []]);
  } finally {
    isAnswered = true;
    clearTimeout(timer);
    stopping.removeEventListener("abort", giveUp);
  }
}
