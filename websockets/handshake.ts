// Who may come in: RFC 6455, the origin of a page, the subprotocol, the size of a body.

/** The origins of pages that this machine serves. */
const LOOPBACK_ORIGIN = /^https?:\/\/(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/;

/** Seconds after which a client that was refused for now may try again. */
const RETRY_AFTER = { "Retry-After": "1" };

/** An answer that refuses a request, with a line that says why. With 503, it is for now. */
export function refuse(status: number, text: string, headers: HeadersInit = {}): Response {
  return new Response(`${text}\n`, { status, headers: status === 503 ? RETRY_AFTER : headers });
}

/** How many requests were refused, by what has refused them. */
export class Refusals {
  /** A rule of RFC 6455 is broken, or the request can't be read. */
  handshake = 0;
  /** The page is of an unknown origin. */
  origins = 0;
  /** There are too many clients. */
  maxClients = 0;
  /** Too much waits for the clients. */
  maxWaiting = 0;
  /** `processRequest` refuses, fails or is too late. */
  processRequest = 0;
  /** The body is too large or too slow, or has no valid length. */
  body = 0;
  /** The server is stopping. */
  shutdown = 0;
}

/** Whether a request is meant as a handshake, right or wrong. */
export function isHandshake({ headers }: Request): boolean {
  return isUpgrade(headers) || headers.get("sec-websocket-key") !== null;
}

/**
 * Whether the runtime sees that a WebSocket is asked for. `Upgrade` is a list in RFC 9110, but the
 * runtime ends the process if the list comes in two lines, which can't be told from one.
 */
function isUpgrade(headers: Headers): boolean {
  return headers.get("upgrade")?.toLowerCase() === "websocket" &&
    /(^|,)\s*upgrade\s*(,|$)/i.test(headers.get("connection") ?? "");
}

/** What is wrong with a handshake (RFC 6455 section 4.2.1): the runtime checks little of it. */
export function refuseHandshake({ url, method, headers }: Request): Response | undefined {
  if (!isUpgrade(headers)) return askForUpgrade();
  // Its client would get 101, and wait for ever for what this protocol sends first.
  if (/[?&]EIO=/.test(url)) return refuse(400, "This is a WebSocket server, not Socket.IO's.");
  if (method !== "GET") return refuse(405, "A handshake is a GET request.", { Allow: "GET" });
  if (headers.get("host") === null) return refuse(400, "A handshake needs a Host header.");
  if (headers.get("sec-websocket-version") !== "13") {
    const supported = { "Sec-WebSocket-Version": "13", Upgrade: "websocket" };
    return refuse(426, "This server speaks version 13 of the WebSocket protocol.", supported);
  }
  const isKey = /^[A-Za-z0-9+/]{22}==$/.test(headers.get("sec-websocket-key") ?? "");
  return isKey ? undefined : refuse(400, "Sec-WebSocket-Key must be 16 bytes in base64.");
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
  return origin === null || LOOPBACK_ORIGIN.test(origin) || origins.includes(origin) ||
    origins.includes("*");
}

/** The subprotocol with which a page brings a token: it can't set a header. Each server selects it. */
export const BEARER = "bearer";

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
 * Refuses a body that says that it is too large, or that does not say where it ends: in HTTP/1.1, a
 * body without Content-Length has Transfer-Encoding (RFC 9112 section 6.3). A body of HTTP/2 may come
 * without its length, and is counted while it arrives.
 */
export function refuseBody({ headers }: Request, limit: number): Response | undefined {
  if (headers.get("transfer-encoding") !== null) {
    return refuse(411, "The request needs a Content-Length.");
  }
  const length = headers.get("content-length") ?? "0";
  if (!/^\d+$/.test(length)) return refuse(400, "Content-Length must be one whole number.");
  return Number(length) > limit ? refuse(413, `Larger than ${limit} bytes.`) : undefined;
}
