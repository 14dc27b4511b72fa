// The live feed: one connection that comes back by itself and continues where it was, with a bounded buffer for who reads slowly.

import { TapelineError } from "./errors.js";
import type { Message, StreamQuery } from "./messages.js";
import { byFetch, byWebSocket, type Connection, type Open, type WebSocketClass } from "./transport.js";

/** What can be subscribed to. */
export type Kind = NonNullable<StreamQuery["kinds"]>[number];

export interface Server {
  /** The address of `tapeline dashboard`, such as http://127.0.0.1:8765, or a path of this site that leads to it. This site if left out. */
  url?: string;
  /** A viewer's token. A browser cannot send one with a websocket, so that with a token the feed uses fetch. */
  token?: string;
  fetch?: typeof fetch;
}

export interface Subscription {
  /** Canonical names and patterns: BTC/USDT, BTC/*. */
  symbols?: readonly string[];
  kinds?: readonly Kind[];
}

export interface ConnectOptions extends Server, Subscription {
  /** How many times a second at most `latest` comes. */
  rate?: number;
  /** The id of the last message of an earlier connection: the feed continues after it. */
  since?: string;
  /** Chosen by itself: fetch with a token and where there is no WebSocket, otherwise websocket. */
  transport?: "websocket" | "fetch";
  /** A class for Node.js 20, which has none: that of the package ws. */
  WebSocket?: WebSocketClass;
  /** How many messages wait for an iterator. If there are more, the feed disconnects until half are read, and then continues. */
  buffer?: number;
  /** Whether a connection that was conflated is left, and continued at the last message before: slow, but nothing is left out. */
  lossless?: boolean;
  /** Milliseconds without any message after which a connection is given up. The server sends a sign of life every 5 seconds. */
  silence?: number;
  reconnect?: Partial<Reconnect>;
  /** For tests. */
  clock?: Clock;
}

/** How long to wait before the next try: `first` ms, doubled up to `longest`, each by chance from a half of it to all of it. */
export interface Reconnect {
  first: number;
  longest: number;
  /** After a connection that held this many ms, the waits begin again with `first`. */
  steady: number;
}

export interface Clock {
  now(): number;
  set(ms: number, call: () => void): unknown;
  clear(timer: unknown): void;
  random(): number;
}

export type State = "connecting" | "open" | "waiting" | "paused" | "closed";

export interface Status {
  state: State;
  /** How many tries have failed since the last steady connection. */
  failures: number;
  /** Why the feed is not open. */
  error?: TapelineError;
}

type Handlers = { [K in Message["kind"]]: (message: Extract<Message, { kind: K }>) => void } & {
  message: (message: Message) => void;
  status: (status: Status) => void;
};

const RECONNECT: Reconnect = { first: 300, longest: 15_000, steady: 5_000 };
const CLOCK: Clock = {
  now: () => performance.now(),
  set: (ms, call) => setTimeout(call, ms),
  clear: (timer) => clearTimeout(timer as ReturnType<typeof setTimeout>),
  random: Math.random,
};

/** Connects to the live feed. Handlers and iterators that are added at once get everything from the first message on. */
export function connect(options: ConnectOptions): LiveFeed {
  return new LiveFeed(options);
}

/** The address without a slash at its end. */
export function baseOf(url: string | undefined): string {
  const page = (globalThis as { location?: { href: string } }).location?.href;
  return new URL(url || "/", page).href.replace(/\/$/, "");
}

export function headersOf(server: Server): Record<string, string> {
  return server.token ? { authorization: `Bearer ${server.token}` } : {};
}

/** `fetch` that may be called without its object. */
export function fetchOf(server: Server): typeof fetch {
  return server.fetch ?? ((...request) => fetch(...request));
}

export class LiveFeed implements AsyncIterable<Message> {
  #id: string;
  readonly #symbols: Set<string>;
  readonly #kinds: Set<Kind>;
  readonly #handlers = new Map<string, Set<(value: never) => void>>();
  readonly #open: Open;
  readonly #clock: Clock;
  readonly #reconnect: Reconnect;
  readonly #most: number;
  #status: Status = { state: "connecting", failures: 0 };
  #connection: Connection | undefined;
  #opened: number | undefined;
  #timer: unknown;
  #silence: unknown;
  #waiting: Message[] | undefined;
  #wake: (() => void) | undefined;

  constructor(private readonly options: ConnectOptions) {
    this.#id = options.since ?? "";
    this.#symbols = new Set(options.symbols);
    this.#kinds = new Set(options.kinds ?? (this.#symbols.size ? ["ticks"] : []));
    this.#clock = options.clock ?? CLOCK;
    this.#reconnect = { ...RECONNECT, ...options.reconnect };
    this.#most = options.buffer ?? 1_000;
    this.#open = openOf(options);
    this.#connect();
  }

  /** The position up to which everything was got: `since` of a later feed. */
  get id(): string {
    return this.#id;
  }

  get status(): Status {
    return this.#status;
  }

  /** Calls `handler` for each message of a kind, for every message, or for each change of the status. Returns what ends that. */
  on<K extends keyof Handlers>(kind: K, handler: Handlers[K]): () => void {
    const all = this.#handlers.get(kind) ?? new Set();
    this.#handlers.set(kind, all.add(handler as (value: never) => void));
    return () => all.delete(handler as (value: never) => void);
  }

  subscribe(more: Subscription): void {
    for (const symbol of more.symbols ?? []) this.#symbols.add(symbol);
    for (const kind of more.kinds ?? []) this.#kinds.add(kind);
    this.#changed({ subscribe: more });
  }

  unsubscribe(less: Subscription): void {
    for (const symbol of less.symbols ?? []) this.#symbols.delete(symbol);
    for (const kind of less.kinds ?? []) this.#kinds.delete(kind);
    this.#changed({ unsubscribe: less });
  }

  close(): void {
    if (this.#status.state !== "closed") this.#end({ state: "closed", failures: this.#status.failures });
  }

  /** Yields every message. It ends when the feed is closed, and throws a TapelineError if trying again does not help. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Message, void, undefined> {
    const waiting = (this.#waiting ??= []);
    try {
      while (true) {
        const message = waiting.shift();
        if (message !== undefined) {
          yield message;
          if (this.#status.state === "paused" && waiting.length <= this.#most / 2) this.#connect();
        } else if (this.#status.state === "closed") {
          if (this.#status.error) throw this.#status.error;
          return;
        } else {
          await new Promise<void>((resolve) => (this.#wake = resolve));
        }
      }
    } finally {
      this.close();
    }
  }

  #changed(request: { subscribe: Subscription } | { unsubscribe: Subscription }): void {
    if (this.#connection === undefined) return; // the next connection asks for all of it
    if (this.#connection.send) {
      if (this.#status.state === "open") this.#connection.send(JSON.stringify(request));
      else this.#restart(); // what it asked for when it was begun is out of date
    } else this.#restart();
  }

  /** Several changes at once are one new connection. */
  #restart(): void {
    this.#drop();
    this.#set({ ...this.#status, state: "connecting" });
    this.#timer = this.#clock.set(0, () => this.#connect());
  }

  #connect(): void {
    this.#drop();
    this.#set({ ...this.#status, state: "connecting" });
    this.#opened = undefined;
    let current = true;
    const mine = (call: () => void) => {
      if (current) call();
    };
    const connection = this.#open(this.#path(), {
      opened: () =>
        mine(() => {
          this.#opened = this.#clock.now();
          this.#set({ state: "open", failures: this.#status.failures });
        }),
      message: (message) => mine(() => this.#got(message)),
      closed: (why) => mine(() => this.#lost(why)),
    });
    const { send } = connection;
    this.#connection = {
      ...(send && { send: (text: string) => send(text) }),
      close: () => {
        current = false;
        connection.close();
      },
    };
    this.#listen();
  }

  #path(): string {
    const { rate } = this.options;
    const query = new URLSearchParams({ symbols: [...this.#symbols].join(","), kinds: [...this.#kinds].join(",") });
    if (rate !== undefined) query.set("rate", String(rate));
    if (this.#id) query.set("since", this.#id);
    return `/v1/stream?${query}`;
  }

  #got(message: Message): void {
    this.#listen();
    if (message.kind === "conflated" && this.options.lossless) return this.#restart();
    if ("id" in message && message.id) this.#id = message.id;
    if (message.kind === "alive") return;
    if (this.#waiting) {
      this.#waiting.push(message);
      this.#wake?.();
    }
    this.#tell(message.kind, message);
    this.#tell("message", message);
    if (this.#waiting && this.#waiting.length >= this.#most && this.#connection) {
      this.#drop();
      this.#set({ state: "paused", failures: 0 });
    }
  }

  #lost(why: TapelineError): void {
    const steady = this.#opened !== undefined && this.#clock.now() - this.#opened >= this.#reconnect.steady;
    const failures = (steady ? 0 : this.#status.failures) + 1;
    this.#drop();
    if (!why.retry) return this.#end({ state: "closed", failures, error: why });
    const ceiling = Math.min(this.#reconnect.longest, this.#reconnect.first * 2 ** Math.min(failures - 1, 30));
    this.#timer = this.#clock.set(ceiling * (0.5 + this.#clock.random() / 2), () => this.#connect());
    this.#set({ state: "waiting", failures, error: why });
  }

  #end(status: Status): void {
    this.#drop();
    this.#set(status);
    this.#wake?.();
  }

  /** Gives the connection up, and whatever would happen later. */
  #drop(): void {
    this.#clock.clear(this.#timer);
    this.#clock.clear(this.#silence);
    this.#connection?.close();
    this.#connection = undefined;
  }

  /** Begins to wait for the next sign of life anew. */
  #listen(): void {
    const ms = this.options.silence ?? 20_000;
    this.#clock.clear(this.#silence);
    const silent = () => this.#lost(new TapelineError(`Nothing came for ${ms / 1_000} s.`, 0, true));
    this.#silence = this.#clock.set(ms, silent);
  }

  #set(status: Status): void {
    this.#status = status;
    this.#tell("status", status);
  }

  #tell(kind: string, value: unknown): void {
    for (const handler of [...(this.#handlers.get(kind) ?? [])]) {
      try {
        handler(value as never);
      } catch (error) {
        // The handler's own error must not stop the feed, and must not be hidden.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}

function openOf(options: ConnectOptions): Open {
  const Socket = options.WebSocket ?? (globalThis as { WebSocket?: WebSocketClass }).WebSocket;
  const base = baseOf(options.url);
  const chosen = options.transport ?? (options.token || !Socket ? "fetch" : "websocket");
  if (chosen === "fetch") return byFetch(base, fetchOf(options), headersOf(options));
  if (!Socket) throw new TapelineError("There is no WebSocket here. Pass one, such as that of the package ws, or use fetch.", 0, false);
  return byWebSocket(base, Socket, fetchOf(options));
}
