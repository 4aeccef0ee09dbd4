// A WebSocket server, as `websockets.serve` makes it in Python: it answers handshakes, calls the
// handler once for each client, and keeps all clients within the limits.

import { deadline, delay } from "@std/async";
import { isSendable } from "./close_codes.ts";
import { Connection } from "./connection.ts";
import { answerPreflight, askForUpgrade, isHandshake, isKnownOrigin } from "./handshake.ts";
import { isPreflight, makeReadable, mayHaveBody, refuse, refuseBody } from "./handshake.ts";
import { refuseHandshake, RETRY_AFTER, selectSubprotocol } from "./handshake.ts";
import { describeError, errorLog, printable, unfailing } from "./lines.ts";
import { listen } from "./listen.ts";
import { Outbox } from "./outbox.ts";
import { askFirst } from "./process_request.ts";
import { isConnectionClosed, overlookRejections } from "./rejections.ts";
import { limitsOf, type RequestInfo, type ServeOptions } from "./options.ts";
import { currentClient, Waiting } from "./waiting.ts";

/** Milliseconds that a stopping server waits for its clients: containers are killed after 10 s. */
export const SHUTDOWN_TIMEOUT = 5_000;

/**
 * What a server does for a client: it is called once for each, and may be async. When it returns,
 * the connection is closed with 1000; when it throws, with 1011 and a line in the log. A
 * `ConnectionClosed` that gets out of it is no error.
 *
 * @param request The handshake, with its URL and headers.
 */
export type Handler = (websocket: Connection, request: Request) => unknown;

/** A server that runs. */
export interface Server extends AsyncDisposable {
  /** Where it listens. */
  readonly addr: Deno.NetAddr;
  /** Settles when the server has stopped. It rejects if the runtime can't listen any more. */
  readonly finished: Promise<void>;
  /** How many bytes wait for all clients together. */
  readonly waiting: number;
  /** Whether more waits than is allowed: nobody is let in, and a handler should not add to it. */
  readonly isFull: boolean;
  /** Counts bytes that wait elsewhere for this server's clients; less of them if negative. */
  countWaiting(bytes: number): void;
  /**
   * Lets nobody in any more, sends every client what waits for it and then 1001, and is done when
   * all handlers have returned. It may be called twice: the first call counts.
   *
   * @param options.timeout Milliseconds after which nobody is waited for any longer, 5,000 unless
   * given. The log then says for whom it was.
   */
  shutdown(options?: { timeout?: number }): Promise<void>;
}

/**
 * Starts a WebSocket server, as `websockets.serve` does in Python.
 *
 * @throws {Deno.errors.AddrInUse} if the port is taken, and whatever else `Deno.serve` throws.
 */
export function serve(handler: Handler, options: ServeOptions = {}): Server {
  const { maxMessage, maxClients, maxWaiting, idleTimeout } = limitsOf(options);
  const { origins = [], subprotocols = [], hostname = "localhost" } = options;
  const log = unfailing(options.log ?? errorLog);
  const timeout = idleTimeout * 1000 || Infinity;
  const waiting = new Waiting(maxWaiting, timeout);
  /** The clients that count: each until its connection is closed and its handler has returned. */
  const clients = new Map<Connection, Promise<void>>();
  const settings = { maxMessage, isClient: false, log };
  /** How many handlers have not returned. */
  let running = 0;
  /** How many requests are not decided about yet. */
  let pending = 0;
  const stopping = new AbortController();

  function answer(request: Request, info: RequestInfo): Response | Promise<Response> {
    // A handler that parses such a URL would fail, and the log would show it with its token.
    if (!URL.canParse(request.url)) return refuse(400, "The Host of the request can't be read.");
    if (stopping.signal.aborted) return refuse(503, "The server is shutting down.", RETRY_AFTER);
    if (isHandshake(request)) {
      return refuseHandshake(request) ?? refuseClient(request) ?? decide(request, info, upgrade);
    }
    if (mayHaveBody(request)) {
      const refusal = refuseClient(request) ?? refuseBody(request, maxMessage);
      if (refusal) return refusal;
    }
    const origin = request.headers.get("origin");
    // A page may read the answer only if it is let in, too.
    const readableBy = origin !== null && isKnownOrigin(origin, origins) ? origin : undefined;
    if (isPreflight(request) && options.processRequest) return answerPreflight(readableBy);
    const response = decide(request, info, askForUpgrade);
    if (response instanceof Response) return makeReadable(response, readableBy);
    return response.then((response) => makeReadable(response, readableBy));
  }

  /** Refuses a client because of where it comes from, or because there is no room. */
  function refuseClient({ headers }: Request): Response | undefined {
    const origin = headers.get("origin");
    if (!isKnownOrigin(origin, origins)) {
      log(`Refused a page from elsewhere: let it in with \`origins\` ${printable(`${origin}`)}.`);
      return refuse(403, "Pages from this origin are not let in.");
    }
    if (clients.size + pending >= maxClients) {
      log(`Refused a client: there are ${maxClients}, which is \`maxClients\`.`);
      return refuse(503, "There are too many clients, try again later.", RETRY_AFTER);
    }
    if (waiting.isFull) {
      log("Refused a client: too much waits for the others, see `maxWaiting`.");
      return refuse(503, "Too much waits for the clients, try again later.", RETRY_AFTER);
    }
  }

  /** Lets `processRequest` decide before `goOn`. Meanwhile the request counts as a client. */
  function decide(
    request: Request,
    info: RequestInfo,
    goOn: (request: Request, info: RequestInfo) => Response,
  ): Response | Promise<Response> {
    const { processRequest } = options;
    if (!processRequest) return goOn(request, info);
    const response = askFirst(processRequest, request, info, requestLimits);
    if (!(response instanceof Promise)) return response ?? goOn(request, info);
    pending++;
    return response.finally(() => pending--).then((response) => response ?? goOn(request, info));
  }

  function upgrade(request: Request, { remoteAddr }: RequestInfo): Response {
    const subprotocol = selectSubprotocol(request, subprotocols);
    // The runtime keeps the headers of a request only if somebody has looked at all of them before
    // the upgrade. This is the look that costs least.
    request.headers.getSetCookie();
    const { socket, response } = Deno.upgradeWebSocket(request, { idleTimeout });
    // The runtime's own option takes no offer without blanks between the names.
    if (subprotocol) response.headers.set("sec-websocket-protocol", subprotocol);
    const admit = () => {
      if (clients.size >= maxClients || stopping.signal.aborted) {
        return socket.close(1013, "Try again later.");
      }
      const outbox = new Outbox(socket, waiting);
      const client = new Connection(outbox, settings, remoteAddr.hostname, subprotocol);
      const handled = currentClient.run(outbox, () => call(client, request));
      running++;
      clients.set(client, settle(client, handled));
    };
    // A client counts from here on, because a handshake that is reset by its client never opens.
    socket.addEventListener("open", admit, { once: true });
    return response;
  }

  /** Calls the handler. It is not async, because that would keep the request for as long. */
  function call(client: Connection, request: Request): unknown {
    try {
      return handler(client, request);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** Closes the connection when the handler has returned, and forgets the client at the end. */
  async function settle(client: Connection, handled: unknown) {
    try {
      await handled;
      client.close();
    } catch (error) {
      if (isConnectionClosed(error)) {
        client.close(isSendable(error.code, false) ? error.code : 1011, error.reason);
      } else {
        log(`The handler failed: ${describeError(error)}`);
        client.close(1011, "The server failed to handle this.");
      }
    }
    running--;
    await client.closed;
    clients.delete(client);
  }

  function onError(error: unknown): Response {
    // The message of the error may hold a URL with a token.
    log(`Refused a request that can't be read: ${error instanceof Error && error.name}.`);
    return refuse(400, "The request can't be read.");
  }

  async function stop(timeout: number) {
    stopping.abort();
    for (const client of clients.keys()) client.close(1001, "The server is shutting down.");
    const isDone = async () => {
      await Promise.all(clients.values());
      while (pending > 0) await delay(1);
    };
    await deadline(isDone(), timeout).catch(() => {
      const unread = `clients that had not read what was waiting for them: ${
        clients.size - running
      }`;
      log(`Stopped without waiting longer. Handlers that had not returned: ${running}, ${unread}.`);
    });
    clearInterval(finding);
    release();
    // The runtime's own `shutdown` would wait without end for a handshake that was reset.
    abort.abort();
    await finished;
  }

  const requestLimits = {
    timeout,
    maxBody: maxMessage,
    stopping: stopping.signal,
    count: (bytes: number) => waiting.count(bytes),
    log,
  };
  const abort = new AbortController();
  const { port, cert, key } = options;
  const tls = cert && key ? { cert, key } : {};
  const listening = { hostname, port, ...tls, signal: abort.signal, onError, onListen: () => {} };
  const servers = listen(listening, answer);
  const release = overlookRejections();
  const finding = idleTimeout > 0 ? setInterval(() => waiting.findClosing(), timeout) : undefined;
  const finished = Promise.all(servers.map((server) => server.finished)).then(() => {});
  let stopped: Promise<void> | undefined;
  const shutdown = ({ timeout = SHUTDOWN_TIMEOUT } = {}) => stopped ??= stop(timeout);
  const stopSoon = () => void shutdown();
  if (options.signal?.aborted) stopSoon();
  options.signal?.addEventListener("abort", stopSoon, { signal: abort.signal });
  return {
    addr: servers[0].addr,
    finished,
    get waiting() {
      return waiting.bytes;
    },
    get isFull() {
      return waiting.isFull;
    },
    countWaiting: (bytes) => waiting.count(bytes),
    shutdown,
    [Symbol.asyncDispose]: () => shutdown(),
  };
}
