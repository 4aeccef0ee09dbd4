// A WebSocket server, as `websockets.serve` makes it in Python.

import { Acceptor } from "./accept.ts";
import type { Handler } from "./clients.ts";
import { listen } from "./listen.ts";
import type { ServeOptions } from "./options.ts";

/**
 * Starts a WebSocket server, as `websockets.serve` does in Python.
 *
 * @throws {RangeError} for a limit that is out of its bounds.
 * @throws {Deno.errors.AddrInUse} if the port is taken, and whatever else `Deno.serve` throws.
 */
export function serve(handler: Handler, options: ServeOptions = {}): Server {
  return new Server(handler, options);
}

/** A server that runs. `serve` makes it. */
export class Server extends Acceptor {
  /** Where it listens. */
  readonly addr: Deno.NetAddr;
  /** Settles when the server has stopped. It rejects if the runtime can't listen any more. */
  readonly finished: Promise<void>;
  readonly #abort = new AbortController();

  /** @ignore `serve` calls it. */
  constructor(handler: Handler, options: ServeOptions) {
    super(handler, options);
    const { hostname = "localhost", port = 8000, cert, key } = options;
    const tls = cert !== undefined && key !== undefined ? { cert, key } : undefined;
    const { signal } = this.#abort;
    try {
      if (!tls && (cert ?? key) !== undefined) {
        throw new TypeError("`cert` and `key` need each other.");
      }
      const servers = listen({ hostname, port, ...tls, signal, onListen() {} }, this.answer);
      this.addr = servers[0].addr;
      this.finished = Promise.all(servers.map((server) => server.finished)).then(() => {});
    } catch (error) {
      super.shutdown();
      throw error;
    }
    const stop = () => void this.shutdown();
    if (options.signal?.aborted) stop();
    options.signal?.addEventListener("abort", stop, { signal });
  }

  /** Stops as an `Acceptor` does, and then listens no more. */
  override async shutdown(options?: { timeout?: number }): Promise<void> {
    await super.shutdown(options);
    // The runtime's own `shutdown` would wait without end for a handshake that was reset.
    this.#abort.abort();
    // It is `finished` that tells why the runtime can't listen any more.
    await this.finished.catch(() => {});
  }
}
