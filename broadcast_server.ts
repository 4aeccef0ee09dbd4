// The broadcast server, the article's last step: everyone hears everyone.
//
//   deno run --allow-net broadcast_server.ts
//   Broadcast server on ws://localhost:9998, page at http://localhost:9998/
//
// Open that page in two tabs, or push from anywhere: curl -d 'hello' http://localhost:9998/
// Read `broadcast` and `room` first; the rules for clients are those of `serve` in server.ts.

import { deadline, delay } from "@std/async";
import { parseArgs } from "node:util";
import { command, type Handler, limited, type Log, MAX_BUFFERED, MAX_QUEUED } from "./server.ts";
import { runServer, SERVER_FLAGS, SERVER_USAGE, usageError } from "./server.ts";

/** Milliseconds that NATS gets to answer, when this server starts and when it stops. */
const NATS_TIMEOUT = 3_000;
/** Milliseconds between pings: a NATS that vanished is noticed when two were not answered. */
const NATS_PING_INTERVAL = 5_000;
/** Milliseconds between attempts to reach a NATS that was lost. */
const NATS_RECONNECT_WAIT = 1_000;
/** Milliseconds until NATS is used again: by then, the other instances have come back as well. */
const NATS_SETTLE_TIME = 2 * NATS_RECONNECT_WAIT;

type Data = string | ArrayBuffer | ArrayBufferView<ArrayBufferLike>;

/** The way to the other instances of this server. */
export interface Relay {
  /** Bytes of the largest message that can be published. */
  maxMessage: number;
  /** Sends a message to all other instances. What waits for them is bounded as it is for a client. */
  publish(data: string | ArrayBuffer): void;
  /** Publishes what still waits, then leaves. */
  close(): Promise<void>;
}

/** Sends a message to all. Nobody is waited for: `serve` bounds what is queued for each. */
export function broadcast(clients: Set<WebSocket>, data: Data): void {
  for (const client of clients) client.send(data);
}

/** The handler that broadcasts; it alone lets `clients` in and forgets them. */
export function room(clients: Set<WebSocket>, log: Log, print: Log, relay?: Relay): Handler {
  const tellAll = (data: string | ArrayBuffer) => {
    broadcast(clients, data);
    relay?.publish(data);
    print(typeof data === "string" ? data : `${data.byteLength} bytes of binary.`);
  };
  return {
    open(socket) {
      clients.add(socket);
      log(`A client joined, ${clients.size} connected.`);
    },
    message: (_socket, data) => tellAll(data),
    close(socket, { code }) {
      clients.delete(socket);
      log(`A client left (${code}), ${clients.size} connected.`);
    },
    post(text) {
      tellAll(text);
      return new Response(`{"clients":${clients.size}}\n`, { status: 202 });
    },
  };
}

/**
 * Joins the room `subject` on a NATS server. Text goes to `subject.text` and binary goes to
 * `subject.binary`, both as they are, so that every NATS client can take part.
 *
 * @throws {Error} if no NATS server answers at `url`.
 */
export async function connectRelay(
  url: string,
  subject: string,
  receive: (data: Data) => void,
  log: Log,
): Promise<Relay> {
  const { connect } = await import("@nats-io/transport-node");
  // A connection that NATS resets while it is refused reports that where nobody listens any more.
  globalThis.addEventListener("error", (event) => {
    if (event.error?.code === "ECONNRESET") event.preventDefault();
  });
  const { host, username, password } = new URL(url);
  const nats = await connect({
    servers: host,
    user: decodeURIComponent(username) || undefined,
    pass: decodeURIComponent(password) || undefined,
    noEcho: true,
    timeout: NATS_TIMEOUT,
    pingInterval: NATS_PING_INTERVAL,
    reconnectTimeWait: NATS_RECONNECT_WAIT,
    maxReconnectAttempts: -1,
    ignoreAuthErrorAbort: true,
  }).catch((error) => {
    throw new Error(`No NATS server at ${host} (${error.message}): start nats-server there.`);
  });
  nats.subscribe(`${subject}.*`, {
    callback(error, message) {
      if (error) log(`NATS: ${error.message}`);
      else receive(message.subject.endsWith(".text") ? message.string() : message.data);
    },
  });
  // Once this is confirmed, no message of another instance is missed.
  await nats.flush();

  let waiting: (string | ArrayBuffer)[] = [];
  let waitingBytes = 0;
  let batch: typeof waiting = [];
  let lost = 0;
  let isConnected = true;
  let published = Promise.resolve();
  let settleTimer: ReturnType<typeof setTimeout> | undefined;

  /** Publishes what waits. A batch that NATS does not confirm is lost, though some may arrive. */
  async function publishWaiting() {
    while (isConnected && waiting.length > 0) {
      [batch, waiting, waitingBytes] = [waiting, [], 0];
      try {
        for (const data of batch) {
          if (typeof data === "string") nats.publish(`${subject}.text`, data);
          else nats.publish(`${subject}.binary`, new Uint8Array(data));
        }
        await nats.flush();
      } catch {
        lost += batch.length;
        // Lets `watchConnection` hear first that the connection is gone.
        await delay(0);
      }
      batch = [];
    }
    if (isConnected) reportLost();
  }

  function reportLost() {
    if (lost > 0) log(`${lost} messages were not relayed to the other instances.`);
    lost = 0;
  }

  async function watchConnection() {
    for await (const status of nats.status()) {
      if (status.type === "error") {
        log(`NATS: ${status.error.message}`);
      } else if (status.type === "disconnect") {
        isConnected = false;
        clearTimeout(settleTimer);
        log("NATS is lost: local clients go on, reconnecting.");
      } else if (status.type === "reconnect") {
        log("NATS is back.");
        settleTimer = setTimeout(() => {
          isConnected = true;
          published = published.then(publishWaiting);
        }, NATS_SETTLE_TIME);
      }
    }
  }
  watchConnection();

  return {
    maxMessage: nats.info?.max_payload ?? Infinity,
    publish(data) {
      const size = typeof data === "string" ? data.length : data.byteLength;
      if (waitingBytes + size > MAX_BUFFERED || waiting.length === MAX_QUEUED) {
        lost++;
        return;
      }
      waiting.push(data);
      waitingBytes += size;
      published = published.then(publishWaiting);
    },
    async close() {
      await deadline(published.then(() => nats.drain()), NATS_TIMEOUT).catch(() => {});
      lost += batch.length + waiting.length;
      reportLost();
    },
  };
}

const USAGE = `Usage: deno run --allow-net broadcast_server.ts [flags]
  --nats URL           join the instances of this NATS server, such as nats://127.0.0.1:4222
  --subject NAME       their room (broadcast)${SERVER_USAGE}`;

if (import.meta.main) {
  await command(USAGE, async () => {
    const { nats, subject, ...flags } = parseArgs({
      options: {
        ...SERVER_FLAGS,
        nats: { type: "string" },
        subject: { type: "string", default: "broadcast" },
      },
    }).values;
    if (nats !== undefined && !(nats.startsWith("nats://") && URL.canParse(nats))) {
      throw usageError("--nats takes a URL such as nats://127.0.0.1:4222.");
    }
    if (!/^[^\s.*>]+(\.[^\s.*>]+)*$/.test(subject)) {
      throw usageError(`--subject takes words with dots between them, not "${subject}".`);
    }
    const clients = new Set<WebSocket>();
    const log = limited(console.log);
    const print = flags.quiet ? () => {} : limited(console.log);
    const hear = (data: Data) => broadcast(clients, data);
    const relay = nats ? await connectRelay(nats, subject, hear, limited(console.log)) : undefined;
    const options = { port: 9998, maxMessage: relay?.maxMessage };
    runServer("Broadcast server", room(clients, log, print, relay), flags, options, relay?.close);
  });
}
