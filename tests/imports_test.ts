/// <reference types="./std.d.ts" />
// How the files fit together, which `deno task check` looks at too. Imports go one way, so that a
// reader of a library never has to look into a script that uses it.

import { assertEquals } from "@std/assert";
import { deadline } from "@std/async";
import broadcastServer from "../broadcast_server.ts" with { type: "text" };
import cli from "../cli.ts" with { type: "text" };
import client from "../client.ts" with { type: "text" };
import relay from "../relay.ts" with { type: "text" };
import server from "../server.ts" with { type: "text" };
import websockets from "../websockets.ts" with { type: "text" };

/** What a file imports of the other files: `type ./a.ts` its types, `dynamic ./a.ts` when needed. */
function importsOf(source: string): string[] {
  const code = source.replaceAll(/^ *(\/\/|\*).*$/gm, "");
  const found = code.matchAll(
    /^(?:import|export) (type )?(?:[^"]* from )?"(\.[^"]*)"|\bimport\(\s*"(\.[^"]*)"/gm,
  );
  return [...found].map(([, type = "", path, dynamic]) =>
    path ? type + path : `dynamic ${dynamic}`
  );
}

const files: [name: string, source: string, allowed: string[]][] = [
  ["cli.ts", cli, []],
  ["websockets.ts", websockets, ["./cli.ts", "./client.html"]],
  ["server.ts", server, ["./cli.ts", "./websockets.ts"]],
  // NATS is loaded with `--nats` only, so of relay.ts there may be the types alone until then.
  ["broadcast_server.ts", broadcastServer, [
    "./cli.ts",
    "./websockets.ts",
    "type ./relay.ts",
    "dynamic ./relay.ts",
  ]],
  ["relay.ts", relay, ["./cli.ts", "./websockets.ts"]],
  ["client.ts", client, ["./cli.ts"]],
];

for (const [name, source, allowed] of files) {
  Deno.test(`${name} imports no file that is built upon it`, () => {
    const isAllowed = (each: string) =>
      allowed.some((one) => each === one || each === `type ${one}`);
    assertEquals(importsOf(source).filter((each) => !isAllowed(each)), []);
  });
}

Deno.test("imports of every form are seen", () => {
  const source = [
    'import { a } from "./a.ts";',
    'import {\n  b,\n  c,\n} from "./b.ts";',
    'import page from "./c.html" with { type: "text" };',
    'import "./d.ts";',
    'export * from "./e.ts";',
    'import type { F } from "./f.ts";',
    'const { g } = await import("./g.ts");',
    '//   import { not } from "./comment.ts";',
    ' * import { not } from "./comment.ts";',
    'import { parseArgs } from "node:util";',
    'export const not = "./text.ts";',
  ].join("\n");
  assertEquals(importsOf(source), [
    "./a.ts",
    "./b.ts",
    "./c.html",
    "./d.ts",
    "./e.ts",
    "type ./f.ts",
    "dynamic ./g.ts",
  ]);
});

Deno.test("the standard library's functions have their types", () => {
  // @ts-expect-error `deadline` takes three arguments; where it is `any`, this comment is an error.
  const _tooMany = () => deadline(Promise.resolve(), 1, {}, 4);
});
