// The test command at a terminal: it sends what is typed, and shows what arrives.

import { delay } from "@std/async";
import { describeEnd, isLost } from "./close_codes.ts";
import { connect, type ConnectOptions, whileAway } from "./connect.ts";
import { ConnectionFailed, describeOpen } from "./failures.ts";
import { show } from "./messages.ts";
import type { Close } from "./outbox.ts";
import { Terminal } from "./terminal.ts";

/** Milliseconds of the first pause after a loss, at the most. */
const PAUSE = 2_000;

/** Milliseconds of messages that are shown before keys are read: nobody notices them. */
const TURN = 20;

/**
 * Sends each message that is typed, and shows what arrives above the line being typed.
 *
 * @param reconnect Whether to connect again when the connection is lost.
 * @returns How the last connection was closed.
 */
export async function interact(
  url: string,
  options: ConnectOptions,
  reconnect: boolean,
): Promise<Close> {
  let websocket = await connect(url, options);
  let isOpen = true;
  const terminal = new Terminal(options.signal, (message) => {
    if (isOpen) websocket.send(message);
    else terminal.tell("Not sent: there is no connection. The up arrow gets the line back.");
  });
  const signal = terminal.left;
  signal.addEventListener("abort", () => websocket.close());
  while (true) {
    terminal.tell(describeOpen(url, websocket.subprotocol));
    let turn = performance.now();
    for await (const message of websocket) {
      terminal.tell(`< ${show(message)}`);
      // The runtime reads no key while one message follows the other, and only in every 61st turn
      // that `setImmediate` would bring.
      if (performance.now() - turn < TURN) continue;
      await delay(0);
      turn = performance.now();
    }
    const close = await websocket.closed;
    isOpen = false;
    if (!reconnect || signal.aborted || !isLost(close)) {
      terminal.close();
      terminal.tell(describeEnd(close));
      return close;
    }
    terminal.tell(`${describeEnd(close)} Connecting again …`);
    try {
      await delay(Math.random() * PAUSE, { signal });
      const again = { ...options, signal };
      const patient = { patience: Infinity, pause: PAUSE, signal };
      websocket = await whileAway(() => connectAgain(url, again), patient);
      isOpen = true;
    } catch (error) {
      if (signal.aborted) return close;
      terminal.close();
      throw error;
    }
  }
}

async function connectAgain(url: string, options: ConnectOptions) {
  try {
    return await connect(url, options);
  } catch (error) {
    // A computer that wakes up has no network at first, and finds no host.
    const isAsleep = error instanceof ConnectionFailed && error.message.includes("(dns ");
    throw isAsleep ? new ConnectionFailed(error.message, true) : error;
  }
}
