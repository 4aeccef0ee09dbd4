// What to do about a connection that failed, after a second look at the server where that tells more.

import { ConnectionFailed, ENCODE, isAmbiguous, withoutSecrets } from "../failures.ts";

/** Milliseconds of the second look. */
const LOOK_TIMEOUT = 2_000;

/** What to do, by what failed: a status, or a kind of failure. */
export type Advice = Record<string, string>;

const ADVICE: Advice = {
  redirect: "connect to the address that it redirects to",
  401: "put user:password@ before the host",
  403: "the server may expect credentials or another origin",
  429: "the server has got too many requests, try later",
  503: "the server is full or not ready, try later",
  path: "no WebSocket is served at this path, check the URL",
  host: "there is no such host, check the URL",
  "no TLS": "the server does not speak TLS, use ws:// instead of wss://",
  TLS: "the server may speak TLS, use wss:// instead of ws://",
  proxy: "the proxy in the environment fails, go past it with NO_PROXY=HOST",
  refused: "start the server there, such as: deno run --allow-net server.ts",
  timeout: "NO_PROXY=HOST goes past a proxy",
};
/** The same for certificates, by what the runtime says of them. */
const CERTIFICATES: [pattern: RegExp, advice: string][] = [
  [
    /CaUsedAsEndEntity/,
    "this is the certificate of a CA, which is no server's: make another with openssl req … -addext basicConstraints=critical,CA:FALSE",
  ],
  [
    /not valid for/,
    "connect to a name of the certificate, or make another with openssl req … -addext subjectAltName=DNS:NAME",
  ],
  [/UnknownIssuer/, "trust it with: deno run --cert=FILE --allow-net …"],
];

/**
 * The message of an error, and what to do about it if it is a connection that failed.
 *
 * @param url The server.
 * @param own What a script advises in place of that, such as its flags.
 */
export async function advise(error: Error, url: string, own: Advice = {}): Promise<string> {
  if (!(error instanceof ConnectionFailed)) return error.message;
  let advice = await adviceFor(error, url, { ...ADVICE, ...own });
  if (isAmbiguous(url)) advice = advice ? `${advice}; ${ENCODE}` : ENCODE;
  else advice = advice?.replace("HOST", new URL(url).hostname);
  return advice ? `${error.message}: ${advice}` : error.message;
}

async function adviceFor({ kind, status, reason }: ConnectionFailed, url: string, advice: Advice) {
  if (kind === "certificate") return CERTIFICATES.find(([pattern]) => pattern.test(reason))?.[1];
  if (kind === "refused" && await isReachable(url)) {
    return "the proxy in the environment does not answer, go past it with NO_PROXY=HOST";
  }
  if (status === undefined) return advice[kind];
  if ([301, 302, 303, 307, 308].includes(status)) return await findRedirect(url) ?? advice.redirect;
  return advice[status] ?? (status < 500 ? advice.path : undefined);
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
    return undefined;
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
