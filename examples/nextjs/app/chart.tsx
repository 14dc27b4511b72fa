"use client";
// The chart: the trades of the last minutes from the history, and from then on the live ones, each once.

import { follow } from "@tapeline/client";
import { CandlestickSeries, createChart, type UTCTimestamp } from "lightweight-charts";
import { useEffect, useRef, useState } from "react";
import { Candles, type Candle } from "./candles";

const HISTORY_S = 900;
const CANDLE_S = 5;
/** How often the chart is drawn, at most. */
const DRAW_MS = 250;

export function Chart({ url, token, symbol }: { url: string; token?: string; symbol: string }) {
  const place = useRef<HTMLDivElement>(null);
  const [candles, setCandles] = useState<Candle[]>([]);
  const [problem, setProblem] = useState("");

  useEffect(() => {
    if (!place.current) return;
    // The library's own logo is the attribution that its licence asks for.
    const chart = createChart(place.current, { autoSize: true, layout: { attributionLogo: true }, timeScale: { timeVisible: true, secondsVisible: true } });
    const series = chart.addSeries(CandlestickSeries);
    const abort = new AbortController();
    const found = new Candles(CANDLE_S);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const draw = () => {
      timer = undefined;
      const all = found.all;
      series.setData(all.map((candle) => ({ ...candle, time: candle.time as UTCTimestamp })));
      setCandles(all);
    };
    const run = async () => {
      for await (const { rows } of follow(symbol, { url, token, seconds: HISTORY_S, kind: "trade", signal: abort.signal })) {
        found.add(rows);
        timer ??= setTimeout(draw, DRAW_MS);
      }
    };
    run().catch((error: unknown) => setProblem(String(error)));
    return () => {
      abort.abort();
      clearTimeout(timer);
      chart.remove();
    };
  }, [url, token, symbol]);

  return (
    <section aria-label={`Chart of ${symbol}`}>
      <div ref={place} className="chart" />
      {problem && <p role="alert">{problem}</p>}
      <details>
        <summary>
          The {candles.length} candles of {symbol} as a table
        </summary>
        <table className="candles">
          <tbody>
            {candles.map(({ time, open, high, low, close, volume, trades }) => (
              <tr key={time}>
                {[time, open, high, low, close, volume, trades].map((value, at) => (
                  <td key={at}>{value}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </details>
      <footer>
        Chart: TradingView Lightweight Charts™, Copyright (c) TradingView, Inc., <a href="https://www.tradingview.com/">www.tradingview.com</a>
      </footer>
    </section>
  );
}
