// Where does it wait? The way of a tick as a picture, with the rate on each arrow and what waits at each box.
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { usePageState } from "../context";
import { bytes, counted, lag, rate } from "../format";
import { shown } from "../page";
import { Icon } from "../pieces/icon";
import { BOX_HEIGHT, picture, type Placed, type Way } from "../pieces/layout";
import type { Arrow, Box, Overview, State } from "../types";
import { Nothing, Part } from "./part";

/** The bar of a box is full at so many seconds. */
const FULL_S = 60;

export function Flow() {
  const overview = usePageState(shown);
  return (
    <Part id="flow" beside={overview && <Disk overview={overview} />}>
      {overview === null ? <Nothing>Nothing is known yet.</Nothing> : <Picture overview={overview} />}
      {overview && overview.equations.length > 0 && <Accounting overview={overview} />}
    </Part>
  );
}

export function stateOf(box: Box): State {
  if (!box.running) return "problem";
  return box.problem ? "attention" : "well";
}

function Picture({ overview }: { overview: Overview }) {
  const place = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const watcher = new ResizeObserver(([entry]) => entry && setWidth(Math.floor(entry.contentRect.width)));
    if (place.current) watcher.observe(place.current);
    return () => watcher.disconnect();
  }, []);
  const { boxes, arrows } = overview.flow;
  const drawn = picture(boxes, arrows, width || 320);
  return (
    <div ref={place} class="picture" style={{ height: `${drawn.height}px` }}>
      {width > 0 && (
        <>
          <svg aria-hidden="true" width={width} height={drawn.height}>
            {drawn.ways.map((way) => (
              <Drawn key={`${way.arrow.start} ${way.arrow.end}`} way={way} wide={drawn.wide} />
            ))}
          </svg>
          <ol aria-label="The flow of the data">
            {drawn.placed.map((some) => (
              <OneBox key={some.box.name} placed={some} width={drawn.width} into={arrows.filter((arrow) => arrow.end === some.box.name)} />
            ))}
          </ol>
        </>
      )}
    </div>
  );
}

function OneBox({ placed: { box, x, y }, width, into }: { placed: Placed; width: number; into: Arrow[] }) {
  const state = stateOf(box);
  const full = Math.min(1, Math.log1p(box.lag_s) / Math.log1p(FULL_S));
  return (
    <li
      class={`box ${box.kind} state-${state}`}
      style={{ left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${BOX_HEIGHT}px` }}
      title={box.problem || undefined}
    >
      <span class="box-name">
        {box.kind !== "topic" && <Icon state={state} />} {box.name}
      </span>
      {box.kind === "topic" ? (
        <span class="faint">topic</span>
      ) : !box.running ? (
        <span class="strong">does not run</span>
      ) : (
        <span class={state === "well" ? "faint" : "strong"}>
          {box.lag_records > 0 ? (
            <>
              {counted(box.lag_records, "record")}
              <br />
              {lag(box.lag_s)} behind
            </>
          ) : (
            box.problem || "nothing waits"
          )}
        </span>
      )}
      <span class="unseen">
        {into.map((arrow) => ` It gets ${rate(arrow.per_s)} records a second from ${arrow.start}.`)}
        {box.problem && ` ${box.problem}.`}
      </span>
      {box.kind !== "topic" && <span class="meter" aria-hidden="true" style={{ width: `${full * 100}%` }} />}
    </li>
  );
}

function Drawn({ way: { arrow, x1, y1, x2, y2 }, wide }: { way: Way; wide: boolean }) {
  const flowing = arrow.per_s > 0;
  const thick = flowing ? 1.5 + Math.log10(1 + arrow.per_s) * 0.8 : 1.5;
  const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
  const path = wide ? `M${x1} ${y1}C${mx} ${y1} ${mx} ${y2} ${x2 - 7} ${y2}` : `M${x1} ${y1}C${x1} ${my} ${x2} ${my} ${x2} ${y2 - 7}`;
  const tip = wide ? `M${x2 - 8} ${y2 - 4}l8 4-8 4Z` : `M${x2 - 4} ${y2 - 8}l4 8 4-8Z`;
  return (
    <g class={flowing ? "way" : "way still"}>
      <path d={path} stroke-width={thick} class="shaft" />
      <path d={tip} class="tip" />
      {wide ? (
        <text x={x2 - 30} y={y2 - 7} text-anchor="middle">
          {rate(arrow.per_s)}/s
        </text>
      ) : (
        <text x={x2 + 8} y={y2 - 14}>
          {rate(arrow.per_s)}/s
        </text>
      )}
    </g>
  );
}

function Disk({ overview }: { overview: Overview }) {
  return (
    <span class="faint">
      {overview.spool_bytes > 0 && `${bytes(overview.spool_bytes)} wait on ingest's disk · `}
      {overview.disk_free_bytes !== null && `${bytes(overview.disk_free_bytes)} of disk free`}
    </span>
  );
}

function Accounting({ overview }: { overview: Overview }) {
  const broken = overview.equations.filter((one) => !one.balanced).length;
  return (
    <details class="over">
      <summary>
        {broken ? `${counted(broken, "equation does not hold", "equations do not hold")}` : `The accounting holds: ${counted(overview.equations.length, "equation")}`}
      </summary>
      <ul class="equations">
        {overview.equations.map((one) => (
          <li key={one.text.replace(/[\d,]+/g, "")} class={one.balanced ? "" : "state-problem strong"}>
            {one.text}
          </li>
        ))}
      </ul>
    </details>
  );
}
