"""Polygon.io's flat files: from a local server of S3's protocol, a ticker's rows out of a day of all, the same events as REST's."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import socket
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from frames import rows
from made import NOON
from tapeline.app.histories import open_archives
from tapeline.config import Config, ProviderConfig, files_secrets
from tapeline.errors import ConfigError, Refused, Unavailable
from tapeline.jobs.backfill.backfill import Job
from tapeline.jobs.backfill.day_files import DayFiles
from tapeline.jobs.backfill.fetching import Fetched, Source, fetch, raw_record
from tapeline.net.s3 import Bucket, S3Reader
from tapeline.providers.events import UNREADABLE
from tapeline.providers.history import Request, Span, WrongPage
from tapeline.providers.normalizing import Normalized, normalize
from tapeline.providers.polygon.files import events_of, moment, parts
from tapeline.providers.registry import ARCHIVES, DECODERS, HISTORIES, identity
from tapeline.records import NS_PER_S, RAW_TOPIC, TICKS_TOPIC, Chunk
from tapeline.secret import Secret
from tapeline.stores.lake import Lake

HISTORY = ARCHIVES["polygon"].history
HOUR = 3_600 * NS_PER_S
#: Of 2024-03-15, a Friday, in New York.
BEGIN, END = NOON - 8 * HOUR, NOON + 16 * HOUR
FETCHED_NS = NOON + 48 * HOUR
HEADERS = {
    "T": "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,size,tape,trf_id,"
    "trf_timestamp",
    "Q": "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,participant_timestamp,"
    "sequence_number,sip_timestamp,tape,trf_timestamp",
    "AM": "ticker,volume,open,close,high,low,window_start,transactions",
}
#: As they are, of which nothing tells that they were ever otherwise.
OPTION_TRADES = "ticker,conditions,correction,exchange,price,sip_timestamp,size"
EACH = pytest.mark.parametrize(("feed", "channel"), [(feed, channel) for feed, some in HISTORY.channels.items() for channel in some])
SYMBOLS = {"stocks": "AAPL", "options": "SPY251219C00650000"}
Row = dict[str, Any]


def span(feed: str = "stocks", channel: str = "T", symbol: str = "AAPL", days: int = 0) -> Span:
    return Span(feed, channel, symbol, BEGIN + days * 24 * HOUR, END + days * 24 * HOUR)


def past(feed: str, channel: str, at: int) -> Row:
    """The `at`th event of a day, by the names that REST gives, but a bar's."""
    ns = NOON + at * NS_PER_S + (0, 7, 999_999)[at % 3]
    if channel == "AM":
        start_ns = NOON + at * 60 * NS_PER_S
        return {"volume": 100, "open": 1.5, "close": 2.5, "high": 3.0, "low": 1.0, "window_start": start_ns, "transactions": 4}
    sip = {"participant_timestamp": ns - 5, "sip_timestamp": ns, "sequence_number": 1063 + at}
    if channel == "Q":
        ask = {"ask_exchange": 11, "ask_price": 171.6, "ask_size": 100}
        bid = {"bid_exchange": 12, "bid_price": 171.5 + at, "bid_size": 200}
        return [ask | bid, ask, bid | {"conditions": [1], "indicators": [604]}][at % 3] | sip
    if feed == "options":
        return {"conditions": [209], "exchange": 302, "price": 7.2, "size": 1} | sip
    trade = {"correction": 0, "exchange": 11, "id": str(at), "price": 171.55, "size": 100.5, "tape": 3} | sip
    return trade | [{}, {"conditions": [12, 41]}, {"exchange": 4, "trf_id": 201, "trf_timestamp": ns - 5}][at % 3]


def table(channel: str, some: dict[str, Sequence[Row]], header: str = "") -> bytes:
    """The file's CSV: ticker to its rows."""
    made = io.StringIO()
    names = (header or HEADERS[channel]).split(",")
    writer = csv.DictWriter(made, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for ticker, found in some.items():
        for row in found:
            writer.writerow({"ticker": ticker} | {name: ",".join(map(str, v)) if isinstance(v, list) else v for name, v in row.items()})
    return made.getvalue().encode()


def rest_page(channel: str, some: Sequence[Row]) -> bytes:
    """The same rows as a page of REST."""
    if channel == "AM":
        names = {"volume": "v", "open": "o", "close": "c", "high": "h", "low": "l", "transactions": "n"}
        some = [{names[n]: v for n, v in row.items() if n in names} | {"t": row["window_start"] // 1_000_000} for row in some]
    return json.dumps({"status": "OK", "results": some}).encode()


def made_of(feed: str, pages: Sequence[Fetched], first_offset: int = 100) -> Normalized:
    """What pages become."""
    records = [raw_record("polygon", feed, "backfill-1", one) for one in pages if one.payload is not None]
    result = normalize(Chunk.dense(RAW_TOPIC, 0, first_offset, pa.concat_batches(records)), DECODERS)
    assert not result.counts["polygon", feed].rejected
    return result


def piece(csv_text: bytes, version: str = "v1", following: int = -1) -> bytes:
    return f"{version} {following}\n".encode() + csv_text


def from_file(wanted: Span, csv_text: bytes) -> list[Fetched]:
    return list(fetch(Source(HISTORY, lambda _: piece(csv_text), lambda: FETCHED_NS), wanted))


# What a row becomes


@EACH
def test_the_rows_of_a_file_are_those_of_the_page_of_rest(feed: str, channel: str, tmp_path: Path) -> None:
    wanted = span(feed, channel, SYMBOLS[feed])
    some = [past(feed, channel, at) for at in range(6)]
    ticker = ("O:" if feed == "options" else "") + SYMBOLS[feed]
    header = OPTION_TRADES if (feed, channel) == ("options", "T") else ""
    file = made_of(feed, from_file(wanted, table(channel, {ticker: some}, header)))
    asked = list(fetch(Source(HISTORIES["polygon"], lambda _: rest_page(channel, some), lambda: FETCHED_NS), wanted))
    rest = made_of(feed, asked, first_offset=200)
    name = "bars" if channel == "AM" else "ticks"
    own = {"raw_offset", "raw_index"} | ({"sequence"} if header else set())
    assert len(rows(file)[name]) == 6
    assert [{key: row[key] for key in row if key not in own} for row in rows(file)[name]] == [
        {key: row[key] for key in row if key not in own} for row in rows(rest)[name]
    ]
    if name == "ticks":
        store = Lake(tmp_path, identity)
        assert store.write(Chunk.dense(TICKS_TOPIC, 0, 0, rest.batches[TICKS_TOPIC])).rows == 6
        assert store.write(Chunk.dense(TICKS_TOPIC, 0, 6, file.batches[TICKS_TOPIC])).rows == 0


def test_trades_of_options_have_seven_columns_and_no_number() -> None:
    option = "SPY240610P00536000"
    text = f"{OPTION_TRADES}\nO:{option},209,0,313,0.93,{NOON},1\n".encode()
    (row,) = rows(made_of("options", from_file(span("options", "T", option), text)))["ticks"]
    assert {name: row[name] for name in ("symbol", "last", "volume", "ts_ns", "sequence", "trade_id", "conditions")} == {
        "symbol": option,
        "last": 0.93,
        "volume": 1.0,
        "ts_ns": NOON,
        "sequence": None,
        "trade_id": None,
        "conditions": "209",
    }


def test_a_piece_of_a_day_does_not_end_between_lines_of_one_millisecond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapeline.jobs.backfill.archive._PIECE_BYTES", 200)
    times = [NOON + (at // 5) * 1_000_000 + at for at in range(23)]
    lines = [f"O:A,209,0,313,0.93,{ns},1" for ns in times]
    client = Prepared([gzip.compress("\n".join([OPTION_TRADES, *lines]).encode())])
    files, asked, found = DayFiles(client, tmp_path, ["O:A"], moment), Request("/day.csv.gz?ticker=O:A"), list[list[str]]()
    while True:
        head, _, *some = files(asked).decode().splitlines()
        found.append(some)
        if head.endswith(" -1"):
            break
        asked = Request(asked.path, 0, head)
    assert len(found) > 1
    assert [line for some in found for line in some] == lines
    edges = [(some[-1].split(",")[5][:-6], after[0].split(",")[5][:-6]) for some, after in itertools.pairwise(found)]
    assert all(last != first for last, first in edges)


def test_the_header_decides_which_column_is_which_and_columns_that_are_missing_are_null() -> None:
    header = "size,price,unheard_of,sip_timestamp,id,exchange,ticker"
    (row,) = rows(made_of("stocks", from_file(span(), table("T", {"AAPL": [past("stocks", "T", 1)]}, header))))["ticks"]
    assert (row["last"], row["volume"], row["trade_id"], row["exchange"]) == (171.55, 100.5, "1", "ARCX")
    assert (row["sequence"], row["conditions"]) == (None, None)


def test_a_trade_that_was_corrected_has_a_notice_beside_it() -> None:
    corrected = past("stocks", "T", 1) | {"correction": 1}
    found = rows(made_of("stocks", from_file(span(), table("T", {"AAPL": [past("stocks", "T", 0), corrected]}))))
    (notice,) = [row for row in found["notices"] if row["kind"] == "correction"]
    assert (notice["symbol"], notice["ts_ns"]) == ("AAPL", corrected["sip_timestamp"])
    assert json.loads(notice["detail"])["id"] == "1"
    assert [row["trade_id"] for row in found["ticks"]] == ["0", "1"]


@pytest.mark.parametrize(
    ("feed", "text", "said"),
    [
        ("stocks", table("T", {"AAPL": [past("stocks", "T", 1)]}, "ticker,price,size,exchange,sip_timestamp"), "it has no column id"),
        ("stocks", table("T", {}) + b"AAPL,1\n", "line 2: line of a file: it has 2 cells, not 13"),
        ("stocks", table("T", {"AAPL": [past("stocks", "T", 1) | {"price": "dear"}]}), "cannot be read"),
        ("stocks", table("T", {"AAPL": [past("stocks", "T", 1) | {"price": ""}]}), "missing required field `price`"),
        ("stocks", table("T", {"AAPL": [past("stocks", "T", 1) | {"sip_timestamp": 2**64}]}), "cannot be read"),
        ("stocks", table("T", {"AAPL": [past("stocks", "T", 1) | {"sip_timestamp": END}]}), "but its day in New York is"),
        ("stocks", b"\xff\xfe\n1\n", "cannot be read"),
    ],
)
def test_what_is_not_what_it_should_be_is_named_and_nothing_of_it_kept(feed: str, text: bytes, said: str) -> None:
    with pytest.raises(WrongPage, match=said):
        from_file(span(feed), text)


@given(
    st.lists(st.sampled_from(["A", "AA", "AAA", "B", "Bp", "BP", "LONGEST.W", ""]), max_size=30),
    st.integers(1, 60),
    st.booleans(),
    st.booleans(),
    st.sets(st.sampled_from(["A", "AAA", "BP", "Bp", "ZZ"]), min_size=1),
)
def test_however_a_file_is_cut_each_wanted_ticker_has_its_lines_as_they_came(
    tickers: list[str], size: int, last: bool, quoted: bool, wanted: set[str]
) -> None:
    for header in ("ticker,conditions,price", "price,conditions,ticker"):
        cells = [f'"{ticker}"' if quoted else ticker for ticker in tickers]
        lines = [",".join([cell, '"1,2"', str(at)][:: 1 if header.startswith("ticker") else -1]) for at, cell in enumerate(cells)]
        text = "\n".join([header, *lines]).encode() + b"\n" * last
        with tempfile.TemporaryDirectory() as folder:
            client = Prepared([gzip.compress(text)[at : at + size] for at in range(0, len(gzip.compress(text)), size)])
            for ticker in wanted:
                mine = [line for line, of in zip(lines, tickers, strict=True) if of == ticker]
                body = DayFiles(client, Path(folder), wanted, moment)(Request(f"/day.csv.gz?ticker={ticker}"))
                assert body.decode().splitlines() == ["v1 -1", header, *mine]


class Prepared:
    """A bucket of one file."""

    def __init__(self, some: Sequence[bytes]) -> None:
        self.some = some

    def version(self, path: str) -> str | None:
        return "v1"

    def blocks(self, path: str) -> Iterator[bytes]:
        return iter(self.some)


def test_a_file_of_which_the_parts_of_two_versions_came_is_said_to_have_been_published_again(tmp_path: Path) -> None:
    versions = iter(["v1", "v2"])
    client = Prepared([gzip.compress(table("T", {"AAPL": [past("stocks", "T", 1)]}))[:50]])
    client.version = lambda path: next(versions)  # type: ignore[method-assign]  # it is published while it is read
    with pytest.raises(WrongPage, match="was published again while it was read"):
        DayFiles(client, tmp_path, ["AAPL"], moment)(Request("/day.csv.gz?ticker=AAPL"))


@given(st.sampled_from(["T", "Q", "AM"]), st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.booleans())
def test_no_bytes_raise_anything_but_what_is_known_to_be_unreadable(channel: str, body: bytes, headed: bool) -> None:
    with suppress(UNREADABLE):
        events_of(channel, "AAPL", 0, piece(HEADERS[channel].encode() + b"\n" if headed else b"") + body)
    with suppress(WrongPage):
        HISTORY.page(span(), HISTORY.first(span()), body, 0)


def test_the_parts_of_a_job_are_whole_days_of_new_york_also_where_one_has_23_hours() -> None:
    saturday = 1_710_000_000 * NS_PER_S - 16 * HOUR  # 2024-03-09 00:00 UTC
    spans = Job("polygon", "stocks", ("T",), ("AAPL",), saturday, saturday + 48 * HOUR, files=True).spans()
    assert [HISTORY.first(one).path for one in spans] == [
        f"/us_stocks_sip/trades_v1/2024/03/2024-03-{day}.csv.gz?ticker=AAPL" for day in ("08", "09", "10")
    ]
    assert [(one.end_ns - one.start_ns) // HOUR for one in spans] == [24, 24, 23]
    assert parts(BEGIN, END) == [(BEGIN, END)]
    option = HISTORY.first(span("options", "AM", "SPY251219C00650000")).path
    assert option == "/us_options_opra/minute_aggs_v1/2024/03/2024-03-15.csv.gz?ticker=O:SPY251219C00650000"


# Where the file comes from

PATH = "us_stocks_sip/trades_v1/2024/03/2024-03-15.csv.gz"
LONG = 9_000
DAY_ROWS = {"AA": 3, "AAPL": LONG, "AAPl": 2, "MSFT": 5}


def a_day(counts: dict[str, int]) -> bytes:
    return table("T", {ticker: [past("stocks", "T", at) for at in range(count)] for ticker, count in counts.items()})


@pytest.fixture
def server(s3_url: str) -> Iterator[Callable[[bytes], None]]:
    """Publishes the file of the day."""
    remote = fs.S3FileSystem(
        access_key="k", secret_key="s", region="us-east-1", endpoint_override=s3_url, allow_bucket_creation=True, request_timeout=30
    )
    remote.create_dir("flatfiles")

    def publish(data: bytes) -> None:
        with remote.open_output_stream(f"flatfiles/{PATH}", compression=None) as file:
            file.write(data)

    yield publish
    remote.delete_dir_contents("flatfiles")


class Counted:
    """A bucket that counts how often a file is fetched."""

    def __init__(self, url: str, during: Callable[[], object] = lambda: None) -> None:
        self.bucket = S3Reader(Bucket(url, "flatfiles", Secret("accesskey"), Secret("hiddensecret")), sleep=lambda _: None)
        self.fetched = 0
        self.during = during

    def version(self, path: str) -> str | None:
        return self.bucket.version(path)

    def blocks(self, path: str) -> Iterator[bytes]:
        self.fetched += 1
        for block in self.bucket.blocks(path):
            yield block
            self.during()


def ids(pages: Sequence[Fetched]) -> list[str]:
    return [row["trade_id"] for row in rows(made_of("stocks", pages))["ticks"]]


def pages_of(source: DayFiles, wanted: Span, begin: Request | None = None) -> list[Fetched]:
    return list(fetch(Source(HISTORY, source, lambda: FETCHED_NS), wanted, begin, int(begin is not None)))


def test_a_day_is_fetched_once_for_all_its_tickers_and_nothing_of_it_stays(
    s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    server(gzip.compress(a_day(DAY_ROWS)))
    client = Counted(s3_url)
    wanted = ["AAPL", "AAPl", "MSFT", "NONE"]
    source = DayFiles(client, tmp_path, wanted, moment)
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(wanted, pool.map(lambda symbol: pages_of(source, span(symbol=symbol)), wanted), strict=True))
    assert client.fetched == 1
    assert len(found["AAPL"]) > 1
    for symbol in wanted[:3]:
        assert ids(found[symbol]) == [str(at) for at in range(DAY_ROWS[symbol])]
    assert [(page.rows, page.following) for page in found["NONE"]] == [(0, None)]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_disk_holds_the_rows_of_the_wanted_tickers_alone(s3_url: str, server: Callable[[bytes], None], tmp_path: Path) -> None:
    server(gzip.compress(a_day(DAY_ROWS)))
    next(fetch(Source(HISTORY, DayFiles(Counted(s3_url), tmp_path, ["MSFT", "AAPL"], moment), lambda: FETCHED_NS), span()))
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*.csv"))
    assert {line.partition(b",")[0] for line in kept.splitlines()} == {b"MSFT", b"AAPL"}


def test_who_was_killed_in_the_middle_goes_on_with_what_is_on_disk_and_without_it_with_the_same_rows(
    s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    server(gzip.compress(a_day(DAY_ROWS)))
    whole = pages_of(DayFiles(Counted(s3_url), tmp_path / "whole", ["AAPL"], moment), span())
    first = next(fetch(Source(HISTORY, DayFiles(Counted(s3_url), tmp_path / "here", ["AAPL"], moment), lambda: FETCHED_NS), span()))
    assert first == whole[0]
    for folder, fetched in (("here", 0), ("elsewhere", 1)):
        client = Counted(s3_url)
        assert pages_of(DayFiles(client, tmp_path / folder, ["AAPL"], moment), span(), first.following) == whole[1:]
        assert client.fetched == fetched


def test_the_rows_of_a_ticker_that_is_read_again_stay_until_it_is_through(
    s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    server(gzip.compress(a_day(DAY_ROWS)))
    client = Counted(s3_url)
    source = DayFiles(client, tmp_path, ["AAPL", "MSFT"], moment)
    whole = pages_of(source, span())
    again = fetch(Source(HISTORY, source, lambda: FETCHED_NS), span())
    first = next(again)
    pages_of(source, span(symbol="MSFT"))
    assert [first, *again] == whole
    assert client.fetched == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_jobs_of_other_tickers_side_by_side_leave_each_other_their_rows(
    s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    server(gzip.compress(a_day(DAY_ROWS)))
    client = Counted(s3_url)
    one = fetch(Source(HISTORY, DayFiles(client, tmp_path, ["AAPL"], moment), lambda: FETCHED_NS), span())
    first = next(one)
    assert ids(pages_of(DayFiles(Counted(s3_url), tmp_path, ["MSFT"], moment), span(symbol="MSFT"))) == [str(at) for at in range(5)]
    assert ids([first, *one]) == [str(at) for at in range(LONG)]
    assert client.fetched == 1


def test_a_file_that_is_published_again_is_named_and_its_rows_are_not_mixed(
    s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    server(gzip.compress(a_day(DAY_ROWS)))
    source = DayFiles(Counted(s3_url), tmp_path / "one", ["AAPL"], moment)
    first = next(fetch(Source(HISTORY, source, lambda: FETCHED_NS), span()))
    server(gzip.compress(a_day({"AAPL": LONG + 1})))
    with pytest.raises(WrongPage, match="was published again after its first part was read"):
        pages_of(DayFiles(Counted(s3_url), tmp_path / "two", ["AAPL"], moment), span(), first.following)
    assert len(ids(pages_of(source, span()))) == LONG + 1  # who begins anew has the new one

    meanwhile = Counted(s3_url, during=lambda: server(gzip.compress(a_day({"AAPL": 1}))))
    with pytest.raises(WrongPage, match=r"was published again while it was read\. None of it was kept"):
        pages_of(DayFiles(meanwhile, tmp_path / "three", ["AAPL"], moment), span())
    assert [path for path in (tmp_path / "three").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(a_day({"AAPL": 99}))[:-9], "ends in the middle of its gzip data"),
        (b"", "ends in the middle of its gzip data"),
        (b"no gzip", "is not a readable gzip file"),
        (gzip.compress(b""), "is empty"),
        (gzip.compress(b"symbol,price\n"), "has no column ticker"),
        (gzip.compress(b"x" * 100_000), "has a line of more than 65536 bytes"),
    ],
    ids=["cut short", "nothing at all", "no gzip", "empty", "another file's columns", "one long line"],
)
def test_what_is_no_such_file_is_named_fetched_once_and_nothing_of_it_kept(
    data: bytes, said: str, s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    server(data)
    client = Counted(s3_url)
    source = DayFiles(client, tmp_path, ["AAPL", "MSFT"], moment)
    for symbol in ("AAPL", "MSFT"):
        with pytest.raises(WrongPage, match=said):
            pages_of(source, span(symbol=symbol))
    assert client.fetched == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_of_several_members_is_read_to_the_end_and_a_ticker_may_stand_anywhere(
    s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    header = "id,conditions,ticker,price,size,exchange,sip_timestamp"
    text = table("T", {"MSFT": [past("stocks", "T", 1)], "AAPL": [past("stocks", "T", 1), past("stocks", "T", 2)]}, header)
    server(gzip.compress(text[:70]) + gzip.compress(text[70:]))
    assert ids(pages_of(DayFiles(Counted(s3_url), tmp_path, ["AAPL"], moment), span())) == ["1", "2"]


def test_a_weekend_has_no_file_and_no_events_and_any_other_day_without_one_is_named(s3_url: str, tmp_path: Path) -> None:
    source = DayFiles(Counted(s3_url), tmp_path, ["AAPL"], moment)
    for days in (1, 2):
        assert [(page.rows, page.following) for page in pages_of(source, span(days=days))] == [(0, None)]
    with pytest.raises(WrongPage, match=r"/us_stocks_sip/trades_v1/2024/03/2024-03-18.csv.gz does not exist. A day's file comes"):
        pages_of(source, span(days=3))


@contextmanager
def keys_checked(url: str) -> Iterator[None]:
    def allow(requests: str) -> None:
        data = urllib.request.Request(
            f"{url}/moto-api/reset-auth", requests.encode(), {"Content-Type": "application/octet-stream"}, method="POST"
        )
        urllib.request.urlopen(data).close()

    allow("0")
    try:
        yield
    finally:
        allow("inf")


def test_a_wrong_key_is_refused_in_the_providers_words_and_is_not_told(
    s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    server(gzip.compress(a_day(DAY_ROWS)))
    bucket = S3Reader(Bucket(s3_url, "flatfiles", Secret("accesskey"), Secret("hiddensecret")), sleep=lambda _: None)
    with keys_checked(s3_url), pytest.raises(Refused, match="The AWS Access Key Id you provided does not exist") as refused:
        pages_of(DayFiles(bucket, tmp_path, ["AAPL"], moment), span())
    assert not {Secret("accesskey"), Secret("hiddensecret")} & set(str(refused.value).replace("'", " ").split())
    assert refused.value.__cause__ is None


def test_a_server_that_is_away_or_stale_is_given_up_after_a_few_tries(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=8)) as stale:
        for port, said in ((1, "Could not connect"), (stale.getsockname()[1], "Timeout was reached")):
            place = Bucket(f"http://127.0.0.1:{port}", "flatfiles", Secret("accesskey"), Secret("hiddensecret"))
            bucket = S3Reader(place, sleep=lambda _: None, timeout_s=1.0, tries=1)
            with pytest.raises(Unavailable, match=said):
                pages_of(DayFiles(bucket, tmp_path, ["AAPL"], moment), span())


def test_a_fetch_ends_where_everything_is_to_end(s3_url: str, server: Callable[[bytes], None], tmp_path: Path) -> None:
    server(gzip.compress(a_day(DAY_ROWS)))
    bucket = S3Reader(Bucket(s3_url, "flatfiles", Secret("accesskey"), Secret("hiddensecret")), sleep=lambda _: True)
    with pytest.raises(Unavailable, match="stopped while it read"):
        pages_of(DayFiles(bucket, tmp_path, ["AAPL"], moment), span())


# What has to be configured


def archives(tmp_path: Path, environ: dict[str, str], *blocks: ProviderConfig) -> dict[tuple[str, str], Source]:
    config = Config(data_dir=str(tmp_path), providers=blocks)
    return open_archives(config, environ, tmp_path / "files", Random(1))


def test_the_keys_of_the_files_are_their_own_and_the_one_that_is_missing_is_named(
    s3_url: str, server: Callable[[bytes], None], tmp_path: Path
) -> None:
    block = ProviderConfig(name="polygon", files_url=s3_url, symbols=("AAPL",))
    environ = {"TAPELINE_POLYGON_KEY": "api", "TAPELINE_POLYGON_FILES_KEY": "k"}
    with pytest.raises(ConfigError, match="Set TAPELINE_POLYGON_FILES_SECRET"):
        archives(tmp_path, environ, block)
    with pytest.raises(ConfigError, match="Set TAPELINE_POLYGON_FILES_KEY"):
        archives(tmp_path, {}, block)
    assert archives(tmp_path, {}, ProviderConfig(name="polygon", feed="crypto")) == {}
    server(gzip.compress(a_day({"AAPL": 3})))
    source = archives(tmp_path, environ | {"TAPELINE_POLYGON_FILES_SECRET": "s"}, block)["polygon", "stocks"]
    assert ids(list(fetch(source, span()))) == ["0", "1", "2"]
    for name in ("key", "secret"):
        (tmp_path / name).write_text("in-a-file\n")
    from_files = replace(block, files_key_file=str(tmp_path / "key"), files_secret_file=str(tmp_path / "secret"))
    assert files_secrets(from_files, {}) == (Secret("in-a-file"), Secret("in-a-file"))
    with pytest.raises(ConfigError, match=r"files_key_file .*nowhere cannot be read"):
        files_secrets(replace(block, files_key_file="/nowhere"), environ)
