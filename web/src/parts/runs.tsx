// The runs of one job, whoever started them, and those that are under way.
import { useEffect, useState } from "preact/hooks";
import { get, reason } from "../api";
import { usePageState } from "../context";
import { age, facts, momentOf, msOf } from "../format";
import { Dialog } from "../pieces/dialog";
import { Said } from "../pieces/icon";
import type { JobRow, JobRun, JobRuns, State } from "../types";

const STATES: Record<JobRun["state"], State> = { running: "well", succeeded: "well", stopped: "unknown", failed: "problem", killed: "problem" };
const LATEST = 50;

/** The runs that are under way, by their job: asked for each time the jobs say something new while one is. */
export function useRunning(jobs: JobRow[] | null): ReadonlyMap<string, JobRun> {
  const [running, setRunning] = useState<ReadonlyMap<string, JobRun>>(new Map());
  useEffect(() => {
    if (!jobs?.some((job) => job.result.startsWith("running"))) {
      setRunning((before) => (before.size ? new Map() : before));
      return undefined;
    }
    const asking = new AbortController();
    const ask = (): void => {
      get<JobRuns>("/v1/runs", { limit: String(LATEST) }, asking.signal).then(
        ({ rows }) => setRunning(new Map(rows.filter((run) => run.state === "running").map((run) => [run.job, run]))),
        () => undefined, // the list of the jobs is there all the same
      );
    };
    ask();
    const timer = window.setInterval(ask, 5_000);
    return () => {
      window.clearInterval(timer);
      asking.abort();
    };
  }, [jobs]);
  return running;
}

export function RunsDialog({ job, close }: { job: JobRow; close: () => void }) {
  const jobs = usePageState((state) => state.jobs);
  const [found, setFound] = useState<{ rows: JobRun[] | null; problem: string }>({ rows: null, problem: "" });
  useEffect(() => {
    const asking = new AbortController();
    get<JobRuns>("/v1/runs", { job: job.job, limit: String(LATEST) }, asking.signal).then(
      ({ rows }) => setFound({ rows, problem: "" }),
      (error: unknown) => asking.signal.aborted || setFound({ rows: null, problem: reason(error) }),
    );
    return () => asking.abort();
  }, [job.job, jobs]);
  return (
    <Dialog title={`Runs of ${job.job}`} close={close}>
      <p>
        {job.does}. <span class="faint">{job.schedule}</span>
      </p>
      {found.problem && <p>{found.problem}</p>}
      {found.rows?.length === 0 && <p>It has never run.</p>}
      {found.rows && found.rows.length > 0 && (
        <div class="scroll-x" tabIndex={0} role="region" aria-label={`Runs of ${job.job}`}>
          <table>
            <thead>
              <tr>
                <th scope="col">Result</th>
                <th scope="col">Started</th>
                <th scope="col" class="number">
                  Took
                </th>
                <th scope="col">By</th>
                <th scope="col">What it did</th>
              </tr>
            </thead>
            <tbody>
              {found.rows.map((run) => (
                <OneRun key={run.id} run={run} />
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Dialog>
  );
}

function OneRun({ run }: { run: JobRun }) {
  const now = usePageState((state) => state.now);
  const started = msOf(run.started_ns);
  const did = run.state === "running" ? facts(run.progress) : facts(run.result);
  return (
    <tr>
      <td class="nowrap">
        <Said state={STATES[run.state]} word={run.state} />
      </td>
      <td class="nowrap">{momentOf(started)}</td>
      <td class="number nowrap">{age(((run.ended_ns ? msOf(run.ended_ns) : now) - started) / 1_000)}</td>
      <td class="nowrap">
        {/^https?:/.test(run.origin_url) ? <a href={run.origin_url}>{run.origin}</a> : run.origin}
        {run.attempt > 1 && <span class="faint">, attempt {run.attempt}</span>}
      </td>
      <td>
        {run.thing && <span class="faint">{run.thing}. </span>}
        {run.error && <strong>{run.error} </strong>}
        {did}
      </td>
    </tr>
  );
}
