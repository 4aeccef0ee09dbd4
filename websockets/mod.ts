// What `import websockets` is in the article:
//
//   import { connect, serve } from "websockets";
//
// `deno run --allow-net websockets ws://localhost:9999` runs its test command. README.md beside
// this file is the reference.

export { accept, type Acceptor } from "./accept.ts";
export type { Handler } from "./clients.ts";
export type { Close } from "./close_codes.ts";
export { connect, type Connecting, type ConnectOptions } from "./connect.ts";
export type { Connection } from "./connection.ts";
export { ConnectionClosed } from "./connection_closed.ts";
export { ConnectionFailed, type FailureKind } from "./failures.ts";
export { follow, type Followed, type Follower, type FollowOptions } from "./rooms/follow.ts";
export { isHandshake, type Refusals } from "./handshake.ts";
export type { Log } from "./log.ts";
export type { Message, Sendable } from "./message.ts";
export type { AcceptOptions, ProcessRequest, RequestInfo, ServeOptions } from "./options.ts";
export { Rooms, type RoomsOptions } from "./rooms/rooms.ts";
export type { KeptMessages, RoomRelay } from "./rooms/relay.ts";
export { serve, type Server } from "./serve.ts";
export { requireToken } from "./token.ts";

if (import.meta.main) {
  const { run } = await import("./command/command.ts");
  await run();
}
