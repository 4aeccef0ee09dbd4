// What was said in rooms, what followers heard of it, and what is wrong with that.

/** What may be wrong. README.md says what each of them is. */
const FAULTS = ["lost", "doubled", "out of order", "untold"] as const;
type Fault = typeof FAULTS[number];

/** Messages of a run, at the most. */
const MAX_MESSAGES = 2 ** 20;
/** Events of a follower that are told with its first fault. */
const MAX_EVENTS = 12;

/** A message, with its way from the one that said it. */
export interface Said {
  id: number;
  room: string;
  /** Its characters. */
  size: number;
  way: string[];
  position?: string;
}

/** What a message says: its number, and as many characters as it has. */
export function contentOf({ id, size }: Said): string {
  return `${id} `.padEnd(size, "x");
}

/** What a follower heard without a gap: all that came after a number, up to another one. */
interface Span {
  epoch: string;
  from: number;
  to: number;
  /** How many messages were told to be gone before it; `Infinity` if that was not known. */
  lost: number;
}

/** All that was said and heard in one run. */
export class Ledger {
  readonly faults: Record<Fault, number> = { lost: 0, doubled: 0, "out of order": 0, untold: 0 };
  /** The first fault, in words. */
  firstFault = "";
  readonly messages: Said[] = [];
  readonly followers: Follower[] = [];
  /** The messages of each room and epoch, by their numbers. */
  readonly #histories = new Map<string, Map<number, Said>>();
  /** What each connection has sent, in order. */
  readonly #sent = new Map<object, Said[]>();
  readonly #start = performance.now();

  /** Notes that a message of `size` characters is said now. */
  say(room: string, size: number, how: string, connection?: object): Said {
    const id = this.messages.length;
    if (id >= MAX_MESSAGES) throw new Error(`A run has ${MAX_MESSAGES} messages at the most.`);
    const said = { id, room, size, way: [this.at(how)] };
    this.messages.push(said);
    if (connection) this.#sent.getOrInsertComputed(connection, () => []).push(said);
    return said;
  }

  /** Notes that a message has this position: it was told to its sender, or a follower heard it. */
  accept(said: Said, position: string, how: string): void {
    if (said.position === position) return;
    said.way.push(this.at(`${how} as ${position}`));
    if (said.position !== undefined) this.fault("doubled", said);
    said.position ??= position;
    const [epoch, number] = split(position);
    const history = this.#histories.getOrInsertComputed(`${said.room} ${epoch}`, () => new Map());
    if (history.getOrInsert(number, said) !== said) this.fault("out of order", said);
  }

  /** Looks for what nobody could see before the end. `ends` are the last messages of all rooms. */
  check(ends: Said[]): void {
    for (const follower of this.followers) {
      let before: Span | undefined;
      for (const span of follower.spans) {
        for (const said of this.#between(follower.room, span.epoch, span.from, span.to)) {
          if (!follower.hasHeard(said)) this.fault("lost", said, follower);
        }
        if (before) this.#checkGap(follower, before, span);
        before = span;
      }
      const end = ends.find(({ room }) => room === follower.room);
      if (end && !follower.hasHeard(end)) this.fault("lost", end, follower);
    }
    for (const sent of this.#sent.values()) this.#checkOrder(sent);
  }

  /** What one connection has sent is in one history in this order, and without a gap. */
  #checkOrder(sent: Said[]) {
    let [lastEpoch, lastNumber] = ["", 0];
    let unheard: Said[] = [];
    for (const said of sent) {
      if (said.position === undefined) {
        unheard.push(said);
        continue;
      }
      const [epoch, number] = split(said.position);
      if (epoch === lastEpoch && number < lastNumber) this.fault("out of order", said);
      if (epoch === lastEpoch) unheard.forEach((each) => this.fault("lost", each));
      [lastEpoch, lastNumber, unheard] = [epoch, number, []];
    }
  }

  #checkGap(follower: Follower, before: Span, { epoch, from, lost }: Span) {
    const { room } = follower;
    const isSame = before.epoch === epoch;
    const gone = this.#between(room, before.epoch, before.to, isSame ? from : Infinity);
    if (!isSame) gone.push(...this.#between(room, epoch, 0, from));
    follower.told += gone.length;
    if (isSame && lost === Infinity && gone.length === 0) follower.inVain++;
    // Nobody can know how many are gone of another epoch. Of one, the ledger may know fewer than there
    // are numbers, because perhaps nobody heard what a follower sent.
    const isRight = lost === Infinity || isSame && lost === from - before.to && gone.length <= lost;
    if (!isRight) this.fault("untold", gone[0], follower, `${gone.length} gone, ${lost} told`);
  }

  #between(room: string, epoch: string, after: number, last: number): Said[] {
    const history = [...this.#histories.get(`${room} ${epoch}`) ?? []];
    return history.filter(([number]) => number > after && number <= last).map(([, said]) => said);
  }

  fault(kind: Fault, said?: Said, follower?: Follower, what = ""): void {
    this.faults[kind]++;
    const message = said ? `message ${said.id} (${said.way.join(", ")})` : "";
    const hearer = follower ? `follower ${follower.id} (${follower.events.join(", ")})` : "";
    this.firstFault ||= this.at([kind, what, message, hearer].filter(Boolean).join(": "));
  }

  /** The time of something that happens now. */
  at(event: string): string {
    return `${((performance.now() - this.#start) / 1000).toFixed(3)} s: ${event}`;
  }
}

/** What one follower of a room hears, over all of its connections. */
export class Follower {
  readonly id: number;
  /** Where it is, for `?after=`. */
  position = "";
  heard = 0;
  /** How many messages were told to be gone. It is known when all is over. */
  told = 0;
  /** How often something was told to be gone of a room in which nothing was. */
  inVain = 0;
  readonly spans: Span[] = [];
  /** What happened to it last. */
  readonly events: string[] = [];
  /** Sends on its connection of this moment. */
  send: ((message: string | Uint8Array<ArrayBuffer>) => void) | undefined;
  readonly #ledger: Ledger;
  readonly #heard = new Uint8Array(MAX_MESSAGES);

  constructor(ledger: Ledger, readonly room: string) {
    this.#ledger = ledger;
    this.id = ledger.followers.push(this) - 1;
  }

  note(event: string): void {
    this.events.push(this.#ledger.at(event));
    if (this.events.length > MAX_EVENTS) this.events.shift();
  }

  hasHeard({ id }: Said): boolean {
    return this.#heard[id] === 1;
  }

  /** It has come, and is told from where it goes on. */
  begin(first: string): void {
    this.note(`is told ${first}`);
    const [, position, isLost, count] =
      first.match(/^([\w-]+\.\d+)( lost(?: (\d+))?)?(?: missed \d+)?$/) ?? [];
    if (position === undefined) return this.#ledger.fault("untold", undefined, this, first);
    const [epoch, from] = split(position);
    const lost = isLost ? Number(count ?? Infinity) : 0;
    if (position !== this.position || lost > 0) this.spans.push({ epoch, from, to: from, lost });
    this.position = position;
  }

  hear(position: string, content: string): void {
    const said = this.#ledger.messages[parseInt(content)];
    const span = this.spans.at(-1);
    if (!span || said?.size !== content.length || said.room !== this.room) {
      return this.#ledger.fault("out of order", said, this, `${position} ${content.slice(0, 20)}`);
    }
    this.#ledger.accept(said, position, `follower ${this.id} hears it`);
    if (this.hasHeard(said)) return this.#ledger.fault("doubled", said, this);
    this.#heard[said.id] = 1;
    this.heard++;
    const [epoch, number] = split(position);
    if (epoch !== span.epoch || number <= span.to) {
      return this.#ledger.fault("out of order", said, this);
    }
    span.to = number;
    this.position = position;
  }
}

/** The epoch and the number of a position. */
function split(position: string): [epoch: string, number: number] {
  const dot = position.lastIndexOf(".");
  return [position.slice(0, dot), Number(position.slice(dot + 1))];
}
