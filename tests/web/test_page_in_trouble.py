"""The dashboard's page while things go wrong: what is wrong is said, the past hour shows it, and the page comes back by itself."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from pages import complaints, picture, table
from playwright.sync_api import expect
from processes import block, ledger
from watched import start

from tapeline.ledger.intervals import MISSING
from tapeline.records import NS_PER_S
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page
    from processes import Home, Spawner
    from watched import Live

#: A gap is requested some seconds after its end.
OLD_NS = 8 * NS_PER_S
WELL = re.compile("^All is well")


@pytest.fixture
def live(tmp_path_factory: pytest.TempPathFactory, spawn: Spawner) -> Iterator[Live]:
    """Nothing repairs by itself: a person asks for it on the page."""

    def configure(home: Home, url: str) -> None:
        home.configure("repair = false\n" + block("binance", url, ["BTCUSDT", "ETHUSDT"], ["trade"]), ledger=True)

    return start(tmp_path_factory.mktemp("live"), spawn, configure, "--rate", "60", "--fault", "skip:0.01")


def holes(live: Live, symbol: str) -> dict[str, int]:
    """What the ledger knows to be missing of a symbol: the evidence of each gap, and when it ended."""
    found = [one for key, some in ledger(live.home).items() if key.symbol == symbol for one in some]
    return {one.evidence: one.end_ns for one in found if one.state in MISSING and one.first_id is not None}


def test_what_goes_wrong_is_said_and_shown_in_the_past_and_the_page_comes_back(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page(operator=True)
    verdict = page.get_by_role("heading", level=1)
    expect(verdict).to_have_text(WELL)
    page.evaluate("window.thisPage = true")

    # A gap opens. A person asks for its repair, and it closes.
    page.get_by_role("button", name="Minutes").click()
    hole = page.get_by_role("gridcell", name=re.compile(r": gap, .* missing$")).first
    expect(hole).to_be_visible()
    picture(page, "gap")
    hole.click()
    dialog = page.get_by_role("dialog")
    missing = dialog.get_by_role("row").filter(has_text=re.compile("gap.*missing"))
    expect(missing).not_to_have_count(0)
    picture(page, "evidence")
    symbol = dialog.get_by_role("heading").inner_text().split()[0]
    evidence, ended_ns = next(iter(holes(live, symbol).items()))
    expect(dialog.locator("tbody")).to_contain_text(evidence)
    until(lambda: time.time_ns() - ended_ns > OLD_NS, "the gap is old enough to be in the provider's history")
    dialog.get_by_role("button", name="Request repair").click()
    expect(dialog).to_contain_text("The job repair was started. Its run is among the jobs.")
    expect(dialog.locator("tbody")).not_to_contain_text(evidence)
    assert evidence not in holes(live, symbol)
    expect(dialog.locator("tbody")).to_contain_text("proven")
    page.keyboard.press("Escape")

    # The server dies, and is started again: the same page goes on.
    live.home.kill("dashboard")
    expect(verdict).to_have_text(re.compile(r"^The connection to the server is lost\. This is how it was at \d\d:\d\d:\d\d UTC\.$"))
    expect(page.get_by_role("status")).to_contain_text("The connection to the server is lost.")
    expect(page.get_by_role("button", name="Try now")).to_be_visible()
    picture(page, "lost")
    expect(verdict).to_have_text(WELL)
    expect(page.get_by_role("button", name="Try now")).to_have_count(0)
    assert page.evaluate("window.thisPage"), "it was not loaded again"

    # The provider dies. The page says it, what to do, and how it was before.
    well = page.evaluate("Date.now()")
    live.market.process.send(signal.SIGKILL)
    expect(verdict).to_contain_text("binance spot is not connected (binance-spot-0)")
    expect(page).to_have_title("Tapeline: problem")
    assert table(page, "table.feeds")[0][1] == "not connected"
    page.get_by_role("button", name=re.compile("^What to do: binance spot is not connected")).click()
    expect(dialog.get_by_role("heading", level=2)).to_have_text("What to do: freshness")
    expect(dialog.get_by_role("listitem").first).to_contain_text("tapeline status")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert complaints(page) == []
    picture(page, "problem")
    slider = page.get_by_role("slider", name="The moment that is shown")
    slider.fill(str(-round((page.evaluate("Date.now()") - well) / 1_000) - 1))
    expect(verdict).to_have_text(WELL)
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"^\d+ (s|min) ago, \d\d:\d\d:\d\d UTC$"))
    assert complaints(page) == []
    picture(page, "past")
    page.get_by_role("button", name="Back to now").click()
    expect(verdict).to_contain_text("is not connected")

    # It is there again, at the same address.
    live.simulate(urlsplit(live.market.url).port or 0)
    expect(verdict).to_have_text(WELL)
