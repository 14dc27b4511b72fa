"""`make bench`: run every benchmark, and write each one's section of docs/performance.md as it ends. `python -m bench NAME`: only that."""

from __future__ import annotations

import sys
import time

from bench import (
    arbitration,
    asof,
    brokers,
    flushes,
    lake,
    latency,
    ledger,
    live,
    memory,
    monitoring,
    normalize,
    postgres,
    protobuf,
    scaling,
    whole,
)
from bench.machine import REPOSITORY, describe
from bench.page import replaced

_PAGE = REPOSITORY / "docs" / "performance.md"
_SECTIONS = {
    "normalize": ("Normalizing on one core", normalize.run),
    "arbitration": ("Feed arbitration", arbitration.run),
    "protobuf": ("The wire format, beside protobuf's own library", protobuf.run),
    "asof": ("Quotes at trades, beside DuckDB's ASOF JOIN", asof.run),
    "whole": ("Socket to lake, all stages on two cores", whole.run),
    "ledger-cost": ("What the ledger costs", whole.without_ledger),
    "latency": ("From receipt to readable, at 10,000 ticks/s", latency.run),
    "monitoring": ("What the metrics cost", monitoring.run),
    "live": ("The live feed's clients", live.run),
    "brokers": ("Through Kafka and Redis", brokers.throughput),
    "engine": ("From receipt to a consumer of Kafka and Redis", brokers.latency),
    "engines": ("From receipt to an engine in Go, C++, Java and Rust", brokers.in_engines),
    "both-stores": ("Into both stores at once", brokers.both_stores),
    "scaling": ("One and two workers", scaling.run),
    "postgres": ("Into PostgreSQL, beside psql's COPY", postgres.run),
    "ledger": ("The ledger over a year", ledger.run),
    "memory": ("Memory over ten million ticks", memory.run),
    "lake": ("Reading 105 million ticks", lake.run),
    "flushes": ("A day of flushes into the lake", flushes.run),
}


def main() -> int:
    """All benchmarks, or those named on the command line."""
    chosen = sys.argv[1:] or list(_SECTIONS)
    if unknown := sorted({*chosen} - {*_SECTIONS}):
        print(f"There is no benchmark {unknown[0]!r}. There are: {', '.join(_SECTIONS)}.", file=sys.stderr)
        return 2
    titles = [title for title, _ in _SECTIONS.values()]
    for name in chosen:
        title, run = _SECTIONS[name]
        print(f"{title} ...", file=sys.stderr, flush=True)
        text = f"`python -m bench {name}`, {time.strftime('%Y-%m-%d')}, {describe()}.\n\n{run()}"
        print(f"## {title}\n\n{text}\n", flush=True)
        _PAGE.write_text(replaced(_PAGE.read_text(), titles, title, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
