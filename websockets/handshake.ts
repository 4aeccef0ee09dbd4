// Who may come in: RFC 6455, the origin of a page, the subprotocol, the size of a body, the token.

import { createHash, timingSafeEqual } from "node:crypto";

/** The origins of pages that this machine serves. */
const LOOPBACK = /^https?:\/\/(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/;

/** Seconds after which a client that was refused for now may try again. */
export const RETRY_AFTER = { "Retry-After": "1" };

/** An answer that refuses a request, with a line that says why. */
export function refuse(status: number, text: string, headers?: HeadersInit): Response {
  return new Response(`${text}\n`, { status, headers });
}

/** Whether a request is meant as a handshake, right or wrong. */
export function isHandshake({ headers }: Request): boolean {
  return isUpgrade(headers) || headers.get("sec-websocket-key") !== null;
}

/**
 * Whether the runtime sees the request for a WebSocket. `Upgrade` is a list in RFC 9110, but the
 * runtime ends the process if the list comes in two lines, which can't be told from one.
 */
function isUpgrade(headers: Headers): boolean {
  return headers.get("upgrade")?.toLowerCase() === "websocket" &&
    /(^|,)\s*upgrade\s*(,|$)/i.test(headers.get("connection") ?? "");
}

/** What is wrong with a handshake (RFC 6455 section 4.2.1): the runtime checks little of it. */
export function refuseHandshake({ method, headers }: Request): Response | undefined {
  if (!isUpgrade(headers)) return askForUpgrade();
  if (method !== "GET") return refuse(405, "A handshake is a GET request.", { Allow: "GET" });
  if (headers.get("host") === null) return refuse(400, "A handshake needs a Host header.");
  if (headers.get("sec-websocket-version") !== "13") {
    const supported = { "Sec-WebSocket-Version": "13", Upgrade: "websocket" };
    return refuse(426, "This server speaks version 13 of the WebSocket protocol.", supported);
  }
  if (!/^[A-Za-z0-9+/]{22}==$/.test(headers.get("sec-websocket-key") ?? "")) {
    return refuse(400, "Sec-WebSocket-Key must be 16 bytes in base64.");
  }
}

/** The answer to a request that asks for no WebSocket (RFC 9110 section 15.5.22). */
export function askForUpgrade(): Response {
  return refuse(426, "Connect to this server with a WebSocket.", { Upgrade: "websocket" });
}

/**
 * Whether a page may connect. Programs that are no browsers send no Origin, and may. Host is not
 * compared with it, because DNS rebinding can forge both.
 */
export function isKnownOrigin(origin: string | null, origins: string[]): boolean {
  return origin === null || LOOPBACK.test(origin) || origins.includes(origin) ||
    origins.includes("*");
}

/** The first of the server's subprotocols that the client offers (RFC 6455 section 4.2.2). */
export function selectSubprotocol({ headers }: Request, subprotocols: string[]): string {
  const offered = headers.get("sec-websocket-protocol")?.split(",").map((each) => each.trim());
  return [...subprotocols, BEARER].find((each) => offered?.includes(each)) ?? "";
}

/** Whether a request has a body. The runtime shows one for every request, so the method tells. */
export function mayHaveBody({ method }: Request): boolean {
  return !["GET", "HEAD", "OPTIONS"].includes(method);
}

/**
 * Refuses a body of which is known that it is too large, or is not known where it ends: without
 * Content-Length, HTTP/1.1 has Transfer-Encoding or no body (RFC 9112 section 6.3). A body of HTTP/2
 * may come without its length, and is counted while it arrives.
 */
export function refuseBody({ headers }: Request, limit: number): Response | undefined {
  if (headers.get("transfer-encoding") !== null) {
    return refuse(411, "The request needs a Content-Length.");
  }
  const length = headers.get("content-length") ?? "0";
  if (!/^\d+$/.test(length)) return refuse(400, "Content-Length must be one whole number.");
  if (Number(length) > limit) return refuse(413, `Larger than ${limit} bytes.`);
}

/** Whether a browser asks if a page may make a request (https://fetch.spec.whatwg.org). */
export function isPreflight({ method, headers }: Request): boolean {
  return method === "OPTIONS" && headers.get("access-control-request-method") !== null;
}

/** Lets pages of an origin push: their browser asks before it sends a text with a token. */
export function answerPreflight(origin: string | undefined): Response {
  const response = new Response(null, { status: 204 });
  response.headers.set("Access-Control-Allow-Methods", "GET, HEAD, POST");
  response.headers.set("Access-Control-Allow-Headers", "content-type, authorization");
  return makeReadable(response, origin);
}

/** Lets pages of an origin read an answer. */
export function makeReadable(response: Response, origin: string | undefined): Response {
  if (origin === undefined) return response;
  const readable = new Response(response.body, response);
  readable.headers.set("Access-Control-Allow-Origin", origin);
  readable.headers.append("Vary", "Origin");
  return readable;
}

/** The subprotocol with which a page brings a token: it can't set a header. Each server selects it. */
const BEARER = "bearer";

/**
 * A `processRequest` for `serve` that lets in the clients that know the token. Handshakes and pushes
 * need it as `Authorization: Bearer TOKEN`. A page offers the subprotocols `bearer` and the token in
 * base64url instead, behind others that it may speak. A token is never in a URL, because URLs are
 * logged. The page itself needs none.
 *
 * @throws {Error} if `token` can't be sent in a header (RFC 6750 section 2.1).
 */
export function requireToken(token: string): (request: Request) => Response | undefined {
  if (!/^[A-Za-z0-9._~+/-]+=*$/.test(token)) {
    throw new Error("A token has letters, digits and -._~+/ alone, and maybe = at its end.");
  }
  const digest = (text: string) => createHash("sha256").update(text).digest();
  const expected = digest(token);
  return (request) => {
    if (!isHandshake(request) && !mayHaveBody(request)) return;
    // The comparison takes as long for a token that is nearly right.
    if (timingSafeEqual(digest(givenToken(request)), expected)) return;
    const text = "The right token is needed: send Authorization: Bearer TOKEN, not ?token=.";
    return refuse(401, text, { "WWW-Authenticate": "Bearer" });
  };
}

/** The token that a request brings, or "". */
function givenToken({ headers }: Request): string {
  const authorization = headers.get("authorization");
  if (authorization !== null) return authorization.match(/^bearer +(.*)$/i)?.[1] ?? "";
  const offered = headers.get("sec-websocket-protocol") ?? "";
  const [, encoded] = offered.match(/(?:^|,\s*)bearer,\s*([\w-]+)$/) ?? [];
  try {
    const bytes = Uint8Array.fromBase64(encoded ?? "", { alphabet: "base64url" });
    return new TextDecoder().decode(bytes);
  } catch {
    return "";
  }
}
