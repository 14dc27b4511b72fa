// The two ways to the server: a websocket, and server-sent events read by fetch, which can send a token and works in Node.js 20.

import { errorOf, TapelineError } from "./errors.js";
import type { Message } from "./messages.js";

/** What a connection tells. After `closed` it tells nothing more. */
export interface Listener {
  opened(): void;
  message(message: Message): void;
  closed(why: TapelineError): void;
}

export interface Connection {
  /** Sends a request; missing where the connection goes one way. */
  send?(text: string): void;
  close(): void;
}

export type Open = (path: string, listener: Listener) => Connection;

/** The part of a websocket that is used: a browser's, that of Node.js 22, and that of the package `ws` have it. */
export interface WebSocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  readonly readyState: number;
  send(text: string): void;
  close(): void;
}
export type WebSocketClass = new (url: string) => WebSocketLike;

/** RFC 6455: the request is wrong, so that asking again does not help. */
const WRONG = 1008;

/** Connects by websockets. `fetch` finds out why one could not be opened: a browser does not say. */
export function byWebSocket(base: string, Socket: WebSocketClass, get: typeof fetch): Open {
  return (path, listener) => {
    const socket = new Socket(`${base}${path}`.replace(/^http/, "ws"));
    let opened = false;
    let done = false;
    let said = "";
    const close = (why: TapelineError) => {
      if (done) return;
      done = true;
      listener.closed(why);
    };
    socket.onopen = () => {
      opened = true;
      if (!done) listener.opened();
    };
    socket.onmessage = ({ data }: { data: string }) => {
      if (done) return;
      const message = JSON.parse(data) as Message;
      if (message.kind === "error") said = message.text;
      listener.message(message);
    };
    socket.onerror = () => {}; // a close follows
    socket.onclose = ({ code, reason }: { code: number; reason?: string }) => {
      if (opened) close(new TapelineError(said || reason || `The connection was closed (${code}).`, code, code !== WRONG));
      else void whyNot(base, get).then(close);
    };
    return {
      send: (text) => {
        if (socket.readyState === 1) socket.send(text);
      },
      close: () => {
        done = true;
        socket.close();
      },
    };
  };
}

/** Why a websocket could not be opened. */
async function whyNot(base: string, get: typeof fetch): Promise<TapelineError> {
  try {
    const answer = await get(`${base}/v1/health`);
    if (!answer.ok) return await errorOf(answer);
    await answer.body?.cancel();
    return new TapelineError("The websocket could not be opened, although the server answers. Does a proxy leave websockets out?", 0, true);
  } catch {
    return new TapelineError(`${base} cannot be reached.`, 0, true);
  }
}

/** Connects by fetch. */
export function byFetch(base: string, get: typeof fetch, headers: Record<string, string>): Open {
  return (path, listener) => {
    const abort = new AbortController();
    const read = async (): Promise<TapelineError> => {
      const answer = await get(`${base}${path}`, { headers, signal: abort.signal, cache: "no-store" });
      if (!answer.ok || answer.body === null) return errorOf(answer);
      if (!abort.signal.aborted) listener.opened();
      const parser = new EventParser((message) => {
        if (!abort.signal.aborted) listener.message(message);
      });
      const decoder = new TextDecoder();
      const reader = answer.body.getReader();
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) parser.add(decoder.decode(piece.value, { stream: true }));
      return new TapelineError("The server ended the answer.", 0, true);
    };
    const lost = (error: unknown) => new TapelineError(`The connection was lost: ${String(error)}`, 0, true);
    void read()
      .catch(lost)
      .then((why) => {
        if (!abort.signal.aborted) listener.closed(why);
      });
    return { close: () => abort.abort() };
  };
}

/** Makes messages of the text of server-sent events, however it is cut. An id without data is a sign of life. */
export class EventParser {
  #rest = "";
  #data = "";
  #id: string | undefined;

  constructor(private readonly emit: (message: Message) => void) {}

  add(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#line(line.endsWith("\r") ? line.slice(0, -1) : line);
  }

  #line(line: string): void {
    if (line === "") {
      if (this.#data !== "") this.emit(JSON.parse(this.#data) as Message);
      else if (this.#id !== undefined) this.emit({ kind: "alive", id: this.#id });
      this.#data = "";
      this.#id = undefined;
      return;
    }
    const colon = line.indexOf(":");
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (line.startsWith("data:")) this.#data += value;
    else if (line.startsWith("id:")) this.#id = value;
  }
}
