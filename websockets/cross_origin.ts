// Pages of other origins that make requests, as their browsers ask for it (CORS).

import { isKnownOrigin } from "./handshake.ts";

/**
 * Answers an OPTIONS: a browser asks before a page pushes a text with a token
 * (https://fetch.spec.whatwg.org), and a proxy asks whether the server is there.
 */
export function answerOptions(): Response {
  const headers = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "content-type, authorization",
  };
  return new Response(null, { status: 204, headers });
}

/** Lets a page read an answer, if it is let in. */
export function makeReadable(
  response: Response,
  { headers }: Request,
  origins: string[],
): Response {
  const origin = headers.get("origin");
  if (origin === null || !isKnownOrigin(origin, origins)) return response;
  const readable = new Response(response.body, response);
  readable.headers.set("Access-Control-Allow-Origin", origin);
  readable.headers.append("Vary", "Origin");
  return readable;
}
