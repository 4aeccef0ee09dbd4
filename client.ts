// The looping client, the article's second step:
//
//   deno run --allow-net client.ts [URL]
//   Data received as "Hello, I am Deno.".  time: 2026-11-23 09:24:14.787357
//   … one line a second, 39 in all

import { delay } from "@std/async";
import { connect } from "websockets";
import { print, runClient, whileAway } from "websockets/script.ts";

/** One round of the article's client: connect, send, receive, close. */
async function round(url: string, message: string, timeout: number, signal?: AbortSignal) {
  await using websocket = await connect(url, { signal });
  await websocket.send(message);
  return await websocket.receive({ signal: AbortSignal.timeout(timeout * 1000) });
}

const FLAGS = {
  "count COUNT": "rounds (39)",
  "interval SECONDS": "pause between rounds (1)",
  "message TEXT": "what to send (Hello, I am Deno.)",
  "timeout SECONDS": "how long an answer may take (10)",
};

if (import.meta.main) {
  await runClient("ws://localhost:9999", FLAGS, async (url, flags, signal) => {
    const { count = 39, interval = 1, message = "Hello, I am Deno.", timeout = 10 } = flags;
    for (let rounds = 0; rounds < count; rounds++) {
      if (rounds > 0) await delay(interval * 1000, { signal });
      // A server that is restarted costs a pause and no round.
      print(await whileAway(() => round(url, message, timeout, signal), { signal }));
    }
  });
}
