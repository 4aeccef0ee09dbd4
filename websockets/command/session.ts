// What the test command does with a server, at a terminal and in a pipe: it connects, also again,
// and shows what arrives. This is the one place where messages are read.

import { type Close, isLost } from "../close_codes.ts";
import { connect, type ConnectOptions } from "../connect.ts";
import type { Connection } from "../connection.ts";
import { ConnectionClosed, isConnectionClosed } from "../connection_closed.ts";
import { withoutSecrets } from "../failures.ts";
import type { Message } from "../message.ts";
import { noPosition, Place, type Return } from "../rooms/place.ts";
import { now } from "../script/clock.ts";
import { endTurn, type Interruption } from "../script/run.ts";
import { describeEnd } from "./input_output.ts";

/** Milliseconds between two looks at the time. */
const LOOK = 100;
/** How this side closes. */
const NORMAL: Close = { code: 1000, reason: "" };

/** How the command talks with a server. All times are in milliseconds. */
export interface SessionOptions extends ConnectOptions {
  /** What Ctrl-C does. */
  interruption: Interruption;
  /** Sent on each connection, as soon as it is open. */
  messages: string[];
  /** Whether to connect again when a connection is lost. */
  reconnect: boolean;
  /** How many messages are enough; `Infinity` if the server decides. */
  count: number;
  /** A connection on which nothing has come for so long is lost; `Infinity` if it is not. */
  idle: number;
  /** Whether the time stands before each line. */
  time: boolean;
  /** Whether to hear after a loss what was missed, where the server gives it again. */
  follow: boolean;
}

/** What shows a session. */
export interface Display {
  /** Shows what happens to the connection. */
  tell(line: string): void;
  /** Shows a message, behind the time if that is wanted. */
  show(message: Message, time: string): void;
  /** Called with each new connection, after `messages` were sent on it. */
  open(websocket: Connection): void;
}

/**
 * Connects, and shows what arrives until the connection is closed, enough has arrived, or `leaving`
 * aborts: then it says goodbye, and shows what arrives before the server has closed as well. A server
 * that was never there is not waited for.
 *
 * @returns How the last connection was closed.
 * @throws what the interruption says.
 */
export async function converse(
  url: string,
  options: SessionOptions,
  leaving: AbortSignal,
  display: Display,
): Promise<Close> {
  const { interruption, messages, reconnect, time, follow } = options;
  const place = follow ? new Place() : undefined;
  const stamp = () => time ? `${now()} ` : "";
  const tell = (line: string) => display.tell(stamp() + line);
  let rest = options.count;
  let isFirst = false;
  const show = (received: Message) => {
    if (isFirst && place) {
      isFirst = false;
      tellReturn(place.begin(received), tell);
      return true;
    }
    const message = place ? place.take(received) : received;
    if (message === undefined) throw noPosition();
    display.show(message, stamp());
    return --rest > 0;
  };
  const signal = AbortSignal.any([leaving, interruption.signal]);
  const connecting = connect(() => place?.locate(url) ?? url, { ...options, signal });
  await connecting;
  let current: Connection | undefined;
  let close = NORMAL;
  try {
    for await (current of connecting) {
      isFirst = true;
      for (const message of messages) current.send(message);
      display.open(current);
      const { subprotocol } = current;
      tell(`Connected to ${withoutSecrets(url)}${subprotocol && `, subprotocol ${subprotocol}`}.`);
      close = await showAll(current, options, show);
      if (!reconnect || signal.aborted || !isLost(close)) break;
      current = undefined;
      tell(`${describeEnd(close)} Connecting again …`);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
    close = current ? await current.closed : NORMAL;
  }
  if (current) tell(describeEnd(close));
  interruption.signal.throwIfAborted();
  return close;
}

/**
 * Shows what arrives on a connection.
 *
 * @param show Shows a message, and says whether another one is wanted.
 * @returns How the connection was closed, or is to be closed.
 */
async function showAll(
  websocket: Connection,
  { idle, interruption }: SessionOptions,
  show: (message: Message) => boolean,
): Promise<Close> {
  const silence = new AbortController();
  const signal = AbortSignal.any([silence.signal, interruption.signal]);
  const reason = `Nothing has come for ${idle / 1000} seconds.`;
  let [lookedAt, silentLooks] = [performance.now(), 0];
  const timer = setInterval(() => {
    lookedAt = performance.now();
    // Looks are counted, because one alone is late after a pause of this process.
    if (++silentLooks * LOOK > idle) silence.abort(new ConnectionClosed({ code: 1006, reason }));
  }, LOOK);
  try {
    while (show(await websocket.receive({ signal }))) {
      silentLooks = 0;
      if (performance.now() - lookedAt < LOOK) continue;
      await endTurn();
      lookedAt = performance.now();
    }
    return NORMAL;
  } catch (error) {
    if (!isConnectionClosed(error)) throw error;
    return error;
  } finally {
    clearInterval(timer);
  }
}

/** Says what was missed, and what is gone. */
function tellReturn(back: Return | undefined, tell: (line: string) => void) {
  if (!back) throw noPosition();
  const { lost, missed } = back;
  if (lost === Infinity) tell("Messages may be gone, and nobody knows how many.");
  else if (lost > 0) tell(`Messages that are gone: ${lost}.`);
  if (missed > 0) tell(`Messages that were missed, and come now: ${missed}.`);
}
