// What a script says of a connection that failed, after a second look at the server.

import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { createServer } from "node:https";
import { connect, ConnectionFailed } from "websockets";
import { advise } from "../websockets/script/advice.ts";
import { startServer } from "./helpers.ts";
import { test } from "./needs.ts";
import { echo, listenRaw, serveBare } from "./peers.ts";
import { certify, openssl, Program, Script } from "./programs.ts";

/** A certificate for a name, or for a CA, and its key. */
async function makeCertificate(name?: string, isExpired = false) {
  const folder = await Deno.makeTempDir();
  try {
    const { cert, key } = await certify(folder, name);
    if (isExpired) {
      const again = "x509 -in fullchain.pem -signkey privkey.pem -days -1 -out fullchain.pem";
      await openssl(folder, again);
    }
    return { key: Deno.readTextFileSync(key), cert: Deno.readTextFileSync(cert) };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

test({ needs: "run" }, "a certificate that is not taken is told with what to do", async () => {
  const unknown = await makeCertificate("DNS:localhost");
  const ofCa = await makeCertificate();
  for (const [certificate, advice] of [[unknown, "--cert=FILE"], [ofCa, "CA:FALSE"]] as const) {
    await using server = startServer(echo(), certificate);
    const url = `wss://localhost:${server.port}`;
    const error = await assertRejects(() => connect(url), ConnectionFailed);
    assertEquals([error.kind, error.isPassing], ["certificate", false]);
    assertStringIncludes(await advise(error, url), advice);
  }

  // A name is looked at only where the certificate is trusted.
  const other = await makeCertificate("DNS:other");
  await using server = startServer(echo(), other);
  const certFile = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(certFile, other.cert);
    const url = `wss://localhost:${server.port}`;
    await using command = new Script("websockets", [url], ["--allow-net", `--cert=${certFile}`]);
    assertEquals(await command.end(), 1);
    assertMatch(command.errors.all[0], /"localhost".*"other".*subjectAltName=DNS:NAME$/);
  } finally {
    await Deno.remove(certFile);
  }
});

test({ needs: "net" }, "a redirection is told with its address", async () => {
  let location: string | undefined = "/there?token=secret";
  let status = 301;
  await using server = serveBare(() => {
    const headers = location === undefined ? undefined : { location };
    return new Response(null, { status, headers });
  });
  const host = server.url.replace("ws://", "");
  const told = async () => {
    const url = `ws://a:secret@${host}`;
    const error = await assertRejects(() => connect(url), ConnectionFailed);
    const message = await advise(error, url);
    assert(!error.isPassing && !message.includes("secret"), message);
    return message.replace(/.*: /, "");
  };
  for (status of [301, 302, 303, 307, 308]) {
    assertEquals(await told(), `connect to ${server.url}/there?token=…`);
  }
  location = "https://a:secret@b.c/\u00a0";
  assertEquals(await told(), "connect to wss://b.c/%C2%A0");
  location = `/${"x".repeat(60_000)}#token=secret`;
  assertMatch(await told(), /^connect to .*x… \(\d+ more characters\)$/);
  location = undefined;
  assertEquals(await told(), "connect to the address that it redirects to");
});

/** Starts the test command where the environment names this proxy. */
function startBehind(proxy: string, ...args: string[]): Program {
  const proxies = { HTTP_PROXY: proxy, HTTPS_PROXY: proxy, ALL_PROXY: "", NO_PROXY: "" };
  // What this machine has of these, also in small letters, does not count.
  const env = Object.entries(proxies).flatMap((each) => [each, [each[0].toLowerCase(), each[1]]]);
  return new Program(Deno.execPath(), ["run", "--allow-net", "websockets", ...args], {
    cwd: new URL("../", import.meta.url),
    env: Object.fromEntries(env),
  });
}

test({ needs: "run" }, "a proxy of the environment that does not answer is told", async () => {
  await using server = startServer(echo());
  using silent = listenRaw();
  const silentProxy = silent.url.replace("ws:", "http:");
  for (
    const [proxy, advice] of [
      ["http://127.0.0.1:1", "does not answer, go past it with NO_PROXY=localhost"],
      [silentProxy, "--timeout gives the server longer, and NO_PROXY=localhost goes past a proxy"],
    ]
  ) {
    await using command = startBehind(proxy, server.url, "--timeout", "2");
    using _connection = proxy === silentProxy ? await silent.accept() : undefined;
    assertEquals(await command.end(), 1);
    assert(command.errors.all[0].endsWith(advice), command.errors.all[0]);
  }
});

/** A server of Node, which insists on ALPN as nginx does, so that Deno hides why a handshake failed. */
async function serveNode(certificate: { cert: string; key: string }) {
  const requests: string[] = [];
  const server = createServer(certificate, (request, response) => {
    requests.push(`${request.url}`);
    response.statusCode = 403;
    response.end("Members only.\n");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  return {
    url: `wss://localhost:${port}`,
    requests,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

test({ needs: "run" }, "what is wrong with a certificate is told where ALPN hides it", async () => {
  for (
    const [isExpired, told] of [
      [false, /UnknownIssuer\): trust it with: .*--cert=FILE/],
      [true, /(?:E|e)xpired.*\): the server needs a new certificate/],
    ] as const
  ) {
    await using server = await serveNode(await makeCertificate("DNS:localhost", isExpired));
    const error = await assertRejects(() => connect(server.url), ConnectionFailed);
    const message = await advise(error, server.url);
    assert(message.startsWith(`No connection to ${server.url} (invalid peer certificate: `));
    assertMatch(message, told);
    assertEquals(server.requests, []);
  }

  for (
    const [name, told] of [
      ["other", /not valid for name "localhost".*"other".*subjectAltName=DNS:NAME$/],
      ["localhost", /\(Invalid status code: 403\): the answer says "Members only\."; .*--origin$/],
    ] as const
  ) {
    const certificate = await makeCertificate(`DNS:${name}`);
    await using server = await serveNode(certificate);
    const certFile = await Deno.makeTempFile();
    try {
      await Deno.writeTextFile(certFile, certificate.cert);
      const permissions = ["--allow-net", `--cert=${certFile}`];
      await using command = new Script("websockets", [`${server.url}/room`], permissions);
      assertEquals(await command.end(), 1);
      assertMatch(command.errors.all[0], told);
      // Node may see the first handshake as well.
      assertEquals(new Set(server.requests), new Set(name === "other" ? [] : ["/room"]));
    } finally {
      await Deno.remove(certFile);
    }
  }
});

test(
  { needs: "net" },
  "the body of a refusal is told, escaped and cut, unless it is a page",
  async () => {
    let body: () => BodyInit;
    let type = "text/plain";
    const asked: [string | null, string | null][] = [];
    await using server = serveBare(({ headers }) => {
      asked.push([headers.get("x-key"), headers.get("sec-websocket-protocol")]);
      return new Response(body(), { status: 400, headers: { "content-type": type } });
    });
    const options = { headers: { "X-Key": "1" }, subprotocols: ["chat", "other"] };
    const told = async () => {
      const error = await assertRejects(() => connect(server.url, options), ConnectionFailed);
      return (await advise(error, server.url, {}, options)).replace(/.*400\): /, "");
    };
    body = () => "One room, 1 to 100 characters.\n";
    assertEquals(await told(), 'the answer says "One room, 1 to 100 characters."');
    // It is asked once more, as it was at first.
    assertEquals(asked, [["1", "chat, other"], ["1", "chat, other"]]);
    body = () => "a\nb \x1b[2J";
    assertEquals(await told(), 'the answer says "a b \\u{1b}[2J"');
    body = () =>
      ReadableStream.from(function* () {
        while (true) yield new Uint8Array(10_000).fill(0x78);
      }());
    assertEquals(await told(), `the answer says "${"x".repeat(200)}… (800 more characters)"`);
    body = () => "<html>secret</html>";
    type = "text/html";
    assertMatch(await told(), /^no WebSocket is served at this path/);
  },
);

test({ needs: "net" }, "a refusal whose body does not come is told all the same", async () => {
  using server = listenRaw();
  const answer = async (head: string) => {
    const connection = await server.accept();
    await connection.read(new Uint8Array(4_096));
    await connection.write(new TextEncoder().encode(`HTTP/1.1 400 Bad\r\n${head}\r\n\r\n`));
    return connection;
  };
  const failed = assertRejects(() => connect(server.url), ConnectionFailed);
  (await answer("Content-Length: 0")).close();
  const advice = advise(await failed, server.url);
  using _connection = await answer("Content-Length: 9");
  assertMatch(await advice, /400\): no WebSocket is served/);
});

/** A proxy that answers so for each start of a request line, and otherwise with 502. */
function serveProxy(answers: Record<string, string>) {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const served = (async () => {
    for await (const connection of listener) {
      const request = new Uint8Array(4_096);
      const read = await connection.read(request) ?? 0;
      const line = new TextDecoder().decode(request.subarray(0, read)).split("\r\n")[0];
      const known = Object.keys(answers).find((start) => line.startsWith(start));
      const answer = `HTTP/1.1 ${known ? answers[known] : "502 Bad Gateway"}\r\n` +
        "Content-Length: 0\r\nConnection: close\r\n\r\n";
      await connection.write(new TextEncoder().encode(answer));
      connection.close();
    }
  })();
  return {
    url: `http://127.0.0.1:${listener.addr.port}`,
    async [Symbol.asyncDispose]() {
      listener.close();
      await served;
    },
  };
}

test({ needs: "run" }, "what a proxy of the environment refuses is told as its own", async () => {
  const past = "go past it with NO_PROXY=localhost";
  const own = `this is the proxy in the environment, ${past}`;
  const password = /the proxy in the environment wants a password, such as HTTP_PROXY=/;
  for (
    const [url, answers, told] of [
      ["ws://localhost:9", { GET: "403 No" }, RegExp(`403\\): ${own}$`)],
      ["ws://localhost:9", {}, RegExp(`502\\): ${own}$`)],
      ["ws://localhost:9", { GET: "407 No" }, password],
      ["wss://localhost:9", { CONNECT: "403 No" }, RegExp(`tunnel\\): ${own}$`)],
      ["wss://localhost:9", { CONNECT: "407 No" }, password],
      // The server refuses this, and the proxy only hands it on.
      ["ws://localhost:9", { "GET http://localhost:9/": "403 No" }, /403\): .* --origin$/],
    ] as const
  ) {
    await using proxy = serveProxy(answers);
    await using command = startBehind(proxy.url, url);
    assertEquals(await command.end(), 1);
    assertMatch(command.errors.all[0], told);
  }

  await using server = startServer(echo());
  await using command = startBehind("http://nowhere.invalid:3128", server.url);
  assertEquals(await command.end(), 1);
  const unknown = `(dns error): the proxy in the environment is not found, ${past}`;
  assertStringIncludes(command.errors.all[0], unknown);
});
