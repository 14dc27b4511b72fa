"""Merges two lines that carry the same events: the first copy stays a frame, a later copy is marked, and both lines are measured.

One process reads both sockets, and the memory of seen events lives as long as the sockets. So a crash loses nothing that is needed later:
the next process has new sockets, and every event on them is new. Both lines write into one partition, so the first copy of an event is
always before the later copy. If a crash cuts off the end of the partition, no later copy remains without its first copy.
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
from tapeline.telemetry.latencies import Latencies

#: A line has missed an event if it does not bring it within this time after the other line. At most `_MOST` events wait: past that, the
#: oldest is counted early.
_WINDOW_S: Final = 30.0
_MOST: Final = 131_072
#: Lags are added to the statistics in batches of this size.
_LAGS: Final = 4_096
#: The kinds of record that report a change of a socket's state.
_TURNS: Final = frozenset({"opened", "subscribed", "closed"})


@dataclass(slots=True)
class _Side:
    """The counts and lags of one of the two lines."""

    bit: int
    events: int = 0
    first: int = 0
    missed: int = 0
    #: For each event, how long (ns) after the first copy this line brought it; 0 if this line was first.
    lags: list[int] = field(default_factory=list)
    latencies: Latencies = field(default_factory=Latencies)
    #: The names of its open connections.
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
    """A recorder for both lines of a feed. It marks later copies and passes every record on to `recorder`."""

    def __init__(
        self, recorder: Recorder, plans: Sequence[Plan], dropped: Callable[[], int], window_s: float = _WINDOW_S, most: int = _MOST
    ) -> None:
        """`dropped`: how many records could not be kept so far, as `Delivery.dropped`. `plans`: the two lines.

        A line has missed an event if it does not bring it within `window_s` seconds. At most `most` events wait at a time."""
        self._recorder = recorder
        self._dropped = dropped
        self._dropped_before = dropped()
        self._window_ns = int(window_s * NS_PER_S)
        self._most = most
        self._sides = {plan.name: _Side(1 << at) for at, plan in enumerate(plans)}
        #: An event's content -> time of its first copy (ns) << 2 | bits of the lines that have brought it.
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
        """The counts of each line, by its name: `events`, `first` and `missed`; and its lag behind the first copy over the last seconds.

        The lags are `lag_p50_ms` and `lag_p99_ms`. `now_ns`: UTC."""
        self._settle(now_ns)
        counts = {}
        for name, side in self._sides.items():
            side.hand_on()
            lag = {"lag_p50_ms": side.latencies.ms(0.50), "lag_p99_ms": side.latencies.ms(0.99)}
            counts[name] = {"events": side.events, "first": side.first, "missed": side.missed, **lag}
        return counts

    def _arrived(self, plan: Plan, received_ns: int, payload: bytes) -> RawKind:
        content = plan.content(payload) if plan.content is not None else None
        if content is None:
            return "frame"
        if self._dropped() != self._dropped_before:  # a dropped record may be a first copy: its later copy must not be marked
            self._dropped_before = self._dropped()
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
        """Forget events older than the window. A line that has not brought such an event has missed it."""
        seen, order = self._seen, self._order
        while order and (len(order) > self._most or seen[order[0]] >> 2 < now_ns - self._window_ns):
            had = seen.pop(order.popleft())
            for side in self._sides.values():
                side.missed += not had & side.bit

    def _turned(self, plan: Plan, connection: str, kind: RawKind, payload: bytes) -> bytes:
        """Add to a state record which connections of the other line were open then: events were still received on those."""
        mine = self._sides[plan.name]
        if kind == "opened":
            mine.open.append(connection)
        elif kind == "closed" and connection in mine.open:
            mine.open.remove(connection)
        concurrent = [name for side in self._sides.values() if side is not mine for name in side.open]
        return msgspec.json.encode({**msgspec.json.decode(payload), "beside": concurrent}) if concurrent else payload
