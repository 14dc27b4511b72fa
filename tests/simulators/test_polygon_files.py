"""Polygon.io's simulated flat files: the usual S3 client reads from them what the sockets were sent, and is refused as by the provider."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from listening import connect, told

from environments import python_of
from tapeline.simulators import Simulator, SimulatorOptions
from waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
READER = HERE.parent / "readers" / "s3"

pytestmark = pytest.mark.timeout(600)  # the first run fetches the client


def asked(url: str, *arguments: str) -> dict[str, Any]:
    """What boto3 finds."""
    command = [python_of(READER), str(READER / "files.py"), url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def served(journal: Path, faults: Sequence[str], *keys: str, limit: int = 600) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was sent to a socket, and what boto3 finds with each of some keys when all of it has been."""
    options = SimulatorOptions(
        name="polygon", rate=2_000, symbols=("AAPL", "MSFT"), limit=limit, faults=tuple(faults), journal=journal, files_port=0
    )

    async def scenario() -> list[dict[str, Any]]:
        simulator = Simulator(options)
        url = await simulator.start()
        try:
            client = await connect(url + "/stocks")
            client.say({"action": "auth", "params": "demo"})
            client.say({"action": "subscribe", "params": "T.*,Q.*"})
            await eventually(lambda: sum(simulator.sent.values()) >= limit)
            return [await asyncio.to_thread(asked, simulator.files_url, key, "secret") for key in keys]
        finally:
            await simulator.stop()

    found = asyncio.run(scenario())
    return told(journal), found


def test_the_files_hold_what_the_sockets_were_sent_whole_and_by_ranges(tmp_path: Path) -> None:
    python_of(READER)
    sent, (found,) = served(tmp_path / "sent.jsonl", [], "mykey")
    assert found["folders"] == ["us_stocks_sip/"]
    for kind, channel, number in (("trades_v1", "T", "id"), ("quotes_v1", "Q", "sequence_number")):
        files = {path: lines for path, lines in found["found"].items() if f"/{kind}/" in path}
        rows = [dict(zip(lines[0].split(","), _cells(line), strict=True)) for lines in files.values() for line in lines[1:]]
        events = [one["event"] for one in sent if one["channel"] == channel]
        live = {(event["sym"], str(event["i"] if channel == "T" else event["q"]), event["t"]) for event in events}
        assert {(row["ticker"], row[number], int(row["sip_timestamp"]) // 1_000_000) for row in rows} == live
        assert len(rows) == len(live)
        assert rows == sorted(rows, key=lambda row: (row["ticker"], int(row["sip_timestamp"])))
        for path, lines in files.items():
            day = path.rpartition("/")[2].removesuffix(".csv.gz")
            times = [int(dict(zip(lines[0].split(","), _cells(line), strict=True))["sip_timestamp"]) for line in lines[1:]]
            zone = ZoneInfo("America/New_York")
            assert {f"{datetime.fromtimestamp(ns / 1e9, zone):%Y-%m-%d}" for ns in times} == {day}
            assert f"/{day[:4]}/{day[5:7]}/" in path


def _cells(line: str) -> list[str]:
    return next(csv.reader([line]))


def test_who_may_not_is_refused_and_who_asks_too_often_or_meets_a_fault_comes_through(tmp_path: Path) -> None:
    sent, (wrong, tried) = served(tmp_path / "sent.jsonl", ["rest_429:1", "rest_error:1"], "badkey", "mykey", limit=100)
    assert wrong == {"refused": "InvalidAccessKeyId"}
    assert sum(len(lines) - 1 for lines in tried["found"].values()) == len(sent)


def test_what_is_not_there_is_said_in_s3_s_words() -> None:
    async def scenario() -> list[tuple[int, bytes]]:
        simulator = Simulator(SimulatorOptions(name="polygon", files_port=0, faults=("not_authorized:Q",)))
        await simulator.start()
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=k/20240101/us-east-1/s3/aws4_request, Signature=x"}

        def ask(path: str, headers: dict[str, str], method: str = "GET") -> tuple[int, bytes]:
            request = urllib.request.Request(simulator.files_url + path, headers=headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=10) as got:
                    return got.status, got.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        asks = [
            ("/flatfiles/us_stocks_sip/trades_v1/2024/03/2024-03-15.csv.gz", signed, "GET"),
            ("/flatfiles/us_stocks_sip/trades_v1/2024/03/2024-99-15.csv.gz", signed, "GET"),
            ("/flatfiles/us_stocks_sip/trades_v1/2024/03/2024-03-15.csv.gz", signed, "HEAD"),
            ("/flatfiles/us_stocks_sip/trades_v1/2024/03/2024-03-15.csv.gz", {}, "GET"),
            ("/other/x", signed, "GET"),
            ("/flatfiles/us_stocks_sip/quotes_v1/2024/03/2024-03-15.csv.gz", signed, "GET"),
            ("/flatfiles/", signed, "DELETE"),
        ]
        found = [await asyncio.to_thread(ask, *one) for one in asks]
        await simulator.stop()
        return found

    found = asyncio.run(scenario())
    assert [status for status, _ in found] == [404, 404, 404, 403, 404, 403, 405]
    assert b"<Code>NoSuchKey</Code>" in found[0][1]
    assert found[2][1] == b""
    assert b"not entitled" in found[5][1]
    assert b"<Code>AccessDenied</Code>" in found[3][1]
    assert b"<Code>NoSuchBucket</Code>" in found[4][1]


def test_other_simulators_have_no_such_files() -> None:
    with pytest.raises(ValueError, match=r"files_port is for polygon's flat files\. binance needs no such port"):
        SimulatorOptions(name="binance", files_port=0)
