// Where things stand: the boxes of the flow, the cells of the grid, the rows in sight, the steps of a runbook.
import { describe, expect, it } from "vitest";
import { moved, said, span } from "../pieces/cells";
import { picture } from "../pieces/layout";
import { section, slug } from "../pieces/runbook";
import { inSight } from "../pieces/visible";
import type { Box } from "../types";

const box = (name: string): Box => ({ name, kind: "stage", running: true, lag_records: 0, lag_s: 0, problem: "" });
const BOXES = ["ingest", "raw", "normalize", "normalized", "ledger", "lake", "postgresql"].map(box);
const ARROWS = [
  ["ingest", "raw"],
  ["raw", "normalize"],
  ["normalize", "normalized"],
  ["raw", "ledger"],
  ["normalized", "lake"],
  ["normalized", "postgresql"],
].map(([start, end]) => ({ start: start!, end: end!, per_s: 1 }));

describe("the picture of the flow", () => {
  it("goes from left to right where there is room, each box behind those that feed it", () => {
    const { wide, placed, ways } = picture(BOXES, ARROWS, 1_000);
    const x = Object.fromEntries(placed.map((some) => [some.box.name, some.x]));
    expect(wide).toBe(true);
    expect(x.ingest).toBe(0);
    expect(x.normalize).toBe(x.ledger);
    expect(x.lake).toBe(x.postgresql);
    expect([x.ingest, x.raw, x.normalize, x.normalized, x.lake]).toEqual([...new Set(Object.values(x))].sort((a, b) => a - b));
    expect(ways.length).toBe(ARROWS.length);
    expect(ways.every((way) => way.x2 - way.x1 >= 40)).toBe(true);
  });

  it("goes down on a phone, and stays within it", () => {
    const { wide, placed, width } = picture(BOXES, ARROWS, 340);
    expect(wide).toBe(false);
    expect(placed.every((some) => some.x >= 0 && some.x + width <= 340)).toBe(true);
  });
});

describe("the cells", () => {
  it("end with the hour of now", () => {
    const now = Date.UTC(2026, 0, 5, 14, 30);
    expect(span(now, "hour", 0)).toEqual({ start: Date.UTC(2026, 0, 4, 15), end: Date.UTC(2026, 0, 5, 15) });
    expect(span(now, "hour", 1).end).toBe(Date.UTC(2026, 0, 4, 15));
    expect(span(now, "day", 0).end).toBe(Date.UTC(2026, 0, 6));
  });

  it("say in words what their colour says", () => {
    const row = { provider: "binance", feed: "spot", channel: "trade", symbol: "BTC/USDT", cells: [] };
    const cell = { state: "open" as const, covered: 0.9975, missing: 1 };
    expect(said(row, cell, Date.UTC(2026, 0, 5, 5), "hour")).toBe("BTC/USDT trade, 2026-01-05 05:00 to 06:00 UTC: gap, 99.75 % covered, 1 event missing");
  });

  it("are reached by the keyboard, and no further", () => {
    expect(moved("ArrowRight", { row: 0, cell: 23 }, 3, 24, 10)).toEqual({ row: 0, cell: 23 });
    expect(moved("PageDown", { row: 0, cell: 2 }, 3, 24, 10)).toEqual({ row: 2, cell: 2 });
    expect(moved("Home", { row: 1, cell: 9 }, 3, 24, 10)).toEqual({ row: 1, cell: 0 });
    expect(moved("a", { row: 1, cell: 9 }, 3, 24, 10)).toBeNull();
  });
});

describe("a long table", () => {
  it("draws the rows in sight and a few more", () => {
    expect(inSight(5_000, 30, 0, 300)).toEqual({ first: 0, end: 16 });
    expect(inSight(5_000, 30, 60_000, 300)).toEqual({ first: 1_994, end: 2_016 });
    expect(inSight(3, 30, 90_000, 300)).toEqual({ first: 0, end: 3 });
  });
});

describe("a runbook", () => {
  const page = "# Alerts\n\n### A `process` is down\n\nIt does [not](jobs.md#x) run.\nStart it.\n\n1. `tapeline status` shows it.\n2. Start **it**.\n\n```sh\ntapeline run\n```\n\n### next\n\nNo.";

  it("is the section with the heading that the alert names", () => {
    expect(slug("### A `process` is down")).toBe("a-process-is-down");
    expect(section(page, "a-process-is-down")).toEqual({
      title: "A process is down",
      blocks: [
        { kind: "paragraph", pieces: [{ kind: "text", text: "It does not run. Start it." }] },
        {
          kind: "steps",
          steps: [
            [
              { kind: "code", text: "tapeline status" },
              { kind: "text", text: " shows it." },
            ],
            [{ kind: "text", text: "Start it." }],
          ],
        },
        { kind: "code", text: "tapeline run" },
      ],
    });
    expect(section(page, "nowhere")).toBeNull();
  });
});
