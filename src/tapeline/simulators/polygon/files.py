"""The simulator's flat files of Polygon.io: a bucket with S3's protocol. It has a gzip CSV of all tickers for each New York day so far.

Sources: Polygon.io's documentation of flat files (paths and headers of trades, quotes and minute bars), and Amazon's documentation of S3
(HEAD requests and ranges of an object, listings, errors). Signatures are not checked. Only the key is: a key that begins with "bad" is
refused.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape
from zoneinfo import ZoneInfo

from tapeline.simulators.rate_limiter import RateLimiter
from tapeline.simulators.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tapeline.simulators.faults import Faults
    from tapeline.simulators.session import Request

    #: From feed, channel, start and end (ns) to the ticker and row of each event, by ticker and then by time.
    Rows = Callable[[str, str, int, int], Iterable[tuple[str, Mapping[str, Any]]]]
    #: The first and the last time (ns) of a feed's channel; None if it has no events.
    Edges = Callable[[str, str], tuple[int, int] | None]

BUCKET: Final = "flatfiles"
_NS_PER_S: Final = 1_000_000_000
_TRADES: Final = (
    *("ticker", "conditions", "correction", "exchange", "id", "participant_timestamp", "price", "sequence_number", "sip_timestamp"),
    *("size", "tape", "trf_id", "trf_timestamp"),
)
_QUOTES: Final = (
    *("ticker", "ask_exchange", "ask_price", "ask_size", "bid_exchange", "bid_price", "bid_size", "conditions", "indicators"),
    *("participant_timestamp", "sequence_number", "sip_timestamp", "tape", "trf_timestamp"),
)
_OPTION_TRADES: Final = ("ticker", "conditions", "correction", "exchange", "price", "sip_timestamp", "size")
_BARS: Final = ("ticker", "volume", "open", "close", "high", "low", "window_start", "transactions")
_MARKETS: Final = {"us_stocks_sip": "stocks", "us_options_opra": "options"}
_KINDS: Final = {"trades_v1": ("T", _TRADES), "quotes_v1": ("Q", _QUOTES), "minute_aggs_v1": ("AM", _BARS)}
_KEY: Final = re.compile(r"(?P<market>\w+)/(?P<kind>\w+)/(?P<month>\d{4}/\d\d)/(?P<day>\d{4}-\d\d-\d\d)\.csv\.gz")
_CREDENTIAL: Final = re.compile(r"Credential=([^/,\s]+)/")
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")
_XML: Final = {"Content-Type": "application/xml"}
_MOST_LISTED: Final = 1_000


class PolygonFiles:
    """Files by path. The file of a day that is not over changes from request to request, as if the provider had published it again."""

    def __init__(self, faults: Faults, rows: Rows, edges: Edges) -> None:
        self._rows, self._edges = rows, edges
        self._busy, self._broken = RateLimiter(faults.number("rest_429")), RateLimiter(faults.number("rest_error"))
        self._cut = RateLimiter(faults.number("rest_cut"))
        self._not_authorized = faults.text("not_authorized")

    def answer(self, request: Request) -> Reply:
        """An object, a part of one, or a listing. If an object breaks off (fault `rest_cut`), its length header is that of the whole."""
        bucket, _, key = request.path.removeprefix("/").partition("/")
        refused = self._refused(request, key)
        if refused is not None:
            return refused
        if bucket != BUCKET:
            return _error(404, "NoSuchBucket", "The specified bucket does not exist")
        if not key:
            return self._listing(request.query)
        data = self._object(key)
        return _error(404, "NoSuchKey", "The specified key does not exist.") if data is None else self._part(data, request)

    def _refused(self, request: Request, key: str) -> Reply | None:
        if self._broken.take():
            return _error(500, "InternalError", "We encountered an internal error. Please try again.")
        if self._busy.take():
            return _error(503, "SlowDown", "Please reduce your request rate.")
        signed = _CREDENTIAL.search(request.headers.get("authorization", ""))
        if signed is None:
            return _error(403, "AccessDenied", "Access Denied.")
        if signed[1].startswith("bad"):
            return _error(403, "InvalidAccessKeyId", "The access key ID you provided does not exist in our records.")
        kind = _KINDS.get(key.split("/")[1]) if key.count("/") > 1 else None
        if kind is not None and kind[0] == self._not_authorized:
            return _error(403, "AccessDenied", "You are not entitled to this data.")
        return None

    def _object(self, key: str) -> bytes | None:
        match = _KEY.fullmatch(key)
        if match is None or match["market"] not in _MARKETS or match["kind"] not in _KINDS:
            return None
        try:
            day = date.fromisoformat(match["day"])
        except ValueError:
            return None
        channel, header = _KINDS[match["kind"]]
        if match["market"] == "us_options_opra" and channel == "T":
            header = _OPTION_TRADES
        rows = list(self._rows(_MARKETS[match["market"]], channel, *_new_york(day)))
        return _packed(header, rows) if rows and f"{day:%Y/%m}" == match["month"] else None

    def _part(self, whole: bytes, request: Request) -> Reply:
        headers = {
            "Content-Type": "application/gzip",
            "ETag": f'"{hashlib.md5(whole, usedforsecurity=False).hexdigest()}"',
            "Last-Modified": format_datetime(datetime(2024, 1, 1, tzinfo=UTC), usegmt=True),
            "Accept-Ranges": "bytes",
        }
        match = _RANGE.fullmatch(request.headers.get("range", ""))
        status, body = 200, whole
        if match is not None:
            first, last = int(match[1]), min(int(match[2] or len(whole)), len(whole) - 1)
            if first > last:
                return _error(416, "InvalidRange", "The requested range is not satisfiable")
            status, body = 206, whole[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(whole)}"
        headers["Content-Length"] = str(len(body))
        if request.method == "GET" and self._cut.take():
            body = body[: len(body) // 2]
        return Reply(status, body, headers)

    def _listing(self, query: Mapping[str, str]) -> Reply:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys, folders = [], set[str]()
        for key in self._keys():
            if not key.startswith(prefix):
                continue
            name, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                folders.add(f"{prefix}{name}{cut}")
            else:
                keys.append(key)
        body = "".join(_entry(key, data) for key in keys[:_MOST_LISTED] if (data := self._object(key)) is not None)
        body += "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders))
        count = len(keys) + len(folders)
        head = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{_MOST_LISTED}</MaxKeys>"
        text = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{head}<IsTruncated>false</IsTruncated>{body}'
        return Reply(200, f"{text}</ListBucketResult>".encode(), _XML)

    def _keys(self) -> Iterator[str]:
        for market, feed in _MARKETS.items():
            for kind, (channel, _) in _KINDS.items():
                edges = self._edges(feed, channel)
                day, last = (_day(ns) for ns in edges) if edges is not None else (date.max, date.min)
                while day <= last:
                    yield f"{market}/{kind}/{day:%Y/%m/%Y-%m-%d}.csv.gz"
                    day += timedelta(days=1)


def _new_york(day: date) -> tuple[int, int]:
    """The start and the end (ns) of a day in New York."""
    zone = ZoneInfo("America/New_York")
    begin, end = (datetime(some.year, some.month, some.day, tzinfo=zone) for some in (day, day + timedelta(days=1)))
    return int(begin.timestamp()) * _NS_PER_S, int(end.timestamp()) * _NS_PER_S


def _day(ns: int) -> date:
    return datetime.fromtimestamp(ns // _NS_PER_S, ZoneInfo("America/New_York")).date()


def _packed(header: tuple[str, ...], rows: Iterable[tuple[str, Mapping[str, Any]]]) -> bytes:
    made = io.StringIO()
    writer = csv.DictWriter(made, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for ticker, row in rows:
        cells = {name: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value for name, value in row.items()}
        writer.writerow({"ticker": ticker, **cells})
    return gzip.compress(made.getvalue().encode(), 6, mtime=0)  # the same bytes each time


def _entry(key: str, data: bytes) -> str:
    etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
    details = f"<Key>{escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;{etag}&quot;</ETag>"
    return f"<Contents>{details}<Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"


def _error(status: int, code: str, message: str) -> Reply:
    return Reply(status, f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>0</RequestId></Error>".encode(), _XML)
