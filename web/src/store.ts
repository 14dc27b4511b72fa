// The state of the page: one object, and who is told when it changes.
import { useLayoutEffect, useReducer, useRef } from "preact/hooks";

export class Store<T extends object> {
  #state: T;
  readonly #listeners = new Set<() => void>();

  constructor(state: T) {
    this.#state = state;
  }

  get state(): T {
    return this.#state;
  }

  set(part: Partial<T>): void {
    this.#state = { ...this.#state, ...part };
    for (const listener of [...this.#listeners]) listener();
  }

  /** Returns what ends the subscription. */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

/** A part of the state. The component is drawn again only when this part is another one. */
export function useStore<T extends object, S>(store: Store<T>, select: (state: T) => S): S {
  const [, redraw] = useReducer((drawn: number, _: null) => drawn + 1, 0);
  const selected = select(store.state);
  const shown = useRef({ selected, select });
  shown.current = { selected, select };
  useLayoutEffect(
    () =>
      store.subscribe(() => {
        if (!Object.is(shown.current.select(store.state), shown.current.selected)) redraw(null);
      }),
    [store],
  );
  return selected;
}
