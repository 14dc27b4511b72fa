// What runs? The jobs, whoever runs them, and the processes.
import { useState } from "preact/hooks";
import { usePageState } from "../context";
import { age, away, bytes, counted, facts, listed, listedMs } from "../format";
import { shown } from "../page";
import { Said } from "../pieces/icon";
import { useAction } from "../pieces/action";
import type { JobRow, JobRun, Process, State } from "../types";
import { Nothing, Part } from "./part";
import { RunsDialog, useRunning } from "./runs";

/** How a job is, in a word. */
export function stateOfJob(job: JobRow): { state: State; word: string } {
  if (job.paused) return { state: "unknown", word: "paused" };
  if (job.result.startsWith("running")) return { state: "well", word: "running" };
  if (/^(failed|killed)/.test(job.result)) return { state: "problem", word: job.result.split(":")[0]! };
  if (job.late) return { state: "attention", word: "late" };
  if (job.result === "never ran") return { state: "unknown", word: "never ran" };
  return { state: "well", word: job.result.split(":")[0]! };
}

export function Running() {
  const jobs = usePageState((state) => state.jobs);
  const processes = usePageState(shown)?.processes ?? [];
  const [open, setOpen] = useState<JobRow | null>(null);
  const action = useAction();
  const running = useRunning(jobs);
  return (
    <Part id="running" beside={<span class="faint">{processes.length > 0 && counted(processes.filter((some) => some.running).length, "process runs", "processes run")}</span>}>
      {(action.said || action.why) && <p class="note">{action.said || action.why}</p>}
      {jobs === null ? (
        <Nothing>Nothing is known yet.</Nothing>
      ) : jobs.length === 0 ? (
        <Nothing>No job is configured.</Nothing>
      ) : (
        <div class="scroll-x" tabIndex={0} role="region" aria-label="Jobs">
          <table class="jobs">
            <thead>
              <tr>
                <th scope="col">Job</th>
                <th scope="col">State</th>
                <th scope="col" class="middle-only">Last run</th>
                <th scope="col">Next run</th>
                <th scope="col" class="wide-only">
                  Schedule
                </th>
                <th scope="col">
                  <span class="unseen">Actions</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {jobs.map((job) => (
                <OneJob key={job.job} job={job} run={running.get(job.job)} open={() => setOpen(job)} start={() => action.run("/v1/jobs/run", { job: job.job })} idle={!action.busy && !action.refused} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Processes processes={processes} />
      {open && <RunsDialog job={open} close={() => setOpen(null)} />}
    </Part>
  );
}

interface JobProperties {
  job: JobRow;
  run: JobRun | undefined;
  open: () => void;
  start: () => void;
  idle: boolean;
}

function OneJob({ job, run, open, start, idle }: JobProperties) {
  const { state, word } = stateOfJob(job);
  const detail = run ? facts(run.progress) : job.result.includes(": ") ? job.result.slice(job.result.indexOf(": ") + 2) : "";
  return (
    <tr>
      <th scope="row">
        <button type="button" class="link" onClick={open} aria-label={`Runs of ${job.job}`}>
          {job.job}
        </button>
        <small class="wide-only">{job.does}</small>
      </th>
      <td>
        <Said state={state} word={word} />
        {job.late && word !== "late" && <span class="strong"> late</span>}
        {run && run.origin !== "schedule" && <span class="faint"> by {run.origin}</span>}
        {detail && <small class="detail">{detail}</small>}
      </td>
      <td class="nowrap middle-only">
        <When text={job["last run"]} />
      </td>
      <td class="nowrap">{job.continuous ? "all the time" : <When text={job["next run"]} />}</td>
      <td class="wide-only nowrap">
        {job.schedule} {/^every|^by/.test(job.schedule) ? "" : job.timezone}
      </td>
      <td class="number">
        <button type="button" disabled={!idle || word === "running"} onClick={start} aria-label={`Run ${job.job} now`}>
          Run
        </button>
      </td>
    </tr>
  );
}

/** A time of the server's list: how far it is away, and the time itself for those who point at it. */
function When({ text }: { text: string | null }) {
  const now = usePageState((state) => Math.floor(state.now / 1_000));
  const ms = listedMs(text);
  if (text === null || ms === null) return <>{listed(text)}</>;
  return (
    <time dateTime={new Date(ms).toISOString()} title={listed(text)}>
      {away(ms, now * 1_000)}
    </time>
  );
}

function Processes({ processes }: { processes: Process[] }) {
  if (!processes.length) return null;
  return (
    <ul class="processes" aria-label="Processes">
      {processes.map((some) => (
        <li key={some.name}>
          <Said state={some.running ? "well" : "problem"} word={some.name} />
          <span class="faint"> {some.running ? `${age(some.uptime_s)} · ${bytes(some.memory_bytes)}` : "does not run"}</span>
        </li>
      ))}
    </ul>
  );
}
