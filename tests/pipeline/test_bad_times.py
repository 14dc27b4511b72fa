"""Disks that are full, data that is newer, keys that are wrong, providers that are away: what is said, and with which status."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from processes import Home, Spawner, ask, block

from tapeline.app.connections import connection_plans
from tapeline.app.stores import open_stores
from tapeline.app.streams import open_stream
from tapeline.config import load
from tapeline.demo.verify import compare
from tapeline.errors import ConfigError
from tapeline.records import TICKS_TOPIC
from tapeline.stores import with_dates
from tapeline.streams.embedded import EmbeddedStream
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from processes import SimulatorProcess

NOWHERE = "ws://127.0.0.1:9"  # the discard port: nobody listens
BINANCE = block("binance", NOWHERE, ["BTCUSDT"], ["trade"])
SECRET = "s3cr3t-0f-a-test-7f19"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_nothing_for_good_and_loses_nothing(
    small_disk: Path, spawn: Spawner, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "400", "--limit", "2400", "--fault", "rewind:all")
    home = Home(small_disk / "data", spawn)
    home.configure(block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"]))
    run = home.start("run", "--until-idle", "1.5")
    until(lambda: home.rows("SELECT count(*) FROM ticks") > [(0,)], "nothing in the lake")

    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        block_bytes = 1 << 20
        while block_bytes:
            try:
                file.write(b"\0" * block_bytes)
            except OSError:
                block_bytes //= 2
    said = run.says("full", 30.0)
    until(lambda: "received records are held in memory" in run.said, "ingest does not say that it holds what it has")
    assert "Traceback" not in said
    assert "Free disk space" in run.said
    assert run.running
    # Looking on still works.
    with closing(EmbeddedStream(home.root / "stream")) as stream:
        before = stream.lag(TICKS_TOPIC, {})[0]
    ballast.unlink()

    assert run.ends() == 0, run.said
    assert "The stream accepts records again. The held records follow in order." in run.said
    assert "Traceback" not in run.said
    assert "\\x1b" not in run.said
    assert run.said.count("could not be written") <= 4, "each stage says it once"
    market.stop()
    found = compare(home.lake, [market.journal], once=True)
    assert (found.missing, found.extra, found.sent) == ([], [], 2400)
    assert found.kept >= before
    assert all(entry["balanced"] for entry in home.status()["equations"])


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path: Path, spawn: Spawner) -> None:
    (tmp_path / "file").write_text("not a folder")
    home = Home(tmp_path / "file" / "data", spawn)
    config = tmp_path / "tapeline.toml"
    config.write_text(f'data_dir = "{home.root}"\n{BINANCE}')
    for command, status in (("run", 74), ("check", 74), ("status", 78)):
        found = ask(*command.split(), "--config", str(config))
        assert found.returncode == status, command
        assert str(home.root) in found.stdout + found.stderr
        assert "Traceback" not in found.stderr


def _newer_stream(home: Home) -> Path:
    with closing(EmbeddedStream(home.root / "stream")) as stream:
        stream.ends(TICKS_TOPIC)
    path = home.root / "stream" / "normalized.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    return path


def _newer_lake(home: Home) -> Path:
    table = home.lake / "ticks"
    empty = with_dates(pa.RecordBatch.from_pylist([], TICKS_TOPIC.schema))
    write_deltalake(str(table), empty, partition_by=["date"], description="Tapeline lake, format 99")
    return table / "_delta_log" / "00000000000000000000.json"


@pytest.mark.parametrize("make", [_newer_stream, _newer_lake])
def test_data_of_a_newer_version_is_refused_and_not_touched(make: Callable[[Home], Path], home: Home) -> None:
    home.configure(BINANCE)
    path = make(home)
    before = path.read_bytes()
    assert home.run() == 65
    said = home.spawn.started[-1].said
    assert f"{path.parent.parent if make is _newer_lake else path} was written by a newer Tapeline (format 99" in said
    assert "Traceback" not in said
    command = ("sql", "SELECT 1") if make is _newer_lake else ("tail", "ticks")
    assert home.ask(*command).returncode == 65
    assert path.read_bytes() == before
    assert not list((home.lake / "ticks").glob("**/*.parquet"))


def test_a_wrong_key_ends_the_run_with_the_name_of_the_variable_and_never_the_key(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    polygon, alpaca = simulator("polygon"), simulator("alpaca")
    key, secret = f"bad-{SECRET}-key", f"bad-{SECRET}-secret"
    home.env = {"TAPELINE_POLYGON_KEY": key, "TAPELINE_ALPACA_KEY": key, "TAPELINE_ALPACA_SECRET": secret}
    feeds = block("polygon", polygon.url, ["AAPL"], ["T"]) + block("alpaca", alpaca.url, ["AAPL"], ["trades"])
    home.configure(feeds)
    run = home.start("run")
    assert run.ends() == 77, run.said
    for name in ("TAPELINE_POLYGON_KEY", "TAPELINE_ALPACA_KEY", "TAPELINE_ALPACA_SECRET"):
        assert name in run.said
    assert "Traceback" not in run.said
    checked = home.ask("check")
    shown = home.ask("status", "--format", "json")
    assert SECRET not in checked.stdout + checked.stderr + shown.stdout + shown.stderr
    home.says_nothing_of(SECRET)


@pytest.mark.parametrize(("written", "why"), [(None, "No such file or directory"), ("no certificate", "it holds no certificate")])
def test_a_wrong_ca_file_is_named_by_check_and_by_run(home: Home, written: str | None, why: str) -> None:
    ca_file = home.root.parent / "ca.pem"
    if written is not None:
        ca_file.write_text(written)
    home.configure(block("binance", "ws://127.0.0.1:1", ["BTCUSDT"], ["trade"]) + f'ca_file = "{ca_file}"\n')
    checked = home.ask("check")
    assert checked.returncode == 78, checked.stdout
    assert f"{why}. Name a file of certificates in PEM format." in " ".join(checked.stdout.split())
    ran = home.ask("ingest")
    assert ran.returncode == 78, ran.stderr
    assert "Traceback" not in ran.stderr
    assert f"ca_file = '{ca_file}' cannot be used: {why}." in " ".join(ran.stderr.split())


def test_check_says_that_two_stores_are_of_one_kind(home: Home) -> None:
    home.configure(BINANCE + '[[stores]]\nurl = "lake:"\n')
    checked = home.ask("check")
    assert checked.returncode == 78
    assert "Two [[stores]] are of the same kind" in checked.stdout


def test_one_provider_that_refuses_does_not_stop_the_others_and_no_key_is_shown(
    home: Home, simulator: Callable[..., SimulatorProcess], tmp_path: Path
) -> None:
    polygon, alpaca = simulator("polygon"), simulator("alpaca", "--rate", "300", "--limit", "600")
    (tmp_path / "secret").write_text(f"{SECRET}-file\n")
    home.env = {"TAPELINE_POLYGON_KEY": f"bad-{SECRET}", "TAPELINE_ALPACA_KEY": SECRET}
    home.configure(
        block("polygon", polygon.url, ["AAPL"], ["T"])
        + block("alpaca", alpaca.url, ["BTC/USD"], ["trades"], feed="crypto", secret_file=str(tmp_path / "secret"))
    )
    assert home.run("--until-idle", "0.8") == 0
    alpaca.stop()
    found = compare(home.lake, [alpaca.journal])
    assert (found.missing, found.extra, found.sent) == ([], [], 600)
    assert "TAPELINE_POLYGON_KEY" in home.status()["providers"]["polygon"]["problem"]
    home.says_nothing_of(SECRET)


def test_a_missing_key_is_told_before_anything_starts(home: Home) -> None:
    home.configure(block("polygon", NOWHERE, ["AAPL"], ["T"]) + block("alpaca", NOWHERE, ["AAPL"], ["trades"]))
    run = home.start("run")
    assert run.ends() == 78
    assert "polygon needs a key. Set TAPELINE_POLYGON_KEY in the environment" in run.said
    assert not home.root.exists()


def test_a_provider_that_is_away_is_tried_again_and_found_when_it_comes(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    gone = simulator("binance", "--rate", "300", "--limit", "300")
    gone.stop()
    home.configure(block("binance", gone.url, ["BTCUSDT"], ["trade", "bookTicker"]))
    checked = home.ask("check")
    assert checked.returncode == 69, checked.stdout
    assert gone.url in checked.stdout
    run = home.start("run")
    until(lambda: run.said.count("Tapeline retries.") >= 2, "it is not tried again")
    assert gone.url in home.status()["providers"]["binance"]["problem"]
    back = simulator("binance", "--rate", "300", "--limit", "300", "--port", gone.url.rpartition(":")[2])
    until(lambda: home.rows("SELECT count(*) FROM ticks") == [(300,)], "its data does not come")
    run.send(signal.SIGTERM)
    assert run.ends() == 0
    back.stop()
    assert compare(home.lake, [back.journal]).exact


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data_dirr = 'x'", "unknown key 'data_dirr'. Did you mean 'data_dir'?"),
        ("[[providers]]\nname = 'binance'\nsimbols = ['BTCUSDT']", "Did you mean 'symbols'?"),
        ("[[stores]]\nurl = 'lake:'\nflush_second = 1.0", "Did you mean 'flush_seconds'?"),
        ("[[providers]]\nname = 'binanc'", "binanc"),
        ("[[providers]]\nname = 'binance'\nsymbols = ['BTCUSDT']\nchannels = ['trades']", "binance spot has no channel 'trades'"),
        ("[[stores]]\nurl = 'pond:'", 'stores.url = "pond:" is not a store'),
        ("[stream]\nurl = 'kafkaa:'", 'stream.url = "kafkaa:" is not a stream'),
        ("data_dir = ", "tapeline.toml cannot be read"),
    ],
)
def test_a_wrong_configuration_names_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    config = tmp_path / "tapeline.toml"
    config.write_text(text)

    def used() -> None:
        settings = load(config, {})
        connection_plans(settings, {})
        open_stream(settings)
        open_stores(settings)

    with pytest.raises(ConfigError, match=re.escape(says)):
        used()


def test_a_run_with_a_wrong_configuration_leaves_nothing_behind(tmp_path: Path) -> None:
    config = tmp_path / "tapeline.toml"
    config.write_text("[[stores]]\nurl = 'pond:'")
    found = ask("run", "--config", str(config), cwd=tmp_path)
    assert found.returncode == 78, found.stderr
    assert found.stderr.startswith("error: stores.url")
    assert [path.name for path in tmp_path.iterdir()] == ["tapeline.toml"]


def test_a_misspelt_variable_is_named_without_its_value(tmp_path: Path) -> None:
    found = ask("run", env={"TAPELINE_ALPACA_SECRET_KEY": SECRET, "TAPELINE_DATA_DIR": str(tmp_path / "data")}, cwd=tmp_path)
    assert found.returncode == 78
    assert "alpaca_secret_key" in found.stderr
    assert SECRET not in found.stdout + found.stderr
    assert not (tmp_path / "data").exists()
