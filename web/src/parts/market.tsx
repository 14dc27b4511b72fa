// What is the market doing? A live table of symbols, of which only the rows in sight are drawn.
import { useMemo, useState } from "preact/hooks";
import { usePage, usePageState } from "../context";
import { age, counted, price } from "../format";
import { lastEvent, spread, spreadBps, type Column, type Row } from "../live/market";
import { Filler, useVisible } from "../pieces/visible";
import { Chart } from "./chart";
import { Nothing, Part } from "./part";

const ROW_PX = 30;
/** A symbol that has been quiet for so long is faint. */
const QUIET_S = 60;
/** More decimals of a size say little and take much room. */
const MOST_PLACES = 6;

const COLUMNS: readonly { column: Column; text: string }[] = [
  { column: "symbol", text: "Symbol" },
  { column: "last", text: "Last" },
  { column: "bid", text: "Bid" },
  { column: "ask", text: "Ask" },
  { column: "spread", text: "Spread" },
  { column: "volume", text: "Last size" },
  { column: "age", text: "Age" },
];

/** Of a narrow table, two columns are left out. */
const CLASSES: Partial<Record<Column, string>> = { symbol: "", spread: "number middle-only", volume: "number middle-only" };

export function Market() {
  const page = usePage();
  const version = usePageState((state) => state.marketVersion);
  const [filter, setFilter] = useState("");
  const [order, setOrder] = useState<{ column: Column; descending: boolean }>({ column: "symbol", descending: false });
  const [symbol, setSymbol] = useState("");
  const rows = useMemo(() => page.market.ordered(filter, order.column, order.descending), [version, filter, order]);
  const { box, onScroll, first, end } = useVisible(rows.length, ROW_PX);
  const travelling = usePageState((state) => state.travel !== null);
  return (
    <Part id="market" beside={<span class="faint">{travelling ? "always the present" : page.market.rows.size > 0 && counted(page.market.rows.size, "symbol")}</span>}>
      <div class="controls">
        <input type="search" placeholder="Symbol" aria-label="Show only symbols with this text" value={filter} onInput={(event) => setFilter(event.currentTarget.value)} />
      </div>
      <div class="market-row">
      <div class="scroll market-box" ref={box} onScroll={onScroll} tabIndex={0} role="region" aria-label="Symbols">
        <table class="market" aria-rowcount={rows.length + 1}>
          <thead>
            <tr aria-rowindex={1}>
              {COLUMNS.map(({ column, text }) => {
                const here = order.column === column;
                return (
                  <th key={column} scope="col" class={CLASSES[column] ?? "number"} aria-sort={here ? (order.descending ? "descending" : "ascending") : "none"}>
                    <button type="button" class="sort" onClick={() => setOrder({ column, descending: here ? !order.descending : column !== "symbol" })}>
                      {text}
                      <span aria-hidden="true" class="direction">
                        {here ? (order.descending ? "▼" : "▲") : ""}
                      </span>
                    </button>
                  </th>
                );
              })}
            </tr>
          </thead>
          <tbody>
            <Filler rows={first} rowHeight={ROW_PX} columns={COLUMNS.length} />
            {rows.slice(first, end).map((row, offset) => (
              <OneSymbol key={row.latest.symbol} row={row} number={first + offset} chosen={symbol === row.latest.symbol} choose={() => setSymbol(symbol === row.latest.symbol ? "" : row.latest.symbol)} />
            ))}
            <Filler rows={rows.length - end} rowHeight={ROW_PX} columns={COLUMNS.length} />
          </tbody>
        </table>
        {rows.length === 0 && <Nothing>{page.market.rows.size ? "No symbol has this text." : "No event has come yet."}</Nothing>}
      </div>
      {symbol ? <Chart key={symbol} symbol={symbol} close={() => setSymbol("")} /> : <Nothing>Choose a symbol to see its last minutes.</Nothing>}
      </div>
    </Part>
  );
}

function OneSymbol({ row, number, chosen, choose }: { row: Row; number: number; chosen: boolean; choose: () => void }) {
  const { latest, places, moved } = row;
  const now = usePageState((state) => Math.floor(state.now / 1_000));
  const quiet = now - lastEvent(latest) / 1_000;
  const width = spread(latest);
  const bps = spreadBps(latest);
  return (
    <tr aria-rowindex={number + 2} class={`${chosen ? "chosen" : ""} ${quiet > QUIET_S ? "is-quiet" : ""}`} style={{ height: `${ROW_PX}px` }} onClick={choose}>
      <th scope="row">
        <button
          type="button"
          class="link"
          aria-expanded={chosen}
          aria-label={`Chart of ${latest.symbol}`}
          onClick={(event) => {
            event.stopPropagation();
            choose();
          }}
        >
          {latest.symbol}
        </button>
      </th>
      <td class="number strong">
        <span class={`moved moved-${moved < 0 ? "down" : moved > 0 ? "up" : "not"}`} aria-hidden="true">
          {moved < 0 ? "▼" : moved > 0 ? "▲" : ""}
        </span>
        {price(latest.last, places)}
      </td>
      <td class="number">{price(latest.bid, places)}</td>
      <td class="number">{price(latest.ask, places)}</td>
      <td class="number middle-only">
        {width === null ? "–" : price(width, places)}
        <small> {bps === null ? "" : `${bps.toFixed(1)} bp`}</small>
      </td>
      <td class="number middle-only">{price(latest.volume, Math.min(row.sizePlaces, MOST_PLACES))}</td>
      <td class="number">{age(quiet)}</td>
    </tr>
  );
}
