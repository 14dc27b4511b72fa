// The last hour: its states as a strip, and a slider over it that shows any moment.
import { usePage, usePageState } from "../context";
import { age, momentOf, timeOf } from "../format";
import { HOUR_S, type Stretch } from "../live/past";
import { WORDS } from "../pieces/icon";
import type { State } from "../types";

/** The worse, the higher: the strip can be read without its colours. */
const HEIGHTS: Record<State, number> = { well: 5, unknown: 8, attention: 12, problem: 18 };
const TALL = 18;

export function Hour() {
  const page = usePage();
  const travel = usePageState((state) => state.travel);
  const now = usePageState((state) => Math.floor(state.now / 1_000));
  usePageState((state) => state.pastVersion);
  const ago = travel ? Math.max(0, Math.round(now - travel.atMs / 1_000)) : 0;
  const moment = travel ? `${age(ago)} ago, ${timeOf(travel.atMs)}` : "now";
  return (
    <section class={`hour ${travel ? "travelling" : ""}`} aria-label="The last hour">
      <span class="ends">1 h ago</span>
      <div class="strip">
        <Strip stretches={page.past.stretches} now={now} />
        <input
          type="range"
          min={-HOUR_S}
          max={0}
          step={1}
          value={-ago}
          aria-label="The moment that is shown"
          aria-valuetext={moment}
          onInput={(event) => {
            const back = -Number(event.currentTarget.value);
            page.travel(back <= 0 ? null : (now - back) * 1_000);
          }}
        />
      </div>
      {travel ? (
        <span class="moment">
          {momentOf(travel.atMs)}
          <button type="button" onClick={() => page.travel(null)}>
            Back to now
          </button>
        </span>
      ) : (
        <span class="ends">now</span>
      )}
    </section>
  );
}

function Strip({ stretches, now }: { stretches: readonly Stretch[]; now: number }) {
  const worst = stretches.filter((some) => some.state !== "well");
  const label = worst.length ? `The states of the last hour, not always well: ${[...new Set(worst.map((some) => WORDS[some.state]))].join(", ")}` : "The states of the last hour: well";
  return (
    <svg role="img" aria-label={label} viewBox={`0 0 ${HOUR_S} ${TALL}`} preserveAspectRatio="none">
      {stretches.map((some) => {
        const x = Math.max(0, HOUR_S - (now - some.start));
        const width = Math.max(1, HOUR_S - (now - some.end) - x);
        return <rect key={some.start} class={`state-${some.state}`} x={x} y={TALL - HEIGHTS[some.state]} width={width} height={HEIGHTS[some.state]} />;
      })}
    </svg>
  );
}
