"""The commands that tell whether the data is complete."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
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
    from tapeline.ledger.answers import Answer
    from tapeline.ledger.facts import Interval, Key

#: How often `repair --follow` looks in the ledger for new gaps.
_LOOK_EVERY_S: Final = 3.0
#: The exit statuses of `complete`.
_STATUSES: Final = {"complete": 0, "incomplete": 1, "unprovable": 3}
_MARKS: Final = {"complete": ("yes", "bold green"), "incomplete": ("no", "bold red"), "unprovable": ("cannot be proven", "bold yellow")}
_DAY_NS: Final = 86_400 * NS_PER_S
#: Evidence that is younger than this counts as current.
_FRESH_NS: Final = 60 * NS_PER_S


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
    day: Annotated[str, typer.Argument(help="The UTC day, such as 2026-01-05.")],
    channel: Annotated[str | None, typer.Option(help="Only this channel, such as trade.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table or json.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Tell whether a symbol's day is complete. For each channel of the symbol, the answer is yes with the evidence, or no with the gaps.

    Status 0: yes. Status 1: no. Status 3: no gap is known, but the provider gives nothing that can prove the day complete. If the day is
    not over, the answer covers the time up to the last evidence, and names that time. If the last evidence is older than a minute, the
    answer covers the time up to now.

    Example: `tapeline complete BTC/USDT 2026-01-05`
    """
    from tapeline.app.ledgers import known_intervals
    from tapeline.ledger.answers import answer

    settings = load_config(config)
    start_ns = midnight_ns(day)
    end_ns = min(start_ns + _DAY_NS, max(start_ns, time.time_ns()))
    if end_ns == start_ns:
        raise ConfigError(f"{day} (UTC) has not begun. Use an earlier day.")
    of_symbol = known_intervals(settings, (symbol,), None)
    chosen = {k: f for k, f in of_symbol.items() if channel in (None, k.channel) and provider in (None, k.provider)}
    if not chosen:
        there = ", ".join(sorted({f"{key.provider} {key.feed} {key.channel}" for key in of_symbol}))
        raise ConfigError(f"The ledger has no such channel for {symbol}. It has: {there}.")
    answers = []
    for key, intervals in sorted(chosen.items()):
        until_ns = _so_far(intervals, start_ns, end_ns) if end_ns < start_ns + _DAY_NS else end_ns
        answers.append(answer(key, intervals, start_ns, until_ns))
        if format is TableOrJson.json:
            echo(json.dumps(_as_json(answers[-1], day, until_ns)))
        else:
            _show(answers[-1], day, until_ns if until_ns < start_ns + _DAY_NS else None)
    verdicts = {one.verdict for one in answers}
    raise typer.Exit(_STATUSES[next(some for some in ("incomplete", "unprovable", "complete") if some in verdicts)])


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


def _so_far(intervals: Iterable[Interval], start_ns: int, now_ns: int) -> int:
    """How far the answer reaches on a day that is not over: to the last evidence, or to now if that is old or is followed by a gap."""
    from tapeline.ledger.intervals import COVERED

    begun = [one for one in intervals if one.start_ns < now_ns]
    there = [one for one in begun if one.state in COVERED]
    # If events are numbered, only the next number can tell whether anything came after the last one.
    counted = any(one.state == "proven" for one in there)
    evidence = [one for one in there if not counted or one.state != "unprovable"]
    reached_ns = min(max((one.end_ns for one in evidence), default=start_ns), now_ns)
    missing = any(one.state not in COVERED and one.end_ns > reached_ns for one in begun)
    return reached_ns if reached_ns > max(start_ns, now_ns - _FRESH_NS) and not missing else now_ns


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


def _show(one: Answer, day: str, until_ns: int | None) -> None:
    """`until_ns`: the time up to which the answer holds, if the day is not over."""
    mark, style = _MARKS[one.verdict]
    console = Output(highlight=False)
    so_far = f" up to {text(until_ns)[11:]}" if until_ns is not None else ""
    what = f"{one.key.symbol} {day}, {one.key.provider} {one.key.feed} {one.key.channel}, complete{so_far}: "
    console.print(Text.assemble(what, (mark, style)), soft_wrap=True)
    for interval in one.holes or one.intervals:
        line = f"  {text(interval.start_ns)} to {text(interval.end_ns)}  {interval.state}: {interval.evidence}"
        console.print(Text(line), soft_wrap=True)


def _as_json(one: Answer, day: str, until_ns: int) -> dict[str, Any]:
    return one.key._asdict() | {
        "day": day,
        "until_ns": until_ns,
        "verdict": one.verdict,
        "intervals": [asdict(interval) for interval in one.intervals],
    }


def _length(ns: int) -> str:
    seconds = ns / NS_PER_S
    if seconds < 600:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 36_000 else f"{seconds / 3600:,.1f} h"
