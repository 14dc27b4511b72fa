// The last minutes as lines: rows of numbers by their time, of which the oldest are forgotten.

/** How many rows are cut off at once, so that not every new row moves all others. */
const SLACK = 256;

export class Series {
  /** Seconds since 1970, growing. */
  readonly times: number[] = [];
  readonly columns: (number | null)[][];

  /** `spanS`: how far back it reaches. `most`: how many rows it keeps at most, however dense they are. */
  constructor(
    width: number,
    private readonly spanS: number,
    private readonly most: number,
  ) {
    this.columns = Array.from({ length: width }, () => []);
  }

  /** Add a row. One that is not later than the last is left out. */
  push(time: number, values: readonly (number | null)[]): void {
    const last = this.times.at(-1);
    if (last !== undefined && time <= last) return;
    this.times.push(time);
    this.columns.forEach((column, at) => column.push(values[at] ?? null));
    const old = Math.max(this.times.length - this.most, this.#before(time - this.spanS));
    if (old >= SLACK || (old > 0 && this.times.length > this.most + SLACK)) this.#cut(old);
  }

  clear(): void {
    this.#cut(this.times.length);
  }

  #before(time: number): number {
    const at = this.times.findIndex((some) => some >= time);
    return at < 0 ? this.times.length : at;
  }

  #cut(rows: number): void {
    this.times.splice(0, rows);
    for (const column of this.columns) column.splice(0, rows);
  }
}
