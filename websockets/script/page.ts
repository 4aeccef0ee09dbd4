// The page of a script, which `GET /` is answered with.

import { isHandshake } from "../handshake.ts";
import type { ProcessRequest } from "../options.ts";

/** What a page says itself of what it may do: that is repeated in a header. */
const PAGE_POLICY = /<meta\s+http-equiv="Content-Security-Policy"\s+content="([^"]*)"/;

/** A page in HTML, or a function that gives it for each request. */
export type ServedPage = string | (() => string);

/** A `processRequest` that answers `GET /` with a page. */
export function servePage(page: ServedPage): ProcessRequest {
  const give = typeof page === "string" ? () => page : page;
  const [, policy] = give().match(PAGE_POLICY) ?? [];
  // A page that another site frames could be made to connect by a click there, and a page can't
  // forbid that by itself.
  const headers = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": ["frame-ancestors 'none'", policy].filter(Boolean).join("; "),
  };
  return (request) => {
    const mayBePage = ["GET", "HEAD"].includes(request.method) && !isHandshake(request);
    const isPage = mayBePage && new URL(request.url).pathname === "/";
    return isPage ? new Response(give(), { headers }) : undefined;
  };
}
