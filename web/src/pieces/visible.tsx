// Which rows of a long table are in sight, so that only these are drawn.
import { useLayoutEffect, useRef, useState } from "preact/hooks";

/** Rows that are drawn above and below those in sight, so that a scroll shows no empty place. */
const MARGIN = 6;

export interface Visible {
  first: number;
  /** Not included. */
  end: number;
}

/** Pure: the rows in sight of a box that is `height` high and scrolled to `top`, of `count` rows of `rowHeight`. All px. */
export function inSight(count: number, rowHeight: number, top: number, height: number): Visible {
  const first = Math.max(0, Math.min(Math.floor(top / rowHeight), count) - MARGIN);
  return { first, end: Math.max(first, Math.min(count, Math.ceil((top + height) / rowHeight) + MARGIN)) };
}

export function useVisible(count: number, rowHeight: number) {
  const box = useRef<HTMLDivElement>(null);
  const [place, setPlace] = useState({ top: 0, height: 400 });
  const measure = (): void => {
    const found = box.current;
    if (!found) return;
    const next = { top: found.scrollTop, height: found.clientHeight };
    setPlace((old) => (old.top === next.top && old.height === next.height ? old : next));
  };
  useLayoutEffect(() => {
    const watcher = new ResizeObserver(measure);
    if (box.current) watcher.observe(box.current);
    return () => watcher.disconnect();
  }, []);
  return { box, onScroll: measure, ...inSight(count, rowHeight, place.top, place.height) };
}

/** The place of rows that are not drawn. */
export function Filler({ rows, rowHeight, columns }: { rows: number; rowHeight: number; columns: number }) {
  if (rows <= 0) return null;
  return (
    <tr aria-hidden="true" class="filler" style={{ height: `${rows * rowHeight}px` }}>
      <td colSpan={columns} />
    </tr>
  );
}
