// The history and the state over HTTP, typed.

import { errorOf, TapelineError } from "./errors.js";
import { baseOf, fetchOf, headersOf, type Server } from "./feed.js";
import type * as schema from "./messages.js";

type Json<Query> = Omit<Query, "format">;

export interface Rest {
  ticks(query: Json<schema.TicksQuery>): Promise<schema.TickPage>;
  bars(query: Json<schema.BarsQuery>): Promise<schema.BarPage>;
  gaps(query?: Json<schema.GapsQuery>): Promise<schema.Intervals>;
  coverage(query: schema.CoverageQuery): Promise<schema.Grid>;
  health(query?: schema.HealthQuery): Promise<schema.Overview>;
  past(query?: schema.PastQuery): Promise<schema.Lines>;
  symbols(): Promise<schema.Symbols>;
  jobs(): Promise<schema.Jobs>;
  runs(query?: schema.RunsQuery): Promise<schema.JobRuns>;
  /** Needs the operator's token, or a server that lets everybody act. */
  runJob(job: schema.RunJob): Promise<schema.Started>;
  repair(gaps?: schema.Repair): Promise<schema.Started>;
}

/** Functions that ask one server. Each throws a TapelineError, with what the server says. */
export function rest(server: Server = {}): Rest {
  const base = baseOf(server.url);
  const ask = async <Answer>(path: string, init: RequestInit): Promise<Answer> => {
    const headers = { ...headersOf(server), ...init.headers };
    const answer = await fetchOf(server)(`${base}/v1/${path}`, { cache: "no-store", ...init, headers }).catch((error: unknown) => {
      throw new TapelineError(`${base} cannot be reached: ${String(error)}`, 0, true);
    });
    if (!answer.ok) throw await errorOf(answer);
    return (await answer.json()) as Answer;
  };
  const get = <Answer>(path: string, query: object = {}): Promise<Answer> => {
    const given = Object.entries(query).filter(([, value]) => value !== undefined);
    return ask(`${path}?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`, {});
  };
  const post = <Answer>(path: string, body: object): Promise<Answer> =>
    ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return {
    ticks: (query) => get("ticks", query),
    bars: (query) => get("bars", query),
    gaps: (query) => get("gaps", query),
    coverage: (query) => get("coverage", query),
    health: (query) => get("health", query),
    past: (query) => get("past", query),
    symbols: () => get("symbols"),
    jobs: () => get("jobs"),
    runs: (query) => get("runs", query),
    runJob: (job) => post("jobs/run", job),
    repair: (gaps = {}) => post("repair", gaps),
  };
}
