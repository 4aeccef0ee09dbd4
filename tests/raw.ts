// Requests and frames byte by byte, for what no well-behaved client sends.

import { within } from "./helpers.ts";

/** The handshake of the article, whose Sec-WebSocket-Accept is known; `null` leaves a header out. */
export function handshake(headers: Record<string, string | null> = {}, request = "GET / HTTP/1.1") {
  const all = {
    Host: "localhost",
    Upgrade: "websocket",
    Connection: "Upgrade",
    "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7w==",
    "Sec-WebSocket-Version": "13",
    ...headers,
  };
  const lines = Object.entries(all).filter(([, value]) => value !== null);
  return `${request}\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n`;
}

/** A frame as clients send it (RFC 6455 section 5.2), masked with zeros. */
export function frame(opcode: number, payload: string | Uint8Array = "", isLast = true) {
  const bytes = typeof payload === "string" ? new TextEncoder().encode(payload) : payload;
  const { length } = bytes;
  const extended = length < 126 ? 0 : length < 65_536 ? 2 : 8;
  const bytesBefore = 2 + extended + 4;
  const all = new Uint8Array(bytesBefore + length);
  const view = new DataView(all.buffer);
  view.setUint8(0, (isLast ? 0x80 : 0) | opcode);
  view.setUint8(1, 0x80 | (extended === 0 ? length : extended === 2 ? 126 : 127));
  if (extended === 2) view.setUint16(2, length);
  if (extended === 8) view.setBigUint64(2, BigInt(length));
  all.set(bytes, bytesBefore);
  return all;
}

/** A TCP connection to write any bytes to. */
export class RawClient implements Disposable {
  private constructor(readonly connection: Deno.TcpConn) {}

  /** Connects, and sends `request` if there is one. */
  static async open(port: number, request?: string): Promise<RawClient> {
    const client = new RawClient(await Deno.connect({ port }));
    if (request !== undefined) await client.write(request);
    return client;
  }

  /** Connects and completes the article's handshake. */
  static async upgraded(port: number): Promise<RawClient> {
    const client = await RawClient.open(port, handshake());
    await client.head();
    return client;
  }

  async write(data: string | Uint8Array): Promise<void> {
    let bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    while (bytes.length > 0) bytes = bytes.subarray(await this.connection.write(bytes));
  }

  /** Reads once: the bytes, or none at the end. */
  async read(): Promise<Uint8Array> {
    const buffer = new Uint8Array(65_536);
    const count = await within(this.connection.read(buffer), "bytes from the server");
    return buffer.slice(0, count ?? 0);
  }

  /** Reads so many bytes, however many pieces they come in; fewer at the end. */
  async take(count: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(count);
    let taken = 0;
    while (taken < count) {
      const read = await within(this.connection.read(bytes.subarray(taken)), "more bytes");
      if (read === null) break;
      taken += read;
    }
    return bytes.subarray(0, taken);
  }

  /** The head of the answer to a request, read byte by byte so that nothing after it is taken. */
  async head(): Promise<string> {
    let head = "";
    const byte = new Uint8Array(1);
    while (!head.endsWith("\r\n\r\n")) {
      if (await within(this.connection.read(byte), "an answer") === null) break;
      head += String.fromCharCode(byte[0]);
    }
    return head;
  }

  /** Reads all that comes: how many bytes were before the Close frame at its end, and what it says. */
  async readClose(): Promise<{ code: number; reason: string; before: number }> {
    let tail = new Uint8Array();
    let total = 0;
    while (true) {
      const bytes = await this.read();
      total += bytes.length;
      tail = new Uint8Array([...tail, ...bytes.slice(-127)]).slice(-127);
      for (let start = 0; start < tail.length - 3; start++) {
        if (tail[start] !== 0x88 || tail[start + 1] !== tail.length - start - 2) continue;
        const code = tail[start + 2] << 8 | tail[start + 3];
        const reason = new TextDecoder().decode(tail.slice(start + 4));
        return { code, reason, before: total - (tail.length - start) };
      }
      if (bytes.length === 0) throw new Error("The connection ended without a Close frame.");
    }
  }

  [Symbol.dispose](): void {
    try {
      this.connection.close();
    } catch {
      // The test has closed it already.
    }
  }
}

/** The answer to a raw request: its status, and its head. */
export async function ask(
  port: number,
  request: string,
): Promise<{ status: number; head: string }> {
  using client = await RawClient.open(port, request);
  const head = await client.head();
  return { status: Number(head.split(" ")[1]), head: head.toLowerCase() };
}
