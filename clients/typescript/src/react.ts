// For React: one connection for a page, and hooks that give its values, with one rendering a frame at most.

import { createContext, createElement, useContext, useEffect, useMemo, useState, useSyncExternalStore, type ReactNode } from "react";
import type { Status } from "./feed.js";
import { Live, type LiveOptions } from "./live.js";
import type { Latest, Overview } from "./messages.js";

const Context = createContext<Live | undefined>(undefined);

/** Connects the parts of the page inside it to one server. Its options are those of the first rendering. */
export function TapelineProvider({ children, ...options }: LiveOptions & { children?: ReactNode }): ReactNode {
  const [live] = useState(() => new Live(options));
  useEffect(() => {
    live.start();
    return () => live.stop();
  }, [live]);
  return createElement(Context.Provider, { value: live }, children);
}

/** The connection of this page: its feed (after the first rendering in the browser), and its status. */
export function useTapeline(): { live: Live; status: Status } {
  const live = useLive();
  useVersion(live);
  return { live, status: live.status };
}

/** The latest values of symbols, in their order; undefined for one of which nothing came yet. */
export function useLatest(symbols: readonly string[]): (Latest | undefined)[] {
  const live = useLive();
  const key = symbols.join(",");
  useEffect(() => live.want(key === "" ? [] : key.split(","), ["latest"]), [live, key]);
  const version = useVersion(live);
  return useMemo(() => (key === "" ? [] : key.split(",").map((symbol) => live.latest(symbol))), [live, key, version]);
}

/** How the pipeline is; undefined before the first message. */
export function useHealth(): Overview | undefined {
  const live = useLive();
  useEffect(() => live.want([], ["health"]), [live]);
  useVersion(live);
  return live.health;
}

function useLive(): Live {
  const live = useContext(Context);
  if (!live) throw new Error("There is no <TapelineProvider> around this part of the page.");
  return live;
}

function useVersion(live: Live): number {
  return useSyncExternalStore(
    useMemo(() => live.listen.bind(live), [live]),
    () => live.version,
    () => 0,
  );
}
