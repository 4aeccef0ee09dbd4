// What has to be worked around in nats.js, and in Deno, for a server to live with any NATS.

import { abortable } from "@std/async";
import { AsyncLocalStorage } from "node:async_hooks";

/** What to abort when nats.js can't read on, through every `await` of what it reads. */
export const reading = new AsyncLocalStorage<AbortController>();
let holders = 0;
let print = console.log;

/** Keeps errors of connections to NATS from the process, until `letGo` was called as often. */
export function hold(): void {
  if (holders++ > 0) return;
  print = console.log;
  console.log = printOrAbort;
  addEventListener("error", overlook);
}

/** Takes one `hold` back. */
export function letGo(): void {
  if (--holders > 0) return;
  if (console.log === printOrAbort) console.log = print;
  removeEventListener("error", overlook);
}

/** nats.js prints what it can't read, raw, and then reads no more (nats-io/nats.ws#194). */
function printOrAbort(...data: unknown[]) {
  const lost = reading.getStore();
  if (lost && data[0] === "reader closed") lost.abort(data[1]);
  else print(...data);
}

/**
 * Deno tells of the end of a connection before its error (denoland/deno#21951), and nats.js listens
 * only until the end. An error to which nobody listens would end the process.
 */
function overlook(event: ErrorEvent) {
  const { syscall } = event.error ?? {};
  if (["connect", "read", "write", "shutdown"].includes(syscall)) event.preventDefault();
}

/**
 * Waits until NATS greets: what it says of itself. nats.js keeps the connection of an attempt for
 * ever where it has waited for that in vain (not reported), so that a NATS that stands still would
 * use up all descriptors.
 */
export async function greeting(host: string, signal: AbortSignal): Promise<string> {
  const { hostname, port } = new URL(`nats://${host}`);
  using connection = await Deno.connect({ hostname, port: Number(port), signal });
  const bytes = new Uint8Array(4096);
  const count = await abortable(connection.read(bytes), signal);
  const text = new TextDecoder().decode(bytes.subarray(0, count ?? 0));
  if (!text.startsWith("INFO ")) throw new Error("it is something else");
  return text;
}
