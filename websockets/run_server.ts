// What makes a script of a server: flags, the line with its address, and signals.

import type { parseArgs } from "node:util";
import { errorLog, milliseconds, silence, unfailing, usageError, wholeNumber } from "./lines.ts";
import { MAX_CLIENTS, MAX_MESSAGE, type ServeOptions } from "./options.ts";
import { overlookRejections } from "./rejections.ts";
import { type Handler, serve, type Server, SHUTDOWN_TIMEOUT } from "./serve.ts";
import { MAX_WAITING } from "./waiting.ts";

/** The flags of every server, for `parseArgs` of `node:util`. */
export const SERVER_FLAGS = {
  host: { type: "string", default: "localhost" },
  port: { type: "string" },
  cert: { type: "string" },
  key: { type: "string" },
  origin: { type: "string", multiple: true, default: [] as string[] },
  "max-message": { type: "string", default: `${MAX_MESSAGE}` },
  "max-clients": { type: "string", default: `${MAX_CLIENTS}` },
  "max-waiting": { type: "string", default: `${MAX_WAITING}` },
  "stop-timeout": { type: "string", default: `${SHUTDOWN_TIMEOUT / 1000}` },
  quiet: { type: "boolean", default: false },
} as const;

/** What `--help` says of `SERVER_FLAGS`. */
export const SERVER_USAGE = `
  --host HOST          address to listen on (localhost), 0.0.0.0 for other machines too
  --port PORT          port to listen on, 0 for a free one
  --cert FILE          certificate for wss, in PEM; needs --key and --allow-read
  --key FILE           private key of the certificate, in PEM
  --origin ORIGIN      let pages from this origin in, * for any; may be given many times
  --max-message BYTES  largest message (${MAX_MESSAGE})
  --max-clients COUNT  clients at a time (${MAX_CLIENTS})
  --max-waiting BYTES  what may wait for all clients together (${MAX_WAITING})
  --stop-timeout SECONDS  how long Ctrl-C waits for clients that do not read (${
  SHUTDOWN_TIMEOUT / 1000
})
  --quiet              do not print messages
  --help               print this`;

/** What a page says itself of what it may do: that is repeated in a header. */
const PAGE_POLICY = /<meta\s+http-equiv="Content-Security-Policy"\s+content="([^"]*)"/;

/** The values of `SERVER_FLAGS`. */
export type ServerFlags = ReturnType<typeof parseArgs<{ options: typeof SERVER_FLAGS }>>["values"];

/** What a script adds to the flags. */
export interface RunOptions extends ServeOptions {
  /** The page that `GET /` is answered with, in HTML. */
  page?: string;
  /** Called when all clients have left, before the process ends. */
  release?(): unknown;
}

/**
 * Serves as the flags say until SIGINT or SIGTERM. Then nobody is let in any more, every client
 * gets what waits for it and 1001, and the process ends with 0. A second signal ends it at once.
 *
 * @param name What the first line calls the server.
 * @param options What holds where the flags say nothing. Origins of both are let in.
 * @throws {Error} if a flag is wrong, a file can't be read, or the port is taken.
 */
export function runServer(
  name: string,
  handler: Handler,
  flags: ServerFlags,
  options: RunOptions = {},
): Server {
  const { cert, key, origin, host } = flags;
  if (!cert !== !key) throw usageError("--cert and --key need each other.");
  const wrong = origin.find((each) => !isOrigin(each));
  if (wrong !== undefined) {
    const origins = "a whole origin such as https://example.com, or *";
    throw usageError(`--origin takes ${origins}, not "${wrong}".`);
  }
  if (flags.quiet) silence();
  const hostname = host.replace(/^\[(.*)\]$/, "$1");
  const port = wholeNumber("port", flags.port ?? `${options.port ?? 8000}`, 0, 65_535);
  const maxMessage = wholeNumber("max-message", flags["max-message"], 1);
  const settings = {
    ...options,
    hostname,
    port,
    cert: cert && readPem(cert),
    key: key && readPem(key),
    origins: [...options.origins ?? [], ...origin],
    maxMessage: Math.min(options.maxMessage ?? Infinity, maxMessage),
    maxClients: wholeNumber("max-clients", flags["max-clients"], 1),
    maxWaiting: wholeNumber("max-waiting", flags["max-waiting"], 1),
    processRequest: withPage(options),
    log: (line: string) => errorLog(withFlags(line)),
  };
  let server: Server;
  try {
    server = serve(handler, settings);
  } catch (error) {
    if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    throw new Error(`Port ${port} is taken: choose another one with --port.`);
  }
  // Without a file descriptor left, the runtime stops listening, and nothing makes it start again.
  server.finished.catch((error) => {
    const line = `Stopped listening (${error.message}): raise ulimit -n or lower --max-clients.`;
    unfailing(console.error)(line);
    Deno.exit(1);
  });
  stopOnSignals(server, milliseconds("stop-timeout", flags["stop-timeout"]), options);

  // 0.0.0.0 and :: stand for all addresses of this machine, and nobody can connect to them.
  const reachable = hostname === "0.0.0.0" || hostname === "::" ? "localhost" : hostname;
  const address = `${reachable.includes(":") ? `[${reachable}]` : reachable}:${server.addr.port}`;
  const secure = cert ? "s" : "";
  const page = options.page === undefined ? "" : `, page at http${secure}://${address}/`;
  unfailing(console.log)(`${name} on ws${secure}://${address}${page}`);
  return server;
}

/** Names flags in place of the options that they set. */
function withFlags(line: string): string {
  return line.replace("`origins`", "--origin").replace("`maxClients`", "--max-clients")
    .replace("`maxWaiting`", "--max-waiting");
}

function stopOnSignals(server: Server, timeout: number, { release }: RunOptions) {
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
  Deno.addSignalListener("SIGINT", stop);
  // There is no SIGTERM on Windows, and listening for it throws.
  if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", stop);
}

/** Adds the page to what `processRequest` of a script answers. */
function withPage({ page, processRequest }: RunOptions): ServeOptions["processRequest"] {
  if (page === undefined) return processRequest;
  const [, policy] = page.match(PAGE_POLICY) ?? [];
  // A page that another site frames could be made to connect by a click there, and a page can't
  // forbid that by itself.
  const pageHeaders = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": ["frame-ancestors 'none'", policy].filter(Boolean).join("; "),
  };
  const answer = ({ method, url, headers }: Request) => {
    if (headers.get("sec-websocket-key") !== null || new URL(url).pathname !== "/") return;
    if (method !== "GET" && method !== "HEAD") return;
    return new Response(page, { headers: pageHeaders });
  };
  return (request, info) => {
    const answered = processRequest?.(request, info);
    if (answered instanceof Promise) {
      return answered.then((response) => response ?? answer(request));
    }
    return answered ?? answer(request);
  };
}

/** Whether this is `*`, `null`, or the whole origin of a page or an app. There are no patterns. */
function isOrigin(text: string): boolean {
  if (["*", "null"].includes(text)) return true;
  if (/^https?:/.test(text)) return !text.includes("*") && URL.parse(text)?.origin === text;
  // Such as file:// or tauri://localhost. No page comes from a WebSocket.
  return /^(?!wss?:)[a-z][a-z0-9+.-]*:\/\/[^\s*\/?#]*$/.test(text);
}

function readPem(file: string): string {
  const text = Deno.readTextFileSync(file);
  if (text.includes("-----BEGIN")) return text;
  throw new Error(`There is no certificate or key in ${file}: in PEM it starts with -----BEGIN.`);
}
