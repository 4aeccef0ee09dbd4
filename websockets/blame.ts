// Which client has to go when too much waits. One that takes something stays while another is to
// blame.

import type { Outbox } from "./outbox.ts";
import { costOf, type WaitingMessage } from "./sendable.ts";

const SENT_TOO_MUCH = "It sent more than could be taken.";
const READ_TOO_LITTLE = "It read too little while too much was waiting.";

/**
 * Drops one of the clients for which something waits: the one to blame for most of it. Each message
 * is blamed on the clients that are stuck with it; if there are none, on the one that has sent it.
 *
 * @param enough Bytes for which a client is to blame at least before it is dropped.
 * @param isUrgent Whether one has to go also where nobody is to blame for that much.
 */
export function dropOne(clients: Iterable<Outbox>, enough: number, isUrgent: boolean): void {
  const sent = new Sums();
  const notRead = new Sums();
  const stuckWith = new Map<WaitingMessage, Outbox[]>();
  for (const client of clients) {
    sent.add(client, client.unread);
    if (client.isStuck) notRead.add(client, client.handed);
    for (const [place, message] of client.queue.entries()) {
      const stuck = stuckWith.get(message) ?? [];
      if (client.isStuckWith(message, place)) stuck.push(client);
      stuckWith.set(message, stuck);
    }
  }
  for (const [message, stuck] of stuckWith) {
    const { cause } = message;
    for (const client of stuck) notRead.add(client, costOf(message) / stuck.length);
    if (stuck.length === 0 && cause && !cause.closing) sent.add(cause, costOf(message));
  }
  const [sender, bytes] = sent.largest();
  const [reader, bytesNotRead] = notRead.largest();
  if (Math.max(bytes, bytesNotRead) < enough) {
    if (isUrgent) furthestBehind(clients)?.drop(READ_TOO_LITTLE);
  } else if (bytes > bytesNotRead) sender?.drop(SENT_TOO_MUCH);
  else reader?.drop(READ_TOO_LITTLE);
}

/** The client for which most waits. What waits for many is shared among them. */
function furthestBehind(clients: Iterable<Outbox>): Outbox | undefined {
  const sums = new Sums();
  for (const client of clients) {
    sums.add(client, client.handed);
    for (const message of client.queue) sums.add(client, costOf(message) / message.clients);
  }
  return sums.largest()[0];
}

/** Bytes for each client. */
class Sums extends Map<Outbox, number> {
  add(client: Outbox, bytes: number): void {
    this.set(client, (this.get(client) ?? 0) + bytes);
  }

  largest(): [Outbox | undefined, number] {
    let most: [Outbox | undefined, number] = [undefined, 0];
    for (const each of this) if (each[1] > most[1]) most = each;
    return most;
  }
}
