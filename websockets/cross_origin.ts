// Pages of other origins that make requests, as their browsers ask for it (CORS).

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
