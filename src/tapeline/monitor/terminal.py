"""Shows the pipeline's health on a terminal as live tables, and elsewhere as a plain line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tapeline.local.clock import Leap
from tapeline.local.console import printable
from tapeline.records import NS_PER_S

_REFRESH_S: Final = 0.5
#: A narrower terminal cannot hold the table.
_LEAST_COLUMNS: Final = 60
#: Each stage reports about once a second. After this long without a report, it waits for something, or cannot write its status.
_LONG_S: Final = 15.0


class Screen:
    """Shows the snapshots that `look` returns: every 0.5 s as tables on a terminal, otherwise every `line_every_s` seconds as a line."""

    def __init__(self, console: Console, look: Callable[[], Mapping[str, Any]], line_every_s: float) -> None:
        self._console = console
        self._look = look
        self._every_s = line_every_s
        self._due = time.monotonic() + min(2.0, line_every_s)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and self._console.width >= _LEAST_COLUMNS:
            self._due, self._every_s = 0.0, _REFRESH_S
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def tick(self) -> None:
        """Update the display if that is due. Call it often."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._every_s
            self._show()

    def say(self, text: str) -> None:
        """Print another message, above the tables."""
        self._console.print(Text(text), soft_wrap=True)

    def _show(self) -> None:
        seen = self._look()
        if self._live is not None:
            self._live.update(tables(seen), refresh=True)
        else:
            self.say(line(seen))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            if kind is None:
                self._show()
            self._live.stop()


def tables(snapshot: Mapping[str, Any]) -> RenderableType:
    """The snapshot as tables, one below the other: providers, stages, backlog, problems, and the accounting at the end."""
    return Group(
        _providers(snapshot),
        *_elsewhere(snapshot),
        *_problems(snapshot),
        *_lines(snapshot),
        _stages(snapshot),
        _backlog(snapshot),
        *_spool(snapshot),
        *_forgotten(snapshot),
        *_clock(snapshot),
        *_upkeep(snapshot),
        *_gaps(snapshot),
        *_accounting(snapshot),
    )


def _providers(snapshot: Mapping[str, Any]) -> Table:
    table = Table(title="providers", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("provider", "up", "ticks/s", "p50 ms", "p99 ms", "ticks", "bars", "rejects", "reconnects"):
        table.add_column(name, justify="left" if name == "provider" else "right", no_wrap=True)
    for name, p in snapshot["providers"].items():
        up = f"{p['connected']}/{p['lines']}"
        table.add_row(
            name,
            Text(up, style="green" if p["lines"] and p["connected"] == p["lines"] else "red"),
            f"{p['ticks_per_s']:,.0f}",
            _ms(p["p50_ms"]),
            _ms(p["p99_ms"]),
            f"{p['ticks']:,}",
            f"{p['bars']:,}",
            f"{p['rejected']:,}",
            f"{p['reconnects']:,}",
        )
    return table


def _elsewhere(snapshot: Mapping[str, Any]) -> list[Text]:
    """A note about partitions that no worker of this run reads. The rates in the table above do not include them."""
    one = snapshot["elsewhere"]
    if one is None:
        return []
    text = f"{one['partitions']} of {one['of']} partitions are not read by this run: another run on the same stream reads them, or a "
    return [Text(f"{text}rebalance is under way. ticks/s and latencies leave them out; the counts include them", style="yellow")]


def _problems(snapshot: Mapping[str, Any]) -> list[Text]:
    """The problems of each provider, each on its own line, because the text may be long."""
    problems = [Text(printable(f"{name}: {p['problem']}"), style="yellow") for name, p in snapshot["providers"].items() if p["problem"]]
    problems += [
        Text(f"{name}: {p['inexact']:,} prices and sizes have more digits than float64 holds; the raw topic keeps them all", style="yellow")
        for name, p in snapshot["providers"].items()
        if p["inexact"]
    ]
    return problems + [
        Text(f"{name}: {p['suspect']:,} impossible bars are stored as they came (see the view `suspects`)", style="yellow")
        for name, p in snapshot["providers"].items()
        if p["suspect"]
    ]


def _lines(snapshot: Mapping[str, Any]) -> list[Table]:
    """A table that compares the lines that carry the same events; nothing if there are no such lines."""
    if not snapshot["lines"]:
        return []
    table = Table(title="\nlines that carry the same events", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("line", "up", "events", "first", "missed", "lag p50 ms", "lag p99 ms", "reconnects"):
        table.add_column(name, justify="left" if name == "line" else "right", no_wrap=True)
    for name, one in snapshot["lines"].items():
        table.add_row(
            name,
            Text("yes", style="green") if one["connected"] else Text("no", style="red"),
            *(f"{one[part]:,}" for part in ("events", "first", "missed")),
            *(_ms(one[part]) for part in ("lag_p50_ms", "lag_p99_ms")),
            f"{one['reconnects']:,}",
        )
    return [table]


def _stages(snapshot: Mapping[str, Any]) -> Table:
    table = Table(title="\nstages", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "running", "uptime", "decodes with"):
        table.add_column(name, justify="right" if name in ("running", "uptime") else "left", no_wrap=True)
    for name, stage in snapshot["stages"].items():
        running = Text("yes", style="green") if stage["running"] else Text("no", style="red")
        parts = [f"{stage['uptime_s']:,.0f} s"] if stage["running"] else []
        if not stage["running"] or stage["silent_s"] > _LONG_S:
            parts.append(f"silent for {stage['silent_s']:,.0f} s")
        table.add_row(name, running, Text(", ".join(parts), style="yellow" if len(parts) > 1 else ""), stage["decoder"])
    return table


def _backlog(snapshot: Mapping[str, Any]) -> Table:
    """A table of the backlog of each group and topic, with the count of each partition."""
    table = Table(title="\nbacklog", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("group", "topic", "records", "by partition"):
        table.add_column(name, justify="right" if name == "records" else "left", no_wrap=name != "by partition")
    waiting: dict[tuple[str, str], list[int]] = {}
    for entry in snapshot["backlog"]:
        waiting.setdefault((entry["group"], entry["topic"]), []).append(entry["records"])
    for (group, topic), records in waiting.items():
        table.add_row(group, topic, f"{sum(records):,}", " ".join(f"{count:,}" for count in records) if len(records) > 1 else "")
    return table


def _spool(snapshot: Mapping[str, Any]) -> list[Text]:
    """How many records wait in ingest's spool on disk, and how many were dropped."""
    spool = snapshot["spool"]
    lines = []
    if spool["spooled"]:
        lines.append(
            Text(
                f"\nspool: {spool['spooled']:,} records ({spool['spooled_bytes'] / 1e6:,.1f} MB) wait on disk for the stream",
                style="yellow",
            )
        )
    if spool["dropped"]:
        lines.append(Text(f"\ndropped: {spool['dropped']:,} records are lost because the spool was full", style="bold red"))
    return lines


def _forgotten(snapshot: Mapping[str, Any]) -> list[Text]:
    """Where the stream lost records before a stage read them, since the stage was started."""
    return [
        Text(
            f"\nforgotten: {one['topic']} {one['partition']} began anew before {one['stage']} had read all of it, "
            f"noticed at {_moment(one['noticed_ns'])} (see `tapeline gaps`)",
            style="bold red",
        )
        for one in snapshot["forgotten"]
    ] + [
        Text(
            f"\nforgotten: {topic} {partition} ends before the position of {stage}: set the clock right, then start again", style="bold red"
        )
        for stage, topic, partition in snapshot["ahead"]
    ]


def _clock(snapshot: Mapping[str, Any]) -> list[Text]:
    """The leaps of this machine's clock since ingest was started, and its offset from a provider's clock."""
    lines = [Text(f"\nclock: at {_moment(one['before_ns'])} {Leap(**one)} (tapeline gaps)", style="bold red") for one in snapshot["leaps"]]
    for name, provider in snapshot["providers"].items():
        if (off_s := provider["clock_off_s"]) is not None:
            text = f"clock: {name}'s times are {abs(off_s):,.1f} s {'behind' if off_s > 0 else 'ahead of'} this machine's"
            lines.append(Text(f"\n{text}: synchronize the clock with NTP", style="yellow"))
    return lines


def _moment(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / NS_PER_S, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _upkeep(snapshot: Mapping[str, Any]) -> list[Text]:
    """The upkeep of each store: whether it runs, or the result of the last run."""
    texts = []
    for name, one in snapshot["upkeep"].items():
        ended = _moment(one["ended_ns"]) if "ended_ns" in one else ""
        if one["since_ns"] is not None and snapshot["stages"][name]["running"]:
            texts.append(Text(f"\n{name}: being tidied since {_moment(one['since_ns'])}", style="green"))
        elif "failed" in one:
            texts.append(Text(printable(f"\n{name}: could not be tidied: {one['failed']} ({ended})"), style="yellow"))
        elif "done" in one:
            texts.append(Text(printable(f"\n{name}: {one['done']} ({ended})"), style="green"))
    return texts


def _gaps(snapshot: Mapping[str, Any]) -> list[Text]:
    """The number of known gaps by state; nothing if no ledger is kept."""
    if snapshot["gaps"] is None:
        return []
    if snapshot["passed_over"]:
        return [Text(f"\ngaps: unknown: the ledger could not process {snapshot['passed_over']:,} records (see its log)", style="bold red")]
    counted = ", ".join(f"{count:,} {state}" for state, count in snapshot["gaps"].items())
    return [Text(f"\ngaps: {counted} (tapeline gaps)", style="yellow") if counted else Text("\ngaps: none known", style="green")]


def _accounting(snapshot: Mapping[str, Any]) -> list[Text]:
    lines = [Text("\naccounting (in = out + duplicates + rejected)", style="italic")]
    lines += [Text(entry["text"], style="" if entry["balanced"] else "bold red") for entry in snapshot["equations"]]
    return lines


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def line(snapshot: Mapping[str, Any]) -> str:
    """The snapshot as one line for a log: the rates and counts of each provider, the backlog, and whether the accounting balances."""
    parts = [
        f"{name} {p['ticks_per_s']:,.0f}/s p99 {_ms(p['p99_ms']) or '-'} ms ({p['ticks']:,} ticks, {p['rejected']:,} rejects,"
        f" {p['reconnects']} reconnects)"
        for name, p in snapshot["providers"].items()
    ]
    if (one := snapshot["elsewhere"]) is not None:
        parts.append(f"{one['partitions']} of {one['of']} partitions not read here")
    backlog = sum(entry["records"] for entry in snapshot["backlog"])
    balanced = "balanced" if all(entry["balanced"] for entry in snapshot["equations"]) else "NOT BALANCED"
    return f"{' | '.join(parts) or 'no data yet'} | backlog {backlog:,} | {balanced}"
