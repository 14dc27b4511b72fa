// The cells of the grid of completeness: their times, their words, and the way between them by the keyboard. Pure.
import { count, counted, dayOf, minuteOf, share } from "../format";
import type { Cell, CellState, Grid, Row } from "../types";

export type Step = "minute" | "hour" | "day";

/** How many ms a cell is long, how many cells there are, and the step as the server spells it. */
export const STEPS: Record<Step, { ms: number; cells: number; text: string }> = {
  minute: { ms: 60_000, cells: 30, text: "1m" },
  hour: { ms: 3_600_000, cells: 24, text: "1h" },
  day: { ms: 86_400_000, cells: 30, text: "1d" },
};

/** The mark in a cell and its meaning. The mark says the same as the colour. */
export const STATES: Record<CellState, { mark: string; word: string; means: string }> = {
  proven: { mark: "", word: "proven", means: "everything is there: the ids are consecutive" },
  reconciled: { mark: "=", word: "reconciled", means: "everything in the provider's history is there" },
  unprovable: { mark: "·", word: "unprovable", means: "the connection was open, and nothing proves more" },
  open: { mark: "○", word: "gap", means: "something is missing, or may be" },
  repairing: { mark: "↻", word: "repairing", means: "something is missing and is being fetched" },
  unrecoverable: { mark: "×", word: "unrecoverable", means: "the provider's history lacks it too" },
  unknown: { mark: "", word: "unknown", means: "of a part of it nothing was recorded" },
  ahead: { mark: "", word: "not yet", means: "this time has not come" },
};

/** The span of the grid that ends with the cell of now, `back` spans earlier. ms since 1970. */
export function span(nowMs: number, step: Step, back: number): { start: number; end: number } {
  const { ms, cells } = STEPS[step];
  const end = (Math.floor(nowMs / ms) + 1) * ms - back * cells * ms;
  return { start: end - cells * ms, end };
}

/** "2026-01-05 05:00 to 06:00 UTC", or the day. */
export function timeOfCell(startMs: number, step: Step): string {
  if (step === "day") return dayOf(startMs);
  return `${dayOf(startMs)} ${minuteOf(startMs)} to ${minuteOf(startMs + STEPS[step].ms)} UTC`;
}

/** What stands above a cell. */
export function headOf(startMs: number, step: Step): string {
  if (step === "day") return dayOf(startMs).slice(8);
  return step === "hour" ? minuteOf(startMs).slice(0, 2) : minuteOf(startMs).slice(3);
}

/** A cell in words. */
export function said(row: Row, cell: Cell, startMs: number, step: Step): string {
  const what = `${row.symbol} ${row.channel}, ${timeOfCell(startMs, step)}: ${STATES[cell.state].word}`;
  if (cell.state === "ahead" || (cell.state === "unknown" && !cell.covered)) return what;
  return `${what}, ${share(cell.covered)} covered${cell.missing ? `, ${counted(cell.missing, "event")} missing` : ""}`;
}

/** The covered share of a row, of the cells of which something is known; null if there are none. */
export function covered(row: Row): number | null {
  const known = row.cells.filter((cell) => cell.state !== "ahead" && (cell.state !== "unknown" || cell.covered > 0));
  return known.length ? known.reduce((all, cell) => all + cell.covered, 0) / known.length : null;
}

export function hasHole(row: Row): boolean {
  return row.cells.some((cell) => cell.state === "open" || cell.state === "repairing" || cell.state === "unrecoverable");
}

/** The rows that a person looks for. */
export function chosen(grid: Grid, filter: string, holes: boolean): Row[] {
  const wanted = filter.trim().toUpperCase();
  return grid.rows.filter((row) => `${row.symbol} ${row.provider} ${row.feed} ${row.channel}`.toUpperCase().includes(wanted) && (!holes || hasHole(row)));
}

export interface Place {
  row: number;
  cell: number;
}

/** Where a key leads from a place; null for a key that leads nowhere. */
export function moved(key: string, { row, cell }: Place, rows: number, cells: number, page: number): Place | null {
  const within = (value: number, most: number): number => Math.min(Math.max(0, value), most - 1);
  switch (key) {
    case "ArrowLeft":
      return { row, cell: within(cell - 1, cells) };
    case "ArrowRight":
      return { row, cell: within(cell + 1, cells) };
    case "ArrowUp":
      return { row: within(row - 1, rows), cell };
    case "ArrowDown":
      return { row: within(row + 1, rows), cell };
    case "PageUp":
      return { row: within(row - page, rows), cell };
    case "PageDown":
      return { row: within(row + page, rows), cell };
    case "Home":
      return { row, cell: 0 };
    case "End":
      return { row, cell: cells - 1 };
    default:
      return null;
  }
}

/** "12 rows, 2 with holes" */
export function summary(rows: readonly Row[]): string {
  const holes = rows.filter(hasHole).length;
  return `${counted(rows.length, "row")}, ${holes ? `${count(holes)} with holes` : "no holes"}`;
}
