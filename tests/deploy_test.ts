/// <reference types="./std.d.ts" />
// What the README says of running the scripts elsewhere: copied, by URL, behind a proxy, as a service.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { retry } from "@std/async";
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { handshake, Inbox, Program, Script, test, TestClient, within } from "./helpers.ts";

const ROOT = fileURLToPath(new URL("../", import.meta.url));
const NGINX = "/usr/sbin/nginx";
const SYSTEMD_ANALYZE = "/usr/bin/systemd-analyze";
/** For what happens soon, without an event that tells of it. */
const SOON = { minTimeout: 20, maxTimeout: 200, maxAttempts: 50 };

/** Registers a test that needs this program of Debian's; without it, the test is ignored. */
function testWith(program: string, name: string, fn: () => Promise<void>): void {
  const mayLook = Deno.permissions.querySync({ name: "read" }).state === "granted";
  const isMissing = mayLook && Deno.build.os === "linux" && !existsSync(program);
  if (!isMissing) return test({ needs: "linux" }, name, fn);
  console.log(`Ignoring "${name}": install ${program}, and \`deno task test\` runs it.`);
  Deno.test.ignore(name, fn);
}

/** What the README has in a fence of this language: the first block that matches. */
async function printed(language: string, wanted = /./): Promise<string> {
  const readme = await Deno.readTextFile(`${ROOT}README.md`);
  const blocks = [...readme.matchAll(/^```(\w+)\n([^]*?)^```$/gm)];
  const block = blocks.find(([, tag, text]) => tag === language && wanted.test(text));
  assert(block, `The README has no block of ${language} with ${wanted}.`);
  return block[2];
}

/** A folder that is removed again. All users may enter it, as nginx gives up being root. */
async function makeFolder() {
  const path = await Deno.makeTempDir();
  if (Deno.build.os !== "windows") await Deno.chmod(path, 0o755);
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** A Deno of its own, such as one with an empty cache. */
function deno(args: string[], options?: Deno.CommandOptions): Program {
  return new Program(Deno.execPath(), [args[0], "--no-prompt", ...args.slice(1)], options);
}

// The first start, copied, and by URL.

test({ needs: "run" }, "a first start fetches the standard library alone", async () => {
  await using server = await Script.server("server.ts");
  const starts: [string[], RegExp][] = [
    [["server.ts", "--port", "0"], /^Echo server on /],
    [["broadcast_server.ts", "--port", "0"], /^Broadcast server on /],
    [["client.ts", server.url, "--count", "1"], /^Data received as /],
  ];
  await Promise.all(starts.map(async ([script, firstLine]) => {
    await using cache = await makeFolder();
    const env = { DENO_DIR: cache.path, NO_COLOR: "1" };
    await using program = deno(["run", "--allow-net", ...script], { cwd: ROOT, env });
    try {
      await program.prints(firstLine);
    } catch (error) {
      if (!/error sending request/.test(`${error}`)) throw error;
      return console.log("Ignoring a first start: the npm registry can't be reached.");
    }
    const [registry] = Deno.readDirSync(`${cache.path}/npm`);
    const packages = [...Deno.readDirSync(`${cache.path}/npm/${registry.name}`)];
    assertEquals(packages.map(({ name }) => name), ["deno-std"], script[0]);
  }));
});

test({ needs: "run" }, "the scripts run from any working directory", async () => {
  await using folder = await makeFolder();
  const args = ["run", "--allow-net", `${ROOT}server.ts`, "--port", "0"];
  await using server = deno(args, { cwd: folder.path });
  await server.prints(/^Echo server on /);
});

test({ needs: "run" }, "the README's command runs a script by its URL", async () => {
  const folder = new URL("../", import.meta.url);
  const options = { hostname: "127.0.0.1", port: 0, onListen: () => {} };
  await using site = Deno.serve(options, async ({ url }) => {
    return new Response(await Deno.readTextFile(new URL(`.${new URL(url).pathname}`, folder)));
  });
  // A cache of its own, which has this machine's packages, keeps modules of this site out of others.
  await using cache = await makeFolder();
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["info", "--json"] }).output();
  const { npmCache } = JSON.parse(new TextDecoder().decode(stdout));
  await Deno.symlink(npmCache, `${cache.path}/npm`, { type: "junction" });

  const readme = await Deno.readTextFile(`${ROOT}README.md`);
  const [command = ""] = readme.match(/deno run [^`]*--import-map[^`]*/) ?? [];
  const here = command.replaceAll(
    "https://example.com/websocket",
    `http://127.0.0.1:${site.addr.port}`,
  );
  const args = [...here.split(" ").slice(1), "--port", "0"];
  await using server = deno(args, {
    cwd: cache.path,
    env: { DENO_DIR: cache.path, NO_COLOR: "1" },
  });
  await server.prints(/^Echo server on /);
});

test({ needs: "linux" }, "the README's commands make a server of one's own", async () => {
  await using folder = await makeFolder();
  const clone = `${folder.path}/clone`;
  await Deno.mkdir(clone);
  for await (const { name, isFile } of Deno.readDir(ROOT)) {
    if (isFile) await Deno.copyFile(ROOT + name, `${clone}/${name}`);
  }
  const port = freePort();
  const script = (await printed("ts", /^import { serve }/)).replace("8000", `${port}`);
  await Deno.writeTextFile(`${clone}/my_server.ts`, script);
  // With `exec` there is no shell left to stop.
  const commands = (await printed("sh", /^cp /m)).replace("deno run", "exec deno run");
  const env = { PATH: `${dirname(Deno.execPath())}:${Deno.env.get("PATH")}`, NO_COLOR: "1" };
  await using _shell = new Program("sh", ["-ec", commands], { cwd: clone, env });

  await using client = await retry(() => TestClient.open(`ws://localhost:${port}`), SOON);
  assertEquals(await client.next(), "Welcome.");
  const page = await fetch(`http://localhost:${port}/`);
  assertMatch(await page.text(), /^<!doctype html>/i);
});

// Behind a proxy.

/** A script behind nginx, which is started with the README's configuration. */
async function startProxied([script, ...flags]: string[], headerTimeout = "$1") {
  await using stack = new AsyncDisposableStack();
  const server = stack.use(await Script.server(script, ...flags));
  const folder = stack.use(await makeFolder()).path;
  const openssl = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 " +
    "-subj /CN=localhost -addext subjectAltName=DNS:localhost " +
    `-addext basicConstraints=critical,CA:FALSE -keyout ${folder}/key.pem -out ${folder}/cert.pem`;
  assert((await new Deno.Command("openssl", { args: openssl.split(" ") }).output()).success);
  const cert = await Deno.readTextFile(`${folder}/cert.pem`);

  const port = freePort();
  const site = (await printed("nginx"))
    .replace("listen 443", `listen 127.0.0.1:${port}`)
    .replace("9998", new URL(server.url).port)
    .replaceAll("/etc/ssl/example.com", folder)
    .replace(/(?<=client_header_timeout )(\w+)/, headerTimeout);
  // What Debian's nginx.conf says around a site; temporary files stay in the folder.
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((each) => `${each}_temp_path ${folder}/${each};`).join(" ");
  await Deno.writeTextFile(
    `${folder}/nginx.conf`,
    `daemon off; master_process off; pid ${folder}/pid; events {} http { access_log off; ${temporary}\n${site}}`,
  );
  stack.use(new Program(NGINX, ["-e", "stderr", "-c", `${folder}/nginx.conf`]));
  await retry(async () => (await Deno.connect({ port })).close(), SOON);

  const client = stack.use(Deno.createHttpClient({ caCerts: [cert] }));
  const open = async (headers: Record<string, string> = {}) => {
    const opened = new TestClient(new WebSocket(`wss://localhost:${port}/`, { client, headers }));
    const isOpen = new Promise<void>((resolve, reject) => {
      opened.socket.onopen = () => resolve();
      opened.socket.onerror = (event) => reject(new Error((event as ErrorEvent).message));
    });
    await within(isOpen, "a connection through nginx");
    return opened;
  };
  const connect = () => Deno.connectTls({ hostname: "localhost", port, caCerts: [cert] });
  const running = stack.move();
  const stop = () => running.disposeAsync();
  return { server, folder, port, client, open, connect, [Symbol.asyncDispose]: stop };
}

const bytes = (text: string) => new TextEncoder().encode(text);
const countDescriptors = ({ pid }: Script) => [...Deno.readDirSync(`/proc/${pid}/fd`)].length;

testWith(NGINX, "behind nginx, pages of its site and pushes come in", async () => {
  const origin = "https://example.com";
  await using proxied = await startProxied(["broadcast_server.ts", "--origin", origin]);
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
  assertEquals([answer.status, await answer.json()], [202, { clients: 2 }]);
  assertEquals([await fromPage.next(), await program.next()], ["pushed", "pushed"]);
  using evil = await proxied.connect();
  await evil.write(bytes(handshake({ Origin: "https://evil.example" })));
  const status = new Uint8Array("HTTP/1.1 403".length);
  await within(evil.read(status), "the refusal");
  assertEquals(status, bytes("HTTP/1.1 403"));
});

testWith(NGINX, "behind nginx, echo answers text and the largest message", async () => {
  await using proxied = await startProxied(["server.ts", "--quiet"]);
  await using client = await proxied.open();
  client.send("hello");
  assertMatch(String(await client.next()), /^Data received as "hello"\./);
  const largest = new Uint8Array(1024 * 1024).map((_, index) => index * 31 % 251);
  client.send(largest);
  assertEquals(new Uint8Array(await client.next() as ArrayBuffer), largest);
});

testWith(NGINX, "nginx cuts off a handshake that does not end, unseen by the server", async () => {
  await using proxied = await startProxied(["server.ts", "--quiet"], "500ms");
  const before = countDescriptors(proxied.server);
  using silent = await Deno.connect({ port: proxied.port });
  using half = await proxied.connect();
  await half.write(bytes(handshake().slice(0, -2)));
  const isOver = (connection: Deno.Conn) => connection.read(new Uint8Array(1)).catch(() => null);
  const ends = await within(Promise.all([isOver(silent), isOver(half)]), "nginx to cut both off");
  assertEquals([ends, countDescriptors(proxied.server)], [[null, null], before]);
});

testWith(NGINX, "behind nginx, handshakes that are reset leave no descriptor", async () => {
  await using proxied = await startProxied(["server.ts", "--quiet"]);
  const before = countDescriptors(proxied.server);
  const reset = async () => {
    using client = await proxied.connect();
    await client.write(bytes("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    await within(client.read(new Uint8Array(1)), "the page");
    // What it has not read makes the system reset the connection that it closes.
    await client.write(bytes(handshake()));
  };
  await Promise.all(Array.from({ length: 100 }, reset));
  await retry(() => assertEquals(countDescriptors(proxied.server), before), SOON);
});

testWith(NGINX, "a restart behind nginx costs a client a pause and no round", async () => {
  await using proxied = await startProxied(["server.ts", "--quiet"]);
  const trust = ["--allow-net", `--cert=${proxied.folder}/cert.pem`];
  const flags = [`wss://localhost:${proxied.port}/`, "--count", "20", "--interval", "0.02"];
  await using client = new Script("client.ts", flags, trust);
  for (let round = 0; round < 3; round++) await client.lines.next();
  proxied.server.kill();
  assertEquals(await proxied.server.end(), 0);
  const { port } = new URL(proxied.server.url);
  await using _second = await Script.server("server.ts", "--quiet", "--port", port);
  assertEquals([await client.end(), client.errors.all], [0, []]);
  assertEquals(client.lines.all.length, 20);
});

// As a service, and what it tells.

testWith(
  SYSTEMD_ANALYZE,
  "systemd finds no fault in the README's unit, and it starts",
  async () => {
    await using folder = await makeFolder();
    const unit = (await printed("ini"))
      .replaceAll("/usr/local/bin/deno", Deno.execPath())
      .replaceAll("/srv/websocket/", ROOT);
    await Deno.writeTextFile(`${folder.path}/websocket.service`, unit);
    const args = ["verify", `${folder.path}/websocket.service`];
    const { stderr } = await new Deno.Command(SYSTEMD_ANALYZE, { args }).output();
    const complaints = new TextDecoder().decode(stderr).split("\n");
    assertEquals(complaints.filter((line) => line.includes("websocket.service")), []);

    const [, command] = unit.match(/^ExecStart=\S+ (.*)$/m) ?? [];
    await using server = deno([...command.split(" "), "--port", "0"], { cwd: folder.path });
    await server.prints(/^Broadcast server on ws:\/\/127\.0\.0\.1:/);
  },
);

test({ needs: "run" }, "OTEL_DENO=true tells a collector of handshakes and lines", async () => {
  const told = new Inbox<string>();
  const options = { hostname: "127.0.0.1", port: 0, onListen: () => {} };
  await using collector = Deno.serve(options, async (request) => {
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
  await using server = deno(["run", "--allow-net", "server.ts", "--port", "0"], { cwd: ROOT, env });
  const [url] = (await server.prints(/^Echo server on /)).match(/ws:[^,]+/) ?? [];
  await using _client = await TestClient.open(`${url}/chat`);
  const expected = [/^\/v1\/logs.*Echo server on/s, /^\/v1\/traces.*\/chat.*"101"/s];
  const areTold = () => expected.every((each) => told.all.some((text) => each.test(text)));
  await told.next(areTold, `${expected}`);
});
