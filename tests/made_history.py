"""An exchange's history made by hand: Binance's REST endpoints answered from a list of trades, without a server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from made import NOON
from tapeline.records import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapeline.providers.history import Request

T0 = NOON // NS_PER_MS


@dataclass
class Exchange:
    """Trades with the ids 1 to `count`, one each `every_ms` from T0 on; every third closes an aggregated one."""

    count: int
    every_ms: int = 100
    #: How many rows a page has, of those that it could have.
    rows: Callable[[int], int] = lambda most: most
    asked: list[str] = field(default_factory=list)

    def time_ms(self, number: int) -> int:
        return T0 + number * self.every_ms

    def numbers(self, start_ns: int, end_ns: int) -> list[int]:
        """The ids of the trades of [start_ns, end_ns)."""
        return [number for number in range(1, self.count + 1) if start_ns <= self.time_ms(number) * NS_PER_MS < end_ns]

    def __call__(self, request: Request) -> bytes:
        self.asked.append(request.path)
        path, _, query = request.path.partition("?")
        wanted = dict(parse_qsl(query))
        limit = int(wanted["limit"])
        aggregated = path.endswith("aggTrades")
        if not set(wanted) & {"fromId", "startTime", "endTime"}:  # the latest
            rows = (self._aggregated({"limit": "1"}) if aggregated else self._trades(1))[-limit:]
        else:
            rows = self._aggregated(wanted) if aggregated else self._trades(int(wanted["fromId"]))
        some = rows[:limit]
        return json.dumps(some[: self.rows(len(some))] if limit > 1 else some).encode()

    def _trades(self, first: int) -> list[dict[str, Any]]:
        row = {"price": "1.5", "qty": "2", "quoteQty": "3", "isBuyerMaker": True, "isBestMatch": True}
        return [{"id": number, **row, "time": self.time_ms(number)} for number in range(max(1, first), self.count + 1)]

    def _aggregated(self, wanted: dict[str, str]) -> list[dict[str, Any]]:
        found = []
        for number, first in enumerate(range(1, self.count + 1, 3), 1):
            last = min(first + 2, self.count)
            time_ms = self.time_ms(first)
            if number >= int(wanted.get("fromId", 0)) and int(wanted.get("startTime", 0)) <= time_ms <= int(wanted.get("endTime", 1 << 62)):
                found.append({"a": number, "p": "1.5", "q": "6", "f": first, "l": last, "T": time_ms, "m": True, "M": True})
        return found[-int(wanted["limit"]) :] if set(wanted) & {"startTime", "endTime"} == {"endTime"} else found
