// A state as a shape: a disc, a triangle, an octagon or a dashed ring. The word beside it says the same.
import type { State } from "../types";

const SHAPES: Record<State, preact.JSX.Element> = {
  well: (
    <>
      <circle cx="10" cy="10" r="8.5" fill="currentColor" />
      <path d="M6 10.4l2.8 2.8L14.2 7.4" class="mark" />
    </>
  ),
  attention: (
    <>
      <path d="M10 1.6L19 17.6H1Z" fill="currentColor" />
      <path d="M10 7.4v4.4M10 14.4v.4" class="mark" />
    </>
  ),
  problem: (
    <>
      <path d="M6.4 1.5h7.2l4.9 4.9v7.2l-4.9 4.9H6.4l-4.9-4.9V6.4Z" fill="currentColor" />
      <path d="M7 7l6 6M13 7l-6 6" class="mark" />
    </>
  ),
  unknown: (
    <>
      <circle cx="10" cy="10" r="8" fill="none" stroke="currentColor" stroke-width="2" stroke-dasharray="3.6 2.7" />
      <path d="M10 13.8v.4M7.9 8.1c0-2.9 4.2-2.8 4.2 0 0 1.6-2.1 1.6-2.1 3.4" class="mark plain" />
    </>
  ),
};

export const WORDS: Record<State, string> = { well: "well", attention: "attention", problem: "problem", unknown: "unknown" };

export function Icon({ state }: { state: State }) {
  return (
    <svg class={`icon state-${state}`} viewBox="0 0 20 20" aria-hidden="true" focusable="false">
      {SHAPES[state]}
    </svg>
  );
}

/** The shape and the word. */
export function Said({ state, word }: { state: State; word: string }) {
  return (
    <span class={`said state-${state}`}>
      <Icon state={state} /> {word}
    </span>
  );
}
