// The looping client, the article's second step:
//
//   deno run --allow-net client.ts [URL]
//   Data received as "Hello, I am Deno.".  time: 2026-11-23 09:24:14.787357
//   … one line a second, 39 in all

import { deadline, delay } from "@std/async";
import { parseArgs } from "node:util";
import { connect, interruption, milliseconds, printMessage, runScript } from "websockets";
import { usageError, whileAway, wholeNumber } from "websockets";

/** One round of the article's client: connect, send, receive, close. */
export async function round(url: string, message: string, timeout: number, signal?: AbortSignal) {
  await using websocket = await connect(url, { signal });
  await websocket.send(message);
  return await deadline(websocket.receive(), timeout, { signal });
}

const USAGE = `Usage: deno run --allow-net client.ts [flags] [URL]
  URL                 the server (ws://localhost:9999), or ws://user:password@host
  --count COUNT       rounds (39)
  --interval SECONDS  pause between rounds (1)
  --message TEXT      what to send (Hello, I am Deno.)
  --timeout SECONDS   how long an answer may take (10)
  --help              print this`;

if (import.meta.main) {
  await runScript(USAGE, async () => {
    const { values, positionals } = parseArgs({
      options: {
        count: { type: "string", default: "39" },
        interval: { type: "string", default: "1" },
        message: { type: "string", default: "Hello, I am Deno." },
        timeout: { type: "string", default: "10" },
      },
      allowPositionals: true,
    });
    const [url = "ws://localhost:9999", ...surplus] = positionals;
    if (surplus.length > 0) throw usageError("One URL is enough.");
    const count = wholeNumber("count", values.count, 1);
    const interval = milliseconds("interval", values.interval);
    const timeout = milliseconds("timeout", values.timeout);
    const signal = interruption();
    for (let rounds = 0; rounds < count; rounds++) {
      if (rounds > 0) await delay(interval, { signal });
      // A server that is restarted costs a pause and no round.
      printMessage(await whileAway(() => round(url, values.message, timeout, signal), { signal }));
    }
    Deno.exit(0);
  });
}
