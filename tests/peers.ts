// Servers that the tests of clients talk to.

import { assertEquals } from "@std/assert";
import type { Handler, Message } from "websockets";
import { Inbox, within } from "./helpers.ts";

/** A handler that sends back what it receives, and tells how its clients leave. */
export function echo(events: Inbox<string> = new Inbox()): Handler {
  return answering((message) => message, events);
}

/** A handler that does not answer, but tells what it hears, and how its clients leave. */
export function listen(events: Inbox<string>): Handler {
  return answering((message) => void events.put(String(message)), events);
}

function answering(answer: (message: Message) => Message | void, events: Inbox<string>): Handler {
  return async (websocket) => {
    websocket.closed.then(({ code }) => events.put(`closed with ${code}`));
    for await (const message of websocket) {
      const reply = answer(message);
      if (reply !== undefined) websocket.send(reply);
    }
  };
}

/** A server of Deno's own, that answers each request as it is told. */
export function serveBare(answer: Deno.ServeHandler<Deno.NetAddr>) {
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, answer);
  return {
    url: `ws://127.0.0.1:${server.addr.port}`,
    port: server.addr.port,
    async [Symbol.asyncDispose]() {
      await within(server.shutdown(), "the server to stop");
    },
  };
}

/** A TCP server on a free port, for answers that no WebSocket server gives. */
export function listenRaw(): Disposable & { url: string; accept(): Promise<Deno.TcpConn> } {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return {
    url: `ws://127.0.0.1:${listener.addr.port}`,
    accept: () => within(listener.accept(), "the client to connect"),
    [Symbol.dispose]: () => listener.close(),
  };
}

/** Closes a connection from this end too, and reads until the client has gone and left nothing open. */
export async function letGo(connection: Deno.TcpConn): Promise<void> {
  await connection.write(new Uint8Array([0x88, 0]));
  const bytes = new Uint8Array(2 ** 16);
  while (await within(connection.read(bytes), "the client to go") !== null);
}

/** The answer to the handshake that arrives on a connection, with these header lines as well. */
export async function switchProtocols(connection: Deno.TcpConn, ...headers: string[]) {
  const request = new Uint8Array(4_096);
  const head = new TextDecoder().decode(request.subarray(0, await connection.read(request) ?? 0));
  const key = head.match(/sec-websocket-key: (.*)\r\n/i)?.[1];
  // RFC 6455 section 1.3 has this constant, and how the key is answered.
  const answered = new TextEncoder().encode(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`);
  const accept = new Uint8Array(await crypto.subtle.digest("SHA-1", answered)).toBase64();
  const lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"];
  lines.push(`Sec-WebSocket-Accept: ${accept}`, ...headers, "", "");
  return new TextEncoder().encode(lines.join("\r\n"));
}

/** Sends so many empty texts as fast as they are taken, unless the other end goes first. */
export class Flood {
  sent = 0;
  isOver = false;
  /** Settled when the other end has gone, or all is sent. */
  readonly ended: Promise<void>;

  constructor(private readonly connection: Deno.TcpConn, private readonly count: number) {
    this.ended = this.#send().catch(() => {});
  }

  async #send() {
    await this.connection.write(await switchProtocols(this.connection));
    const frame = [0x81, 0];
    const block = Uint8Array.from({ length: 30_000 }, (_, index) => frame[index % frame.length]);
    while (this.sent < this.count) {
      for (let rest = block; rest.length > 0;) {
        rest = rest.subarray(await this.connection.write(rest));
      }
      this.sent += block.length / frame.length;
    }
    this.isOver = true;
  }
}

/** Runs a script whose output is read up to the end of its first line, after `input` if given. */
export async function readOneLine(script: string, input = ""): Promise<void> {
  const run = `${input} ${Deno.execPath()} run --allow-net ${script}`;
  const shell = new Deno.Command("bash", {
    args: ["-c", `set -o pipefail; ${run} | head -n 1`],
    cwd: new URL("../", import.meta.url),
    stderr: "piped",
  });
  const { code, stdout } = await within(shell.output(), "the pipe to end");
  assertEquals(code, 141);
  assertEquals(new TextDecoder().decode(stdout).split("\n").length, 2);
}
