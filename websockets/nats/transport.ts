// One connection to a server of NATS, by the runtime's own sockets. nats.js speaks through it.

import type { ConnectionOptions, Server, Transport } from "@nats-io/nats-core/internal";

/** Bytes that are read at once. The greeting has to fit: in a large cluster, it names all servers. */
const BUFFER_SIZE = 64 * 1024;
const LINE_FEED = 10;

/** What nats.js hands on to its connections. */
export interface SocketOptions extends ConnectionOptions {
  /** The host that a certificate has to be for. */
  host: string;
}

/** A connection that nats.js opens, uses and closes. */
export class SocketTransport implements Transport {
  readonly lang = "nats.js";
  readonly version = "3.4.0";
  /** Why the connection has ended, unless NATS has hung up. */
  closeError?: Error;
  readonly #closing = new AbortController();
  readonly #ended = Promise.withResolvers<void>();
  readonly #buffer = new Uint8Array(BUFFER_SIZE);
  #greeting = new Uint8Array();
  #connection?: Deno.TcpConn | Deno.TlsConn;
  #writer?: WritableStreamDefaultWriter<Uint8Array>;

  /**
   * Connects, and reads the greeting, which says whether NATS wants TLS.
   *
   * @throws {Error} if it is no NATS, or its certificate can't be trusted.
   * @throws {Deno.errors.NotCapable} without the permission to connect.
   */
  async connect({ hostname, port }: Server, { tls, host }: SocketOptions): Promise<void> {
    const connection = await Deno.connect({ hostname, port, signal: this.#closing.signal });
    this.#connection = connection;
    connection.setNoDelay();
    const length = await this.#readLine(connection);
    const end = this.#buffer.indexOf(LINE_FEED) + 1;
    const line = new TextDecoder().decode(this.#buffer.subarray(0, end));
    if (!line.startsWith("INFO ")) throw new Error("it is something else");
    const { tls_required, tls_available } = JSON.parse(line.slice("INFO ".length));
    if (tls && !tls_required && !tls_available) throw new Error("it offers no TLS");
    const isSecure = tls || tls_required;
    // nats.js reads the greeting again. What came behind it, before TLS, may be from somebody else.
    this.#greeting = this.#buffer.slice(0, isSecure ? end : length);
    if (isSecure) {
      const secure = await Deno.startTls(connection, { hostname: host });
      this.#connection = secure;
      await secure.handshake();
    }
    this.#writer = this.#connection.writable.getWriter();
  }

  /** Fills the buffer until there is a line in it, and gives the number of bytes. */
  async #readLine(connection: Deno.TcpConn): Promise<number> {
    let length = 0;
    while (length < BUFFER_SIZE && !this.#buffer.includes(LINE_FEED)) {
      const count = await connection.read(this.#buffer.subarray(length));
      if (count === null) throw new Error("it has hung up");
      length += count;
    }
    return length;
  }

  /** All that NATS sends, from the greeting on. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    let bytes: Uint8Array = this.#greeting;
    try {
      for (; bytes.length > 0; bytes = await this.#read()) yield bytes;
    } finally {
      if (bytes.length > 0) {
        this.#end(new Error(`not understood: ${new TextDecoder().decode(bytes)}`));
        // nats.js stops reading at what it does not understand. It waits for this, and would then
        // print all of it, raw. So this is never done.
        await new Promise(() => {});
      }
    }
  }

  /** Reads what has arrived, which is nothing at the end. */
  async #read(): Promise<Uint8Array> {
    const reading = this.#connection?.read(this.#buffer);
    const count = await reading?.catch((error) => this.#end(error)) ?? 0;
    if (count === 0) this.#end();
    return this.#buffer.slice(0, count);
  }

  send(frame: Uint8Array): void {
    // Reading fails as well where writing fails, after all that has still arrived.
    this.#writer?.write(frame).catch(() => {});
  }

  /** Closes the connection, and tells nats.js, which does not know of the end yet. */
  #end(reason?: Error) {
    if (this.isClosed) return;
    if (reason) this.closeError = reason;
    this.discard();
    this.#ended.resolve();
  }

  /** Called by nats.js when two pings were not answered. What is being sent is given up. */
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

  /** Done when the connection has ended, unless nats.js itself has closed it. */
  closed(): Promise<void> {
    return this.#ended.promise;
  }

  get isClosed(): boolean {
    return this.#closing.signal.aborted;
  }

  isEncrypted(): boolean {
    return this.#connection !== undefined && "handshake" in this.#connection;
  }
}
