// Times: nanoseconds since 1970, UTC, as text on the wire, because JavaScript's numbers are exact only up to 2 ** 53.

const NS_PER_MS = 1_000_000n;

/** Nanoseconds as a bigint, from the text of a message. */
export function ns(text: string): bigint {
  return BigInt(text);
}

/** Nanoseconds as a Date, which has milliseconds. */
export function toDate(text: string | bigint): Date {
  return new Date(Number(BigInt(text) / NS_PER_MS));
}

/** A Date, or milliseconds since 1970, as nanoseconds. */
export function fromDate(date: Date | number): bigint {
  return BigInt(Math.floor(typeof date === "number" ? date : date.getTime())) * NS_PER_MS;
}
