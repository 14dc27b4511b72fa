"""`make bench`: run every benchmark and write docs/performance.md."""

from __future__ import annotations

import sys
import time

from bench import asof, brokers, latency, ledger, memory, normalize, pairs, postgres, protobuf, scaling, whole
from bench.machine import REPOSITORY, describe

_SECTIONS = {
    "normalize": ("Normalizing on one core", "python -m bench.normalize", normalize.run),
    "pairs": ("A second line", "python -m bench pairs", pairs.run),
    "protobuf": ("The wire format, beside protobuf's own library", "python -m bench.protobuf", protobuf.run),
    "whole": ("Socket to lake, all stages on two cores", "python -m bench.whole", whole.run),
    "latency": ("From receipt to readable, at 10,000 ticks/s", "python -m bench.latency", latency.run),
    "brokers": ("Through Kafka and Redis", "python -m bench.brokers", brokers.run),
    "postgres": ("Into PostgreSQL, beside psql's COPY", "python -m bench.postgres", postgres.run),
    "scaling": ("One and two workers", "python -m bench.scaling", scaling.run),
    "asof": ("Quotes at trades, beside DuckDB's ASOF JOIN", "python -m bench.asof", asof.run),
    "ledger": ("The ledger over a year", "python -m bench.ledger", ledger.run),
    "memory": ("Memory over ten million ticks", "python -m bench.memory", memory.run),
}


def main() -> None:
    """All sections, or those named on the command line; only a whole run writes the page."""
    chosen = sys.argv[1:] or list(_SECTIONS)
    pages = []
    for name in chosen:
        title, command, run = _SECTIONS[name]
        print(f"{title} ...", file=sys.stderr, flush=True)
        pages.append(f"## {title}\n\n`{command}`\n\n{run()}\n")
        print(pages[-1], flush=True)
    if chosen != list(_SECTIONS):
        return
    head = (
        "# Performance\n\nWritten by `make bench`, which runs everything on this page."
        f" The machine: {describe()}, shared and noisy: ratios of one run say more than figures."
        f" {time.strftime('%Y-%m-%d')}.\n\n"
        "The medians of the runs are what counts: p99 of the receipt-to-readable time lies close to its bound of 10 ms, and single runs of"
        " a noisy minute pass it.\n\n"
    )
    (REPOSITORY / "docs" / "performance.md").write_text(head + "\n".join(pages))


if __name__ == "__main__":
    main()
