// One part of the page: a question, and its answer below it.
import type { ComponentChildren } from "preact";

export interface Question {
  id: string;
  /** As the navigation names it. */
  short: string;
  text: string;
}

export const QUESTIONS: readonly Question[] = [
  { id: "well", short: "State", text: "Is all well?" },
  { id: "incoming", short: "Feeds", text: "What comes in?" },
  { id: "flow", short: "Flow", text: "Where does it wait?" },
  { id: "complete", short: "Completeness", text: "Is it complete?" },
  { id: "running", short: "Jobs", text: "What runs?" },
  { id: "market", short: "Market", text: "What is the market doing?" },
];

interface Properties {
  id: string;
  /** What belongs beside the question. */
  beside?: ComponentChildren;
  children: ComponentChildren;
}

export function Part({ id, beside, children }: Properties) {
  const question = QUESTIONS.find((some) => some.id === id);
  return (
    <section id={id} class="part" aria-labelledby={`${id}-title`}>
      <header>
        <h2 id={`${id}-title`}>{question?.text}</h2>
        {beside}
      </header>
      {children}
    </section>
  );
}

/** What is shown where there is nothing to show yet. */
export function Nothing({ children }: { children: ComponentChildren }) {
  return <p class="nothing">{children}</p>;
}
