// What the broadcast server promises where a NATS server, here a real one, joins its instances.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { retry } from "@std/async";
import { Inbox, NATS_SERVER, RawClient, Script, test, TestClient, within } from "./helpers.ts";

/** For tests that need much to be on its way. */
const LARGE = new Uint8Array(64 * 1024);
const LOST = "NATS is lost: local clients go on, reconnecting.";

/** Registers a test that gets a NATS server of its own. */
function natsTest(name: string, fn: (broker: Broker) => Promise<void>): void {
  test({ needs: "nats" }, name, async () => {
    await using broker = new Broker();
    await broker.start();
    await fn(broker);
  });
}

/** A nats-server, which can be stopped and started again at the same address. */
class Broker implements AsyncDisposable {
  readonly port: number;
  readonly url: string;
  #process?: Deno.ChildProcess;

  constructor() {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    this.port = listener.addr.port;
    this.url = `nats://127.0.0.1:${this.port}`;
  }

  async start(...flags: string[]): Promise<void> {
    const args = ["--addr", "127.0.0.1", "--port", `${this.port}`, ...flags];
    const output = { stdout: "null", stderr: "null" } as const;
    this.#process = new Deno.Command(NATS_SERVER ?? "", { args, ...output }).spawn();
    const connect = async () => (await RawClient.open(this.port))[Symbol.dispose]();
    await retry(connect, { minTimeout: 10, maxAttempts: 10 });
  }

  signal(signal: Deno.Signal): void {
    this.#process?.kill(signal);
  }

  async stop(): Promise<void> {
    this.signal("SIGKILL");
    await this.#process?.status;
    this.#process = undefined;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }
}

/** An instance of the broadcast server, with two clients that it knows of. */
async function startInstance(broker: Broker, ...flags: string[]) {
  const script = await Script.server("broadcast_server.ts", "--nats", broker.url, ...flags);
  const clients = [await TestClient.open(script.url), await TestClient.open(script.url)];
  await heard(script.lines, "A client joined, 2 connected.");
  const stop = async () => {
    await Promise.all(clients.map((client) => client.close()));
    await script[Symbol.asyncDispose]();
  };
  return { script, clients, [Symbol.asyncDispose]: stop };
}

function heard(lines: Inbox<string>, line: string): Promise<string> {
  return lines.next((each) => each === line, `"${line}"`);
}

/** Waits until a client has got a message, and gives all up to then. */
async function upTo(last: string, { messages }: TestClient): Promise<(string | ArrayBuffer)[]> {
  await messages.next((message) => message === last, `"${last}"`);
  return messages.all;
}

natsTest("three instances are one room: all hear all, once and in order", async (broker) => {
  await using first = await startInstance(broker);
  await using second = await startInstance(broker);
  await using third = await startInstance(broker);
  const clients = [first, second, third].flatMap((instance) => instance.clients);
  const sayAll = (number: number) => {
    for (const [sender, client] of clients.entries()) {
      client.send(`${sender},${number}`);
      client.send(new Uint8Array([sender, number]));
    }
  };
  for (let number = 0; number < 100; number++) sayAll(number);
  for (const { messages } of clients) while (messages.all.length < 6 * 200) await messages.next();

  // A second copy of any of these would come before what its instance relays now.
  sayAll(100);
  const pair = (sender: number, number: number) => [
    `text ${sender},${number}`,
    `binary ${sender},${number}`,
  ];
  for (const { messages } of clients) {
    while (messages.all.length < 6 * 202) await messages.next();
    const all = messages.all.map((message) =>
      typeof message === "string" ? `text ${message}` : `binary ${new Uint8Array(message)}`
    );
    for (const sender of clients.keys()) {
      const said = Array.from({ length: 101 }, (_, number) => pair(sender, number)).flat();
      assertEquals(all.filter((each) => each.includes(` ${sender},`)), said);
    }
  }
});

natsTest("other rooms hear nothing, and any program that speaks NATS can join", async (broker) => {
  await using red = await startInstance(broker, "--subject", "red.room");
  await using blue = await startInstance(broker);
  using other = await RawClient.open(broker.port, "CONNECT {}\r\nSUB > 1\r\nPING\r\n");
  let received = "";
  const receive = async (text: string) => {
    while (!received.includes(text)) {
      const bytes = await other.read();
      assert(bytes.length > 0, `NATS has hung up after ${received}`);
      received += new TextDecoder().decode(bytes);
    }
  };
  await receive("PONG\r\n");
  red.clients[0].send("for red");
  await receive("MSG red.room.text 1 7\r\nfor red\r\n");
  await other.write("PUB broadcast.text 8\r\nfor blue\r\nPUB red.room.binary 3\r\n\0\x01\x02\r\n");
  assertEquals(await blue.clients[0].next(), "for blue");
  assertEquals(await red.clients[1].next(), "for red");
  assertEquals(await red.clients[1].next(), new Uint8Array([0, 1, 2]).buffer);
});

natsTest("a missing NATS is one line and exit code 1, a bad subject is 2", async (broker) => {
  await broker.stop();
  const flags = ["--port", "0", "--nats", broker.url];
  await using script = new Script("broadcast_server.ts", flags);
  assertEquals(await script.end(), 1);
  const line =
    `No NATS server at 127.0.0.1:${broker.port} (connection refused): start nats-server there.`;
  assertEquals([...script.errors.all, ...script.lines.all], [line]);
  for (const subject of ["", "red room", "red.*", ">", "red..room"]) {
    await using script = new Script("broadcast_server.ts", [...flags, "--subject", subject]);
    assertEquals(await script.end(), 2, `The subject was "${subject}".`);
    assertMatch(script.errors.all[0], /^--subject takes words/);
  }
  await using wrong = new Script("broadcast_server.ts", ["--nats", "127.0.0.1:4222"]);
  assertEquals(await wrong.end(), 2);
  assertMatch(wrong.errors.all[0], /^--nats takes a URL/);
});

natsTest("its URL may hold user and password, which no line shows", async (broker) => {
  await broker.stop();
  await broker.start("--user", "me", "--pass", "s/cret");
  const url = (password: string) => `nats://me:${password}@127.0.0.1:${broker.port}`;
  await using _server = await Script.server("broadcast_server.ts", "--nats", url("s%2Fcret"));
  await using script = new Script("broadcast_server.ts", ["--port", "0", "--nats", url("wrong")]);
  assertEquals(await script.end(), 1);
  assertEquals([script.errors.all.length, script.lines.all], [1, []]);
  assertMatch(script.errors.all[0], /^No NATS server at 127\.0\.0\.1:\d+ \(/);
});

natsTest("while NATS is away all goes on, and is relayed later or counted", async (broker) => {
  await using here = await startInstance(broker);
  await using there = await startInstance(broker);
  const [speaker, neighbor] = here.clients;
  await broker.stop();
  await Promise.all([heard(here.script.lines, LOST), heard(there.script.lines, LOST)]);
  // These are 5 MiB, of which 4 MiB may wait.
  for (let number = 0; number < 80; number++) {
    speaker.send(LARGE);
    await neighbor.next();
  }
  there.clients[0].send("hello from there");
  // It comes back twice: what waits is not to be lost to a NATS that is gone again at once.
  await broker.start();
  await heard(here.script.lines, "NATS is back.");
  await broker.stop();
  await heard(here.script.lines, LOST);
  await broker.start();
  const line = await here.script.lines.next((line) => line.includes("not relayed"), "the count");
  const lost = Number(
    line.match(/^(\d+) messages were not relayed to the other instances\.$/)?.[1],
  );
  assertEquals(await neighbor.next(), "hello from there");
  speaker.send("the end");
  const relayed = (await upTo("the end", there.clients[1])).filter((each) => each !== "the end");
  assertEquals(relayed.shift(), "hello from there");
  assert(lost > 0 && relayed.length > 0);
  assertEquals(lost + relayed.length, 80);
});

natsTest("what NATS will not take is told, and the rest goes on", async (broker) => {
  const config = await Deno.makeTempFile();
  const permissions = "{ publish: { deny: broadcast.binary } }";
  const users = `[{ user: any, password: any, permissions: ${permissions} }]`;
  const limits = `max_payload: 1000, no_auth_user: any, authorization: { users: ${users} }`;
  await Deno.writeTextFile(config, limits);
  await broker.stop();
  await broker.start("--config", config);
  await Deno.remove(config);
  await using here = await startInstance(broker);
  await using there = await startInstance(broker);
  here.clients[0].send("x".repeat(1001));
  assertEquals((await within(here.clients[0].closed, "the close")).code, 1009);
  here.clients[1].send(new Uint8Array(1));
  await heard(here.script.lines, `NATS: Permissions Violation for Publish to "broadcast.binary"`);
  here.clients[1].send("x".repeat(1000));
  assertEquals(await there.clients[0].next(), "x".repeat(1000));
});

natsTest("SIGTERM lets out what was said before it", async (broker) => {
  await using here = await startInstance(broker);
  await using there = await startInstance(broker);
  // A broker that pauses keeps the messages in the instance until it goes on.
  broker.signal("SIGSTOP");
  for (let number = 0; number < 10; number++) here.clients[0].send(`${number}`);
  await upTo("9", here.clients[0]);
  here.script.kill("SIGTERM");
  assertEquals((await within(here.clients[0].closed, "the close")).code, 1001);
  broker.signal("SIGCONT");
  assertEquals(await upTo("9", there.clients[0]), here.clients[0].messages.all);
  assertEquals(await here.script.end(), 0);
});

natsTest("SIGTERM while NATS is away counts what is lost, and ends with 0", async (broker) => {
  await using here = await startInstance(broker);
  await broker.stop();
  await heard(here.script.lines, LOST);
  for (const message of ["one", "two", "three"]) here.clients[0].send(message);
  await upTo("three", here.clients[0]);
  here.script.kill("SIGTERM");
  assertEquals(await here.script.end(), 0);
  assertEquals(here.script.lines.all.at(-1), "3 messages were not relayed to the other instances.");
});

test({ needs: "run" }, "without --nats its package is not loaded", async () => {
  const imports = {
    "@std/async": import.meta.resolve("@std/async"),
    "@nats-io/transport-node": import.meta.resolve("./no-such-file.ts"),
  };
  const map = `data:application/json,${JSON.stringify({ imports })}`;
  const permissions = ["--allow-net", "--import-map", map];
  await using server = new Script("broadcast_server.ts", ["--port", "0"], permissions);
  assertMatch(await server.lines.next(), /^Broadcast server on/);
  const flags = ["--nats", "nats://localhost"];
  await using joining = new Script("broadcast_server.ts", flags, permissions);
  assertEquals(await joining.end(), 1);
  assertMatch(joining.errors.all[0], /^Module not found .*no-such-file/);
});
