// The page, for every component in it.
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { Page, PageState } from "./page";
import { useStore } from "./store";

export const PageContext = createContext<Page | null>(null);

export function usePage(): Page {
  const page = useContext(PageContext);
  if (page === null) throw new Error("A component is outside of the page.");
  return page;
}

/** A part of the page's state. */
export function usePageState<S>(select: (state: PageState) => S): S {
  return useStore(usePage().store, select);
}
