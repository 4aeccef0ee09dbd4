// The body of a request that is no handshake. Over HTTP/2, which `Deno.serve` speaks as well, it may
// come without its length.

import { assertEquals, assertMatch } from "@std/assert";
import { once } from "node:events";
import http2 from "node:http2";
import { serve } from "websockets";
import { Inbox, within } from "./helpers.ts";
import { test } from "./needs.ts";
import { RawClient } from "./raw.ts";

const POST = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n";

/** A server that tells how many bytes each push had. */
function startPushes(maxMessage: number) {
  const heard: number[] = [];
  const processRequest = async (request: Request) => {
    const { length } = await request.bytes();
    heard.push(length);
    return new Response(`${length}`);
  };
  const server = serve(() => {}, { port: 0, maxMessage, processRequest, log: () => {} });
  return Object.assign(server, { heard });
}

/** Pushes so many pieces of 500 bytes over HTTP/2: the status of the answer. */
async function push(
  { addr }: { addr: Deno.NetAddr },
  pieces: number,
  headers: Record<string, string | string[]> = {},
): Promise<unknown> {
  // Without this option, this client refuses itself to send a length twice.
  const options: http2.ClientSessionOptions & { strictSingleValueFields: boolean } = {
    strictSingleValueFields: false,
  };
  const session = http2.connect(`http://localhost:${addr.port}`, options);
  try {
    const stream = session.request({ ":method": "POST", ":path": "/", ...headers });
    const answered = once(stream, "response");
    for (let sent = 0; sent < pieces; sent++) stream.write(new Uint8Array(500));
    stream.end();
    const [answer] = await within(answered, "the answer");
    return answer[":status"];
  } finally {
    const closed = once(session, "close");
    // What the server does not read any more would be waited for without end.
    session.destroy();
    await within(closed, "the session to close");
  }
}

test({ needs: "net" }, "a body of HTTP/2 without a length is heard up to the limit", async () => {
  await using server = startPushes(1_000);
  assertEquals([await push(server, 0), await push(server, 2)], [200, 200]);
  assertEquals([server.heard, server.waiting], [[0, 1_000], 0]);
});

test(
  { needs: "net" },
  "a body of HTTP/2 that gets too large gets 413, and is not kept",
  async () => {
    await using server = startPushes(1_000);
    for (const pieces of [3, 2_000]) {
      assertEquals(await push(server, pieces), 413);
      assertEquals([server.heard, server.waiting], [[], 0]);
    }
  },
);

test({ needs: "net" }, "the body of an OPTIONS is bounded like any other", async () => {
  await using server = startPushes(1_000);
  assertEquals(await push(server, 3, { ":method": "OPTIONS" }), 413);
  assertEquals([server.heard, server.waiting], [[], 0]);
});

test(
  { needs: "net" },
  "a body of HTTP/2 with two lengths gets 400, and makes nothing wait",
  async () => {
    await using server = startPushes(1_000);
    assertEquals(await push(server, 1, { "content-length": ["500", "500"] }), 400);
    assertEquals([server.heard, server.waiting], [[], 0]);
    assertEquals(await push(server, 1, { "content-length": "500" }), 200);
  },
);

test({ needs: "net" }, "a body that goes on after its answer makes nothing wait", async () => {
  const heard = new Inbox<string>();
  const read = async ({ body }: Request) => {
    for await (const text of body?.pipeThrough(new TextDecoderStream()) ?? []) heard.put(text);
  };
  const processRequest = (request: Request) => {
    read(request);
    return new Response("answered");
  };
  await using server = serve(() => {}, { port: 0, processRequest });
  using client = await RawClient.open(server.addr.port, POST);
  assertMatch(await client.head(), /^HTTP\/1\.1 200 /);
  await client.write("0123456789");
  assertEquals([await heard.next(), server.waiting], ["0123456789", 0]);
});

test({ needs: "net" }, "a body whose answer is no Response makes nothing wait", async () => {
  const processRequest = async (request: Request) => await request.text() as unknown as Response;
  await using server = serve(() => {}, { port: 0, processRequest, log: () => {} });
  using client = await RawClient.open(server.addr.port, POST + "0123456789");
  assertMatch(await client.head(), /^HTTP\/1\.1 500 /);
  assertEquals(server.waiting, 0);
});
