// Requests that are no handshakes, piece by piece, over both protocols that `Deno.serve` speaks.

import { once } from "node:events";
import http2 from "node:http2";
import { within } from "./helpers.ts";
import { test } from "./needs.ts";
import { RawClient } from "./raw.ts";

/** A request that is under way. */
export interface Exchange {
  /** Sends more of its body. */
  write(piece: string | Uint8Array): Promise<void>;
  /** Says that its body is whole, where a length has not said so. */
  end(): void;
  /** The status and the headers of the answer. */
  answered(): Promise<{ status: number; headers: Headers }>;
  /** Waits until the body of the answer is there, however it is cut into pieces. */
  heard(text: string): Promise<void>;
  /** Breaks it off. */
  reset(): void;
}

/** A client of one server. */
export interface Exchanges extends AsyncDisposable {
  /** Starts a request, such as `POST /`. */
  open(start: string, headers?: Record<string, string | string[]>): Promise<Exchange>;
}

/** Over HTTP/1.1, each request has a connection of its own. */
function openHttp1(port: number): Exchanges {
  const clients: RawClient[] = [];
  return {
    async open(start, headers = {}) {
      const lines = Object.entries({ Host: "localhost", ...headers }).map((each) =>
        each.join(": ")
      );
      const head = [`${start} HTTP/1.1`, ...lines, "", ""].join("\r\n");
      const client = await RawClient.open(port, head);
      clients.push(client);
      return {
        write: (piece) => client.write(piece),
        end: () => {},
        async answered() {
          const [first, ...lines] = (await client.head()).trimEnd().split("\r\n");
          const pairs = lines.map((line): [string, string] => {
            const [name, ...value] = line.split(": ");
            return [name, value.join(": ")];
          });
          return { status: Number(first.split(" ")[1]), headers: new Headers(pairs) };
        },
        async heard(text) {
          for (let all = ""; !all.replace(/\r\n\w*\r\n|^\w+\r\n/g, "").includes(text);) {
            all += new TextDecoder().decode(await client.read());
          }
        },
        reset: () => client[Symbol.dispose](),
      };
    },
    [Symbol.asyncDispose]() {
      for (const client of clients) client[Symbol.dispose]();
      return Promise.resolve();
    },
  };
}

/** Over HTTP/2, all requests have one connection. */
function openHttp2(port: number): Exchanges {
  // Without this option, this client itself refuses to send a length twice.
  const options: http2.ClientSessionOptions & { strictSingleValueFields: boolean } = {
    strictSingleValueFields: false,
  };
  const session = http2.connect(`http://localhost:${port}`, options);
  return {
    open(start, headers = {}) {
      const [method, path] = start.split(" ");
      const stream = session.request({ ":method": method, ":path": path, ...headers });
      const answered = once(stream, "response");
      // Whoever does not ask for the answer need not hear that there is none.
      answered.catch(() => {});
      stream.on("error", () => {});
      return Promise.resolve({
        write: (piece) => Promise.resolve(void stream.write(piece)),
        end: () => void stream.end(),
        async answered() {
          const [{ ":status": status, ...fields }] = await within(answered, "the answer");
          return { status, headers: new Headers(fields) };
        },
        async heard(text) {
          for (let all = ""; !all.includes(text);) {
            const [piece] = await within(once(stream, "data"), "more of the answer");
            all += new TextDecoder().decode(piece);
          }
        },
        reset: () => stream.close(http2.constants.NGHTTP2_CANCEL),
      });
    },
    async [Symbol.asyncDispose]() {
      const closed = once(session, "close");
      // What the server does not read any more would be waited for without end.
      session.destroy();
      await within(closed, "the session to close");
    },
  };
}

export const PROTOCOLS = { "HTTP/1.1": openHttp1, "HTTP/2": openHttp2 };

/** Registers a test for each protocol, which opens its requests with `connect`. */
export function testExchanges(
  name: string,
  run: (connect: (port: number) => Exchanges) => Promise<void>,
  needs: Parameters<typeof test>[0]["needs"] = "net",
): void {
  for (const [protocol, connect] of Object.entries(PROTOCOLS)) {
    test({ needs }, `${name} (${protocol})`, () => run(connect));
  }
}

/** Sends a whole request, and gives the answer. */
export async function exchange(
  client: Exchanges,
  start: string,
  headers?: Record<string, string>,
  body: string | Uint8Array = "",
): Promise<{ status: number; headers: Headers }> {
  const request = await client.open(start, headers);
  if (body.length > 0) await request.write(body);
  request.end();
  return await request.answered();
}
