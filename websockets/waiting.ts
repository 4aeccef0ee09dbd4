// What waits in memory: messages, each once for all of its clients, and who makes them wait.

import { AsyncLocalStorage } from "node:async_hooks";
import type { Close } from "./close_codes.ts";
import { type Content, copyOf, isCopy } from "./message.ts";

/** Bytes that a message takes beside its content while it waits, and more for each of its clients. */
export const MESSAGE_COST = 400;
const CLIENT_COST = 16;
/** Milliseconds in which a handler sends what a message of its client has caused. */
const CAUSE_INTERVAL = 2_000;

/** A message that waits: for one client or for many, it is in memory once. */
export interface WaitingMessage {
  /** A copy, because a buffer may be changed later, and a text may be a part that keeps its whole. */
  bytes: Uint8Array<ArrayBuffer>;
  isText: boolean;
  /** For how many clients it waits. */
  clients: number;
  /** The client whose message made a handler send it, if there is one. */
  cause: BudgetClient | undefined;
  /** When it was sent, on the clock of the budget. */
  sentAt: number;
}

/** A client as the budget sees it, with what it makes the server hold. */
export interface BudgetClient {
  /** Bytes that it has sent, and its handler has not taken yet. */
  readonly unread: number;
  /** Bytes that the runtime holds for it. */
  readonly handed: number;
  /** What waits for it in the server, in the order in which it was sent. */
  readonly queue: readonly WaitingMessage[];
  /** How its connection is to be closed, if it is. */
  readonly closing?: Close;
  /** When it last took something, on the clock of the budget. */
  takenAt: number;
  /** Whether the connection is open. If it is not, the runtime may not have told its end yet. */
  readonly isOpen: boolean;
  /** Whether more can be handed over for it. */
  readonly isEager: boolean;
  /** Whether it has to take something, or to answer a Close frame. */
  readonly isDue: boolean;
  /** When it has last sent something, in milliseconds. */
  readonly heardAt: number;
  /** Closes its connection, and forgets what waits for it. */
  drop(reason: string): void;
  /** Finds out how much it has taken. */
  measure(): void;
  /** Hands over what comes next, as far as there is room for it. */
  handOver(): void;
  /** Ends the wait for it. */
  giveUp(): void;
  /** Waits for the end of its connection. */
  close(closing: Close): void;
}

/** The client whose handler runs now. It is known after each `await` of the handler as well. */
export const currentClient: AsyncLocalStorage<BudgetClient> = new AsyncLocalStorage();

/** Bytes that a message takes while it waits. */
export function costOf({ bytes, clients }: WaitingMessage): number {
  return clients === 0 ? 0 : bytes.length + MESSAGE_COST + clients * CLIENT_COST;
}

/** Makes messages that wait, and hands them out again. */
export class WaitingMessages {
  #last: { content: Content; message: WaitingMessage } | undefined;
  #decoded: { text: string; message: WaitingMessage } | undefined;

  /** What is sent, as a message that waits: the same one for all to whom it is sent in a row. */
  keep(content: Content, sentAt: number): WaitingMessage {
    const client = currentClient.getStore();
    const isCause = client && performance.now() - client.heardAt < CAUSE_INTERVAL;
    const cause = isCause ? client : undefined;
    const last = this.#last;
    if (last && content === last.content && cause === last.message.cause) {
      if (isCopy(last.message.bytes, content)) return last.message;
    }
    const [bytes, isText] = [copyOf(content), typeof content === "string"];
    const message = { bytes, isText, clients: 0, cause, sentAt };
    this.#last = { content, message };
    return message;
  }

  /** What the runtime is handed of a message. A text is decoded once for all of its clients. */
  contentOf(message: WaitingMessage): Content {
    if (!message.isText) return message.bytes;
    if (this.#decoded?.message !== message) {
      const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(message.bytes);
      this.#decoded = { text, message };
    }
    return this.#decoded.text;
  }

  /** Frees what was only kept to be found again. */
  forget(): void {
    this.#last = this.#decoded = undefined;
  }
}
