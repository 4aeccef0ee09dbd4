// Promises that nobody awaits: those that tell of the end of a connection do not end the process, and
// all others do.

import { assertEquals, assertMatch } from "@std/assert";
import { TestClient } from "./helpers.ts";
import { test } from "./needs.ts";
import { Program } from "./programs.ts";

/** Starts a script as its user does, who imports the library. */
function start(script: string): Program {
  return new Program(Deno.execPath(), ["eval", script], {
    cwd: new URL("../", import.meta.url),
  });
}

/** Runs a script that has a server, and a client of it which leaves. */
async function run(script: string): Promise<{ code: number; errors: string }> {
  const setup = `
    import { connect, ConnectionClosed, serve } from "websockets";
    const gone = Promise.withResolvers();
    let act = () => {};
    const server = serve(async (websocket) => {
      act(websocket);
      await websocket.closed;
      gone.resolve(websocket);
    }, { port: 0 });
    const url = "ws://localhost:" + server.addr.port;
    const leave = async () => { await (await connect(url)).close(); return await gone.promise; };
    const turns = async () => { for (let n = 0; n < 20; n++) await new Promise((r) => setTimeout(r, 2)); };
  `;
  await using program = start(`${setup}\n${script}`);
  const code = await program.end();
  return { code, errors: program.errors.all.join("\n") };
}

const HARMLESS: Record<string, string> = {
  "`send` and `receive` that nobody awaits": `
    const websocket = await leave();
    websocket.send("late");
    websocket.receive();
    await turns();`,
  "the same at the end of a client, without any server": `
    const websocket = await connect(url);
    await websocket.close();
    await server.shutdown();
    websocket.send("late");
    websocket.receive();
    await turns();`,
  "`send` of a client that waits when it closes, without any server": `
    await server.shutdown();
    const upgrade = (request) => Deno.upgradeWebSocket(request).response;
    const bare = Deno.serve({ port: 0, onListen() {} }, upgrade);
    const websocket = await connect("ws://localhost:" + bare.addr.port);
    for (let n = 0; n < 3; n++) websocket.send(new Uint8Array(16_000_000));
    websocket.close();
    await turns();`,
  "`receive` that is awaited too late": `
    act = async (websocket) => {
      const next = websocket.receive();
      await turns();
      await next.catch(() => {});
    };
    await leave();
    await turns();`,
  "an async timer that sends": `
    act = (websocket) => setInterval(async () => { await websocket.send("tick"); }, 1);
    await leave();
    await turns();`,
  "the same while only another server runs": `
    const other = serve(() => {}, { port: 0 });
    await server.shutdown();
    Promise.reject(new ConnectionClosed({ code: 4000 }));
    await turns();`,
  "what is made of `receive`": `
    act = (websocket) => websocket.receive().then(() => {});
    await leave();
    await turns();`,
};
for (const [what, script] of Object.entries(HARMLESS)) {
  test({ needs: "run" }, `${what}: the process goes on`, async () => {
    assertEquals(await run(`${script}\nDeno.exit(7);`), { code: 7, errors: "" });
  });
}

const HARMFUL: Record<string, [script: string, error: RegExp]> = {
  "any other error": [`Promise.reject(new Error("broken")); await turns();`, /broken/],
  "any other error after the last server has stopped": [
    `await server.shutdown(); Promise.reject(new Error("broken")); await turns();`,
    /broken/,
  ],
  "the end of a connection after the last server has stopped": [
    `await server.shutdown(); Promise.reject(new ConnectionClosed({ code: 4000 })); await turns();`,
    /4000/,
  ],
  "the end of a connection after servers that could not start": [
    `for (const wrong of [{ maxClients: 0 }, { port: server.addr.port }]) {
      try { serve(() => {}, wrong); } catch {}
    }
    await server.shutdown(); Promise.reject(new ConnectionClosed({ code: 4000 })); await turns();`,
    /4000/,
  ],
  "a second `receive` at the same time": [
    `act = (websocket) => { websocket.receive(); websocket.receive(); }; await leave(); await turns();`,
    /await that one first/,
  ],
  "an error that only has the name": [
    `Promise.reject(Object.assign(new Error("false"), { name: "ConnectionClosed" })); await turns();`,
    /false/,
  ],
};
for (const [what, [script, error]] of Object.entries(HARMFUL)) {
  test({ needs: "run" }, `${what} that nobody awaits ends the process`, async () => {
    const { code, errors } = await run(`${script}\nDeno.exit(7);`);
    assertEquals(code, 1);
    assertMatch(errors, error);
  });
}

test({ needs: "run" }, "timers that send do not disturb a script that stops", async () => {
  const script = `
    import { serve } from "websockets";
    import { runServer } from "websockets/script.ts";
    const release = () => new Promise((resolve) => setTimeout(resolve, 50));
    await runServer("Server", { port: 0, release }, (options) => serve(async (websocket) => {
      setInterval(async () => { await websocket.send("tick"); }, 1);
      await websocket.closed;
    }, options));
  `;
  await using program = start(script);
  const url = (await program.prints(/ws:/)).match(/ws:.*/)?.[0] ?? "";
  await using client = await TestClient.open(url);
  await client.next();
  program.kill("SIGTERM");
  assertEquals([await program.end(), program.errors.all], [0, []]);
});
