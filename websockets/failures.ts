// Why a connection failed, and what to do about it. No password is printed.

import { printable } from "./lines.ts";

/** Milliseconds of the second look at a server that could not be connected to. */
const LOOK_TIMEOUT = 2_000;
/** What to do about a URL whose password has a character that means something else in a URL. */
const ENCODE = "in a user name or password, write # / ? % @ and blank as %23 %2F %3F %25 %40 %20";

/** The connection failed. Its message says why, and what to do about it. */
export class ConnectionFailed extends Error {
  /** The name of this class. */
  override readonly name = "ConnectionFailed";

  /** The status of the answer (RFC 9110 section 15), if there was one: 401, 503 and the like. */
  readonly status?: number;
  /** Whether another try may succeed: the server may only be away. */
  readonly isPassing: boolean;
  /** Whether the name of the host is not known, which passes where it was known before. */
  readonly isHostUnknown: boolean;

  /** Makes an error of what the runtime says. */
  constructor(message: string, reason: string, isPassing: boolean) {
    super(message);
    this.isPassing = isPassing;
    this.isHostUnknown = reason.startsWith("dns ");
    const [, status] = reason.match(/status code:? (\d{3})\b/i) ?? [];
    if (status !== undefined) this.status = Number(status);
  }
}

/**
 * Why a handshake failed, whether another try may succeed, and what to do. Deno tells the reason in
 * words, which may change: each pattern looks for few of them, and the first that fits counts. A
 * reason that is not here is told without advice, and may pass.
 */
const ADVICE: [pattern: RegExp, isPassing: boolean, advice: string][] = [
  [/not offered/, false, "offer it with --subprotocol, if you speak it"],
  [/\b30[12378]$/, false, "connect to the address that it redirects to"],
  [/\b401$/, false, "put user:password@ before the host, or use --header"],
  [/\b403$/, false, "the server may expect credentials or another --origin"],
  [/\b429$/, true, "the server has got too many requests, try later"],
  [/\b503$/, true, "the server is full or not ready, try later"],
  [/\b[1-4]\d\d$/, false, "no WebSocket is served at this path, check the URL"],
  [/^dns/, false, "there is no such host, check the URL"],
  [
    /CaUsedAsEndEntity/,
    false,
    "this is the certificate of a CA, which is no server's: make another with openssl req … -addext basicConstraints=critical,CA:FALSE",
  ],
  [
    /not valid for/,
    false,
    "connect to a name of the certificate, or make another with openssl req … -addext subjectAltName=DNS:NAME",
  ],
  [/UnknownIssuer/, false, "trust it with: deno run --cert=FILE --allow-net …"],
  [/certificate/, false, ""],
  [/corrupt/, false, "the server does not speak TLS, use ws:// instead of wss://"],
  [/HTTP version/, false, "the server may speak TLS, use wss:// instead of ws://"],
  [/tunnel/, true, "the proxy in the environment fails, go past it with NO_PROXY=HOST"],
  [/^tcp/, true, "start the server there, such as: deno run --allow-net server.ts"],
  [/in time/, true, "--timeout gives the server longer, and NO_PROXY=HOST goes past a proxy"],
];

/** Says why a handshake failed, after a second look at the server where that tells more. */
export async function explain(url: string, { name, message }: Error): Promise<ConnectionFailed> {
  const reason = name === "TimeoutError"
    ? "no answer in time"
    : message.replace(/.*WebSocket: /, "");
  let [, isPassing, advice] = ADVICE.find(([pattern]) => pattern.test(reason)) ?? [, true, ""];
  if (/\b30[12378]$/.test(reason)) advice = await findRedirect(url) ?? advice;
  if (/^tcp/.test(reason) && await isReachable(url)) {
    advice = "the proxy in the environment does not answer, go past it with NO_PROXY=HOST";
  }
  if (isAmbiguous(url)) advice = advice ? `${advice}; ${ENCODE}` : ENCODE;
  else advice = advice.replace("HOST", new URL(url).hostname);
  const failure = `No connection to ${withoutSecrets(url)} (${reason})${advice && `: ${advice}`}`;
  return new ConnectionFailed(printable(failure, Infinity), reason, isPassing);
}

/** Says where the server redirects to. Deno's WebSocket does not tell it. */
async function findRedirect(url: string): Promise<string | undefined> {
  const asked = new URL(url.replace(/^ws/i, "http"));
  try {
    const signal = AbortSignal.timeout(LOOK_TIMEOUT);
    const response = await fetch(asked, { redirect: "manual", signal });
    await response.body?.cancel();
    const location = response.headers.get("location");
    if (location === null) return;
    const target = new URL(location, asked).href.replace(/^http/, "ws");
    return `connect to ${withoutSecrets(target)}`;
  } catch {
    // What is known already is told.
  }
}

/** Whether the server can be reached without a proxy, which the runtime takes from the environment. */
async function isReachable(url: string): Promise<boolean> {
  const { protocol, hostname, port: given } = new URL(url);
  const port = Number(given) || (/^(wss|https):/.test(protocol) ? 443 : 80);
  try {
    const signal = AbortSignal.timeout(LOOK_TIMEOUT);
    (await Deno.connect({ hostname, port, signal })).close();
    return true;
  } catch {
    return false;
  }
}

/**
 * Checks a URL, so that the runtime, whose errors quote it, finds nothing to complain of.
 *
 * @throws {DOMException} `SyntaxError` for a URL that can't be a server's.
 */
export function checkUrl(url: string): void {
  const { href = "", username, password } = URL.parse(url) ?? {};
  try {
    decodeURIComponent(`${username}:${password}`);
    if (/^(ws|http)s?:[^#]*$/.test(href)) return;
  } catch {
    // A `%` is no escape.
  }
  const mistake = `${withoutSecrets(url)} is no URL of a server, such as ws://localhost:9999`;
  const hint = url.includes("@") ? `; ${ENCODE}` : "";
  throw new DOMException(mistake + hint, "SyntaxError");
}

const SCHEME = /^(ws|http)s?:[/\\]*/i;

/** Whether it can't be seen where the credentials of a URL end. */
function isAmbiguous(url: string): boolean {
  return /[/?#\\].*@/s.test(url.replace(SCHEME, ""));
}

/**
 * A URL that may be printed: without credentials, and without the values of its query. Where it
 * can't be seen where the credentials end, only the scheme is left.
 */
export function withoutSecrets(url: string): string {
  const [scheme = ""] = url.match(SCHEME) ?? [];
  if (isAmbiguous(url)) return `${scheme}…`;
  const shown = url.slice(scheme.length).replace(/^.*@/s, "");
  const hidden = (query: string) => query.replace(/([?&](?:[^=&]*=)?)[^&]*/g, "$1…");
  return scheme + shown.replace(/\?.*$/s, hidden);
}

/** Such as `Connected to ws://localhost:9999, subprotocol chat.` */
export function describeOpen(url: string, subprotocol: string): string {
  return `Connected to ${withoutSecrets(url)}${subprotocol && `, subprotocol ${subprotocol}`}.`;
}
