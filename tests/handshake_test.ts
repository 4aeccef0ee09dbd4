/// <reference types="./std.d.ts" />
// Who may come in, as pure functions of a request. It needs no permission.

import { assertEquals, assertThrows } from "@std/assert";
import { requireToken } from "websockets";
import { isKnownOrigin, refuseBody, refuseHandshake } from "../websockets/handshake.ts";
import { selectSubprotocol } from "../websockets/handshake.ts";

/** The article's handshake, changed; `null` leaves a header out. */
function handshake(changes: Record<string, string | null> = {}, init: RequestInit = {}): Request {
  const headers = new Headers({
    Host: "localhost",
    Upgrade: "websocket",
    Connection: "Upgrade",
    "Sec-WebSocket-Key": "wDqumtseNBJdhkihL6PW7w==",
    "Sec-WebSocket-Version": "13",
  });
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) headers.delete(name);
    else headers.set(name, value);
  }
  return new Request("http://localhost/", { headers, ...init });
}

const statusFor = (changes: Record<string, string | null>) =>
  refuseHandshake(handshake(changes))?.status;

// RFC 6455.

Deno.test("the article's handshake is let in", () => {
  assertEquals(refuseHandshake(handshake()), undefined);
});

Deno.test("the words of a handshake may be in capitals, and Connection may be a list", () => {
  for (const Upgrade of ["websocket", "WebSocket", "WEBSOCKET"]) {
    for (const Connection of ["upgrade", "UPGRADE", "keep-alive, Upgrade", "upgrade,x"]) {
      assertEquals(statusFor({ Upgrade, Connection }), undefined, `${Upgrade}, ${Connection}`);
    }
  }
});

Deno.test("a request that does not ask for a WebSocket, and for that alone, is told to upgrade", () => {
  const lists = ["h2c, websocket", "websocket,h2c", "websocket, websocket"];
  for (const Upgrade of [null, "", "h2c", "websockets", "web socket", ...lists]) {
    assertEquals(statusFor({ Upgrade }), 426, `${Upgrade}`);
  }
  for (const Connection of [null, "close", "keep-alive"]) {
    assertEquals(statusFor({ Connection }), 426, `${Connection}`);
  }
  assertEquals(refuseHandshake(handshake({ Upgrade: null }))?.headers.get("upgrade"), "websocket");
});

Deno.test("a handshake that is no GET is told so", () => {
  for (const method of ["POST", "HEAD", "OPTIONS"]) {
    const response = refuseHandshake(handshake({}, { method }));
    assertEquals([response?.status, response?.headers.get("allow")], [405, "GET"]);
  }
});

Deno.test("another version of the protocol is told which one is spoken", () => {
  for (const version of [null, "8", "12", "013", "13, 8", "x"]) {
    const response = refuseHandshake(handshake({ "Sec-WebSocket-Version": version }));
    const headers = ["sec-websocket-version", "upgrade"].map((name) => response?.headers.get(name));
    assertEquals([response?.status, ...headers], [426, "13", "websocket"]);
  }
});

Deno.test("the key of a handshake is 16 bytes in base64", () => {
  const whole = "wDqumtseNBJdhkihL6PW7w==";
  for (const key of [null, "", "abc", whole.slice(0, -2), `${whole}=`, whole.replace("w", "!")]) {
    assertEquals(statusFor({ "Sec-WebSocket-Key": key }), 400, `${key}`);
  }
});

Deno.test("a handshake says which host it wants", async () => {
  const response = refuseHandshake(handshake({ Host: null }));
  assertEquals(response?.status, 400);
  assertEquals(await response?.text(), "A handshake needs a Host header.\n");
});

// Origins.

Deno.test("programs and pages of this machine come in, other pages if they are known", () => {
  const local = [
    "http://localhost",
    "https://localhost:1",
    "http://127.0.0.1:8000",
    "http://[::1]",
  ];
  for (const origin of [null, ...local]) assertEquals(isKnownOrigin(origin, []), true, `${origin}`);
  const foreign = ["", "null", "https://example.com", "http://localhost.test", "file://localhost"];
  for (const origin of foreign) {
    assertEquals(isKnownOrigin(origin, []), false, origin);
    assertEquals(isKnownOrigin(origin, ["https://example.org"]), false, origin);
    assertEquals(isKnownOrigin(origin, ["https://example.org", origin]), true, origin);
    assertEquals(isKnownOrigin(origin, ["*"]), true, origin);
  }
});

// Subprotocols.

Deno.test("the first subprotocol of the server that is offered is selected", () => {
  const cases: [offered: string | null, spoken: string[], selected: string][] = [
    ["chat", ["chat"], "chat"],
    ["a, b", ["b", "a"], "b"],
    ["a,b", ["b", "a"], "b"],
    [" a ,\tb ", ["b"], "b"],
    ["a, c", ["b", "c"], "c"],
    ["a", ["b"], ""],
    ["A", ["a"], ""],
    ["ab", ["a", "b"], ""],
    ["a", [], ""],
    [null, ["a"], ""],
  ];
  for (const [offered, spoken, selected] of cases) {
    const request = handshake({ "Sec-WebSocket-Protocol": offered });
    assertEquals(selectSubprotocol(request, spoken), selected, `${offered}; ${spoken}`);
  }
});

// Bodies.

Deno.test("a body tells its length, and is within the limit", async () => {
  const cases: [headers: Record<string, string>, refused: [number, string] | undefined][] = [
    [{}, undefined],
    [{ "Content-Length": "0" }, undefined],
    [{ "Content-Length": "10" }, undefined],
    [{ "Content-Length": "11" }, [413, "Larger than 10 bytes.\n"]],
    [{ "Transfer-Encoding": "chunked" }, [411, "The request needs a Content-Length.\n"]],
  ];
  for (const [headers, refused] of cases) {
    const request = new Request("http://localhost/", { method: "POST", headers });
    const response = refuseBody(request, 10);
    assertEquals(response && [response.status, await response.text()], refused);
  }
});

// Tokens.

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
