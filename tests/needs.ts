// What a test needs of the machine. Where it is missing, the test is ignored, and a line says why.

import { existsSync } from "node:fs";

function isGranted(...permissions: Deno.PermissionDescriptor[]): boolean {
  return permissions.every((each) => Deno.permissions.querySync(each).state === "granted");
}

const net = isGranted({ name: "net", host: "localhost" }, { name: "net", host: "127.0.0.1" });
const names = ["net", "run", "read", "write", "env", "sys", "ffi"] as const;
// Deno lets nobody read in /proc, which tests and Chromium's driver do, without all permissions.
const run = isGranted(...names.map((name) => ({ name })));

/** The first of these programs that there is. */
function find(...paths: string[]): string | undefined {
  if (isGranted({ name: "read" })) return paths.find((path) => existsSync(path));
}

/** Where Debian, Ubuntu, Fedora, macOS and Windows have Chromium or Chrome. */
export const CHROMIUM = find(
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Chromium.app/Contents/MacOS/Chromium",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
  "C:/Program Files/Google/Chrome/Application/chrome.exe",
);

/** It runs as root in containers, where its sandbox does not, and needs no network but ours. */
export const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** Debian puts it where only the administrator's PATH leads. */
export const NATS_SERVER = find(
  "/usr/sbin/nats-server",
  "/usr/bin/nats-server",
  "/usr/local/bin/nats-server",
);

/** Debian's Python, where its package python3-websockets is installed. */
export const PYTHON = find("/usr/lib/python3/dist-packages/websockets") && find("/usr/bin/python3");

/** Gives a program a network and mounts of its own, in which it is root. */
export const UNSHARE = ["--map-root-user", "--mount", "--net"];

/** Whether this machine lets the tests do that. */
function mayUnshare(): boolean {
  if (!run || Deno.build.os !== "linux") return false;
  try {
    const args = [...UNSHARE, "sh", "-c", "ip link set lo up"];
    return new Deno.Command("unshare", { args, stderr: "null" }).outputSync().success;
  } catch {
    return false;
  }
}

function hasBothLoopbacks(): boolean {
  try {
    for (const hostname of ["127.0.0.1", "::1"]) Deno.listen({ hostname, port: 0 }).close();
    return true;
  } catch {
    return false;
  }
}

/** Descriptors that the tests have at a time. All that run at once share one process. */
const DESCRIPTORS = 4_096;

/** Whether the system lets a process have so many. Deno raises its soft limit to the hard one. */
function hasDescriptors(): boolean {
  if (!run || Deno.build.os !== "linux") return true;
  const limits = Deno.readTextFileSync("/proc/self/limits");
  const [, hard] = limits.match(/^Max open files +\S+ +(\S+)/m) ?? [];
  return hard === "unlimited" || Number(hard) >= DESCRIPTORS;
}

/** Whether a browser can be online: it has an address that others may reach. */
function hasNetwork(): boolean {
  return Deno.networkInterfaces().some(({ address }) => !/^(127\.|::1$|fe80:)/.test(address));
}

/** Whether the package that a recipe imports is here, or can be fetched. */
function hasHono(): boolean {
  const recipes = Deno.readTextFileSync(new URL("../websockets/RECIPES.md", import.meta.url));
  const [name = ""] = recipes.match(/npm:hono@[\d.]+/) ?? [];
  const args = ["cache", "--no-config", "--no-lock", name];
  return new Deno.Command(Deno.execPath(), { args, stderr: "null" }).outputSync().success;
}

/** What a test may need: whether it is there, looked for only where a test needs it, and if not, what to do. */
const needs = {
  net: [() => net, "that need the network: `deno task test` runs them"],
  run: [() => run, "that start programs: `deno task test` runs them"],
  linux: [
    () => run && Deno.build.os === "linux",
    "that need Linux's /proc: `deno task test` runs them there",
  ],
  chromium: [
    () => run && CHROMIUM,
    "of the page: install Chromium, and `deno task test` runs them",
  ],
  network: [
    () => run && hasNetwork(),
    "of a browser that goes offline: this machine has no network",
  ],
  nats: [
    () => run && NATS_SERVER,
    "with NATS: install nats-server, and `deno task test` runs them",
  ],
  python: [
    () => run && PYTHON,
    "with Python: install python3-websockets, and `deno task test` runs them",
  ],
  unshare: [
    mayUnshare,
    `on a network of their own: they need \`ip\` and \`unshare ${UNSHARE.join(" ")}\``,
  ],
  hono: [
    () => run && hasHono(),
    "of the recipe with Hono: where npm's registry can be reached, `deno task test` runs them",
  ],
  descriptors: [
    hasDescriptors,
    `of very many clients: they need \`ulimit -Hn ${DESCRIPTORS}\``,
  ],
  loopbacks: [
    () => net && hasBothLoopbacks(),
    "of both loopback addresses: this machine has no ::1",
  ],
} as const;
type Need = keyof typeof needs;
const found = new Map<string, boolean>();
const told = new Set<string>();

/** Prints once which tests are ignored, and why. */
export function ignoring(tests: string): void {
  if (!told.has(tests)) console.log(`Ignoring ${tests}.`);
  told.add(tests);
}

/** Whether there is what a test may need. If not, a line says why the test is ignored. */
export function isThere(need: Need): boolean {
  const [look, reason] = needs[need];
  if (!found.has(need)) found.set(need, Boolean(look()));
  const isFound = found.get(need) === true;
  if (!isFound) ignoring(`the tests ${reason}`);
  return isFound;
}

/** Lines of what a failed test says. The difference of two long lists may have thousands. */
const MAX_LINES = 30;
/** Characters of each of them. */
const MAX_LINE = 200;

/** What a test failed with, cut so that it can be read. */
function readable(error: unknown): unknown {
  // What fails first matters. What then fails while things are closed may follow from it.
  if (error instanceof SuppressedError) return readable(error.suppressed);
  if (!(error instanceof Error)) return error;
  const lines = error.message.split("\n");
  const shown = lines.slice(0, MAX_LINES).map((line) =>
    line.length > MAX_LINE ? `${line.slice(0, MAX_LINE)}…` : line
  );
  const rest = lines.length - shown.length;
  error.message = [...shown, ...rest > 0 ? [`… and ${rest} more lines.`] : []].join("\n");
  if (error.cause !== undefined) error.cause = readable(error.cause);
  return error;
}

/** Registers a test, or ignores it where something that it needs is missing. */
export function test(
  { needs: need }: { needs: Need | Need[] },
  name: string,
  fn: () => void | Promise<void>,
): void {
  const run = async () => {
    try {
      await fn();
    } catch (error) {
      throw readable(error);
    }
  };
  Deno.test({ name, fn: run, ignore: ![need].flat().every(isThere) });
}
