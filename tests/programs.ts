/// <reference types="./std.d.ts" />
// Scripts and other programs that a test starts as processes, with what they print.

import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import { eventually, Inbox, within } from "./helpers.ts";
import { ignoring, PYTHON } from "./needs.ts";

const ROOT = new URL("../", import.meta.url);

/** The environment of a program that prints without colors. FORCE_COLOR wins unless it is empty. */
export const PLAIN = { NO_COLOR: "1", FORCE_COLOR: "" };

/** A program that runs until it ends or the test does, with what it prints. */
export class Program implements AsyncDisposable {
  readonly lines = new Inbox<string>();
  readonly errors = new Inbox<string>();
  readonly #process: Deno.ChildProcess;
  readonly #ended: Promise<Deno.CommandStatus>;

  constructor(command: string, args: string[], options: Deno.CommandOptions = {}) {
    const streams = { stdin: "null", stdout: "piped", stderr: "piped" } as const;
    const env = { ...PLAIN, ...options.env };
    this.#process = new Deno.Command(command, { args, ...streams, ...options, env }).spawn();
    this.#ended = Promise.all([
      this.#process.status,
      collect(this.#process.stdout, this.lines),
      collect(this.#process.stderr, this.errors),
    ]).then(([status]) => status);
  }

  get stdin(): WritableStream<Uint8Array> {
    return this.#process.stdin;
  }

  get pid(): number {
    return this.#process.pid;
  }

  kill(signal: Deno.Signal = "SIGTERM"): void {
    this.#process.kill(signal);
  }

  /** Makes it stand still, on Linux. A busy system takes a while to do so. */
  async pause(): Promise<void> {
    this.kill("SIGSTOP");
    const state = () => Deno.readTextFileSync(`/proc/${this.pid}/stat`).replace(/.*\) /, "")[0];
    await eventually(() => assertEquals(state(), "T"));
  }

  /** The next line that is `wanted`; if it ends without that line, its errors are thrown. */
  async prints(wanted: RegExp): Promise<string> {
    const ended = this.#ended.then(() => {
      const line = this.lines.all.find((each) => wanted.test(each));
      if (line === undefined) throw new Error(this.errors.all.join("\n"));
      return line;
    });
    const printed = this.lines.next((line) => wanted.test(line), `${wanted}`);
    return await Promise.race([printed, ended]);
  }

  /** Waits for the end, for so many milliseconds if it may take longer than usual: its exit code. */
  async end(patience?: number): Promise<number> {
    return (await within(this.#ended, "the program to end", patience)).code;
  }

  async [Symbol.asyncDispose]() {
    try {
      this.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await this.end();
  }
}

/** A script as its user runs it. */
export class Script extends Program {
  constructor(script: string, args: string[], permissions = ["--allow-net"], stdin = "null") {
    super(Deno.execPath(), ["run", "--no-prompt", ...permissions, script, ...args], {
      cwd: ROOT,
      stdin: stdin as "null" | "piped",
    });
  }

  /** Starts a server script on a free port and waits until it listens. */
  static async server(script: string, ...flags: string[]): Promise<Script & { url: string }> {
    const started = new Script(script, ["--port", "0", ...flags]);
    const url = (await started.prints(/ws:/)).match(/ws:[^,]+/)?.[0] ?? "";
    return Object.assign(started, { url });
  }
}

const PYTHON_SERVER = `
import asyncio, websockets

async def echo(websocket):
    async for message in websocket:
        await websocket.send(message)

async def main():
    async with websockets.serve(echo, "127.0.0.1", 0, subprotocols=["chat"]) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()

asyncio.run(main())
`;

/** Starts Python's `websockets` as an echo server, which speaks the subprotocol `chat`. */
export async function startPythonServer(): Promise<Program & { url: string }> {
  const server = new Program(PYTHON ?? "", ["-c", PYTHON_SERVER]);
  return Object.assign(server, { url: `ws://127.0.0.1:${await server.prints(/./)}` });
}

/** Runs openssl in a folder, in which are all files that the command names. */
export async function openssl(folder: string, command: string): Promise<void> {
  const options = { args: command.split(" "), cwd: folder, stderr: "piped" } as const;
  const { success, stderr } = await new Deno.Command("openssl", options).output();
  assert(success, new TextDecoder().decode(stderr));
}

/** Makes a certificate and its key in a folder: for a name such as `DNS:localhost`, or for a CA. */
export async function certify(
  folder: string,
  name?: string,
): Promise<{ cert: string; key: string }> {
  const request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 " +
    "-subj /CN=localhost -keyout privkey.pem -out fullchain.pem";
  const isNoCA = ` -addext subjectAltName=${name} -addext basicConstraints=critical,CA:FALSE`;
  await openssl(folder, name === undefined ? request : request + isNoCA);
  return { cert: `${folder}/fullchain.pem`, key: `${folder}/privkey.pem` };
}

async function collect(stream: ReadableStream<Uint8Array>, inbox: Inbox<string>): Promise<void> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) inbox.put(line);
  }
  if (rest) inbox.put(rest);
}

/** How many descriptors a process has, such as those of its connections. */
export function countDescriptors({ pid }: { pid: number }): number {
  if (Deno.build.os === "linux") return [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
  ignoring("the descriptors of programs: only Linux tells them");
  return 0;
}

/** Waits until a process has no more descriptors than `before`, as nobody is connected any more. */
export async function assertDescriptors(program: { pid: number }, before: number): Promise<void> {
  await eventually(() => assertLessOrEqual(countDescriptors(program), before));
}
