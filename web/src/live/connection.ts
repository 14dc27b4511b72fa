// One connection to the live feed, which comes back by itself: after a loss it continues behind the last message that it got.
import type { Message } from "../types";
import { waitMs } from "./backoff";

export type Phase =
  | { name: "connecting" }
  | { name: "open" }
  /** `since` and `again` are times of `World.now`; `why`: what the server said, or nothing. */
  | { name: "lost"; since: number; again: number; why: string };

export interface Handlers {
  message(message: Message): void;
  phase(phase: Phase): void;
}

export interface Socket {
  onmessage: ((event: { data: string }) => void) | null;
  onclose: (() => void) | null;
  close(): void;
}

/** What a connection needs of the browser. A test has another one. */
export interface World {
  now(): number;
  random(): number;
  after(ms: number, what: () => void): number;
  cancel(timer: number): void;
  open(address: string): Socket;
}

export const browser: World = {
  now: () => performance.now(),
  random: () => Math.random(),
  after: (ms, what) => window.setTimeout(what, ms),
  cancel: (timer) => window.clearTimeout(timer),
  open: (address) => new WebSocket(new URL(address, location.href.replace(/^http/, "ws"))) as unknown as Socket,
};

export class Connection {
  #socket: Socket | null = null;
  #timer = 0;
  #failures = 0;
  #lostAt: number | null = null;
  #since: string;
  #why = "";

  /**
   * `address`: its parameters begin with `?`. `since`: the position from which on events are wanted; empty for the present.
   * `silence`: without a message for so many ms, the connection counts as lost; 0: never.
   */
  constructor(
    readonly address: string,
    private readonly handlers: Handlers,
    private readonly options: { since?: string; silence?: number; world?: World } = {},
  ) {
    this.#since = options.since ?? "";
  }

  get #world(): World {
    return this.options.world ?? browser;
  }

  start(): void {
    this.#world.cancel(this.#timer);
    this.#drop();
    if (this.#lostAt === null) this.handlers.phase({ name: "connecting" });
    const since = this.#since ? `&since=${encodeURIComponent(this.#since)}` : "";
    const socket = this.#world.open(this.address + since);
    socket.onmessage = (event) => this.#receive(JSON.parse(event.data) as Message);
    socket.onclose = () => this.#lost();
    this.#socket = socket;
    this.#watch();
  }

  /** End it for good. */
  stop(): void {
    this.#world.cancel(this.#timer);
    this.#drop();
  }

  #receive(message: Message): void {
    if (message.kind === "error") {
      this.#why = message.text;
      return;
    }
    this.#since = message.id;
    if (message.kind === "hello") {
      this.#failures = 0;
      this.#lostAt = null;
      this.#why = "";
      this.handlers.phase({ name: "open" });
    }
    this.#watch();
    this.handlers.message(message);
  }

  #lost(): void {
    this.#drop();
    this.#lostAt ??= this.#world.now();
    const wait = waitMs(this.#failures++, this.#world.random());
    this.handlers.phase({ name: "lost", since: this.#lostAt, again: this.#world.now() + wait, why: this.#why });
    this.#timer = this.#world.after(wait, () => this.start());
  }

  /** A network that is gone closes nothing: silence is a loss too. */
  #watch(): void {
    this.#world.cancel(this.#timer);
    if (this.options.silence) this.#timer = this.#world.after(this.options.silence, () => this.#lost());
  }

  #drop(): void {
    this.#world.cancel(this.#timer);
    if (this.#socket === null) return;
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
    this.#socket = null;
  }
}
