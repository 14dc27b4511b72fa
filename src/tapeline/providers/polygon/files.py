"""Polygon.io's flat files of past days: which file holds a span, and which events a piece of a file holds. Pure: this module sends nothing.

Facts: Polygon.io's documentation of flat files.

- `us_stocks_sip/trades_v1/2024/03/2024-03-15.csv.gz` holds one day of all tickers, with a header.
- Times are in ns. `conditions` is a quoted list.
- Option trades have seven columns: `ticker,conditions,correction,exchange,price,sip_timestamp,size`. They have no sequence number
  (polygon-io/issues#308).
- A file is published at about 11:00 in New York on the next day, and may be published again.
- Tapeline supports the kinds of files whose header is documented.

The documentation does not say in which time zone a day begins. The hour of publication suggests New York. A time outside the New York day
is refused, so a file that is cut at other hours cannot pass for a whole day.

A piece begins with a line that holds the file's version (`missing`: the file does not exist) and the position behind the piece (-1: the
end of the file). After it come the file's header and whole lines of one ticker.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from tapeline.errors import ConfigError
from tapeline.providers.decoding.inexact import LONG, is_inexact
from tapeline.providers.decoding.whole_numbers import in_digits, whole
from tapeline.providers.events import UNREADABLE, Kind, Notice, Reject
from tapeline.providers.history import MISSING, Page, Request, Span, WrongPage, readable, unreadable
from tapeline.providers.polygon.history import WEIGHT_A_MINUTE as WEIGHT_A_MINUTE
from tapeline.providers.polygon.history import (
    Event,
    PastBarRow,
    QuoteRow,
    TradeRow,
    as_events,
    marked,
)
from tapeline.records import NS_PER_MS, NS_PER_S
from tapeline.secret import Secret

__all__ = [
    *("CHANNELS", "WEIGHT_A_MINUTE"),
    *("counted_events_of", "events_of", "first", "headers", "is_file", "moment", "page", "parts", "settled_ns", "ticker"),
]

CHANNELS: Final[dict[str, dict[str, Kind]]] = {
    "stocks": {"T": "trade", "Q": "quote", "AM": "bar"},
    "options": {"T": "trade", "AM": "bar"},
}
_MARKETS: Final = {"stocks": "us_stocks_sip", "options": "us_options_opra"}
_FOLDERS: Final = {"T": "trades_v1", "Q": "quotes_v1", "AM": "minute_aggs_v1"}
#: The column without which a file's event could not be matched with its live copy. Option trades have no such column in files.
_MATCHED_BY: Final = {("stocks", "T"): "id", ("stocks", "Q"): "sequence_number"}
_SATURDAY: Final = 5
_NOTHING_KEPT: Final = "None of this part was kept."


def headers(key: Secret, secret: Secret) -> Mapping[str, str]:
    """No headers, because requests are signed."""
    del key, secret
    return {}


def parts(start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """The whole New York days (ns, end exclusive) that cover the range. Raises ConfigError if the system has no time zone data."""
    try:
        zone = ZoneInfo("America/New_York")
    except ZoneInfoNotFoundError as error:
        raise ConfigError(f"Polygon's files hold New York days, and this system lacks that time zone: {error}. Install tzdata.") from None

    def midnight_ns(day: date) -> int:
        return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * NS_PER_S

    day, last = (datetime.fromtimestamp(ns // NS_PER_S, zone).date() for ns in (start_ns, end_ns - 1))
    ranges = []
    while day <= last:
        ranges.append((midnight_ns(day), midnight_ns(day + timedelta(days=1))))
        day += timedelta(days=1)
    return ranges


def first(span: Span) -> Request:
    """The request for the file of the day in which the span begins, and for the span's ticker in it."""
    path = f"/{_MARKETS[span.feed]}/{_FOLDERS[span.channel]}/{_day(span):%Y/%m/%Y-%m-%d}.csv.gz"
    return Request(f"{path}?ticker={quote(ticker(span.feed, span.symbol), safe=':')}")


def ticker(feed: str, symbol: str) -> str:
    """The name of a canonical symbol in the files."""
    return f"O:{symbol}" if feed == "options" else symbol


def is_file(path: str) -> bool:
    """Whether a page with this path is a piece of a file."""
    return path.partition("?")[0].endswith(".csv.gz")


def moment(header: str, line: bytes) -> str:
    """The millisecond of a line, as the text before the last six digits of its time. `header` is the file's header.

    Trades without a number are matched by the count of equal trades in a millisecond. So one piece must hold all lines of a millisecond."""
    cells = next(csv.reader([line.decode("utf-8", "replace")]), [])
    return dict(zip(header.split(","), cells, strict=False)).get("sip_timestamp", "")[:-6]


def page(span: Span, request: Request, body: bytes, time_ms: int) -> Page:
    """Check a piece and find the next request.

    Raises WrongPage if the file does not exist, was published again since its first piece, holds times outside its day, or is not such
    a CSV. A missing file on a Saturday or Sunday is no error."""
    del time_ms
    path = request.path.partition("?")[0]
    try:
        version, following, lines = _taken_apart(body)
    except ValueError as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. {_NOTHING_KEPT}") from error
    before, _, _ = request.after.partition(" ")
    if before and before != version:
        raise WrongPage(
            f"{path} was published again after its first part was read: it was {before[:40]}, and is {version[:40]} now. What was "
            "read is kept. Fetch the file again with --again."
        )
    if version == MISSING:
        if _day(span).weekday() >= _SATURDAY:  # the markets are shut
            return Page(0, 0, None, keep=False)
        raise WrongPage(f"{path} does not exist. A day's file comes at about 11:00 in New York the day after. A holiday has no file.")
    try:
        rows = [row for row, _ in _rows(span.channel, lines, _MATCHED_BY.get((span.feed, span.channel), ""))]
        times = [row.time_ns for row in readable(rows)]
    except UNREADABLE as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. {_NOTHING_KEPT}") from error
    if times and not span.start_ns <= min(times) <= max(times) < span.end_ns:
        raise WrongPage(
            f"{request.path} has times from {min(times)} to {max(times)} ns, but its day in New York is {span.start_ns} to {span.end_ns}. "
            f"{_NOTHING_KEPT}"
        )
    reached_ns = max(times, default=0)
    rest = None if following < 0 else Request(request.path, 0, f"{version} {following}")
    return Page(len(rows), reached_ns, rest, keep=bool(rows), unreadable=unreadable(rows, 2, "line"))


def events_of(channel: str, symbol: str, time_ms: int, body: bytes) -> Sequence[Event | Notice | Reject]:
    """The events of a piece, in the same form as those of a REST page. A line that cannot be read becomes a reject.

    Raises the errors in UNREADABLE if the piece cannot be read, and KeyError for an unknown channel."""
    return counted_events_of(channel, symbol, time_ms, body)[0]


def counted_events_of(channel: str, symbol: str, time_ms: int, body: bytes) -> tuple[Sequence[Event | Notice | Reject], int]:
    """As `events_of`, and the number of prices and sizes that float64 does not hold exactly."""
    pairs = _rows(channel, _taken_apart(body)[2])
    rows = [row for row, _ in pairs]
    events = as_events(channel, symbol, time_ms, rows)
    names = _NUMBERS[channel]
    inexact = sum(len(text := cells.get(name, "")) >= LONG and is_inexact(text) for _, cells in pairs for name in names)
    if channel != "T" or not any(row.correction for row in readable(rows)):
        return events, inexact
    return marked(symbol, events, rows, [msgspec.json.encode(cells).decode() for _, cells in pairs]), inexact


def _day(span: Span) -> date:
    """The New York date of the span. It equals the UTC date of the start, because midnight in New York is 4 or 5 hours after UTC's."""
    return datetime.fromtimestamp(span.start_ns // NS_PER_S, UTC).date()


def _taken_apart(body: bytes) -> tuple[str, int, bytes]:
    """The parts of a piece: the file's version, the position behind the piece (-1: the end), and the lines."""
    head, _, lines = body.partition(b"\n")
    version, _, following = head.decode("ascii", "replace").partition(" ")
    return version, int(following), lines


_STRUCTS: Final[dict[str, Any]] = {"T": TradeRow, "Q": QuoteRow, "AM": PastBarRow}
#: Columns whose cells stay as they are written.
_TEXTS: Final = frozenset({"ticker", "id", "decimal_size"})
#: Columns of prices and sizes.
_NUMBERS: Final = {
    "T": ("price", "size", "decimal_size"),
    "Q": ("bid_price", "bid_size", "ask_price", "ask_size"),
    "AM": ("open", "high", "low", "close", "volume"),
}
#: A bar's column in a file to its name over REST.
_BAR_NAMES: Final = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v", "transactions": "n"}


def _rows(channel: str, lines: bytes, matched_by: str = "") -> list[tuple[Any, dict[str, str]]]:
    """Each row as REST has it, or a reject, together with the row's cells. Empty cells are left out.

    Raises ValueError if the text is not such a CSV: no line can be read, or the column `matched_by` is missing."""
    struct = _STRUCTS[channel]
    try:
        table = [row for row in csv.reader(lines.decode("utf-8").split("\n")) if row]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if not table:
        return []
    names = table[0]
    if matched_by and matched_by not in names:
        raise ValueError(f"it has no column {matched_by}, which Tapeline needs to match its events with live events")
    rows: list[tuple[Any, dict[str, str]]] = []
    for row in table[1:]:
        cells = {name: cell for name, cell in zip(names, row, strict=False) if cell}
        try:
            if len(row) != len(names):
                raise ValueError(f"it has {len(row)} cells, not {len(names)}")
            rows.append((_row(channel, cells, struct), cells))
        except (ValueError, msgspec.MsgspecError) as error:
            rows.append((Reject(f"line of a file: {error}", ",".join(row).encode()), cells))
    if rows and not readable([row for row, _ in rows]):
        raise ValueError(unreadable([row for row, _ in rows], 2, "line")[0])
    return rows


def _row(channel: str, cells: dict[str, str], struct: Any) -> Any:
    """One row as REST has it. Raises MsgspecError or ValueError if it cannot be read."""
    fields = _as_rest(channel, cells)
    try:
        return msgspec.convert(fields, struct, strict=False)
    except msgspec.ValidationError:
        plain = {name: in_digits(value.encode()).decode() if _numeric(name, value) else value for name, value in fields.items()}
        return msgspec.convert(plain, struct, strict=False)


def _numeric(name: str, value: object) -> bool:
    return isinstance(value, str) and name not in _TEXTS


def _as_rest(channel: str, cells: dict[str, str]) -> dict[str, Any]:
    """The cells under the names that REST gives them. Raises ValueError if a bar's time is not a whole millisecond."""
    if channel == "AM":
        start_ns = whole(cells.get("window_start", ""))
        if start_ns % NS_PER_MS:
            raise ValueError(f"window_start {start_ns} is no whole millisecond")
        return {_BAR_NAMES.get(name, name): cell for name, cell in cells.items()} | {"t": start_ns // NS_PER_MS}
    if "conditions" in cells:
        return cells | {"conditions": cells["conditions"].split(",")}
    return cells
