// A program for the test with a real server: prints what the client gives as lines of JSON, until its input ends.
//
//   node program.js URL websocket|fetch|follow SYMBOLS

import { connect, follow, type WebSocketClass } from "@tapeline/client";
import { WebSocket } from "ws";

const [url = "", how = "", symbols = ""] = process.argv.slice(2);
const print = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);
const server = { url, WebSocket: WebSocket as unknown as WebSocketClass, reconnect: { first: 100, longest: 500, steady: 1_000 } };
process.stdin.on("end", () => process.exit(0)).resume();

if (how === "follow") {
  for await (const { rows, live } of follow(symbols, { ...server, seconds: 3_600 })) print({ live, ids: rows.map((row) => row.id) });
} else {
  const feed = connect({ ...server, symbols: symbols.split(","), transport: how as "websocket" | "fetch" });
  feed.on("status", ({ state, error }) => print({ state, error: error?.message }));
  for await (const message of feed) {
    if (message.kind === "hello") print({ resumed: message.resumed, missed: message.missed });
    if (message.kind === "ticks") print({ ids: message.rows.map((row) => row.id) });
    if (message.kind === "conflated") print({ skipped: message.skipped });
  }
}
