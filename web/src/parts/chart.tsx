// The last minutes of one symbol: its quotes as a band, its trades as points, and the latest trades one by one.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { get, reason } from "../api";
import { usePage } from "../context";
import { clockOf, decimals, msOf, price } from "../format";
import { Buckets, SPAN_MS } from "../live/buckets";
import { Connection } from "../live/connection";
import { colour, colours } from "../pieces/colours";
import { useStore } from "../store";
import type { Message, Tick, TickPage } from "../types";

const HEIGHT = 260;
/** How often it is drawn, at most. */
const DRAWN_MS = 200;
const MOST_ROWS = 20_000;
/** The live feed does not reach back to what the store has yet: the store is asked again when it has more. */
const AGAIN_MS = 15_000;
const TRIES = 5;

/** Fills buckets with the history of a symbol and then with what comes live, until it is stopped. */
class Follower {
  readonly buckets = new Buckets();
  problem = "";
  #connection: Connection | null = null;
  #timer = 0;
  #stopped = false;

  constructor(
    readonly symbol: string,
    private readonly now: () => number,
    private readonly changed: () => void,
  ) {
    void this.#begin();
  }

  stop(): void {
    this.#stopped = true;
    window.clearTimeout(this.#timer);
    this.#connection?.stop();
  }

  async #begin(): Promise<void> {
    const since = await this.#history();
    if (this.#stopped) return;
    const address = `/v1/stream?symbols=${encodeURIComponent(this.symbol)}&kinds=ticks`;
    // Behind the last event of the store, so that none is missed where the two meet. Those that come twice are known by their ids.
    this.#connection = new Connection(address, { message: (message) => this.#receive(message), phase: () => undefined }, { since });
    this.#connection.start();
  }

  /** Ask the store. Returns the position up to which it has everything; empty without a store. */
  async #history(): Promise<string> {
    try {
      const start = this.now() - SPAN_MS;
      let page = await this.#ask(start);
      if (page.truncated) {
        // Of a busy symbol: all trades, and the quotes of the latest part.
        const [latest, trades] = await Promise.all([this.#ask(newest(page.rows, this.now())), this.#ask(start, "trade")]);
        this.buckets.add(trades.rows, this.now());
        page = latest;
      }
      this.buckets.add(page.rows, this.now());
      this.changed();
      return page.next;
    } catch (error) {
      this.problem = reason(error);
      this.changed();
      return "";
    }
  }

  #ask(startMs: number, kind = ""): Promise<TickPage> {
    return get<TickPage>("/v1/ticks", { symbols: this.symbol, start: `${Math.round(startMs)}000000`, kind, limit: String(MOST_ROWS) });
  }

  #receive(message: Message): void {
    if (message.kind === "hello" && !message.resumed) this.#fill(TRIES);
    if (message.kind !== "ticks") return;
    this.buckets.add(message.rows, this.now());
    this.changed();
  }

  #fill(tries: number): void {
    window.clearTimeout(this.#timer);
    if (tries > 0) this.#timer = window.setTimeout(() => void this.#history().then(() => this.#stopped || this.#fill(tries - 1)), AGAIN_MS);
  }
}

/** From when on so many rows are to be expected, if the symbol goes on as it began. ms since 1970. Pure. */
export function newest(rows: readonly Tick[], nowMs: number): number {
  const [first, last] = [rows[0], rows.at(-1)];
  if (!first || !last) return nowMs;
  return nowMs - Math.max(1_000, (msOf(last.ts_ns) - msOf(first.ts_ns)) * 0.8);
}

export function Chart({ symbol, close }: { symbol: string; close: () => void }) {
  const page = usePage();
  const place = useRef<HTMLDivElement>(null);
  const heading = useRef<HTMLHeadingElement>(null);
  const dark = useStore(colours, (state) => state.dark);
  const follower = useRef<Follower | null>(null);
  const [shown, setShown] = useState<{ trades: readonly Tick[]; problem: string }>({ trades: [], problem: "" });
  useEffect(() => {
    let timer = 0;
    const draw = (): void => {
      timer = 0;
      const { buckets, problem } = found;
      setShown({ trades: [...buckets.trades], problem });
      place.current?.dispatchEvent(new Event("changed"));
    };
    const found = new Follower(
      symbol,
      () => page.store.state.now,
      () => (timer ||= window.setTimeout(draw, DRAWN_MS)),
    );
    follower.current = found;
    heading.current?.scrollIntoView({ block: "nearest" });
    return () => {
      window.clearTimeout(timer);
      found.stop();
    };
  }, [symbol]);
  useLayoutEffect(() => {
    const target = place.current;
    if (!target) return undefined;
    const now = (): number => page.store.state.now;
    const plot = new uPlot(settings(target.clientWidth, () => now() / 1_000), [[], [], [], []], target);
    let frame = 0;
    const draw = (): void => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        if (follower.current) plot.setData(follower.current.buckets.columns(now()));
      });
    };
    draw();
    target.addEventListener("changed", draw);
    const timer = window.setInterval(draw, 1_000); // the time goes on while nothing comes
    const watcher = new ResizeObserver(() => {
      if (target.clientWidth > 0 && target.clientWidth !== plot.width) plot.setSize({ width: target.clientWidth, height: HEIGHT });
    });
    watcher.observe(target);
    return () => {
      cancelAnimationFrame(frame);
      window.clearInterval(timer);
      target.removeEventListener("changed", draw);
      watcher.disconnect();
      plot.destroy();
    };
  }, [dark]);
  return (
    <section class="chart-of" aria-labelledby="chart-title">
      <header>
        <h3 id="chart-title" ref={heading}>
          {symbol}, the last 5 minutes
        </h3>
        <span class="keys" aria-hidden="true">
          <span class="key quotes" /> bid to ask <span class="key trades" /> trades
        </span>
        <button type="button" class="quiet" onClick={close}>
          Close
        </button>
      </header>
      {shown.problem && <p class="note">{shown.problem}</p>}
      <div class="chart-row">
        <div ref={place} class="plot" role="img" aria-label={`Trades and quotes of ${symbol} over the last 5 minutes. Its latest trades are in the table that follows.`} style={{ height: `${HEIGHT}px` }} />
        <Trades trades={shown.trades} symbol={symbol} />
      </div>
    </section>
  );
}

function Trades({ trades, symbol }: { trades: readonly Tick[]; symbol: string }) {
  const places = Math.max(0, ...trades.map((trade) => decimals(trade.last ?? 0)));
  const sizes = Math.max(0, ...trades.map((trade) => decimals(trade.volume ?? 0)));
  return (
    <table class="trades">
      <caption class="unseen">The latest trades of {symbol}</caption>
      <thead>
        <tr>
          <th scope="col">Time (UTC)</th>
          <th scope="col" class="number">
            Price
          </th>
          <th scope="col" class="number">
            Size
          </th>
          <th scope="col">Side</th>
        </tr>
      </thead>
      <tbody>
        {trades.map((trade) => (
          <tr key={trade.id}>
            <td>{clockOf(msOf(trade.ts_ns), 12)}</td>
            <td class="number">{price(trade.last, places)}</td>
            <td class="number">{price(trade.volume, sizes)}</td>
            <td>{trade.side ?? ""}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function settings(width: number, now: () => number): uPlot.Options {
  const [ink, grid, faint] = [colour("line"), colour("edge"), colour("faint")];
  const axis = { stroke: faint, font: "11px system-ui, sans-serif", grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
  const held = uPlot.paths.stepped?.({ align: 1 });
  const quote = { stroke: ink, width: 1, points: { show: false }, ...(held ? { paths: held } : {}) };
  return {
    width: Math.max(width, 100),
    height: HEIGHT,
    padding: [8, 8, 0, 0],
    cursor: { drag: { x: false, y: false }, points: { show: false } },
    legend: { show: false },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1_000), "Etc/UTC"),
    scales: { x: { time: true, range: () => [now() - SPAN_MS / 1_000, now()] } },
    axes: [{ ...axis, space: 80, values: (_, ticks) => ticks.map((tick) => clockOf(tick * 1_000)) }, { ...axis, size: 74, values: (_, ticks) => ticks.map((tick) => tick.toLocaleString("en-US", { maximumFractionDigits: 8 })) }],
    series: [
      {},
      { ...quote, label: "Bid" },
      { ...quote, label: "Ask" },
      { label: "Trades", stroke: colour("line-2"), width: 0, paths: () => null, points: { show: true, size: 4, width: 0, fill: colour("line-2") } },
    ],
    bands: [{ series: [2, 1], fill: colour("line", 0.15) }],
  };
}
