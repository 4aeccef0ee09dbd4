// Rooms joined through NATS: what is said in a room of one server is heard in it on all others.

/** The way to the other servers. */
export interface Relay {
  /** Bytes of the largest message that can be published. */
  maxMessage: number;
  /** Hears a room from now on. Resolves when NATS has confirmed that. */
  enter(room: string): Promise<void>;
  /** Hears a room no longer. */
  leave(room: string): void;
  /** Sends a message to the same room of all other servers. */
  publish(room: string, data: string | ArrayBuffer): void;
  /** Publishes what still waits, and leaves. */
  close(): Promise<void>;
}

/** How to reach the other servers. */
export interface RelayOptions {
  /** Where the NATS server is, such as `nats://user:password@localhost:4222`. */
  url: string;
  /** The NATS subject of the common room, and the beginning of that of all others. */
  subject: string;
  /** Told what is said in a room on another server. */
  receive(room: string, data: string | ArrayBuffer): void;
  log: (line: string) => void;
}

export function connectRelay(_options: RelayOptions): Promise<Relay> {
  throw new Error("Not there yet.");
}
