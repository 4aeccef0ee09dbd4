/// <reference types="./std.d.ts" />
// What `requireToken` takes for the right token. It needs no permission.

import { assertEquals, assertThrows } from "@std/assert";
import { requireToken } from "websockets";

/** The article's handshake, with more headers. */
function handshake(more: Record<string, string> = {}): Request {
  const headers = {
    Host: "localhost",
    Upgrade: "websocket",
    Connection: "Upgrade",
    "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7w==",
    "Sec-WebSocket-Version": "13",
  };
  return new Request("http://localhost/", { headers: { ...headers, ...more } });
}

/** In base64url it has a `-`, which base64 has not. */
const TOKEN = "3q~+7w/Zb.~_-4==";
const BASE64URL = new TextEncoder().encode(TOKEN).toBase64({ alphabet: "base64url" });

/** The status with which a request is refused, if it is. */
function askForToken(request: Request): number | undefined {
  const response = requireToken(TOKEN)(request);
  if (response) assertEquals(response.headers.get("www-authenticate"), "Bearer");
  return response?.status;
}

const LET_IN = undefined;
const REFUSED = 401;
const withToken = (token: string) => handshake({ Authorization: `Bearer ${token}` });
const withOffer = (offer: string) => handshake({ "Sec-WebSocket-Protocol": offer });

Deno.test("the right token opens, in a header or among the subprotocols", () => {
  for (const scheme of ["Bearer", "bearer", "BEARER "]) {
    assertEquals(askForToken(handshake({ Authorization: `${scheme} ${TOKEN}` })), LET_IN);
  }
  const unpadded = BASE64URL.replace(/=+$/, "");
  for (const offer of [`bearer, ${unpadded}`, `bearer,${unpadded}`, `chat, bearer, ${unpadded}`]) {
    assertEquals(askForToken(withOffer(offer)), LET_IN, offer);
  }
});

Deno.test("no token, or another one, is refused", () => {
  assertEquals(askForToken(handshake()), REFUSED);
  for (const token of ["", "x", TOKEN.slice(1), TOKEN.slice(0, -1), `${TOKEN}s`, TOKEN + TOKEN]) {
    assertEquals(askForToken(withToken(token)), REFUSED, token);
    const encoded = new TextEncoder().encode(token).toBase64({ alphabet: "base64url" });
    assertEquals(askForToken(withOffer(`bearer, ${encoded.replace(/=+$/, "")}`)), REFUSED, token);
  }
  assertEquals(askForToken(handshake({ Authorization: `Basic ${btoa(TOKEN)}` })), REFUSED);
  assertEquals(askForToken(handshake({ Authorization: TOKEN })), REFUSED);
  for (const offer of ["bearer", "bearer, ", "bearer, _", BASE64URL, `${BASE64URL}, bearer`]) {
    assertEquals(askForToken(withOffer(offer)), REFUSED, offer);
  }
});

Deno.test("a token in a URL opens nothing, because URLs are logged", () => {
  const url = `http://localhost/?token=${encodeURIComponent(TOKEN)}`;
  assertEquals(askForToken(new Request(url, handshake())), REFUSED);
});

Deno.test("a wrong token in the header is refused, even with the right one in a subprotocol", () => {
  const offer = { "Sec-WebSocket-Protocol": `bearer, ${BASE64URL.replace(/=+$/, "")}` };
  assertEquals(askForToken(handshake({ ...offer, Authorization: "Bearer x" })), REFUSED);
});

Deno.test("the page needs no token, a push does", () => {
  for (const method of ["GET", "HEAD"]) {
    assertEquals(askForToken(new Request("http://localhost/", { method })), LET_IN);
  }
  const push = { method: "POST", body: "hello" };
  assertEquals(askForToken(new Request("http://localhost/", push)), REFUSED);
  const headers = { Authorization: `Bearer ${TOKEN}` };
  assertEquals(askForToken(new Request("http://localhost/", { ...push, headers })), LET_IN);
});

Deno.test("a token that can't be sent in a header is refused at the start", () => {
  for (const token of ["", " ", "two words", "a&b", "=", "a=b", "é", "a\n"]) {
    const error = assertThrows(() => requireToken(token), Error);
    assertEquals(error.message.split(" ", 3).join(" "), "A token has", token);
  }
});
