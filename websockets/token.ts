// The token with which clients are let in.

import { createHash, timingSafeEqual } from "node:crypto";
import { BEARER, isHandshake, mayHaveBody, refuse } from "./handshake.ts";

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
  const [, encoded] = offered.match(new RegExp(`(?:^|,\\s*)${BEARER},\\s*([\\w-]+)$`)) ?? [];
  try {
    const bytes = Uint8Array.fromBase64(encoded ?? "", { alphabet: "base64url" });
    return new TextDecoder().decode(bytes);
  } catch {
    return "";
  }
}
