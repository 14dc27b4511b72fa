// The last hour as the page knows it: what the server kept, and then what came live.
import { msOf } from "../format";
import type { Lines, Overview, State } from "../types";
import { Series } from "./series";

export const HOUR_S = 3_600;
export const SHOWN_S = 900;
/** A look every second, and some more after a clock was set. */
const MOST = 4_000;
/** Rate, median and 99th percentile of a feed. */
export const RATE = 0;
export const P50 = 1;
export const P99 = 2;

/** Moments with one state that follow each other. Seconds since 1970. */
export interface Stretch {
  state: State;
  start: number;
  end: number;
}

export class Past {
  /** `provider/feed` to its lines. */
  readonly feeds = new Map<string, Series>();
  #stretches: Stretch[] = [];

  get stretches(): readonly Stretch[] {
    return this.#stretches;
  }

  /** Begin with what the server has kept. `everyS`: how far its looks are apart. */
  load(states: Lines, lines: Lines): void {
    this.#stretches = [];
    this.feeds.clear();
    states.at_ns.forEach((at, number) => this.#extend(msOf(at) / 1_000, states.state[number] ?? "unknown", 45));
    for (const [name, series] of seriesOf(lines)) this.feeds.set(name, series);
  }

  /** Take one live look in. */
  add(look: Overview): void {
    const at = msOf(look.at_ns) / 1_000;
    this.#extend(at, look.verdict.state, 15);
    for (const feed of look.feeds) {
      const name = `${feed.provider}/${feed.feed}`;
      const series = this.feeds.get(name) ?? new Series(3, SHOWN_S, SHOWN_S + 300);
      series.push(at, [feed.events_per_s, feed.p50_ms, feed.p99_ms]);
      this.feeds.set(name, series);
    }
  }

  /** `gapS`: looks that are further apart have a time between them of which nothing is known. */
  #extend(at: number, state: State, gapS: number): void {
    const last = this.#stretches.at(-1);
    if (last && at <= last.end) return;
    if (last && at - last.end <= gapS) {
      last.end = at;
      if (last.state !== state) this.#stretches.push({ state, start: at, end: at });
    } else {
      this.#stretches.push({ state, start: at, end: at });
    }
    while (this.#stretches.length > MOST || (this.#stretches[0] && this.#stretches[0].end < at - HOUR_S)) this.#stretches.shift();
  }
}

/** The lines of each feed, from what the server sent. */
export function seriesOf(lines: Lines): Map<string, Series> {
  const times = lines.at_ns.map((at) => msOf(at) / 1_000);
  return new Map(
    Object.entries(lines.feeds).map(([name, line]) => {
      const series = new Series(3, SHOWN_S, SHOWN_S + 300);
      times.forEach((at, number) =>
        series.push(at, [line.events_per_s[number] ?? null, line.p50_ms[number] ?? null, line.p99_ms[number] ?? null]),
      );
      return [name, series];
    }),
  );
}
