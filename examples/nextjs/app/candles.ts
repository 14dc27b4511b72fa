// Candles of trades. Trades may come late and out of order: the open is of the earliest one, the close of the latest.

import { compareIds, type Tick } from "@tapeline/client";

export interface Candle {
  /** The begin, in seconds since 1970. */
  time: number;
  open: number;
  high: number;
  low: number;
  close: number;
  volume: number;
  trades: number;
}

interface Growing extends Candle {
  first: Tick;
  last: Tick;
}

export class Candles {
  readonly #candles = new Map<number, Growing>();

  constructor(private readonly seconds: number) {}

  add(trades: readonly Tick[]): void {
    for (const trade of trades) {
      const { last: price, volume } = trade;
      if (price == null || volume == null) continue;
      const time = Number(BigInt(trade.ts_ns) / 1_000_000_000n / BigInt(this.seconds)) * this.seconds;
      const candle = this.#candles.get(time);
      if (!candle) {
        this.#candles.set(time, { time, open: price, high: price, low: price, close: price, volume, trades: 1, first: trade, last: trade });
        continue;
      }
      candle.high = Math.max(candle.high, price);
      candle.low = Math.min(candle.low, price);
      candle.volume += volume;
      candle.trades += 1;
      if (earlier(trade, candle.first)) Object.assign(candle, { first: trade, open: price });
      if (earlier(candle.last, trade)) Object.assign(candle, { last: trade, close: price });
    }
  }

  /** All candles, in order of time. */
  get all(): Candle[] {
    return [...this.#candles.values()].sort((a, b) => a.time - b.time).map(({ first: _first, last: _last, ...candle }) => candle);
  }
}

function earlier(a: Tick, b: Tick): boolean {
  if (a.ts_ns === b.ts_ns) return compareIds(a.id, b.id) < 0;
  return BigInt(a.ts_ns) < BigInt(b.ts_ns);
}
