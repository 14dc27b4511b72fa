// Tapeline's live feed and history for browsers and Node.js.

export { TapelineError } from "./errors.js";
export { connect, LiveFeed } from "./feed.js";
export type { Clock, ConnectOptions, Kind, Reconnect, Server, State, Status, Subscription } from "./feed.js";
export { follow } from "./follow.js";
export type { Followed, FollowOptions } from "./follow.js";
export { compareIds } from "./ids.js";
export { Live } from "./live.js";
export type { LiveOptions } from "./live.js";
export { rest } from "./rest.js";
export type { Rest } from "./rest.js";
export { fromDate, ns, toDate } from "./times.js";
export type { WebSocketClass, WebSocketLike } from "./transport.js";
export type * as schema from "./messages.js";
export type { Bar, BarRows, Conflated, Hello, Latest, Message, Overview, Tick, TickRows, Verdict } from "./messages.js";
