/// <reference types="./std.d.ts" />
// What the reference says of running the scripts elsewhere: by URL, behind nginx, as a service.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { existsSync } from "node:fs";
import { isHandshake } from "websockets";
import { eventually, freePort, Inbox, startServer, TestClient, within } from "./helpers.ts";
import { CHROMIUM, CHROMIUM_FLAGS, test } from "./needs.ts";
import { echo } from "./peers.ts";
import { assertDescriptors, certify, countDescriptors, Program, Script } from "./programs.ts";
import { handshake, RawClient } from "./raw.ts";
import { blockOf, deno, makeFolder, read, REFERENCE, ROOT } from "./readme.ts";

const NGINX = "/usr/sbin/nginx";
const SYSTEMD_ANALYZE = "/usr/bin/systemd-analyze";

/** Registers a test that needs this program of Debian's; without it, the test is ignored. */
function testWith(
  program: string,
  name: string,
  fn: () => Promise<void>,
  needs: "linux" | "chromium" = "linux",
): void {
  const mayLook = Deno.permissions.querySync({ name: "read" }).state === "granted";
  const isMissing = mayLook && Deno.build.os === "linux" && !existsSync(program);
  if (!isMissing) return test({ needs }, name, fn);
  console.log(`Ignoring "${name}": install ${program}, and \`deno task test\` runs it.`);
  Deno.test.ignore(name, fn);
}

// The first start, and by URL.

test(
  { needs: "run" },
  "a first start, also by URL, fetches the standard library alone",
  async () => {
    await using server = await Script.server("server.ts");
    await using site = serveRepository();
    const [, ...byUrl] = (read(REFERENCE).match(/deno run [^`]*--import-map[^`]*/) ?? [""])[0]
      .replaceAll("https://example.com/websocket", `http://127.0.0.1:${site.addr.port}`).split(" ");
    const run = ["run", "--allow-net"];
    const starts: [string[], RegExp][] = [
      [[...run, "server.ts", "--port", "0"], /^Echo server on /],
      [[...run, "broadcast_server.ts", "--port", "0"], /^Broadcast server on /],
      [[...run, "client.ts", server.url, "--count", "1"], /^Data received as /],
      [[...run, "websockets", "--help"], /^Usage: /],
      [[...byUrl, "--port", "0"], /^Echo server on /],
    ];
    await Promise.all(starts.map(async ([args, firstLine]) => {
      await using cache = await makeFolder();
      const env = { DENO_DIR: cache.path };
      await using program = deno(args, { cwd: ROOT, env });
      try {
        await program.prints(firstLine);
      } catch (error) {
        if (!/error sending request/.test(`${error}`)) throw error;
        return console.log("Ignoring a first start: the npm registry can't be reached.");
      }
      const [registry] = Deno.readDirSync(`${cache.path}/npm`);
      const packages = [...Deno.readDirSync(`${cache.path}/npm/${registry.name}`)];
      assertEquals(packages.map(({ name }) => name), ["deno-std"], args.join(" "));
    }));
  },
);

/** A site with the files of this repository. */
function serveRepository() {
  const options = { hostname: "127.0.0.1", port: 0, onListen: () => {} };
  return Deno.serve(options, ({ url }) => new Response(read(new URL(url).pathname.slice(1))));
}

test({ needs: "run" }, "the scripts run from any working directory", async () => {
  await using folder = await makeFolder();
  const args = ["run", "--allow-net", `${ROOT}server.ts`, "--port", "0"];
  await using server = deno(args, { cwd: folder.path });
  await server.prints(/^Echo server on /);
});

// Behind a proxy.

/** Makes the certificate of nginx in its folder. */
async function certifyNginx(folder: string): Promise<string> {
  return Deno.readTextFileSync((await certify(folder, "DNS:localhost")).cert);
}

/** A server behind nginx, which is started with the reference's configuration, changed by `change`. */
async function startProxied<Started extends AsyncDisposable & { url: string }>(
  start: Started | Promise<Started>,
  change = (site: string) => site,
) {
  await using stack = new AsyncDisposableStack();
  const server = stack.use(await start);
  const folder = stack.use(await makeFolder()).path;
  const cert = await certifyNginx(folder);

  const port = freePort();
  const site = change(blockOf("nginx"))
    .replace("listen 443", `listen 127.0.0.1:${port}`)
    .replaceAll("9998", new URL(server.url).port)
    .replaceAll("/etc/letsencrypt/live/example.com/", "");
  // What Debian's nginx.conf says around a site; all files are in the folder.
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((each) => `${each}_temp_path ${each};`).join(" ");
  await Deno.writeTextFile(
    `${folder}/nginx.conf`,
    `daemon off; worker_processes 1; pid pid; events {} http { access_log access.log; ${temporary}\n${site}}`,
  );
  const nginx = new Program(NGINX, ["-p", folder, "-e", "stderr", "-c", "nginx.conf"]);
  stack.defer(async () => {
    // Unlike SIGKILL, this ends its workers as well.
    nginx.kill();
    await nginx.end();
  });
  await eventually(async () => (await Deno.connect({ port })).close());

  const client = stack.use(Deno.createHttpClient({ caCerts: [cert] }));
  const open = async (headers: Record<string, string> = {}, path = "/") => {
    const url = `wss://localhost:${port}${path}`;
    const opened = new TestClient(new WebSocket(url, { client, headers }));
    const isOpen = new Promise<void>((resolve, reject) => {
      opened.socket.onopen = () => resolve();
      opened.socket.onerror = (event) => reject(new Error((event as ErrorEvent).message));
    });
    await within(isOpen, "a connection through nginx");
    return opened;
  };
  const connect = (trusted = cert) =>
    Deno.connectTls({ hostname: "localhost", port, caCerts: [trusted] });
  const running = stack.move();
  const stop = () => running.disposeAsync();
  return { server, nginx, folder, port, client, open, connect, [Symbol.asyncDispose]: stop };
}

const bytes = (text: string) => new TextEncoder().encode(text);

/** The status of the answer to a request. */
async function statusOf(connection: Deno.Conn, request: string): Promise<string> {
  await connection.write(bytes(request));
  const status = new Uint8Array("HTTP/1.1 101".length);
  await within(connection.read(status), "an answer");
  return new TextDecoder().decode(status).slice(-3);
}

/** What the reference says to write, between these words of it. */
function wordsOf(before: string, after: string): string {
  const [, words] = read(REFERENCE).match(RegExp(`${before} \`([^\`]*)\`,? ${after}`)) ?? [];
  assert(words, `The reference does not say what stands after "${before}".`);
  return words;
}

testWith(NGINX, "behind nginx, pages of its site and pushes come in", async () => {
  const origin = "https://example.com";
  await using proxied = await startProxied(
    Script.server("broadcast_server.ts", "--origin", origin),
  );
  const { client } = proxied;
  const url = `https://localhost:${proxied.port}/`;
  const page = await fetch(url, { client });
  assertMatch(await page.text(), /^<!doctype html>/i);
  await using fromPage = await proxied.open({ Origin: origin });
  await using program = await proxied.open();
  const large = "x".repeat(100_000);
  fromPage.send(large);
  assertEquals([await fromPage.next(), await program.next()], [large, large]);
  const answer = await fetch(url, { method: "POST", body: "pushed", client });
  assertEquals([answer.status, (await answer.json()).clients], [202, 2]);
  assertEquals([await fromPage.next(), await program.next()], ["pushed", "pushed"]);
  using evil = await proxied.connect();
  assertEquals(await statusOf(evil, handshake({ Origin: "https://evil.example" })), "403");
});

testWith(NGINX, "behind nginx, Java's clients can connect and push", async () => {
  await using proxied = await startProxied(Script.server("broadcast_server.ts"));
  const handshakeOfJava = handshake({ "Content-Length": "0" });
  const pushOfJava =
    "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n" +
    "Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n" +
    "Content-Length: 6\r\n\r\npushed";
  await using other = await proxied.open();
  for (const [request, status] of [[handshakeOfJava, "101"], [pushOfJava, "202"]]) {
    using through = await proxied.connect();
    assertEquals(await statusOf(through, request), status);
    // When the runtime takes them, nginx need not leave their headers out any more.
    using direct = await Deno.connect({ port: Number(new URL(proxied.server.url).port) });
    assertEquals(await statusOf(direct, request), "400");
  }
  assertEquals(await other.next(), "pushed");
});

testWith(NGINX, "behind nginx, echo answers text and the largest message", async () => {
  await using proxied = await startProxied(Script.server("server.ts", "--quiet"));
  await using client = await proxied.open();
  client.send("hello");
  assertMatch(String(await client.next()), /^Data received as "hello"\./);
  const largest = new Uint8Array(1024 * 1024).map((_, index) => index * 31 % 251);
  client.send(largest);
  assertEquals(new Uint8Array(await client.next() as ArrayBuffer), largest);
});

testWith(NGINX, "nginx cuts off a handshake that does not end, unseen by the server", async () => {
  await using proxied = await startProxied(
    Script.server("server.ts", "--quiet"),
    (site) => site.replace(/(?<=client_header_timeout )\w+/, "3s"),
  );
  const before = countDescriptors(proxied.server);
  using silent = await Deno.connect({ port: proxied.port });
  using half = await proxied.connect();
  await half.write(bytes(handshake().slice(0, -2)));
  const isOver = (connection: Deno.Conn) => connection.read(new Uint8Array(1)).catch(() => null);
  const ends = await within(Promise.all([isOver(silent), isOver(half)]), "nginx to cut both off");
  assertEquals(ends, [null, null]);
  await assertDescriptors(proxied.server, before);
});

testWith(NGINX, "behind nginx, handshakes that are reset leave no descriptor", async () => {
  await using proxied = await startProxied(Script.server("server.ts", "--quiet"));
  const before = countDescriptors(proxied.server);
  const reset = async () => {
    using client = await proxied.connect();
    await client.write(bytes("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    await within(client.read(new Uint8Array(1)), "the page");
    // What it has not read makes the system reset the connection that it closes.
    await client.write(bytes(handshake()));
  };
  await Promise.all(Array.from({ length: 100 }, reset));
  await assertDescriptors(proxied.server, before);
});

testWith(NGINX, "a restart behind nginx costs a client a pause and no round", async () => {
  const port = `${freePort()}`;
  const start = () => Script.server("server.ts", "--quiet", "--port", port);
  await using proxied = await startProxied(start());
  const trust = ["--allow-net", `--cert=${proxied.folder}/fullchain.pem`];
  const flags = [`wss://localhost:${proxied.port}/`, "--count", "20", "--interval", "0.02"];
  await using client = new Script("client.ts", flags, trust);
  for (let round = 0; round < 3; round++) await client.lines.next();
  proxied.server.kill();
  assertEquals(await proxied.server.end(), 0);
  await using _second = await start();
  assertEquals(await client.end(), 0);
  // A restart that takes longer than a second is told.
  assertEquals(client.errors.all.filter((line) => !line.endsWith(": waiting.")), []);
  assertEquals(client.lines.all.length, 20);
});

testWith(NGINX, "behind nginx, a server does not see the path that it has there", async () => {
  const pathOf = ({ url }: Request) => new URL(url).pathname;
  const server = startServer((websocket, request) => websocket.send(pathOf(request)), {
    processRequest: (request) => isHandshake(request) ? undefined : new Response(pathOf(request)),
  });
  const [location, rewrite] = [wordsOf("write", "and put"), wordsOf("put", "before each")];
  await using proxied = await startProxied(server, (site) => {
    const moved = site.replace("location / {", location);
    return moved.replaceAll("proxy_pass http", `${rewrite} proxy_pass http`);
  });
  await using client = await proxied.open({}, "/chat/red");
  assertEquals(await client.next(), "/red");
  const answer = await fetch(`https://localhost:${proxied.port}/chat/`, proxied);
  assertEquals(await answer.text(), "/");
});

testWith(
  NGINX,
  "behind nginx, pings keep a silent client, and without them it is cut off",
  async () => {
    const change = (site: string) => site.replace(/(?<=proxy_read_timeout )\w+/, "6s");
    await using pinging = await startProxied(startServer(echo(), { idleTimeout: 4 }), change);
    await using silent = await startProxied(startServer(echo(), { idleTimeout: 0 }), change);
    await using kept = await pinging.open();
    await using cut = await silent.open();
    await within(cut.closed, "nginx to cut it off");
    kept.send("still here");
    assertEquals(await kept.next(), "still here");
  },
);

testWith(
  NGINX,
  "when nginx is reloaded, new clients see a renewed certificate, and the others stay",
  async () => {
    await using proxied = await startProxied(startServer(echo()));
    await using client = await proxied.open();
    const renewed = await certifyNginx(proxied.folder);
    // `systemctl reload nginx` sends this.
    proxied.nginx.kill("SIGHUP");
    const refusals: unknown[] = [];
    await eventually(async () => {
      try {
        using connection = await proxied.connect(renewed);
        await connection.handshake();
      } catch (error) {
        // This is what a client says of a certificate that it does not know.
        if (!(error instanceof Deno.errors.InvalidData)) refusals.push(error);
        throw error;
      }
    });
    assertEquals(refusals, []);
    client.send("still here");
    assertEquals(await client.next(), "still here");
  },
);

testWith(NGINX, "two servers that restart one after the other refuse nobody", async () => {
  const ports = [`${freePort()}`, `${freePort()}`];
  const added = wordsOf("Add", "to nginx's `upstream`").replace("9999", ports[1]);
  // A server that waits for a client before it ends refuses all others meanwhile.
  const flags = ["--quiet", "--stop-timeout", "0.5"];
  const start = (port: string) => Script.server("broadcast_server.ts", ...flags, "--port", port);
  await using stack = new AsyncDisposableStack();
  const second = stack.use(await start(ports[1]));
  const proxied = stack.use(
    await startProxied(start(ports[0]), (site) => site.replace(/(?=\n}\nserver)/, `\n${added}`)),
  );
  const answers: Record<string, number> = { "101": 0, "202": 0 };
  let isDone = false;
  const repeat = async (ask: () => Promise<string | number>) => {
    while (!isDone) {
      const status = await ask();
      answers[status] = (answers[status] ?? 0) + 1;
    }
  };
  const push = async () => {
    const request = { method: "POST", body: "pushed", client: proxied.client };
    const answer = await fetch(`https://localhost:${proxied.port}/`, request);
    await answer.body?.cancel();
    return answer.status;
  };
  const shakeHands = async () => {
    using connection = await proxied.connect();
    return await statusOf(connection, handshake());
  };
  const asking = Promise.all([push, push, shakeHands, shakeHands].map(repeat));
  for (const [index, server] of [proxied.server, second].entries()) {
    using _client = await RawClient.upgraded(Number(ports[index]));
    server.kill();
    assertEquals(await server.end(), 0);
    stack.use(await start(ports[index]));
  }
  isDone = true;
  await within(asking, "the last answers");
  assertEquals(Object.keys(answers), ["101", "202"]);
  for (const [status, count] of Object.entries(answers)) assert(count > 0, status);
});

// As a service, and what it tells.

testWith(
  SYSTEMD_ANALYZE,
  "systemd finds no fault in the reference's unit, and waits until its server listens",
  async () => {
    await using folder = await makeFolder();
    const port = `${freePort()}`;
    // It splits a command at each blank that is not escaped.
    const escape = (path: string) => path.replaceAll(" ", "\\x20");
    const unit = blockOf("ini")
      .replaceAll("/usr/local/bin/deno", escape(Deno.execPath()))
      .replaceAll("/srv/websocket/", escape(ROOT));
    await Deno.writeTextFile(`${folder.path}/websocket@.service`, unit);
    const verify = ["verify", `${folder.path}/websocket@${port}.service`];
    const { stderr } = await new Deno.Command(SYSTEMD_ANALYZE, { args: verify }).output();
    const complaints = new TextDecoder().decode(stderr).split("\n");
    assertEquals(complaints.filter((line) => line.includes("websocket@")), []);

    const commandOf = (key: string) => {
      const [, command = ""] = unit.match(RegExp(`^${key}=(.*)$`, "m")) ?? [];
      const words = command.replaceAll("%i", port).split(" ");
      return words.map((word) => word.replaceAll("\\x20", " "));
    };
    const [curl, ...options] = commandOf("ExecStartPost");
    await using waiting = new Program(curl, options);
    await using server = deno(commandOf("ExecStart").slice(1), { cwd: folder.path });
    await server.prints(/^Broadcast server on ws:\/\/127\.0\.0\.1:/);
    assertEquals(await waiting.end(), 0);
  },
);

/** A collector of telemetry. It keeps what it is told, each behind the path that it came to. */
function startCollector() {
  const told = new Inbox<string>();
  const options = { hostname: "127.0.0.1", port: 0, onListen: () => {} };
  const collector = Deno.serve(options, async (request) => {
    told.put(`${new URL(request.url).pathname} ${await request.text()}`);
    return Response.json({});
  });
  const env = {
    OTEL_DENO: "true",
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${collector.addr.port}`,
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    OTEL_BSP_SCHEDULE_DELAY: "50",
    OTEL_BLRP_SCHEDULE_DELAY: "50",
  };
  return {
    told,
    /** Starts a server script on a free port, which tells this collector. */
    async startServer(...args: string[]) {
      const server = deno(["run", "--allow-net", ...args, "--port", "0"], { cwd: ROOT, env });
      const url = (await server.prints(/ws:/)).match(/ws:[^,]+/)?.[0] ?? "";
      return Object.assign(server, { url });
    },
    [Symbol.asyncDispose]: () => collector.shutdown(),
  };
}

test({ needs: "run" }, "OTEL_DENO=true tells a collector of handshakes and lines", async () => {
  await using collector = startCollector();
  await using server = await collector.startServer("server.ts");
  await using _client = await TestClient.open(`${server.url}/chat`);
  const expected = [/^\/v1\/logs.*Echo server on/s, /^\/v1\/traces.*\/chat.*"101"/s];
  const areTold = () =>
    expected.every((each) => collector.told.all.some((text) => each.test(text)));
  await eventually(() => assert(areTold(), `${expected}`));
});

testWith(
  NGINX,
  "a token is in no log, no trace, and not in the access log of nginx, however it is sent",
  async () => {
    const token = "Secret~+/==";
    // Its start looks the same in every encoding of a URL, and this is its start in base64url.
    const assertNoToken = (text: string) => assert(!/Secret|U2VjcmV0/.test(text), text);
    const { chromium } = await import("playwright-core");
    const browser = await chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
    await using stack = new AsyncDisposableStack();
    stack.defer(() => browser.close());
    const folder = stack.use(await makeFolder());
    await Deno.writeTextFile(`${folder.path}/token`, token);
    const collector = stack.use(startCollector());
    const script = ["--allow-read", "broadcast_server.ts", "--token-file", `${folder.path}/token`];
    const proxied = stack.use(await startProxied(collector.startServer(...script)));
    const { server, client } = proxied;
    const url = `https://localhost:${proxied.port}/`;
    const headers = { Authorization: `Bearer ${token}` };

    const page = await browser.newPage({ ignoreHTTPSErrors: true });
    await page.goto(`${url}#token=${token}`);
    await page.click("#connect");
    await page.locator("[data-state=open]").waitFor();
    const program = await proxied.open(headers);
    const push = await fetch(url, { method: "POST", body: "pushed", headers, client });
    await push.body?.cancel();
    // nginx writes the line of a connection when that is closed.
    await Promise.all([program.close(), page.close()]);
    const told = (path: string) =>
      collector.told.all.filter((each) => each.startsWith(path)).join();
    const accessLog = () => Deno.readTextFileSync(`${proxied.folder}/access.log`);
    await eventually(() => {
      const traced = told("/v1/traces").matchAll(/status_code",\s*"value": {\s*"\w+": "(\d+)"/g);
      for (const found of [traced, accessLog().matchAll(/" (\d+) \d+ "/g)]) {
        const statuses = [...found].map(([, status]) => status);
        assertEquals(statuses.toSorted(), ["101", "101", "200", "202"]);
      }
    });
    for (const text of [...collector.told.all, accessLog()]) assertNoToken(text);

    // A client that sends it in a URL shows it to all that is on the way, but is told what to do.
    const request = handshake({}, `GET /?token=${encodeURIComponent(token)} HTTP/1.1`);
    using old = await RawClient.open(Number(new URL(server.url).port), request);
    assertMatch(await old.head(), /^HTTP\/1\.1 401 /);
    assertMatch(new TextDecoder().decode(await old.read()), /send Authorization: Bearer TOKEN/);
    await server.errors.next((line) => line.includes("with 401"), "the refusal");
    await eventually(() => assertMatch(told("/v1/logs"), /with 401/));
    for (const text of [told("/v1/logs"), ...server.lines.all, ...server.errors.all]) {
      assertNoToken(text);
    }
  },
  "chromium",
);
