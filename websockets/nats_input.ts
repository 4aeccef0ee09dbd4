// What NATS sends, line by line. A line that starts with MSG announces a message.

import { Buffer } from "node:buffer";

/** Bytes that are read at once. */
const CHUNK = 64 * 1024;
/** Bytes of a line with its message: NATS can't be told to carry messages over 64 MiB. */
const MAX_LENGTH = 65 * 1024 ** 2;

/** Reads line by line, each with the message that it announces. */
export class NatsInput {
  readonly #chunk = new Uint8Array(CHUNK);
  #unread = Buffer.alloc(0);

  constructor(private readonly connection: Deno.Conn) {}

  async next(): Promise<{ line: string; data: Uint8Array<ArrayBuffer> }> {
    while (true) {
      const start = this.#unread.indexOf("\r\n") + 2;
      const line = this.#unread.toString("utf8", 0, start - 2);
      const [, size] = line.match(/^MSG .* (\d+)$/) ?? [];
      const end = start + Number(size ?? 0);
      const length = size ? end + 2 : end;
      if (start > 1 && this.#unread.length >= length) {
        // It is a copy, so that a handler may keep it without all that was read beside it.
        const data = new Uint8Array(this.#unread.subarray(start, end));
        this.#unread = this.#unread.subarray(length);
        return { line, data };
      }
      await this.#fill(Math.max(length, this.#unread.length + 1));
    }
  }

  /** Reads on until there are so many bytes. */
  async #fill(length: number) {
    if (length > MAX_LENGTH) throw new Error("it sent a line without an end");
    const parts: Uint8Array[] = [this.#unread];
    for (let filled = this.#unread.length; filled < length;) {
      const count = await this.connection.read(this.#chunk);
      if (count === null) throw new Error("it has hung up");
      parts.push(this.#chunk.slice(0, count));
      filled += count;
    }
    this.#unread = Buffer.concat(parts);
  }
}
