"""Checks the arguments of the reading API. A wrong one raises WrongArgument, and the message names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from tapeline import config, times
from tapeline.errors import WrongArgument
from tapeline.providers.registry import PROVIDERS
from tapeline.reading.result import stored_columns
from tapeline.records import Topic
from tapeline.stores.selection import Selection
from tapeline.times import Moment

_MOST_DAYS: Final = 100_000
#: A configuration: loaded, or the path of its file. None: found as the commands find it, from tapeline.toml here or the environment.
Settings = config.Config | str | Path | None

#: The kinds of tick.
KINDS: Final = ("trade", "quote")


def selected(
    symbols: str | Sequence[str],
    span: tuple[Moment, Moment],
    topic: Topic,
    columns: Sequence[str],
    *,
    provider: str | None,
    kind: str | None = None,
    interval: str | None = None,
) -> Selection:
    """Return the selection for the arguments of a reading function. Raises WrongArgument, which names the wrong argument.

    `span` is start and end; the end is outside. `columns` are checked already and may include timestamps, such as `ts`. The selection has
    the stored columns behind them; columns that the topic does not have are left out. `kind` and `interval` are not checked here.
    """
    names = checked_symbols(symbols)
    start, end = span
    start_ns, end_ns = times.parse(start, "start"), times.parse(end, "end")
    if start_ns > end_ns:
        raise WrongArgument(f"start = {start!r} is after end = {end!r}. Swap them: the range is start <= time < end.")
    plain = tuple(name for name in stored_columns(columns) if name in topic.schema.names)
    return Selection(names, start_ns, end_ns, plain, provider=checked_provider(provider), kind=kind, interval=interval)


def checked_symbols(symbols: str | Sequence[str]) -> tuple[str, ...]:
    """Return the symbols in the order given, each once. One text is one symbol.

    Raises WrongArgument if there are none, or if one is empty or not text. Whether a store knows them is not checked: see `known_name`.
    """
    names = (symbols,) if isinstance(symbols, str) else checked_texts(symbols, "symbols", "['BTC/USDT', 'ETH/USDT']")
    if not names:
        raise WrongArgument("symbols is empty. Name at least one, such as ['BTC/USDT'].")
    if not all(names):
        raise WrongArgument("symbols has an empty name. Use canonical names, such as AAPL and BTC/USDT.")
    return tuple(dict.fromkeys(names))


def checked_texts(values: Sequence[str], name: str, example: str) -> tuple[str, ...]:
    """Return the values as a tuple. Raises WrongArgument if they are not a list of texts.

    `name` is the argument and `example` a right value, both for the message. A single text is not recognized: it becomes its letters.
    """
    try:
        texts = tuple(values)
    except TypeError:
        raise WrongArgument(f"{name} = {values!r} is neither text nor a list of texts. Write {example}.") from None
    wrong = next((value for value in texts if not isinstance(value, str)), None)
    if wrong is not None or None in texts:
        raise WrongArgument(f"{name} has {wrong!r}, which is not text. Write {example}.")
    return texts


def checked_columns(columns: str | Sequence[str] | None, schema: pa.Schema, also: tuple[str, ...] = ("ts",)) -> tuple[str, ...]:
    """Return the columns in the order given. None: all columns of `schema`, then those of `also`.

    Raises WrongArgument if there are none, or if one is unknown, given twice or not text.
    """
    known = (*schema.names, *also)
    if columns is None:
        return known
    chosen = (columns,) if isinstance(columns, str) else checked_texts(columns, "columns", "['ts', 'symbol', 'last']")
    for at, name in enumerate(chosen):
        if name not in known:
            raise WrongArgument(f"columns has {name!r}, which is not a column. The columns are: {', '.join(known)}.")
        if name in chosen[:at]:
            raise WrongArgument(f"columns has {name!r} twice. Name it once.")
    if not chosen:
        raise WrongArgument("columns is empty. Name at least one, or leave it out for all.")
    return chosen


def days_of(days: int) -> int:
    """Return `days` if it is a whole number from 0 to 100,000. Raises WrongArgument otherwise."""
    if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= _MOST_DAYS:
        raise WrongArgument(f"days = {days!r} is not a number of days to look back. Use a whole number from 0 to {_MOST_DAYS}.")
    return days


def checked_provider(provider: str | None) -> str | None:
    """Return the name of an installed provider, or None for any provider. Raises WrongArgument for any other name."""
    if provider is not None and provider not in PROVIDERS:
        raise WrongArgument(f"provider = {provider!r} is not a provider. Use one of: {', '.join(PROVIDERS)}.")
    return provider


def checked_kind(kind: str | None) -> str | None:
    """Return "trade" or "quote", or None for both. Raises WrongArgument for anything else."""
    if kind is not None and kind not in KINDS:
        raise WrongArgument(f"kind = {kind!r} is not a kind of tick. Use one of: {', '.join(KINDS)}.")
    return kind


def checked_interval(interval: str | None) -> str | None:
    """Return a bar interval that an installed provider has, or None for any interval. Raises WrongArgument for anything else."""
    known = list(dict.fromkeys(window for some in PROVIDERS.values() for window in some.intervals))
    if interval is not None and interval not in known:
        raise WrongArgument(f"interval = {interval!r} is not a bar interval. Use one of: {', '.join(known)}.")
    return interval


def loaded(settings: Settings) -> config.Config:
    """Return the configuration. Raises ConfigError, as the commands do."""
    if isinstance(settings, config.Config):
        return settings
    return config.load(Path(settings) if settings is not None else None, config.environment())
