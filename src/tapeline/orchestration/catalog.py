"""What jobs there are: for each, its usual schedule, its arguments, and what it works on. `work.py` says what each does.

The scheduler needs this module and not `work.py`, which loads the stores' libraries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from datetime import date, datetime, time, timedelta
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import replace

from tapeline.app.feeds import feed_of
from tapeline.config import Config, JobConfig
from tapeline.errors import ConfigError
from tapeline.orchestration.schedule import Schedule, parse
from tapeline.providers.registry import HISTORIES, LISTS
from tapeline.records import NS_PER_S
from tapeline.times import duration_ns, time_of_day


class HistoryArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which history."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    day: date | None = None  # the UTC day; if left out, the day that is over, and the days before it that were revised
    #: How many days before the day that is over are compared again if the lake got rows of them since they were last compared.
    revised: Annotated[int, msgspec.Meta(ge=0, le=365)] = 7


class BackfillArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which history, and how far back."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    history_from: date | None = None  # the first UTC day; if left out, the day that is over
    files: bool = False  # read the provider's files of whole days instead of its REST API
    day: date | None = None  # the last UTC day; if left out, the day that is over


class RepairArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which gaps."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()


class SyncArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which history, and how far back a pull reaches. The durations are written like `every`."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    overlap: str = "2s"  # each pull begins so much before the end of the last one
    look_back: str = "1m"  # how much is read where nothing is known yet
    furthest: str = "1d"  # no pull begins earlier than this
    delay: str = ""  # the plan gives events only when they are this old

    def __post_init__(self) -> None:
        """Check the durations. Raises ConfigError."""
        for name in ("overlap", "look_back", "furthest", "delay"):
            self.ns(name)

    def ns(self, name: str) -> int:
        """Return one of the durations in ns. Raises ConfigError."""
        text = getattr(self, name)
        return duration_ns(text, name) if text else 0


class DayArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which UTC day."""

    day: date | None = None  # if left out, the day that is over


class CheckArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which UTC day of the lake."""

    day: date | None = None  # if left out, the whole lake


class SymbolsArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Whose lists."""

    provider: str | None = None
    accept_fewer: bool = False  # use a list that has less than half of the instruments that the last one had


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


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of job."""

    does: str
    usual: JobConfig
    arguments: type[msgspec.Struct]
    #: Whether it belongs to a day: then two days may run at once, and each day has its own run.
    of_a_day: bool
    #: The providers that can have a run of their own.
    providers: Collection[str] = ()


KINDS: Final[dict[str, Kind]] = {
    kind.usual.job: kind
    for kind in (
        Kind(
            "load the days that are missing",
            JobConfig(job="backfill", schedule="17 * * * *"),
            BackfillArguments,
            of_a_day=False,
            providers=HISTORIES,
        ),
        Kind(
            "compare the day that is over with the history",
            JobConfig(job="reconcile", schedule="30 6 * * *", catch_up="all"),
            HistoryArguments,
            of_a_day=True,
            providers=HISTORIES,
        ),
        Kind(
            "request the gaps that are still open",
            JobConfig(job="repair", every="5m"),
            RepairArguments,
            of_a_day=False,
            providers=HISTORIES,
        ),
        Kind("pull what is new in the providers' histories", JobConfig(job="sync", every="1m"), SyncArguments, of_a_day=False),
        Kind(
            "merge the small files of the day that is over",
            JobConfig(job="compact", schedule="10 1 * * *", catch_up="all"),
            DayArguments,
            of_a_day=True,
        ),
        Kind("remove the days that are no longer kept", JobConfig(job="prune", schedule="40 2 * * *"), NoArguments, of_a_day=False),
        Kind("delete the files that no table names", JobConfig(job="vacuum", schedule="0 3 * * 0"), NoArguments, of_a_day=False),
        Kind(
            "compare the lake with its own log",
            JobConfig(job="check_lake", schedule="30 3 * * 0", timeout="12h"),
            CheckArguments,
            of_a_day=False,
        ),
        Kind(
            "read the providers' lists of instruments",
            JobConfig(job="symbols", schedule="0 5 * * *"),
            SymbolsArguments,
            of_a_day=False,
            providers=LISTS,
        ),
        Kind(
            "write a day of a symbol as plain files",
            JobConfig(job="export", schedule="0 7 * * *", catch_up="all"),
            ExportArguments,
            of_a_day=True,
        ),
        Kind("check the promises and deadlines, and raise alerts", JobConfig(job="check_sla", every="15s"), NoArguments, of_a_day=False),
    )
}
#: Jobs that run without any configuration, where there is a lake. The others need arguments, or stages do their work already.
_OF_EVERY_LAKE: Final = ("check_lake", "vacuum")


_MINUTE_NS: Final = 60 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Job:
    """A configured job."""

    name: str
    kind: Kind
    settings: JobConfig
    schedule: Schedule
    timeout_ns: int
    arguments: msgspec.Struct
    #: The time of the day, in the job's time zone, by which the run that was due before must have succeeded; None: there is none.
    deadline: time | None = None
    #: The configured providers that can have a run of their own (`for_provider`).
    providers: Sequence[str] = ()
    #: The only provider of this run; empty: all that the configuration names for the job.
    only: str = ""

    @property
    def continuous(self) -> bool:
        """Whether it repeats within a minute: then one run goes on and on, and does the work again and again."""
        return 0 < self.schedule.period_ns < _MINUTE_NS

    @property
    def takes_day(self) -> bool:
        """Whether a run may be for a day that the caller names."""
        return any(field.name == "day" for field in msgspec.structs.fields(self.kind.arguments))

    def thing(self, due_ns: int) -> str:
        """Return what a run for this moment works on. No two runs work on the same thing at once."""
        day = getattr(self.arguments, "day", None) or self.day(due_ns)
        return f"{day if self.kind.of_a_day else ''} {self.only}".strip()

    def is_part(self, thing: str) -> bool:
        """Return whether a run that works on `thing` works for one provider of several."""
        return thing.rpartition(" ")[2] in self.providers

    def day(self, due_ns: int) -> date:
        """Return the day that is over at a moment (ns, UTC), in the job's time zone."""
        return (datetime.fromtimestamp(due_ns // NS_PER_S, ZoneInfo(self.settings.timezone)) - timedelta(days=1)).date()


def jobs_of(config: Config) -> dict[str, Job]:
    """Return the configured jobs and the usual ones, by their names. Raises ConfigError, which names the block and the remedy."""
    found: dict[str, Job] = {}
    for settings in (*config.jobs, *_usual(config)):
        if settings.job not in KINDS:
            raise ConfigError(f'[[jobs]]: job = "{settings.job}" is not a job. The jobs are: {", ".join(KINDS)}.')
        job = _job(settings, config)
        if job.name in found:
            raise ConfigError(f'[[jobs]]: there are two jobs {job.name!r}. Give one of them another name = "...".')
        if unknown := [some for some in settings.notify if some not in {one.name for one in config.notify}]:
            raise ConfigError(f"[[jobs]] {job.name}: there is no [[notify]] block {unknown[0]!r}. Add one, or remove the name.")
        found[job.name] = job
    return found


def by_name(known: Mapping[str, Job], name: str, config: Config) -> Job:
    """Return a job that somebody runs by hand: a configured one, or one of the others with its usual settings. Raises ConfigError."""
    if name in known:
        return known[name]
    if name in KINDS:
        return _job(KINDS[name].usual, config)
    raise ConfigError(f"There is no job {name!r}. The jobs are: {', '.join(dict.fromkeys((*known, *KINDS)))}.")


def _usual(config: Config) -> Sequence[JobConfig]:
    """The jobs that run although no block names them."""
    lake = any(store.url.startswith("lake:") for store in config.stores)
    names = ["reconcile"] if lake and any(some.name in HISTORIES for some in config.providers) else []
    listing = any(some.name in LISTS and feed_of(some) in LISTS[some.name].markets for some in config.providers)
    names += ["symbols"] if listing and config.stores else []
    names += _OF_EVERY_LAKE if lake else ()
    names += ["check_sla"] if config.sla or any(some.deadline for some in config.jobs) else []
    return [KINDS[name].usual for name in names if name not in {some.job for some in config.jobs}]


def with_arguments(job: Job, arguments: Mapping[str, object]) -> Job:
    """Return the job with some arguments replaced. Raises ConfigError."""
    changed = _job(replace(job.settings, arguments={**job.settings.arguments, **arguments}))
    return with_fields(changed, providers=job.providers, only=job.only)


def for_provider(job: Job, provider: str) -> Job:
    """Return the job for one of its providers. Its runs are apart from those of the other providers. Raises ConfigError."""
    if provider not in job.providers:
        some = f"Use one of: {', '.join(job.providers)}." if job.providers else "Leave out the provider."
        raise ConfigError(f"{job.name} has no run for the provider {provider!r} alone. {some}")
    return with_fields(with_arguments(job, {"provider": provider}), only=provider)


def _job(settings: JobConfig, config: Config | None = None) -> Job:
    kind, name = KINDS[settings.job], settings.name or settings.job
    settings = replace(settings, timeout=settings.timeout or kind.usual.timeout or "2h")
    settings = replace(settings, catch_up=settings.catch_up or kind.usual.catch_up or "latest")
    where = f"[[jobs]] {name}"
    try:
        schedule = parse(settings.schedule, settings.every, settings.timezone)
        if not (settings.schedule or settings.every):
            schedule = parse(kind.usual.schedule, kind.usual.every, settings.timezone)
        timeout_ns = duration_ns(settings.timeout, "timeout")
        deadline = time_of_day(settings.deadline, "deadline") if settings.deadline else None
        arguments = msgspec.convert(settings.arguments, kind.arguments, strict=False)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except msgspec.ValidationError as error:
        valid = ", ".join(field.encode_name for field in msgspec.structs.fields(kind.arguments)) or "none"
        raise ConfigError(f"{where}: arguments: {str(error).replace('$.', '')}. The arguments of {settings.job} are: {valid}.") from None
    names = dict.fromkeys(some.name for some in config.providers) if config is not None else {}
    mine = getattr(arguments, "provider", None)
    providers = [name for name in names if name in kind.providers and mine in (None, name)]
    return Job(name, kind, settings, schedule, timeout_ns, arguments, deadline, tuple(providers))
