// Made from the server's description by `npm run generate`. Do not edit.

/**
 * Any message of the live feed.
 */
export type Message =
  Hello | TickRows | BarRows | LatestRows | Conflated | Alive | Error | HealthMessage | GapsMessage | JobsMessage | AlertsMessage;
export type HealthMessage = {
  kind: "health";
  id: string;
} & Overview;
export type GapsMessage = {
  kind: "gaps";
  id: string;
} & GapStates;
export type JobsMessage = {
  kind: "jobs";
  id: string;
} & Jobs;
export type AlertsMessage = {
  kind: "alerts";
  id: string;
} & AlertRows;

export interface Schemas {
  Message?: Message;
  RunJob?: RunJob;
  Repair?: Repair;
  Overview?: Overview;
  Verdict?: Verdict;
  Problem?: Problem;
  Feed?: Feed;
  Connection?: Connection;
  Flow?: Flow;
  Box?: Box;
  Arrow?: Arrow;
  Process?: Process;
  Equation?: Equation;
  Alert?: Alert;
  Lines?: Lines;
  FeedLine?: FeedLine;
  Symbols?: Symbols;
  Latest?: Latest;
  TickPage?: TickPage;
  Tick?: Tick;
  BarPage?: BarPage;
  Bar?: Bar;
  Intervals?: Intervals;
  Evidence?: Evidence;
  Grid?: Grid;
  Row?: Row;
  Cell?: Cell;
  Jobs?: Jobs;
  JobRow?: JobRow;
  JobRuns?: JobRuns;
  JobRun?: JobRun;
  Started?: Started;
  Wrong?: Wrong;
  Hello?: Hello;
  TickRows?: TickRows;
  BarRows?: BarRows;
  LatestRows?: LatestRows;
  Conflated?: Conflated;
  Alive?: Alive;
  Error?: Error;
  Request?: Request;
  Change?: Change;
  GapStates?: GapStates;
  AlertRows?: AlertRows;
  HealthMessage?: HealthMessage;
  GapsMessage?: GapsMessage;
  JobsMessage?: JobsMessage;
  AlertsMessage?: AlertsMessage;
  HealthQuery?: HealthQuery;
  PastQuery?: PastQuery;
  TicksQuery?: TicksQuery;
  BarsQuery?: BarsQuery;
  GapsQuery?: GapsQuery;
  CoverageQuery?: CoverageQuery;
  RunsQuery?: RunsQuery;
  StreamQuery?: StreamQuery;
}
/**
 * The first message of a connection.
 */
export interface Hello {
  kind: "hello";
  id: string;
  resumed: boolean;
  missed?: string;
  symbols?: string[];
}
/**
 * Ticks. Those of one symbol are in the order of the stream.
 */
export interface TickRows {
  kind: "ticks";
  id: string;
  rows: Tick[];
}
/**
 * A trade or a quote. docs/reference/columns.md explains each column.
 */
export interface Tick {
  id: string;
  symbol: string;
  ts_ns: string;
  kind: "quote" | "trade";
  exchange: string;
  provider: string;
  feed: string;
  channel: string;
  received_ns: string;
  bid?: number | null;
  ask?: number | null;
  bid_size?: number | null;
  ask_size?: number | null;
  last?: number | null;
  volume?: number | null;
  side?: string | null;
  sequence?: string | null;
  trade_id?: string | null;
  conditions?: string | null;
}
/**
 * Bars. Those of one symbol are in the order of the stream.
 */
export interface BarRows {
  kind: "bars";
  id: string;
  rows: Bar[];
}
/**
 * A revision of a bar. `ts_ns` is the start of its window.
 */
export interface Bar {
  id: string;
  symbol: string;
  ts_ns: string;
  interval: string;
  open: number;
  high: number;
  low: number;
  close: number;
  volume: number;
  final: boolean;
  exchange: string;
  provider: string;
  feed: string;
  channel: string;
  received_ns: string;
  vwap?: number | null;
  trades?: number | null;
}
/**
 * The present values of symbols: at first of all that are subscribed to, then of those that changed.
 */
export interface LatestRows {
  kind: "latest";
  id: string;
  rows: Latest[];
}
/**
 * The last trade and the last quote of a symbol, of whichever provider sent them.
 */
export interface Latest {
  symbol: string;
  last?: number | null;
  volume?: number | null;
  side?: string | null;
  trade_ts_ns?: string | null;
  trade_provider?: string | null;
  trade_feed?: string | null;
  bid?: number | null;
  ask?: number | null;
  bid_size?: number | null;
  ask_size?: number | null;
  quote_ts_ns?: string | null;
  quote_provider?: string | null;
  quote_feed?: string | null;
}
/**
 * What a client gets that did not take its messages fast enough: the number of events that it did not get, and the latest values.
 */
export interface Conflated {
  kind: "conflated";
  id: string;
  skipped: number;
  rows: Latest[];
}
/**
 * A sign of life, where there was no other message for some seconds: the client has got everything up to `id`.
 */
export interface Alive {
  kind: "alive";
  id: string;
}
/**
 * A request on the websocket that was wrong. The connection stays open.
 */
export interface Error {
  kind: "error";
  text: string;
}
/**
 * The pipeline at one moment.
 */
export interface Overview {
  at_ns: string;
  verdict: Verdict;
  feeds: Feed[];
  flow: Flow;
  processes: Process[];
  equations: Equation[];
  gaps: {
    [k: string]: number;
  } | null;
  alerts: Alert[];
  spool_bytes: number;
  dropped: number;
  disk_free_bytes: number | null;
  clients: number;
  skipped: number;
}
/**
 * Whether all is well, in one line, and what is not.
 */
export interface Verdict {
  state: "attention" | "problem" | "unknown" | "well";
  text: string;
  problems: Problem[];
}
/**
 * One thing that is wrong, or may become wrong.
 */
export interface Problem {
  state: "attention" | "problem" | "unknown" | "well";
  text: string;
  remedy: string;
  runbook: string;
  since_ns?: string;
}
/**
 * What comes in from one feed of a provider.
 */
export interface Feed {
  provider: string;
  feed: string;
  connections: Connection[];
  events_per_s: number;
  p50_ms: number | null;
  p99_ms: number | null;
  ticks: number;
  rejected: number;
  market_open: boolean | null;
  coverage: number | null;
  missing: number | null;
}
/**
 * One connection of ingest to a provider.
 */
export interface Connection {
  name: string;
  connected: boolean;
  frames: number;
  reconnects: number;
  stale: number;
  errors: {
    [k: string]: number;
  };
  last_data_ns: string;
  problem: string;
}
/**
 * The way of a tick, with where it waits.
 */
export interface Flow {
  boxes: Box[];
  arrows: Arrow[];
}
/**
 * A part of the flow: a stage, or a topic of the stream.
 */
export interface Box {
  name: string;
  kind: "stage" | "store" | "topic";
  running: boolean;
  lag_records: number;
  lag_s: number;
  problem: string;
}
/**
 * What flows from one box to the next, in records a second.
 */
export interface Arrow {
  start: string;
  end: string;
  per_s: number;
}
/**
 * One process of the pipeline, as its status says.
 */
export interface Process {
  name: string;
  running: boolean;
  uptime_s: number;
  silent_s: number;
  memory_bytes: number;
}
/**
 * What came in and what became of it, in one line, and whether the two are equal.
 */
export interface Equation {
  text: string;
  balanced: boolean;
}
/**
 * One alert. Times are ns, UTC, as text.
 */
export interface Alert {
  name: string;
  text: string;
  runbook: string;
  raised_ns: string;
  resolved_ns: string;
}
/**
 * How many gaps there are, by their state; null if no ledger is kept.
 */
export interface GapStates {
  states: {
    [k: string]: number;
  } | null;
}
/**
 * The jobs, as `tapeline jobs list --format json` shows them.
 */
export interface Jobs {
  rows: JobRow[];
}
export interface JobRow {
  arguments: {
    [k: string]: unknown;
  };
  catch_up: string;
  continuous: boolean;
  cron: string | null;
  deadline: string | null;
  deadline_s: number | null;
  does: string;
  every_s: number | null;
  job: string;
  kind: string;
  "last run": string | null;
  late: boolean;
  "next run": string | null;
  of_a_day: boolean;
  paused: boolean;
  providers: string[];
  result: string;
  retries: number;
  schedule: string;
  schema: {
    [k: string]: unknown;
  };
  takes_day: boolean;
  timeout_s: number;
  timezone: string;
}
/**
 * The open alerts, and the latest of those that are over.
 */
export interface AlertRows {
  rows: Alert[];
}
/**
 * A job to run now.
 */
export interface RunJob {
  job: string;
  arguments?: {
    [k: string]: unknown;
  };
}
/**
 * Which gaps are to be requested from the provider's history.
 */
export interface Repair {
  /**
   * @maxItems 1000
   */
  symbols?: string[];
  provider?: string | null;
}
/**
 * The last hour, or a part of it, as lines over the same times.
 */
export interface Lines {
  at_ns: string[];
  state: ("attention" | "problem" | "unknown" | "well")[];
  feeds: {
    [k: string]: FeedLine;
  };
  lag_s: {
    [k: string]: (number | null)[];
  };
}
/**
 * The lines of one feed, one value for each time; null where there was none.
 */
export interface FeedLine {
  events_per_s: (number | null)[];
  p50_ms: (number | null)[];
  p99_ms: (number | null)[];
}
/**
 * The symbols that the live feed has seen since its start, and their latest values.
 */
export interface Symbols {
  rows: Latest[];
}
/**
 * Ticks from a store, as the live feed has them.
 */
export interface TickPage {
  next: string;
  rows: Tick[];
  truncated: boolean;
}
/**
 * Bars from a store, as the live feed has them. `next` and `truncated` are as for ticks.
 */
export interface BarPage {
  next: string;
  rows: Bar[];
  truncated: boolean;
}
/**
 * Intervals of the ledger, the latest first.
 */
export interface Intervals {
  rows: Evidence[];
}
/**
 * One interval of the ledger. Times are ns, UTC, as text; without an end it is ongoing.
 */
export interface Evidence {
  provider: string;
  feed: string;
  channel: string;
  symbol: string;
  start_ns: string;
  end_ns?: string | null;
  state: string;
  evidence: string;
  first_id?: string | null;
  last_id?: string | null;
}
/**
 * The rows, and the times of their cells: cell n begins at start + n * step. Times are ns, UTC, as text.
 */
export interface Grid {
  start_ns: string;
  step_ns: string;
  rows: Row[];
}
/**
 * One symbol of one channel.
 */
export interface Row {
  provider: string;
  feed: string;
  channel: string;
  symbol: string;
  cells: Cell[];
}
/**
 * One hour or day of one row.
 */
export interface Cell {
  state: "ahead" | "open" | "proven" | "reconciled" | "repairing" | "unknown" | "unprovable" | "unrecoverable";
  covered: number;
  missing: number;
}
/**
 * Runs, the latest first.
 */
export interface JobRuns {
  rows: JobRun[];
}
/**
 * A run of a job, whoever started it. Times are ns, UTC, as text.
 */
export interface JobRun {
  id: number;
  job: string;
  thing: string;
  due_ns: string | null;
  arguments: {
    [k: string]: unknown;
  };
  origin: "airflow" | "person" | "prefect" | "schedule";
  origin_id: string;
  origin_url: string;
  attempt: number;
  process: string;
  started_ns: string;
  renewed_ns: string;
  ended_ns: string | null;
  state: "failed" | "killed" | "running" | "stopped" | "succeeded";
  exit_status: number | null;
  retry_ns: string | null;
  progress: {
    [k: string]: unknown;
  };
  result: {
    [k: string]: unknown;
  };
  error: string;
}
/**
 * A job that was started. Its run is in the list of the runs soon after.
 */
export interface Started {
  job: string;
  started: boolean;
}
/**
 * What is wrong, and what to do.
 */
export interface Wrong {
  error: string;
}
/**
 * What a client sends on its websocket.
 */
export interface Request {
  subscribe?: Change | null;
  unsubscribe?: Change | null;
}
/**
 * What a subscription is changed by: further, or no more.
 */
export interface Change {
  /**
   * Canonical names, such as AAPL, and patterns, such as BTC/* or *. At most 100 may be patterns.
   *
   * @maxItems 1000
   */
  symbols?: string[];
  /**
   * What is sent. Without it: ticks, if there are symbols.
   */
  kinds?: ("alerts" | "bars" | "gaps" | "health" | "jobs" | "latest" | "ticks")[];
}
export interface HealthQuery {
  /**
   * The last look at or before this moment of the last hour; the present if left out.
   */
  at?: string;
}
export interface PastQuery {
  /**
   * How far back.
   */
  seconds?: number;
  /**
   * The end, not included; now if left out.
   */
  end?: string;
  /**
   * The most points of a line.
   */
  points?: number;
}
export interface TicksQuery {
  /**
   * Canonical names with commas between them, such as AAPL,BTC/USDT.
   */
  symbols: string;
  /**
   * ISO 8601 with a zone, a UTC date, or ns since 1970.
   */
  start: string;
  /**
   * The end, not included; now if left out.
   */
  end?: string;
  provider?: string;
  kind?: "" | "quote" | "trade";
  /**
   * Leave out trades that were taken back.
   */
  corrected?: boolean;
  /**
   * The store: lake or postgresql.
   */
  source?: string;
  /**
   * The most rows.
   */
  limit?: number;
  /**
   * JSON, CSV, or an Arrow stream with the columns of the store.
   */
  format?: "arrow" | "csv" | "json";
}
export interface BarsQuery {
  /**
   * Canonical names with commas between them, such as AAPL,BTC/USDT.
   */
  symbols: string;
  /**
   * ISO 8601 with a zone, a UTC date, or ns since 1970.
   */
  start: string;
  /**
   * The end, not included; now if left out.
   */
  end?: string;
  provider?: string;
  /**
   * Only this one, as the provider spells it: 1s, 1m, 1d.
   */
  interval?: string;
  /**
   * The store: lake or postgresql.
   */
  source?: string;
  /**
   * The most rows.
   */
  limit?: number;
  /**
   * JSON, CSV, or an Arrow stream with the columns of the store.
   */
  format?: "arrow" | "csv" | "json";
}
export interface GapsQuery {
  /**
   * Only these; all if left out.
   */
  symbols?: string;
  provider?: string;
  feed?: string;
  channel?: string;
  /**
   * Only what ends after this.
   */
  start?: string;
  /**
   * Only what begins before this.
   */
  end?: string;
  /**
   * Also the intervals in which nothing is missing, with their evidence.
   */
  evidence?: boolean;
  /**
   * The most intervals, the latest first.
   */
  limit?: number;
  /**
   * JSON, CSV, or an Arrow stream with the columns of the store.
   */
  format?: "arrow" | "csv" | "json";
}
export interface CoverageQuery {
  /**
   * ISO 8601 with a zone, a UTC date, or ns since 1970.
   */
  start: string;
  /**
   * ISO 8601 with a zone, a UTC date, or ns since 1970.
   */
  end: string;
  /**
   * The length of a cell, such as 1h or 1d.
   */
  step?: string;
  /**
   * Only these; all if left out.
   */
  symbols?: string;
  provider?: string;
}
export interface RunsQuery {
  /**
   * Only the runs of this job.
   */
  job?: string;
  /**
   * The most runs, the latest first.
   */
  limit?: number;
}
export interface StreamQuery {
  /**
   * Canonical names, such as AAPL, and patterns, such as BTC/* or *. At most 100 may be patterns.
   *
   * @maxItems 1000
   */
  symbols?: string[];
  /**
   * What is sent. Without it: ticks, if there are symbols.
   */
  kinds?: ("alerts" | "bars" | "gaps" | "health" | "jobs" | "latest" | "ticks")[];
  /**
   * How many times a second at most `latest` is sent.
   */
  rate?: number;
  /**
   * Another form than JSON needs a websocket.
   */
  format?: "arrow" | "json" | "protobuf";
  /**
   * The id of the last message that the client got, as the header Last-Event-ID.
   */
  since?: string;
}
