"""An engine needs nothing but market_data.proto and a plain client of Kafka or Redis to get every field of every record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from processes import Home, block

from brokers import stream_block
from tapeline.reading.sql import find
from tapeline.records import BARS, TICKS
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import SimulatorProcess

    from tapeline.config import StreamConfig

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "clients" / "plain_consumer.py"
#: The two columns that have another name on the wire.
WIRE = {"ts_ns": "timestamp_ns", "last": "last_price"}


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What protoc makes of market_data.proto."""
    folder = tmp_path_factory.mktemp("generated")
    proto = ROOT / "proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"--python_out={folder}", str(proto / "market_data.proto")]
    subprocess.run(command, check=True)
    return folder


def engine(generated: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TAPELINE", "PYTHON"))}
    command = [sys.executable, "-u", str(PROGRAM), *arguments]  # a new interpreter: a fork would know Tapeline
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environ | {"PYTHONPATH": str(generated)}, cwd="/")


def by_id(rows: list[dict[str, Any]]) -> dict[tuple[int, int, int], dict[str, Any]]:
    found = {(row["raw_partition"], row["raw_offset"], row["raw_index"]): row for row in rows}
    assert len(found) == len(rows), "an id came twice"
    return found


@pytest.mark.parametrize("kind", ["kafka", "redis"])
def test_a_plain_client_gets_every_field_of_every_record(
    kind: str, shared: Callable[..., StreamConfig], home: Home, simulator: Callable[..., SimulatorProcess], generated: Path, tmp_path: Path
) -> None:
    stream = shared(kind, partitions=3)
    market = simulator("binance", "--rate", "500", "--limit", "2500")
    feed = block("binance", market.url, ["BTCUSDT", "ETHUSDT", "SOLUSDT"], ["trade", "bookTicker", "kline_1s"])
    home.configure(stream_block(stream) + feed)
    run = home.start("run", "--until-idle", "1")
    until(lambda: home.word("lake").get("pid"), "nothing runs")  # before that there is no topic to read
    address = stream.url.removeprefix("kafka://")
    topics = {"market-data.normalized": ("MarketData", "ticks", TICKS), "market-data.bars": ("Bar", "bar_revisions", BARS)}
    engines = {
        topic: engine(generated, kind, address, stream.topic_prefix + topic, message, str(tmp_path / topic))
        for topic, (message, *_) in topics.items()
    }
    assert run.ends() == 0, run.said
    for topic, (_, table, schema) in topics.items():
        engines[topic].communicate(timeout=60.0)
        assert engines[topic].returncode == 0
        got = [json.loads(line) for line in (tmp_path / topic).read_text().splitlines()]
        kept = by_id(find(home.lake, table, "true", []))
        records = by_id(got)
        assert len(kept) > 10
        assert records.keys() == kept.keys()
        for key, row in kept.items():
            assert {name: records[key][WIRE.get(name, name)] for name in schema.names} == {name: row[name] for name in schema.names}
        where: dict[str, set[int]] = {}
        for record in got:
            where.setdefault(record["symbol"], set()).add(record["partition"])
            assert record["key"] in (record["symbol"], "")
        assert all(len(partitions) == 1 for partitions in where.values()), "a symbol is in several partitions"


def test_the_commands_of_the_documentation_show_a_record(
    own_kafka: Callable[..., Any], home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    if shutil.which("kcat") is None:
        pytest.skip("kcat is not installed (apt-get install kcat)")
    server = own_kafka()
    market = simulator("binance", "--rate", "300", "--limit", "300")
    feed = block("binance", market.url, ["BTCUSDT"], ["trade"])
    home.configure(f'[stream]\nurl = "{server.url}"\npartitions = 1\n' + feed)
    assert home.run("--until-idle", "1") == 0
    text = (ROOT / "docs" / "engine.md").read_text()
    decode, keys = (part.partition("```")[0] for part in text.split("```bash\n")[1:3])
    assert decode.startswith("kcat")
    assert keys.startswith("kcat")

    def shown(command: str) -> str:
        command = command.replace("localhost:9092", server.address).replace("protoc ", f"{sys.executable} -m grpc_tools.protoc ")
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert 'symbol: "BTC/USDT"' in shown(decode)
    assert [line.split()[2] for line in shown(keys).splitlines()] == ["BTC/USDT"] * 300
