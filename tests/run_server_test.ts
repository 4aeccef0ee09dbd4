/// <reference types="./std.d.ts" />
// What `runServer` says of a mistake in its flags. It needs no permission, because it never gets as
// far as to listen. What it does with the right ones is tested with server.ts.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseFlags } from "../websockets/script/flags.ts";
import { SERVER_FLAGS, withFlags } from "../websockets/script/server.ts";

/** The options that a server gets from these flags. */
function optionsOf(...args: string[]) {
  const { values } = parseFlags(SERVER_FLAGS, false, args);
  return withFlags({ port: 0 }, undefined, values);
}

/** What a server says of its flags. */
function complaint(...args: string[]): string {
  return assertThrows(() => optionsOf(...args), Error).message;
}

Deno.test("what a script says holds where the flags say nothing", () => {
  const given = { port: 1, hostname: "0.0.0.0", cert: "c", key: "k", maxMessage: 2 ** 24 };
  const limits = { maxClients: 2, maxWaiting: 3, idleTimeout: 4 };
  const said = withFlags({ ...given, ...limits }, undefined, {});
  assertEquals({ ...said, ...given, ...limits }, said);
  const flags = { port: 5, host: "[::1]", "max-message": 6, "idle-timeout": 0 };
  const changed = { port: 5, hostname: "::1", maxMessage: 6, idleTimeout: 0 };
  const told = withFlags({ ...given, ...limits }, undefined, flags);
  assertEquals({ ...told, ...changed }, told);
});

Deno.test("a certificate without its key is refused, and a key without its certificate", () => {
  assertEquals(complaint("--cert", "a.pem"), "--cert and --key need each other.");
  assertEquals(complaint("--key", "a.pem"), "--cert and --key need each other.");
});

Deno.test("an origin that no page can have is refused", () => {
  const origins = ["example.com", "https://example.com/", "https://*.example.com", "wss://x"];
  origins.push("https://EXAMPLE.com", "https://example.com:443", "", "**", "https://", "ws://x");
  origins.push("file:///index.html", "tauri://localhost/", "tauri://*", "tauri:", "://x");
  for (const origin of origins) {
    const line = complaint("--origin", origin);
    assert(line.startsWith("--origin takes ") && line.endsWith(`not "${origin}".`), line);
  }
});

Deno.test("origins that pages and apps have are taken", () => {
  const origins = ["*", "null", "https://example.com", "http://example.com:8080", "http://[::1]"];
  origins.push("file://", "tauri://localhost", "capacitor://localhost", "chrome-extension://abc");
  const flags = origins.flatMap((origin) => ["--origin", origin]);
  assertEquals(optionsOf(...flags).origins, origins);
});

Deno.test("every limit refuses what is no number in its bounds", () => {
  const cases = [["port", "65536"], ["max-message", "0"], ["max-clients", "0"]];
  cases.push(["max-waiting", "1 GiB"]);
  for (const [flag, text] of cases) {
    const start = `--${flag} takes a whole number from `;
    assert(complaint(`--${flag}`, text).startsWith(start), flag);
  }
});
