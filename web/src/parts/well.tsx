// Is all well? One line in words, with what is wrong and what to do.
import { useEffect, useRef, useState } from "preact/hooks";
import { usePage, usePageState } from "../context";
import { age, counted, momentOf, msOf, timeOf } from "../format";
import type { Phase } from "../live/connection";
import { shown, shownNow, type PageState } from "../page";
import { Icon, Said, WORDS } from "../pieces/icon";
import { Runbook } from "../pieces/runbook-dialog";
import type { Alert, Problem, State, Verdict } from "../types";

/** What the line says: the server's verdict, or why there is none. */
export function verdictOf(phase: Phase, state: Pick<PageState, "overview" | "travel">): Verdict {
  const { overview, travel } = state;
  if (travel) return travel.overview?.verdict ?? { state: "unknown", text: travel.problem || "Looking it up …", problems: [] };
  if (phase.name === "lost") {
    const when = overview ? ` This is how it was at ${timeOf(msOf(overview.at_ns))}.` : "";
    return { state: "unknown", text: `The connection to the server is lost.${when}`, problems: overview?.verdict.problems ?? [] };
  }
  return overview?.verdict ?? { state: "unknown", text: "Connecting …", problems: [] };
}

export function Well() {
  const phase = usePageState((state) => state.phase);
  const overview = usePageState((state) => state.overview);
  const travel = usePageState((state) => state.travel);
  const verdict = verdictOf(phase, { overview, travel });
  const alerts = usePageState(shown)?.alerts ?? [];
  const [runbook, setRunbook] = useState("");
  const now = usePageState(shownNow);
  useMark(verdict.state);
  return (
    <section id="well" class={`well state-${verdict.state}`} aria-labelledby="well-title" tabIndex={-1}>
      <div class="verdict">
        <Icon state={verdict.state} />
        <h1 id="well-title">{verdict.text}</h1>
        <Reconnecting />
      </div>
      <Announced verdict={verdict} />
      {verdict.problems.length > 0 && (
        <ul class="problems">
          {verdict.problems.map((problem) => (
            <OneProblem key={problem.text.replace(/[\d,.]+/g, "")} problem={problem} said={verdict.text} now={now} show={setRunbook} />
          ))}
        </ul>
      )}
      <Over alerts={alerts} show={setRunbook} />
      {runbook && <Runbook place={runbook} close={() => setRunbook("")} />}
    </section>
  );
}

/** `said`: what the line above says already. */
function OneProblem({ problem, said, now, show }: { problem: Problem; said: string; now: number; show: (place: string) => void }) {
  return (
    <li>
      <Said state={problem.state} word={WORDS[problem.state]} />
      <span class="text">
        {problem.text !== said && problem.text}
        {problem.since_ns && <span class="faint"> For {age((now - msOf(problem.since_ns)) / 1_000)}.</span>}
        <span class={problem.text === said ? "" : "remedy"}>{problem.remedy}</span>
      </span>
      {problem.runbook && (
        <button type="button" onClick={() => show(problem.runbook)} aria-label={`What to do: ${problem.text}`}>
          What to do
        </button>
      )}
    </li>
  );
}

function Reconnecting() {
  const page = usePage();
  const phase = usePageState((state) => state.phase);
  usePageState((state) => state.now); // the seconds count down
  if (phase.name !== "lost") return null;
  const rest = Math.max(0, Math.ceil((phase.again - performance.now()) / 1_000));
  return (
    <span class="reconnecting">
      {phase.why || `Lost ${age((performance.now() - phase.since) / 1_000)} ago. Trying again in ${rest} s.`}
      <button type="button" onClick={() => page.connect()}>
        Try now
      </button>
    </span>
  );
}

/** Alerts that are over, folded: they say what happened lately. */
function Over({ alerts, show }: { alerts: Alert[]; show: (place: string) => void }) {
  const over = alerts.filter((alert) => alert.resolved_ns);
  if (!over.length) return null;
  return (
    <details class="over">
      <summary>{counted(over.length, "alert is over", "alerts are over")}</summary>
      <ul>
        {over.map((alert) => (
          <li key={alert.name + alert.raised_ns}>
            <strong>{alert.name}</strong>: {alert.text} <span class="faint">From {momentOf(msOf(alert.raised_ns))} to {momentOf(msOf(alert.resolved_ns))}.</span>{" "}
            {alert.runbook && (
              <button type="button" class="link" onClick={() => show(alert.runbook)} aria-label={`What to do: ${alert.name}`}>
                What to do
              </button>
            )}
          </li>
        ))}
      </ul>
    </details>
  );
}

/** Speaks the line to those who hear the page: when it says something new, and not with each new figure. */
function Announced({ verdict }: { verdict: Verdict }) {
  const said = useRef("");
  const text = `${WORDS[verdict.state]}: ${verdict.text}`;
  if (text.replace(/[\d,.:]+/g, "") !== said.current.replace(/[\d,.:]+/g, "")) said.current = text;
  return (
    <p class="unseen" role="status" aria-live="polite">
      {said.current}
    </p>
  );
}

const ICONS: Record<State, string> = {
  well: "%3Ccircle cx='8' cy='8' r='6.5' fill='%2300806a'/%3E",
  attention: "%3Cpath d='M8 1l7.5 14H.5Z' fill='%23e08a00'/%3E",
  problem: "%3Cpath d='M5 1h6l4 4v6l-4 4H5l-4-4V5Z' fill='%23d0243c'/%3E",
  unknown: "%3Ccircle cx='8' cy='8' r='6' fill='none' stroke='%2378838f' stroke-width='2' stroke-dasharray='3 2'/%3E",
};

/** The state in the tab of the browser. */
function useMark(state: State): void {
  useEffect(() => {
    document.title = state === "well" ? "Tapeline: all is well" : `Tapeline: ${WORDS[state]}`;
    const icon = `data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E${ICONS[state]}%3C/svg%3E`;
    document.getElementById("icon")?.setAttribute("href", icon);
  }, [state]);
}
