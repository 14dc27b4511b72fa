// The line at the top: the name, the way to each part, the time, and light or dark.
import { usePageState } from "../context";
import { timeOf } from "../format";
import { choose, colours, type Choice } from "../pieces/colours";
import { useStore } from "../store";
import { QUESTIONS } from "./part";

const NEXT: Record<Choice, Choice> = { system: "light", light: "dark", dark: "system" };
const SAID: Record<Choice, string> = { system: "as the system", light: "light", dark: "dark" };

export function Top() {
  return (
    <header class="top">
      <span class="name">Tapeline</span>
      <nav aria-label="Parts of the page">
        <ul>
          {QUESTIONS.map(({ id, short, text }) => (
            <li key={id}>
              <a href={`#${id}`} title={text}>
                {short}
              </a>
            </li>
          ))}
        </ul>
      </nav>
      <Clock />
      <Colours />
    </header>
  );
}

function Clock() {
  const now = usePageState((state) => Math.floor(state.now / 1_000));
  return <span class="clock">{timeOf(now * 1_000)}</span>;
}

function Colours() {
  const choice = useStore(colours, (state) => state.choice);
  return (
    <button type="button" class="quiet" onClick={() => choose(NEXT[choice])} aria-label={`Colours: ${SAID[choice]}. Change to ${SAID[NEXT[choice]]}`}>
      <svg class="icon" viewBox="0 0 20 20" aria-hidden="true">
        <circle cx="10" cy="10" r="7.5" fill="none" stroke="currentColor" stroke-width="2" />
        <path d={choice === "system" ? "M10 2.5a7.5 7.5 0 0 1 0 15Z" : choice === "dark" ? "M10 2.5a7.5 7.5 0 1 1 0 15 7.5 7.5 0 0 1 0-15Z" : "M10 10h.01Z"} fill="currentColor" />
      </svg>
      <span class="wide-only">{choice === "system" ? "System" : choice === "light" ? "Light" : "Dark"}</span>
    </button>
  );
}
