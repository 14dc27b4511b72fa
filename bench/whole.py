"""Socket to lake, every stage and the simulator on the same cores: throughput with the count of lost and doubled events."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from services.postgres import installed

from bench.machine import pipeline, table, write_config
from bench.prepared import record, serving
from tapeline.reading.sql import connect

_EVENTS = 1_500_000
_ROUNDS = 3
_COUNT = """
SELECT count(*) AS rows, count(DISTINCT (symbol, channel, sequence)) AS events,
    count(*) FILTER (WHERE channel = 'trade') - coalesce(sum(span), 0) AS trades_beside_the_run
FROM ticks LEFT JOIN (
    SELECT symbol, channel, max(sequence) - min(sequence) + 1 AS span, min(raw_offset) AS raw_offset
    FROM ticks WHERE channel = 'trade' GROUP BY ALL
) USING (symbol, channel, raw_offset)
"""


class Run(NamedTuple):
    """Events sent, ticks/s, and events lost and doubled."""

    sent: int
    rate: float
    lost: int
    doubled: int


def run() -> str:
    """The section of the report."""
    with tempfile.TemporaryDirectory() as folder:
        frames = record(Path(folder) / "frames", _EVENTS)
        runs = [once(frames, _EVENTS) for _ in range(_ROUNDS)]
    lines = [[f"run {at}", *one] for at, one in enumerate(runs, 1)]
    return (
        f"A simulator sends {_EVENTS:,} frames as fast as the pipeline reads them. The frames were recorded from `tapeline simulate"
        " binance` before. Ingest, normalize, the lake, the ledger and the simulator are separate processes. The time begins with the"
        " receipt of the first frame, and ends with the commit of the last row."
        f" The median is **{statistics.median(one.rate for one in runs):,.0f} ticks/s**.\n\n"
        + table(["", "sent", "ticks/s", "lost", "doubled"], lines)
    )


def without_ledger() -> str:
    """The same with and without the ledger, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        frames = record(Path(folder) / "frames", _EVENTS)
        runs = [[once(frames, _EVENTS, extra=extra) for extra in ("", "ledger = false\n")] for _ in range(_ROUNDS)]
    rates = [statistics.median(pair[at].rate for pair in runs) for at in (0, 1)]
    bad = [sum(pair[at].lost + pair[at].doubled for pair in runs) for at in (0, 1)]
    rows = [[name, rate, wrong] for name, rate, wrong in zip(("with the ledger (default)", "`ledger = false`"), rates, bad, strict=True)]
    return (
        "This is the measurement of the section above, with and without the ledger and the repair stage. The two alternate for"
        f" {_ROUNDS} rounds. The rate with the ledger is **{rates[0] / rates[1]:.2f}** times the rate without it.\n\n"
        + table(["", "ticks/s, median", "lost or doubled"], rows)
    )


def once(
    frames: Path,
    events_to_send: int,
    stream: str = "embedded:",
    codec: str = "protobuf",
    postgres: str = "",
    flush_s: float = 1.0,
    extra: str = "",
) -> Run:
    """Send a recording of so many events through the pipeline. `extra`: more lines for the configuration.

    With `postgres`, the run lasts until both stores have everything. Lost and doubled are those of the worse store.
    """
    with tempfile.TemporaryDirectory() as folder, serving(frames) as url:
        root = Path(folder)
        config = write_config(root, url, flush_s, stream, codec, postgres)
        config.write_text(extra + config.read_text())
        with pipeline(config, "--until-idle", "3") as running:
            done_ns = 0
            log = root / "lake" / "ticks" / "_delta_log"
            while running.poll() is None:
                commits = list(log.glob("*.json")) if log.exists() else []
                done_ns = max((path.stat().st_mtime_ns for path in commits), default=done_ns)
                time.sleep(0.1)
        db = connect(root / "lake")
        ((rows, events, _),) = db.execute(_COUNT).fetchall()
        ((first_ns,),) = db.execute("SELECT min(received_ns) FROM ticks").fetchall()
        db.close()
        if postgres:
            there, last_ns = _in_postgres(postgres)
            done_ns = max(done_ns, last_ns)
            events, rows = min(events, there[1]), max(rows, there[0])
    return Run(events_to_send, events / ((done_ns - first_ns) / 1e9), events_to_send - events, rows - events)


def _in_postgres(url: str) -> tuple[tuple[int, int], int]:
    """Rows and events, and when the last of them was committed."""
    counted = "SELECT count(*), count(DISTINCT (symbol, channel, sequence)) FROM ticks"
    # The server's own time of the last change of the row that every write changes.
    last = (
        "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1e9)::bigint FROM tapeline_counts"
        " WHERE topic = 'market-data.normalized'"
    )
    command = [str(installed().where / "psql"), "-X", "-q", "-A", "-t", "-F", " ", "-d", url, "-c", counted, "-c", last]
    rows, events, last_ns = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    return (rows, events), last_ns
