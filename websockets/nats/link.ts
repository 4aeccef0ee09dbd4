// The way to NATS: connections of nats.js, each in the place of one that was lost.

import type { NatsConnection } from "@nats-io/nats-core/internal";
import { printable, unfailing } from "../log.ts";
import { MAX_MESSAGE, type ServeOptions } from "../options.ts";
import { connectNats, type LinkOptions, reconnectNats } from "./connect.ts";

/** What is done when something has happened to the link. */
export interface LinkEvents {
  /** NATS is back. */
  back(): void;
  /** NATS has refused a message that was published. */
  refused(): void;
}

/** The error that the runtime throws for a URL that is not valid, too. */
export function syntaxError(message: string): DOMException {
  return new DOMException(message, "SyntaxError");
}

/** The connection to NATS of this moment. */
export class Link {
  /** How NATS is reached, with the defaults of all that was not given. */
  readonly options: Required<LinkOptions>;
  /** Aborts when the link is closed. */
  readonly closing: AbortSignal;
  readonly #closing = new AbortController();
  #nats: NatsConnection;
  #back = Promise.withResolvers<void>();
  #followed = Promise.resolve();

  private constructor(options: Required<LinkOptions>, nats: NatsConnection) {
    this.options = options;
    this.closing = this.#closing.signal;
    this.#nats = nats;
  }

  /**
   * Connects to NATS.
   *
   * @throws {Error} if no NATS answers.
   * @throws {DOMException} `SyntaxError` if the URL is not valid.
   * @throws {Deno.errors.NotCapable} without the permission to connect.
   */
  static async open(given: LinkOptions): Promise<Link> {
    const url = URL.parse(given.url);
    // In front of a `/` that is not encoded, a part of a password would be the host.
    if (!url || !/^(nats|tls):\/\/[^/?#]+\/?$/.test(url.href)) {
      const encode = "in a password, write / ? # as %2F %3F %23";
      throw syntaxError(
        `NATS has a URL such as nats://127.0.0.1:4222 or tls://token@example.com; ${encode}.`,
      );
    }
    url.port ||= "4222";
    const times = { timeout: 3_000, pingInterval: 5_000, reconnectWait: 1_000 };
    const options = { ...times, ...given, url: url.href, log: unfailing(given.log) };
    return new Link(options, await connectNats(url.host, options));
  }

  /** The connection, which may be lost. */
  get nats(): NatsConnection {
    return this.#nats;
  }

  /** Whether NATS is lost, and not yet back. */
  get isAway(): boolean {
    return this.#nats.isClosed();
  }

  /** Done when NATS is back. */
  get back(): Promise<void> {
    return this.#back.promise;
  }

  /** Bytes of the largest message that NATS takes. */
  get maxMessage(): number {
    const { max_payload = Infinity } = this.#nats.info ?? {};
    return max_payload > 0 ? max_payload : Infinity;
  }

  /** The options of a server that takes no message which NATS would not take. */
  limit(options: ServeOptions): ServeOptions {
    const { maxMessage = MAX_MESSAGE, maxBody = maxMessage } = options;
    const most = this.maxMessage;
    const sizes = { maxMessage: Math.min(maxMessage, most), maxBody: Math.min(maxBody, most) };
    return { ...options, ...sizes };
  }

  /** Connects again whenever NATS is lost, until the link is closed. */
  follow(events: LinkEvents): void {
    this.#followed = this.#follow(events);
  }

  async #follow({ back, refused }: LinkEvents) {
    while (true) {
      this.#tellErrors(refused);
      const nats = await reconnectNats(this.#nats, this.options, this.closing);
      if (!nats || this.closing.aborted) return await nats?.close();
      this.options.log("NATS is back.");
      this.#nats = nats;
      this.#back.resolve();
      this.#back = Promise.withResolvers();
      back();
    }
  }

  /** Tells what NATS says to be wrong, until the connection ends. */
  async #tellErrors(refused: () => void) {
    for await (const status of this.#nats.status()) {
      if (status.type !== "error") continue;
      const { message } = status.error;
      this.options.log(`NATS: ${printable(message)}`);
      if (message.startsWith("Permissions Violation for Publish")) refused();
    }
  }

  /** Leaves NATS. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#nats.close();
    await this.#followed;
  }
}
