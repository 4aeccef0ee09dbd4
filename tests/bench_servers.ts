// The servers of the bench that keep no rules, and those of ours that only push: each is started
// with its name. What an answer says, and which clock it reads, is the same as in server.ts.

import { type Connection, type Message, print, serve, silence } from "websockets";
import { now } from "../server.ts";
import { BULK } from "./loads.ts";

type Handler = (socket: WebSocket) => unknown;

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

/** A buffer that is used again for each piece, as one is that a file is read into. */
function* piecesOf(count: Message) {
  const piece = new Uint8Array(BULK);
  for (let number = 0; number < Number(count); number++) {
    new DataView(piece.buffer).setUint32(0, number);
    yield piece;
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
      for (const piece of piecesOf(data)) socket.send(piece);
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
    for await (const count of websocket) {
      for (const piece of piecesOf(count)) websocket.send(piece);
    }
  },
  async "ours, awaiting"(websocket) {
    for await (const count of websocket) {
      for (const piece of piecesOf(count)) await websocket.send(piece);
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
