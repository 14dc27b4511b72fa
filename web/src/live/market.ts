// The latest values of every symbol, in the order of a column, for a table that draws only some of them.
import { decimals, msOf } from "../format";
import type { Latest } from "../types";

export type Column = "symbol" | "last" | "bid" | "ask" | "spread" | "volume" | "age";

export interface Row {
  latest: Latest;
  /** The most decimals that a price of the symbol has had, so that its prices stay below each other. */
  places: number;
  sizePlaces: number;
  /** Whether the last trade was at a higher price (1) or a lower one (-1) than the one before. */
  moved: -1 | 0 | 1;
}

/** The time of the last event, in ms since 1970; 0 without one. */
export function lastEvent(latest: Latest): number {
  return Math.max(msOf(latest.trade_ts_ns ?? "0"), msOf(latest.quote_ts_ns ?? "0"));
}

export function spread(latest: Latest): number | null {
  return latest.bid == null || latest.ask == null ? null : latest.ask - latest.bid;
}

/** The spread in parts of ten thousand of the middle. */
export function spreadBps(latest: Latest): number | null {
  const width = spread(latest);
  if (width === null) return null;
  const middle = (latest.bid! + latest.ask!) / 2;
  return middle > 0 ? (width / middle) * 10_000 : null;
}

export class Market {
  readonly rows = new Map<string, Row>();

  /** Take values in. Those of a symbol replace its earlier ones. */
  put(values: readonly Latest[]): void {
    for (const latest of values) {
      const before = this.rows.get(latest.symbol);
      const from = before?.latest.last;
      const moved = latest.last == null || from == null || latest.last === from ? (before?.moved ?? 0) : latest.last > from ? 1 : -1;
      this.rows.set(latest.symbol, {
        latest,
        places: most(before?.places, latest.last, latest.bid, latest.ask),
        sizePlaces: most(before?.sizePlaces, latest.volume),
        moved,
      });
    }
  }

  /** The rows whose symbol contains a text, ordered by a column; those without a value come last. */
  ordered(filter: string, column: Column, descending: boolean): Row[] {
    const wanted = filter.trim().toUpperCase();
    const found = [...this.rows.values()].filter((row) => row.latest.symbol.toUpperCase().includes(wanted));
    const direction = descending ? -1 : 1;
    if (column === "symbol") return found.sort((a, b) => direction * compare(a.latest.symbol, b.latest.symbol));
    const value = VALUES[column];
    return found
      .map((row) => ({ row, key: value(row.latest) }))
      .sort((a, b) => {
        if (a.key === null || b.key === null) return Number(a.key === null) - Number(b.key === null);
        return direction * (a.key - b.key) || compare(a.row.latest.symbol, b.row.latest.symbol);
      })
      .map(({ row }) => row);
  }
}

const VALUES: Record<Exclude<Column, "symbol">, (latest: Latest) => number | null> = {
  last: (latest) => latest.last ?? null,
  bid: (latest) => latest.bid ?? null,
  ask: (latest) => latest.ask ?? null,
  spread: spreadBps,
  volume: (latest) => latest.volume ?? null,
  age: (latest) => -lastEvent(latest),
};

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function most(before: number | undefined, ...values: (number | null | undefined)[]): number {
  return Math.max(before ?? 0, ...values.map((value) => (value == null ? 0 : decimals(value))));
}
