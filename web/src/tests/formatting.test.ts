// Numbers, ages and times as people read them.
import { describe, expect, it } from "vitest";
import { age, away, bytes, clockOf, counted, decimals, facts, listed, listedMs, milliseconds, momentOf, price, rate, share } from "../format";

describe("numbers", () => {
  it("have separators, and a decimal only while they are small", () => {
    expect([0, 0.24, 9.94, 10, 12_345.6].map(rate)).toEqual(["0", "0.2", "9.9", "10", "12,346"]);
    expect([0.84, 12.3, 9_999, 12_300].map(milliseconds)).toEqual(["0.8 ms", "12 ms", "9,999 ms", "12.3 s"]);
    expect([999_000, 12_345_678, 7.45e10].map(bytes)).toEqual(["999 kB", "12 MB", "74.5 GB"]);
    expect(counted(1, "gap")).toBe("1 gap");
    expect(counted(1_200, "gap")).toBe("1,200 gaps");
  });

  it("that are not known are a dash", () => {
    expect([rate(null), milliseconds(null), share(undefined), price(undefined, 2), age(null)]).toEqual(["–", "–", "–", "–", "–"]);
  });

  it("of prices keep their decimals, however they are written", () => {
    expect([1, 0.5, 61_777.25, 1e-7, 1.5e-7, 1e21].map(decimals)).toEqual([0, 1, 2, 7, 8, 0]);
    expect(price(61_777.5, 2)).toBe("61,777.50");
  });

  it("of a share are never rounded up to all", () => {
    expect([1, 0.99999, 0.5, 0].map(share)).toEqual(["100 %", "99.99 %", "50.00 %", "0 %"]);
  });
});

describe("times", () => {
  it("are ages in the largest unit that says enough", () => {
    expect([-1, 0, 3.9, 119, 120, 7_199, 7_200, 172_799, 172_800].map(age)).toEqual(["0 s", "0 s", "3 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
  });

  it("name their zone", () => {
    expect(momentOf(1_767_583_951_000)).toBe("2026-01-05 03:32:31 UTC");
    expect(clockOf(1_767_583_951_123, 12)).toBe("03:32:31.123");
    expect(listed("2026-01-05 05:12:31")).toBe("2026-01-05 05:12:31 UTC");
    const now = listedMs("2026-01-05 05:12:31")!;
    expect([away(now, now + 90_000), away(now + 7_200_000, now)]).toEqual(["90 s ago", "in 2 h"]);
    expect(listedMs("paused")).toBeNull();
    expect([listed("paused"), listed(null)]).toEqual(["paused", "–"]);
  });

  it("are beside what a job says of itself", () => {
    expect(facts({ day: "2026-01-05", events: 12_345, error: "", failed: [] })).toBe("day: 2026-01-05, events: 12,345, failed: []");
  });
});
