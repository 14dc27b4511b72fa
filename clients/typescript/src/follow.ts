// History joined to the live feed: every trade and quote of a symbol, once each, also over lost connections.

import { TapelineError } from "./errors.js";
import { connect, type ConnectOptions } from "./feed.js";
import { compareIds, reaches } from "./ids.js";
import type { Tick } from "./messages.js";
import { rest } from "./rest.js";
import { fromDate } from "./times.js";

export interface FollowOptions extends Omit<ConnectOptions, "symbols" | "kinds" | "since" | "rate" | "lossless"> {
  /** How far back the history begins. */
  seconds?: number;
  /** Where it begins instead: ns since 1970, or ISO 8601 with a zone. */
  start?: string;
  /** Only these. */
  kind?: "trade" | "quote";
  /** The store of the history: lake or postgresql. */
  source?: string;
  /** How late an event may come, in seconds, when the feed was away for so long that the history has to be asked again. */
  lateness?: number;
  signal?: AbortSignal;
}

export interface Followed {
  rows: Tick[];
  /** False for the history. */
  live: boolean;
}

const NS_PER_S = 1_000_000_000n;
/** Further than any clock is wrong: an event may be of the next second. */
const AHEAD_MS = 86_400_000;
const PAGE = 100_000;
const AGAIN_MS = 1_000;

/** Yields the ticks of a symbol: those of the history together, in the order in which they were received, then the live ones as they come. */
export async function* follow(symbol: string, options: FollowOptions): AsyncGenerator<Followed, void, undefined> {
  const { seconds = 300, start, kind, source, lateness = 60, signal, ...server } = options;
  const seen = new Seen(BigInt(lateness) * NS_PER_S);
  let from = start ?? String(fromDate(Date.now() - seconds * 1_000));
  while (!signal?.aborted) {
    const { rows, first, last } = await history(symbol, from, options);
    if (!first) {
      await pause(AGAIN_MS, signal); // the server does not know yet where the store ends
      continue;
    }
    const fresh = merged(rows.filter((row) => seen.add(row)));
    if (fresh.length) yield { rows: fresh, live: false };
    const feed = connect({ ...server, symbols: [symbol], kinds: ["ticks"], since: first, lossless: true });
    const stop = () => feed.close();
    signal?.addEventListener("abort", stop);
    try {
      for await (const message of feed) {
        if (message.kind === "hello" && !message.resumed) break; // away for too long: the rest is in the history
        if (message.kind !== "ticks") continue;
        const wanted = kind ? message.rows.filter((row) => row.kind === kind) : message.rows;
        const unseen = wanted.filter((row) => seen.add(row));
        if (reaches(message.id, last)) seen.forget(); // from here on, nothing comes that was in the history
        if (unseen.length) yield { rows: unseen, live: true };
      }
    } finally {
      signal?.removeEventListener("abort", stop);
      feed.close();
    }
    await pause(AGAIN_MS, signal);
    if (seen.newest !== undefined) from = String(seen.newest - BigInt(lateness) * NS_PER_S);
  }
}

interface Found {
  rows: Tick[];
  /** The positions of the first and the last page: what was stored between the two may be in the rows or not. */
  first: string;
  last: string;
}

async function history(symbol: string, start: string, options: FollowOptions): Promise<Found> {
  const { ticks, symbols } = rest(options);
  const found = new Map<string, Tick>();
  const query = { symbols: symbol, end: String(fromDate(Date.now() + AHEAD_MS)), limit: PAGE };
  const only = { ...(options.kind && { kind: options.kind }), ...(options.source && { source: options.source }) };
  let first: string | undefined;
  for (let from = start; ; ) {
    let page;
    try {
      page = await ticks({ ...query, ...only, start: from });
    } catch (error) {
      if (error instanceof TapelineError && error.status === 400) {
        // A symbol that is live, and not in the store yet, comes there soon.
        const known = (await symbols()).rows.some((row) => row.symbol === symbol);
        if (known) return { rows: [], first: "", last: "" };
      } else if (error instanceof TapelineError && error.retry) {
        return { rows: [], first: "", last: "" };
      }
      throw error;
    }
    first ??= page.next;
    for (const row of page.rows) found.set(row.id, row);
    const end = page.rows.at(-1)?.ts_ns;
    if (!page.truncated || end === undefined) return { rows: [...found.values()], first, last: page.next };
    if (end === from) throw new TapelineError(`More than ${PAGE} events of ${symbol} have the time ${end}.`, 0, false);
    from = end; // the events of this very time may be cut, so they come again
  }
}

/** Rows in the order in which they were received: those of one partition by their ids, the partitions by the time of receipt. */
function merged(rows: Tick[]): Tick[] {
  const parts = new Map<string, Tick[]>();
  for (const row of rows) {
    const partition = row.id.slice(0, row.id.indexOf("-"));
    const part = parts.get(partition);
    if (part) part.push(row);
    else parts.set(partition, [row]);
  }
  const queues = [...parts.values()].map((part) => ({ rows: part.sort((a, b) => compareIds(a.id, b.id)), at: 0 }));
  const found: Tick[] = [];
  while (found.length < rows.length) {
    let next: { row: Tick; queue: { at: number } } | undefined;
    for (const queue of queues) {
      const row = queue.rows[queue.at];
      if (row && (!next || BigInt(row.received_ns) < BigInt(next.row.received_ns))) next = { row, queue };
    }
    if (!next) break;
    next.queue.at++;
    found.push(next.row);
  }
  return found;
}

/** The ids that were yielded: all while history and live overlap, then those of the last seconds. */
class Seen {
  newest: bigint | undefined;
  #times = new Map<string, bigint>();
  #all = true;
  #most = 10_000;

  constructor(private readonly kept: bigint) {}

  /** Takes an event in. Returns whether it is new. */
  add(row: Tick): boolean {
    if (this.#times.has(row.id)) return false;
    const at = BigInt(row.ts_ns);
    this.#times.set(row.id, at);
    if (this.newest === undefined || at > this.newest) this.newest = at;
    if (!this.#all && this.#times.size > this.#most) this.#prune();
    return true;
  }

  forget(): void {
    if (!this.#all) return;
    this.#all = false;
    this.#prune();
  }

  #prune(): void {
    const oldest = (this.newest ?? 0n) - this.kept;
    for (const [id, at] of this.#times) if (at < oldest) this.#times.delete(id);
    this.#most = Math.max(10_000, 2 * this.#times.size);
  }
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
  });
}
