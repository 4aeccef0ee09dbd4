// Which clients have to go when too much waits. One that takes something stays while another is to
// blame.

import { type BudgetClient, costOf, type WaitingMessage } from "./waiting.ts";

const SENT_TOO_MUCH = "It sent more than could be taken.";
const READ_TOO_LITTLE = "It read too little while too much was waiting.";

/** Milliseconds after which it begins to show whether a client reads. */
export const READ_INTERVAL = 1_000;
/**
 * Milliseconds for which a client may take nothing, unless it is urgent. Linux takes about 1.6 MB for
 * a client at once, and nothing more until that is read. A line of 4 Mbit/s needs this time for it.
 */
export const PATIENCE = 3_000;

/** A client that has to go, and why. */
export interface Eviction {
  client: BudgetClient;
  reason: string;
}

/**
 * Chooses the clients that are to blame for most of what waits. Those that are behind are to blame
 * for what waits for them, however many they are. A client is to blame for what its handler has not
 * read. It is to blame for a message that it has made a handler send, if the message waits for this
 * client as well, or for nobody who is behind.
 *
 * @param clock Now, on the clock of the budget.
 * @param enough Bytes for which clients must be to blame before they have to go.
 * @param isUrgent Whether one has to go at once, even if nobody is to blame for that much.
 * @returns One client, or all that are behind: they go in this order until there is room again.
 */
export function chooseEvictions(
  clients: Iterable<BudgetClient>,
  clock: number,
  enough: number,
  isUrgent: boolean,
): Eviction[] {
  const patience = isUrgent ? 0 : PATIENCE;
  const sent = new Sums();
  const notRead = new Sums();
  /** The longest time for which one of its clients is behind. */
  const waiting = new Map<WaitingMessage, number>();
  /** Those that wait for their cause as well: it sends faster than it takes. */
  const own = new Set<WaitingMessage>();
  let bytesNotRead = 0;
  for (const client of clients) {
    sent.add(client, client.unread);
    const time = timeBehind(client, clock);
    let bytes = client.handed;
    for (const message of client.queue) {
      bytes += costOf(message);
      waiting.set(message, Math.max(time, waiting.get(message) ?? 0));
      if (message.cause === client) own.add(message);
    }
    if (time <= patience) continue;
    notRead.add(client, bytes);
    bytesNotRead += client.handed;
  }
  for (const [message, time] of waiting) {
    const { cause } = message;
    if (time === 0 || own.has(message)) {
      if (cause && !cause.closing) sent.add(cause, costOf(message));
    } else if (time > patience) bytesNotRead += costOf(message);
  }
  const [sender] = sent.sorted();
  if (sender && sender.bytes >= enough && sender.bytes > bytesNotRead) {
    return [{ client: sender.client, reason: SENT_TOO_MUCH }];
  }
  const isEnough = bytesNotRead >= enough;
  const readers = isEnough ? notRead.sorted() : isUrgent ? mostWaiting(clients) : [];
  return readers.map(({ client }) => ({ client, reason: READ_TOO_LITTLE }));
}

/**
 * For how many milliseconds a client has taken nothing, if it is behind, and else 0. It is behind if
 * that is more than half of the time for which something waits for it. The first second of this time
 * shows nothing: then the system takes what the client may never read, and a busy one takes it late.
 */
function timeBehind({ handed, queue, takenAt }: BudgetClient, clock: number): number {
  if (handed === 0) return 0;
  const time = clock - takenAt;
  const [oldest] = queue;
  if (!oldest) return time > READ_INTERVAL ? time : 0;
  const waited = clock - oldest.sentAt - READ_INTERVAL;
  return time * 2 > waited ? Math.max(time, 1) : 0;
}

/** The client for which most waits. What waits for many is shared among them. */
function mostWaiting(clients: Iterable<BudgetClient>) {
  const sums = new Sums();
  for (const client of clients) {
    sums.add(client, client.handed);
    for (const message of client.queue) sums.add(client, costOf(message) / message.clients);
  }
  return sums.sorted().slice(0, 1);
}

/** Bytes for each client. */
class Sums extends Map<BudgetClient, number> {
  add(client: BudgetClient, bytes: number): void {
    if (bytes > 0) this.set(client, (this.get(client) ?? 0) + bytes);
  }

  /** The clients that have any, with the most first. */
  sorted() {
    const sums = Array.from(this, ([client, bytes]) => ({ client, bytes }));
    return sums.sort((one, other) => other.bytes - one.bytes);
  }
}
