// Which client has to go when too much waits. One that takes something stays while another is to
// blame.

import { costOf, type Holder, type WaitingMessage } from "./waiting.ts";

const SENT_TOO_MUCH = "It sent more than could be taken.";
const READ_TOO_LITTLE = "It read too little while too much was waiting.";

/**
 * Chooses the client that is to blame for most of what waits. Each message is blamed on the clients
 * that take nothing; if all of its clients take something, on the client because of which it was sent.
 *
 * @param all How many clients the server has.
 * @param enough Bytes for which a client is to blame at least before it has to go.
 * @param isUrgent Whether one has to go also where nobody is to blame for that much.
 */
export function chooseEviction(
  clients: Iterable<Holder>,
  all: number,
  enough: number,
  isUrgent: boolean,
): { client: Holder; reason: string } | undefined {
  const sent = new Sums();
  const notRead = new Sums();
  const waiting = new Map<WaitingMessage, { clients: number; stuck: Holder[]; behind: Holder[] }>();
  for (const client of clients) {
    sent.add(client, client.unread);
    if (client.isStuck) notRead.add(client, client.handed);
    for (const [place, message] of client.queue.entries()) {
      // What a client is sent twice in a row is one message.
      if (message === client.queue[place - 1]) continue;
      const holders = waiting.get(message) ?? { clients: 0, stuck: [], behind: [] };
      holders.clients++;
      if (client.isStuck) holders.stuck.push(client);
      else if (place >= client.untakenFrom) holders.behind.push(client);
      waiting.set(message, holders);
    }
  }
  for (const [message, { clients, stuck, behind }] of waiting) {
    const { cause } = message;
    // A client is behind with what most others have taken, if it has taken nothing since it came.
    const toBlame = clients * 2 <= all ? [...stuck, ...behind] : stuck;
    for (const client of toBlame) notRead.add(client, costOf(message) / toBlame.length);
    if (toBlame.length === 0 && cause && !cause.closing) sent.add(cause, costOf(message));
  }
  const [sender, bytesSent] = sent.largest();
  const [reader, bytesNotRead] = notRead.largest();
  if (sender && bytesSent >= enough && bytesSent > bytesNotRead) {
    return { client: sender, reason: SENT_TOO_MUCH };
  }
  const client = bytesNotRead >= enough ? reader : isUrgent ? furthestBehind(clients) : undefined;
  return client && { client, reason: READ_TOO_LITTLE };
}

/** The client for which most waits. What waits for many is shared among them. */
function furthestBehind(clients: Iterable<Holder>): Holder | undefined {
  const sums = new Sums();
  for (const client of clients) {
    sums.add(client, client.handed);
    for (const message of client.queue) sums.add(client, costOf(message) / message.clients);
  }
  return sums.largest()[0];
}

/** Bytes for each client. */
class Sums extends Map<Holder, number> {
  add(client: Holder, bytes: number): void {
    this.set(client, (this.get(client) ?? 0) + bytes);
  }

  largest(): [Holder | undefined, number] {
    let most: [Holder | undefined, number] = [undefined, 0];
    for (const each of this) if (each[1] > most[1]) most = each;
    return most;
  }
}
