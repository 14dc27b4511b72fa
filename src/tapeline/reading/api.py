"""The reading API: ticks and bars out of a store, typed, in order of time, exact to the nanosecond, as whichever table a program likes.

`import tapeline` has these functions: `tapeline.ticks(...)`, `bars`, `latest`, `quotes_at_trades`, `replay`, and `connect` for SQL.
docs/reading.md shows them.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapeline import config, times
from tapeline.errors import ConfigError, WrongArgument
from tapeline.ledger import read_intervals
from tapeline.ledger.answers import Answer, answer
from tapeline.ledger.facts import Key
from tapeline.providers.registry import CHANNELS, PROVIDERS
from tapeline.reading import asof
from tapeline.reading import sql as query
from tapeline.reading.replay import paced
from tapeline.records import BARS_TOPIC, NS_PER_S, TICKS, TICKS_TOPIC, Topic
from tapeline.stores.selection import AMENDED, Selection, Source
from tapeline.times import Moment

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl

__all__ = ["Result", "Tick", "bars", "connect", "latest", "open_source", "quotes_at_trades", "replay", "ticks"]

#: A configuration: as loaded, or the file that holds it; None: tapeline.toml here, or the environment, as for the commands.
Settings = config.Config | str | Path | None

_KINDS: Final = ("trade", "quote")
_DAY_NS: Final = 86_400 * NS_PER_S
_MOST_DAYS: Final = 100_000
_LEAST: Final = -(1 << 63)
#: Columns of timestamps and the exact nanoseconds that each is made of.
_TIMES: Final = {"ts": "ts_ns", "quote_ts": "quote_ts_ns", "trade_ts": "trade_ts_ns"}
_TS: Final = pa.timestamp("ns", "UTC")
#: The columns of a tick by which an amended one is known.
_KNOWN_BY: Final = (*AMENDED.names[:-1], "ts_ns")

#: What `latest` gives of a trade and of a quote: its own name to that of the tick's column.
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
    """A trade or a quote, as `replay` gives it; docs/records.md says what each column holds."""

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


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Result:
    """Rows that were asked for, not yet read: each method reads them, as a table of its library, the same rows in the same order."""

    schema: pa.Schema
    _read: Callable[[], Iterator[pa.RecordBatch]]
    _answers: Callable[[], list[Answer]] | None = None

    def batches(self) -> pa.RecordBatchReader:
        """The rows as they are read, a bounded number at a time: for what does not fit in memory. Raises Unavailable while it is read."""
        return pa.RecordBatchReader.from_batches(self.schema, self._read())

    def arrow(self) -> pa.Table:
        """A pyarrow Table. Raises Unavailable."""
        return self.batches().read_all()

    def pandas(self) -> pd.DataFrame:
        """A DataFrame: times as datetime64[ns, UTC], integers that may be missing as Int64, never as floats.

        Raises ConfigError where pandas is not installed, Unavailable."""
        pandas = _library("pandas")
        integers = {pa.int64(): pandas.Int64Dtype(), pa.int32(): pandas.Int32Dtype()}
        table = self.arrow()
        frame = table.to_pandas()
        for field in self.schema:
            if field.nullable and field.type in integers:
                # By way of Arrow: as floats, which pandas takes for integers with holes, they would be rounded.
                frame[field.name] = integers[field.type].__from_arrow__(table[field.name])
        found: pd.DataFrame = frame
        return found

    def polars(self) -> pl.DataFrame:
        """A polars DataFrame: times as Datetime("ns", "UTC"). Raises ConfigError where polars is not installed, Unavailable."""
        found: pl.DataFrame = _library("polars").from_arrow(self.arrow())
        return found

    def duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation over the rows in memory: of `connection`, or of the one that `duckdb.sql` uses, which then finds it by name.

        Times are TIMESTAMP_NS, in UTC without saying so. Raises Unavailable."""
        return query.relation(self.arrow(), connection)

    def completeness(self) -> list[Answer]:
        """What the ledger knows of the range that was asked for: an answer for each symbol and channel that the rows may be of.

        `verdict` is "complete", "incomplete" or "unprovable"; `holes` what is missing, as far as is known. Of `ticks` and `bars`.
        Raises WrongArgument for a result of another function, Unavailable, NewerData."""
        if self._answers is None:
            raise WrongArgument("completeness() is of what ticks() and bars() give. Ask it of the ticks that this result was made of.")
        return self._answers()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """For every library that takes Arrow streams."""
        return self.batches().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"Result({', '.join(self.schema.names)}); .arrow(), .pandas(), .polars(), .duckdb() or .batches() reads it"


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

    `symbols`: one canonical name or several. `start`, `end`: a datetime with a zone, ISO 8601 text with one, a date (midnight in UTC), or
    ns since 1970. `provider`, `kind` ("trade", "quote"): only those. `columns`: those of docs/records.md and `ts`, the timestamp; all if
    left out. `corrected`: without the trades that a correction or a cancel took back; else everything as it was sent. `source`: the name of
    a store, or what `open_source` gave. `config`: the configuration or its file, as the commands find it if left out; of no use to a source
    that is open.

    Raises WrongArgument, a ValueError, for arguments that cannot be meant, also for a symbol of which the source holds nothing at any time;
    ConfigError, Unavailable, NewerData.
    """
    names = _columns(columns, TICKS)
    selection = _selection(symbols, start, end, TICKS_TOPIC, names, provider=provider, kind=_kind(kind))
    opened = _open(source, config)
    _known(opened, TICKS_TOPIC, selection.symbols)
    kinds = frozenset(_KINDS) if kind is None else frozenset({kind})
    answers = partial(_answered, config, selection, kinds)
    read = replace(selection, columns=tuple(dict.fromkeys((*selection.columns, *_KNOWN_BY)))) if corrected else selection

    def batches() -> Iterator[pa.RecordBatch]:
        return _without(opened.ticks(read), opened.amended(read)) if corrected else opened.ticks(read)

    return Result(_with_times(TICKS, names), lambda: _timed(batches(), TICKS, names), answers)


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

    `interval`: only this one, as the providers spell it ("1s", "1m", "1d"); the other arguments and what is raised are those of `ticks`.
    """
    names = _columns(columns, BARS_TOPIC.schema)
    selection = _selection(symbols, start, end, BARS_TOPIC, names, provider=provider, interval=_interval(interval))
    opened = _open(source, config)
    _known(opened, BARS_TOPIC, selection.symbols)
    answers = partial(_answered, config, selection, frozenset({"bar"}))
    return Result(_with_times(BARS_TOPIC.schema, names), lambda: _timed(opened.bars(selection), BARS_TOPIC.schema, names), answers)


def latest(
    symbols: str | Sequence[str],
    *,
    before: Moment | None = None,
    days: int = 7,
    provider: str | None = None,
    source: str | Source = "lake",
    config: Settings = None,
) -> Result:
    """One row for each symbol, in the order given: its last trade and the quote in force, with their times, providers and feeds.

    Of all providers and feeds the one whose tick is last by the order of `ticks`. `before`: as it was just before that moment; the newest
    there is if left out. What is older than `days` days before that, or before the newest tick of the source, is not looked for: then the
    columns are null. Raises as `ticks`.
    """
    names = _symbols(symbols)
    back_ns = _days(days) * _DAY_NS
    end_ns = times.parse(before, "before") if before is not None else None
    _provider(provider)
    opened = _open(source, config)
    _known(opened, TICKS_TOPIC, names)

    def read() -> Iterator[pa.RecordBatch]:
        newest = opened.newest_ns() if end_ns is None else None
        until = end_ns if end_ns is not None else (newest if newest is not None else 0) + 1
        rows: dict[str, dict[str, object]] = {symbol: {"symbol": symbol} for symbol in names}
        for kind, taken in (("trade", _LAST_TRADE), ("quote", _LAST_QUOTE)):
            wanted = tuple(dict.fromkeys(("symbol", *taken.values())))
            found = opened.last(Selection(names, max(until - back_ns, _LEAST), until, wanted, provider=provider, kind=kind))
            for row in found.to_pylist():
                rows[row["symbol"]] |= {name: row[of] for name, of in taken.items()}
        yield pa.RecordBatch.from_pylist(list(rows.values()), _LATEST)

    columns = (*_LATEST.names, "trade_ts", "quote_ts")
    return Result(_with_times(_LATEST, columns), lambda: _timed(read(), _LATEST, columns))


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

    A quote of exactly the trade's time is in force, whichever of the two came first; of several the last by the order of `ticks`. Quotes
    before `start` count, up to `days` days before it. Columns: a trade's, with bid, ask, bid_size, ask_size of the quote, and
    `quote_ts_ns`, `quote_ts`, its time; null where no quote is in force. A quote whose side was empty leaves that side null. Arguments
    and what is raised as for `ticks`.
    """
    names = _columns(columns, asof.QUOTED, ("ts", "quote_ts"))
    plain = _plain(names)
    read = tuple(name for name in TICKS.names if name in {*asof.NEEDED, *plain})
    selection = _selection(symbols, start, end, TICKS_TOPIC, read, provider=provider)
    back_ns = _days(days) * _DAY_NS
    opened = _open(source, config)
    _known(opened, TICKS_TOPIC, selection.symbols)

    def before(provider: str, feed: str, symbols: tuple[str, ...]) -> pa.Table:
        since, until = max(selection.start_ns - back_ns, _LEAST), selection.start_ns
        return opened.last(Selection(symbols, since, until, asof.NEEDED, provider=provider, feed=feed, kind="quote"))

    schema = pa.schema([asof.QUOTED.field(name) for name in plain])
    return Result(
        _with_times(asof.QUOTED, names),
        lambda: _timed(asof.quotes_at_trades(opened.ticks(selection), before, schema), asof.QUOTED, names),
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
    """The ticks of all symbols one after another in the order of `ticks`, each when it is due, in bounded memory.

    The first comes at once. `speed`: 1 as it happened, 10 ten times as fast, 0 or None as fast as they are taken. `sleep` takes seconds,
    `clock` gives nanoseconds. The other arguments and what is raised as for `ticks`: at the call, not at the first tick.
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
    """As `replay`, with the ticks that are due together as one batch of the schema `TICKS`."""
    pace = speed if speed is not None else 0.0
    if isinstance(pace, bool) or not isinstance(pace, (int, float)) or not math.isfinite(pace) or pace < 0:
        raise WrongArgument(
            f"speed = {speed!r} is no speed. Give 1 for as it happened, 10 for ten times as fast, 0 for as fast as possible."
        )
    result = ticks(symbols, start, end, provider=provider, kind=kind, columns=TICKS.names, source=source, config=config)
    return paced(iter(result.batches()), float(pace), sleep=sleep, clock=clock)


def connect(*, config: Settings = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory with views: ticks, trades (those that hold), amendments (what took back the others), bars (last revisions),
    bar_revisions, notices, rejected; coverage and gaps of the ledger.

    They show the lake as it is now. A condition on `date`, the UTC day, and on `symbol` keeps files from being opened in vain. Times are in
    UTC. Where the ledger is kept in PostgreSQL, its two views are left out while that is away. Raises ConfigError, DiskTrouble, NewerData.
    """
    from tapeline.app.stores import lake_folder, ledger_rows

    settings = _loaded(config)
    return query.connect(lake_folder(settings), ledger_rows(settings))


def _answered(settings: Settings, selection: Selection, kinds: frozenset[str]) -> list[Answer]:
    from tapeline.app.stores import open_ledger

    known = read_intervals(open_ledger(_loaded(settings)).intervals(selection.symbols))
    found = []
    for symbol in selection.symbols:
        keys = [key for key in sorted(known) if key.symbol == symbol and selection.provider in (None, key.provider)]
        keys = [key for key in keys if _may_give(key, kinds, selection.interval)]
        # Of what nobody ever asked for, nothing is known.
        keys = keys or [Key(selection.provider or "", "", "", symbol)]
        found += [answer(key, known.get(key, ()), selection.start_ns, selection.end_ns) for key in keys]
    return found


def _may_give(key: Key, kinds: frozenset[str], interval: str | None) -> bool:
    """Whether a channel's events are among the rows; of bars, of the interval asked for as far as the channel's name tells."""
    channel = CHANNELS.get(key.provider, {}).get(key.feed, {}).get(key.channel)
    named = key.channel.partition("_")[2]
    return channel is not None and channel.kind in kinds and (interval is None or not named or named == interval)


# Sources


def _open_lake(settings: config.Config) -> Source:
    from tapeline.app.stores import lake_folder
    from tapeline.stores.lake.reading import LakeSource

    return LakeSource(lake_folder(settings))


def _open_postgres(settings: config.Config) -> Source:
    from tapeline.app.stores import postgres_source

    return postgres_source(settings)


#: Each store that can be read, by the name that `source` has; the one place to add one.
SOURCES: Final[Mapping[str, Callable[[config.Config], Source]]] = {"lake": _open_lake, "postgresql": _open_postgres}


def open_source(source: str = "lake", *, verify: bool = False, config: Settings = None) -> Source:
    """A store to be read often by one thread: `source=` of the other functions, which else open it anew for every call.

    Each call still sees the store as it is then. `verify`: each file of the lake is read whole once, and held against the checksum in its
    name, before its rows are; a changed byte is DiskTrouble then, where it may else be another value. Raises WrongArgument for a name that
    no source has, ConfigError.
    """
    opened = _open(source, config)
    return opened.verified() if verify else opened


def _open(source: str | Source, settings: Settings) -> Source:
    if isinstance(source, Source):
        return source.now()
    if not isinstance(source, str) or source not in SOURCES:
        raise WrongArgument(f"source = {source!r} is no source. Use one of: {', '.join(SOURCES)}.")
    return SOURCES[source](_loaded(settings))


def _loaded(settings: Settings) -> config.Config:
    if isinstance(settings, config.Config):
        return settings
    return config.load(Path(settings) if settings is not None else None, config.environment())


def _known(opened: Source, topic: Topic, symbols: tuple[str, ...]) -> None:
    unknown = opened.unknown(topic, symbols)
    if not unknown:
        return
    symbol, near = next(iter(unknown.items()))
    others = f", nor of {len(unknown) - 1} others" if len(unknown) > 1 else ""
    remedy = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Is it the configuration and the data that you mean?"
    raise WrongArgument(f"The {opened.place} has no {topic.table} of {symbol!r} at any time{others}. {remedy}")


# Arguments


def _selection(
    symbols: str | Sequence[str],
    start: Moment,
    end: Moment,
    topic: Topic,
    columns: Sequence[str],
    *,
    provider: str | None,
    kind: str | None = None,
    interval: str | None = None,
) -> Selection:
    names = _symbols(symbols)
    start_ns, end_ns = times.parse(start, "start"), times.parse(end, "end")
    if start_ns > end_ns:
        raise WrongArgument(f"start = {start!r} is after end = {end!r}. Exchange them: the range is start <= time < end.")
    plain = tuple(name for name in _plain(columns) if name in topic.schema.names)
    return Selection(names, start_ns, end_ns, plain, provider=_provider(provider), kind=kind, interval=interval)


def _symbols(symbols: str | Sequence[str]) -> tuple[str, ...]:
    found = (symbols,) if isinstance(symbols, str) else _texts(symbols, "symbols", "['BTC/USDT', 'ETH/USDT']")
    if not found:
        raise WrongArgument("symbols is empty. Name at least one, such as ['BTC/USDT'].")
    if not all(found):
        raise WrongArgument("symbols has an empty name. Canonical names are such as AAPL and BTC/USDT.")
    return tuple(dict.fromkeys(found))


def _texts(values: Sequence[str], name: str, example: str) -> tuple[str, ...]:
    try:
        found = tuple(values)
    except TypeError:
        raise WrongArgument(f"{name} = {values!r} is neither text nor a list of texts. Write {example}.") from None
    wrong = next((value for value in found if not isinstance(value, str)), None)
    if wrong is not None or None in found:
        raise WrongArgument(f"{name} has {wrong!r}, which is no text. Write {example}.")
    return found


def _columns(columns: str | Sequence[str] | None, schema: pa.Schema, also: tuple[str, ...] = ("ts",)) -> tuple[str, ...]:
    known = (*schema.names, *also)
    if columns is None:
        return known
    found = (columns,) if isinstance(columns, str) else _texts(columns, "columns", "['ts', 'symbol', 'last']")
    for at, name in enumerate(found):
        if name not in known:
            raise WrongArgument(f"columns has {name!r}, which is no column. There are: {', '.join(known)}.")
        if name in found[:at]:
            raise WrongArgument(f"columns has {name!r} twice. Name it once.")
    if not found:
        raise WrongArgument("columns is empty. Name at least one, or leave it out for all.")
    return found


def _days(days: int) -> int:
    if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= _MOST_DAYS:
        raise WrongArgument(f"days = {days!r} is no number of days to look back. Give a whole number from 0 to {_MOST_DAYS}.")
    return days


def _provider(provider: str | None) -> str | None:
    if provider is not None and provider not in PROVIDERS:
        raise WrongArgument(f"provider = {provider!r} is no provider. Use one of: {', '.join(PROVIDERS)}.")
    return provider


def _kind(kind: str | None) -> str | None:
    if kind is not None and kind not in _KINDS:
        raise WrongArgument(f"kind = {kind!r} is no kind of tick. Use one of: {', '.join(_KINDS)}.")
    return kind


def _interval(interval: str | None) -> str | None:
    known = list(dict.fromkeys(window for some in PROVIDERS.values() for window in some.intervals))
    if interval is not None and interval not in known:
        raise WrongArgument(f"interval = {interval!r} is no interval of a bar. Use one of: {', '.join(known)}.")
    return interval


# Amended trades


def _without(batches: Iterator[pa.RecordBatch], amended: pa.Table) -> Iterator[pa.RecordBatch]:
    """The ticks but the trades that were amended, in the same order."""
    gone = set(zip(*(column.to_pylist() for column in amended.columns), strict=True))
    ids = amended["trade_id"].combine_chunks()
    for batch in batches:
        # Ids repeat from day to day and between exchanges: of the few with one of these, the rest of the key tells.
        some = np.flatnonzero(pc.is_in(batch["trade_id"], ids).to_numpy(zero_copy_only=False))
        keys = [batch[name].take(pa.array(some)).to_pylist() for name in _KNOWN_BY[:-1]]
        days = (batch["ts_ns"].to_numpy()[some] // _DAY_NS).tolist()
        keep = np.ones(batch.num_rows, bool)
        keep[[at for at, key in zip(some.tolist(), zip(*keys, days, strict=True), strict=True) if key in gone]] = False
        yield batch if keep.all() else batch.filter(pa.array(keep))


# Columns of time


def _plain(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that those asked for are made of."""
    return tuple(dict.fromkeys(_TIMES.get(name, name) for name in names))


def _with_times(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The schema of some columns, timestamps among them."""
    return pa.schema(
        [pa.field(name, _TS, nullable=schema.field(_TIMES[name]).nullable) if name in _TIMES else schema.field(name) for name in names]
    )


def _timed(batches: Iterator[pa.RecordBatch], schema: pa.Schema, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The columns asked for, the timestamps made of the exact times beside them."""
    wanted = _with_times(schema, names)
    for batch in batches:
        columns = [batch[_TIMES[name]].cast(_TS) if name in _TIMES else batch[name] for name in names]
        yield pa.record_batch(columns, schema=wanted)


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ConfigError(
            f"{name} is not installed. Install it: pip install 'tapeline[{name}]'. Without it, .arrow() and .duckdb() work."
        ) from None
