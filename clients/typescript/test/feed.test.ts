// The feed's states: when it comes back, from where, what it gives up on, and what it holds for who reads slowly.

import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as settled } from "node:timers/promises";
import { connect, TapelineError, type ConnectOptions, type Message } from "@tapeline/client";
import { FakeClock, fakeSockets } from "./fakes.js";

function feedOf(options: Partial<ConnectOptions> = {}) {
  const clock = new FakeClock();
  const sockets = fakeSockets();
  const health = new Response("{}", { status: 200 });
  const feed = connect({
    url: "http://tape.test/",
    symbols: ["BTC/USDT"],
    transport: "websocket",
    WebSocket: sockets.WebSocket,
    clock,
    fetch: () => Promise.resolve(health.clone()),
    reconnect: { first: 100, longest: 1_000, steady: 5_000 },
    ...options,
  });
  return { clock, feed, ...sockets };
}

const ticks = (id: string, ...ids: string[]) => ({ kind: "ticks", id, rows: ids.map((one) => ({ id: one })) });

test("it asks for what was wanted", () => {
  const { last } = feedOf({ kinds: ["ticks", "bars"], rate: 5, since: "ticks:7;bars:0" });
  assert.equal(last().url.split("?")[0], "ws://tape.test/v1/stream");
  assert.deepEqual(last().query, { symbols: "BTC/USDT", kinds: "ticks,bars", rate: "5", since: "ticks:7;bars:0" });
});

test("it comes back after the last message that it got, also a sign of life", () => {
  const { clock, feed, last, made } = feedOf();
  const got: string[] = [];
  feed.on("ticks", (message) => got.push(...message.rows.map((row) => row.id)));
  last().open();
  last().gets({ kind: "hello", id: "ticks:1", resumed: false });
  last().gets(ticks("ticks:2", "0-1-0"));
  last().gets({ kind: "alive", id: "ticks:5" });
  last().ends(1006);
  assert.equal(feed.status.state, "waiting");
  clock.pass(100);
  assert.equal(made.length, 2);
  assert.equal(last().query["since"], "ticks:5");
  last().open();
  last().gets({ kind: "hello", id: "ticks:5", resumed: true });
  last().gets(ticks("ticks:6", "0-2-0"));
  assert.deepEqual(got, ["0-1-0", "0-2-0"]);
  assert.equal(feed.id, "ticks:6");
});

test("an empty id says nothing of a position", () => {
  const { feed, last } = feedOf({ since: "ticks:7" });
  last().open();
  last().gets({ kind: "hello", id: "", resumed: false });
  assert.equal(feed.id, "ticks:7");
});

test("the waits double up to the longest, by chance from a half to all, and begin again after a steady connection", () => {
  const { clock, feed, last, made } = feedOf();
  const waits: number[] = [];
  const fail = (steady: number) => {
    last().open();
    clock.pass(steady);
    last().ends(1012);
    waits.push(clock.due[0] ?? 0);
    clock.pass(waits.at(-1) ?? 0);
  };
  for (let count = 0; count < 6; count++) fail(10);
  assert.deepEqual(waits, [100, 200, 400, 800, 1_000, 1_000]);
  clock.chance = 0;
  fail(10);
  assert.equal(waits.at(-1), 500);
  clock.chance = 1;
  fail(5_000);
  assert.equal(waits.at(-1), 100);
  assert.equal(feed.status.failures, 1);
  assert.equal(made.length, 9);
});

test("a wrong request is not sent again, and says why", async () => {
  const { clock, feed, last, made } = feedOf();
  const reading = (async () => {
    for await (const message of feed) void message;
  })();
  last().open();
  last().gets({ kind: "error", text: "kinds has 'tick', which is not a kind." });
  last().ends(1008);
  await assert.rejects(reading, (error) => error instanceof TapelineError && error.status === 1008 && /not a kind/.test(error.message));
  clock.pass(1e6);
  assert.equal(made.length, 1);
  assert.equal(feed.status.state, "closed");
});

test("an error on a connection that stays is only told", () => {
  const { feed, last } = feedOf();
  const told: string[] = [];
  feed.on("error", ({ text }) => told.push(text));
  last().open();
  last().gets({ kind: "error", text: "wrong" });
  assert.deepEqual([told, feed.status.state], [["wrong"], "open"]);
});

for (const [status, state] of [
  [401, "closed"],
  [403, "closed"],
  [503, "waiting"],
] as const) {
  test(`a websocket that cannot be opened where the server answers ${status}: ${state}`, async () => {
    const answer = () => Promise.resolve(Response.json({ error: "A token is needed." }, { status }));
    const { feed, last } = feedOf({ fetch: answer });
    last().ends(1006);
    await settled();
    await settled();
    assert.deepEqual([feed.status.state, feed.status.error?.message], [state, "A token is needed."]);
  });
}

test("a connection without a sign of life is given up", () => {
  const { clock, last, made } = feedOf({ silence: 20_000 });
  last().open();
  clock.pass(15_000);
  last().gets({ kind: "alive", id: "ticks:3" });
  clock.pass(19_999);
  assert.equal(made.length, 1);
  const first = last();
  clock.pass(101);
  assert.equal(made.length, 2);
  assert.equal(first.readyState, 2, "and closed");
});

test("a subscription is changed on the connection, and the next one asks for it", () => {
  const { clock, feed, last } = feedOf();
  last().open();
  feed.subscribe({ symbols: ["ETH/USDT"], kinds: ["latest"] });
  feed.unsubscribe({ symbols: ["BTC/USDT"] });
  assert.deepEqual(last().sent, [{ subscribe: { symbols: ["ETH/USDT"], kinds: ["latest"] } }, { unsubscribe: { symbols: ["BTC/USDT"] } }]);
  last().ends(1006);
  clock.pass(100);
  assert.deepEqual(last().query, { symbols: "ETH/USDT", kinds: "ticks,latest" });
});

test("changes before the connection is open are one new connection", () => {
  const { clock, feed, last, made } = feedOf();
  feed.subscribe({ symbols: ["A"] });
  feed.subscribe({ symbols: ["B"] });
  clock.pass(0);
  assert.equal(made.length, 2);
  assert.equal(last().query["symbols"], "BTC/USDT,A,B");
});

test("who reads slowly gets everything: the feed leaves when its buffer is full, and comes back when half is read", async () => {
  const { feed, last, made } = feedOf({ buffer: 4 });
  const messages = feed[Symbol.asyncIterator]();
  const first = messages.next();
  last().open();
  last().gets(ticks("ticks:1", "0-1-0"));
  await first;
  for (let at = 2; at < 9; at++) last().gets(ticks(`ticks:${at}`, `0-${at}-0`));
  assert.equal(feed.status.state, "paused");
  assert.equal(feed.id, "ticks:5");
  const got: string[] = [];
  for (let count = 0; count < 3; count++) {
    const { value } = await messages.next();
    got.push(((value as Message) as { id: string }).id);
  }
  assert.deepEqual(got, ["ticks:2", "ticks:3", "ticks:4"]);
  assert.equal(made.length, 2);
  assert.equal(last().query["since"], "ticks:5");
});

test("a lossless feed leaves a connection that was conflated, and continues before that", () => {
  const { clock, feed, last, made } = feedOf({ lossless: true });
  const kinds: string[] = [];
  feed.on("message", ({ kind }) => kinds.push(kind));
  last().open();
  last().gets(ticks("ticks:1", "0-1-0"));
  last().gets({ kind: "conflated", id: "ticks:9", skipped: 7, rows: [] });
  last().gets(ticks("ticks:10", "0-10-0"));
  clock.pass(0);
  assert.deepEqual(kinds, ["ticks"]);
  assert.equal(made.length, 2);
  assert.equal(last().query["since"], "ticks:1");
});

test("another feed is told what was left out", () => {
  const { feed, last } = feedOf();
  const skipped: number[] = [];
  feed.on("conflated", (message) => skipped.push(message.skipped));
  last().open();
  last().gets({ kind: "conflated", id: "ticks:9", skipped: 7, rows: [] });
  assert.deepEqual([skipped, feed.id], [[7], "ticks:9"]);
});

test("a feed that was closed does nothing more", async () => {
  const { clock, feed, last, made } = feedOf();
  const reading = (async () => {
    for await (const message of feed) void message;
  })();
  last().open();
  feed.close();
  last().gets(ticks("ticks:1", "0-1-0"));
  last().ends(1006);
  clock.pass(1e6);
  await reading;
  assert.deepEqual([made.length, feed.id, clock.due.length], [1, "", 0]);
});
