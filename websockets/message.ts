// A message: what arrives, and what can be sent.

import { Buffer } from "node:buffer";

/** What arrives: a text, or the bytes of a binary message. */
export type Message = string | ArrayBuffer;

/** What can be sent: a text, or the bytes of a binary message as a buffer or any view of one. */
export type Sendable = string | ArrayBuffer | ArrayBufferView;

/** What the runtime takes: bytes that no other thread can change. */
export type Content = string | ArrayBuffer | ArrayBufferView<ArrayBuffer>;

/**
 * What is sent, as the runtime takes it.
 *
 * @throws {TypeError} if it is neither a string, nor an ArrayBuffer, nor a view of one.
 */
export function contentOf(message: Sendable): Content {
  if (typeof message === "string" || message instanceof ArrayBuffer) return message;
  if (!ArrayBuffer.isView(message)) {
    const type = Object.prototype.toString.call(message);
    throw new TypeError(`A message is a string or bytes, not ${type}: convert it first.`);
  }
  return hasOwnBuffer(message) ? message : copyOf(message);
}

function hasOwnBuffer(view: ArrayBufferView): view is ArrayBufferView<ArrayBuffer> {
  return view.buffer instanceof ArrayBuffer;
}

/** Bytes of a message as it is sent; a text is sent in UTF-8. */
export function bytesOf(content: Content): number {
  return typeof content === "string" ? Buffer.byteLength(content) : content.byteLength;
}

/** The bytes of a message, which nobody else changes or holds. */
export function copyOf(content: Sendable): Uint8Array<ArrayBuffer> {
  if (typeof content === "string") return new TextEncoder().encode(content);
  return new Uint8Array(viewOf(content));
}

/** Whether these are still the bytes of a message. A text can't be changed. */
export function isCopy(bytes: Uint8Array, content: Content): boolean {
  return typeof content === "string" || viewOf(content).equals(bytes);
}

function viewOf(content: ArrayBuffer | ArrayBufferView): Buffer {
  if (!ArrayBuffer.isView(content)) return Buffer.from(content);
  return Buffer.from(content.buffer, content.byteOffset, content.byteLength);
}
