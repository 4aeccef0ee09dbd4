// A connection to NATS, in as much of its text protocol as rooms need:
// https://docs.nats.io/reference/reference-protocols/nats-protocol

import { deadline } from "@std/async";
import { Buffer } from "node:buffer";
import { unescape } from "node:querystring";
import { printable } from "./lines.ts";
import { NatsInput } from "./nats_input.ts";

/** Bytes of messages that are written at once, so that a ping does not wait behind many. */
const WRITTEN_AT_ONCE = 64 * 1024;

/** What NATS says of itself. */
interface NatsInfo {
  /** Bytes of the largest message. */
  max_payload: number;
  tls_required?: boolean;
  /** The addresses of the servers in its cluster. */
  connect_urls?: string[];
}

/** How to connect. */
interface NatsOptions {
  /** It tells whether TLS is a must, the name in the certificate, and the credentials. */
  url: URL;
  /** The address of the server: the one in `url`, or that of another server in its cluster. */
  host: string;
  /** Milliseconds that NATS gets to let this connection in. */
  timeout: number;
  /** Milliseconds between pings: the connection is lost when two were not answered. */
  pingInterval: number;
  signal?: AbortSignal;
}

/** Takes what NATS sends. */
interface NatsListener {
  receive(subject: string, data: Uint8Array<ArrayBuffer>): void;
  /** Told what NATS refuses. */
  refuse(reason: string): void;
}

/** A connection that NATS has let in. */
export class NatsConnection {
  readonly #pongs: PromiseWithResolvers<void>[] = [];
  readonly #timer: ReturnType<typeof setInterval>;
  #written = Promise.resolve();
  /** Pings since something was last read. */
  #silentPings = 0;
  /** Why the connection has ended. */
  #end?: Error;

  private constructor(
    private readonly connection: Deno.Conn,
    private readonly input: NatsInput,
    readonly info: NatsInfo,
    pingInterval: number,
  ) {
    this.#timer = setInterval(() => {
      if (++this.#silentPings > 2) this.close(new Error("it does not answer"));
      else this.ping().catch(() => {});
    }, pingInterval);
  }

  /**
   * Connects to NATS.
   *
   * @throws {Error} if NATS does not let this connection in: its message says what to do.
   * @throws {Deno.errors.NotCapable} without the permission to connect.
   */
  static async open(options: NatsOptions): Promise<NatsConnection> {
    const abort = new AbortController();
    const opening = NatsConnection.#open(options, abort.signal);
    try {
      return await deadline(opening, options.timeout, { signal: options.signal });
    } catch (error) {
      abort.abort();
      await opening.then((late) => late.close(), () => {});
      if (error instanceof Deno.errors.NotCapable) throw error;
      throw new Error(`No NATS server at ${options.host} ${describeFailure(error as Error)}`);
    }
  }

  static async #open({ url, host, pingInterval }: NatsOptions, signal: AbortSignal) {
    const { hostname, port } = new URL(`nats://${host}`);
    const plain = await Deno.connect({ hostname, port: Number(port || 4222), signal });
    let connection: Deno.Conn = plain;
    signal.addEventListener("abort", () => connection[Symbol.dispose]());
    try {
      let input = new NatsInput(connection);
      const info = parseInfo((await input.next()).line);
      if (url.protocol === "tls:" || info.tls_required) {
        connection = await Deno.startTls(plain, { hostname: url.hostname.replace(/^\[|\]$/g, "") });
        input = new NatsInput(connection);
      }
      await writeAll(connection, `CONNECT ${introduction(url)}\r\nPING\r\n`);
      while (true) {
        const { line } = await input.next();
        if (line.startsWith("-ERR")) throw new Error(reasonIn(line));
        if (line === "PONG") return new NatsConnection(connection, input, info, pingInterval);
      }
    } catch (error) {
      connection[Symbol.dispose]();
      throw error;
    }
  }

  /** Whether NATS is there, as far as this side knows. */
  get isOpen(): boolean {
    return this.#end === undefined;
  }

  /** Listens until the connection ends: why it does. It never rejects. */
  async listen({ receive, refuse }: NatsListener): Promise<Error> {
    try {
      while (true) {
        const { line, data } = await this.input.next();
        this.#silentPings = 0;
        const [verb, subject] = line.split(" ", 2);
        if (verb === "MSG") receive(subject, data);
        else if (verb === "PING") this.#write("PONG\r\n");
        else if (verb === "PONG") this.#pongs.shift()?.resolve();
        else if (verb === "-ERR") refuse(reasonIn(line));
        else if (verb === "INFO") Object.assign(this.info, parseInfo(line));
        else throw new Error(`it sent ${printable(line)}`);
      }
    } catch (error) {
      this.close(error as Error);
    }
    return this.#end ?? new Error();
  }

  /** Publishes messages in their order. Done when NATS has taken them; it rejects on a loss. */
  async publish(messages: { subject: string; bytes: Uint8Array }[]): Promise<void> {
    let parts: Uint8Array[] = [];
    let size = 0;
    for (const { subject, bytes } of messages) {
      parts.push(Buffer.from(`PUB ${subject} ${bytes.length}\r\n`), bytes, Buffer.from("\r\n"));
      size += bytes.length;
      if (size < WRITTEN_AT_ONCE) continue;
      await this.#write(Buffer.concat(parts));
      [parts, size] = [[], 0];
    }
    await this.#write(Buffer.concat(parts));
    await this.ping();
  }

  /** Hears a subject until `unsubscribe`. Each subscription has a number of its own. */
  subscribe(subject: string, id: number): void {
    this.#write(`SUB ${subject} ${id}\r\n`);
  }

  unsubscribe(id: number): void {
    this.#write(`UNSUB ${id}\r\n`);
  }

  /** Done when NATS has taken all that was written before. It rejects on a loss. */
  async ping(): Promise<void> {
    if (this.#end) throw this.#end;
    const pong = Promise.withResolvers<void>();
    this.#pongs.push(pong);
    this.#write("PING\r\n");
    await pong.promise;
  }

  /** Ends the connection at once. */
  close(reason = new Error("it was closed")): void {
    this.#end ??= reason;
    clearInterval(this.#timer);
    this.connection[Symbol.dispose]();
    for (const pong of this.#pongs.splice(0)) pong.reject(this.#end);
  }

  #write(data: string | Uint8Array): Promise<void> {
    this.#written = this.#written.then(() => writeAll(this.connection, data));
    this.#written.catch((error) => this.close(error));
    return this.#written;
  }
}

/** What NATS is told first. A name without a password is a token. */
function introduction({ username, password }: URL): string {
  const [user, pass] = [unescape(username), unescape(password)];
  const credentials = pass ? { user, pass } : user ? { auth_token: user } : {};
  // Without `echo`, a server does not hear what it has said itself.
  return JSON.stringify({
    ...credentials,
    echo: false,
    headers: false,
    protocol: 1,
    verbose: false,
  });
}

function parseInfo(line: string): NatsInfo {
  if (line.startsWith("INFO {")) return JSON.parse(line.slice(5));
  throw new Error("it is something else");
}

/** Why NATS can't be used, and what to do about it. */
function describeFailure({ name, message }: Error): string {
  let advice = "start nats-server there";
  if (/certificate/.test(message)) advice = "trust it with: deno run --cert=FILE --allow-net …";
  if (/corrupt/.test(message)) advice = "it does not speak TLS, use nats:// instead of tls://";
  if (/^Auth/.test(message)) advice = "put user:password@ or token@ before the host";
  const reason = name === "TimeoutError" ? "no answer in time" : message;
  return `(${printable(reason).replace(/ \(os error.*/, "")}): ${advice}.`;
}

/** What NATS says in `-ERR 'Authorization Violation'`. */
function reasonIn(line: string): string {
  return line.replace(/^-ERR '?(.*?)'?$/, "$1");
}

async function writeAll(connection: Deno.Conn, data: string | Uint8Array): Promise<void> {
  let rest = typeof data === "string" ? new TextEncoder().encode(data) : data;
  while (rest.length > 0) rest = rest.subarray(await connection.write(rest));
}
