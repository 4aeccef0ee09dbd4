// The echo server, the article's first step:
//
//   deno run --allow-net server.ts
//   Echo server on ws://localhost:9999, page at http://localhost:9999/
//
// Every text that a client sends comes back in a sentence with the time.

import { parseArgs } from "node:util";
import { limited, type Log, runScript } from "./cli.ts";
import { type Handler, runServer, SERVER_FLAGS, SERVER_USAGE } from "./websockets.ts";

/** The article's handler. With `once` it answers one message, as in the article's first part. */
export function echo(print: Log, { once = false } = {}): Handler {
  return {
    message(socket, data) {
      const isText = typeof data === "string";
      const reply = isText ? `Data received as "${data}".  time: ${timestamp()}` : data;
      print(isText ? `${reply}` : `Data received, ${data.byteLength} bytes of binary.`);
      socket.send(reply);
      print("Send reply");
      if (once) socket.close(1000);
    },
  };
}

let time = "";
let takenAt = 0;

/** The local time as the article prints it, taken once a millisecond at most: that is slow. */
function timestamp(): string {
  const now = Date.now();
  if (now !== takenAt) {
    const local = Temporal.Now.plainDateTimeISO();
    time = local.toString({ fractionalSecondDigits: 6 }).replace("T", " ");
    takenAt = now;
  }
  return time;
}

const USAGE = `Usage: deno run --allow-net server.ts [flags]
  --once               answer one message of each client, then close with 1000${SERVER_USAGE}`;

if (import.meta.main) {
  await runScript(USAGE, () => {
    const options = { ...SERVER_FLAGS, once: { type: "boolean" } } as const;
    const { once, ...flags } = parseArgs({ options }).values;
    const handler = echo(flags.quiet ? () => {} : limited(console.log), { once });
    // Pages opened from disk may connect, because this server has nothing to tell them.
    runServer("Echo server", handler, flags, { port: 9999, origins: ["null"] });
  });
}
