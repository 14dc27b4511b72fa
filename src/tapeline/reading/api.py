"""The reading API returns ticks and bars from a store: typed, in order of time, exact to the nanosecond, as a table of any common library.

`import tapeline` has these functions: `tapeline.ticks(...)`, `bars`, `latest`, `quotes_at_trades`, `replay`, and `connect` for SQL.
docs/reading.md shows them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapeline import times
from tapeline.errors import WrongArgument
from tapeline.ledger import read_intervals
from tapeline.ledger.answers import Answer, answer
from tapeline.ledger.facts import Key
from tapeline.ledger.sessions import sessions_answer
from tapeline.providers.registry import CHANNELS
from tapeline.reading import asof
from tapeline.reading import sql as query
from tapeline.reading.arguments import (
    KINDS,
    Settings,
    checked_columns,
    checked_interval,
    checked_kind,
    checked_provider,
    checked_symbols,
    days_of,
    loaded,
    selected,
)
from tapeline.reading.instruments import instruments
from tapeline.reading.replay import paced
from tapeline.reading.result import Result, stored_columns, timed, with_times
from tapeline.records import BARS_TOPIC, NS_PER_S, TICKS, TICKS_TOPIC
from tapeline.stores.selection import AMENDED, Selection, Source, known_name
from tapeline.times import Moment

if TYPE_CHECKING:
    import duckdb

__all__ = ["Result", "Tick", "bars", "connect", "instruments", "latest", "open_source", "quotes_at_trades", "replay", "ticks"]

_DAY_NS: Final = 86_400 * NS_PER_S
_LEAST: Final = -(1 << 63)
#: The columns of a tick that identify an amended trade.
_KNOWN_BY: Final = (*AMENDED.names[:-1], "ts_ns")

#: The columns that `latest` takes from the last trade and the last quote: its own name -> name of the tick's column.
_LAST_TRADE: Final = {
    "trade_ts_ns": "ts_ns",
    "last": "last",
    "volume": "volume",
    "side": "side",
    "trade_exchange": "exchange",
    "trade_provider": "provider",
    "trade_feed": "feed",
}
_LAST_QUOTE: Final = {
    "quote_ts_ns": "ts_ns",
    "bid": "bid",
    "ask": "ask",
    "bid_size": "bid_size",
    "ask_size": "ask_size",
    "quote_exchange": "exchange",
    "quote_provider": "provider",
    "quote_feed": "feed",
}
_LATEST: Final = pa.schema(
    [
        TICKS.field("symbol"),
        *(pa.field(name, TICKS.field(of).type) for name, of in (_LAST_TRADE | _LAST_QUOTE).items()),
    ]
)


class Tick(NamedTuple):
    """A trade or a quote, as `replay` yields it. docs/records.md explains each column."""

    symbol: str
    ts_ns: int  # event time, ns since 1970, UTC
    kind: str  # trade | quote
    bid: float | None
    ask: float | None
    bid_size: float | None
    ask_size: float | None
    last: float | None
    volume: float | None
    side: str | None  # buy | sell
    exchange: str
    provider: str
    feed: str
    channel: str
    sequence: int | None
    trade_id: str | None
    conditions: str | None
    received_ns: int
    latency_ns: int | None
    raw_partition: int
    raw_offset: int
    raw_index: int


def ticks(
    symbols: str | Sequence[str],
    start: Moment,
    end: Moment,
    *,
    provider: str | None = None,
    kind: str | None = None,
    columns: str | Sequence[str] | None = None,
    corrected: bool = False,
    source: str | Source = "lake",
    config: Settings = None,
) -> Result:
    """Trades and quotes with start <= ts_ns < end, in the order (ts_ns, symbol, raw_partition, raw_offset, raw_index).

    `symbols`: one canonical name or several. `start`, `end`: a datetime with a zone, ISO 8601 text with a zone, a date (midnight UTC), or
    ns since 1970, UTC. `provider`, `kind` ("trade" or "quote"): only these. `columns`: columns of docs/records.md, and `ts`, the timestamp;
    all if left out. `corrected`: leave out trades that a correction or a cancel took back; without it, everything is returned as sent.
    `source`: the name of a store, or an open source from `open_source`. `config`: the configuration or its file; if left out, it is found
    as the commands find it. An open source needs none.

    Raises WrongArgument, a ValueError, for a wrong argument and for a symbol that the source has at no time; ConfigError, Unavailable,
    NewerData.
    """
    names = checked_columns(columns, TICKS)
    selection = selected(symbols, (start, end), TICKS_TOPIC, names, provider=provider, kind=checked_kind(kind))
    opened = _open(source, config)
    known_name(opened, TICKS_TOPIC, selection.symbols)
    kinds = frozenset(KINDS) if kind is None else frozenset({kind})
    answers = partial(_answered, config, selection, kinds)
    read = replace(selection, columns=tuple(dict.fromkeys((*selection.columns, *_KNOWN_BY)))) if corrected else selection

    def batches() -> Iterator[pa.RecordBatch]:
        return without_amended(opened.ticks(read), opened.amended(read)) if corrected else opened.ticks(read)

    return Result(with_times(TICKS, names), lambda: timed(batches(), TICKS, names), answers)


def bars(
    symbols: str | Sequence[str],
    start: Moment,
    end: Moment,
    *,
    interval: str | None = None,
    provider: str | None = None,
    columns: str | Sequence[str] | None = None,
    source: str | Source = "lake",
    config: Settings = None,
) -> Result:
    """The last revision of each bar whose window begins in [start, end), in the order of `ticks`.

    `interval`: only this one, in the providers' spelling ("1s", "1m", "1d"). The other arguments and the errors are as for `ticks`.
    """
    names = checked_columns(columns, BARS_TOPIC.schema)
    selection = selected(symbols, (start, end), BARS_TOPIC, names, provider=provider, interval=checked_interval(interval))
    opened = _open(source, config)
    known_name(opened, BARS_TOPIC, selection.symbols)
    answers = partial(_answered, config, selection, frozenset({"bar"}))
    return Result(with_times(BARS_TOPIC.schema, names), lambda: timed(opened.bars(selection), BARS_TOPIC.schema, names), answers)


def latest(
    symbols: str | Sequence[str],
    *,
    before: Moment | None = None,
    days: int = 7,
    provider: str | None = None,
    source: str | Source = "lake",
    config: Settings = None,
) -> Result:
    """One row for each symbol, in the order given: its last trade and its last quote, with their times, providers and feeds.

    The last tick is chosen over all providers and feeds, by the order of `ticks`. `before`: only ticks before this time; if left out, the
    newest ticks. The search goes back `days` days from `before`, or from the newest tick of the source. If nothing is found, the columns
    are null. The errors are as for `ticks`.
    """
    names = checked_symbols(symbols)
    back_ns = days_of(days) * _DAY_NS
    end_ns = times.parse(before, "before") if before is not None else None
    checked_provider(provider)
    opened = _open(source, config)
    known_name(opened, TICKS_TOPIC, names)

    def read() -> Iterator[pa.RecordBatch]:
        newest = opened.newest_ns() if end_ns is None else None
        until = end_ns if end_ns is not None else (newest if newest is not None else 0) + 1
        rows: dict[str, dict[str, object]] = {symbol: {"symbol": symbol} for symbol in names}
        for kind, taken in (("trade", _LAST_TRADE), ("quote", _LAST_QUOTE)):
            wanted = tuple(dict.fromkeys(("symbol", *taken.values())))
            last_ticks = opened.last(Selection(names, max(until - back_ns, _LEAST), until, wanted, provider=provider, kind=kind))
            for row in last_ticks.to_pylist():
                rows[row["symbol"]] |= {name: row[of] for name, of in taken.items()}
        yield pa.RecordBatch.from_pylist(list(rows.values()), _LATEST)

    columns = (*_LATEST.names, "trade_ts", "quote_ts")
    return Result(with_times(_LATEST, columns), lambda: timed(read(), _LATEST, columns))


def quotes_at_trades(
    symbols: str | Sequence[str],
    start: Moment,
    end: Moment,
    *,
    provider: str | None = None,
    columns: str | Sequence[str] | None = None,
    days: int = 7,
    source: str | Source = "lake",
    config: Settings = None,
) -> Result:
    """Each trade in [start, end) with the quote in force: the last of its symbol, provider and feed at or before the trade's nanosecond.

    A quote of exactly the trade's time is in force, whichever of the two came first. Of several such quotes, the last by the order of
    `ticks` is in force. Quotes up to `days` days before `start` count. Columns: those of a trade, with bid, ask, bid_size and ask_size of
    the quote, and its time as `quote_ts_ns` and `quote_ts`. They are null if no quote is in force. If one side of the quote was empty, that
    side is null. The arguments and the errors are as for `ticks`.
    """
    names = checked_columns(columns, asof.QUOTED, ("ts", "quote_ts"))
    plain = stored_columns(names)
    read = tuple(name for name in TICKS.names if name in {*asof.NEEDED, *plain})
    selection = selected(symbols, (start, end), TICKS_TOPIC, read, provider=provider)
    back_ns = days_of(days) * _DAY_NS
    opened = _open(source, config)
    known_name(opened, TICKS_TOPIC, selection.symbols)

    def before(provider: str, feed: str, symbols: tuple[str, ...]) -> pa.Table:
        since, until = max(selection.start_ns - back_ns, _LEAST), selection.start_ns
        return opened.last(Selection(symbols, since, until, asof.NEEDED, provider=provider, feed=feed, kind="quote"))

    schema = pa.schema([asof.QUOTED.field(name) for name in plain])
    return Result(
        with_times(asof.QUOTED, names),
        lambda: timed(asof.quotes_at_trades(opened.ticks(selection), before, schema), asof.QUOTED, names),
    )


def replay(
    symbols: str | Sequence[str],
    start: Moment,
    end: Moment,
    speed: float | None = 1.0,
    *,
    provider: str | None = None,
    kind: str | None = None,
    source: str | Source = "lake",
    config: Settings = None,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Iterator[Tick]:
    """Yield the ticks of all symbols in the order of `ticks`, each when it is due, in bounded memory. The first is due at once.

    `speed`: 1 is the original pace, 10 is ten times as fast, 0 or None is as fast as the caller takes them. `sleep` takes seconds; `clock`
    returns monotonic nanoseconds. The other arguments and the errors are as for `ticks`. Arguments are checked at the call, not at the
    first tick.
    """
    batches = replay_batches(
        symbols, start, end, speed, provider=provider, kind=kind, source=source, config=config, sleep=sleep, clock=clock
    )
    return (Tick._make(row) for batch in batches for row in zip(*(column.to_pylist() for column in batch.columns), strict=True))


def replay_batches(
    symbols: str | Sequence[str],
    start: Moment,
    end: Moment,
    speed: float | None = 1.0,
    *,
    provider: str | None = None,
    kind: str | None = None,
    source: str | Source = "lake",
    config: Settings = None,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Iterator[pa.RecordBatch]:
    """As `replay`, but yield the ticks that are due together as one batch of the schema `TICKS`, of at most 8,192 rows.

    Raises WrongArgument for a wrong `speed`, and otherwise as `ticks`."""
    pace = speed if speed is not None else 0.0
    if isinstance(pace, bool) or not isinstance(pace, (int, float)) or not math.isfinite(pace) or pace < 0:
        raise WrongArgument(
            f"speed = {speed!r} is not a speed. Use 1 for the original pace, 10 for ten times as fast, 0 for as fast as possible."
        )
    result = ticks(symbols, start, end, provider=provider, kind=kind, columns=TICKS.names, source=source, config=config)
    return paced(iter(result.batches()), float(pace), sleep=sleep, clock=clock)


def connect(*, config: Settings = None) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with views of the lake as it is now, and of the ledger. Times are in UTC.

    The views are ticks, trades (those that were not taken back), amendments (the notices that took back the others), bars (last revisions),
    bar_revisions, suspects, notices, rejected, instruments; and coverage and gaps of the ledger. A condition on `date` (UTC) and `symbol`
    avoids opening files without matching rows. If the ledger is in PostgreSQL and that is away, its two views are missing. Raises
    ConfigError, DiskProblem, NewerData.
    """
    from tapeline.app.stores import lake_folder

    settings = loaded(config)

    def intervals() -> pa.Table | None:
        from tapeline.app.ledgers import ledger_rows

        return ledger_rows(settings)

    return query.connect(lake_folder(settings), intervals)


def _answered(settings: Settings, selection: Selection, kinds: frozenset[str], session: bool) -> list[Answer]:
    from tapeline.app.ledgers import open_ledger

    known = read_intervals(open_ledger(loaded(settings)).intervals(selection.symbols))
    answers = []
    for symbol in selection.symbols:
        keys = [key for key in sorted(known) if key.symbol == symbol and selection.provider in (None, key.provider)]
        keys = [key for key in keys if _may_give(key, kinds, selection.interval)]
        # A symbol that was never recorded has no key. A key without a channel gives an answer that proves nothing.
        keys = keys or [Key(selection.provider or "", "", "", symbol)]
        decide = sessions_answer if session else answer
        answers += [decide(key, known.get(key, ()), selection.start_ns, selection.end_ns) for key in keys]
    return answers


def _may_give(key: Key, kinds: frozenset[str], interval: str | None) -> bool:
    """Whether a channel's events may be among the rows. For bars, the interval must match if the channel's name contains one."""
    channel = CHANNELS.get(key.provider, {}).get(key.feed, {}).get(key.channel)
    named = key.channel.partition("_")[2]
    return channel is not None and channel.kind in kinds and (interval is None or not named or named == interval)


# Sources


def open_source(source: str = "lake", *, verify: bool = False, config: Settings = None) -> Source:
    """Open a store for many reads by one thread. Pass it as `source=` to the other functions, which otherwise open the store at each call.

    Each call still sees the store as it is at that time. `verify`: before the rows of a lake file are used, the whole file is read once and
    compared with the checksum in its name. A changed byte then raises DiskProblem; without `verify`, it may give a wrong value. Raises
    WrongArgument for an unknown name, and ConfigError.
    """
    opened = _open(source, config)
    return opened.verified() if verify else opened


def _open(source: str | Source, settings: Settings) -> Source:
    if isinstance(source, Source):
        return source.now()
    from tapeline.app import stores

    return stores.open_source(loaded(settings), source)


# Amended trades


def without_amended(batches: Iterator[pa.RecordBatch], amended: pa.Table) -> Iterator[pa.RecordBatch]:
    """The ticks without the trades in `amended`, in the same order. `amended` has the columns `AMENDED`."""
    gone = set(zip(*(column.to_pylist() for column in amended.columns), strict=True))
    ids = amended["trade_id"].combine_chunks()
    for batch in batches:
        # Trade ids repeat between days and exchanges. So only the few ticks with a matching id are compared by the whole key.
        some = np.flatnonzero(pc.is_in(batch["trade_id"], ids).to_numpy(zero_copy_only=False))
        keys = [batch[name].take(pa.array(some)).to_pylist() for name in _KNOWN_BY[:-1]]
        days = (batch["ts_ns"].to_numpy()[some] // _DAY_NS).tolist()
        keep = np.ones(batch.num_rows, bool)
        keep[[at for at, key in zip(some.tolist(), zip(*keys, days, strict=True), strict=True) if key in gone]] = False
        yield batch if keep.all() else batch.filter(pa.array(keep))
