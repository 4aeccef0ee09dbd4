/// <reference types="./std.d.ts" />
// How the files fit together, which `deno task check` looks at too. Imports go one way, so that a
// reader of a file never has to look into one that is built upon it.

import { assert, assertEquals } from "@std/assert";
import { deadline } from "@std/async";
import { test } from "./needs.ts";
import { deno, makeFolder, ROOT } from "./readme.ts";

/** The files of the core, each built upon some of those before it, and on none after it. */
const CORE = [
  ...["log.ts", "message.ts", "close_codes.ts", "connection_closed.ts"],
  ...["waiting.ts", "eviction.ts", "budget.ts", "handed.ts", "outbox.ts", "inbox.ts"],
  ...["connection.ts", "options.ts", "handshake.ts", "token.ts", "cross_origin.ts"],
  ...["pending_request.ts", "requests.ts", "clients.ts", "accept.ts", "listen.ts", "serve.ts"],
  ...["failures.ts", "reconnect.ts", "connect.ts"],
  ...["rooms/history.ts", "rooms/room.ts", "rooms/relay.ts", "rooms/rooms.ts"],
  ...["rooms/place.ts", "rooms/follow.ts"],
];
/** What makes a script, in the same order. */
const SCRIPT = [
  ...["script/clock.ts", "script/flags.ts", "script/page.ts", "script/print.ts", "script/run.ts"],
  ...["script/advice.ts", "script/client.ts", "script/server.ts", "script.ts"],
];
const COMMAND = [
  ...["command/input_output.ts", "command/session.ts", "command/terminal.ts"],
  ...["command/interact.ts", "command/pipe.ts", "command/command.ts"],
];
const NATS = [
  ...["nats/transport.ts", "nats/connect.ts", "nats/link.ts", "nats/rooms.ts", "nats/waiting.ts"],
  ...["nats/outgoing.ts", "nats/stream.ts", "nats/publisher.ts", "nats/replayed_room.ts"],
  ...["nats/replay.ts", "nats.ts"],
];
const SCRIPTS = ["server.ts", "client.ts", "broadcast_server.ts"];

interface Dependency {
  specifier: string;
  isDynamic?: boolean;
  /** What is imported, if it runs. */
  code?: { specifier: string };
  /** What is imported, if it is types alone. */
  type?: { specifier: string };
}

/** All that a file imports, also through others: the imports of each, as the runtime resolves them. */
async function importsOf(file: string): Promise<Map<string, Dependency[]>> {
  const command = new Deno.Command(Deno.execPath(), { args: ["info", "--json", ROOT + file] });
  const { modules } = JSON.parse(new TextDecoder().decode((await command.output()).stdout));
  const files = new Map<string, Dependency[]>();
  for (const { specifier, dependencies = [] } of modules) {
    files.set(nameOf(specifier), dependencies);
  }
  return files;
}

/** The name of a file in the library, or a specifier as it is. */
function nameOf(specifier: string): string {
  return specifier.replace(new URL("../", import.meta.url).href, "").replace("websockets/", "");
}

function importedBy({ code, type }: Dependency): string {
  return nameOf((code ?? type)?.specifier ?? "");
}

/** Each of these files may import those before it only, be it types alone. */
async function assertOneWay(names: string[]) {
  const last = names.at(-1);
  const files = await importsOf(`websockets/${last}`);
  for (const [index, name] of names.entries()) {
    const imported = (files.get(name) ?? [])
      // The library opens the command only when it is run itself.
      .filter(({ isDynamic }) => !(isDynamic && name === "mod.ts"))
      .map(importedBy).filter((each) => /^[\w/]+\.ts$/.test(each));
    const wrong = imported.filter((each) => !names.slice(0, index).includes(each));
    assertEquals(wrong, [], `${name} imports ${wrong}`);
  }
}

test({ needs: "run" }, "imports go one way in the core, types included", async () => {
  await assertOneWay([...CORE, "mod.ts"]);
});

// None of them has `mod.ts` among the files that it may import, because that opens the command.
test({ needs: "run" }, "scripts, the command and NATS stand upon the core's files", async () => {
  await assertOneWay([...CORE, ...SCRIPT]);
  await assertOneWay([...CORE, ...SCRIPT, ...COMMAND]);
  await assertOneWay([...CORE, ...NATS]);
});

test({ needs: "run" }, "the lists here have every file of the library", () => {
  const found = ["", "rooms/", "script/", "command/", "nats/"].flatMap((folder) =>
    [...Deno.readDirSync(`${ROOT}websockets/${folder}`)]
      .filter(({ isFile, name }) => isFile && name.endsWith(".ts"))
      .map(({ name }) => folder + name)
  );
  const listed = [...CORE, "mod.ts", ...SCRIPT, ...COMMAND, ...NATS];
  assertEquals(found.toSorted(), listed.toSorted());
});

test({ needs: "run" }, "a program with the core alone loads nothing else", async () => {
  const files = await importsOf("websockets/mod.ts");
  const loaded = new Set(["mod.ts"]);
  for (const name of loaded) {
    const dependencies = files.get(name) ?? [];
    for (const each of dependencies) if (!each.isDynamic) loaded.add(importedBy(each));
  }
  const others = [...loaded].filter((name) => !name.startsWith("node:"));
  const packages = others.filter((name) => !name.endsWith(".ts"));
  assertEquals(packages.map((name) => name.replace(/@[\d.]+/, "")), ["npm:deno-std/async/mod.js"]);
  const own = others.filter((name) => name.endsWith(".ts"));
  assertEquals(own.toSorted(), [...CORE, "mod.ts"].toSorted());
});

/** A server and its client, of the core alone. */
const PROGRAM = `
  import { connect, serve } from "websockets";
  await using server = serve((websocket) => websocket.send("hello"), { port: 0 });
  await using websocket = await connect(\`ws://localhost:\${server.addr.port}\`);
  console.log(await websocket.receive());
`;

test({ needs: "run" }, "the core runs where nothing else is copied", async () => {
  await using folder = await makeFolder();
  const { imports } = JSON.parse(await Deno.readTextFile(`${ROOT}deno.json`));
  await Deno.writeTextFile(`${folder.path}/deno.json`, JSON.stringify({ imports }));
  await Deno.writeTextFile(`${folder.path}/program.ts`, PROGRAM);
  await Deno.mkdir(`${folder.path}/websockets/rooms`, { recursive: true });
  for (const name of [...CORE, "mod.ts"]) {
    await Deno.copyFile(`${ROOT}websockets/${name}`, `${folder.path}/websockets/${name}`);
  }
  const args = ["run", "--check", "--quiet", "--allow-net", "program.ts"];
  await using program = deno(args, { cwd: folder.path });
  assertEquals([await program.end(), program.errors.all], [0, []]);
  assertEquals(program.lines.all, ["hello"]);
});

for (const script of SCRIPTS) {
  test(
    { needs: "run" },
    `${script} imports the library by its doors, the standard library and the page alone`,
    async () => {
      const dependencies = (await importsOf(script)).get(script) ?? [];
      assert(dependencies.some(({ specifier }) => specifier === "websockets"));
      const isKnown = (specifier: string) =>
        /^(websockets(\/(script|nats)\.ts)?|\.\/client\.html|@std\/.+|node:.+)$/.test(specifier);
      const others = dependencies.filter(({ specifier }) => !isKnown(specifier));
      assertEquals(others.map(({ specifier }) => specifier), []);
    },
  );
}

Deno.test("the standard library's functions have their types", () => {
  // @ts-expect-error `deadline` takes three arguments; where it is `any`, this comment is an error.
  const _tooMany = () => deadline(Promise.resolve(), 1, {}, 4);
});
