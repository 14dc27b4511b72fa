// A small line over the last minutes, drawn by uPlot on a canvas.
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { useStore } from "../store";
import { colour, colours } from "./colours";

interface Properties {
  /** Seconds since 1970, and the values at these times. */
  times: readonly number[];
  values: readonly (number | null)[];
  from: number;
  to: number;
  /** The name of a colour of the style sheet. */
  stroke: string;
  height: number;
  /** What it shows, for those who do not see it. */
  label: string;
}

export function Line({ times, values, from, to, stroke, height, label }: Properties) {
  const place = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot | null>(null);
  const span = useRef<[number, number]>([from, to]);
  const dark = useStore(colours, (state) => state.dark);
  span.current = [from, to];
  useLayoutEffect(() => {
    const target = place.current;
    if (!target) return;
    const plot = new uPlot(settings(target.clientWidth, height, stroke, () => span.current), [[], []], target);
    chart.current = plot;
    const watcher = new ResizeObserver(() => {
      if (target.clientWidth > 0 && target.clientWidth !== plot.width) plot.setSize({ width: target.clientWidth, height });
    });
    watcher.observe(target);
    return () => {
      watcher.disconnect();
      plot.destroy();
      chart.current = null;
    };
  }, [dark, stroke, height]);
  useEffect(() => {
    chart.current?.setData([times as number[], values as (number | null)[]]);
  });
  return <div ref={place} class="line" role="img" aria-label={label} style={{ height: `${height}px` }} />;
}

function settings(width: number, height: number, stroke: string, span: () => [number, number]): uPlot.Options {
  return {
    width: Math.max(width, 20),
    height,
    padding: [3, 0, 1, 0],
    cursor: { show: false },
    legend: { show: false },
    scales: { x: { time: true, range: span }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.05 : 1] } },
    axes: [{ show: false }, { show: false }],
    series: [{}, { stroke: colour(stroke), width: 1.5, fill: colour(stroke, 0.13), points: { show: false } }],
  };
}
