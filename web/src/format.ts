// Numbers, ages and times as people read them: thousands have separators, and every time names its zone. Pure.

const NONE = "–";
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
/** More decimals than this are noise of the binary fraction. */
const MOST_DECIMALS = 10;

export function count(value: number | null | undefined): string {
  return value === null || value === undefined ? NONE : whole.format(value);
}

/** Events a second: one decimal while it is small. */
export function rate(perS: number | null | undefined): string {
  if (perS === null || perS === undefined) return NONE;
  return perS > 0 && perS < 10 ? tenths.format(perS) : whole.format(perS);
}

/** A count and its noun: "1 gap", "2 gaps". */
export function counted(value: number, one: string, many = `${one}s`): string {
  return `${whole.format(value)} ${value === 1 ? one : many}`;
}

/** How many decimals a number has, as it is written. */
export function decimals(value: number): number {
  const [digits, exponent] = String(value).split("e");
  const written = digits?.split(".")[1]?.length ?? 0;
  return Math.min(Math.max(0, written - Number(exponent ?? 0)), MOST_DECIMALS);
}

/** A price or a size with so many decimals. */
export function price(value: number | null | undefined, places: number): string {
  if (value === null || value === undefined) return NONE;
  return value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
}

/** How long ago, or how long: "3 s", "2 min", "5 h", "3 d". */
export function age(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return NONE;
  const past = Math.max(0, seconds);
  if (past < 120) return `${Math.floor(past)} s`;
  if (past < 7_200) return `${Math.floor(past / 60)} min`;
  if (past < 172_800) return `${Math.floor(past / 3_600)} h`;
  return `${whole.format(Math.floor(past / 86_400))} d`;
}

/** A lag: as an age, but with a decimal while it is short. */
export function lag(seconds: number): string {
  return seconds < 10 ? `${tenths.format(Math.max(0, seconds))} s` : age(seconds);
}

export function milliseconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  if (value < 10) return `${tenths.format(value)} ms`;
  return value < 10_000 ? `${whole.format(value)} ms` : `${tenths.format(value / 1_000)} s`;
}

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  if (value < 1e6) return `${whole.format(value / 1e3)} kB`;
  return value < 1e9 ? `${whole.format(value / 1e6)} MB` : `${tenths.format(value / 1e9)} GB`;
}

/** A share as percent, rounded down: 100 % means all of it. */
export function share(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  const percent = Math.floor(value * 10_000 + 1e-6) / 100;
  return percent === 100 || percent === 0 ? `${percent} %` : `${percent.toFixed(2)} %`;
}

/** Milliseconds since 1970, with a fraction, of nanoseconds as text. */
export function msOf(ns: string): number {
  return Number(ns) / 1e6;
}

/** "05:12:31 UTC" */
export function timeOf(ms: number): string {
  return `${new Date(ms).toISOString().slice(11, 19)} UTC`;
}

/** "2026-01-05 05:12:31 UTC" */
export function momentOf(ms: number): string {
  const text = new Date(ms).toISOString();
  return `${text.slice(0, 10)} ${text.slice(11, 19)} UTC`;
}

/** "05:12:31", or with so many characters. */
export function clockOf(ms: number, length = 8): string {
  return new Date(ms).toISOString().slice(11, 11 + length);
}

/** "05:12" */
export function minuteOf(ms: number): string {
  return new Date(ms).toISOString().slice(11, 16);
}

/** "2026-01-05" */
export function dayOf(ms: number): string {
  return new Date(ms).toISOString().slice(0, 10);
}

/** A time of the server's lists ("2026-01-05 05:12:31", UTC), with its zone; other texts as they are. */
export function listed(text: string | null): string {
  if (text === null) return NONE;
  return /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d$/.test(text) ? `${text.replace("T", " ")} UTC` : text;
}

/** Such a time as ms since 1970; null for other texts. */
export function listedMs(text: string | null): number | null {
  const ms = text === null ? Number.NaN : Date.parse(`${text.replace(" ", "T")}Z`);
  return Number.isNaN(ms) ? null : ms;
}

/** How far a time is away: "3 min ago", "in 2 h". */
export function away(ms: number, nowMs: number): string {
  return ms <= nowMs ? `${age((nowMs - ms) / 1_000)} ago` : `in ${age((ms - nowMs) / 1_000)}`;
}

/** What a job says of itself: "day: 2026-01-05, pages: 1,204". */
export function facts(values: Record<string, unknown>): string {
  return Object.entries(values)
    .filter(([, value]) => value !== "" && value !== null)
    .map(([name, value]) => `${name.replaceAll("_", " ")}: ${fact(value)}`)
    .join(", ");
}

function fact(value: unknown): string {
  if (typeof value === "number") return value.toLocaleString("en-US");
  return typeof value === "string" ? value : JSON.stringify(value);
}
