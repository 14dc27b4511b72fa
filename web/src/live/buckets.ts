// The last minutes of one symbol: quotes and trades in buckets of a quarter of a second, and its latest trades one by one.
import { msOf } from "../format";
import type { Tick } from "../types";

export const SPAN_MS = 5 * 60_000;
const BUCKET_MS = 250;
const LATEST_TRADES = 14;

interface Bucket {
  quoted: number;
  bid: number | null;
  ask: number | null;
  traded: number;
  price: number | null;
}

/** Times (s since 1970), bids, asks and prices of trades, as a chart takes them. */
export type Columns = [number[], (number | null)[], (number | null)[], (number | null)[]];

export class Buckets {
  readonly #buckets = new Map<number, Bucket>();
  #trades: Tick[] = [];

  /** The latest trades, the newest first. */
  get trades(): readonly Tick[] {
    return this.#trades;
  }

  /** Take ticks in, in any order. One that came before changes nothing: a bucket keeps its last values, and trades have ids. */
  add(ticks: readonly Tick[], nowMs: number): void {
    for (const tick of ticks) {
      const at = msOf(tick.ts_ns);
      if (at < nowMs - SPAN_MS) continue;
      const number = Math.floor(at / BUCKET_MS);
      const bucket = this.#buckets.get(number) ?? { quoted: 0, bid: null, ask: null, traded: 0, price: null };
      if (tick.kind === "quote" && at >= bucket.quoted) {
        bucket.quoted = at;
        bucket.bid = tick.bid ?? null;
        bucket.ask = tick.ask ?? null;
      } else if (tick.kind === "trade" && tick.last != null) {
        if (at >= bucket.traded) {
          bucket.traded = at;
          bucket.price = tick.last;
        }
        this.#remember(tick);
      }
      this.#buckets.set(number, bucket);
    }
    for (const number of this.#buckets.keys()) if ((number + 1) * BUCKET_MS < nowMs - SPAN_MS) this.#buckets.delete(number);
  }

  /** The chart's columns. A quote is in force until the next one. */
  columns(nowMs: number): Columns {
    const found: Columns = [[], [], [], []];
    let bid: number | null = null;
    let ask: number | null = null;
    for (const number of [...this.#buckets.keys()].sort((a, b) => a - b)) {
      const bucket = this.#buckets.get(number)!;
      if (bucket.quoted) [bid, ask] = [bucket.bid, bucket.ask];
      found[0].push((number * BUCKET_MS) / 1_000);
      found[1].push(bid);
      found[2].push(ask);
      found[3].push(bucket.price);
    }
    const last = found[0].at(-1);
    if (last !== undefined && last < nowMs / 1_000) {
      found[0].push(nowMs / 1_000);
      found[1].push(bid);
      found[2].push(ask);
      found[3].push(null);
    }
    return found;
  }

  #remember(trade: Tick): void {
    const oldest = this.#trades.at(-1);
    if (this.#trades.length >= LATEST_TRADES && oldest && msOf(trade.ts_ns) < msOf(oldest.ts_ns)) return;
    if (this.#trades.some((known) => known.id === trade.id)) return;
    const at = this.#trades.findIndex((known) => msOf(known.ts_ns) <= msOf(trade.ts_ns));
    this.#trades.splice(at < 0 ? this.#trades.length : at, 0, trade);
    this.#trades.length = Math.min(this.#trades.length, LATEST_TRADES);
  }
}
