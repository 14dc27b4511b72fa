"""The jobs: for each, its usual schedule, its arguments, what it works on, and the task that does it.

A job calls one task of `app.tasks` and returns what was done as plain values. It holds no logic of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import replace

from tapeline.app import tasks
from tapeline.app.history_jobs import Wanted
from tapeline.config import Config, JobConfig
from tapeline.errors import ConfigError
from tapeline.orchestration.schedule import Schedule, duration_ns, parse
from tapeline.records import NS_PER_S

#: Called with numbers that say how far a run is.
Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What one run is given."""

    config: Config
    #: The day before the run's moment, in the job's time zone: the day that is over.
    day: date
    stop: threading.Event
    progress: Progress


class HistoryArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which history."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    day: date | None = None  # the UTC day; if left out, the day that is over


class BackfillArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which history, and how far back."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    history_from: date | None = None  # the first UTC day; if left out, the day that is over
    files: bool = False  # read the provider's files of whole days instead of its REST API


class RepairArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which gaps."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()


class DayArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which UTC day."""

    day: date | None = None  # if left out, the day that is over


class CheckArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which UTC day of the lake."""

    day: date | None = None  # if left out, the whole lake


class NoArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """None."""


class ExportArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which rows, and where to."""

    symbol: str
    to: str  # a folder; each day becomes a folder in it
    form: Literal["parquet", "csv", "arrow"] = "parquet"
    kind: Literal["trade", "quote", "bar"] | None = None
    channel: str | None = None
    provider: str | None = None
    day: date | None = None  # the UTC day; if left out, the day that is over


def _backfill(work: Work, told: BackfillArguments) -> dict[str, Any]:
    wanted = Wanted(told.provider, told.symbols, told.channels, told.files)
    first = told.history_from or work.day
    days = events = pages = 0
    failed: list[str] = []
    for back in range((work.day - first).days + 1):  # the newest day first: it is the one that is asked for
        if work.stop.is_set():
            break
        for done in tasks.backfill(work.config, wanted, _span(work.day - timedelta(back)), work.stop):
            events, pages = events + done.state.events, pages + done.state.pages
            failed += [f"{span.symbol} {span.channel}: {error}" for span, error in done.state.failed]
        days += 1
        work.progress({"days": days, "pages": pages, "events": events})
    return {"days": days, "pages": pages, "events": events, "failed": failed}


def _reconcile(work: Work, told: HistoryArguments) -> dict[str, Any]:
    compared = equal = filled = 0
    failed: list[str] = []
    different: list[str] = []
    wanted = Wanted(told.provider, told.symbols, told.channels)
    for one in tasks.reconcile(work.config, wanted, _span(told.day or work.day), work.stop):
        if isinstance(one, tasks.Failed):
            failed.append(f"{one.key.symbol} {one.key.channel}: {one.error}")
            continue
        compared, equal, filled = compared + 1, equal + one.equal, filled + one.only_in_history
        if not one.equal:
            different.append(f"{one.key.symbol} {one.key.channel}")
        work.progress({"compared": compared, "equal": equal})
    return {
        "day": str(told.day or work.day),
        "compared": compared,
        "equal": equal,
        "filled": filled,
        "different": different,
        "failed": failed,
    }


def _repair(work: Work, told: RepairArguments) -> dict[str, Any]:
    gaps = tasks.gaps_to_repair(work.config, told.symbols, told.provider)
    closed = events = 0
    failed: list[str] = []
    for one in tasks.repair(work.config, gaps):
        if isinstance(one, tasks.Failed):
            failed.append(f"{one.key.symbol} {one.key.channel}: {one.error}")
        else:
            closed, events = closed + 1, events + one.events
        work.progress({"gaps": len(gaps), "requested": closed, "events": events})
        if work.stop.is_set():
            break
    return {"gaps": len(gaps), "requested": closed, "events": events, "failed": failed}


def _compact(work: Work, told: DayArguments) -> dict[str, Any]:
    done = tasks.compact(work.config, told.day or work.day, _of_table(work))
    return {"day": str(told.day or work.day), "tables": [_plain(asdict(one)) for one in done]}


def _prune(work: Work, told: NoArguments) -> dict[str, Any]:
    del told
    return {"removed": [_plain(asdict(one)) for one in tasks.prune(work.config, work.day + timedelta(1))]}


def _vacuum(work: Work, told: NoArguments) -> dict[str, Any]:
    del told
    return {"tables": [_plain(asdict(one)) for one in tasks.vacuum(work.config)]}


def _check_lake(work: Work, told: CheckArguments) -> dict[str, Any]:
    checked = tasks.check_lake(work.config, told.day, _of_table(work))
    problems = [f"{one.table}: {finding}" for one in checked for finding in one.findings]
    return {"tables": len(checked), "problems": problems, "failed": problems}


def _export(work: Work, told: ExportArguments) -> dict[str, Any]:
    day = told.day or work.day
    request = tasks.ExportRequest(told.symbol, _span(day), told.kind, told.channel, told.provider)
    folder = Path(told.to).expanduser() / f"{told.symbol.replace('/', '-')}-{day}"
    if (folder / f"date={day}").exists():
        return {"folder": str(folder), "rows": 0, "files": 0, "bytes": 0, "note": "it is there already"}
    done = tasks.export(work.config, request, folder, told.form, lambda rows, ns: work.progress({"rows": rows, "reached_ns": ns}))
    return {"folder": str(done.folder), "rows": done.rows, "files": done.files, "bytes": done.bytes}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of job."""

    does: str
    usual: JobConfig
    arguments: type[msgspec.Struct]
    run: Callable[[Work, Any], dict[str, Any]]
    #: Whether it belongs to a day: then two days may run at once, and each day has its own run.
    of_a_day: bool


KINDS: Final[dict[str, Kind]] = {
    kind.usual.job: kind
    for kind in (
        Kind(
            "load the days that are missing", JobConfig(job="backfill", schedule="17 * * * *"), BackfillArguments, _backfill, of_a_day=False
        ),
        Kind(
            "compare the day that is over with the history",
            JobConfig(job="reconcile", schedule="30 6 * * *", catch_up="all"),
            HistoryArguments,
            _reconcile,
            of_a_day=True,
        ),
        Kind("request the gaps that are still open", JobConfig(job="repair", every="5m"), RepairArguments, _repair, of_a_day=False),
        Kind(
            "merge the small files of the day that is over",
            JobConfig(job="compact", schedule="10 1 * * *", catch_up="all"),
            DayArguments,
            _compact,
            of_a_day=True,
        ),
        Kind("remove the days that are no longer kept", JobConfig(job="prune", schedule="40 2 * * *"), NoArguments, _prune, of_a_day=False),
        Kind("delete the files that no table names", JobConfig(job="vacuum", schedule="0 3 * * 0"), NoArguments, _vacuum, of_a_day=False),
        Kind(
            "compare the lake with its own log",
            JobConfig(job="check_lake", schedule="30 3 * * 0", timeout="12h"),
            CheckArguments,
            _check_lake,
            of_a_day=False,
        ),
        Kind(
            "write a day of a symbol as plain files",
            JobConfig(job="export", schedule="0 7 * * *", catch_up="all"),
            ExportArguments,
            _export,
            of_a_day=True,
        ),
    )
}
#: Jobs that run without any configuration. The others need arguments, or do nothing where stages already do it.
USUAL: Final = ("reconcile", "check_lake", "vacuum")


@dataclass(frozen=True, slots=True)
class Job:
    """A configured job."""

    name: str
    kind: Kind
    settings: JobConfig
    schedule: Schedule
    timeout_ns: int
    arguments: msgspec.Struct

    def thing(self, due_ns: int) -> str:
        """Return what a run for this moment works on. No two runs work on the same thing at once."""
        day = getattr(self.arguments, "day", None) or self.day(due_ns)
        return str(day) if self.kind.of_a_day else ""

    def day(self, due_ns: int) -> date:
        """Return the day that is over at a moment (ns, UTC), in the job's time zone."""
        return (datetime.fromtimestamp(due_ns // NS_PER_S, ZoneInfo(self.settings.timezone)) - timedelta(days=1)).date()


def jobs_of(config: Config) -> dict[str, Job]:
    """Return the configured jobs and the usual ones, by their names. Raises ConfigError, which names the block and the remedy."""
    found: dict[str, Job] = {}
    for settings in (*config.jobs, *(KINDS[name].usual for name in USUAL if name not in {some.job for some in config.jobs})):
        if settings.job not in KINDS:
            raise ConfigError(f'[[jobs]]: job = "{settings.job}" is not a job. The jobs are: {", ".join(KINDS)}.')
        job = _job(settings)
        if job.name in found:
            raise ConfigError(f'[[jobs]]: there are two jobs {job.name!r}. Give one of them another name = "...".')
        found[job.name] = job
    return found


def with_arguments(job: Job, arguments: Mapping[str, object]) -> Job:
    """Return the job with some arguments replaced. Raises ConfigError."""
    return _job(replace(job.settings, arguments={**job.settings.arguments, **arguments}))


def _job(settings: JobConfig) -> Job:
    kind, name = KINDS[settings.job], settings.name or settings.job
    where = f"[[jobs]] {name}"
    try:
        schedule = parse(settings.schedule, settings.every, settings.timezone)
        if not (settings.schedule or settings.every):
            schedule = parse(kind.usual.schedule, kind.usual.every, settings.timezone)
        timeout_ns = duration_ns(settings.timeout, "timeout")
        arguments = msgspec.convert(settings.arguments, kind.arguments, strict=False)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except msgspec.ValidationError as error:
        valid = ", ".join(field.encode_name for field in msgspec.structs.fields(kind.arguments)) or "none"
        raise ConfigError(f"{where}: arguments: {str(error).replace('$.', '')}. The arguments of {settings.job} are: {valid}.") from None
    return Job(name, kind, settings, schedule, timeout_ns, arguments)


def _span(day: date) -> tuple[int, int]:
    start_ns = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * NS_PER_S
    return start_ns, start_ns + 86_400 * NS_PER_S


def _of_table(work: Work) -> tasks.Progress:
    return lambda table, done, of: work.progress({"table": table, "rows": done, "of": of})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, (int, float, str, bool, type(None))) else str(value) for name, value in values.items()}
