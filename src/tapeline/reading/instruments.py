"""Returns the instruments that the providers list, or listed at a moment."""

from __future__ import annotations

from collections.abc import Sequence

from tapeline import times
from tapeline.errors import WrongArgument
from tapeline.reading.arguments import Settings, checked_columns, checked_provider, checked_symbols, loaded
from tapeline.reading.result import Result, timed, with_times
from tapeline.records import INSTRUMENTS
from tapeline.stores.instruments import Versions
from tapeline.times import Moment


def instruments(
    symbols: str | Sequence[str] | None = None,
    *,
    at: Moment | None = None,
    provider: str | None = None,
    columns: str | Sequence[str] | None = None,
    source: str = "lake",
    config: Settings = None,
) -> Result:
    """The instruments that the providers' lists had at a moment. At most one row for each of a provider's names, ordered by provider,
    market and symbol.

    `symbols`: canonical; None: all. `at`: the moment; None: as the last list has it. `listed` is false where a list names an instrument as
    delisted. A list says nothing about the time before it was first read, so an earlier moment has no rows. `source`: "lake" or
    "postgresql". Raises WrongArgument, ConfigError, Unavailable and NewerData."""
    from tapeline.app.instruments import open_instruments
    from tapeline.app.stores import SOURCES

    if source not in SOURCES:
        raise WrongArgument(f"source = {source!r} is not a source. Use one of: {', '.join(SOURCES)}.")
    names = checked_columns(columns, INSTRUMENTS, ("valid_from", "valid_to"))
    at_ns = None if at is None else times.parse(at, "at")
    chosen = None if symbols is None else checked_symbols(symbols)
    wanted = Versions(checked_provider(provider), symbols=chosen, at_ns=at_ns, open=at_ns is None)
    (store,) = open_instruments(loaded(config), source)
    return Result(
        with_times(INSTRUMENTS, names), lambda: timed(iter(store.versions(wanted).combine_chunks().to_batches()), INSTRUMENTS, names)
    )
