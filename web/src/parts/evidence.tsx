// One cell of the grid: what proves it, or what is missing, and the button that asks for it.
import { useEffect, useState } from "preact/hooks";
import { get, reason } from "../api";
import { usePageState } from "../context";
import { age, counted, momentOf, msOf, share } from "../format";
import { useAction } from "../pieces/action";
import { STATES, STEPS, timeOfCell, type Step } from "../pieces/cells";
import { Dialog } from "../pieces/dialog";
import type { Cell, CellState, Evidence, Row } from "../types";

export interface Asked {
  row: Row;
  cell: Cell;
  /** ms since 1970. */
  start: number;
  step: Step;
}

const MOST = 200;

export function EvidenceDialog({ asked: { row, cell, start, step }, close }: { asked: Asked; close: () => void }) {
  const gaps = usePageState((state) => state.gapsVersion);
  const [found, setFound] = useState<{ rows: Evidence[] | null; problem: string }>({ rows: null, problem: "" });
  const action = useAction();
  useEffect(() => {
    const asking = new AbortController();
    const { provider, feed, channel, symbol } = row;
    const times = { start: `${start}000000`, end: `${start + STEPS[step].ms}000000` };
    get<{ rows: Evidence[] }>("/v1/gaps", { symbols: symbol, provider, feed, channel, ...times, evidence: "true", limit: String(MOST) }, asking.signal).then(
      ({ rows }) => setFound({ rows, problem: "" }),
      (error: unknown) => asking.signal.aborted || setFound({ rows: null, problem: reason(error) }),
    );
    return () => asking.abort();
  }, [row.symbol, row.channel, start, step, gaps]);
  const hole = found.rows ? found.rows.some((one) => one.state === "open" || one.state === "repairing") : false;
  return (
    <Dialog title={`${row.symbol} ${row.channel}, ${timeOfCell(start, step)}`} close={close}>
      <p>
        <span class={`cell cell-${cell.state} sample`} aria-hidden="true">
          {STATES[cell.state].mark}
        </span>{" "}
        <strong>{STATES[cell.state].word}</strong>: {STATES[cell.state].means}. {share(cell.covered)} of this time is covered
        {cell.missing > 0 && `, and ${counted(cell.missing, "event")} of it ${cell.missing === 1 ? "is" : "are"} missing`}.{" "}
        <span class="faint">
          {row.provider} {row.feed}
        </span>
      </p>
      {found.problem && <p>{found.problem}</p>}
      {found.rows && found.rows.length > 0 && <Intervals rows={found.rows} />}
      {found.rows?.length === 0 && <p>The ledger has no interval in this time.</p>}
      {hole && (
        <p class="action">
          <button type="button" disabled={action.busy || action.refused} onClick={() => action.run("/v1/repair", { symbols: [row.symbol], provider: row.provider })}>
            Request repair
          </button>{" "}
          {action.said || (action.why ? action.why : `Asks ${row.provider}'s history for all gaps of ${row.symbol}.`)}
        </p>
      )}
    </Dialog>
  );
}

function Intervals({ rows }: { rows: Evidence[] }) {
  return (
    <div class="scroll-x" tabIndex={0} role="region" aria-label="Intervals of the ledger">
      <table>
        <thead>
          <tr>
            <th scope="col">State</th>
            <th scope="col">From</th>
            <th scope="col">To</th>
            <th scope="col" class="number">
              Length
            </th>
            <th scope="col">Evidence</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((one) => {
            const from = msOf(one.start_ns);
            const to = one.end_ns ? msOf(one.end_ns) : null;
            const known = STATES[one.state as CellState];
            return (
              <tr key={one.start_ns + one.state}>
                <td class="nowrap">
                  <span class={`cell cell-${one.state} sample`} aria-hidden="true">
                    {known?.mark}
                  </span>{" "}
                  {known?.word ?? one.state}
                </td>
                <td class="nowrap">{momentOf(from)}</td>
                <td class="nowrap">{to === null ? "goes on" : momentOf(to)}</td>
                <td class="number nowrap">{to === null ? "" : age((to - from) / 1_000)}</td>
                <td>{one.evidence}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
