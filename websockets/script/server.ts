// What makes a script of a server: flags, the line with its address, and signals.

import { SHUTDOWN_TIMEOUT } from "../accept.ts";
import { MAX_WAITING } from "../budget.ts";
import { overlookRejections } from "../connection_closed.ts";
import { errorLog, type Log, unfailing } from "../log.ts";
import { IDLE_TIMEOUT, MAX_CLIENTS, MAX_MESSAGE, type ServeOptions } from "../options.ts";
import type { Server } from "../serve.ts";
import { requireToken } from "../token.ts";
import { type Flags, type FlagValues, parseFlags, usageError } from "./flags.ts";
import { type ServedPage, servePage } from "./page.ts";
import { silence } from "./print.ts";
import { runScript, usageOf } from "./run.ts";

/** The flags of every server. */
export const SERVER_FLAGS = {
  "host HOST": "address to listen on (localhost), 0.0.0.0 for other machines too",
  "port PORT": "port to listen on, 0 for a free one",
  "cert FILE": "certificate for wss, in PEM; needs --key and --allow-read",
  "key FILE": "private key of the certificate, in PEM",
  "token-file FILE": "let in only clients with the token in this file; needs --allow-read",
  "origin ORIGIN...": "let pages from this origin in, * for any; may be given many times",
  "max-message BYTES": `largest message (${MAX_MESSAGE})`,
  "max-body BYTES": "largest body of a request (as --max-message)",
  "max-clients COUNT": `clients at a time (${MAX_CLIENTS})`,
  "max-waiting BYTES": `what may wait for all clients together (${MAX_WAITING})`,
  "idle-timeout SECONDS": `how long a client may be silent, or take nothing (${IDLE_TIMEOUT})`,
  "stop-timeout SECONDS": `how long a stop waits for the clients (${SHUTDOWN_TIMEOUT / 1000})`,
  "quiet": "do not print messages",
};

/** Most systems let only an administrator listen on ports up to this one (RFC 6335 section 6). */
const MAX_SYSTEM_PORT = 1023;

/** What a script says of its server. */
export interface RunServerOptions<Own extends Flags> extends ServeOptions {
  /** The page that `GET /` is answered with. */
  page?: ServedPage;
  /** The flags of this script, in addition to those of every server. */
  flags?: Own;
  /** Called when the server has stopped, before the process ends. */
  release?(): unknown;
}

/** The options for `serve`, which always say where it listens. */
type Settings = ServeOptions & { hostname: string; port: number };

/**
 * Runs a server as the flags say until SIGINT, SIGTERM or SIGHUP. Then nobody is let in any more,
 * every client gets what waits for it and 1001, and the process ends with 0. A second signal ends
 * it at once. A mistake is told in one line, and the process ends with 1, or 2 if a flag is wrong.
 *
 * @param name What the first line calls the server.
 * @param options What holds where the flags say nothing.
 * @param start Starts the server: it gets the options for `serve`, and the values of its own flags.
 */
export async function runServer<const Own extends Flags>(
  name: string,
  options: RunServerOptions<Own>,
  start: (options: ServeOptions, flags: FlagValues<Own>) => Server | Promise<Server>,
): Promise<void> {
  const { flags = {} as Own, port = 8000, release, page, ...given } = options;
  const all = { ...flags, ...SERVER_FLAGS };
  await runScript(usageOf(all), async () => {
    const values = parseFlags(all).values as FlagValues<Own> & FlagValues<typeof SERVER_FLAGS>;
    const settings = withFlags({ port, ...given }, page, values);
    const server = await startOn(settings, () => start(settings, values));
    stopOnSignals(server, (values["stop-timeout"] ?? SHUTDOWN_TIMEOUT / 1000) * 1000, release);
    tellAddress(name, server, settings, page !== undefined);
  });
}

/**
 * The options for `serve`: what a script says, and then what the flags say.
 *
 * @throws {Error} a `usageError` if a flag is wrong, or if a file can't be read.
 */
export function withFlags(
  given: ServeOptions & { port: number },
  page: ServedPage | undefined,
  values: FlagValues<typeof SERVER_FLAGS>,
): Settings {
  const { cert, key, origin = [], "token-file": tokenFile } = values;
  const { hostname = "localhost", processRequest = [] } = given;
  if ((cert === undefined) !== (key === undefined)) {
    throw usageError("--cert and --key need each other.");
  }
  const wrong = origin.find((each) => !isOrigin(each));
  if (wrong !== undefined) {
    const origins = "a whole origin such as https://example.com, or *";
    throw usageError(`--origin takes ${origins}, not "${wrong}".`);
  }
  if (values.quiet) silence();
  return {
    ...given,
    hostname: (values.host ?? hostname).replace(/^\[(.*)\]$/, "$1"),
    port: values.port ?? given.port,
    cert: cert === undefined ? given.cert : readPem(cert, "CERTIFICATE"),
    key: key === undefined ? given.key : readPem(key, "PRIVATE KEY"),
    origins: [...given.origins ?? [], ...origin],
    maxMessage: values["max-message"] ?? given.maxMessage,
    maxBody: values["max-body"] ?? given.maxBody,
    maxClients: values["max-clients"] ?? given.maxClients,
    maxWaiting: values["max-waiting"] ?? given.maxWaiting,
    idleTimeout: values["idle-timeout"] ?? given.idleTimeout,
    processRequest: [
      ...tokenFile === undefined ? [] : [requireToken(readToken(tokenFile))],
      ...[processRequest].flat(),
      ...page === undefined ? [] : [servePage(page)],
    ],
    log: given.log ?? logWithFlags,
  };
}

/** Says with which flag an option is set. */
const logWithFlags: Log = (line, option) => {
  const flag = option?.replace("origins", "origin").replace(
    /[A-Z]/g,
    (letter) => `-${letter.toLowerCase()}`,
  );
  errorLog(flag ? `${line} See --${flag}.` : line);
};

async function startOn(settings: Settings, start: () => Server | Promise<Server>): Promise<Server> {
  try {
    return await start();
  } catch (error) {
    const mistake = mistakeIn(settings, error);
    throw mistake === undefined ? error : new Error(mistake);
  }
}

/** What is wrong with an address that the system does not let the server listen on. */
function mistakeIn({ hostname, port }: Settings, error: unknown): string | undefined {
  const { AddrInUse, AddrNotAvailable, PermissionDenied } = Deno.errors;
  if (error instanceof AddrInUse) return `Port ${port} is taken: choose another one with --port.`;
  if (error instanceof PermissionDenied && port > 0 && port <= MAX_SYSTEM_PORT) {
    return `Port ${port} needs an administrator: choose one over ${MAX_SYSTEM_PORT} with --port.`;
  }
  // The runtime has no class of its own for these.
  if (error instanceof Error && error.message.includes("KeyMismatch")) {
    return "The private key is not that of the first certificate in --cert: give --key its own.";
  }
  const isUnknown = error instanceof Error && error.message.startsWith("failed to lookup address");
  return error instanceof AddrNotAvailable || isUnknown
    ? `${hostname} is no address of this machine: choose another one with --host.`
    : undefined;
}

function stopOnSignals(server: Server, timeout: number, release?: () => unknown) {
  // Without a file descriptor left, the runtime stops listening, and nothing makes it start again.
  server.finished.catch((error) => {
    const line = `Stopped listening (${error.message}): raise ulimit -n or lower --max-clients.`;
    unfailing((line) => console.error(line))(line);
    Deno.exit(1);
  });
  let isStopping = false;
  const stop = async () => {
    if (isStopping) Deno.exit(1);
    isStopping = true;
    // Timers of handlers may go on until the process ends.
    overlookRejections();
    await server.shutdown({ timeout });
    await release?.();
    Deno.exit(0);
  };
  // There is no SIGTERM on Windows, and listening for it throws.
  const others = Deno.build.os === "windows" ? [] : ["SIGTERM", "SIGHUP"] as const;
  for (const signal of ["SIGINT", ...others] as const) Deno.addSignalListener(signal, stop);
}

function tellAddress(
  name: string,
  { addr }: Server,
  { hostname, cert }: Settings,
  hasPage: boolean,
) {
  // 0.0.0.0 and :: stand for all addresses of this machine, and nobody can connect to them.
  const reachable = hostname === "0.0.0.0" || hostname === "::" ? "localhost" : hostname;
  const address = `${reachable.includes(":") ? `[${reachable}]` : reachable}:${addr.port}`;
  const secure = cert ? "s" : "";
  const page = hasPage ? `, page at http${secure}://${address}/` : "";
  unfailing((line) => console.log(line))(`${name} on ws${secure}://${address}${page}`);
}

/** Whether this is `*`, `null`, or the whole origin of a page or an app. There are no patterns. */
function isOrigin(text: string): boolean {
  if (["*", "null"].includes(text)) return true;
  if (/^https?:/.test(text)) return !text.includes("*") && URL.parse(text)?.origin === text;
  // Such as file:// or tauri://localhost. No page comes from a WebSocket.
  return /^(?!wss?:)[a-z][a-z0-9+.-]*:\/\/[^\s*\/?#]*$/.test(text);
}

function readToken(file: string): string {
  const token = Deno.readTextFileSync(file).trim();
  if (token) return token;
  throw new Error(`There is no token in ${file}: write one, such as with openssl rand -hex 32.`);
}

/** Reads what has this label in PEM (RFC 7468). */
function readPem(file: string, label: "CERTIFICATE" | "PRIVATE KEY"): string {
  const text = Deno.readTextFileSync(file);
  const isKey = label === "PRIVATE KEY";
  const isEncrypted = isKey && text.includes("ENCRYPTED");
  if (!isEncrypted && RegExp(`-----BEGIN (\\w+ )?${label}-----`).test(text)) return text;
  const [what, command] = isKey ? ["private key", "pkey"] : ["certificate", "x509"];
  const openssl = `openssl ${command} -in ${file} -out FILE`;
  throw new Error(
    isEncrypted
      ? `The private key in ${file} is encrypted: decrypt it with ${openssl}.`
      : `There is no ${what} in PEM in ${file}: if it is in DER, convert it with ${openssl}.`,
  );
}
