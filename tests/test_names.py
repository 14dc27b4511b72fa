"""Base and quote come from the exchange's own list, which is a raw record; from the configuration; and else from a table."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from frames import raw_batch
from tapeline.app.symbol_names import configured_names
from tapeline.config import Config, ProviderConfig
from tapeline.errors import ConfigError, Unavailable
from tapeline.ledger import read_intervals
from tapeline.ledger.absorbing import absorb
from tapeline.ledger.facts import Facts
from tapeline.ledger.intervals import intervals
from tapeline.ledger.sqlite import LedgerFile
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS, PROVIDERS
from tapeline.records import BARS_TOPIC, RAW, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk
from tapeline.stages.ledger import LedgerWriter
from tapeline.stages.names import LISTED, KnownNames
from tapeline.stages.normalize import Normalize
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tapeline.streams import Stream

SPOT = ("binance", "spot")
SPLIT = {"ADAEUR": "ADA/EUR", "THETAEUR": "THETA/EUR", "AIXYZ": "AI/XYZ"}


def trade(symbol: str, number: int) -> bytes:
    stream = f"{symbol.lower()}@trade"
    return (
        f'{{"stream":"{stream}","data":{{"e":"trade","E":1795879970599,"s":"{symbol}","t":{number},"p":"0.95","q":"10",'
        '"T":1795879970599,"m":true,"M":true}}'
    ).encode()


def kline(symbol: str) -> bytes:
    body = {"t": 1795879920000, "T": 1795879979999, "s": symbol, "i": "1m", "f": 1, "L": 2, "o": "1", "c": "1", "h": "1", "l": "1"}
    body |= {"v": "1", "n": 2, "x": True, "q": "1", "V": "1", "Q": "1", "B": "0"}
    event = {"e": "kline", "E": 1795879980000, "s": symbol, "k": body}
    return json.dumps({"stream": f"{symbol.lower()}@kline_1m", "data": event}, separators=(",", ":")).encode()


def listing(**names: str) -> bytes:
    return json.dumps({"url": "http://there/api/v3/exchangeInfo", "names": names}).encode()


def chunk(*frames: bytes, kind: str = "frame", first: int = 0, partition: int = 0) -> Chunk:
    batch = raw_batch("binance", "spot", frames, kind)
    if kind == LISTED:
        batch = batch.set_column(2, RAW.field("connection"), pa.array([""] * len(frames)))
    return Chunk.dense(RAW_TOPIC, partition, first, batch)


def symbols(batch: pa.RecordBatch) -> list[str]:
    return sorted(set(batch["symbol"].to_pylist()))


@pytest.mark.parametrize("count", [1, 2_000], ids=["few", "many"])
def test_events_are_kept_under_the_names_that_the_exchange_gives(count: int) -> None:
    frames = [trade(symbol, number) for number in range(count) for symbol in (*SPLIT, "BTCUSDT")]
    made = normalize(chunk(*frames, *(kline(symbol) for symbol in SPLIT)), DECODERS, names={SPOT: SPLIT}).batches
    assert symbols(made[TICKS_TOPIC]) == ["ADA/EUR", "AI/XYZ", "BTC/USDT", "THETA/EUR"]
    assert symbols(made[BARS_TOPIC]) == ["ADA/EUR", "AI/XYZ", "THETA/EUR"]
    assert made[TICKS_TOPIC].num_rows == len(frames)
    assert made[REJECTED_TOPIC].num_rows == 0


def test_without_a_list_the_longest_quote_asset_of_the_table_splits_a_symbol() -> None:
    made = normalize(chunk(*(trade(symbol, 1) for symbol in SPLIT)), DECODERS).batches
    assert symbols(made[TICKS_TOPIC]) == ["AD/AEUR", "THET/AEUR"]
    assert made[REJECTED_TOPIC].num_rows == 1


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    found = EmbeddedStream(tmp_path / "stream")
    yield found
    found.close()


def test_a_list_counts_for_its_own_chunk_and_all_that_follow_for_who_has_met_it_and_for_who_goes_on_from_there(stream: Stream) -> None:
    names = KnownNames(stream, {})
    assert names.of(chunk(b"{}")) == {}
    assert names.of(chunk(listing(ADAEUR="ADA/EUR", BTCUSDT="BTC/USDT"), kind=LISTED, first=1))[SPOT] == {"ADAEUR": "ADA/EUR"}
    assert names.of(chunk(b"{}", first=2))[SPOT] == {"ADAEUR": "ADA/EUR"}
    assert KnownNames(stream, {}).of(chunk(b"{}", first=3))[SPOT] == {"ADAEUR": "ADA/EUR"}


def test_a_worker_that_takes_over_a_partition_hears_what_the_one_before_has_met_there(stream: Stream) -> None:
    one, other = KnownNames(stream, {}), KnownNames(stream, {})
    one.of(chunk(b"{}", partition=0))
    other.of(chunk(b"{}", partition=1))
    one.of(chunk(listing(**SPLIT), kind=LISTED, partition=0, first=1))
    assert other.of(chunk(b"{}", partition=1, first=1)) == {}, "what it reads has no list before it"
    assert other.of(chunk(b"{}", partition=0, first=2))[SPOT] == SPLIT


def test_a_list_that_says_nothing_new_is_noted_again_because_kafka_forgets_a_note_after_a_week(stream: Stream) -> None:
    names = KnownNames(stream, {})
    names.of(chunk(listing(ADAEUR="ADA/EUR"), kind=LISTED))
    kept = stream.noted("listed")
    assert kept
    stream.note("listed", "")
    names.of(chunk(listing(ADAEUR="ADA/EUR"), kind=LISTED, first=1))
    assert stream.noted("listed") == kept


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"names":[1]}', b'{"names":{"ADAEUR":"BTC/USDT"}}', b'{"names":{"ADAEUR":7}}'])
def test_a_list_that_makes_no_sense_changes_nothing(stream: Stream, payload: bytes) -> None:
    names = KnownNames(stream, {})
    assert names.of(chunk(payload, kind=LISTED)).get(SPOT, {}) == {}
    made = normalize(chunk(payload, kind=LISTED), DECODERS)
    assert made.counts[SPOT].notices == 1


def test_what_a_person_has_configured_counts_before_the_list(stream: Stream) -> None:
    provider = ProviderConfig(name="binance", names={"ADAEUR": "ADAE/UR"})
    names = KnownNames(stream, configured_names(Config(providers=(provider,))))
    assert names.of(chunk(listing(**SPLIT), kind=LISTED))[SPOT] == {**SPLIT, "ADAEUR": "ADAE/UR"}


@pytest.mark.parametrize(("name", "symbol"), [("ADAEUR", "ADA/USD"), ("ADAEUR", "ADAEUR"), ("adaeur", "ADA/EUR"), ("A/B", "A/B")])
def test_a_configured_name_that_splits_nothing_is_refused(name: str, symbol: str) -> None:
    with pytest.raises(ConfigError, match=f'{name} = "{symbol}" does not split a symbol'):
        configured_names(Config(providers=(ProviderConfig(name="binance", names={name: symbol}),)))


def test_names_of_another_provider_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not split a symbol of alpaca"):
        configured_names(Config(providers=(ProviderConfig(name="alpaca", names={"AAPL": "AA/PL"}),)))


def test_the_ledger_knows_what_was_asked_for_by_the_exchange_s_names() -> None:
    opened = json.dumps({"topics": ["adaeur@trade", "adaeur@bookTicker"]}).encode()
    parts = [
        chunk(listing(**SPLIT), kind=LISTED),
        chunk(opened, kind="opened", first=1),
        chunk(b"{}", kind="subscribed", first=2),
        chunk(trade("ADAEUR", 10), trade("ADAEUR", 11), first=3),
    ]
    facts = Facts()
    for part in parts:
        absorb(facts, part, normalize(part, DECODERS, names={SPOT: SPLIT}), names={SPOT: SPLIT})
    assert {(key.channel, key.symbol) for key in facts.keys()} == {("trade", "ADA/EUR"), ("bookTicker", "ADA/EUR")}  # noqa: SIM118 no mapping
    (key,) = [key for key in facts.keys() if key.channel == "trade"]  # noqa: SIM118 no mapping
    assert next(one.state for one in intervals(facts, key)) == "proven"
    assert set(facts.connections) == {"c1"}
    kept = Facts.of(facts.runs, facts.connections)
    assert kept.keys() == facts.keys()


def test_a_name_becomes_itself_again_by_the_exchange_s_list() -> None:
    binance = PROVIDERS["binance"]
    assert binance.symbol_of("spot", "adaeur", SPLIT) == binance.symbol_of("spot", "ADA/EUR", SPLIT) == "ADA/EUR"
    assert binance.name_problem("spot", "ADA/EUR", SPLIT) == ""
    assert "as ADA/EUR" in binance.name_problem("spot", "AD/AEUR", SPLIT)
    assert "as AD/AEUR" in binance.name_problem("spot", "ADA/EUR")


def test_a_ledger_that_cannot_ask_for_a_moment_takes_the_same_records_up_again(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.append(RAW_TOPIC, raw_batch("binance", "spot", [trade("BTCUSDT", number) for number in (7, 8, 9)]), 0)
    normalize_stage = Normalize(stream, DECODERS, StatusFile(tmp_path, "normalize"))
    while normalize_stage.step():
        continue
    stop, ledger = threading.Event(), LedgerFile(tmp_path / "ledger.sqlite")
    stop.set()
    stage = LedgerWriter(stream, ledger, DECODERS, StatusFile(tmp_path, "ledger"), stop)

    def away(name: str) -> str:
        raise Unavailable("the stream is away")

    with monkeypatch.context() as patch:
        patch.setattr(stream, "noted", away)
        with pytest.raises(Unavailable):
            stage.step()
    while stage.step():
        continue
    (found,) = read_intervals(ledger.intervals()).values()
    assert [(one.state, one.first_id, one.last_id) for one in found] == [("proven", 7, 9)]
