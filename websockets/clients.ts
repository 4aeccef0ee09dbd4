// The clients of a server: each from the moment when its connection is open until it is closed and
// its handler has returned.

import { deadline } from "@std/async";
import type { Budget } from "./budget.ts";
import { isSendable } from "./close_codes.ts";
import { Connection, type ConnectionOptions } from "./connection.ts";
import { isConnectionClosed } from "./connection_closed.ts";
import { describeError, type Log } from "./log.ts";
import { Outbox } from "./outbox.ts";
import { currentClient } from "./waiting.ts";

/**
 * What a server does for a client: it is called once for each, and may be async. When it returns,
 * the connection is closed with 1000; when it throws, with 1011 and a line in the log. A
 * `ConnectionClosed` that gets out of it is no error, and its code is sent.
 *
 * @param request The handshake, with its URL and headers.
 */
export type Handler = (websocket: Connection, request: Request) => unknown;

/** The clients, and their handlers. */
export class Clients {
  readonly all: Set<Connection> = new Set();
  readonly #handler: Handler;
  readonly #budget: Budget;
  readonly #options: ConnectionOptions & { log: Log };
  /** How many handlers have not returned. */
  #running = 0;
  #emptied?: PromiseWithResolvers<void>;

  constructor(handler: Handler, budget: Budget, options: ConnectionOptions & { log: Log }) {
    this.#handler = handler;
    this.#budget = budget;
    this.#options = options;
  }

  /** Calls the handler for a client whose connection is open. */
  add(socket: WebSocket, request: Request, remoteAddress: string, subprotocol: string): void {
    const outbox = new Outbox(socket, this.#budget);
    const client = new Connection(outbox, this.#options, remoteAddress, subprotocol);
    this.all.add(client);
    this.#running++;
    this.#settle(client, currentClient.run(outbox, () => this.#call(client, request)));
  }

  /** Closes all connections with 1001, and waits until each handler has returned. */
  async close(timeout: number): Promise<void> {
    for (const client of this.all) client.close(1001, "The server is shutting down.");
    if (this.all.size === 0) return;
    this.#emptied = Promise.withResolvers();
    await deadline(this.#emptied.promise, timeout).catch(() => {
      const unread = this.all.size - this.#running;
      const clients = `clients that had not read what was waiting for them: ${unread}`;
      this.#options.log(
        `Stopped without waiting longer. Handlers that had not returned: ${this.#running}, ${clients}.`,
      );
    });
  }

  /** Calls the handler. It is not async, because that would keep the request until the handler ends. */
  #call(client: Connection, request: Request): unknown {
    try {
      return this.#handler(client, request);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** Closes the connection when the handler has returned, and forgets the client at the end. */
  async #settle(client: Connection, handled: unknown) {
    try {
      await handled;
      client.close();
    } catch (error) {
      if (isConnectionClosed(error)) {
        client.close(isSendable(error.code, false) ? error.code : 1011, error.reason);
      } else {
        this.#options.log(`The handler failed: ${describeError(error)}`);
        client.close(1011, "The server failed to handle this.");
      }
    }
    this.#running--;
    await client.closed;
    this.all.delete(client);
    if (this.all.size === 0) this.#emptied?.resolve();
  }
}
