"""The commands that tell whether the data is complete."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import date
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from msgspec.structs import asdict
from rich.text import Text

from tapeline.cli.app import app
from tapeline.cli.terminal import (
    ConfigOption,
    Format,
    TableOrJson,
    echo,
    load_config,
    midnight_ns,
    own_stage,
    reader_may_leave,
    stop_on_signal,
)
from tapeline.config import Config, environment
from tapeline.errors import ConfigError
from tapeline.local.console import Output
from tapeline.records import NS_PER_S
from tapeline.telemetry.status import StatusFile
from tapeline.times import text

if TYPE_CHECKING:
    from tapeline.ledger.answers import Answer, Verdict
    from tapeline.ledger.facts import Interval, Key
    from tapeline.ledger.sessions import SessionAnswer

#: How often `repair --follow` looks in the ledger for new gaps.
_LOOK_EVERY_S: Final = 3.0
#: The exit statuses of `complete`. The first verdict that any channel has decides.
_STATUSES: Final[dict[Verdict, int]] = {"incomplete": 1, "unprovable": 3, "complete": 0, "closed": 0}
_MARKS: Final[dict[Verdict, tuple[str, str]]] = {
    "complete": ("yes", "bold green"),
    "incomplete": ("no", "bold red"),
    "unprovable": ("cannot be proven", "bold yellow"),
}
_DAY_NS: Final = 86_400 * NS_PER_S


@app.command()
def gaps(
    symbol: Annotated[list[str] | None, typer.Option(help="Only this symbol (canonical, such as BTC/USDT); repeatable.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only gaps that end after this moment: ISO 8601 with zone, a date, or ns since 1970.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="table, csv, json or parquet.")] = Format.table,  # noqa: A002
) -> None:
    """List all known gaps: for each symbol and channel, the periods in which data is missing or may be missing.

    Status 0: there are no gaps. Status 1: there are some.

    Example: `tapeline gaps --symbol BTC/USDT --since 2026-01-05`
    """
    import pyarrow as pa

    from tapeline import times
    from tapeline.app.ledgers import known_intervals
    from tapeline.ledger import INTERVALS
    from tapeline.ledger.intervals import MISSING
    from tapeline.local.output import write

    settings = load_config(config)
    since_ns = times.parse(since, "--since") if since is not None else None
    rows: list[dict[str, Any]] = []
    for key, intervals in known_intervals(settings, symbol or (), provider, MISSING).items():
        rows += [_row(key, one) for one in intervals if since_ns is None or one.end_ns > since_ns]
    if format is Format.table:
        if rows:
            _show_gaps(rows)
        else:
            echo("No known gaps." if not (symbol or since or provider) else "No matching gaps.")
    else:
        with reader_may_leave():
            write(pa.Table.from_pylist(rows, INTERVALS), format.value, None)
    raise typer.Exit(1 if rows else 0)


@app.command()
def complete(
    symbol: Annotated[str, typer.Argument(help="The canonical symbol, such as BTC/USDT or AAPL.")],
    day: Annotated[str, typer.Argument(help="The UTC day, such as 2026-01-05. With --session, the date of the session at its exchange.")],
    channel: Annotated[str | None, typer.Option(help="Only this channel, such as trade.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    session: Annotated[
        bool, typer.Option("--session", help="Answer for the regular session of the market on that day, not for the UTC day.")
    ] = False,
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table or json.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Tell whether a symbol's day is complete. For each channel of the symbol, the answer is yes with the evidence, or no with the gaps.

    Status 0: yes. Status 1: no. Status 3: no gap is known, but the provider gives nothing that can prove the day complete. If the day is
    not over, the answer covers the time up to the last evidence, and names that time. If the last evidence is older than a minute, the
    answer covers the time up to now.

    With --session, the answer covers the session and the quarter of an hour after its close. On a day on which the market is closed, the
    answer says so, and the status is 0. Without it, a line tells if all gaps of the day are outside the session.

    Example: `tapeline complete AAPL 2026-01-05 --session`
    """
    from tapeline.app.ledgers import known_intervals

    settings = load_config(config)
    now_ns = time.time_ns()
    if midnight_ns(day) >= now_ns and not session:
        raise ConfigError(f"{day} (UTC) has not begun. Use an earlier day.")
    of_symbol = known_intervals(settings, (symbol,), None)
    chosen = {k: f for k, f in of_symbol.items() if channel in (None, k.channel) and provider in (None, k.provider)}
    if not chosen:
        there = ", ".join(sorted({f"{key.provider} {key.feed} {key.channel}" for key in of_symbol}))
        raise ConfigError(f"The ledger has no such channel for {symbol}. It has: {there}.")
    show = _show_session if session else _show_day
    verdicts = {show(key, intervals, day, now_ns, format) for key, intervals in sorted(chosen.items())}
    raise typer.Exit(next(status for verdict, status in _STATUSES.items() if verdict in verdicts))


@app.command()
def repair(
    symbol: Annotated[list[str] | None, typer.Option(help="Only this symbol (canonical, such as BTC/USDT); repeatable.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the gaps that would be filled, and request nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Keep running, and fill gaps as they open, as `tapeline run` does.")] = False,
    config: ConfigOption = None,
) -> None:
    """Fill gaps from the provider's history. The command requests the missing events and sends the pages through the stream.

    Binance: trade, aggTrade and klines. Polygon and Alpaca: trades, quotes and bars, by the time of the gap. `tapeline normalize`, the
    stores and the ledger must be running, or be started afterwards. If the history lacks an event too, the ledger then reports the gap
    as unrecoverable. A call that is killed or repeated duplicates nothing. Status 1: some gaps could not be requested. They are named,
    and all others were requested.

    Example: `tapeline repair --symbol BTC/USDT --dry-run`
    """
    from tapeline.app import tasks

    settings = load_config(config)
    if follow:
        _keep_repairing(settings)
        return
    gaps = tasks.gaps_to_repair(settings, symbol or (), provider)
    if not gaps:
        echo("No known gap can be filled from a provider's history.")
        return
    if dry_run:
        _show_gaps([_row(gap.key, gap.interval) for gap in gaps])
        return
    failed = False
    for done in tasks.repair(settings, gaps):
        if isinstance(done, tasks.Failed):
            failed = True
            echo(f"{done.key.symbol} {done.key.channel}: {done.error}", err=True)
        else:
            echo(str(done))
    raise typer.Exit(1 if failed else 0)


def _keep_repairing(settings: Config) -> None:
    from tapeline.app.histories import open_histories
    from tapeline.app.ledgers import open_ledger
    from tapeline.app.streams import open_stream
    from tapeline.jobs.repair import REQUESTED_STATES, GapRepairer
    from tapeline.ledger import read_intervals
    from tapeline.retry import loop
    from tapeline.retry.backoff import backoff

    stop, random = stop_on_signal(with_parent=True), Random()
    with own_stage(settings, "repair", stop):
        stream, ledger = open_stream(settings), open_ledger(settings)
        stage = GapRepairer(
            stream,
            lambda: read_intervals(ledger.intervals(states=REQUESTED_STATES)),
            open_histories(settings, environment(), random, stop.wait),
            StatusFile(settings.root, "repair"),
            stop,
            time.time_ns,
        )
        loop.run(stage.step, stop, rest_s=_LOOK_EVERY_S, waits=lambda: backoff(random, cap_s=60.0))
        stage.finish()
        stream.close()


def _row(key: Key, one: Interval) -> dict[str, Any]:
    from tapeline.ledger.facts import ONGOING

    return key._asdict() | asdict(one) | {"end_ns": None if one.end_ns == ONGOING else one.end_ns}


def _show_gaps(rows: list[dict[str, Any]]) -> None:
    """Print two lines for each gap: its time, length and channel; then its evidence."""
    console = Output(highlight=False)
    for row in sorted(rows, key=lambda row: (row["start_ns"], row["symbol"], row["channel"])):
        length = "ongoing" if row["end_ns"] is None else _length(row["end_ns"] - row["start_ns"])
        what = f"{row['symbol']}, {row['provider']} {row['feed']} {row['channel']}"
        console.print(Text.assemble(f"{text(row['start_ns'])}  {length:>10}  ", (row["state"], "bold red"), f"  {what}"), soft_wrap=True)
        console.print(Text(f"    {row['evidence']}", "dim"), soft_wrap=True)


def _show_day(key: Key, intervals: Sequence[Interval], day: str, now_ns: int, format: TableOrJson) -> Verdict:  # noqa: A002
    """Print whether the UTC day is complete, and return the verdict."""
    from tapeline.ledger.answers import answer, reached
    from tapeline.ledger.sessions import calendar_of, session_answer

    start_ns = midnight_ns(day)
    over = start_ns + _DAY_NS <= now_ns
    until_ns = start_ns + _DAY_NS if over else reached(intervals, start_ns, now_ns)
    of_day = answer(key, intervals, start_ns, until_ns)
    session: SessionAnswer | str | None = None
    if calendar_of(key) and (format is TableOrJson.json or of_day.verdict == "incomplete"):
        try:
            session = session_answer(key, intervals, date.fromisoformat(day), now_ns)
        except ConfigError as error:  # the answer for the day is no worse without it
            session = str(error)
    if format is TableOrJson.json:
        echo(json.dumps(_as_json(of_day, day, until_ns, session)))
    else:
        _show(of_day, day, "" if over else f" up to {text(until_ns)[11:]}", _about_session(session, day))
    return of_day.verdict


def _show_session(key: Key, intervals: Sequence[Interval], day: str, now_ns: int, format: TableOrJson) -> Verdict:  # noqa: A002
    """Print whether the session of the day is complete, and return the verdict."""
    from tapeline.ledger.sessions import session_answer

    session = session_answer(key, intervals, date.fromisoformat(day), now_ns)
    if format is TableOrJson.json:
        echo(json.dumps(_as_json(session.answer, day, session.until_ns, session)))
        return session.answer.verdict
    if session.until_ns is None:
        echo(f"{key.symbol} {day}, {key.provider} {key.feed} {key.channel}: {_closed(session)}")
        return session.answer.verdict
    so_far = "" if session.over else f" up to {text(session.until_ns)[11:]}"
    hours = _hours(session, day) if session.calendar else "the whole UTC day, because this market never closes"
    _show(session.answer, f"{day} session ({hours})", so_far)
    return session.answer.verdict


def _about_session(session: SessionAnswer | str | None, day: str) -> str:
    """Return a line about the session of a day that has gaps. It is empty if the session has gaps too."""
    if session is None or isinstance(session, str):
        return f"Whether the session of this day is complete is not known: {session}" if session else ""
    said = {
        "closed": f"{_closed(session)}: all gaps are outside its sessions.",
        "complete": f"The session ({_hours(session, day)}) is complete: all gaps are outside it.",
        "unprovable": f"The session ({_hours(session, day)}) has no known gap, but cannot be proven complete: all gaps are outside it.",
    }
    return said.get(session.answer.verdict, "")


def _closed(session: SessionAnswer) -> str:
    return f"The market was closed ({session.calendar} has no session on this date)"


def _hours(session: SessionAnswer, day: str) -> str:
    """When the market is open, such as `14:30 to 21:00 UTC`. A time of another UTC day has its date."""
    shown = [tuple(moment[11:16] if (moment := text(at)).startswith(day) else moment[:16] for at in period) for period in session.periods]
    return f"{' and '.join(f'{start} to {end}' for start, end in shown)} UTC"


def _show(one: Answer, day: str, so_far: str, note: str = "") -> None:
    """`so_far`: the time up to which the answer holds, if the day is not over. `note`: a line below the verdict."""
    mark, style = _MARKS[one.verdict]
    console = Output(highlight=False)
    what = f"{one.key.symbol} {day}, {one.key.provider} {one.key.feed} {one.key.channel}, complete{so_far}: "
    console.print(Text.assemble(what, (mark, style)), soft_wrap=True)
    if note:
        console.print(Text(f"  {note}"), soft_wrap=True)
    for interval in one.holes or one.intervals:
        line = f"  {text(interval.start_ns)} to {text(interval.end_ns)}  {interval.state}: {interval.evidence}"
        console.print(Text(line), soft_wrap=True)


def _as_json(one: Answer, day: str, until_ns: int | None, session: SessionAnswer | str | None) -> dict[str, Any]:
    """`session`: null if the market never closes; the reason if nothing is known of the session."""
    from tapeline.ledger.sessions import calendar_of

    about: dict[str, Any] | None = None
    if isinstance(session, str):
        about = {"calendar": calendar_of(one.key), "periods": [], "verdict": "unknown", "reason": session}
    elif session is not None and session.calendar:
        about = {"calendar": session.calendar, "periods": session.periods, "verdict": session.answer.verdict}
    return one.key._asdict() | {
        "day": day,
        "until_ns": until_ns,
        "verdict": one.verdict,
        "intervals": [asdict(interval) for interval in one.intervals],
        "session": about,
    }


def _length(ns: int) -> str:
    seconds = ns / NS_PER_S
    if seconds < 600:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 36_000 else f"{seconds / 3600:,.1f} h"
