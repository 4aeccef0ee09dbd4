// What the test command does with a server, at a terminal and in a pipe: it connects, also again,
// and shows what arrives. This is the one place where messages are read.

import { type Close, isLost } from "../close_codes.ts";
import { connect, type ConnectOptions } from "../connect.ts";
import type { Connection } from "../connection.ts";
import { ConnectionClosed, isConnectionClosed } from "../connection_closed.ts";
import { withoutSecrets } from "../failures.ts";
import type { Message } from "../message.ts";
import { Place, type Return } from "../rooms/place.ts";
import { now } from "../script/clock.ts";
import type { FlagValues } from "../script/flags.ts";
import { endTurn, type Interruption } from "../script/run.ts";
import { describeEnd } from "./input_output.ts";

/** Milliseconds between two looks at the time. */
const LOOK = 100;
/** How this side closes. */
const NORMAL: Close = { code: 1000, reason: "" };

/** The flags that say how the command talks with a server. */
export const SESSION_FLAGS = {
  "message TEXT...": "send this on each connection, and reconnect; may be given many times",
  "reconnect": "connect again when the connection is lost",
  "no-reconnect": "end then, which is usual in a pipe",
  "count COUNT": "end after so many messages",
  "idle SECONDS": "a connection is lost when nothing has come for so long",
  "follow": "hear after a loss what was missed, if the server keeps it",
  "time": "put the time before each line",
};

/** How the command talks with a server. */
export interface SessionOptions extends ConnectOptions, FlagValues<typeof SESSION_FLAGS> {
  /** What Ctrl-C does. */
  interruption: Interruption;
}

/** What shows a session. */
export interface Display {
  /** Shows what happens to the connection. */
  tell(line: string): void;
  /** Shows a message, behind the time if that is wanted. */
  show(message: Message, time: string): void;
  /** Called with each new connection, after each `--message` was sent on it. */
  open(websocket: Connection): void;
}

/**
 * Connects, and shows what arrives until the connection is closed, enough has arrived, or `leaving`
 * aborts: then it closes, and shows what arrives before the server has closed as well. A server
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
  const { interruption, message: messages = [], reconnect, time, follow } = options;
  const place = follow ? new Place() : undefined;
  const stamp = () => time ? `${now()} ` : "";
  const tell = (line: string) => display.tell(stamp() + line);
  let { count: rest = Infinity } = options;
  let isFirst = false;
  const show = (received: Message) => {
    if (isFirst && place) {
      isFirst = false;
      tellReturn(place.begin(received), tell);
      return true;
    }
    display.show(place ? place.take(received) : received, stamp());
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
  { idle = Infinity, interruption }: SessionOptions,
  show: (message: Message) => boolean,
): Promise<Close> {
  const silence = new AbortController();
  const signal = AbortSignal.any([silence.signal, interruption.signal]);
  const reason = `Nothing has come for ${idle} s.`;
  let [lookedAt, silentLooks] = [performance.now(), 0];
  const timer = setInterval(() => {
    lookedAt = performance.now();
    // Looks are counted, because one alone is late after a pause of this process.
    if (++silentLooks * LOOK > idle * 1000) {
      silence.abort(new ConnectionClosed({ code: 1006, reason }));
    }
  }, LOOK);
  try {
    while (show(await websocket.receive({ signal }))) {
      silentLooks = 0;
      if (performance.now() - lookedAt < LOOK) continue;
      await endTurn();
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
function tellReturn({ lost, missed }: Return, tell: (line: string) => void) {
  if (lost === Infinity) tell("Messages may be gone, and nobody knows how many.");
  else if (lost > 0) tell(`Messages that are gone: ${lost}.`);
  if (missed > 0) tell(`Messages that were missed, and come now: ${missed}.`);
}
