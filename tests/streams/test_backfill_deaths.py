"""History comes into every stream page by page: killed at any point, no page is there twice and none is missing."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import msgspec
import pytest
from places import EACH, Place, column

from made import NOON
from made_history import Exchange
from proving import proof
from tapeline.providers.history import PageHeader
from tapeline.records import NS_PER_S, RAW_TOPIC
from waiting import PATIENCE_S

if TYPE_CHECKING:
    from conftest import Workers

TRADES, PAGE = 2_000, 90
pytestmark = proof("crashes")

POINTS = ["before note", "after note", "before send", "after send", "before settle", "after settle"]


@pytest.mark.parametrize("place", EACH, indirect=True)
@pytest.mark.parametrize("some", range(2))
def test_a_backfill_that_is_killed_again_and_again_sends_each_page_once(place: Place, work: Workers, some: int) -> None:
    start_ns, end_ns = NOON + 20 * NS_PER_S, NOON + 150 * NS_PER_S
    told = {
        "trades": TRADES,
        "page": PAGE,
        "start_ns": start_ns,
        "end_ns": end_ns,
        "log": str(place.described()["data_dir"]) + "/log.sqlite",
    }
    stream = place.open()
    stream.ends(RAW_TOPIC)
    for point in POINTS[some::2]:
        dying = work(place, "backfill", die=[point, 3], **told)
        assert dying.wait(PATIENCE_S) == -signal.SIGKILL, work.said()
    last = work(place, "backfill", **told)
    assert last.wait(PATIENCE_S) == 0, work.said()
    wanted = Exchange(TRADES).numbers(start_ns, end_ns)
    ids: dict[str, list[int]] = {}
    done: list[str] = []
    for payload in column(stream, RAW_TOPIC, "payload"):
        head, _, body = payload.partition(b"\n")
        asked = msgspec.json.decode(head, type=PageHeader)
        ids.setdefault(asked.symbol, []).extend(row["id"] for row in msgspec.json.decode(body))
        done += [asked.symbol] * asked.done
    assert sorted(done) == ["BTC/USDT", "ETH/USDT"]
    for symbol in ("BTC/USDT", "ETH/USDT"):
        first_id, last_id = ids[symbol][0], ids[symbol][-1]
        assert wanted[0] - 3 <= first_id <= wanted[0]  # it begins with the trades of the aggregated one before
        assert wanted[-1] <= last_id < wanted[-1] + PAGE  # and the last page goes a little past the end
        assert ids[symbol] == list(range(first_id, last_id + 1))
    again = work(place, "backfill", **told)
    assert again.wait(PATIENCE_S) == 0
    assert len(column(stream, RAW_TOPIC, "payload")) == sum(-(-len(found) // PAGE) for found in ids.values())
