// The latest values and the health of one server for a page: one connection for all of its parts, and one change a frame.

import { connect, type ConnectOptions, type Kind, type LiveFeed, type Status } from "./feed.js";
import type { Latest, Overview } from "./messages.js";

export type LiveOptions = Omit<ConnectOptions, "symbols" | "kinds" | "since">;

/** Calls once, at the next frame of the screen. */
type Schedule = (call: () => void) => void;

export class Live {
  /** Rises with every change that listeners are told of. */
  version = 0;
  health: Overview | undefined;
  status: Status = { state: "connecting", failures: 0 };
  readonly #latest = new Map<string, Latest>();
  readonly #listeners = new Set<() => void>();
  /** How many parts of the page want a symbol or a kind. */
  readonly #wanted = { symbols: new Map<string, number>(), kinds: new Map<Kind, number>() };
  #feed: LiveFeed | undefined;
  #due = false;

  constructor(
    private readonly options: LiveOptions,
    private readonly schedule: Schedule = nextFrame,
  ) {}

  get feed(): LiveFeed | undefined {
    return this.#feed;
  }

  latest(symbol: string): Latest | undefined {
    return this.#latest.get(symbol);
  }

  /** Connects. It may be started and stopped several times. */
  start(): void {
    if (this.#feed) return;
    const { symbols, kinds } = this.#wanted;
    const feed = (this.#feed = connect({ ...this.options, symbols: [...symbols.keys()], kinds: [...kinds.keys()] }));
    feed.on("latest", (message) => this.#put(message.rows));
    feed.on("conflated", (message) => this.#put(message.rows));
    feed.on("health", (message) => {
      this.health = message;
      this.#changed();
    });
    feed.on("status", (status) => {
      this.status = status;
      this.#changed();
    });
  }

  stop(): void {
    this.#feed?.close();
    this.#feed = undefined;
  }

  /** Wants symbols and kinds until the function that it returns is called. */
  want(symbols: readonly string[], kinds: readonly Kind[]): () => void {
    const first = { symbols: counted(this.#wanted.symbols, symbols, 1), kinds: counted(this.#wanted.kinds, kinds, 1) };
    if (first.symbols.length || first.kinds.length) this.#feed?.subscribe(first);
    return () => {
      const last = { symbols: counted(this.#wanted.symbols, symbols, -1), kinds: counted(this.#wanted.kinds, kinds, -1) };
      if (last.symbols.length || last.kinds.length) this.#feed?.unsubscribe(last);
    };
  }

  /** Calls `listener` after changes, once a frame at most. Returns what ends that. */
  listen(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #put(rows: readonly Latest[]): void {
    for (const row of rows) this.#latest.set(row.symbol, row);
    if (rows.length) this.#changed();
  }

  #changed(): void {
    if (this.#due) return;
    this.#due = true;
    this.schedule(() => {
      this.#due = false;
      this.version++;
      for (const listener of [...this.#listeners]) listener();
    });
  }
}

/** Counts names up or down, and returns those that became wanted, or are wanted no more. */
function counted<Name>(counts: Map<Name, number>, names: readonly Name[], by: 1 | -1): Name[] {
  return [...new Set(names)].filter((name) => {
    const count = (counts.get(name) ?? 0) + by;
    if (count > 0) counts.set(name, count);
    else counts.delete(name);
    return count === (by > 0 ? 1 : 0);
  });
}

function nextFrame(call: () => void): void {
  if (typeof requestAnimationFrame === "function") requestAnimationFrame(call);
  else setTimeout(call, 16);
}
