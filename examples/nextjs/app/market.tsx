"use client";
// The page in the browser: the health line, the ticker, and the chart of the chosen symbol. All share one connection but the chart's.

import { toDate, type Latest } from "@tapeline/client";
import { TapelineProvider, useHealth, useLatest, useTapeline } from "@tapeline/client/react";
import { useState } from "react";
import { Chart } from "./chart";

export function Market({ url, symbols, token }: { url: string; symbols: string[]; token?: string }) {
  const [symbol, choose] = useState(symbols[0] ?? "");
  return (
    <TapelineProvider url={url} token={token} rate={10}>
      <main>
        <h1>Tapeline</h1>
        <HealthLine />
        <Ticker symbols={symbols} chosen={symbol} choose={choose} />
        <Chart key={symbol} url={url} token={token} symbol={symbol} />
      </main>
    </TapelineProvider>
  );
}

function HealthLine() {
  const health = useHealth();
  const { status } = useTapeline();
  const state = status.state === "open" ? (health?.verdict.state ?? "unknown") : "unknown";
  const text = status.state === "open" ? (health?.verdict.text ?? "Connected.") : (status.error?.message ?? "Connecting …");
  return (
    <p role="status" className={`health ${state}`}>
      {text}
    </p>
  );
}

function Ticker({ symbols, chosen, choose }: { symbols: string[]; chosen: string; choose: (symbol: string) => void }) {
  const values = useLatest(symbols);
  return (
    <table className="ticker">
      <thead>
        <tr>
          {["Symbol", "Last", "Bid", "Ask", "Time (UTC)"].map((name) => (
            <th key={name} scope="col">
              {name}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {symbols.map((symbol, at) => (
          <tr key={symbol} aria-current={symbol === chosen}>
            <th scope="row">
              <button onClick={() => choose(symbol)}>{symbol}</button>
            </th>
            <Values latest={values[at]} />
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Values({ latest }: { latest: Latest | undefined }) {
  const at = latest?.trade_ts_ns;
  return (
    <>
      <td>{latest?.last ?? "-"}</td>
      <td>{latest?.bid ?? "-"}</td>
      <td>{latest?.ask ?? "-"}</td>
      <td>{at ? toDate(at).toISOString().slice(11, 23) : "-"}</td>
    </>
  );
}
