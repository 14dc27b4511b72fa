// The page's parts put together: the live feed fills the state, and what a person does changes it.
import { get, reason, Refusal } from "./api";
import { msOf } from "./format";
import { Connection, type Phase } from "./live/connection";
import { Market } from "./live/market";
import { HOUR_S, Past, seriesOf, SHOWN_S } from "./live/past";
import type { Series } from "./live/series";
import { Store } from "./store";
import type { JobRow, Lines, Message, Overview } from "./types";

/** The server sends a look every second. So much later, the network is gone. */
const SILENCE_MS = 10_000;
const LATEST_A_SECOND = 2;
const STREAM = `/v1/stream?symbols=*&kinds=health,gaps,jobs,alerts,latest&rate=${LATEST_A_SECOND}`;
/** A slider that is moved asks when it rests. */
const REST_MS = 120;

/** A moment of the last hour that is shown instead of the present. `overview` is null while it is fetched. */
export interface Travel {
  atMs: number;
  overview: Overview | null;
  lines: Map<string, Series>;
  problem: string;
}

export interface PageState {
  phase: Phase;
  /** The last look that came live. */
  overview: Overview | null;
  travel: Travel | null;
  jobs: JobRow[] | null;
  /** They grow when the past, the market or the gaps changed: these change in place. */
  pastVersion: number;
  marketVersion: number;
  gapsVersion: number;
  /** The server's time, ms since 1970; it goes on while there is no connection. */
  now: number;
  /** Why this person may not act; empty until the server has said so. */
  mayNotAct: string;
}

export class Page {
  readonly store: Store<PageState>;
  readonly past = new Past();
  readonly market = new Market();
  readonly #connection: Connection;
  /** What the server's clock is ahead of this machine's, in ms. */
  #ahead = 0;
  #travelTimer = 0;
  #asking = new AbortController();

  constructor() {
    this.store = new Store<PageState>({
      phase: { name: "connecting" },
      overview: null,
      travel: null,
      jobs: null,
      pastVersion: 0,
      marketVersion: 0,
      gapsVersion: 0,
      now: Date.now(),
      mayNotAct: "",
    });
    const handlers = { message: this.#receive.bind(this), phase: this.#turn.bind(this) };
    this.#connection = new Connection(STREAM, handlers, { silence: SILENCE_MS });
  }

  start(): void {
    this.#connection.start();
    window.setInterval(() => this.store.set({ now: Date.now() + this.#ahead }), 1_000);
    const again = (): void => {
      if (this.store.state.phase.name === "lost") this.#connection.start();
    };
    window.addEventListener("online", again);
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && again());
  }

  /** Connect now instead of when it is due. */
  connect(): void {
    this.#connection.start();
  }

  /** Show a moment of the last hour; null: the present. */
  travel(atMs: number | null): void {
    window.clearTimeout(this.#travelTimer);
    this.#asking.abort();
    if (atMs === null) {
      this.store.set({ travel: null });
      return;
    }
    const before = this.store.state.travel;
    this.store.set({ travel: { atMs, overview: before?.overview ?? null, lines: before?.lines ?? new Map(), problem: "" } });
    this.#travelTimer = window.setTimeout(() => void this.#fetchMoment(atMs), REST_MS);
  }

  async #fetchMoment(atMs: number): Promise<void> {
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    const at = `${Math.round(atMs)}000000`;
    try {
      const [overview, lines] = await Promise.all([
        get<Overview>("/v1/health", { at }, signal),
        get<Lines>("/v1/past", { seconds: String(SHOWN_S), end: at, points: "300" }, signal),
      ]);
      this.store.set({ travel: { atMs, overview, lines: seriesOf(lines), problem: "" } });
    } catch (error) {
      if (!signal.aborted) this.store.set({ travel: { atMs, overview: null, lines: new Map(), problem: reason(error) } });
    }
  }

  #turn(phase: Phase): void {
    const before = this.store.state.phase;
    this.store.set({ phase });
    if (phase.name === "open") void this.#loadPast();
    if (phase.name === "lost" && before.name !== "lost") void this.#askWho();
  }

  async #loadPast(): Promise<void> {
    try {
      const [states, lines] = await Promise.all([
        get<Lines>("/v1/past", { seconds: String(HOUR_S), points: "360" }),
        get<Lines>("/v1/past", { seconds: String(SHOWN_S), points: "300" }),
      ]);
      this.past.load(states, lines);
      this.store.set({ pastVersion: this.store.state.pastVersion + 1 });
    } catch {
      // The lines begin with what comes live.
    }
  }

  /** A websocket that is refused does not say why. Without a token, nothing will come any more. */
  async #askWho(): Promise<void> {
    try {
      await get("/v1/health");
    } catch (error) {
      if (error instanceof Refusal && error.status === 401) location.assign("/login");
    }
  }

  #receive(message: Message): void {
    const { state } = this.store;
    if (message.kind === "health") {
      this.#ahead = msOf(message.at_ns) - Date.now();
      this.past.add(message);
      this.store.set({ overview: message, now: msOf(message.at_ns), pastVersion: state.pastVersion + 1 });
    } else if (message.kind === "latest" || message.kind === "conflated") {
      this.market.put(message.rows);
      this.store.set({ marketVersion: state.marketVersion + 1 });
    } else if (message.kind === "jobs") {
      this.store.set({ jobs: message.rows });
    } else if (message.kind === "gaps") {
      this.store.set({ gapsVersion: state.gapsVersion + 1 });
    }
  }
}

/** What the page shows of the pipeline: the present, or the moment that a person chose. */
export function shown(state: PageState): Overview | null {
  return state.travel ? state.travel.overview : state.overview;
}

/** The time that ages count to, ms since 1970. */
export function shownNow(state: PageState): number {
  return state.travel?.overview ? msOf(state.travel.overview.at_ns) : state.now;
}
