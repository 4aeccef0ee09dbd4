// What `import websockets` is in the article:
//
//   import { connect, serve } from "websockets";
//
// `deno run --allow-net websockets ws://localhost:9999` runs its test command. README.md beside
// this file is the reference. Read connection.ts first, then serve.ts.

export { connect, type Connecting, type ConnectOptions } from "./connect.ts";
export type { Close } from "./close_codes.ts";
export { Connection, ConnectionClosed } from "./connection.ts";
export { ConnectionFailed } from "./failures.ts";
export { requireToken } from "./handshake.ts";
export type { Message } from "./inbox.ts";
export { errorLog, interruption, type Log, log, milliseconds, print, runScript } from "./lines.ts";
export { silence, usageError, wholeNumber } from "./lines.ts";
export type { RequestInfo, ServeOptions } from "./options.ts";
export { type Handler, serve, type Server } from "./serve.ts";
export { type RetryOptions, whileAway } from "./reconnect.ts";
export type { Sendable } from "./sendable.ts";
export { type RunOptions, runServer, SERVER_FLAGS, SERVER_USAGE } from "./run_server.ts";
export type { ServerFlags } from "./run_server.ts";
export { printMessage } from "./messages.ts";

if (import.meta.main) {
  const { runCommand, USAGE } = await import("./command.ts");
  const { runScript } = await import("./lines.ts");
  await runScript(USAGE, runCommand);
}
