// A connection that is lost comes back, later and later, behind the last message that it got.
import { describe, expect, it } from "vitest";
import { LONGEST_MS, waitMs } from "../live/backoff";
import { Connection, type Phase, type Socket, type World } from "../live/connection";
import type { Message } from "../types";

/** A browser whose time and whose server are ours. */
class Made implements World {
  time = 0;
  readonly opened: { address: string; socket: Socket; closed: boolean }[] = [];
  #timers = new Map<number, { at: number; what: () => void }>();
  #next = 1;

  now = () => this.time;
  random = () => 1;
  after = (ms: number, what: () => void) => {
    this.#timers.set(this.#next, { at: this.time + ms, what });
    return this.#next++;
  };
  cancel = (timer: number) => void this.#timers.delete(timer);
  open = (address: string) => {
    const one = { address, closed: false, socket: { onmessage: null, onclose: null, close: () => void (one.closed = true) } as Socket };
    this.opened.push(one);
    return one.socket;
  };

  pass(ms: number): void {
    this.time += ms;
    for (const [timer, { at, what }] of [...this.#timers]) {
      if (at <= this.time && this.#timers.delete(timer)) what();
    }
  }

  get last() {
    return this.opened.at(-1)!;
  }

  say(message: Message): void {
    this.last.socket.onmessage?.({ data: JSON.stringify(message) });
  }
}

function begin(options: { since?: string; silence?: number } = {}) {
  const world = new Made();
  const phases: Phase[] = [];
  const messages: Message[] = [];
  const handlers = { message: (some: Message) => void messages.push(some), phase: (some: Phase) => void phases.push(some) };
  const connection = new Connection("/v1/stream?kinds=health", handlers, { ...options, world });
  connection.start();
  return { world, phases, messages, connection };
}

describe("a connection", () => {
  it("continues behind its last message", () => {
    const { world, phases, messages } = begin();
    world.say({ kind: "hello", id: "ticks:1", resumed: false });
    world.say({ kind: "ticks", id: "ticks:7", rows: [] });
    world.last.socket.onclose?.();
    expect(phases.at(-1)).toEqual({ name: "lost", since: 0, again: 500, why: "" });
    world.pass(500);
    expect(world.opened.map((one) => one.address)).toEqual(["/v1/stream?kinds=health", "/v1/stream?kinds=health&since=ticks%3A7"]);
    expect(messages.map((some) => some.kind)).toEqual(["hello", "ticks"]);
    expect(phases.map((some) => some.name)).toEqual(["connecting", "open", "lost"]);
    world.say({ kind: "hello", id: "ticks:7", resumed: true });
    expect(phases.at(-1)).toEqual({ name: "open" });
  });

  it("waits longer each time, since the first loss, until it is open again", () => {
    const { world, phases } = begin();
    const waits: number[] = [];
    for (let failure = 0; failure < 8; failure++) {
      world.last.socket.onclose?.();
      const phase = phases.at(-1)!;
      if (phase.name === "lost") waits.push(phase.again - world.time);
      if (phase.name === "lost") expect(phase.since).toBe(0);
      world.pass(waits.at(-1)!);
    }
    expect(waits).toEqual([500, 1_000, 2_000, 4_000, 8_000, LONGEST_MS, LONGEST_MS, LONGEST_MS]);
    world.say({ kind: "hello", id: "a:1", resumed: false });
    world.last.socket.onclose?.();
    expect(phases.at(-1)).toMatchObject({ name: "lost", again: world.time + 500 });
  });

  it("is lost when it is silent for too long, and not while something comes", () => {
    const { world, phases } = begin({ silence: 1_000 });
    world.say({ kind: "hello", id: "a:1", resumed: false });
    for (let second = 0; second < 5; second++) {
      world.pass(900);
      world.say({ kind: "latest", id: "a:1", rows: [] });
    }
    expect(phases.at(-1)).toEqual({ name: "open" });
    world.pass(1_000);
    expect(phases.at(-1)?.name).toBe("lost");
    expect(world.last.closed).toBe(true);
  });

  it("says why the server refuses it", () => {
    const { world, phases } = begin();
    world.say({ kind: "error", text: "There are 2 clients, and no more are allowed." });
    world.last.socket.onclose?.();
    expect(phases.at(-1)).toMatchObject({ name: "lost", why: "There are 2 clients, and no more are allowed." });
  });

  it("that is stopped opens nothing any more, and one that begins later says since when", () => {
    const { world, connection } = begin({ since: "ticks:5" });
    expect(world.last.address).toContain("since=ticks%3A5");
    connection.stop();
    expect(world.last.closed).toBe(true);
    world.pass(60_000);
    expect(world.opened.length).toBe(1);
  });

  it("never waits for the same time as all others", () => {
    expect(new Set([0, 0.25, 0.5, 0.75, 1].map((random) => waitMs(4, random))).size).toBe(5);
    expect(waitMs(100, 1)).toBe(LONGEST_MS);
    expect(waitMs(0, 0)).toBe(250);
  });
});
