"""Two lines that carry the same events: the first copy of each is a frame, a later one is marked, and both lines are measured.

Here both sockets meet, and what has been seen is kept for exactly as long as the sockets live. So a crash takes nothing that would be
needed after it: whoever comes next has new sockets, and on them every event is new. Both lines write into one partition, in one order:
wherever that ends, no later copy is there without the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from tapeline.net.listener import Recorder
from tapeline.providers.session import Plan
from tapeline.records import NS_PER_S, RawKind
from tapeline.telemetry.status import Latencies

#: What a line has not brought so long after the other one, it has missed; and past so many events the oldest is not waited for.
_WINDOW_S: Final = 30.0
_MOST: Final = 131_072
#: Lags that are gathered before they are handed on together.
_LAGS: Final = 4_096
#: The records that say what has become of a socket.
_TURNS: Final = frozenset({"opened", "subscribed", "closed"})


@dataclass(slots=True)
class _Side:
    """One of the two lines, by what it has brought."""

    bit: int
    events: int = 0
    first: int = 0
    missed: int = 0
    #: By how much (ns) each of its events came behind the first copy: 0 where it brought that itself.
    lags: list[int] = field(default_factory=list)
    latencies: Latencies = field(default_factory=Latencies)
    #: Its sockets that are open.
    open: list[str] = field(default_factory=list)

    def brought(self, lag_ns: int) -> None:
        self.events += 1
        self.lags.append(lag_ns)
        if len(self.lags) >= _LAGS:
            self.hand_on()

    def hand_on(self) -> None:
        if self.lags:
            self.latencies.add(np.array(self.lags, np.int64))
            self.lags.clear()


class Arbitration:
    """The recorder of both lines of a pair, in front of the one that keeps."""

    def __init__(
        self, recorder: Recorder, plans: Sequence[Plan], refused: Callable[[], int], window_s: float = _WINDOW_S, most: int = _MOST
    ) -> None:
        """`refused`: how many records could not be kept so far, as `Delivery.refused`."""
        self._recorder = recorder
        self._refused = refused
        self._refused_before = refused()
        self._window_ns = int(window_s * NS_PER_S)
        self._most = most
        self._sides = {plan.name: _Side(1 << at) for at, plan in enumerate(plans)}
        #: What an event is by, to when it came first (ns) << 2 | who has brought it.
        self._seen: dict[bytes, int] = {}
        self._order: deque[bytes] = deque()

    def on_pause(self, pause: Callable[[bool], None]) -> None:
        self._recorder.on_pause(pause)

    def record(self, plan: Plan, connection: str, kind: RawKind, received_ns: int, payload: bytes) -> None:
        if kind == "frame":
            kind = self._arrived(plan, received_ns, payload)
        elif kind in _TURNS:
            payload = self._turned(plan, connection, kind, payload)
        self._recorder.record(plan, connection, kind, received_ns, payload)

    def report(self, now_ns: int) -> dict[str, dict[str, Any]]:
        """Of each line, by its name: the events that it has brought, with how many it was the first, how many it has missed, and by how
        much (ms) it was behind the first, over the last seconds."""
        self._settle(now_ns)
        found = {}
        for name, side in self._sides.items():
            side.hand_on()
            lag = {"lag_p50_ms": side.latencies.ms(0.50), "lag_p99_ms": side.latencies.ms(0.99)}
            found[name] = {"events": side.events, "first": side.first, "missed": side.missed, **lag}
        return found

    def _arrived(self, plan: Plan, received_ns: int, payload: bytes) -> RawKind:
        content = plan.content(payload) if plan.content is not None else None
        if content is None:
            return "frame"
        if self._refused() != self._refused_before:  # first copies may be among what was not kept: no later one is passed over for them
            self._refused_before = self._refused()
            self._seen.clear()
            self._order.clear()
        side = self._sides[plan.name]
        known = self._seen.get(content)
        if known is None:
            self._seen[content] = received_ns << 2 | side.bit
            self._order.append(content)
            side.first += 1
            side.brought(0)
            self._settle(received_ns)
            return "frame"
        if not known & side.bit:
            self._seen[content] = known | side.bit
            side.brought(received_ns - (known >> 2))
        return "repeated"

    def _settle(self, now_ns: int) -> None:
        """Forget what is older than the window; a line that has not brought it by then has missed it."""
        seen, order = self._seen, self._order
        while order and (len(order) > self._most or seen[order[0]] >> 2 < now_ns - self._window_ns):
            had = seen.pop(order.popleft())
            for side in self._sides.values():
                side.missed += not had & side.bit

    def _turned(self, plan: Plan, connection: str, kind: RawKind, payload: bytes) -> bytes:
        """Say in the record of a socket's turn which of the other line's were open at that moment: nobody was deaf then."""
        mine = self._sides[plan.name]
        if kind == "opened":
            mine.open.append(connection)
        elif kind == "closed" and connection in mine.open:
            mine.open.remove(connection)
        beside = [name for side in self._sides.values() if side is not mine for name in side.open]
        return msgspec.json.encode({**msgspec.json.decode(payload), "beside": beside}) if beside else payload
