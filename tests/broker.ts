/// <reference types="./std.d.ts" />
// A NATS server for a test.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { eventually, freePort } from "./helpers.ts";
import { NATS_SERVER, test } from "./needs.ts";
import { RawClient } from "./raw.ts";

/** Registers a test that gets a NATS server of its own, which is started unless the test does so. */
export function natsTest(
  name: string,
  fn: (broker: Broker) => Promise<void>,
  isStarted = true,
): void {
  test({ needs: "nats" }, name, async () => {
    await using broker = new Broker();
    if (isStarted) await broker.start();
    await fn(broker);
  });
}

/** Waits until a program that listens at this port can be connected to. */
async function listening(port: number): Promise<void> {
  const connect = async () => (await RawClient.open(port))[Symbol.dispose]();
  await eventually(connect);
}

/** A nats-server, which can be stopped and started again at the same address. */
export class Broker implements AsyncDisposable {
  readonly port = freePort();
  readonly url = `nats://127.0.0.1:${this.port}`;
  readonly #monitor = freePort();
  #process?: Deno.ChildProcess;

  async start(...flags: string[]): Promise<void> {
    const ports = ["--port", `${this.port}`, "--http_port", `${this.#monitor}`];
    const args = ["--addr", "127.0.0.1", ...ports, ...flags];
    const output = { stdout: "null", stderr: "null" } as const;
    this.#process = new Deno.Command(NATS_SERVER ?? "", { args, ...output }).spawn();
    await listening(this.port);
  }

  /** Starts it with a configuration, in the place of the one that runs. */
  async restart(configuration: string): Promise<void> {
    await this.stop();
    const path = await Deno.makeTempFile();
    await Deno.writeTextFile(path, configuration);
    await this.start("--config", path);
    await Deno.remove(path);
  }

  /** Its connections: how many subscriptions each has, and how many messages have come from it. */
  async connections(): Promise<{ subscriptions: number; in_msgs: number }[]> {
    const answer = await fetch(`http://127.0.0.1:${this.#monitor}/connz?subs=true`);
    return (await answer.json()).connections;
  }

  /** How many subscriptions there are, beside its own. */
  async subscriptions(): Promise<number> {
    return (await this.connections()).reduce((sum, each) => sum + each.subscriptions, 0);
  }

  /** Waits until there are so many subscriptions. */
  async has(count: number): Promise<void> {
    await eventually(async () => assertEquals(await this.subscriptions(), count));
  }

  /** Waits until it knows another server of its cluster. */
  async isRouted(): Promise<void> {
    await eventually(async () => {
      const answer = await fetch(`http://127.0.0.1:${this.#monitor}/routez`);
      assert((await answer.json()).num_routes > 0, "There is no route.");
    });
  }

  /** Makes it stand still. A busy system takes a while to do so. */
  async pause(): Promise<void> {
    this.#process?.kill("SIGSTOP");
    const args = ["-o", "state=", "-p", `${this.#process?.pid}`];
    await eventually(async () => {
      const { stdout } = await new Deno.Command("ps", { args }).output();
      assertMatch(new TextDecoder().decode(stdout), /^T/);
    });
  }

  resume(): void {
    this.#process?.kill("SIGCONT");
  }

  async stop(): Promise<void> {
    this.#process?.kill("SIGKILL");
    await this.#process?.status;
    this.#process = undefined;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }
}
