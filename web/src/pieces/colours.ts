// Light or dark: as the system says, unless the person chose. The choice is kept in this browser.
import { Store } from "../store";

export type Choice = "system" | "light" | "dark";
const KEY = "tapeline.colours";
const dark = window.matchMedia("(prefers-color-scheme: dark)");

export const colours = new Store<{ choice: Choice; dark: boolean }>({ choice: "system", dark: dark.matches });

export function applyColours(): void {
  choose(kept(), false);
  dark.addEventListener("change", () => choose(colours.state.choice, false));
}

export function choose(choice: Choice, keep = true): void {
  if (choice === "system") delete document.documentElement.dataset.colours;
  else document.documentElement.dataset.colours = choice;
  colours.set({ choice, dark: choice === "dark" || (choice === "system" && dark.matches) });
  if (!keep) return;
  try {
    localStorage.setItem(KEY, choice);
  } catch {
    // A browser that keeps nothing shows the choice until the page is closed.
  }
}

function kept(): Choice {
  try {
    const found = localStorage.getItem(KEY);
    return found === "light" || found === "dark" ? found : "system";
  } catch {
    return "system";
  }
}

/** A colour of the style sheet, for what is drawn on a canvas. `opacity`: from 0 to 1. */
export function colour(name: string, opacity = 1): string {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(--${name})`;
  const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g) ?? ["0", "0", "0"];
  probe.remove();
  return `rgba(${red}, ${green}, ${blue}, ${opacity})`;
}
