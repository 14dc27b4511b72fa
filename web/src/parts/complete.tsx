// Is it complete? A grid of symbols and hours or days, coloured by what the ledger says.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { get, reason } from "../api";
import { usePage, usePageState } from "../context";
import { msOf, share } from "../format";
import { chosen, covered, headOf, moved, said, span, STATES, STEPS, summary, timeOfCell, type Place, type Step } from "../pieces/cells";
import { Filler, useVisible } from "../pieces/visible";
import type { CellState, Grid, Row } from "../types";
import { EvidenceDialog, type Asked } from "./evidence";
import { Nothing, Part } from "./part";

const ROW_PX = 26;
/** The ledger is asked again so often, and soon after the number of gaps has changed. */
const AGAIN_MS = 30_000;
const SOON_MS = 700;
const PAGE_ROWS = 10;
const NAMES: Record<Step, string> = { minute: "Minutes", hour: "Hours", day: "Days" };
/** The head of a cell with which something begins: an hour, a day, a month. */
const BEGINS: Record<Step, string> = { minute: "00", hour: "00", day: "01" };

/** What the server says of the span that is looked at. */
function useGrid(step: Step, back: number): { grid: Grid | null; problem: string } {
  const page = usePage();
  const gaps = usePageState((state) => state.gapsVersion);
  const known = usePageState((state) => state.overview !== null);
  const [answer, setAnswer] = useState<{ grid: Grid | null; problem: string; of: string }>({ grid: null, problem: "", of: "" });
  const of = `${step} ${back}`;
  useEffect(() => {
    if (!known) return undefined;
    let timer = 0;
    const asking = new AbortController();
    const ask = async (): Promise<void> => {
      window.clearTimeout(timer);
      if (document.visibilityState === "visible") {
        const { start, end } = span(page.store.state.now, step, back);
        const query = { start: `${start}000000`, end: `${end}000000`, step: STEPS[step].text };
        try {
          setAnswer({ grid: await get<Grid>("/v1/coverage", query, asking.signal), problem: "", of });
        } catch (error) {
          if (!asking.signal.aborted) setAnswer((before) => ({ ...before, problem: reason(error) }));
        }
      }
      if (!asking.signal.aborted) timer = window.setTimeout(() => void ask(), AGAIN_MS);
    };
    timer = window.setTimeout(() => void ask(), answer.of === of ? SOON_MS : 0);
    return () => {
      window.clearTimeout(timer);
      asking.abort();
    };
  }, [step, back, gaps, known]);
  return answer;
}

export function Complete() {
  const [step, setStep] = useState<Step>("hour");
  const [back, setBack] = useState(0);
  const [filter, setFilter] = useState("");
  const [holes, setHoles] = useState(false);
  const { grid, problem } = useGrid(step, back);
  const rows = useMemo(() => (grid ? chosen(grid, filter, holes) : []), [grid, filter, holes]);
  const choose = (next: Step): void => {
    setStep(next);
    setBack(0);
  };
  return (
    <Part id="complete" beside={grid && <span class="faint">{summary(grid.rows)}</span>}>
      <div class="controls">
        <div role="group" aria-label="Length of a cell" class="choice">
          {(Object.keys(STEPS) as Step[]).map((some) => (
            <button key={some} type="button" aria-pressed={step === some} onClick={() => choose(some)}>
              {NAMES[some]}
            </button>
          ))}
        </div>
        <div role="group" aria-label="The time that is shown" class="choice">
          <button type="button" onClick={() => setBack(back + 1)}>
            Earlier
          </button>
          <button type="button" disabled={back === 0} onClick={() => setBack(Math.max(0, back - 1))}>
            Later
          </button>
        </div>
        <input type="search" placeholder="Symbol or feed" aria-label="Show only rows with this text" value={filter} onInput={(event) => setFilter(event.currentTarget.value)} />
        <label class="check">
          <input type="checkbox" checked={holes} onChange={(event) => setHoles(event.currentTarget.checked)} /> Only holes
        </label>
      </div>
      {problem && <Nothing>{problem}</Nothing>}
      {!problem && grid && rows.length === 0 && <Nothing>{grid.rows.length ? "No row has this text or a hole." : "The ledger has nothing of this time yet."}</Nothing>}
      {!grid && !problem && <Nothing>The ledger is asked …</Nothing>}
      {grid && rows.length > 0 && <Cells grid={grid} rows={rows} step={step} />}
      <Legend />
    </Part>
  );
}

function Cells({ grid, rows, step }: { grid: Grid; rows: Row[]; step: Step }) {
  const start = msOf(grid.start_ns);
  const { ms } = STEPS[step];
  const cells = rows[0]?.cells.length ?? 0;
  const { box, onScroll, first, end } = useVisible(rows.length, ROW_PX);
  const [active, setActive] = useState<Place>({ row: 0, cell: Math.max(0, cells - 1) });
  const [asked, setAsked] = useState<Asked | null>(null);
  // Keys may come faster than the page is drawn.
  const at = useRef(active);
  const byKey = useRef(false);
  // The latest cells are those that a person looks for.
  useLayoutEffect(() => {
    if (box.current) box.current.scrollLeft = box.current.scrollWidth;
  }, [step]);
  const within = ({ row, cell }: Place): Place => ({ row: Math.min(row, rows.length - 1), cell: Math.min(cell, cells - 1) });
  const place = within(active);
  const go = (to: Place): void => {
    at.current = to;
    setActive(to);
  };
  const open = ({ row, cell }: Place): void => {
    const found = rows[row];
    const what = found?.cells[cell];
    if (found && what && what.state !== "ahead") setAsked({ row: found, cell: what, start: start + cell * ms, step });
  };
  useLayoutEffect(() => {
    if (!byKey.current) return;
    byKey.current = false;
    const found = box.current?.querySelector<HTMLElement>('[tabindex="0"][role="gridcell"]');
    found?.focus();
    found?.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(within(at.current));
      return;
    }
    const next = moved(event.key, within(at.current), rows.length, cells, PAGE_ROWS);
    if (!next) return;
    event.preventDefault();
    byKey.current = true;
    const found = box.current;
    if (found && (next.row < first || next.row >= end)) found.scrollTop = next.row * ROW_PX;
    go(next);
  };
  return (
    <>
      <div class="scroll grid-box" ref={box} onScroll={onScroll}>
        <table class="grid" role="grid" aria-label={`Completeness by symbol and ${step}`} aria-rowcount={rows.length + 1} onKeyDown={onKeyDown}>
          <Head start={start} cells={cells} step={step} />
          <tbody role="rowgroup">
            <Filler rows={first} rowHeight={ROW_PX} columns={cells + 2} />
            {rows.slice(first, end).map((row, offset) => (
              <OneRow
                key={`${row.provider} ${row.feed} ${row.channel} ${row.symbol}`}
                row={row}
                number={first + offset}
                start={start}
                step={step}
                active={place.row === first + offset ? place.cell : -1}
                open={(cell) => {
                  go({ row: first + offset, cell });
                  open({ row: first + offset, cell });
                }}
              />
            ))}
            <Filler rows={rows.length - end} rowHeight={ROW_PX} columns={cells + 2} />
          </tbody>
        </table>
      </div>
      {asked && <EvidenceDialog asked={asked} close={() => setAsked(null)} />}
    </>
  );
}

/** The times above the cells: the hours, or the days of the month. */
function Head({ start, cells, step }: { start: number; cells: number; step: Step }) {
  const { ms } = STEPS[step];
  return (
    <thead role="rowgroup">
      <tr role="row" aria-rowindex={1}>
        <th role="columnheader" class="row-name">
          UTC
        </th>
        {Array.from({ length: cells }, (_, number) => {
          const at = start + number * ms;
          const text = headOf(at, step);
          return (
            <th key={number} role="columnheader" class={text === BEGINS[step] ? "begins" : ""} title={timeOfCell(at, step)}>
              {text}
            </th>
          );
        })}
        <th role="columnheader" class="number">
          Covered
        </th>
      </tr>
    </thead>
  );
}

interface RowProperties {
  row: Row;
  number: number;
  start: number;
  step: Step;
  /** The cell that the keyboard is at; -1 if it is in another row. */
  active: number;
  open: (cell: number) => void;
}

function OneRow({ row, number, start, step, active, open }: RowProperties) {
  return (
    <tr role="row" aria-rowindex={number + 2} style={{ height: `${ROW_PX}px` }}>
      <th role="rowheader" scope="row" class="row-name" title={`${row.provider} ${row.feed}`}>
        {row.symbol} <small>{row.channel}</small>
      </th>
      {row.cells.map((cell, at) => (
        <td
          key={at}
          role="gridcell"
          class={`cell cell-${cell.state}`}
          tabIndex={active === at ? 0 : -1}
          aria-label={said(row, cell, start + at * STEPS[step].ms, step)}
          title={said(row, cell, start + at * STEPS[step].ms, step)}
          onClick={() => open(at)}
          {...(cell.state === "unknown" && cell.covered > 0 ? { style: { backgroundSize: `100% ${cell.covered * 100}%, auto` } } : {})}
        >
          {STATES[cell.state].mark}
        </td>
      ))}
      <td role="gridcell" class="number faint" tabIndex={-1}>
        {share(covered(row))}
      </td>
    </tr>
  );
}

function Legend() {
  return (
    <ul class="legend" aria-label="The colours and marks">
      {(Object.keys(STATES) as CellState[])
        .filter((state) => state !== "ahead")
        .map((state) => (
          <li key={state} title={STATES[state].means}>
            <span class={`cell cell-${state}`} aria-hidden="true">
              {STATES[state].mark}
            </span>
            {STATES[state].word}
          </li>
        ))}
    </ul>
  );
}
