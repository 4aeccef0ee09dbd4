// What to do about a connection that failed, after a second look at the server where that tells more.

import { connect, type ConnectOptions } from "../connect.ts";
import { ConnectionFailed, ENCODE, isAmbiguous, withoutSecrets } from "../failures.ts";
import { printable } from "../log.ts";

/** Milliseconds of the second look. */
const LOOK_TIMEOUT = 2_000;
/** Characters of a body that are read: more than are shown. */
const MAX_BODY = 1_000;
/** What makes a request a handshake (RFC 6455 section 4.1), with the key of its section 1.3. */
const HANDSHAKE = [
  ["Connection", "Upgrade"],
  ["Upgrade", "websocket"],
  ["Sec-WebSocket-Version", "13"],
  ["Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="],
] as const;
/** What a proxy answers that does not let a request through, or finds no server. */
const MAYBE_PROXYS = [403, 502, 503, 504];

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
  407: "the proxy in the environment wants a password, such as HTTP_PROXY=http://user:password@…",
  proxy: "this is the proxy in the environment, go past it with NO_PROXY=HOST",
  "silent proxy": "the proxy in the environment does not answer, go past it with NO_PROXY=HOST",
  "unknown proxy": "the proxy in the environment is not found, go past it with NO_PROXY=HOST",
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
  [/expired/i, "the server needs a new certificate, or the clock of this machine is wrong"],
  [/UnknownIssuer/, "trust it with: deno run --cert=FILE --allow-net …"],
];

/**
 * The message of an error, and what to do about it if it is a connection that failed. To find that out,
 * it asks the server again: call it once, before a script ends.
 *
 * @param url The server.
 * @param own What a script advises in place of that, such as its flags.
 * @param options The headers and subprotocols of the handshake.
 */
export async function advise(
  error: Error,
  url: string,
  own: Advice = {},
  options: ConnectOptions = {},
): Promise<string> {
  if (!(error instanceof ConnectionFailed)) return error.message;
  const answer = await askAgain(error, url, options);
  // The answer tells why, where Deno's WebSocket does not.
  const failure = answer?.reason ? new ConnectionFailed(url, new Error(answer.reason)) : error;
  let advice = await adviceFor(failure, url, { ...ADVICE, ...own }, answer);
  if (isAmbiguous(url)) advice = advice ? `${advice}; ${ENCODE}` : ENCODE;
  else advice = advice?.replace("HOST", new URL(url).hostname);
  return advice ? `${failure.message}: ${advice}` : failure.message;
}

async function adviceFor(
  { kind, status, reason }: ConnectionFailed,
  url: string,
  advice: Advice,
  answer: Answer | undefined,
): Promise<string | undefined> {
  if (kind === "certificate") return CERTIFICATES.find(([pattern]) => pattern.test(reason))?.[1];
  if (kind === "proxy" && /authentication/.test(reason)) return advice[407];
  if (kind === "refused" && await failsDirectly(url) === undefined) return advice["silent proxy"];
  if (kind === "host" && !/lookup|access/.test(await failsDirectly(url) ?? "")) {
    return advice["unknown proxy"];
  }
  if (status === undefined) return advice[kind];
  const { location, said } = answer?.status === status ? answer : {};
  if ([301, 302, 303, 307, 308].includes(status)) {
    return location ? `connect to ${location}` : advice.redirect;
  }
  const isProxys = MAYBE_PROXYS.includes(status) && await answersForAll(url, status);
  const what = isProxys ? advice.proxy : advice[status];
  if (said) return [`the answer says "${said}"`, what].filter(Boolean).join("; ");
  return what ?? (status < 500 ? advice.path : undefined);
}

/** What a server says to another handshake, as it may be shown. */
interface Answer {
  status?: number;
  /** Why the first handshake failed, where its error does not say that. */
  reason?: string | undefined;
  /** Where it redirects to. */
  location?: string | undefined;
  /** The beginning of its body, if that is no page. */
  said?: string;
}

/** Makes the handshake again with `fetch`, which tells what Deno's WebSocket does not. */
async function askAgain(
  { kind }: ConnectionFailed,
  url: string,
  { headers, subprotocols = [] }: ConnectOptions,
): Promise<Answer | undefined> {
  // After a failure over TLS the runtime tries HTTP/2, and tells only how that has failed.
  const isHidden = kind === "unknown" && /^(wss|https):/i.test(url);
  if (kind !== "status" && !isHidden) return;
  const asked = new URL(url.replace(/^ws/i, "http"));
  const all = new Headers(headers);
  for (const [name, value] of HANDSHAKE) all.set(name, value);
  if (subprotocols.length > 0) all.set("Sec-WebSocket-Protocol", subprotocols.join(", "));
  try {
    using client = Deno.createHttpClient({ http2: false });
    const signal = AbortSignal.timeout(LOOK_TIMEOUT);
    const init: RequestInit = { headers: all, redirect: "manual", signal };
    const response = await fetch(asked, Object.assign(init, { client }));
    const { status } = response;
    const type = response.headers.get("content-type") ?? "";
    const body = await readStart(response);
    const location = response.headers.get("location");
    const target = location && new URL(location, asked).href.replace(/^http/, "ws");
    return {
      status,
      reason: isHidden && status !== 101 ? `Invalid status code: ${status}` : undefined,
      location: target ? printable(withoutSecrets(target)) : undefined,
      said: /html/.test(type) ? "" : printable(body.trim().replace(/\s+/g, " ")),
    };
  } catch (error) {
    // Deno 2.8 has the reason in the message, and 2.9 in the cause.
    const [reason] = Deno.inspect(error).match(/invalid peer certificate: .*/) ?? [];
    return { reason: isHidden ? reason : undefined };
  }
}

/** The first characters of a body, as far as they come in time. */
async function readStart({ body }: Response): Promise<string> {
  let text = "";
  try {
    for await (const piece of body?.pipeThrough(new TextDecoderStream()) ?? []) {
      text += piece;
      if (text.length > MAX_BODY) break;
    }
  } catch {
    // What has come is shown.
  }
  return text.slice(0, MAX_BODY);
}

/** Why the server can't be reached without the proxy that the runtime takes from the environment. */
async function failsDirectly(url: string): Promise<string | undefined> {
  const { protocol, hostname, port: given } = new URL(url);
  const port = Number(given) || (/^(wss|https):/.test(protocol) ? 443 : 80);
  try {
    const signal = AbortSignal.timeout(LOOK_TIMEOUT);
    (await Deno.connect({ hostname, port, signal })).close();
    return undefined;
  } catch (error) {
    return String(error);
  }
}

/** Whether this host answers so at a port where nobody listens: then a proxy has answered. */
async function answersForAll(url: string, status: number): Promise<boolean> {
  const { protocol, hostname } = new URL(url);
  // Through TLS a proxy can't answer for the server.
  if (!/^(ws|http):/.test(protocol)) return false;
  const failure = await connect(`ws://${hostname}:1`, { timeout: LOOK_TIMEOUT })
    .then((websocket) => websocket.close(), (error) => error);
  return failure instanceof ConnectionFailed && failure.status === status;
}
