/// <reference types="./std.d.ts" />
// A TCP proxy in this process, which cuts connections at any byte, or takes nothing for a while.

/** A proxy in front of a port, on a port of its own. */
export class Proxy implements AsyncDisposable {
  readonly #listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  readonly #connections = new Set<Deno.TcpConn>();
  readonly #passed: Promise<void>;
  /** Pending while it takes nothing from the server. */
  #gate = Promise.withResolvers<void>();
  /** How many connections it has cut. */
  cuts = 0;

  /**
   * @param port Where the server is.
   * @param allowance Called for each connection: with how many bytes from the server it is cut.
   */
  constructor(public port: number, private readonly allowance: () => number) {
    this.#gate.resolve();
    this.#passed = this.#passAll();
  }

  get url(): string {
    return `ws://127.0.0.1:${this.#listener.addr.port}/`;
  }

  /** Takes nothing from the server, until `release`. */
  hold(): void {
    this.#gate = Promise.withResolvers();
  }

  release(): void {
    this.#gate.resolve();
  }

  /** Cuts all connections. */
  cut(): void {
    for (const connection of this.#connections) this.#end(connection);
  }

  async #passAll() {
    const passing: Promise<void>[] = [];
    for await (const near of this.#listener) passing.push(this.#pass(near));
    await Promise.all(passing);
  }

  async #pass(near: Deno.TcpConn) {
    try {
      const far = await Deno.connect({ hostname: "localhost", port: this.port });
      this.#connections.add(near).add(far);
      const back = this.#copy(far, near, this.allowance(), () => this.#gate.promise);
      await Promise.all([this.#copy(near, far), back]);
    } catch {
      // One of them has gone, or the server is away.
      this.#end(near);
    }
  }

  /** Passes on what comes, when it may, up to so many bytes, and ends both connections. */
  async #copy(
    from: Deno.TcpConn,
    to: Deno.TcpConn,
    allowance: number = Infinity,
    gate: () => Promise<void> | undefined = () => undefined,
  ) {
    const buffer = new Uint8Array(2 ** 14);
    try {
      while (allowance > 0) {
        const count = await from.read(buffer);
        if (count === null) return;
        await gate();
        let bytes = buffer.subarray(0, Math.min(count, allowance));
        allowance -= count;
        while (bytes.length > 0) bytes = bytes.subarray(await to.write(bytes));
      }
      this.cuts++;
    } finally {
      // The system resets a connection that is closed while bytes are unread.
      this.#end(from);
      this.#end(to);
    }
  }

  #end(connection: Deno.TcpConn) {
    this.#connections.delete(connection);
    connection[Symbol.dispose]();
  }

  async [Symbol.asyncDispose]() {
    this.release();
    this.#listener.close();
    this.cut();
    await this.#passed;
  }
}

/** Starts a proxy in front of a port. */
export function startProxy(port: number, allowance: () => number): Proxy {
  return new Proxy(port, allowance);
}
