// Where a server listens: `localhost` is both loopback addresses, because clients use either.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { retry } from "@std/async";
import { serve } from "websockets";
import { eventually, freePort, TestClient } from "./helpers.ts";
import { test } from "./needs.ts";
import { Program } from "./programs.ts";
import { ROOT } from "./readme.ts";

const LOOPBACK = ["127.0.0.1", "::1"];
const RUN = `"${Deno.execPath()}" run`;
const ADDRESS = /^Echo server on ws:\/\/localhost:(\d+)/;

/** Starts a command on a machine whose hosts file gives `localhost` these addresses. */
function startWithHosts(
  addresses: string[],
  command: string,
  { isolation = [] as string[], stdin = "null" as "null" | "piped" } = {},
): Program {
  const lines = addresses.map((address) => `${address} localhost\\n`).join("");
  const script =
    `file=$(mktemp) && printf '${lines}' > "$file" && mount --bind "$file" /etc/hosts &&
    rm "$file" && ${command}`;
  const args = ["--map-root-user", "--mount", ...isolation, "sh", "-c", script];
  const env = { SHELL: "/bin/sh", DENO_NO_PROMPT: "" };
  return new Program("unshare", args, { cwd: ROOT, env, stdin });
}

test(
  { needs: ["unshare", "loopbacks"] },
  "`localhost` is both loopback addresses on one port, whatever the hosts file says",
  async () => {
    const files = [LOOPBACK, LOOPBACK.toReversed(), ...LOOPBACK.map((address) => [address])];
    await Promise.all(files.map(async (addresses) => {
      const command = `exec ${RUN} --allow-net server.ts --port 0`;
      await using server = startWithHosts(addresses, command);
      const [, port] = (await server.prints(ADDRESS)).match(ADDRESS) ?? [];
      for (const host of ["127.0.0.1", "[::1]"]) {
        await using _client = await TestClient.open(`ws://${host}:${port}`);
      }
    }));
  },
);

test(
  { needs: ["unshare", "loopbacks"] },
  "on a machine without IPv6, one address is enough",
  async () => {
    const command = `echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6 && ip link set lo up &&
    exec ${RUN} --allow-net server.ts --port 0`;
    await using server = startWithHosts(LOOPBACK, command, { isolation: ["--net"] });
    await server.prints(ADDRESS);
  },
);

test(
  { needs: ["unshare", "loopbacks"] },
  "a port that needs an administrator is told in one line",
  async () => {
    const user = "setpriv --bounding-set=-net_bind_service --inh-caps=-net_bind_service";
    const command = `ip link set lo up && exec ${user} ${RUN} --allow-net server.ts --port 80`;
    await using server = startWithHosts(LOOPBACK, command, { isolation: ["--net"] });
    assertEquals(await server.end(), 1);
    const line = "Port 80 needs an administrator: choose one over 1023 with --port.";
    assertEquals(server.errors.all, [line]);
  },
);

test({ needs: ["unshare", "loopbacks"] }, "without --allow-net it asks one question", async () => {
  const port = freePort();
  const command = `exec script -qec '${RUN} server.ts --port ${port}' /dev/null`;
  await using server = startWithHosts(LOOPBACK, command, { stdin: "piped" });
  const writer = server.stdin.getWriter();
  await server.prints(/Deno requests net access/);
  // The runtime throws away what is typed before it reads the answer: for ever, without a pause.
  await retry(async () => {
    await writer.write(new TextEncoder().encode("y\n"));
    assert(server.lines.all.some((line) => ADDRESS.test(line)));
  }, { minTimeout: 200, multiplier: 1, maxAttempts: 300 });
  const questions = server.lines.all.filter((line) => line.includes("Deno requests"));
  assertEquals(questions.length, 1, questions.join("\n"));
  await writer.close();
});

test(
  { needs: ["unshare", "loopbacks"] },
  "a port that is taken on one of the two addresses counts as taken, and is left as it is",
  async () => {
    for (const hostname of LOOPBACK) {
      const other = Deno.listen({ hostname, port: 0 });
      const { port } = other.addr;
      assertThrows(() => serve(() => {}, { port }), Deno.errors.AddrInUse);
      other.close();
      // The runtime lets go of the other address a little later.
      await using server = await eventually(() => serve(() => {}, { port }));
      assertEquals(server.addr.port, port);
    }
  },
);

test({ needs: ["unshare", "loopbacks"] }, "a free port is free on both addresses", async () => {
  const bare = Deno.serve;
  const others: Deno.TcpListener[] = [];
  // Somebody takes the port of the first address at the second one.
  const meddled = (options: Deno.ServeTcpOptions, answer: Deno.ServeHandler) => {
    const { hostname, port = 0 } = options;
    if (port !== 0 && others.length === 0) others.push(Deno.listen({ hostname, port }));
    return bare(options, answer);
  };
  Object.assign(Deno, { serve: meddled });
  const server = serve(() => {}, { port: 0 });
  Object.assign(Deno, { serve: bare });
  await server.shutdown();
  for (const other of others) other.close();
  assertEquals(others.map(({ addr }) => addr.port === server.addr.port), [false]);
});
