// Where a server listens: `localhost` is two addresses, and clients use either.

/** The loopback address of IPv4, and that of IPv6. */
const LOOPBACK_ADDRESSES = ["127.0.0.1", "::1"];
/** How many ports are tried until one is free on both addresses. */
const ATTEMPTS = 10;

/** What `Deno.serve` is told. */
type ListenOptions =
  & Deno.ServeTcpOptions
  & Partial<Deno.TlsCertifiedKeyPem>
  & { hostname: string; signal: AbortSignal };

/**
 * Listens. For `localhost` it does so on both loopback addresses, with the same port: on the one that
 * the runtime takes, and on the other if this machine has it and the script may use it.
 *
 * @throws {Deno.errors.AddrInUse} if the port is taken on either, and what else `Deno.serve` throws.
 */
export function listen(
  options: ListenOptions,
  answer: Deno.ServeHandler<Deno.NetAddr>,
): [Deno.HttpServer<Deno.NetAddr>, ...Deno.HttpServer<Deno.NetAddr>[]] {
  for (let attempt = 1;; attempt++) {
    const abandoned = new AbortController();
    const signal = AbortSignal.any([options.signal, abandoned.signal]);
    const server = Deno.serve({ ...options, signal }, answer);
    if (options.hostname !== "localhost") return [server];
    const { hostname, port } = server.addr;
    const other = LOOPBACK_ADDRESSES.find((address) => address !== hostname) ?? "";
    if (!mayListen(other, port)) return [server];
    try {
      return [server, Deno.serve({ ...options, hostname: other, port }, answer)];
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) return [server];
      // After a `shutdown`, the runtime would throw when `options.signal` aborts.
      abandoned.abort();
      if (options.port !== 0 || attempt === ATTEMPTS) throw error;
    }
  }
}

/** Whether the script has the permission already, so that nobody is asked for it. */
function mayListen(address: string, port: number): boolean {
  const host = address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
  return Deno.permissions.querySync({ name: "net", host }).state === "granted";
}
