"""The simulator's public archive of Binance: for each day or month so far, a zip with one CSV, and its checksum."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tapeline.simulators.rate_limiter import RateLimiter
from tapeline.simulators.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tapeline.simulators.faults import Faults

    #: From channel and symbol to the fields of the events, in order.
    Rows = Callable[[str, str], Iterable[dict[str, Any]]]

_PATH: Final = re.compile(
    r"/data/spot/(?P<span>daily|monthly)/(?P<kind>trades|aggTrades|klines)/(?P<symbol>[A-Z0-9]+)/(?:(?P<interval>\w+)/)?"
    r"(?P=symbol)-(?P<what>\w+)-(?P<date>\d{4}-\d\d(?:-\d\d)?)\.zip(?P<sum>\.CHECKSUM)?"
)
_ZIP: Final = {"Content-Type": "application/zip"}
#: From this time on, times are in microseconds.
_MICROSECONDS_FROM_MS: Final = 1_735_689_600_000  # 2025-01-01
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


class BinanceArchive:
    """Files by path. The file of a day that is not over changes from request to request, as if the exchange had replaced it."""

    def __init__(self, faults: Faults, rows: Rows) -> None:
        self._rows = rows
        self._wrong = RateLimiter(faults.number("archive_checksum"))

    def get(self, path: str) -> Reply | None:
        """A zip or its checksum. None for any other path."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        kind, interval = match["kind"], match["interval"]
        if (interval is None) == (kind == "klines") or match["what"] != (interval or kind):
            return Reply(404, b"404 Not Found")
        channel = {"trades": "trade", "aggTrades": "aggTrade"}.get(kind) or f"kline_{'1M' if interval == '1mo' else interval}"
        rows = [row for row in self._rows(channel, match["symbol"]) if _date(_time(row)).startswith(match["date"])]
        if not rows:
            return Reply(404, b"404 Not Found")
        name = path.rpartition("/")[2].removesuffix(".CHECKSUM")
        packed = _zip(name.replace(".zip", ".csv"), "".join(f"{','.join(_cells(row))}\n" for row in rows))
        if match["sum"] is None:
            return Reply(200, packed, _ZIP)
        digest = "0" * 64 if self._wrong.take() else hashlib.sha256(packed).hexdigest()
        return Reply(200, f"{digest}  {name}\n".encode(), {"Content-Type": "text/plain"})


def _time(row: dict[str, Any]) -> int:
    return int(row["k"]["t"] if "k" in row else row["T"])


def _date(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d}"


def _cells(row: dict[str, Any]) -> list[str]:
    if "k" in row:
        k = row["k"]
        cells = [_unit(k["t"]), k["o"], k["h"], k["l"], k["c"], k["v"], _unit(k["T"], 999), k["q"], k["n"], k["V"], k["Q"], 0]
    elif row["e"] == "trade":
        quoted = float(row["p"]) * float(row["q"])
        cells = [row["t"], row["p"], row["q"], f"{quoted:.8f}", _unit(row["T"]), row["m"], True]
    else:
        cells = [row["a"], row["p"], row["q"], row["f"], row["l"], _unit(row["T"]), row["m"], True]
    return [str(cell) for cell in cells]


def _unit(ms: int, rest_us: int = 0) -> int:
    return ms * 1_000 + rest_us if ms >= _MICROSECONDS_FROM_MS else ms


def _zip(name: str, text: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(zipfile.ZipInfo(name, _EPOCH), text)  # the same bytes each time
    return made.getvalue()
