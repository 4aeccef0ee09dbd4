// The servers of the bench that keep no rules, and those of ours that only push: each is started
// with its name. What an answer says is the same as in server.ts, but no code of it is in use.

import { type Connection, type Message, serve } from "websockets";
import { print, silence } from "websockets/script.ts";

type Handler = (socket: WebSocket) => unknown;

/** The local time, as a server formats it that thinks no further about it. */
function now(): string {
  const date = new Date();
  const two = (number: number) => `${number}`.padStart(2, "0");
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join("-");
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":");
  return `${day} ${time}.${`${date.getMilliseconds()}`.padStart(3, "0")}000`;
}

function answer(message: Message): Message {
  return typeof message === "string" ? `Data received as "${message}".  time: ${now()}` : message;
}

/** All that `for await` needs: what has arrived, and a promise that wakes the loop. */
async function* messagesOf(socket: WebSocket): AsyncGenerator<Message> {
  const arrived: Message[] = [];
  let wake = () => {};
  socket.onmessage = ({ data }) => {
    arrived.push(data);
    wake();
  };
  socket.onclose = () => wake();
  while (socket.readyState === WebSocket.OPEN) {
    if (arrived.length === 0) await new Promise<void>((resolve) => wake = resolve);
    yield* arrived.splice(0);
  }
}

/** A binary message as often as its first four bytes say, in which then stands how many are left. */
export function* copiesOf(message: Message): Generator<Message> {
  if (typeof message === "string") return yield message;
  const view = new DataView(message);
  for (let left = view.getUint32(0, true); left > 0; left--) {
    view.setUint32(0, left, true);
    yield message;
  }
}

const clients = new Set<WebSocket>();

/** Handlers of servers that keep no rules. */
export const BARE: Record<string, Handler> = {
  bare(socket) {
    socket.onmessage = ({ data }) => socket.send(answer(data));
  },
  callbacks(socket) {
    socket.onmessage = async ({ data }) => {
      const reply = answer(data);
      print(`${reply}`);
      await socket.send(reply);
      print("Send reply");
    };
  },
  async loop(socket) {
    for await (const message of messagesOf(socket)) socket.send(answer(message));
  },
  "bare push"(socket) {
    socket.onmessage = ({ data }) => {
      for (const copy of copiesOf(data)) socket.send(copy);
    };
  },
  "bare broadcast"(socket) {
    clients.add(socket);
    socket.onmessage = ({ data }) => {
      for (const client of clients) client.send(data);
    };
    socket.onclose = () => clients.delete(socket);
  },
};

const OURS: Record<string, (websocket: Connection) => Promise<void>> = {
  async "ours, at once"(websocket) {
    for await (const message of websocket) {
      for (const copy of copiesOf(message)) websocket.send(copy);
    }
  },
  async "ours, awaiting"(websocket) {
    for await (const message of websocket) {
      for (const copy of copiesOf(message)) await websocket.send(copy);
    }
  },
};

/** A few lines of `Deno.upgradeWebSocket` that keep no rule. */
export function serveBare(handler: Handler) {
  return Deno.serve({ hostname: "localhost", port: 0, onListen() {} }, (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onopen = () => handler(socket);
    return response;
  });
}

if (import.meta.main) {
  const [name] = Deno.args;
  silence();
  const server = name in OURS ? serve(OURS[name], { port: 0 }) : serveBare(BARE[name]);
  console.log(`ws://localhost:${server.addr.port}`);
}
