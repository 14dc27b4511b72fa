"""Tasks that a person, a timer or a scheduler calls: each opens what it needs, works, closes it, and returns dataclasses.

A task writes through the stream, or with one commit of a store. So after a crash, it is safe to call it again. Long tasks yield each result
as soon as it is done. Tasks do not print and do not end the process: the caller does that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from random import Random
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from tapeline.app.feeds import configured_feeds
from tapeline.app.histories import open_histories
from tapeline.app.history_jobs import Wanted, history_jobs
from tapeline.app.instruments import open_instruments, open_lists
from tapeline.app.ledgers import known_intervals, open_ledger
from tapeline.app.stores import lake_folder, lake_keep, open_source
from tapeline.app.streams import open_stream, stream_with_data
from tapeline.app.symbol_names import configured_names, known_names
from tapeline.config import Config, environment
from tapeline.errors import Barred, ConfigError, Refused, TapelineError, Unavailable, WrongArgument
from tapeline.jobs import export as exporting
from tapeline.jobs import symbols as listing
from tapeline.jobs.backfill import leftovers
from tapeline.jobs.backfill.backfill import Backfill, Job, State
from tapeline.jobs.backfill.backfill import dry_run as requests_of
from tapeline.jobs.backfill.fetching import connection_name
from tapeline.jobs.export import Form
from tapeline.jobs.rebuild import RawRecords
from tapeline.jobs.reconcile import Reconciled
from tapeline.jobs.reconcile import reconcile as compare
from tapeline.jobs.repair import REQUESTED_STATES, Repaired, wanted
from tapeline.jobs.repair import repair as fill
from tapeline.jobs.sync.evidence import READ_STATES
from tapeline.jobs.sync.pull import Pulled, Sync, Timing
from tapeline.ledger import read_intervals
from tapeline.ledger.facts import Interval, Key
from tapeline.local.locks import own
from tapeline.providers.history import Span, WrongPage
from tapeline.providers.registry import CHANNELS, DECODERS, PROVIDERS, identity
from tapeline.records import BARS_TOPIC, TICKS_TOPIC
from tapeline.stores.lake import checking, compacting, repairing, retention, tidying
from tapeline.stores.lake.logged import latest_receipt_ns
from tapeline.stores.selection import Selection, known_name

#: Another backfill may hold a lock for a moment, while it checks whether the job's log is old.
_LOCK_WAIT_S: Final = 2.0
#: How long `sync` waits between two pulls while it catches up.
_NEXT_PULL_S: Final = 0.1
#: Called with a table's name, how many of its rows are done, and how many there are.
Progress = Callable[[str, int, int], None]
#: A context manager around each job. It gives a function that is called with the job's progress.
Watch = Callable[[Job], AbstractContextManager[Callable[[State], None]]]


@dataclass(frozen=True, slots=True)
class Backfilled:
    """One job, and its state at its end or where it was stopped."""

    job: Job
    state: State


@dataclass(frozen=True, slots=True)
class Planned:
    """One job, with one row for each channel and symbol that says what would be requested (see `jobs.backfill.backfill.dry_run`)."""

    job: Job
    requests: Sequence[dict[str, str | int]]


@dataclass(frozen=True, slots=True)
class Failed:
    """The error of one symbol and channel. The others continued."""

    key: Key
    error: TapelineError


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap that a provider's history may fill: its key, its interval, and the span to request."""

    key: Key
    interval: Interval
    span: Span


def plan_backfill(config: Config, request: Wanted, span_ns: tuple[int, int]) -> list[Planned]:
    """What `backfill` would request, without a request. `span_ns`: [start, end) in ns, UTC. Raises ConfigError as `history_jobs`."""
    jobs = history_jobs(config, request, *span_ns, threading.Event())
    return [Planned(job, requests_of(job, source)) for job, source in jobs]


def backfill(
    config: Config,
    request: Wanted,
    span_ns: tuple[int, int],
    stop: threading.Event,
    *,
    workers: int = 4,
    again: bool = False,
    watch: Watch = lambda _: nullcontext(lambda _: None),
) -> Iterator[Backfilled]:
    """Load the history of `span_ns`, [start, end) in ns, UTC, into the stream. After a stop or a crash, the same call continues.

    `again`: fetch everything again, even if an earlier call fetched it. Raises ConfigError, Busy while the same job runs, Unavailable,
    Refused, DiskProblem."""
    jobs = history_jobs(config, request, *span_ns, stop)
    leftovers.remove_old_logs(config.root, time.time(), config.stream.retain_hours * 3_600)
    for job, source in jobs:
        # All jobs that read files unpack them into one folder, so they share a lock.
        lock = leftovers.lock_of(config.root, "files" if job.files else job.name)
        what = "a tapeline backfill from files" if job.files else "this tapeline backfill"
        with own(lock, what, _LOCK_WAIT_S), closing(leftovers.log_of(config.root, job.name)) as log, closing(open_stream(config)) as stream:
            if job.files:
                leftovers.remove_old_files(config.root / "backfill" / "files", time.time())
            if again:
                log.forget()
            with watch(job) as progress:
                state = Backfill(job, source, stream, log, Random(), stop, workers).run(progress)
        yield Backfilled(job, state)
        if stop.is_set():
            return


def reconcile(
    config: Config, request: Wanted, span_ns: tuple[int, int], stop: threading.Event, store: str = "lake"
) -> Iterator[Reconciled | Failed]:
    """Compare a store's rows of `span_ns`, [start, end) in ns, UTC, with the providers' history, and send what the store lacks.

    Raises ConfigError, Unavailable; the results yielded before are done."""
    jobs = history_jobs(config, request, *span_ns, stop)
    source, began_ns, names = open_source(config, store), time.time_ns(), known_names(config)
    with closing(open_stream(config)) as stream:
        for job, history in jobs:
            connection = connection_name("reconcile", job.provider, job.feed, began_ns)
            for span in job.spans():
                key = Key(job.provider, job.feed, span.channel, span.symbol)
                try:
                    yield compare(key, span_ns, history, source.now(), stream, connection, names)
                except (Refused, WrongPage) as error:
                    yield Failed(key, error)


def revised_days(config: Config, compared: Mapping[date, int]) -> list[date]:
    """Return the UTC days of which the lake got rows after they were compared with their history: corrections, late events, repairs.

    `compared`: when each day was compared (ns, UTC). Raises DiskProblem and NewerData."""
    root = lake_folder(config)
    return [day for day, at_ns in compared.items() if latest_receipt_ns(root, day) > at_ns]


def gaps_to_repair(config: Config, symbols: Collection[str] = (), provider: str | None = None) -> list[Gap]:
    """The gaps that a provider's history may fill, the latest first. A gap whose events may still arrive by themselves is left out.

    Raises ConfigError as `known_intervals`."""
    known = known_intervals(config, symbols, provider, REQUESTED_STATES)
    return [Gap(*gap) for gap in wanted(known, configured_feeds(config), time.time_ns())]


def repair(config: Config, gaps: Sequence[Gap]) -> Iterator[Repaired | Failed]:
    """Request the missing events from the providers' history, and send the pages through the stream. A second call adds no duplicates.

    If a provider is away, its first gap is `Failed`, and its other gaps are skipped. Raises ConfigError for a missing key."""
    if not gaps:
        return
    # A provider without gaps needs no key.
    providers = {gap.key.provider for gap in gaps}
    narrowed = replace(config, providers=tuple(some for some in config.providers if some.name in providers))
    sources = open_histories(narrowed, environment(), Random())
    away: set[str] = set()
    with closing(stream_with_data(config)) as stream:
        began_ns = time.time_ns()
        for gap in gaps:
            if gap.key.provider in away:
                continue
            try:
                feed = (gap.key.provider, gap.key.feed)
                done = fill(gap.key, gap.span, sources[feed], stream, connection_name("repair", *feed, began_ns))
                if done is not None:
                    yield done
            except (Refused, WrongPage, Unavailable) as error:
                if isinstance(error, Unavailable):
                    away.add(gap.key.provider)
                yield Failed(gap.key, error)


@contextmanager
def open_sync(config: Config, request: Wanted, timing: Timing, stop: threading.Event) -> Iterator[Sync]:
    """Open what the pulls of the requested histories need. Call `pull` of the result as often as you like, in this thread.

    Raises ConfigError as `history_jobs`, and if there is no ledger: it knows from where to continue."""
    if not config.ledger:
        raise ConfigError("sync continues where the ledger's evidence ends, and `ledger = false` says that there is none. Remove it.")
    # A request is sent once: the next pull is the next attempt, and the provider's other symbols need not wait for it.
    jobs = history_jobs(config, request, 0, 0, stop, tries=1)
    feeds = [
        (source, [Key(job.provider, job.feed, channel, symbol) for symbol in job.symbols for channel in job.channels])
        for job, source in jobs
    ]
    symbols, ledger = {key.symbol for _, keys in feeds for key in keys}, open_ledger(config)

    def known() -> dict[Key, list[Interval]]:
        return read_intervals(ledger.intervals(symbols, READ_STATES))

    with closing(open_stream(config)) as stream, closing(Sync(feeds, stream, known, timing, stop, Random())) as pulls:
        yield pulls


def sync(config: Config, request: Wanted, timing: Timing, stop: threading.Event) -> Iterator[Pulled]:
    """Pull once what is new in the requested histories, up to now. After a stop or a crash, the same call continues.

    An error of a provider is in the results; the other symbols are pulled all the same. Raises as `open_sync`, and Unavailable if the
    stream or the ledger is away."""
    with open_sync(config, request, timing, stop) as pulls:
        yield from pulls.pull()
        while pulls.behind and not stop.wait(_NEXT_PULL_S):
            yield from pulls.pull()


@dataclass(frozen=True, slots=True)
class FailedList:
    """The error of one list of instruments. The others continued."""

    provider: str
    market: str
    error: TapelineError


def symbols(
    config: Config, stop: threading.Event, provider: str | None = None, *, accept_fewer: bool = False
) -> Iterator[listing.Symbols | FailedList]:
    """Read the providers' lists of instruments to their ends, and put what changed into every store. A second call changes nothing.

    A list that cannot be read to its end changes nothing. `provider`: only its lists. `accept_fewer`: as in `jobs.symbols.keep`. Raises
    ConfigError for a missing key, Busy while another call works, Unavailable for a store or the stream."""
    lists, stores = open_lists(config, environment(), Random(), provider, stop.wait), open_instruments(config)
    with own(config.root / "locks" / "symbols", "tapeline symbols", _LOCK_WAIT_S), closing(open_stream(config)) as stream:
        for some in lists:
            try:
                found = listing.read(some, stream)
                done: listing.Symbols | FailedList = listing.keep(stores, some, found, accept_fewer=accept_fewer)
            except Barred as error:
                done = FailedList(some.provider, some.market, Barred(" ".join(filter(None, (str(error), some.how.advice)))))
            except (Refused, WrongPage, Unavailable) as error:
                done = FailedList(some.provider, some.market, error)
            yield done
            if stop.is_set():
                return


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The rows that an export holds: one symbol's in [start, end), ns, UTC. None: any value."""

    symbol: str
    span_ns: tuple[int, int]
    kind: Literal["trade", "quote", "bar"] | None = None  # None: trades and quotes
    channel: str | None = None
    provider: str | None = None
    source: str = "lake"


def export(config: Config, request: ExportRequest, folder: Path, form: Form, progress: exporting.Progress) -> exporting.Exported:
    """Write a symbol's rows to plain files in `folder`, which must be new or empty. Each file of the lake is verified before it is read.

    A killed export leaves no folder. Raises WrongArgument for an unknown source, provider, channel or symbol, ConfigError, Busy,
    Unavailable, DiskProblem."""
    if request.provider is not None and request.provider not in PROVIDERS:
        raise WrongArgument(f"provider = {request.provider!r} is not a provider. Use one of: {', '.join(PROVIDERS)}.")
    channels = sorted({name for feeds in CHANNELS.values() for channels in feeds.values() for name in channels})
    if request.channel is not None and request.channel not in channels:
        raise WrongArgument(f"{request.channel!r} is not a channel of any provider. Channels: {', '.join(channels)}.")
    topic = BARS_TOPIC if request.kind == "bar" else TICKS_TOPIC
    source = open_source(config, request.source).verified()
    known_name(source, topic, (request.symbol,))
    kind = None if request.kind == "bar" else request.kind
    selection = Selection((request.symbol,), *request.span_ns, tuple(topic.schema.names), provider=request.provider, kind=kind)
    moment = pa.field("ts", pa.timestamp("ns", "UTC"), nullable=False)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in source.bars(selection) if topic is BARS_TOPIC else source.ticks(selection):
            some = batch if request.channel is None else batch.filter(pc.equal(batch["channel"], request.channel))
            yield some.append_column(moment, some["ts_ns"].cast(moment.type))

    return exporting.export(topic.schema.append(moment), batches(), folder, topic.table, form, progress)


def compact(config: Config, day: date, progress: Progress) -> list[compacting.Compacted]:
    """Merge a UTC day's many small files in the lake into a few sorted ones. No row changes. Raises ConfigError if there is no lake."""
    return compacting.compact(_lake(config), day, progress)


def tidy(config: Config, now: datetime, report: Callable[[compacting.Compacted], None]) -> None:
    """Compact the days that are over, and merge the small files of the other days. Raises ConfigError if there is no lake."""
    tidying.tidy(_lake(config), now, report)


def prune(config: Config, today: date, *, dry_run: bool = False) -> list[retention.Pruned]:
    """Remove the days that keep_days and keep_gb no longer keep. `dry_run`: only list them. Raises ConfigError if there is no lake."""
    return retention.prune(_lake(config), lake_keep(config), today, dry_run=dry_run)


def vacuum(config: Config) -> list[retention.Vacuumed]:
    """Delete the files that the tables' logs no longer name. Raises ConfigError if there is no lake."""
    return list(retention.vacuum(_lake(config)))


def check_lake(config: Config, day: date | None, progress: Progress) -> list[checking.Checked]:
    """Compare the lake, or one UTC day of it, with its own log. Nothing is changed. Raises ConfigError if there is no lake."""
    return checking.check(_lake(config), identity, day, progress)


def repair_lake(config: Config, progress: Progress, *, drop: bool = False) -> Iterator[repairing.Repaired]:
    """Rebuild damaged files from the raw topic. `drop`: give up rows whose raw records are gone.

    Raises ConfigError if there is no lake or no stream."""
    with closing(stream_with_data(config)) as stream:
        origin = RawRecords(stream, DECODERS, configured_names(config))
        yield from repairing.repair(_lake(config), identity, origin, progress, drop=drop)


def _lake(config: Config) -> Path:
    root = lake_folder(config)
    if not root.exists():
        raise ConfigError(f"There is no lake at {root} yet. Start `tapeline run`, or use another --config.")
    return root
