// Works with what others wrote: Python's `websockets`, as the server of our clients, and as the
// client of our servers.

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { startServer } from "./helpers.ts";
import { PYTHON, test } from "./needs.ts";
import { Program, Script, startPythonServer } from "./programs.ts";
import { echo } from "./peers.ts";

/** A client that sends a text and bytes to the URL it is given, and prints what comes back. */
const CLIENT = `
import asyncio, sys, websockets

async def main():
    async with websockets.connect(sys.argv[1]) as websocket:
        for message in ["你好", b"\\x00\\xff"]:
            await websocket.send(message)
            print(ascii(await websocket.recv()))
    print(websocket.close_code)

asyncio.run(main())
`;

// Python is the server.

test({ needs: "python" }, "the loop runs its rounds against Python", async () => {
  await using server = await startPythonServer();
  await using client = new Script("client.ts", [server.url, "--count", "5", "--interval", "0"]);
  assertEquals([await client.end(), client.errors.all], [0, []]);
  assertEquals(client.lines.all, Array(5).fill("Hello, I am Deno."));
});

test({ needs: "python" }, "a pipe gets its answers from Python, and the subprotocol", async () => {
  await using server = await startPythonServer();
  const args = [server.url, "--subprotocol", "other", "--subprotocol", "chat"];
  await using client = new Script("websockets", args, undefined, "piped");
  const lines = ["a", "", "你好", "x".repeat(100_000)];
  const writer = client.stdin.getWriter();
  await writer.write(new TextEncoder().encode(`${lines.join("\n")}\n`));
  await writer.close();
  assertEquals([await client.end(), client.lines.all], [0, lines]);
  assertEquals(client.errors.all, [
    `Connected to ${server.url}, subprotocol chat.`,
    "Connection closed: 1000 (OK).",
  ]);
});

// Python is the client.

test({ needs: "python" }, "Python's test command, the article's, talks to `serve`", async () => {
  await using server = startServer(echo());
  const args = ["-m", "websockets", server.url];
  await using client = new Program(PYTHON ?? "", args, { stdin: "piped" });
  await client.lines.next((line) => line.includes(`Connected to ${server.url}.`));
  const writer = client.stdin.getWriter();
  await writer.write(new TextEncoder().encode("hello\n"));
  await client.lines.next((line) => line.includes("< hello"));
  await writer.close();
  assertEquals(await client.end(), 0);
  assert(client.lines.all.some((line) => line.includes("Connection closed: 1000 (OK).")));
});

test({ needs: "python" }, "a Python script talks to the echo server", async () => {
  await using server = await Script.server("server.ts");
  await using client = new Program(PYTHON ?? "", ["-c", CLIENT, server.url]);
  assertEquals(await client.end(), 0);
  const [text, binary, code] = client.lines.all;
  assertStringIncludes(text, String.raw`'Data received as "\u4f60\u597d".  time: `);
  assertEquals([binary, code], [String.raw`b'\x00\xff'`, "1000"]);
});

test({ needs: "python" }, "a Python script talks to the broadcast server", async () => {
  await using server = await Script.server("broadcast_server.ts");
  await using client = new Program(PYTHON ?? "", ["-c", CLIENT, server.url]);
  assertEquals(await client.end(), 0);
  assertEquals(client.lines.all, [String.raw`'\u4f60\u597d'`, String.raw`b'\x00\xff'`, "1000"]);
});
