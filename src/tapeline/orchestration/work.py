"""What each job does: it calls one task of `app.tasks`, and returns what was done as plain values. It holds no logic of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

from tapeline.app import tasks
from tapeline.app.history_jobs import Wanted
from tapeline.app.missing import day_ns, missing_days
from tapeline.config import Config
from tapeline.jobs.sync.pull import Pulled, Timing
from tapeline.orchestration.alerts import Alerts
from tapeline.orchestration.catalog import (
    BackfillArguments,
    CheckArguments,
    DayArguments,
    ExportArguments,
    HistoryArguments,
    NoArguments,
    RepairArguments,
    SymbolsArguments,
    SyncArguments,
    jobs_of,
)
from tapeline.orchestration.runs import Runs
from tapeline.orchestration.watching import watch

#: How long one of many pulls waits for a slow provider before it returns. The next one goes on waiting for the same requests.
_PULL_WAITS_S: Final = 1.0
#: How many of a job's latest runs are looked at.
_LOOKED_AT: Final = 2_000
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
    #: The record of the runs.
    runs: Runs
    #: The name of the job, under which its runs are recorded.
    job: str


def _backfill(work: Work, arguments: BackfillArguments) -> dict[str, Any]:
    wanted = Wanted(arguments.provider, arguments.symbols, arguments.channels, arguments.files)
    last = arguments.day or work.day
    first = arguments.history_from or (date.fromisoformat(work.config.history_from) if work.config.history_from else last)
    days = set[date]()
    events = pages = 0
    failed: list[str] = []
    for day, missing in missing_days(work.config, wanted, first, last, work.stop):
        for done in tasks.backfill(work.config, missing, _span(day), work.stop):
            events, pages = events + done.state.events, pages + done.state.pages
            failed += [f"{span.symbol} {span.channel}: {error}" for span, error in done.state.failed]
        days.add(day)
        work.progress({"day": str(day), "days": len(days), "pages": pages, "events": events})
        if work.stop.is_set():
            break
    return {"days": len(days), "pages": pages, "events": events, "failed": failed}


def _reconcile(work: Work, arguments: HistoryArguments) -> dict[str, Any]:
    compared = equal = filled = 0
    failed: list[str] = []
    different: list[str] = []
    unresolved: list[str] = []
    wanted = Wanted(arguments.provider, arguments.symbols, arguments.channels)
    day = arguments.day or work.day
    revised = [] if arguments.day else tasks.revised_days(work.config, _compared(work, arguments))
    for some in (day, *revised):
        where = "" if some == day else f", {some}"
        for one in tasks.reconcile(work.config, wanted, _span(some), work.stop):
            what = f"{one.key.symbol} {one.key.channel}"
            if isinstance(one, tasks.Failed):
                failed.append(f"{what}{where}: {one.error}")
                continue
            compared, equal, filled = compared + 1, equal + one.equal, filled + one.only_in_history
            different += [] if one.equal else [f"{what}{where}"]
            unresolved += [] if one.claimed else [f"{what}{where}"]
            work.progress({"day": str(some), "compared": compared, "equal": equal})
    return {
        "day": str(day),
        "revised": [str(some) for some in revised],
        "compared": compared,
        "equal": equal,
        "filled": filled,
        "different": different,
        "unresolved": unresolved,
        "failed": failed,
    }


def _compared(work: Work, arguments: HistoryArguments) -> dict[date, int]:
    """When each of the days before the day that is over was last compared successfully (ns, UTC); without those that never were.

    A run has compared the day that it is recorded for, and the days that it found revised. A run for another provider does not count."""
    days = {str(day): day for day in (work.day - timedelta(ago) for ago in range(1, arguments.revised + 1))}
    compared: dict[date, int] = {}
    for run in work.runs.of(work.job, _LOOKED_AT):
        day, _, provider = run.thing.partition(" ")
        if run.state == "succeeded" and provider in ("", arguments.provider):
            for some in days.keys() & {day, *run.result.get("revised", ())}:
                compared[days[some]] = max(run.started_ns, compared.get(days[some], 0))
    return dict(sorted(compared.items(), reverse=True))


def _sync(work: Work, arguments: SyncArguments) -> dict[str, Any]:
    return _pulled(work, tasks.sync(work.config, *_pulls(arguments), work.stop))


@contextmanager
def _syncing(work: Work, arguments: SyncArguments) -> Iterator[Callable[[], dict[str, Any]]]:
    wanted, timing = _pulls(arguments)
    with tasks.open_sync(work.config, wanted, timing, work.stop) as pulls:
        yield lambda: _pulled(work, pulls.pull(_PULL_WAITS_S))


def _pulls(arguments: SyncArguments) -> tuple[Wanted, Timing]:
    timing = Timing(*(arguments.ns(name) for name in ("overlap", "look_back", "furthest", "delay")))
    return Wanted(arguments.provider, arguments.symbols, arguments.channels), timing


def _pulled(work: Work, done: Iterable[Pulled]) -> dict[str, Any]:
    symbols = pages = events = 0
    failed: list[str] = []
    for one in done:
        symbols, pages, events = symbols + 1, pages + one.pages, events + one.events
        if one.error is not None:
            failed.append(f"{one.key.symbol} {one.key.channel}: {one.error}")
        work.progress({"pulled": symbols, "pages": pages, "events": events})
    return {"pulled": symbols, "pages": pages, "events": events, "failed": failed}


def _repair(work: Work, arguments: RepairArguments) -> dict[str, Any]:
    gaps = tasks.gaps_to_repair(work.config, arguments.symbols, arguments.provider)
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


def _symbols(work: Work, arguments: SymbolsArguments) -> dict[str, Any]:
    lists: list[dict[str, Any]] = []
    failed: list[str] = []
    totals = dict.fromkeys(("instruments", "listed", "delisted", "renamed", "changed"), 0)
    for one in tasks.symbols(work.config, work.stop, arguments.provider, accept_fewer=arguments.accept_fewer):
        if isinstance(one, tasks.FailedList):
            failed.append(f"{one.provider} {one.market}: {one.error}")
        else:
            lists.append(asdict(one))
            totals = {name: total + lists[-1][name] for name, total in totals.items()}
        work.progress(totals)
    return {**totals, "lists": lists, "failed": failed}


def _compact(work: Work, arguments: DayArguments) -> dict[str, Any]:
    done = tasks.compact(work.config, arguments.day or work.day, _of_table(work))
    return {"day": str(arguments.day or work.day), "tables": [_plain(asdict(one)) for one in done]}


def _prune(work: Work, arguments: NoArguments) -> dict[str, Any]:
    del arguments
    return {"removed": [_plain(asdict(one)) for one in tasks.prune(work.config, work.day + timedelta(1))]}


def _vacuum(work: Work, arguments: NoArguments) -> dict[str, Any]:
    del arguments
    return {"tables": [_plain(asdict(one)) for one in tasks.vacuum(work.config)]}


def _check_lake(work: Work, arguments: CheckArguments) -> dict[str, Any]:
    checked = tasks.check_lake(work.config, arguments.day, _of_table(work))
    problems = [f"{one.table}: {finding}" for one in checked for finding in one.findings]
    return {"tables": len(checked), "problems": problems, "failed": problems}


def _export(work: Work, arguments: ExportArguments) -> dict[str, Any]:
    day = arguments.day or work.day
    request = tasks.ExportRequest(arguments.symbol, _span(day), arguments.kind, arguments.channel, arguments.provider)
    folder = Path(arguments.to).expanduser() / f"{arguments.symbol.replace('/', '-')}-{day}"
    if (folder / f"date={day}").exists():
        return {"folder": str(folder), "rows": 0, "files": 0, "bytes": 0, "note": "it is there already"}
    done = tasks.export(work.config, request, folder, arguments.form, lambda rows, ns: work.progress({"rows": rows, "reached_ns": ns}))
    return {"folder": str(done.folder), "rows": done.rows, "files": done.files, "bytes": done.bytes}


def _span(day: date) -> tuple[int, int]:
    return day_ns(day), day_ns(day + timedelta(1))


def _of_table(work: Work) -> tasks.Progress:
    return lambda table, done, of: work.progress({"table": table, "rows": done, "of": of})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, (int, float, str, bool, type(None))) else str(value) for name, value in values.items()}


@contextmanager
def _watching(work: Work, arguments: NoArguments) -> Iterator[Callable[[], dict[str, Any]]]:
    del arguments
    with watch(work.config, jobs_of(work.config), work.runs, Alerts(work.runs.database), time.time_ns) as found:
        yield found.look


#: What each job does, by its name. Jobs that are usually repeated within a minute are in REPEATED.
WORK: Final[dict[str, Callable[[Work, Any], dict[str, Any]]]] = {
    "backfill": _backfill,
    "reconcile": _reconcile,
    "sync": _sync,
    "repair": _repair,
    "compact": _compact,
    "prune": _prune,
    "vacuum": _vacuum,
    "check_lake": _check_lake,
    "export": _export,
    "symbols": _symbols,
}

#: The jobs that may run more often than once a minute, by name. The context opens what the work needs, and gives a function that does it
#: once more and returns what it did. Call it as often as you like, in the same thread.
REPEATED: Final[dict[str, Callable[[Work, Any], AbstractContextManager[Callable[[], dict[str, Any]]]]]] = {
    "sync": _syncing,
    "check_sla": _watching,
}
