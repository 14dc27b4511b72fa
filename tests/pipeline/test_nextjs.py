"""The Next.js page in a real browser: its ticker moves, and its chart is what the lake says, also over a killed server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import urllib3
from playwright.sync_api import expect, sync_playwright
from processes import Home, block
from services import chromium
from services.process import free_port

from brokers import need
from environments import modules_of
from proving import proof
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page
    from processes import SimulatorProcess

ROOT: Final = Path(__file__).parents[2]
CLIENT, EXAMPLE = ROOT / "clients" / "typescript", ROOT / "examples" / "nextjs"
LEFT_OUT: Final = shutil.ignore_patterns("node_modules", "dist", "build", ".next", "*.tsbuildinfo", "next-env.d.ts")
#: Candles of 5 s, as the page makes them.
CANDLES: Final = """
    SELECT ts_ns // 5_000_000_000 * 5, first(last ORDER BY {order}), max(last), min(last), last(last ORDER BY {order}),
        sum(volume), count(*)
    FROM ticks WHERE symbol = 'BTC/USDT' AND kind = 'trade' GROUP BY 1 ORDER BY 1
""".format(order="ts_ns, raw_partition, raw_offset, raw_index")
SHOWN: Final = "rows => rows.map(row => [...row.cells].map(cell => Number(cell.textContent)))"

pytestmark = pytest.mark.timeout(900)  # the first run fetches the packages


def test_the_lock_file_has_no_address_of_a_registry() -> None:
    packages = json.loads((EXAMPLE / "package-lock.json").read_text())["packages"].values()
    assert {package["resolved"] for package in packages if "resolved" in package} == {"file:../../clients/typescript"}


def ran(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"NEXT_TELEMETRY_DISABLED": "1"})
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in a copy of its own, built as its README says."""
    root = tmp_path_factory.mktemp("site")
    client, example = root / "clients" / "typescript", root / "examples" / "nextjs"
    shutil.copytree(CLIENT, client, ignore=LEFT_OUT)
    shutil.copytree(EXAMPLE, example, ignore=LEFT_OUT)
    (client / "node_modules").symlink_to(modules_of(CLIENT) / "node_modules")
    ran("npm", "run", "build", "--silent", cwd=client)
    ran("npm", "ci", "--silent", cwd=example)
    ran("npm", "run", "build", "--silent", cwd=example)
    return example


@pytest.fixture
def page() -> Iterator[Page]:
    need(chromium)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium.find().where), args=list(chromium.ARGUMENTS))
        yield browser.new_page()
        browser.close()


def answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, timeout=5.0, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


@pytest.fixture
def site(built: Path) -> Iterator[Callable[[str], str]]:
    """`site(url of Tapeline)`: the address of the page."""
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> str:
        port = free_port()
        env = os.environ | {"PORT": str(port), "HOSTNAME": "127.0.0.1", "TAPELINE_URL": url, "NEXT_TELEMETRY_DISABLED": "1"}
        started.append(subprocess.Popen(["node", ".next/standalone/server.js"], cwd=built, env=env, stdout=subprocess.DEVNULL))
        until(lambda: answers(f"http://127.0.0.1:{port}/") or started[-1].poll() is not None, "the page is served")
        return f"http://127.0.0.1:{port}"

    yield start
    for one in started:
        one.terminate()
        one.wait(20)


@proof("readers", quick=False)
def test_the_page_shows_the_market_and_its_chart_is_what_the_lake_says(
    home: Home, simulator: Callable[..., SimulatorProcess], site: Callable[[str], str], page: Page
) -> None:
    market = simulator("binance", "--rate", "150")
    listen = f"127.0.0.1:{free_port()}"
    address = site(f"http://{listen}")
    home.configure(
        f'dashboard = {{ listen = "{listen}", run = true, origins = ["{address}"] }}\n'
        + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"])
    )
    run = home.start("run")
    until(lambda: answers(f"http://{listen}/v1/health") or not run.running, "the server answers")
    assert run.running, run.said
    until(lambda: home.lake.exists() and home.rows("SELECT 1 FROM ticks LIMIT 1"), "the lake has a history")
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    foreign: set[str] = set()
    page.on("request", lambda request: foreign.add(request.url) if not request.url.startswith((address, f"http://{listen}")) else None)
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_have_text("Tapeline")

    rows = page.locator("table.ticker tbody tr")
    expect(rows).to_have_count(2)
    for row in rows.all():
        price = row.locator("td").first
        expect(price).not_to_have_text("-")
        before = price.inner_text()
        expect(price).not_to_have_text(before)
    expect(page.get_by_role("status")).to_have_class("health well")

    def candles() -> list[list[float]]:
        found: list[list[float]] = page.locator("table.candles tr").evaluate_all(SHOWN)
        return found

    def trades() -> float:
        return sum(row[-1] for row in candles())

    until(lambda: len(candles()) > 1, "the chart has candles")
    home.kill("dashboard")
    expect(page.get_by_role("status")).to_have_class("health unknown", timeout=20_000)
    expect(page.get_by_role("status")).not_to_have_class("health unknown", timeout=30_000)
    before = trades()
    until(lambda: trades() > before + 20, "the chart goes on")
    market.halt()
    seen = [-1.0]

    def settled() -> bool:
        last, seen[0] = seen[0], trades()
        time.sleep(1.5)
        return last == seen[0]

    until(settled, "everything has come")
    drawn = candles()
    run.end()
    kept: list[tuple[Any, ...]] = home.rows(CANDLES)
    assert [row[:5] + row[6:] for row in drawn] == [[*row[:5], *row[6:]] for row in kept], "no gap and no double"
    assert [row[5] for row in drawn] == pytest.approx([row[5] for row in kept])
    assert (wrong, foreign) == ([], set())
    assert page.locator("a[href*='tradingview.com']").count() >= 1
