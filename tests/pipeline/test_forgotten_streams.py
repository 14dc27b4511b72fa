"""A stream that forgets what it held: everything that arrives after is kept, and what was lost unread is a gap, for every channel."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import AdminClient
from processes import block, ledger

from proving import proof
from tapeline.demo.verify import compare
from tapeline.records import TICKS_TOPIC
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import Home, Process, SimulatorProcess

pytestmark = proof("streams")

CHANNELS = ("trade", "bookTicker")
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def start(home: Home, market: SimulatorProcess, settings: str) -> Process:
    home.configure(f"repair = false\n{settings}\n" + block("binance", market.url, SYMBOLS, CHANNELS), ledger=True, flush_seconds=0.2)
    run = home.start("run")
    flows(home, 400)
    return run


def flows(home: Home, more: int) -> None:
    """Wait until so many ticks more are in the lake than now."""
    wanted = rows(home) + more
    until(lambda: rows(home) >= wanted, f"{wanted} ticks are in the lake")


def rows(home: Home) -> int:
    return int(home.word("lake").get("tables", {}).get("ticks", {}).get("rows", 0))


def sent(market: SimulatorProcess) -> list[dict[str, Any]]:
    whole = market.journal.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def settle(home: Home, market: SimulatorProcess, run: Process) -> None:
    """Close the market, and end the run once nothing waits anywhere."""
    market.halt()
    until(lambda: not any(entry["records"] for entry in home.status()["backlog"]), "nothing waits")
    run.popen.terminate()
    assert run.ends() == 0, run.said[-3000:]
    market.stop()


def what_came_after_is_kept_and_what_is_lost_is_a_gap(home: Home, market: SimulatorProcess, until_line: int) -> int:
    """`until_line`: lines of the journal behind which nothing may be missing. How many events are."""
    found = compare(home.lake, [market.journal])
    assert found.extra == []
    lines = [(line["channel"], line["symbol"], str(line["id"])) for line in sent(market)]
    missing = {(row["channel"], row["symbol"], row["id"]) for row in found.missing}
    after = [line for line in lines[until_line:] if line in missing]
    assert after == [], f"{len(after)} of {len(lines) - until_line} events that came after are not kept"
    answers = ledger(home)
    for key, intervals in answers.items():
        lost = {int(number) for channel, symbol, number in missing if (channel, symbol) == (key.channel, key.symbol.replace("/", ""))}
        proven = [(one.first_id, one.last_id) for one in intervals if one.state == "proven"]
        wrong = [number for number in lost if any(first <= number <= last for first, last in proven)]  # type: ignore[operator]  # proven: by ids
        assert wrong == [], f"{key}: {len(wrong)} events are called proven and are not in the lake"
        if lost:
            assert any(one.state == "open" and one.start_ns < one.end_ns for one in intervals), f"{key}: {len(lost)} are lost, and no gap"
        if key.channel == "trade":
            gaps = [(one.first_id, one.last_id) for one in intervals if one.state == "open" and one.first_id is not None]
            # Before the first number and behind the last, only another one will tell.
            numbers = [number for run in proven for number in run if number is not None]
            gaps += [(0, min(numbers, default=1 << 62) - 1), (max(numbers, default=0) + 1, 1 << 62)]
            untold = [number for number in lost if not any(first <= number <= last for first, last in gaps)]  # type: ignore[operator]  # with ids
            assert untold == [], f"{key}: {len(untold)} lost events are in no gap: {untold[:3]}, {intervals}"
    assert len(answers) == len(CHANNELS) * len(SYMBOLS)
    checked = home.ask("lake", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return len(missing)


REDIS = {
    "everything": [("FLUSHALL",)],
    "raw": [("DEL", "market-data.raw:0")],
    "normalized": [("DEL", f"{TICKS_TOPIC.name}:0")],
    "both": [("DEL", "market-data.raw:0", f"{TICKS_TOPIC.name}:0")],
    "ends": [("DEL", f"tapeline:end:{TICKS_TOPIC.name}:0", "tapeline:end:market-data.raw:0")],
    "facts": [("DEL", "tapeline:facts")],
    "totals": [("DEL", "tapeline:totals:normalize")],
}


@pytest.mark.parametrize("what", REDIS)
def test_a_redis_that_forgets_under_load(what: str, home: Home, simulator: Callable[..., SimulatorProcess], own_redis: Any) -> None:
    server = own_redis()
    market = simulator("binance", "--rate", "400", "--seed", "3")
    run = start(home, market, f'[stream]\nurl = "{server.url}"\npartitions = 1\n')
    for command in REDIS[what]:
        server.ask(*command)
    lines = len(sent(market))
    flows(home, 400)
    settle(home, market, run)
    lost = what_came_after_is_kept_and_what_is_lost_is_a_gap(home, market, lines + 400)
    if what in ("facts", "totals"):
        assert lost == 0
    equations = home.status()["equations"]
    assert [entry["text"] for entry in equations if entry["stage"] == "ingest to normalize" and not entry["balanced"]] == []
    (ticks,) = [entry for entry in equations if (entry["stage"], entry["what"]) == ("normalize to lake", "ticks written")]
    if what == "normalized":
        assert ticks["read"] - ticks["taken"] == lost, "what a store never saw is missing between the stages"
        assert ticks["balanced"] == (lost == 0)
    elif what in ("everything", "raw", "facts"):
        assert ticks["balanced"], ticks
    if what in ("everything", "raw", "normalized", "both"):
        assert "the stream has begun anew" in run.said


def test_a_redis_that_comes_back_empty_while_everything_runs_and_once_more_after_everything_was_stopped(
    home: Home, simulator: Callable[..., SimulatorProcess], own_redis: Any
) -> None:
    server = own_redis(settings="appendonly no")
    market = simulator("binance", "--rate", "400", "--seed", "3")
    run = start(home, market, f'[stream]\nurl = "{server.url}"\npartitions = 1\n')
    server.kill()
    server.start()
    flows(home, 400)
    what = home.status()
    assert any(entry["topic"] == TICKS_TOPIC.name for entry in what["forgotten"]), what["forgotten"]
    run.popen.terminate()
    assert run.ends() == 0
    server.kill()
    server.start()
    stopped, before = len(sent(market)), rows(home)
    again = home.start("run")
    until(lambda: rows(home) >= before + 400, "what comes after is kept")
    settle(home, market, again)
    # Events that were on their way at the stop may be lost. The ledger shows them as a gap.
    what_came_after_is_kept_and_what_is_lost_is_a_gap(home, market, stopped)


def told(home: Home, run: Process) -> None:
    """Wait until a stage has met the loss. What was on its way through the stream is stored before that."""
    until(lambda: home.status()["forgotten"], "the status says what is lost")
    assert "the stream has begun anew" in run.said


TOPICS_OF_KAFKA = {"raw": ["market-data.raw"], "normalized": [TICKS_TOPIC.name], "everything": ["market-data.raw", TICKS_TOPIC.name]}
FULL = proof("streams", quick=False)


@pytest.mark.parametrize(
    ("running", "what"),
    [
        pytest.param(True, "everything", id="running-everything"),
        pytest.param(True, "raw", id="running-raw", marks=FULL),
        pytest.param(True, "normalized", id="running-normalized", marks=FULL),
        pytest.param(False, "everything", id="stopped-everything", marks=FULL),
        pytest.param(False, "raw", id="stopped-raw"),
        pytest.param(False, "normalized", id="stopped-normalized", marks=FULL),
    ],
)
def test_topics_of_kafka_that_are_removed(
    what: str, running: bool, home: Home, simulator: Callable[..., SimulatorProcess], own_kafka: Any
) -> None:
    server = own_kafka()
    market = simulator("binance", "--rate", "400", "--seed", "3")
    run = start(home, market, f'[stream]\nurl = "{server.url}"\npartitions = 1\n')
    if not running:
        run.popen.terminate()
        assert run.ends() == 0
    admin = AdminClient({"bootstrap.servers": server.address})
    for done in admin.delete_topics(TOPICS_OF_KAFKA[what]).values():
        done.result()
    lines, before = len(sent(market)), rows(home)
    if not running:
        run = home.start("run")
    until(lambda: rows(home) >= before + 400, "what comes after is kept")
    if running or what == "normalized":
        told(home, run)
    if running:
        lines = len(sent(market))
        flows(home, 400)
    settle(home, market, run)
    what_came_after_is_kept_and_what_is_lost_is_a_gap(home, market, lines + 400)


@pytest.mark.parametrize("running", [pytest.param(True, id="running"), pytest.param(False, id="stopped", marks=FULL)])
def test_a_kafka_that_comes_back_from_an_older_copy(
    running: bool, home: Home, simulator: Callable[..., SimulatorProcess], own_kafka: Any
) -> None:
    server = own_kafka()
    market = simulator("binance", "--rate", "100", "--seed", "3")
    run = start(home, market, f'[stream]\nurl = "{server.url}"\npartitions = 1\n')
    run.popen.terminate()
    assert run.ends() == 0
    server.stop()
    shutil.copytree(server.data, server.folder / "copy")
    server.start()
    run = home.start("run")
    flows(home, 400)
    if not running:
        run.popen.terminate()
        assert run.ends() == 0
    server.stop()
    shutil.rmtree(server.data)
    (server.folder / "copy").rename(server.data)
    server.start()
    lines, before = len(sent(market)), rows(home)
    if not running:
        run = home.start("run")
    until(lambda: rows(home) >= before + 100, "what comes after is kept")
    told(home, run)
    if running:
        lines = len(sent(market))
        flows(home, 100)
    settle(home, market, run)
    what_came_after_is_kept_and_what_is_lost_is_a_gap(home, market, lines + 400)


FILES = {"everything": "*", "raw": "raw.sqlite*", "normalized": "normalized.sqlite*", "raw without its log": "raw.sqlite"}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_an_embedded_stream_whose_files_are_removed(
    what: str, running: bool, home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "400", "--seed", "3")
    run = start(home, market, "")
    if not running:
        run.popen.terminate()
        assert run.ends() == 0
    remove(home.root / "stream", FILES[what])
    lines = len(sent(market))
    if not running:
        run = home.start("run")
        until(lambda: home.word("ingest").get("updated_ns", 0) > time.time_ns() - 2e9 and home.pid("ingest"), "it runs again")
        lines = len(sent(market)) + 400
    flows(home, 400)
    settle(home, market, run)
    lost = what_came_after_is_kept_and_what_is_lost_is_a_gap(home, market, lines + 400)
    assert all(entry["balanced"] for entry in home.status()["equations"]), home.status()["equations"]
    assert lost == 0 or what != "normalized", "what raw.sqlite still has is made again"


def remove(folder: Path, pattern: str) -> None:
    if pattern == "*":
        shutil.rmtree(folder)
        return
    for path in folder.glob(pattern):
        path.unlink()
