// What is kept is bounded: a page that is left open for a day does not grow.
import { describe, expect, it } from "vitest";
import { Buckets, SPAN_MS } from "../live/buckets";
import { Market, spreadBps } from "../live/market";
import { HOUR_S, Past } from "../live/past";
import { Series } from "../live/series";
import type { Overview, State, Tick } from "../types";

const START_MS = 1_767_583_951_000;

function tick(at: number, values: Partial<Tick>): Tick {
  const source = { exchange: "binance", provider: "binance", feed: "spot", channel: "trade" };
  const ns = `${START_MS + at}000000`;
  return { id: `0-${at}-0`, symbol: "BTC/USDT", ts_ns: ns, received_ns: ns, kind: "trade", ...source, ...values };
}

function look(second: number, state: State): Overview {
  const feed = { provider: "binance", feed: "spot", events_per_s: second, p50_ms: 1, p99_ms: null };
  return { at_ns: `${START_MS + second * 1_000}000000`, verdict: { state, text: "", problems: [] }, feeds: [feed] } as unknown as Overview;
}

describe("a series", () => {
  it("forgets what is too old and what comes twice", () => {
    const series = new Series(1, 100, 150);
    for (let second = 0; second < 5_000; second++) series.push(second, [second]);
    series.push(4_999, [7]);
    expect(series.times.at(-1)).toBe(4_999);
    expect(series.columns[0]!.at(-1)).toBe(4_999);
    expect(series.times.length).toBeLessThan(100 + 300);
    expect(series.columns[0]!.length).toBe(series.times.length);
  });
});

describe("the past hour", () => {
  it("is as many stretches as the state changed, and an hour long", () => {
    const past = new Past();
    const state = (second: number): State => (second >= 9_000 && second < 9_010 ? "problem" : "well");
    for (let second = 0; second < 10_000; second++) past.add(look(second, state(second)));
    const start = START_MS / 1_000;
    expect(past.stretches).toEqual([
      { state: "well", start, end: start + 9_000 },
      { state: "problem", start: start + 9_000, end: start + 9_010 },
      { state: "well", start: start + 9_010, end: start + 9_999 },
    ]);
    for (let second = 20_000; second < 20_000 + HOUR_S; second++) past.add(look(second, "well"));
    expect(past.stretches.length).toBe(1);
    expect(past.feeds.get("binance/spot")!.times.length).toBeLessThan(1_500);
  });
});

describe("the buckets of a symbol", () => {
  it("hold a quote until the next one, and the last values of a quarter of a second", () => {
    const buckets = new Buckets();
    const ticks = [
      tick(0, { kind: "quote", bid: 10, ask: 11 }),
      tick(240, { last: 10.5, volume: 1 }),
      tick(230, { last: 10.4, volume: 1 }),
      tick(600, { last: 10.9, volume: 2 }),
    ];
    buckets.add(ticks, START_MS + 1_000);
    buckets.add(ticks, START_MS + 1_000);
    const at = START_MS / 1_000;
    expect(buckets.columns(START_MS + 1_000)).toEqual([
      [at, at + 0.5, at + 1],
      [10, 10, 10],
      [11, 11, 11],
      [10.5, 10.9, null],
    ]);
    expect(buckets.trades.map((trade) => trade.last)).toEqual([10.9, 10.5, 10.4]);
  });

  it("are bounded, whatever comes", () => {
    const buckets = new Buckets();
    for (let second = 0; second < 1_000; second++) {
      const some = Array.from({ length: 50 }, (_, number) => tick(second * 1_000 + number * 20, { last: number, volume: 1 }));
      buckets.add(some, START_MS + second * 1_000 + 1_000);
    }
    expect(buckets.columns(START_MS + 1_000_000)[0].length).toBeLessThanOrEqual(SPAN_MS / 250 + 2);
    expect(buckets.trades.length).toBe(14);
  });
});

describe("the market", () => {
  it("keeps one row for each symbol, in any order, those without a value last", () => {
    const market = new Market();
    market.put([
      { symbol: "A", bid: 99, ask: 101 },
      { symbol: "B", last: 5.25, bid: 4.99, ask: 5.01 },
      { symbol: "C", last: 7 },
    ]);
    market.put([{ symbol: "C", last: 6.5 }]);
    const names = (column: "symbol" | "last" | "spread", descending: boolean) => market.ordered("", column, descending).map((row) => row.latest.symbol);
    expect(names("symbol", true)).toEqual(["C", "B", "A"]);
    expect(names("last", true)).toEqual(["C", "B", "A"]);
    expect(names("last", false)).toEqual(["B", "C", "A"]);
    expect(names("spread", false)).toEqual(["B", "A", "C"]);
    expect(market.ordered("b", "symbol", false).length).toBe(1);
    expect(market.rows.get("C")).toMatchObject({ moved: -1, places: 1 });
    expect(spreadBps({ symbol: "A", bid: 99, ask: 101 })).toBe(200);
  });
});
