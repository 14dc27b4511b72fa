// A clock that is moved by hand, and websockets that do what a test says.

import type { Clock, WebSocketLike } from "@tapeline/client";

export class FakeClock implements Clock {
  #now = 0;
  #next = 1;
  readonly #timers = new Map<number, { at: number; call: () => void }>();
  /** What `random` gives. */
  chance = 1;

  now = () => this.#now;
  random = () => this.chance;

  set = (ms: number, call: () => void): number => {
    this.#timers.set(this.#next, { at: this.#now + ms, call });
    return this.#next++;
  };

  clear = (timer: unknown): void => {
    this.#timers.delete(timer as number);
  };

  /** The milliseconds until each timer, the next one first. */
  get due(): number[] {
    return [...this.#timers.values()].map(({ at }) => at - this.#now).sort((a, b) => a - b);
  }

  /** Lets time pass, and calls what is due in it. */
  pass(ms: number): void {
    const end = this.#now + ms;
    for (;;) {
      const next = [...this.#timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!next) break;
      this.#timers.delete(next[0]);
      this.#now = next[1].at;
      next[1].call();
    }
    this.#now = end;
  }
}

/** A class of websockets, and all that were made of it. */
export function fakeSockets() {
  const made: FakeSocket[] = [];
  class FakeSocket implements WebSocketLike {
    onopen: ((event: never) => void) | null = null;
    onmessage: ((event: never) => void) | null = null;
    onclose: ((event: never) => void) | null = null;
    onerror: ((event: never) => void) | null = null;
    readyState = 0;
    readonly sent: unknown[] = [];

    constructor(readonly url: string) {
      made.push(this);
    }

    get query(): Record<string, string> {
      return Object.fromEntries(new URL(this.url).searchParams);
    }

    open(): void {
      this.readyState = 1;
      this.onopen?.({} as never);
    }

    gets(message: object): void {
      this.onmessage?.({ data: JSON.stringify(message) } as never);
    }

    ends(code: number): void {
      this.readyState = 3;
      this.onclose?.({ code, reason: "" } as never);
    }

    send(text: string): void {
      this.sent.push(JSON.parse(text));
    }

    close(): void {
      this.readyState = 2;
    }
  }
  const last = () => {
    const socket = made.at(-1);
    if (!socket) throw new Error("no socket was made");
    return socket;
  };
  return { WebSocket: FakeSocket, made, last };
}
