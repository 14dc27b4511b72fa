// The small parts: server-sent events however they are cut, ids, times, the values of a page, the hooks on a server.

import assert from "node:assert/strict";
import { test } from "node:test";
import { compareIds, connect, fromDate, Live, ns, toDate, type Message } from "@tapeline/client";
import { TapelineProvider, useHealth, useLatest, useTapeline } from "@tapeline/client/react";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { fakeSockets } from "./fakes.js";

const EVENTS = 'retry: 1000\n\nid: a:1\nevent: ticks\ndata: {"kind":"ticks","id":"a:1","rows":[{"id":"0-1-0","symbol":"€/USDT"}]}\n\n: alive\nid: a:2\n\n';

for (const size of [1, 2, 3, 7, 1_000]) {
  test(`server-sent events in pieces of ${size} bytes`, async () => {
    const bytes = new TextEncoder().encode(EVENTS);
    const body = new ReadableStream({
      start(controller) {
        for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
      },
    });
    const asked: { url: string; headers: unknown }[] = [];
    const feed = connect({
      url: "http://tape.test/behind/",
      token: "a token",
      symbols: ["€/USDT"],
      fetch: (url, init) => {
        asked.push({ url: String(url), headers: init?.headers });
        return Promise.resolve(new Response(body));
      },
    });
    for await (const message of feed) {
      assert.deepEqual(message, { kind: "ticks", id: "a:1", rows: [{ id: "0-1-0", symbol: "€/USDT" }] } as unknown as Message);
      while (feed.id !== "a:2") await new Promise((resolve) => setTimeout(resolve, 1));
      break;
    }
    assert.deepEqual(asked[0]?.headers, { authorization: "Bearer a token" });
    assert.ok(asked[0].url.startsWith("http://tape.test/behind/v1/stream?symbols=%E2%82%AC%2FUSDT"));
  });
}

test("ids are ordered by number", () => {
  assert.deepEqual(["0-10-0", "0-9-12", "0-9-2", "1-0-0"].sort(compareIds), ["0-9-2", "0-9-12", "0-10-0", "1-0-0"]);
});

test("times keep their nanoseconds", () => {
  assert.equal(ns("1796011990462526205") - 1n, 1796011990462526204n);
  assert.equal(toDate("1796011990462526205").toISOString(), "2026-11-30T04:13:10.462Z");
  assert.equal(fromDate(toDate("1796011990462526205")), 1796011990462000000n);
});

test("the parts of a page share one connection, and one change a frame", () => {
  const { WebSocket, made, last } = fakeSockets();
  let frame: (() => void) | undefined;
  const live = new Live({ url: "http://tape.test", transport: "websocket", WebSocket }, (call) => (frame = call));
  let changes = 0;
  live.listen(() => changes++);
  const release = [live.want(["A", "B"], ["latest"]), live.want(["B"], ["latest", "health"])];
  live.start();
  assert.deepEqual(last().query, { symbols: "A,B", kinds: "latest,health" });
  last().open();
  for (let value = 1; value < 100; value++) last().gets({ kind: "latest", id: "x:1", rows: [{ symbol: "A", last: value }] });
  assert.equal(live.latest("A")?.last, 99);
  frame?.();
  assert.deepEqual([changes, live.version], [1, 1]);
  release[0]?.();
  assert.deepEqual(last().sent, [{ unsubscribe: { symbols: ["A"], kinds: [] } }]);
  live.stop();
  live.start();
  assert.deepEqual([made.length, last().query["symbols"]], [2, "B"]);
  live.stop();
});

test("the hooks render on a server, where nothing is known yet", () => {
  const Page = () => {
    const { status } = useTapeline();
    const [one] = useLatest(["BTC/USDT"]);
    return createElement("p", null, `${status.state} ${one?.last ?? "no price"} ${useHealth()?.verdict.text ?? "no health"}`);
  };
  const page = createElement(TapelineProvider, { url: "http://tape.test" }, createElement(Page));
  assert.equal(renderToString(page), "<p>connecting no price no health</p>");
});
