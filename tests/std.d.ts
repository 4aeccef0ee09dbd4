// Types of the functions in use of `@std/assert` and `@std/async`. The package `deno-std`, which they
// come from, has none, so that without this file each of them would be `any`. `deno check` reads every
// file here, so nothing else has to name this one. Where the packages come from JSR, delete it.

declare module "@std/assert" {
  export function assert(condition: unknown, message?: string): asserts condition;
  export function assertEquals<T>(actual: T, expected: T, message?: string): void;
  export function assertLessOrEqual<T>(actual: T, expected: T, message?: string): void;
  export function assertMatch(actual: string, expected: RegExp, message?: string): void;
  export function assertStringIncludes(actual: string, expected: string, message?: string): void;
  export function assertRejects(
    run: () => PromiseLike<unknown>,
    message?: string,
  ): Promise<unknown>;
  export function assertRejects<E extends Error>(
    run: () => PromiseLike<unknown>,
    errorClass: abstract new (...args: never[]) => E,
    includes?: string,
    message?: string,
  ): Promise<E>;
  export function assertThrows(run: () => unknown, message?: string): unknown;
  export function assertThrows<E extends Error>(
    run: () => unknown,
    errorClass: abstract new (...args: never[]) => E,
    includes?: string,
    message?: string,
  ): E;
}

declare module "@std/async" {
  export function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T>;
  export function deadline<T>(
    promise: Promise<T>,
    milliseconds: number,
    options?: { signal?: AbortSignal },
  ): Promise<T>;
  export function delay(
    milliseconds: number,
    options?: { signal?: AbortSignal; persistent?: boolean },
  ): Promise<void>;
  export function pooledMap<T, R>(
    limit: number,
    items: Iterable<T> | AsyncIterable<T>,
    run: (item: T) => Promise<R>,
  ): AsyncIterableIterator<R>;
  export function retry<T>(
    run: (() => Promise<T>) | (() => T),
    options?: {
      maxAttempts?: number;
      minTimeout?: number;
      maxTimeout?: number;
      multiplier?: number;
      jitter?: number;
      isRetriable?: (error: unknown) => boolean;
    },
  ): Promise<T>;
}
