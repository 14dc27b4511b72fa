// How long to wait before the next attempt to connect: ever longer, never the same for two pages, and never too long. Pure.

const FIRST_MS = 500;
export const LONGEST_MS = 15_000;

/** `failures`: how many attempts have failed. `random`: from 0 to 1. */
export function waitMs(failures: number, random: number): number {
  const most = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(failures, 30));
  return Math.round(most / 2 + (random * most) / 2);
}
