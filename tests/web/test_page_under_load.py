"""The dashboard's page while 10,000 events a second flow, for as long as it is left open: it stays fast, and it does not grow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from pages import context_of
from playwright.sync_api import expect
from processes import block
from watched import start

from proving import proof

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page
    from processes import Home, Spawner
    from watched import Live

pytestmark = [proof("page", quick=False), pytest.mark.timeout(1_800)]

SYMBOLS: Final = ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
WATCHED_S: Final = 20
OPEN_S: Final = 300
#: Counts the frames of so many milliseconds, and the longest time between two.
FRAMES: Final = """ms => new Promise(done => {
  let frames = 0, longest = 0, last = performance.now();
  const end = last + ms;
  const frame = now => {
    frames += 1; longest = Math.max(longest, now - last); last = now;
    if (now < end) requestAnimationFrame(frame); else done([frames * 1000 / ms, longest]);
  };
  requestAnimationFrame(frame);
})"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, spawn: Spawner) -> Iterator[Live]:
    def configure(home: Home, url: str) -> None:
        home.configure(block("binance", url, SYMBOLS, ["trade", "bookTicker"]), flush_seconds=2.0)

    return start(tmp_path_factory.mktemp("live"), spawn, configure, "--rate", "10000")


class Counts:
    """What Chromium counts of a page, from now on."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable")

    def now(self) -> dict[str, Any]:
        """Return the counts, after the garbage was collected."""
        self._session.send("HeapProfiler.collectGarbage")
        return {one["name"]: one["value"] for one in self._session.send("Performance.getMetrics")["metrics"]}


def watched(page: Page) -> Page:
    """The page with a chart of the busiest symbol, which is moving."""
    page.get_by_role("button", name="Chart of BTC/USDT").click()
    expect(page.locator("table.trades tbody tr")).to_have_count(14)
    return page


def test_the_first_picture_is_there_within_a_second(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.reload()
    page.locator("table.market tbody tr").first.wait_for()
    painted = page.evaluate("performance.getEntriesByType('paint').find(one => one.name === 'first-contentful-paint').startTime")
    assert painted < 1_000


def test_it_draws_as_many_frames_as_an_empty_page_and_its_thread_is_mostly_idle(
    browser: Browser, live: Live, open_page: Callable[..., Page]
) -> None:
    page = watched(open_page())
    rate = live.get("/v1/health")["feeds"][0]["events_per_s"]
    counts = Counts(page)
    before, began = counts.now(), time.monotonic()
    frames, longest = page.evaluate(FRAMES, WATCHED_S * 1_000)
    busy = (counts.now()["TaskDuration"] - before["TaskDuration"]) / (time.monotonic() - began)
    page.close()
    # The pipeline and the browser share the cores of this machine: an empty page shows how many frames there could be.
    with context_of(browser) as context:
        empty, _ = context.new_page().evaluate(FRAMES, 5_000)
    print(f"{rate:,.0f} events/s: {frames:.0f} frames/s of {empty:.0f}, the longest {longest:.0f} ms, the thread busy {busy:.0%}")
    assert rate > 5_000
    assert frames > 0.8 * empty
    assert busy < 0.5


def test_a_page_that_is_left_open_does_not_grow(open_page: Callable[..., Page]) -> None:
    page = watched(open_page())
    counts = Counts(page)
    page.wait_for_timeout(OPEN_S * 1_000 / 2)
    half = counts.now()
    page.wait_for_timeout(OPEN_S * 1_000 / 2)
    whole = counts.now()
    print(*(f"{name}: {half[name]:,.0f} then {whole[name]:,.0f}" for name in ("JSHeapUsedSize", "Nodes", "JSEventListeners")))
    assert whole["JSHeapUsedSize"] < half["JSHeapUsedSize"] * 1.1 + 500_000
    assert whole["Nodes"] < half["Nodes"] * 1.1 + 200
    assert whole["JSEventListeners"] < half["JSEventListeners"] * 1.1 + 20
