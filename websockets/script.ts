// The second door: what makes a script of a server or a client.
//
//   import { print, runServer } from "websockets/script.ts";

export type { RetryOptions } from "./reconnect.ts";
export { runClient, whileAway } from "./script/client.ts";
export { now } from "./script/clock.ts";
export { type Flags, type FlagValues, usageError, type ValueOf } from "./script/flags.ts";
export type { ServedPage } from "./script/page.ts";
export { log, print, silence } from "./script/print.ts";
export { runServer, type RunServerOptions } from "./script/server.ts";
