// What comes in? Each feed with its connections, its rate and latency over the last minutes, and its errors.
import { usePage, usePageState } from "../context";
import { age, count, counted, milliseconds, msOf, rate, share } from "../format";
import { P99, RATE, SHOWN_S } from "../live/past";
import { Series } from "../live/series";
import { shown, shownNow } from "../page";
import { Said } from "../pieces/icon";
import { Line } from "../pieces/line";
import type { Connection, Feed } from "../types";
import { Nothing, Part } from "./part";

const EMPTY = new Series(3, SHOWN_S, 1);

export function Incoming() {
  const overview = usePageState(shown);
  return (
    <Part id="incoming" beside={overview && <span class="faint">{rate(total(overview.feeds))} events/s in all</span>}>
      {overview === null ? (
        <Nothing>Nothing is known yet.</Nothing>
      ) : overview.feeds.length === 0 ? (
        <Nothing>No feed is configured.</Nothing>
      ) : (
        <div class="scroll-x" tabIndex={0} role="region" aria-label="Feeds and their connections">
          <table class="feeds">
            <thead>
              <tr>
                <th scope="col">Feed</th>
                <th scope="col">State</th>
                <th scope="col" class="number">
                  Events/s
                </th>
                <th scope="col" class="wide-only">
                  Last 15 min
                </th>
                <th scope="col" class="number middle-only">
                  p50
                </th>
                <th scope="col" class="number">
                  p99
                </th>
                <th scope="col" class="widest-only">
                  p99, last 15 min
                </th>
                <th scope="col" class="number middle-only">
                  Errors
                </th>
                <th scope="col" class="number middle-only">
                  Reconnects
                </th>
                <th scope="col" class="number">
                  Last data
                </th>
              </tr>
            </thead>
            {overview.feeds.map((feed) => (
              <OneFeed key={`${feed.provider}/${feed.feed}`} feed={feed} />
            ))}
          </table>
        </div>
      )}
    </Part>
  );
}

function OneFeed({ feed }: { feed: Feed }) {
  const page = usePage();
  const now = usePageState(shownNow);
  const travel = usePageState((state) => state.travel);
  usePageState((state) => state.pastVersion);
  const name = `${feed.provider}/${feed.feed}`;
  const series = (travel ? travel.lines : page.past.feeds).get(name) ?? EMPTY;
  const to = now / 1_000;
  const up = feed.connections.filter((some) => some.connected).length;
  const wrong = sum(feed.connections, errors) + feed.rejected;
  const lines = { times: series.times, from: to - SHOWN_S, to, height: 34 };
  return (
    <tbody>
      <tr class="feed">
        <th scope="row">
          {feed.provider} <span class="plain">{feed.feed}</span>
          <small>
            {feed.market_open === null ? "" : feed.market_open ? "market open" : "market closed"}
            {feed.coverage !== null && ` · ${share(feed.coverage)} of today`}
            {feed.missing ? ` · ${count(feed.missing)} missing` : ""}
            {wrong > 0 && <span class="narrow-only"> · {counted(wrong, "error")}</span>}
          </small>
        </th>
        <td>{connections(feed, up)}</td>
        <td class="number strong">{rate(feed.events_per_s)}</td>
        <td class="wide-only chart">
          <Line {...lines} values={series.columns[RATE]!} stroke="line" label={said(`Events a second of ${name}`, series.columns[RATE]!, count)} />
        </td>
        <td class="number middle-only">{milliseconds(feed.p50_ms)}</td>
        <td class="number">{milliseconds(feed.p99_ms)}</td>
        <td class="widest-only chart">
          <Line {...lines} values={series.columns[P99]!} stroke="line-2" label={said(`99th percentile of the latency of ${name}`, series.columns[P99]!, milliseconds)} />
        </td>
        <td class="number middle-only">{count(wrong)}</td>
        <td class="number middle-only">{count(sum(feed.connections, (some) => some.reconnects))}</td>
        <td class="number">{lastData(feed.connections, now)}</td>
      </tr>
      {feed.connections.map((some) => (
        <OneConnection key={some.name} connection={some} now={now} />
      ))}
    </tbody>
  );
}

function OneConnection({ connection, now }: { connection: Connection; now: number }) {
  const codes = Object.entries(connection.errors);
  return (
    <tr class="connection">
      <th scope="row">{connection.name}</th>
      <td>
        <Said state={connection.connected ? "well" : "problem"} word={connection.connected ? "connected" : "not connected"} />
        {connection.problem && <small class="detail">{connection.problem}</small>}
      </td>
      <td />
      <td class="wide-only faint">
        {count(connection.frames)} frames{connection.stale > 0 && `, ${count(connection.stale)} times silent`}
      </td>
      <td class="middle-only" />
      <td />
      <td class="widest-only" />
      <td class="number middle-only" title={codes.map(([code, times]) => `${code}: ${times}`).join(", ")}>
        {count(errors(connection))}
      </td>
      <td class="number middle-only">{count(connection.reconnects)}</td>
      <td class="number">{lastData([connection], now)}</td>
    </tr>
  );
}

function connections(feed: Feed, up: number) {
  const all = feed.connections.length;
  if (!all) return <Said state="unknown" word="no connection" />;
  const state = up === all ? "well" : up ? "attention" : "problem";
  return <Said state={state} word={all === 1 ? (up ? "connected" : "not connected") : `${up} of ${all} connected`} />;
}

function lastData(connections: Connection[], now: number): string {
  const last = Math.max(0, ...connections.map((some) => (some.last_data_ns ? msOf(some.last_data_ns) : 0)));
  return last ? age((now - last) / 1_000) : "never";
}

function errors(connection: Connection): number {
  return Object.values(connection.errors).reduce((all, some) => all + some, 0);
}

function sum(connections: Connection[], of: (some: Connection) => number): number {
  return connections.reduce((all, some) => all + of(some), 0);
}

function total(feeds: Feed[]): number {
  return feeds.reduce((all, feed) => all + feed.events_per_s, 0);
}

/** What a line shows, in words. */
function said(what: string, values: readonly (number | null)[], form: (value: number) => string): string {
  const known = values.filter((value) => value !== null);
  if (!known.length) return `${what} over the last 15 minutes: nothing yet`;
  return `${what} over the last 15 minutes: from ${form(Math.min(...known))} to ${form(Math.max(...known))}`;
}
