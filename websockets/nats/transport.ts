// One connection to a server of NATS, by the runtime's own sockets. nats.js speaks through it.

import type { ConnectionOptions, Server, Transport } from "@nats-io/nats-core/internal";

/** Bytes that are read at once. */
const READ_SIZE = 64 * 1024;
/** Bytes of the greeting at the most. In a large cluster, it has the address of each server. */
const MAX_GREETING = 64 * 1024;
const LINE_FEED = 10;

/** A connection that nats.js opens, uses and closes. */
export class SocketTransport implements Transport {
  readonly lang = "nats.js";
  readonly version = "3.4.0";
  /** Why the connection has ended, if NATS has not just hung up. */
  closeError?: Error;
  readonly #closing = new AbortController();
  readonly #ended = Promise.withResolvers<void>();
  readonly #buffer = new Uint8Array(READ_SIZE);
  #connection?: Deno.TcpConn | Deno.TlsConn;
  #greeting = new Uint8Array();
  #isEncrypted = false;
  #sent = Promise.resolve();

  /**
   * Connects, and reads the greeting, in which NATS says whether it wants TLS.
   *
   * @throws {Error} if it is no NATS, or the certificate can't be trusted.
   * @throws {Deno.errors.NotCapable} without the permission to connect.
   */
  async connect({ hostname, port, tlsName }: Server, { tls }: ConnectionOptions): Promise<void> {
    const { signal } = this.#closing;
    const connection = this.#use(await Deno.connect({ hostname, port, signal }));
    connection.setNoDelay();
    const line = await this.#readGreeting(connection);
    const { tls_required, tls_available } = JSON.parse(line.slice("INFO ".length));
    if (tls && !tls_required && !tls_available) throw new Error("it offers no TLS");
    if (!tls && !tls_required) return;
    // What came behind the greeting was not encrypted, so it is not from NATS.
    this.#greeting = new TextEncoder().encode(line);
    // A server that NATS itself has named by an address has a certificate for the name in the URL.
    const secure = await Deno.startTls(connection, { hostname: tlsName || hostname });
    await this.#use(secure).handshake();
    this.#isEncrypted = true;
  }

  /** Keeps a connection, unless nats.js has given up meanwhile. */
  #use<Connection extends Deno.TcpConn | Deno.TlsConn>(connection: Connection): Connection {
    this.#connection = connection;
    if (this.isClosed) connection.close();
    return connection;
  }

  /** Reads the line that NATS begins with. It is kept for nats.js, with all that came behind it. */
  async #readGreeting(connection: Deno.TcpConn): Promise<string> {
    const bytes = new Uint8Array(MAX_GREETING);
    let length = 0;
    while (length < bytes.length && !bytes.includes(LINE_FEED)) {
      const count = await connection.read(bytes.subarray(length));
      if (count === null) throw new Error("it has hung up");
      length += count;
    }
    const line = new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(LINE_FEED) + 1));
    if (!line.startsWith("INFO ")) throw new Error("it is something else");
    this.#greeting = bytes.slice(0, length);
    return line;
  }

  /** All that NATS sends, from the greeting on. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    let bytes: Uint8Array = this.#greeting;
    try {
      for (; bytes.length > 0; bytes = await this.#read()) yield bytes;
    } finally {
      if (bytes.length > 0) await this.#endUnread(bytes);
    }
  }

  /** Reads what has arrived, which is nothing at the end. */
  async #read(): Promise<Uint8Array> {
    const reading = this.#connection?.read(this.#buffer);
    const count = await reading?.catch((error) => this.#end(error));
    if (!count) this.#end();
    // nats.js may keep it.
    return this.#buffer.slice(0, count ?? 0);
  }

  /**
   * Ends the connection, because nats.js stopped reading at something that it does not understand.
   * nats.js would then print an error with all of it, raw. It waits for this first, which is never
   * done.
   */
  #endUnread(bytes: Uint8Array): Promise<never> {
    this.#end(new Error(`not understood: ${new TextDecoder().decode(bytes)}`));
    return new Promise(() => {});
  }

  /** Sends bytes after those that were to be sent before. */
  send(frame: Uint8Array): void {
    // The reader learns of an error as well, after all that has still arrived.
    this.#sent = this.#sent.then(() => this.#write(frame)).catch(() => {});
  }

  async #write(frame: Uint8Array) {
    while (frame.length > 0 && this.#connection && !this.isClosed) {
      frame = frame.subarray(await this.#connection.write(frame));
    }
  }

  /** Ends the connection, and tells nats.js, which does not know of it yet. */
  #end(reason?: Error) {
    if (this.isClosed) return;
    this.closeError = reason;
    this.discard();
    this.#ended.resolve();
  }

  /** Called by nats.js when two of its pings were not answered. What is being sent is given up. */
  disconnect(): void {
    this.#end(new Error("it does not answer"));
  }

  close(): Promise<void> {
    return Promise.resolve(this.discard());
  }

  discard(): void {
    this.#closing.abort();
    this.#connection?.[Symbol.dispose]();
  }

  /** Done when the connection has ended other than by nats.js. */
  closed(): Promise<void> {
    return this.#ended.promise;
  }

  isEncrypted(): boolean {
    return this.#isEncrypted;
  }

  get isClosed(): boolean {
    return this.#closing.signal.aborted;
  }
}
