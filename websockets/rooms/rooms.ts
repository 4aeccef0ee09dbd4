// Rooms: all clients of one hear what is said in it, also those that come back after a loss.

import type { Acceptor } from "../accept.ts";
import type { Connection } from "../connection.ts";
import { ConnectionClosed } from "../connection_closed.ts";
import { refuse } from "../handshake.ts";
import { History } from "./history.ts";
import type { Message } from "../message.ts";
import { checkSeconds, checkWhole, type ServeOptions } from "../options.ts";
import { Room } from "./room.ts";
import type { KeptMessages, RoomRelay } from "./relay.ts";

/** Bytes that a room keeps: some thousands of short texts, or one message of the largest size. */
const MAX_HISTORY = 2 * 1024 ** 2;
/** Seconds that an empty room keeps them: clients try again after 30 s at the latest. */
const HISTORY_TIMEOUT = 60;
/** Empty rooms that are remembered, at the most: as many as a server has clients. */
const MAX_EMPTY_ROOMS = 10_000;

/** What rooms keep. What is `undefined` is not given. */
export interface RoomsOptions {
  /** Bytes that each room keeps for those that come back, 2 MiB unless given. */
  maxHistory?: number | undefined;
  /** Seconds that a room keeps them when its last client has left, 60 unless given. */
  historyTimeout?: number | undefined;
}

/** The rooms of a server, by their names. An empty room is forgotten, at once or after a while. */
export class Rooms {
  /** Joins them to the rooms of other servers. */
  relay: RoomRelay | undefined;
  readonly #maxHistory: number;
  readonly #timeout: number;
  readonly #rooms = new Map<string, Room>();
  /** The empty rooms that are remembered, with the first one to be forgotten at the front. */
  readonly #empty = new Map<string, ReturnType<typeof setTimeout>>();
  /** The histories that keep something. The first one is the first to be freed. */
  readonly #kept = new Set<History>();
  #keptBytes = 0;
  readonly #servers: Acceptor[] = [];
  /** 48 bits of chance: a server that starts again has other epochs. */
  readonly #epoch = crypto.randomUUID().slice(-12);
  #epochs = 0;

  /** Throws `RangeError` for an option that is no number of bytes or seconds. */
  constructor({ maxHistory = MAX_HISTORY, historyTimeout = HISTORY_TIMEOUT }: RoomsOptions = {}) {
    checkWhole("maxHistory", maxHistory);
    checkSeconds("historyTimeout", historyTimeout);
    this.#maxHistory = maxHistory;
    this.#timeout = historyTimeout * 1000;
  }

  /** How many rooms there are: those with clients, and those that are remembered. */
  get size(): number {
    return this.#rooms.size;
  }

  /** Whether clients may follow: a server has joined, and a relay keeps one order for all servers. */
  get canReplay(): boolean {
    return this.#servers.length > 0 && (!this.relay || this.relay.load !== undefined);
  }

  /** How many clients a room has. */
  count(name: string): number {
    return this.#rooms.get(name)?.size ?? 0;
  }

  /**
   * Lets a client hear what is said in a room from now on, until `leave`. With `after` in the query of
   * its handshake, it is a follower, which hears the position of each message as well. With a position
   * in `after`, what was said after that comes first.
   *
   * @throws {ConnectionClosed} with 1013 if nothing can be replayed now: see `limit`.
   */
  async enter(name: string, websocket: Connection, handshake: Request): Promise<void> {
    const after = afterOf(handshake);
    const room = this.#open(name);
    if (after === null) {
      room.clients.add(websocket);
      return await this.relay?.enter(name);
    }
    // A relay may need longer than this client may wait. Then it goes on until the client is back.
    room.isRemembered = this.canReplay;
    room.entering++;
    await Promise.resolve(this.relay?.load?.(name)).finally(() => room.entering--);
    const { history } = room;
    if (!this.canReplay || !history) {
      throw new ConnectionClosed({ code: 1013, reason: "Nothing can be replayed now." });
    }
    history.maxBytes = this.#maxHistory;
    room.follow(websocket, history, after);
  }

  /** Ends what `enter` has begun. It harms nothing where that has failed. */
  leave(name: string, websocket: Connection): void {
    this.#rooms.get(name)?.delete(websocket);
    this.#close(name);
  }

  /**
   * Says a message in a room. Done when the other servers can take more.
   *
   * @throws {ConnectionClosed} with 1013 if a relay can't tell whether it keeps the message.
   */
  async say(name: string, message: Message): Promise<void> {
    if (!this.relay?.load) this.receive(name, message);
    await this.relay?.publish(name, message);
  }

  /**
   * Says a message in a room, and tells its position: `undefined` where nothing is replayed. From
   * then on the room is remembered for a while, also if nobody is in it.
   *
   * @throws {ConnectionClosed} as `say` does. Out of `processRequest`, it is answered with 503.
   */
  async push(name: string, message: Message): Promise<string | undefined> {
    if (this.relay?.load) return await this.relay.publish(name, message) ?? undefined;
    if (!this.canReplay) return void this.say(name, message);
    const room = this.#open(name);
    room.isRemembered = true;
    this.receive(name, message);
    this.#close(name);
    return room.history?.position;
  }

  /** Sends a message to all in a room. A relay calls this with what it hears. */
  readonly receive = (name: string, message: Message, number?: number): void => {
    this.#rooms.get(name)?.say(message, number);
  };

  /**
   * Begins the history of a room anew. A relay calls this. Followers are closed with 1012: they come
   * back, and are told what is lost, if anything is.
   */
  load(name: string, { epoch, start, messages }: KeptMessages): void {
    const room = this.#rooms.get(name);
    if (!room) return;
    room.history?.clear();
    const history = room.history = this.#newHistory(epoch, start);
    history.maxBytes = this.#maxHistory;
    for (const [number, message] of messages) history.add(message, number);
    for (const follower of room.followers) follower.close(1012, "Come back for what was missed.");
  }

  /**
   * The options of a server that refuses followers where nothing is replayed, and takes no message
   * which a relay would not take.
   */
  limit(options: ServeOptions): ServeOptions {
    const { processRequest = [], ...limits } = this.relay?.limit(options) ?? options;
    const refuseFollower = (request: Request) => {
      if (this.canReplay || afterOf(request) === null) return undefined;
      return refuse(400, "Nothing is replayed here: connect without `after`.");
    };
    return { ...limits, processRequest: [processRequest, refuseFollower].flat() };
  }

  /**
   * Counts what is kept in the `maxWaiting` of a server. It is freed before a client has to go.
   *
   * @returns The same server.
   */
  join<Joined extends Acceptor>(server: Joined): Joined {
    server.countWaiting(this.#keptBytes);
    server.whenFull((bytes) => this.#free(bytes));
    this.#servers.push(server);
    this.relay?.join(server);
    return server;
  }

  /** Forgets all rooms, and closes the relay. */
  async close(): Promise<void> {
    for (const name of this.#rooms.keys()) this.#forget(name);
    await this.relay?.close();
  }

  #open(name: string): Room {
    clearTimeout(this.#empty.get(name));
    this.#empty.delete(name);
    return this.#rooms.getOrInsertComputed(name, () => {
      const epoch = this.#epoch + (this.#epochs++).toString(36);
      return new Room(this.relay ? undefined : this.#newHistory(epoch));
    });
  }

  #newHistory(epoch: string, start?: number): History {
    const history: History = new History(epoch, (bytes) => this.#count(history, bytes), start);
    return history;
  }

  #count(history: History, bytes: number) {
    if (history.bytes > 0) this.#kept.add(history);
    else this.#kept.delete(history);
    this.#keptBytes += bytes;
    for (const server of this.#servers) server.countWaiting(bytes);
  }

  #free(bytes: number) {
    const enough = this.#keptBytes - bytes;
    for (const history of this.#kept) if (this.#keptBytes > enough) history.clear();
  }

  /** Forgets a room if nobody is in it, at once or after a while. */
  #close(name: string) {
    const room = this.#rooms.get(name);
    if (!room || room.size + room.entering > 0 || this.#empty.has(name)) return;
    if (!room.isRemembered) return this.#forget(name);
    const timer = setTimeout(() => this.#forget(name), this.#timeout);
    Deno.unrefTimer(timer);
    this.#empty.set(name, timer);
    const [first = ""] = this.#empty.keys();
    if (this.#empty.size > MAX_EMPTY_ROOMS) this.#forget(first);
  }

  #forget(name: string) {
    clearTimeout(this.#empty.get(name));
    this.#empty.delete(name);
    this.#rooms.get(name)?.history?.clear();
    this.#rooms.delete(name);
    this.relay?.leave(name);
  }
}

/** What a handshake says as `after`. */
function afterOf({ url }: Request): string | null {
  return new URL(url).searchParams.get("after");
}
