/// <reference types="./std.d.ts" />
// What `runServer` makes of a script's options and the flags. What it does with them is tested with
// server.ts, too.

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { serve, type ServeOptions } from "websockets";
import { runServer } from "websockets/script.ts";
import { describeFlags, parseFlags } from "../websockets/script/flags.ts";
import { SERVER_FLAGS, withFlags } from "../websockets/script/server.ts";
import { test } from "./needs.ts";
import { openssl, Script } from "./programs.ts";
import { ask, handshake } from "./raw.ts";
import { makeFolder, ROOT } from "./readme.ts";

/** The options that a server gets from these flags, where its script says `given`. */
function optionsFrom(given: ServeOptions, ...args: string[]) {
  const { values } = parseFlags(SERVER_FLAGS, false, args);
  return withFlags({ port: 0, ...given }, undefined, values);
}

const optionsOf = (...args: string[]) => optionsFrom({}, ...args);

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

Deno.test("where a flag says nothing, what its script says holds", () => {
  const given = {
    hostname: "0.0.0.0",
    port: 9_997,
    cert: "certificate",
    key: "private key",
    origins: ["null"],
    maxMessage: 5_000_000,
    maxBody: 4_000_000,
    maxClients: 2,
    maxWaiting: 3,
    idleTimeout: 4,
  };
  const { processRequest, log: _, ...options } = optionsFrom(given);
  assertEquals<unknown>([options, processRequest], [given, []]);

  const flags = ["--host", "[::1]", "--port", "1", "--origin", "*", "--max-message", "6000000"];
  flags.push(
    "--max-body",
    "500",
    "--max-clients",
    "7",
    "--max-waiting",
    "8",
    "--idle-timeout",
    "0.5",
  );
  const { processRequest: __, log: ___, ...changed } = optionsFrom(given, ...flags);
  assertEquals<unknown>(changed, {
    ...given,
    hostname: "::1",
    port: 1,
    origins: ["null", "*"],
    maxMessage: 6_000_000,
    maxBody: 500,
    maxClients: 7,
    maxWaiting: 8,
    idleTimeout: 0.5,
  });
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
  const cases = [["port", "65536"], ["max-message", "0"], ["max-body", "0"], ["max-clients", "0"]];
  cases.push(["max-waiting", "1 GiB"]);
  for (const [flag, text] of cases) {
    const start = `--${flag} takes a whole number from `;
    assert(complaint(`--${flag}`, text).startsWith(start), flag);
  }
});

Deno.test("a script gets its own flags with the types that they describe", () => {
  const flags = { "count COUNT": "rounds", "name NAME...": "names", once: "one message" };
  // It is not called, because its types are all that matters.
  const _run = () =>
    runServer("Server", { flags }, (options, values) => {
      const { count, name, once }: { count?: number; name?: string[]; once?: boolean } = values;
      // @ts-expect-error A count is a number.
      const _text: string | undefined = values.count;
      // @ts-expect-error There is no such flag: those of every server are in the options.
      const _port = values.port;
      return serve(() => [count, name, once], options);
    });
});

/** A script with a flag of its own. */
const SCRIPT = `
  import { serve } from "websockets";
  import { runServer } from "websockets/script.ts";
  const flags = { "greeting TEXT": "what each client is told (Hello)" };
  await runServer("Greeter", { port: 0, flags }, (options, { greeting = "Hello" }) => {
    console.log(greeting);
    return serve((websocket) => websocket.send(greeting), options);
  });
`;

test({ needs: "run" }, "a flag is described once, for `--help` and for its value", async () => {
  await using folder = await makeFolder();
  const file = `${folder.path}/greeter.ts`;
  await Deno.writeTextFile(file, SCRIPT);
  const start = (...args: string[]) =>
    new Script(file, args, ["--allow-net", `--config=${ROOT}deno.json`]);
  const own = { "greeting TEXT": "what each client is told (Hello)" };
  const usage = [
    "Usage: deno run --allow-net greeter.ts [flags]",
    ...describeFlags({ ...own, ...SERVER_FLAGS, help: "print this" }).split("\n"),
  ];
  await using help = start("--help");
  assertEquals([await help.end(), help.lines.all, help.errors.all], [0, usage, []]);
  await using wrong = start("--greetings", "Hi");
  assertEquals([await wrong.end(), wrong.lines.all], [2, []]);
  assertMatch(wrong.errors.all[0], /--greetings/);
  assertEquals(wrong.errors.all.slice(1), usage);
  await using greeter = start("--greeting", "Hi");
  assertEquals(await greeter.lines.next(), "Hi");
  assertMatch(await greeter.lines.next(), /^Greeter on ws:\/\/localhost:\d+$/);
});

test(
  { needs: "run" },
  "`--token-file` asks for a token in every server, also with a page",
  async () => {
    await using folder = await makeFolder();
    const file = `${folder.path}/token`;
    await Deno.writeTextFile(file, "secret\n");
    const permissions = ["--allow-net", `--allow-read=${file}`];
    await using server = new Script(
      "server.ts",
      ["--port", "0", "--token-file", file],
      permissions,
    );
    const port = Number((await server.prints(/ws:/)).match(/localhost:(\d+)/)?.[1]);
    const right = { Authorization: "Bearer secret" };
    assertEquals((await ask(port, handshake())).status, 401);
    assertEquals((await ask(port, handshake(right))).status, 101);
    assertEquals((await ask(port, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")).status, 200);
  },
);

test(
  { needs: "run" },
  "a certificate or key that can't be used is told in one line that says what to do",
  async () => {
    await using folder = await makeFolder();
    const { path } = folder;
    const commands = [
      "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem",
      "genpkey -algorithm ed25519 -out other.pem",
      "pkey -in key.pem -aes256 -passout pass:secret -out encrypted.pem",
      "pkey -in key.pem -aes256 -passout pass:secret -traditional -out old.pem",
      "pkey -in key.pem -traditional -out traditional.pem",
      "pkey -in key.pem -outform der -out key.der",
      "x509 -in cert.pem -outform der -out cert.der",
    ];
    for (const command of commands) await openssl(path, command);
    const complaintOf = async (cert: string, key: string) => {
      const flags = ["--port", "0", "--cert", `${path}/${cert}`, "--key", `${path}/${key}`];
      await using script = new Script("server.ts", flags, ["--allow-net", "--allow-read"]);
      return await script.prints(/^Echo server on wss:/).then(
        () => "started",
        ({ message }) => message,
      );
    };
    const convert = (file: string, command: string) =>
      `in PEM in ${path}/${file}: if it is in DER, convert it with openssl ${command} -in ${path}/${file} -out FILE.`;
    const encrypted = (file: string) =>
      `The private key in ${path}/${file} is encrypted: decrypt it with openssl pkey -in ${path}/${file} -out FILE.`;
    const other =
      "The private key is not that of the first certificate in --cert: give --key its own.";
    const cases: [cert: string, key: string, complaint: string][] = [
      ["cert.pem", "key.pem", "started"],
      ["cert.pem", "traditional.pem", "started"],
      ["cert.pem", "encrypted.pem", encrypted("encrypted.pem")],
      ["cert.pem", "old.pem", encrypted("old.pem")],
      ["cert.pem", "other.pem", other],
      ["cert.der", "key.pem", `There is no certificate ${convert("cert.der", "x509")}`],
      ["cert.pem", "key.der", `There is no private key ${convert("key.der", "pkey")}`],
      ["key.pem", "key.pem", `There is no certificate ${convert("key.pem", "x509")}`],
      ["cert.pem", "cert.pem", `There is no private key ${convert("cert.pem", "pkey")}`],
    ];
    await Promise.all(cases.map(async ([cert, key, complaint]) => {
      assertEquals(await complaintOf(cert, key), complaint);
    }));
  },
);

test(
  { needs: "run" },
  "a token or certificate that can't be read is told in one line, and nothing is served",
  async () => {
    await using folder = await makeFolder();
    const [empty, blank, none] = ["empty", "blank", "none"].map((name) => `${folder.path}/${name}`);
    await Deno.writeTextFile(empty, "");
    await Deno.writeTextFile(blank, " \n\n");
    const token = (file: string) => ["--token-file", file];
    const certificate = (file: string) => ["--cert", file, "--key", file];
    const both = ["--allow-net", "--allow-read"];
    const cases: [flags: string[], line: RegExp, permissions?: string[]][] = [
      [token(empty), /^There is no token in .*empty: /],
      [token(blank), /^There is no token in .*blank: /],
      [token("LICENSE"), /^A token has/],
      [token(""), /^Empty path /],
      [token(none), /^No such file .*none/],
      [token(folder.path), /directory/],
      [token(empty), /flag: deno run --allow-net --allow-read server\.ts$/, ["--allow-net"]],
      [
        certificate(empty),
        /^There is no certificate in PEM in .*empty: .*openssl x509 -in .*empty/,
      ],
      [certificate(""), /^Empty path /],
      [certificate(none), /^No such file .*none/],
      [certificate("LICENSE"), /^There is no certificate in PEM in LICENSE: /],
      [certificate(empty), /flag: deno run --allow-net --allow-read server\.ts$/, ["--allow-net"]],
    ];
    await Promise.all(cases.map(async ([flags, line, permissions = both]) => {
      await using script = new Script("server.ts", ["--port", "0", ...flags], permissions);
      assertEquals(await script.end(), 1, `${flags}`);
      assertEquals([script.lines.all.length, script.errors.all.length], [0, 1], `${flags}`);
      assertMatch(script.errors.all[0], line);
    }));
  },
);
