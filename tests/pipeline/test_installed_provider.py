"""A provider that another package brings: installed, found, shown, and run through everything that Tapeline does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import msgspec
import pytest

from tapeline.config import Config
from tapeline.ledger.facts import Facts, Interval, Key
from tapeline.ledger.sqlite import LedgerFile
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = Path(__file__).parents[2] / "examples" / "meridian"
KEY = "gold"
#: The market's websocket leaves out deals up to this number, and none after it.
LOSES = 500
READER = """
import json, sys, tapeline
ticks = tapeline.ticks(*sys.argv[1:4], provider="meridian", kind="trade")
columns = ("ts_ns", "sequence", "last", "volume", "side")
print(json.dumps([[row[name] for name in columns] for row in ticks.arrow().to_pylist()]))
"""


class Installed:
    """An environment with the package, in which commands run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        site = folder / "site"
        uv = Path(sys.executable).with_name("uv")
        command = [str(uv), "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable]
        subprocess.run([*command, "--target", str(site), str(PACKAGE)], check=True)
        self.environment = {**os.environ, "PYTHONPATH": str(site), "TAPELINE_MERIDIAN_KEY": KEY}

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-u", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
            env=self.environment,
            timeout=PATIENCE_S,
        )

    def tapeline(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.ask("-m", "tapeline", *command)

    @contextmanager
    def started(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        with (self._folder / f"{command[1]}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=log, text=True, cwd=self._folder, env=self.environment
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


@pytest.fixture
def market(installed: Installed, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    with installed.started("-m", "tapeline_meridian.simulator", "--rate", "100", "--lose", "20", "--of", str(LOSES)) as process:
        assert process.stdout is not None
        addresses: dict[str, str] = json.loads(process.stdout.readline())
        (tmp_path / "tapeline.toml").write_text(
            f'data_dir = "{tmp_path / "data"}"\n'
            '[[providers]]\nname = "meridian"\nsymbols = ["XAU-CHF", "XPT-JPY"]\nchannels = ["deal", "book"]\noptions = { book = "all" }\n'
            f'url = "{addresses["url"]}"\nrest_url = "{addresses["rest_url"]}"\n[[stores]]\nflush_seconds = 0.3\n'
        )
        yield addresses


def history(addresses: Mapping[str, str], symbol: str) -> list[list[Any]]:
    """Every deal, as the exchange itself tells of it."""
    found: list[list[Any]] = []
    while True:
        number, digits = len(found) + 1, ""
        while number:
            number, digit = divmod(number, 36)
            digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[digit] + digits
        asked = f"{addresses['rest_url']}/deals?symbol={symbol}&from={digits}"
        with urlopen(Request(asked, headers={"X-Meridian-Key": KEY})) as answer:
            lines = answer.read().decode().splitlines()
        if not lines:
            return found
        for line in lines:
            _, _, at, sequence, price, size, side = line.split(";")
            ts_ns = 946_684_800 * 10**9 + int(at.replace(".", "")) * 1000
            found.append([ts_ns, int(sequence, 36), float(price), float(size), {"S": "sell", "B": "buy"}[side]])


def test_a_provider_of_another_package_goes_the_whole_way(installed: Installed, market: Mapping[str, str], tmp_path: Path) -> None:
    checked = installed.tapeline("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "ok   meridian-metals" in checked.stdout
    assert "meridian" in installed.tapeline("backfill", "--help").stdout
    wrong = installed.tapeline("backfill", "--provider", "meridiam", "--start", "2026-01-05")
    assert "alpaca, binance, meridian, polygon" in wrong.stderr

    time.sleep(1.0)  # some deals before anybody listens
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    counting = "SELECT count(*) FROM ticks WHERE channel = 'deal'"

    def rows(query: str) -> list[dict[str, Any]]:
        done = installed.tapeline("sql", query, "--format", "json")
        return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []

    def complete() -> subprocess.CompletedProcess[str]:
        return installed.tapeline("complete", "XAU/CHF", day, "--channel", "deal")

    with installed.started("-m", "tapeline", "run") as run:
        until(lambda: rows(f"{counting} HAVING max(sequence) > {LOSES}"), "deals from after the losses are in the lake")
        assert complete().returncode == 1, "what came before is not there yet"
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        fetched = installed.tapeline("backfill", "--channels", "trades", "--start", f"{day}T00:00:00Z", "--end", now)
        assert fetched.returncode == 0, fetched.stdout + fetched.stderr
        until(lambda: complete().returncode == 0, "the day is complete up to now: backfilled, recorded, and repaired")
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 0, (tmp_path / "tapeline.log").read_text()
    end = time.time_ns()
    read = installed.ask("-c", READER, "XAU/CHF", "2026-01-01", str(end))
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout)
    assert len(found) > 200
    assert found == history(market, "XAU-CHF")[: len(found)], "each deal once, in order, with its values"
    kept = rows("SELECT channel, count(*) AS n, count(DISTINCT sequence) AS numbers FROM ticks GROUP BY channel ORDER BY channel")
    assert [one["channel"] for one in kept] == ["book", "deal"]
    assert all(one["n"] >= one["numbers"] > 200 for one in kept)
    status = json.loads(installed.tapeline("status", "--format", "json").stdout)
    assert all(entry["balanced"] for entry in status["equations"])
    assert status["providers"]["meridian"]["rejected"] == 0
    assert KEY not in (tmp_path / "tapeline.log").read_text()


def test_an_option_that_the_provider_does_not_have_is_named(installed: Installed, market: Mapping[str, str], tmp_path: Path) -> None:
    config = tmp_path / "tapeline.toml"
    config.write_text(config.read_text().replace('book = "all"', 'bock = "all"'))
    refused = installed.tapeline("check")
    assert refused.returncode == 78
    assert "options of meridian: unknown key 'bock'. Did you mean 'book'?" in " ".join(refused.stderr.split())


def test_every_block_of_code_on_the_page_about_providers_is_part_of_the_package() -> None:
    page = (PACKAGE.parents[1] / "docs" / "add-a-provider.md").read_text()
    whole = "\n".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py"))) + (PACKAGE / "pyproject.toml").read_text()
    blocks = re.findall(r"```(python|toml)[^\n]*\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 10
    for kind, block in blocks:
        if kind == "python" or "entry-points" in block:
            assert block in whole, block
        else:
            msgspec.convert(tomllib.loads(block), Config)


def offer(site: Path, name: str, module: str) -> dict[str, str]:
    """Put a package with a provider into a folder. Return the environment in which it is installed."""
    described = site / f"{name}_provider-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-provider\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[tapeline.providers]\n{name} = {name}_provider:provider\n")
    (site / f"{name}_provider.py").write_text(module)
    return {**os.environ, "PYTHONPATH": str(site)}


TOKYO = """
from dataclasses import replace
from tapeline.providers.binance import PROVIDER
from tapeline.providers.provider import Feed

provider = replace(PROVIDER, name="tokyo", feeds={"stocks": replace(PROVIDER.feeds["spot"], calendar="XTKS")})
"""


def test_a_package_names_the_calendar_of_its_market_and_the_lunch_break_is_no_gap(tmp_path: Path) -> None:
    environment = offer(tmp_path / "site", "tokyo", TOKYO)
    (tmp_path / "tapeline.toml").write_text(f'data_dir = "{tmp_path}"\n[[providers]]\nname = "tokyo"\nsymbols = ["TMUSDT"]\n')
    hours = [
        int(datetime(2026, 1, 5, hour, minute, tzinfo=UTC).timestamp()) * 10**9 for hour, minute in ((0, 0), (2, 45), (3, 30), (6, 45))
    ]
    heard = [Interval(hours[at], hours[at + 1], "reconciled", "read") for at in (0, 2)]
    for there, status in ((heard, 0), (heard[:1], 1)):
        LedgerFile(tmp_path / "ledger.sqlite").save(Facts(), {Key("tokyo", "stocks", "trade", "TM/USDT"): (0, there)}, {0: 1})
        command = [sys.executable, "-m", "tapeline", "complete", "TM/USDT", "2026-01-05", "--session"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=PATIENCE_S)
        assert done.returncode == status, done.stdout + done.stderr
        assert "session (00:00 to 02:30 and 03:30 to 06:30 UTC), tokyo stocks trade" in done.stdout


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import nowhere_to_be_found", "cannot be imported (ModuleNotFoundError: No module named 'nowhere_to_be_found')."),
        ("provider = 3", "is not a Provider with the name 'broken'."),
    ],
)
def test_a_package_with_a_broken_provider_is_named_with_its_error_and_the_remedy(module: str, why: str, tmp_path: Path) -> None:
    environment = offer(tmp_path / "site", "broken", module)
    command = [sys.executable, "-m", "tapeline", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=PATIENCE_S)
    assert done.returncode == 78, done.stdout + done.stderr
    said = " ".join(done.stderr.split())
    assert "Traceback" not in said
    assert f"broken-provider offers the provider broken, but broken_provider:provider {why}" in said
    assert said.endswith("Update the package, or remove it.")
