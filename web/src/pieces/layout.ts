// Places the boxes of the flow: each one step behind the last box that feeds it. Pure.
import type { Arrow, Box } from "../types";

export interface Placed {
  box: Box;
  x: number;
  y: number;
}

export interface Way {
  arrow: Arrow;
  /** From the edge of one box to the edge of the next, in px. */
  x1: number;
  y1: number;
  x2: number;
  y2: number;
}

export interface Picture {
  /** Whether it goes from left to right. Otherwise it goes down. */
  wide: boolean;
  /** Of a box. */
  width: number;
  height: number;
  placed: Placed[];
  ways: Way[];
}

export const BOX_HEIGHT = 68;
const NARROWEST_BOX = 92;
const WIDEST_BOX = 150;
/** Between boxes: along the flow there must be room for a rate. */
const ALONG = 46;
const ACROSS = 12;
const DOWN = 42;

export function boxWidth(width: number, steps: number): number {
  return Math.min(WIDEST_BOX, Math.max(NARROWEST_BOX, (width - (steps - 1) * ALONG) / steps));
}

/** From left to right if that fits into `width`, and otherwise from the top down. */
export function picture(boxes: readonly Box[], arrows: readonly Arrow[], width: number): Picture {
  const columns = stepsOf(boxes, arrows);
  const wide = columns.length * NARROWEST_BOX + (columns.length - 1) * ALONG <= width;
  const size = wide ? boxWidth(width, columns.length) : 0;
  const along = wide && columns.length > 1 ? (width - columns.length * size) / (columns.length - 1) : 0;
  const most = Math.max(1, ...columns.map((column) => column.length));
  const height = wide ? most * BOX_HEIGHT + (most - 1) * ACROSS : columns.length * BOX_HEIGHT + (columns.length - 1) * DOWN;
  const narrow = Math.min(WIDEST_BOX, (width - (most - 1) * ACROSS) / most);
  const box = wide ? size : narrow;
  const placed = columns.flatMap((column, step) =>
    column.map((some, at) => {
      const offset = at - (column.length - 1) / 2;
      return wide
        ? { box: some, x: step * (size + along), y: height / 2 - BOX_HEIGHT / 2 + offset * (BOX_HEIGHT + ACROSS) }
        : { box: some, x: width / 2 - narrow / 2 + offset * (narrow + ACROSS), y: step * (BOX_HEIGHT + DOWN) };
    }),
  );
  const of = new Map(placed.map((some) => [some.box.name, some]));
  const ways = arrows.flatMap((arrow) => {
    const [start, end] = [of.get(arrow.start), of.get(arrow.end)];
    if (!start || !end) return [];
    return wide
      ? [{ arrow, x1: start.x + box, y1: start.y + BOX_HEIGHT / 2, x2: end.x, y2: end.y + BOX_HEIGHT / 2 }]
      : [{ arrow, x1: start.x + box / 2, y1: start.y + BOX_HEIGHT, x2: end.x + box / 2, y2: end.y }];
  });
  return { wide, width: box, height, placed, ways };
}

/** The boxes by how many steps they are from a beginning. */
function stepsOf(boxes: readonly Box[], arrows: readonly Arrow[]): Box[][] {
  const step = new Map(boxes.map((box) => [box.name, 0]));
  // As often as there are boxes, so that a circle, which there should not be, ends.
  for (let round = 0; round < boxes.length; round++) {
    for (const arrow of arrows) {
      if (step.has(arrow.end)) step.set(arrow.end, Math.max(step.get(arrow.end)!, Math.min((step.get(arrow.start) ?? 0) + 1, boxes.length - 1)));
    }
  }
  const columns: Box[][] = [];
  for (const box of boxes) (columns[step.get(box.name)!] ??= []).push(box);
  return columns.filter(Boolean);
}
