// What the server sends: the types that clients/typescript makes of the server's own description. Types are all that is taken from there.
import type { Cell, Verdict } from "../../clients/typescript/src/messages";

export type * from "../../clients/typescript/src/messages";
export type State = Verdict["state"];
export type CellState = Cell["state"];
