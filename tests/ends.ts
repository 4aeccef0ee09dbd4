// Both ends of a connection, for what a server's and a client's promise alike.

import { assertEquals } from "@std/assert";
import { connect, type Connection, type ServeOptions } from "websockets";
import { Inbox, startServer } from "./helpers.ts";
import { listenRaw, switchProtocols } from "./peers.ts";
import { frame, RawClient } from "./raw.ts";

/** Calls `run` with both ends of a connection, and closes it. */
export async function withBothEnds(
  run: (near: Connection, far: Connection) => Promise<void>,
): Promise<void> {
  const connected = new Inbox<Connection>();
  const gate = Promise.withResolvers<void>();
  await using server = startServer(async (websocket) => {
    connected.put(websocket);
    await gate.promise;
  });
  try {
    for (const isServer of [true, false]) {
      await using client = await connect(server.url);
      const far = await connected.next();
      await (isServer ? run(far, client) : run(client, far));
    }
  } finally {
    gate.resolve();
  }
  assertEquals(server.log.all, []);
}

/** The other side of a connection, that does what no well-behaved one does. */
export class RawPeer implements Disposable {
  constructor(
    private readonly connection: Deno.TcpConn,
    private readonly near: Connection,
    private readonly isClient: boolean,
  ) {}

  /** Sends frames at once, each an opcode with its payload. */
  async send(...frames: [opcode: number, payload?: string | Uint8Array][]): Promise<void> {
    const bytes = frames.flatMap(([opcode, payload]) => {
      const masked = frame(opcode, payload);
      return [...this.isClient ? masked : withoutMask(masked)];
    });
    for (let rest = new Uint8Array(bytes); rest.length > 0;) {
      rest = rest.subarray(await this.connection.write(rest));
    }
  }

  /** Sends a Close frame with this code, or with none. */
  sendClose(code?: number): Promise<void> {
    return this.send([8, code === undefined ? "" : new Uint8Array([code >> 8, code & 0xff])]);
  }

  /** Breaks the connection: the system resets one that is closed while bytes are unread. */
  async reset(): Promise<void> {
    this.near.send("unread");
    await this.connection.read(new Uint8Array(1));
    this.connection.close();
  }

  /** Says that nothing more comes, without a Close frame, as the system does for a program that ends. */
  leave(): Promise<void> {
    return this.connection.closeWrite();
  }

  /** Reads and forgets all that comes. */
  async readAll(): Promise<void> {
    const buffer = new Uint8Array(2 ** 16);
    while (await this.connection.read(buffer) !== null);
  }

  [Symbol.dispose](): void {
    try {
      this.connection.close();
    } catch {
      // The test has closed it already.
    }
  }
}

/** Calls `run` with a server's connection to a raw client, and with a client's to a raw server. */
export async function withRawPeers(
  run: (near: Connection, far: RawPeer) => Promise<void>,
  options?: ServeOptions,
): Promise<void> {
  await withRawClient(run, options);
  using server = listenRaw();
  const opened = connect(server.url);
  const connection = await server.accept();
  await connection.write(await switchProtocols(connection));
  const near = await opened;
  using far = new RawPeer(connection, near, false);
  await run(near, far);
  far[Symbol.dispose]();
  await near.closed;
}

/** Calls `run` with a server's connection to a raw client. */
export async function withRawClient(
  run: (near: Connection, far: RawPeer) => Promise<void>,
  options?: ServeOptions,
): Promise<void> {
  const connected = new Inbox<Connection>();
  const gate = Promise.withResolvers<void>();
  await using server = startServer(async (websocket) => {
    connected.put(websocket);
    await gate.promise;
  }, options);
  const { connection } = await RawClient.upgraded(server.port);
  const near = await connected.next();
  using far = new RawPeer(connection, near, true);
  try {
    await run(near, far);
  } finally {
    gate.resolve();
    far[Symbol.dispose]();
  }
}

/** What a server sends: the same without the four zeros of the mask, and without their mark. */
function withoutMask(masked: Uint8Array): Uint8Array {
  const length = masked[1] & 0x7f;
  const start = length < 126 ? 2 : length === 126 ? 4 : 10;
  const head = masked.slice(0, start);
  head[1] = length;
  return new Uint8Array([...head, ...masked.subarray(start + 4)]);
}
