"""The command that brings a provider's history in."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from tapeline import times
from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, TableOrJson, echo, load_config, midnight_ns, stop_on_signal
from tapeline.config import Config, ProviderConfig, environment
from tapeline.errors import ConfigError
from tapeline.local.console import Output
from tapeline.local.locks import own
from tapeline.providers.registry import names
from tapeline.records import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapeline.jobs.backfill.backfill import Job, State
    from tapeline.jobs.backfill.fetching import Source
    from tapeline.jobs.reconcile import Reconciled
    from tapeline.providers.history import History

_DAY_NS = 86_400 * NS_PER_S
#: Another backfill may hold a lock for a moment, to look whether its job is long done.
_LOCK_WAIT_S = 2.0


class Origin(StrEnum):
    rest = "rest"
    files = "files"


#: What a channel may be called by whatever the provider's own name is.
_KINDS = {"trades": "trade", "quotes": "quote", "bars": "bar"}


@app.command()
def backfill(
    start: Annotated[str, typer.Option(help="From this moment on: a date (its midnight in UTC), ISO 8601 with zone, or ns since 1970.")],
    end: Annotated[str | None, typer.Option(help="Up to and without this moment; today's midnight in UTC if left out.")] = None,
    provider: Annotated[str | None, typer.Option(help=f"{', '.join(names())}; each of the configuration's if left out.")] = None,
    symbols: Annotated[str | None, typer.Option(help="Comma-separated, canonical or the provider's own; else the configured.")] = None,
    channels: Annotated[
        str | None, typer.Option(help="Comma-separated: trades, quotes, bars, or the provider's own names; the configured if left out.")
    ] = None,
    origin: Annotated[
        Origin, typer.Option("--from", help="rest, or files: the provider's files of whole days and months, for much of the past.")
    ] = Origin.rest,
    workers: Annotated[int, typer.Option(min=1, max=32, help="Requests side by side, all within the provider's limits.")] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked for, and ask for nothing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Fetch anew what an earlier call has fetched.")] = False,
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table, or json: an object for each feed.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Bring a provider's history into the stream, from where it goes the way of everything: interpreted, stored, accounted for.

    Killed or stopped, the same command goes on with the page at which it was: no page comes twice, none is missed. What is there already
    is kept once. `tapeline run` (or the stages) has to run, or be started afterwards.

    Example: `tapeline backfill --provider binance --symbols BTCUSDT,ETHUSDT --channels trades --start 2026-01-05 --end 2026-01-06`
    """
    from tapeline.app.streams import open_stream
    from tapeline.jobs.backfill import leftovers
    from tapeline.jobs.backfill.backfill import Backfill, encoded
    from tapeline.jobs.backfill.backfill import dry_run as rows_of

    settings = load_config(config)
    stop = stop_on_signal()
    begin_ns, end_ns = _moments(start, end)
    jobs = _jobs(settings, provider, _listed(symbols), _listed(channels), begin_ns, end_ns, origin, stop)
    if dry_run:
        _show(((job, rows_of(job, source)) for job, source in jobs), format)
        return
    failed = False
    leftovers.remove_old_logs(settings.root, time.time(), settings.stream.retain_hours * 3_600)
    for job, source in jobs:
        log = leftovers.log_of(settings.root, job.name)
        # Files are unpacked into one folder.
        lock = leftovers.lock_of(settings.root, "files" if origin is Origin.files else job.name)
        what = "a tapeline backfill from files" if origin is Origin.files else "this tapeline backfill"
        with own(lock, what, _LOCK_WAIT_S):
            if origin is Origin.files:
                leftovers.remove_old_files(settings.root / "backfill" / "files", time.time())
            if again:
                log.forget()
            stream = open_stream(settings)
            try:
                with _bar(job, format) as told:
                    state = Backfill(job, source, stream, log, Random(), stop, workers).run(told)
            finally:
                log.close()
                stream.close()
        failed = failed or bool(state.failed)
        echo(encoded(state).decode() if format is TableOrJson.json else _in_words(job, state))
        for span, error in state.failed:
            echo(f"{span.symbol} {span.channel} from {times.text(span.start_ns)}: {error}", err=True)
        if stop.is_set():
            echo("Stopped. What has come is in the stream; the same command goes on from there.", err=True)
            raise typer.Exit(130)
    raise typer.Exit(1 if failed else 0)


@app.command()
def reconcile(
    day: Annotated[str, typer.Argument(help="A UTC day, such as 2026-01-05.")],
    provider: Annotated[str | None, typer.Option(help="Only this provider; else each of the configuration's.")] = None,
    symbols: Annotated[str | None, typer.Option(help="Comma-separated, canonical or the provider's own; else the configured.")] = None,
    channels: Annotated[
        str | None, typer.Option(help="Comma-separated: trades, quotes, bars, or the provider's own names; else the configured.")
    ] = None,
    source: Annotated[str, typer.Option(help="The store to compare: lake or postgresql.")] = "lake",
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table, or json: an object for each symbol and channel.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Compare a day in a store with the provider's history of it: counts, volume, event by event.

    What the store lacks goes into the stream; the ledger then knows the day as `reconciled`. Status 0: equal; 1: they differed, or some
    could not be compared. Of what is compared, one symbol and channel at a time has to fit in memory.

    Example: `tapeline reconcile 2026-01-05 --channels trades`
    """
    from tapeline.app.streams import open_stream
    from tapeline.app.symbol_names import known_names
    from tapeline.errors import Refused
    from tapeline.jobs.reconcile import reconcile as compare
    from tapeline.ledger.facts import Key
    from tapeline.providers.history import WrongPage
    from tapeline.reading.api import open_source

    settings = load_config(config)
    stop = stop_on_signal()
    start_ns = midnight_ns(day)
    end_ns = min(start_ns + _DAY_NS, time.time_ns())
    if end_ns <= start_ns:
        raise ConfigError(f"{day} has not begun.")
    jobs = _jobs(settings, provider, _listed(symbols), _listed(channels), start_ns, end_ns, Origin.rest, stop)
    store = open_source(source, config=settings)
    stream = open_stream(settings)
    connection, names = f"reconcile-{time.time_ns()}", known_names(settings)
    differ = False
    try:
        for job, history in jobs:
            for span in job.spans():
                key = Key(job.provider, job.feed, span.channel, span.symbol)
                try:
                    found = compare(key, start_ns, end_ns, history, store.now(), stream, time.time_ns, connection, names)
                except (Refused, WrongPage) as error:
                    differ = True
                    echo(f"{key.symbol} {key.channel}: {error}", err=True)
                    continue
                differ = differ or not found.equal
                echo(json.dumps({**found.key._asdict(), **_numbers(found)}) if format is TableOrJson.json else _compared(found))
    finally:
        stream.close()
    raise typer.Exit(1 if differ else 0)


def _numbers(found: Reconciled) -> dict[str, int | float | None]:
    return {name: value for name, value in asdict(found).items() if name != "key"}


def _compared(found: Reconciled) -> str:
    what = f"{found.key.symbol} {found.key.channel}: {found.stored:,} here, {found.in_history:,} in the history"
    if found.equal:
        return f"{what}: equal"
    extra = f"; {found.only_stored:,} are here alone" if found.only_stored else ""
    missed = f"; {found.only_in_history:,} were missing and are on their way through the stream" if found.only_in_history else ""
    unread = f"; {found.rejected:,} could not be read: see `tapeline rejected list`" if found.rejected else ""
    differ = f"; {found.differing:,} differ in price, size or side" if found.differing else ""
    doubt = "" if found.claimed else "; so this history is no evidence, and the ledger does not take it for one"
    return f"{what}{missed}{extra}{differ}{unread}{doubt}"


def _moments(start: str, end: str | None) -> tuple[int, int]:
    now_ns = time.time_ns()
    start_ns = times.parse(start, "--start")
    end_ns = now_ns - now_ns % _DAY_NS if end is None else times.parse(end, "--end")
    if end_ns > now_ns:
        raise ConfigError(f"--end {end} has not come yet: what a history holds of today is still growing. Name a moment that is past.")
    if start_ns >= end_ns:
        raise ConfigError(f"--start {times.text(start_ns)} is not before --end {times.text(end_ns)} (UTC): nothing lies between them.")
    return start_ns, end_ns


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _jobs(
    settings: Config,
    provider: str | None,
    symbols: Sequence[str],
    channels: Sequence[str],
    start_ns: int,
    end_ns: int,
    origin: Origin,
    stop: threading.Event,
) -> list[tuple[Job, Source]]:
    """One for each feed that is configured, or that was asked for, and has a history."""
    from tapeline.app.histories import open_archives, open_histories
    from tapeline.app.symbol_names import known_names
    from tapeline.jobs.backfill.backfill import Job
    from tapeline.providers.registry import ARCHIVES, HISTORIES, PROVIDERS

    if provider is not None and provider not in HISTORIES:
        raise ConfigError(f"{provider!r} is no provider with a history. There are: {', '.join(HISTORIES)}.")
    blocks = [some for some in settings.providers if provider in (None, some.name) and some.name in HISTORIES]
    if not blocks and provider is not None:
        blocks = [ProviderConfig(name=provider)]
    asked = replace(settings, providers=tuple(blocks))
    if origin is Origin.files:
        narrowed = replace(asked, providers=tuple(replace(some, symbols=tuple(symbols) or some.symbols) for some in blocks))
        sources = open_archives(narrowed, environment(), settings.root / "backfill" / "files", Random(), stop.wait)
        if not sources:
            raise ConfigError(f"No such provider keeps files of its history. These do: {', '.join(ARCHIVES)}. Leave --from files out.")
    else:
        sources = open_histories(asked, environment(), Random(), stop.wait)
    found: list[tuple[Job, Source]] = []
    names = known_names(settings)
    for (name, feed), source in sources.items():
        mine = [some for some in blocks if some.name == name and (some.feed or PROVIDERS[name].default_feed) == feed]
        wanted = symbols or tuple(dict.fromkeys(symbol for some in mine for symbol in some.symbols))
        configured = tuple(dict.fromkeys(channel for some in mine for channel in some.channels))
        chosen = _channels(name, feed, source.history, configured, channels)
        split = names.get((name, feed), {})
        canonical = [PROVIDERS[name].symbol_of(feed, symbol, split) for symbol in wanted]
        unknown = [symbol for symbol, known in zip(wanted, canonical, strict=True) if known is None]
        if unknown:
            raise ConfigError(
                f"{unknown[0]!r} is no symbol of {name} {feed}: write it as the provider does, or canonical such as BTC/USDT."
            )
        unique = tuple(dict.fromkeys(symbol for symbol in canonical if symbol is not None))
        for symbol in unique:
            if problem := PROVIDERS[name].name_problem(feed, symbol, split):
                raise ConfigError(f"{symbol!r} is no symbol under which {name} {feed} is kept: {problem}. Nothing was fetched.")
        if unique and chosen:
            found.append((Job(name, feed, chosen, unique, start_ns, end_ns, origin is Origin.files), source))
    if not found:
        raise ConfigError(
            "Nothing to fetch: no configured feed has symbols and channels of which a history is kept. Name --provider, --symbols and "
            "--channels."
        )
    return found


def _channels(name: str, feed: str, history: History, configured: Iterable[str], asked: Sequence[str]) -> tuple[str, ...]:
    """The provider's own names of what is asked for; of what is configured where nothing is, as far as there is a history of it."""
    known = history.channels[feed]
    if not asked:
        return tuple(channel for channel in configured if channel in known)
    found: list[str] = []
    for word in asked:
        of_kind = [channel for channel, kind in known.items() if kind == _KINDS.get(word)]
        if word in known:
            found.append(word)
        elif of_kind:
            found += [channel for channel in configured if channel in of_kind] or of_kind[:1]
        else:
            raise ConfigError(f"{name} keeps no history of {word!r} on {feed}. It keeps: {', '.join(known)}.")
    return tuple(dict.fromkeys(found))


def _show(jobs: Iterable[tuple[Job, Sequence[dict[str, str | int]]]], format: TableOrJson) -> None:  # noqa: A002
    if format is TableOrJson.json:
        for job, rows in jobs:
            echo(json.dumps({"provider": job.provider, "feed": job.feed, "requests": list(rows)}))
        return
    for job, rows in jobs:
        table = Table(title=f"{job.provider} {job.feed}", title_justify="left")
        for column in ("symbol", "channel", "from", "to", "parts", "begins with"):
            table.add_column(column, overflow="fold")
        for row in rows:
            moments = (times.text(int(row[name])) for name in ("start_ns", "end_ns"))
            table.add_row(str(row["symbol"]), str(row["channel"]), *moments, str(row["parts"]), str(row["first_request"]))
        Output().print(table)


@contextmanager
def _bar(job: Job, format: TableOrJson) -> Iterator[Callable[[State], None]]:  # noqa: A002
    """How far it is, on a terminal."""
    what = TextColumn(f"{job.provider} {job.feed} {{task.fields[events]:,}} events on {{task.fields[pages]:,}} pages")
    columns = (what, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=format is TableOrJson.json) as bar:
        task = bar.add_task("", total=1.0, events=0, pages=0)
        yield lambda state: bar.update(task, completed=state.share, events=state.events, pages=state.pages)


def _in_words(job: Job, state: State) -> str:
    left = state.spans - state.spans_done
    what = f"{job.provider} {job.feed}: {state.events:,} events on {state.pages:,} pages are in the stream"
    return f"{what}; {left} of {state.spans} parts are left." if left else f"{what}; all {state.spans} parts are fetched."
