// The body of a request that is no handshake: counted while it arrives, and bounded.

import { refuse } from "./handshake.ts";

/** What a body may be. */
export interface BodyLimits {
  /** Bytes of the largest body. */
  maxBody: number;
  /** Counts bytes of a body that wait; less of them if negative. */
  count(bytes: number): void;
}

/** A body on its way to `processRequest`: each byte counts when it arrives, whatever was declared. */
export class Body {
  /** The request whose body is counted. */
  readonly request: Request;
  /** Settles only if the body is too large. */
  readonly refused: Promise<Response>;
  /** When some of it has arrived last, in milliseconds. */
  progressAt: number = performance.now();
  readonly #limits: BodyLimits;
  #arrived = 0;
  #isComplete = false;
  #isFree = false;

  constructor(request: Request, limits: BodyLimits) {
    this.#limits = limits;
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
    const body = request.body?.pipeThrough(counting) ?? null;
    this.request = new Request(url, { method, headers, body });
  }

  /** Whether somebody reads it, and there is more to come. */
  get isLate(): boolean {
    return this.request.bodyUsed && !this.#isComplete;
  }

  /** Stops counting it. */
  free(): void {
    this.#isFree = true;
    this.#limits.count(-this.#arrived);
    this.#arrived = 0;
  }

  #count(bytes: number) {
    if (this.#isFree) return;
    this.#arrived += bytes;
    this.#limits.count(bytes);
  }
}
