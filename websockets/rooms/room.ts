// A room: its clients, and what was said in it.

import type { Connection } from "../connection.ts";
import type { History } from "./history.ts";
import type { Content, Message } from "../message.ts";

/** The clients that hear each other, and the history of what they have said. */
export class Room {
  /** The clients that hear each message as it is. */
  readonly clients: Set<Connection> = new Set();
  /** Those that hear its position as well. */
  readonly followers: Set<Connection> = new Set();
  /** How many wait for a relay before they follow. */
  entering = 0;
  /** There is none where a relay has not loaded it. */
  history: History | undefined;
  /** Whether it stays for a while when nobody is in it: somebody knows a position, or waits for one. */
  isRemembered = false;
  #deliveries: { message: Message; content: Content | undefined }[] = [];

  constructor(history?: History) {
    this.history = history;
  }

  /** How many clients it has. */
  get size(): number {
    return this.clients.size + this.followers.size;
  }

  /**
   * Sends a follower what it has missed, and each message from then on. Nothing is awaited between
   * the two, because what is said meanwhile would be lost.
   */
  follow(follower: Connection, history: History, after: string): void {
    for (const content of history.replay(after)) follower.send(content);
    this.followers.add(follower);
  }

  /** Sends a message to all. */
  say(message: Message, number?: number): void {
    const content = this.history?.add(message, number);
    // A client that is dropped here may make others say something: that comes after this message.
    if (this.#deliveries.push({ message, content }) > 1) return;
    try {
      for (const { message, content } of this.#deliveries) {
        for (const client of this.clients) client.send(message);
        if (content === undefined) continue;
        for (const follower of this.followers) follower.send(content);
      }
    } finally {
      this.#deliveries = [];
    }
  }

  /** Forgets the client. */
  delete(client: Connection): void {
    this.clients.delete(client);
    this.followers.delete(client);
  }
}
