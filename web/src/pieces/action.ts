// A button that starts something: it says what began, or why this person may not.
import { useState } from "preact/hooks";
import { post, reason, Refusal } from "../api";
import { usePage, usePageState } from "../context";

export interface Action {
  run: (path: string, body: unknown) => void;
  busy: boolean;
  /** This person may not act, and why. */
  refused: boolean;
  why: string;
  /** What began, or what went wrong. */
  said: string;
}

export function useAction(): Action {
  const page = usePage();
  const why = usePageState((state) => state.mayNotAct);
  const [state, setState] = useState({ busy: false, said: "" });
  const run = (path: string, body: unknown): void => {
    setState({ busy: true, said: "" });
    post<{ job: string }>(path, body).then(
      ({ job }) => setState({ busy: false, said: `The job ${job} was started. Its run is among the jobs.` }),
      (error: unknown) => {
        const refused = error instanceof Refusal && error.status === 403;
        if (refused) page.store.set({ mayNotAct: error.message });
        setState({ busy: false, said: refused ? "" : reason(error) });
      },
    );
  };
  return { run, ...state, refused: why !== "", why };
}
