"""The provider's files of whole days and months: read in pieces, compared with their checksums, refused where they are not theirs."""

from __future__ import annotations

import hashlib
import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import rows
from made import DAY, NOON
from tapeline.jobs.backfill.archive import Archive
from tapeline.jobs.backfill.backfill import Job
from tapeline.jobs.backfill.fetching import Source, fetch, raw_record
from tapeline.providers.binance.files import events_of
from tapeline.providers.events import UNREADABLE
from tapeline.providers.history import Request, Span, WrongPage
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import ARCHIVES, DECODERS
from tapeline.records import NS_PER_MS, RAW_TOPIC, Chunk

if TYPE_CHECKING:
    pass

MIDNIGHT = NOON - NOON % DAY
TRADES = Span("spot", "trade", "BTC/USDT", MIDNIGHT, MIDNIGHT + DAY)
PATH = "/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-03-15.zip"


def packed(text: str, name: str = "BTCUSDT-trades-2024-03-15.csv") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, text)
    return made.getvalue()


def trades(count: int, *, us: bool = False, header: bool = False) -> str:
    unit = 1_000 if us else 1
    lines = [f"{n},1.5,2,3,{(NOON // NS_PER_MS + n) * unit},True,True" for n in range(1, count + 1)]
    return "\n".join((["id,price,qty,quote_qty,time,is_buyer_maker,is_best_match"] if header else []) + lines) + "\n"


class Files:
    """An archive's server: path to body."""

    def __init__(self, **bodies: bytes) -> None:
        self.bodies = {PATH: bodies["zip"], f"{PATH}.CHECKSUM": bodies.get("sum", b"")}
        if "sum" not in bodies:
            self.bodies[f"{PATH}.CHECKSUM"] = f"{hashlib.sha256(bodies['zip']).hexdigest()}  {Path(PATH).name}\n".encode()
        self.downloads = 0

    def get(self, path: str, weight: int) -> bytes:
        return self.bodies[path]

    def download(self, path: str, weight: int, to: Path) -> None:
        self.downloads += 1
        to.write_bytes(self.bodies[path])


def read(files: Files, folder: Path, begin: Request | None = None) -> list[bytes]:
    """The payloads of the raw records."""
    source = Source(ARCHIVES["binance"].history, Archive(files, folder), lambda: NOON + DAY)
    return [page.payload for page in fetch(source, TRADES, begin, int(begin is not None)) if page.payload is not None]


def ticks(payloads: list[bytes]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for offset, payload in enumerate(payloads):
        page = type("Page", (), {"payload": payload, "fetched_ns": NOON + DAY})
        chunk = Chunk.dense(RAW_TOPIC, 0, offset, raw_record("binance", "spot", "backfill-1", page))  # type: ignore[arg-type]
        normalized = normalize(chunk, DECODERS)
        assert not normalized.counts["binance", "spot"].rejected
        found += [(row["sequence"], row["ts_ns"], row["last"], row["volume"], row["side"]) for row in rows(normalized)["ticks"]]
    return found


@pytest.mark.parametrize("us", [False, True])
@pytest.mark.parametrize("header", [False, True])
def test_a_file_is_read_in_pieces_whatever_its_unit_and_with_or_without_a_header(us: bool, header: bool, tmp_path: Path) -> None:
    count = 30_000
    files = Files(zip=packed(trades(count, us=us, header=header)))
    payloads = read(files, tmp_path)
    assert len(payloads) > 2
    assert ticks(payloads) == [(n, NOON + n * NS_PER_MS, 1.5, 2.0, "sell") for n in range(1, count + 1)]
    assert files.downloads == 1
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_who_was_killed_in_the_middle_fetches_the_file_again_and_goes_on_where_it_was(tmp_path: Path) -> None:
    files = Files(zip=packed(trades(30_000)))
    whole = read(files, tmp_path / "one")
    source = Source(ARCHIVES["binance"].history, Archive(files, tmp_path / "two"), lambda: NOON + DAY)
    first = next(iter(fetch(source, TRADES)))
    assert first.payload == whole[0]
    assert read(files, tmp_path / "elsewhere", first.following) == whole[1:]


def test_a_file_that_was_replaced_in_between_is_named_and_nothing_of_it_is_mixed_in(tmp_path: Path) -> None:
    old = Source(ARCHIVES["binance"].history, Archive(Files(zip=packed(trades(30_000))), tmp_path / "one"), lambda: NOON + DAY)
    following = next(iter(fetch(old, TRADES))).following
    with pytest.raises(WrongPage, match="was replaced after its first part was read"):
        read(Files(zip=packed(trades(30_001))), tmp_path / "two", following)


@pytest.mark.parametrize(
    ("bodies", "said"),
    [
        ({"zip": packed(trades(9)), "sum": b"0" * 64 + b"  x.zip\n"}, "but its CHECKSUM says 0000"),
        ({"zip": packed(trades(9)), "sum": b""}, "its CHECKSUM says nothing"),
        ({"zip": b"no zip"}, "is not a readable zip file"),
        ({"zip": packed(trades(30_000))[:-3_000]}, "is not a readable zip file"),
        ({"zip": packed("1,2,3\n")}, "line 1: line of a file: it has 3 cells, not 6 to 7: 1,2,3"),
        ({"zip": packed("id,price\nx,1,2,3,4,True\n")}, "cannot be read"),
        ({"zip": packed(f"{2**64},1,2,3,4,True\n")}, "does not fit 64 bits"),
    ],
)
def test_what_is_not_what_it_should_be_is_named_and_nothing_of_it_kept(bodies: dict[str, bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(WrongPage, match=said):
        read(Files(**bodies), tmp_path)


@given(st.sampled_from(["trade", "aggTrade", "kline_1m"]), st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_but_what_is_known_to_be_unreadable(channel: str, body: bytes) -> None:
    with suppress(UNREADABLE):
        events_of(channel, "BTC/USDT", 0, b"0 -1\n" + body)


def path_of(channel: str, start: int, end: int) -> str:
    return ARCHIVES["binance"].history.first(Span("spot", channel, "BTC/USDT", start, end)).path


def test_whole_months_come_as_one_file_and_the_days_around_them_each_as_one() -> None:
    january, february, march = (int(days) * DAY for days in (19_723, 19_754, 19_783))  # of 2024
    spans = Job("binance", "spot", ("aggTrade",), ("BTC/USDT",), january + 30 * DAY + 5, march + DAY, files=True).spans()
    paths = [path_of("aggTrade", span.start_ns, span.end_ns) for span in spans]
    assert [path.rpartition("/")[2] for path in paths] == [
        "BTCUSDT-aggTrades-2024-01-31.zip",
        "BTCUSDT-aggTrades-2024-02.zip",
        "BTCUSDT-aggTrades-2024-03-01.zip",
    ]
    assert path_of("kline_1M", february, march) == "/data/spot/monthly/klines/BTCUSDT/1mo/BTCUSDT-1mo-2024-02.zip"
    assert path_of("trade", *((TRADES.start_ns, TRADES.end_ns))) == PATH
