"""Compares the lake with the simulators' journals, event by event. Each event must be there exactly once, or rejected with a reason.

A simulator's journal holds each event as it was sent. This module reads it in SQL and does not use the normalizer, so that a mistake in
one of them does not hide a mistake in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from tapeline.reading.sql import connect

_SENT: Final = """
CREATE TABLE sent AS
WITH lines AS (
    SELECT * FROM read_json($journals, format = 'newline_delimited', columns = {
        provider: 'VARCHAR', feed: 'VARCHAR', channel: 'VARCHAR', symbol: 'VARCHAR', id: 'VARCHAR', event: 'JSON',
        connection: 'BIGINT', raw: 'BOOLEAN', skipped: 'BOOLEAN'})
    WHERE NOT coalesce(skipped, false) AND NOT coalesce(raw, false)
), events AS (
    SELECT provider, feed, channel, symbol, id, event, connection FROM lines
    UNION ALL -- a correction brings the right trade beside its notice
    SELECT provider, feed, 'trades', symbol, event->>'$.ci',
        json_object('i', event->'$.ci', 'p', event->'$.cp', 's', event->'$.cs', 't', event->'$.t'), connection
    FROM lines WHERE channel = 'corrections'
), journal AS (
    SELECT provider, feed, channel, regexp_replace(symbol, '^O:|[-/]', '', 'g') AS symbol, id, event AS e, connection,
        coalesce(event->'$.k', event) AS bar,
        CASE
            WHEN channel IN ('trade', 'aggTrade', 'T', 'XT', 'trades') THEN 'trade'
            WHEN channel IN ('bookTicker', 'Q', 'XQ', 'quotes') THEN 'quote'
            WHEN channel LIKE 'kline_%' OR channel IN ('A', 'AM', 'XA', 'XAS', 'bars', 'updatedBars', 'dailyBars') THEN 'bar'
            ELSE 'notice'
        END AS kind
    FROM events
)
SELECT provider, feed, kind, CASE WHEN kind = 'notice' THEN '' ELSE channel END AS channel, symbol,
    CASE kind WHEN 'trade' THEN coalesce(e->>'$.i', id) WHEN 'quote' THEN id END AS id,
    CASE
        WHEN provider = 'alpaca' THEN epoch_ns((e->>'$.t')::TIMESTAMP_NS)
        WHEN kind = 'bar' THEN 1000000 * (CASE provider WHEN 'binance' THEN bar->>'$.t' ELSE bar->>'$.s' END)::BIGINT
        WHEN channel <> 'bookTicker' THEN 1000000 * coalesce(e->>'$.T', e->>'$.t')::BIGINT
    END AS ts_ns,
    CASE kind WHEN 'trade' THEN e->>'$.p' WHEN 'quote' THEN coalesce(e->>'$.bp', e->>'$.b') WHEN 'bar' THEN bar->>'$.o' END::DOUBLE AS a,
    CASE kind
        WHEN 'trade' THEN CASE provider WHEN 'binance' THEN e->>'$.q' ELSE coalesce(e->>'$.ds', e->>'$.s') END
        WHEN 'quote' THEN coalesce(e->>'$.ap', e->>'$.a')
        WHEN 'bar' THEN bar->>'$.c'
    END::DOUBLE AS b,
    CASE kind WHEN 'quote' THEN coalesce(e->>'$.bs', e->>'$.B') WHEN 'bar' THEN bar->>'$.h' END::DOUBLE AS c,
    CASE kind WHEN 'quote' THEN coalesce(e->>'$.as', e->>'$.A') WHEN 'bar' THEN coalesce(bar->>'$.dv', bar->>'$.v') END::DOUBLE AS d,
    CASE kind WHEN 'bar' THEN bar->>'$.l' END::DOUBLE AS low,
    CASE WHEN kind = 'bar' THEN CASE provider WHEN 'binance' THEN (bar->>'$.x')::BOOLEAN ELSE channel = 'updatedBars' END END AS final
FROM journal
"""
_MALFORMED: Final = """
SELECT count(*) FROM read_json($journals, format = 'newline_delimited', columns = {raw: 'BOOLEAN', skipped: 'BOOLEAN'})
WHERE raw AND NOT coalesce(skipped, false)
"""
_EMPTY_SIDES: Final = """
UPDATE sent SET a = nullif(a, 0), c = CASE WHEN a = 0 THEN NULL ELSE c END,
    b = nullif(b, 0), d = CASE WHEN b = 0 THEN NULL ELSE d END
WHERE kind = 'quote'
"""
_KEPT: Final = """
CREATE TABLE kept AS
SELECT provider, feed, kind, channel, replace(symbol, '/', '') AS symbol,
    coalesce(trade_id, sequence::VARCHAR) AS id,
    CASE WHEN channel <> 'bookTicker' THEN ts_ns END AS ts_ns,
    coalesce(last, bid) AS a, coalesce(volume, ask) AS b, bid_size AS c, ask_size AS d, NULL AS low, NULL AS final
FROM ticks
UNION ALL
SELECT provider, feed, 'bar', channel, replace(symbol, '/', ''), NULL, ts_ns, open, close, high, volume, low, final
FROM bar_revisions
UNION ALL
SELECT provider, feed, 'notice', '', replace(symbol, '/', ''), NULL, ts_ns, NULL, NULL, NULL, NULL, NULL, NULL
FROM notices WHERE kind IN ('correction', 'cancel', 'trading_status', 'luld', 'imbalance')
"""
_COUNTS: Final = """
SELECT provider, feed, kind, count(*) FILTER (WHERE side = 'sent') AS sent, count(*) FILTER (WHERE side = 'kept') AS kept
FROM (SELECT 'sent' AS side, * FROM sent UNION ALL SELECT 'kept', * FROM kept) GROUP BY ALL ORDER BY ALL
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`missing`: events that were sent and are not in the lake. `extra`: rows in the lake that were not sent, or not that often."""

    counts: Sequence[dict[str, Any]]  # provider, feed, kind, sent, kept
    missing: Sequence[dict[str, Any]]
    extra: Sequence[dict[str, Any]]
    rejected: int
    malformed: int  # sent unreadable on purpose: each must be rejected

    @property
    def sent(self) -> int:
        """Return the number of readable events that the simulators sent. Repeats count, unless `compare` was called with `once`.

        Malformed and skipped events do not count. A correction counts twice: as a notice and as the corrected trade.
        """
        return sum(row["sent"] for row in self.counts)

    @property
    def kept(self) -> int:
        """Return the number of rows in the lake: ticks, bar revisions and notices about trading. Rejected events do not count."""
        return sum(row["kept"] for row in self.counts)

    @property
    def exact(self) -> bool:
        """Whether every event is there once or was rejected with a reason, and nothing is there that was not sent."""
        return not self.extra and self.malformed + len(self.missing) == self.rejected


def compare(lake: Path, journals: Sequence[Path], *, once: bool = False) -> Comparison:
    """Compare sent and stored events as multisets. `once`: an event that a simulator sent over several connections counts once."""
    db = connect(lake)
    db.execute(_SENT, {"journals": [str(path) for path in journals]}).fetchall()
    db.execute(_EMPTY_SIDES).fetchall()
    if once:
        db.execute("CREATE OR REPLACE TABLE sent AS SELECT DISTINCT * FROM sent").fetchall()
    db.execute(_KEPT).fetchall()
    ((malformed,),) = db.execute(_MALFORMED, {"journals": [str(path) for path in journals]}).fetchall()
    ((rejected,),) = db.execute("SELECT count(*) FROM rejected").fetchall()
    return Comparison(
        _rows(db, _COUNTS),
        _rows(db, "SELECT * FROM sent EXCEPT ALL SELECT * FROM kept"),
        _rows(db, "SELECT * FROM kept EXCEPT ALL SELECT * FROM sent"),
        rejected,
        malformed,
    )


def _rows(db: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = db.sql(query).to_arrow_table().to_pylist()
    return rows
