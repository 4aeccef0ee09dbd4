// A request while `processRequest` decides about it: its functions are asked one after the other, its
// body is counted while it arrives, and both have a time limit.

import { delay } from "@std/async";
import { isConnectionClosed } from "./connection_closed.ts";
import { isHandshake, type Refusals, refuse } from "./handshake.ts";
import { describeError, type Log } from "./log.ts";
import type { ProcessRequest, RequestInfo } from "./options.ts";

/** Bytes for which a body may take a second beyond the timeout: as few as Apache asks for. */
const MIN_BODY_RATE = 500;
/** Milliseconds that a body may take in all: as long as Node.js waits for a request. */
const MAX_BODY_TIME = 300_000;
const NO_RESPONSE = "`processRequest` must return a Response or undefined.";
const OWN_UPGRADE =
  "`processRequest` must return the response with which it has upgraded a request.";

/** What a server allows such a request. */
export interface RequestLimits {
  /** Bytes of the largest body. */
  maxBody: number;
  /** Milliseconds that an answer may take, and the body without any progress. */
  timeout: number;
  /** Aborts when the server stops. */
  stopping: AbortSignal;
  /** Counts bytes of a body that wait; fewer if negative. */
  count(bytes: number): void;
  /** Where the requests are counted that are refused. */
  refused: Refusals;
  log: Log;
}

/** Such a request. */
export class PendingRequest {
  /** What `processRequest` gets. */
  readonly #request: Request;
  readonly #info: RequestInfo;
  readonly #limits: RequestLimits;
  readonly #completed = Promise.withResolvers<void>();
  /** The answer in place of that of `processRequest`. */
  readonly #refusal = Promise.withResolvers<Response>();
  readonly #start = performance.now();
  #reason: keyof Refusals = "processRequest";
  /** Ends the body, if there is one. */
  #body?: TransformStreamDefaultController;
  #arrived = 0;
  /** When some of the body has arrived last. */
  #progressAt = this.#start;
  #isWhole = false;
  #isEnded = false;
  #timer?: ReturnType<typeof setTimeout>;

  constructor(request: Request, { remoteAddr, completed }: RequestInfo, limits: RequestLimits) {
    this.#request = this.#counting(request);
    // What is not read when the answer is sent would be held for ever.
    const stop = () => this.#body?.error(new Error("The request is answered."));
    if (this.#body) completed.then(stop, stop);
    this.#info = { remoteAddr, completed: this.#completed.promise };
    this.#limits = limits;
  }

  /** The address that it came from. */
  get address(): string {
    return this.#info.remoteAddr.hostname;
  }

  /** Whether somebody reads its body, and there is more to come. */
  get isArriving(): boolean {
    return this.#body !== undefined && this.#request.bodyUsed && !this.#isWhole && !this.#isEnded;
  }

  /**
   * Asks `processRequest`.
   *
   * @param all The functions to ask, of which the first answer counts.
   * @returns The answer, without a promise if it is there at once. It is a refusal if `processRequest`
   * took too long or failed. `undefined` lets the request go on.
   */
  decide(all: ProcessRequest[]): Response | undefined | Promise<Response | undefined> {
    try {
      const asked = this.#ask(all);
      // What is there at once costs a handshake no timer.
      if (asked === undefined || asked instanceof Response) return this.#finish(asked);
      return this.#inTime(asked);
    } catch (error) {
      return this.#fail(error);
    }
  }

  /** Answers in place of `processRequest`, and reads no more of the body. */
  refuseBody(status: number, text: string): void {
    this.#reason = "body";
    this.#body?.error(new RangeError(text));
    this.#refusal.resolve(refuse(status, text));
    this.#end();
  }

  /** Counts each byte of the body when it arrives, whatever was declared. */
  #counting(request: Request): Request {
    const { url, method, headers } = request;
    // The runtime gives GET and HEAD no body. Every other body counts, also that of an OPTIONS.
    if (method === "GET" || method === "HEAD") return request;
    const counted = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      start: (body) => void (this.#body = body),
      transform: (bytes, body) => this.#arrive(bytes, body),
      flush: (body) => {
        const length = headers.get("content-length") ?? this.#arrived;
        this.#isWhole = Number(length) === this.#arrived;
        // Over HTTP/2, the runtime shows a body that breaks off as one that ends.
        if (!this.#isWhole) body.error(new Error("The body broke off."));
      },
    });
    return new Request(url, { method, headers, body: request.body?.pipeThrough(counted) ?? null });
  }

  #arrive(bytes: Uint8Array<ArrayBuffer>, body: TransformStreamDefaultController) {
    const { maxBody, count } = this.#limits;
    this.#progressAt = performance.now();
    this.#arrived += bytes.length;
    if (!this.#isEnded) count(bytes.length);
    if (this.#arrived > maxBody) this.refuseBody(413, `Larger than ${maxBody} bytes.`);
    else body.enqueue(bytes);
  }

  /** Asks one after the other until one answers. */
  #ask([first, ...others]: ProcessRequest[]): unknown {
    // When one has taken too long, the request is refused, and the others must not act on it.
    if (!first || this.#isEnded) return;
    const asked = first(this.#request, this.#info);
    if (asked instanceof Response) return asked;
    return asked === undefined ? this.#ask(others) : this.#askAfter(asked, others);
  }

  async #askAfter(asked: unknown, others: ProcessRequest[]): Promise<unknown> {
    const answer = await asked;
    return answer === undefined ? this.#ask(others) : answer;
  }

  /** Waits for an answer, or answers in its place when that takes too long or the server stops. */
  async #inTime(asked: unknown): Promise<Response | undefined> {
    const { stopping } = this.#limits;
    const giveUp = () => this.#giveUp();
    stopping.addEventListener("abort", giveUp);
    this.#tick();
    // `processRequest` itself may have stopped the server.
    if (stopping.aborted) giveUp();
    try {
      return this.#finish(await Promise.race([asked, this.#refusal.promise]));
    } catch (error) {
      return this.#fail(error);
    } finally {
      clearTimeout(this.#timer);
      stopping.removeEventListener("abort", giveUp);
    }
  }

  /** Gives the request up when its time is over, which goes on while its body arrives. */
  #tick() {
    const { timeout } = this.#limits;
    const longest = Math.min(timeout + this.#arrived / MIN_BODY_RATE * 1000, MAX_BODY_TIME);
    const bodyEnd = this.isArriving ? this.#start + longest : Infinity;
    const end = Math.min(this.#progressAt + timeout, bodyEnd);
    const rest = end - performance.now();
    if (rest <= 0) return void this.#giveUp();
    // Without a timeout, the body alone has an end.
    this.#timer = setTimeout(() => this.#tick(), Math.min(rest, MAX_BODY_TIME));
  }

  async #giveUp() {
    const { stopping, log } = this.#limits;
    if (this.isArriving && !stopping.aborted) {
      return this.refuseBody(408, "The body of the request did not arrive in time.");
    }
    this.#completed.resolve();
    // What `processRequest` has just done still counts.
    await delay(0);
    if (this.#isEnded) return;
    if (!stopping.aborted) log("`processRequest` took too long to answer a request.");
    this.#refusal.resolve(refuse(503, "The server can't wait for this any longer."));
    this.#end();
  }

  #finish(answer: unknown): Response | undefined {
    if (answer !== undefined && !(answer instanceof Response)) throw new TypeError(NO_RESPONSE);
    if (answer?.status !== 101 && isUpgraded(this.#request)) throw new TypeError(OWN_UPGRADE);
    this.#end();
    if (answer && answer.status >= 400 && (this.#body || isHandshake(this.#request))) {
      const { log, refused } = this.#limits;
      refused[this.#reason]++;
      log(`Refused a client with ${answer.status}.`);
    }
    return answer;
  }

  #fail(error: unknown): Response {
    const { log, refused } = this.#limits;
    this.#end();
    refused.processRequest++;
    const isForNow = isConnectionClosed(error) && error.code === 1013;
    const answer = isForNow
      ? refuse(503, error.reason || "Try again later.")
      : refuse(500, "The server failed to handle this.");
    if (isForNow) log("Refused a client with 503.");
    else log(`\`processRequest\` failed: ${describeError(error)}`);
    // The runtime stops listening if what was upgraded is answered with any other status than 101.
    if (isUpgraded(this.#request)) Object.defineProperty(answer, "status", { value: 101 });
    return answer;
  }

  /** Nobody waits for it any longer, and its body counts no more. */
  #end() {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#completed.resolve();
    this.#limits.count(-this.#arrived);
  }
}

/** Whether `processRequest` has upgraded it: then the runtime lets nobody see its body. */
function isUpgraded(request: Request): boolean {
  try {
    return request.body === undefined;
  } catch {
    return true;
  }
}
