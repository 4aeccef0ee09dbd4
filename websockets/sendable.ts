// What can be sent, and what becomes of it while it waits.

import { Buffer } from "node:buffer";
import type { Outbox } from "./outbox.ts";

/** Bytes that a message takes while it waits, beside its content, and for each of its clients. */
const MESSAGE_COST = 400;
const CLIENT_COST = 16;

/** What can be sent: text, or binary. */
export type Sendable = string | ArrayBuffer | ArrayBufferView<ArrayBuffer>;

/** A message that waits: for one client or for many, it is in memory once. */
export interface WaitingMessage {
  /** A copy, because a buffer may be changed later, and a text may be a part that keeps its whole. */
  bytes: Uint8Array<ArrayBuffer>;
  isText: boolean;
  /** For how many clients it waits. */
  clients: number;
  /** The client on whose behalf it waits; none for what is not sent by a handler. */
  cause?: Outbox;
}

/** Bytes of what is sent. For text it is the number of UTF-16 units, because counting takes long. */
export function bytesOf(data: Sendable): number {
  return typeof data === "string" ? data.length : data.byteLength;
}

/** The bytes of what is sent, which nobody else changes or holds. */
export function copyOf(data: Sendable): Uint8Array<ArrayBuffer> {
  if (typeof data === "string") return new TextEncoder().encode(data);
  return new Uint8Array(view(data));
}

/** Whether these are still the bytes of what was sent. A text can't be changed. */
export function isCopy(bytes: Uint8Array, data: Sendable): boolean {
  return typeof data === "string" || view(data).equals(bytes);
}

function view(data: ArrayBuffer | ArrayBufferView<ArrayBuffer>): Buffer<ArrayBuffer> {
  if (!ArrayBuffer.isView(data)) return Buffer.from(data);
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

/** Bytes that a message takes while it waits. */
export function costOf({ bytes, clients }: WaitingMessage): number {
  return clients === 0 ? 0 : bytes.length + MESSAGE_COST + clients * CLIENT_COST;
}
