// What the server sends, as /v1/openapi.json and /v1/asyncapi.json describe it. Nanoseconds are text: numbers are not exact enough.

export type State = "well" | "attention" | "problem" | "unknown";

export interface Problem {
  state: State;
  text: string;
  remedy: string;
  runbook: string;
  since_ns: string;
}

export interface Verdict {
  state: State;
  text: string;
  problems: Problem[];
}

export interface FeedConnection {
  name: string;
  connected: boolean;
  frames: number;
  reconnects: number;
  stale: number;
  errors: Record<string, number>;
  last_data_ns: string;
  problem: string;
}

export interface Feed {
  provider: string;
  feed: string;
  connections: FeedConnection[];
  events_per_s: number;
  p50_ms: number | null;
  p99_ms: number | null;
  ticks: number;
  rejected: number;
  market_open: boolean | null;
  coverage: number | null;
  missing: number | null;
}

export interface Box {
  name: string;
  kind: "stage" | "topic" | "store";
  running: boolean;
  lag_records: number;
  lag_s: number;
  problem: string;
}

export interface Arrow {
  start: string;
  end: string;
  per_s: number;
}

export interface Alert {
  name: string;
  text: string;
  runbook: string;
  raised_ns: string;
  resolved_ns: string;
}

export interface Process {
  name: string;
  running: boolean;
  uptime_s: number;
  silent_s: number;
  memory_bytes: number;
}

export interface Overview {
  at_ns: string;
  verdict: Verdict;
  feeds: Feed[];
  flow: { boxes: Box[]; arrows: Arrow[] };
  processes: Process[];
  equations: { text: string; balanced: boolean }[];
  gaps: Record<string, number> | null;
  alerts: Alert[];
  spool_bytes: number;
  dropped: number;
  disk_free_bytes: number | null;
  clients: number;
  skipped: number;
}

export interface FeedLine {
  events_per_s: (number | null)[];
  p50_ms: (number | null)[];
  p99_ms: (number | null)[];
}

export interface Lines {
  at_ns: string[];
  state: State[];
  feeds: Record<string, FeedLine>;
  lag_s: Record<string, (number | null)[]>;
}

export type CellState =
  | "proven"
  | "reconciled"
  | "unprovable"
  | "repairing"
  | "open"
  | "unrecoverable"
  | "unknown"
  | "ahead";

export interface Cell {
  state: CellState;
  covered: number;
  missing: number;
}

export interface GridRow {
  provider: string;
  feed: string;
  channel: string;
  symbol: string;
  cells: Cell[];
}

export interface Grid {
  start_ns: string;
  step_ns: string;
  rows: GridRow[];
}

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

export interface Job {
  job: string;
  schedule: string;
  timezone: string;
  "last run": string | null;
  result: string;
  "next run": string | null;
  late: boolean;
  does: string;
  continuous: boolean;
  paused: boolean;
}

export interface Run {
  id: number;
  job: string;
  thing: string;
  origin: string;
  origin_url: string;
  attempt: number;
  process: string;
  started_ns: string;
  ended_ns: string | null;
  state: "running" | "succeeded" | "failed" | "stopped" | "killed";
  exit_status: number | null;
  arguments: Record<string, unknown>;
  progress: Record<string, unknown>;
  result: Record<string, unknown>;
  error: string;
}

export interface Latest {
  symbol: string;
  last?: number;
  volume?: number;
  side?: string;
  trade_ts_ns?: string;
  trade_provider?: string;
  bid?: number;
  ask?: number;
  bid_size?: number;
  ask_size?: number;
  quote_ts_ns?: string;
  quote_provider?: string;
}

export interface Tick {
  id: string;
  symbol: string;
  ts_ns: string;
  kind: "trade" | "quote";
  bid?: number;
  ask?: number;
  last?: number;
  volume?: number;
  side?: string;
}

export interface TickPage {
  next: string;
  rows: Tick[];
  truncated: boolean;
}

/** A message of the live feed. The states have the keys of their addresses' answers. */
export type Message =
  | { kind: "hello"; id: string; resumed: boolean; missed?: string; symbols?: string[] }
  | { kind: "latest"; id: string; rows: Latest[] }
  | { kind: "conflated"; id: string; skipped: number; rows: Latest[] }
  | { kind: "ticks"; id: string; rows: Tick[] }
  | ({ kind: "health"; id: string } & Overview)
  | { kind: "gaps"; id: string; states: Record<string, number> | null }
  | { kind: "jobs"; id: string; rows: Job[] }
  | { kind: "alerts"; id: string; rows: Alert[] }
  | { kind: "error"; text: string };
