"""The record of alerts: each is raised once, reminded of, and resolved once, whoever looks and however often.

What must still be sent is part of the record. So a look that was killed before it sent a message is followed by one that sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from tapeline.orchestration.database import Database, Transaction
from tapeline.records import NS_PER_S

#: How many alerts that are over are kept.
KEPT: Final = 10_000
#: A message that could not be sent is sent again after this time.
_AGAIN_NS: Final = 60 * NS_PER_S

What = Literal["raised", "reminder", "resolved"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A promise that is broken, or a job that is late."""

    #: The name of the promise, or `job NAME`.
    name: str
    #: What is wrong, with figures.
    text: str
    #: The page and heading of the documentation that says what to do.
    runbook: str
    #: Who is told: names of [[notify]] blocks.
    receivers: tuple[str, ...] = ()
    #: How often they are reminded, in ns.
    remind_ns: int = 4 * 3_600 * NS_PER_S


class Told(msgspec.Struct):
    """What a receiver was told last, when (ns, UTC), and whether that was delivered."""

    what: What = "raised"
    at_ns: int = 0
    delivered: bool = False


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. Times are ns, UTC."""

    id: int
    name: str
    raised_ns: int
    #: When the problem was last seen.
    seen_ns: int
    #: When it was over; None while it is open.
    resolved_ns: int | None
    text: str
    runbook: str
    receivers: tuple[str, ...]
    told: Mapping[str, Told]


@dataclass(frozen=True, slots=True)
class Message:
    """Something that a receiver must be told."""

    receiver: str
    what: What
    alert: Alert


#: Sends a message. Returns an empty text, or why it could not be delivered.
Send = Callable[[Message], str]


class Alerts:
    """The record of alerts in a database. Its methods raise what the database raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def raise_(self, problem: Problem) -> None:
        """Open an alert, or note that it is still a problem."""
        with self._database.transaction() as kept:
            _raise(kept, problem)

    def resolve(self, name: str) -> bool:
        """Note that a problem is over. Return False if there was none of this name."""
        with self._database.transaction() as kept:
            statement = "UPDATE tapeline_alerts SET resolved_ns = ? WHERE name = ? AND resolved_ns IS NULL RETURNING id"
            return bool(kept.rows(statement, (kept.now_ns, name)))

    def settle(self, problems: Sequence[Problem], over: Iterable[str]) -> None:
        """Note, in one step, which problems there are, and which are over. Others stay as they are: they could not be looked up."""
        with self._database.transaction() as kept:
            for problem in problems:
                _raise(kept, problem)
            for name in over:
                kept.rows("UPDATE tapeline_alerts SET resolved_ns = ? WHERE name = ? AND resolved_ns IS NULL", (kept.now_ns, name))
            kept.rows(
                "DELETE FROM tapeline_alerts WHERE resolved_ns IS NOT NULL AND id <= (SELECT max(id) FROM tapeline_alerts) - ?", (KEPT,)
            )

    def latest(self, limit: int = 50) -> list[Alert]:
        """Return the open alerts and the latest of those that are over, the open ones first, then the latest first."""
        if not self._database.exists():
            return []
        with self._database.transaction() as kept:
            return _rows(kept, "ORDER BY resolved_ns IS NOT NULL, raised_ns DESC, id DESC LIMIT ?", (limit,))

    def open(self) -> list[Alert]:
        """Return the open alerts, the earliest first."""
        if not self._database.exists():
            return []
        with self._database.transaction() as kept:
            return _rows(kept, "WHERE resolved_ns IS NULL ORDER BY raised_ns, id", ())

    def tell(self, send: Send, remind_ns: Mapping[str, int]) -> None:
        """Send what must be sent, and note what was delivered. `remind_ns`: name to how often its receivers are reminded.

        A message is noted before it is sent, so of several that tell at once, one sends it. If that one is killed before it has noted the
        delivery, the message is sent again after a minute."""
        with self._database.transaction() as kept:
            alerts = _rows(kept, "WHERE resolved_ns IS NULL OR resolved_ns > ? ORDER BY id", (kept.now_ns - _TOLD_WITHIN_NS,))
            now_ns = kept.now_ns
        for alert in alerts:
            period_ns = remind_ns.get(alert.name, _REMIND_NS)
            needed = {receiver: due(alert, alert.told.get(receiver), now_ns, period_ns) for receiver in alert.receivers}
            begun = {receiver: Told(what, now_ns) for receiver, what in needed.items() if what is not None}
            if begun and self._note(alert.id, alert.told, {**alert.told, **begun}):
                done = {
                    receiver: Told(one.what, now_ns, delivered=not send(Message(receiver, one.what, alert)))
                    for receiver, one in begun.items()
                }
                self._note(alert.id, {**alert.told, **begun}, {**alert.told, **done})

    def _note(self, alert: int, before: Mapping[str, Told], after: Mapping[str, Told]) -> bool:
        """Note what receivers were told. Return False if another process has noted something meanwhile."""
        texts = [msgspec.json.encode(told).decode() for told in (after, before)]
        with self._database.transaction() as kept:
            changed = kept.rows("UPDATE tapeline_alerts SET sent = ? WHERE id = ? AND sent = ? RETURNING id", (texts[0], alert, texts[1]))
            return bool(changed)


_REMIND_NS: Final = 4 * 3_600 * NS_PER_S
#: That a problem is over is told for so long at most, if the message cannot be delivered.
_TOLD_WITHIN_NS: Final = 24 * 3_600 * NS_PER_S


def due(alert: Alert, told: Told | None, now_ns: int, remind_ns: int) -> What | None:
    """Return what a receiver must be told of an alert now, or None. Pure."""
    if told is not None and not told.delivered and now_ns < told.at_ns + _AGAIN_NS:
        return None
    if alert.resolved_ns is not None:
        heard = told is not None and (told.delivered or told.what != "raised")
        return "resolved" if heard and told is not None and (told.what != "resolved" or not told.delivered) else None
    if told is None or (told.what == "raised" and not told.delivered):
        return "raised"
    return "reminder" if not told.delivered or now_ns >= told.at_ns + remind_ns else None


def _raise(kept: Transaction, problem: Problem) -> None:
    found = kept.rows(
        "UPDATE tapeline_alerts SET seen_ns = ?, text = ? WHERE name = ? AND resolved_ns IS NULL RETURNING id",
        (kept.now_ns, problem.text, problem.name),
    )
    if not found:
        values = (problem.name, kept.now_ns, kept.now_ns, problem.text, problem.runbook, msgspec.json.encode(problem.receivers).decode())
        kept.rows(
            "INSERT INTO tapeline_alerts (name, raised_ns, seen_ns, text, runbook, receivers, sent) VALUES (?, ?, ?, ?, ?, ?, '{}')"
            " ON CONFLICT DO NOTHING",
            values,
        )


def _rows(kept: Transaction, rest: str, values: Sequence[int]) -> list[Alert]:
    """Read alerts. `rest`: the end of the statement, one of this module's own."""
    columns = "id, name, raised_ns, seen_ns, resolved_ns, text, runbook, receivers, sent"
    return [_alert(row) for row in kept.rows(f"SELECT {columns} FROM tapeline_alerts {rest}", values)]  # noqa: S608 fixed


def _alert(row: tuple[Any, ...]) -> Alert:
    number, name, raised_ns, seen_ns, resolved_ns, text, runbook, receivers, sent = row
    who, told = msgspec.json.decode(receivers, type=tuple[str, ...]), msgspec.json.decode(sent, type=dict[str, Told])
    return Alert(number, name, raised_ns, seen_ns, resolved_ns, text, runbook, who, told)
