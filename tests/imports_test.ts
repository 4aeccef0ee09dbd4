/// <reference types="./std.d.ts" />
// How the files fit together, which `deno task check` looks at too. Imports go one way, so that a
// reader of a file never has to look into one that is built upon it.

import { assert, assertEquals } from "@std/assert";
import { deadline } from "@std/async";
import { test } from "./needs.ts";

const ROOT = new URL("../", import.meta.url).href;

/** The files of the library, each built upon some of those before it, and on none after it. */
const LIBRARY = [
  ...["lines.ts", "sendable.ts", "blame.ts", "waiting.ts", "outbox.ts", "close_codes.ts"],
  ...["connection.ts", "handshake.ts", "options.ts", "listen.ts", "ask.ts", "serve.ts"],
  ...[
    "run_server.ts",
    "failures.ts",
    "connect.ts",
    "messages.ts",
    "mod.ts",
  ],
  ...["terminal.ts", "interact.ts", "pipe.ts", "command.ts"],
];
/** The door to NATS and what it alone needs, in the same order. They are built upon the library. */
const NATS = ["nats/transport.ts", "nats/link.ts", "nats/outgoing.ts", "nats.ts"];
const SCRIPTS = ["server.ts", "client.ts", "broadcast_server.ts"];

interface Dependency {
  specifier: string;
  isDynamic?: boolean;
  code?: { specifier: string };
}

const inLibrary = (name: string) => `websockets/${name}`;

/** All that a script or the library imports, file by file, as the runtime resolves it. */
async function importsOf(file: string): Promise<Map<string, Dependency[]>> {
  const command = new Deno.Command(Deno.execPath(), { args: ["info", "--json", ROOT + file] });
  const { modules } = JSON.parse(new TextDecoder().decode((await command.output()).stdout));
  const files = new Map<string, Dependency[]>();
  for (const { specifier, dependencies = [] } of modules) {
    if (specifier.startsWith(ROOT)) files.set(specifier.slice(ROOT.length), dependencies);
  }
  return files;
}

/** Each of these files may import those before it only. */
function assertOneWay(files: Map<string, Dependency[]>, names: string[]) {
  for (const [index, name] of names.entries()) {
    const before = names.slice(0, index).map(inLibrary);
    for (const { code, isDynamic } of files.get(inLibrary(name)) ?? []) {
      const imported = code?.specifier.replace(ROOT, "") ?? "";
      // The door opens the command only when it is run itself.
      if (!imported.startsWith("websockets/") || isDynamic && name === "mod.ts") continue;
      assert(before.includes(imported), `${name} imports ${imported}`);
    }
  }
}

test({ needs: "run" }, "inside the library, imports go one way", async () => {
  const files = await importsOf("websockets/mod.ts");
  assertEquals([...files.keys()].toSorted(), LIBRARY.map(inLibrary).toSorted());
  assertOneWay(files, LIBRARY);
});

test({ needs: "run" }, "the door to NATS stands upon the library", async () => {
  const files = await importsOf("websockets/nats.ts");
  const own = [...files.keys()].filter((name) => name.startsWith(inLibrary("nats")));
  assertEquals(own.toSorted(), NATS.map(inLibrary).toSorted());
  assertOneWay(files, [...LIBRARY, ...NATS]);
});

test({ needs: "run" }, "a program with the library alone loads nothing of NATS", async () => {
  const isNats = ({ specifier }: Dependency) => specifier.includes("nats");
  const importsNats = async (file: string) =>
    [...(await importsOf(file)).values()].flat().some(isNats);
  assertEquals(await importsNats("websockets/mod.ts"), false);
  assertEquals(await importsNats("broadcast_server.ts"), true);
});

test({ needs: "run" }, "who imports the library does not load the test command", async () => {
  const files = await importsOf("websockets/mod.ts");
  const loaded = new Set<string>();
  const load = (name: string) => {
    loaded.add(name);
    for (const { code, isDynamic } of files.get(name) ?? []) {
      const imported = code?.specifier.replace(ROOT, "") ?? "";
      if (files.has(imported) && !isDynamic && !loaded.has(imported)) load(imported);
    }
  };
  load(inLibrary("mod.ts"));
  const isLoaded = ["serve.ts", "command.ts"].map((name) => loaded.has(inLibrary(name)));
  assertEquals(isLoaded, [true, false]);
});

for (const script of SCRIPTS) {
  test(
    { needs: "run" },
    `${script} imports the library by its name, the standard library and the page alone`,
    async () => {
      const dependencies = (await importsOf(script)).get(script) ?? [];
      assert(dependencies.some(({ specifier }) => specifier === "websockets"));
      const isKnown = (specifier: string) =>
        /^(websockets(\/nats\.ts)?|\.\/client\.html|@std\/.+|node:.+)$/.test(specifier);
      const others = dependencies.filter(({ specifier }) => !isKnown(specifier));
      assertEquals(others.map(({ specifier }) => specifier), []);
    },
  );
}

Deno.test("the standard library's functions have their types", () => {
  // @ts-expect-error `deadline` takes three arguments; where it is `any`, this comment is an error.
  const _tooMany = () => deadline(Promise.resolve(), 1, {}, 4);
});
