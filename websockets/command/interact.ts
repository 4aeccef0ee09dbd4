// The test command at a terminal: it sends what is typed, and shows what arrives.

import { delay } from "@std/async";
import { type Close, isLost } from "../close_codes.ts";
import { connect, type ConnectOptions } from "../connect.ts";
import type { Connection } from "../connection.ts";
import { describeEnd, describeOpen, ignoreEnd, show } from "./input_output.ts";
import { Terminal } from "./terminal.ts";

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
  const leaving = new AbortController();
  const signals = options.signal ? [options.signal] : [];
  const signal = AbortSignal.any([leaving.signal, ...signals]);
  const connecting = connect(url, { ...options, signal });
  let current: Connection | undefined = await connecting;
  const terminal = new Terminal(options.signal, (message) => {
    if (current) current.send(message);
    else terminal.tell("Not sent: there is no connection. The up arrow gets the line back.");
  });
  terminal.left.addEventListener("abort", () => leaving.abort());
  let close: Close = { code: 1006, reason: "" };
  try {
    for await (const websocket of connecting) {
      current = websocket;
      terminal.tell(describeOpen(url, websocket.subprotocol));
      await showAll(websocket, terminal).catch(ignoreEnd);
      current = undefined;
      close = await websocket.closed;
      if (!reconnect || signal.aborted || !isLost(close)) break;
      terminal.tell(`${describeEnd(close)} Connecting again …`);
    }
  } catch (error) {
    if (signal.aborted) return close;
    throw error;
  } finally {
    terminal.close();
  }
  terminal.tell(describeEnd(close));
  return close;
}

/** Shows what arrives until the connection is closed. */
async function showAll(websocket: Connection, terminal: Terminal): Promise<void> {
  let turn = performance.now();
  for await (const message of websocket) {
    terminal.tell(`< ${show(message)}`);
    // The runtime reads no key while one message follows the other, and only in every 61st turn
    // that `setImmediate` would bring.
    if (performance.now() - turn < TURN) continue;
    await delay(0);
    turn = performance.now();
  }
}
