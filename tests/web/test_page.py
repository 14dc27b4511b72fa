"""The dashboard's page with a real pipeline behind it: each of its six answers is what the pipeline says, for everybody who looks."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from pages import PHONE, complaints, picture, table
from playwright.sync_api import expect
from processes import block, ledger
from watched import start

from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page
    from processes import Home, Spawner
    from watched import Live

SYMBOLS = ["BTC/USDT", "ETH/USDT", "SOL/USDT"]
#: Whether anything is drawn on the canvas of a line.
INKED = """line => {
  const canvas = line.querySelector("canvas");
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean);
}"""
QUESTIONS = ["What comes in?", "Where does it wait?", "Is it complete?", "What runs?", "What is the market doing?"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, spawn: Spawner) -> Iterator[Live]:
    def configure(home: Home, url: str) -> None:
        names = [symbol.replace("/", "") for symbol in SYMBOLS]
        home.configure(block("binance", url, names, ["trade", "bookTicker", "kline_1s"]), ledger=True)

    return start(tmp_path_factory.mktemp("live"), spawn, configure, "--rate", "150")


def sent(live: Live, symbol: str) -> set[tuple[float, float]]:
    """Price and size of the trades in the simulator's journal."""
    events = [json.loads(line)["event"] for line in live.market.journal.read_text().splitlines() if line.endswith("}")]
    return {(float(event["p"]), float(event["q"])) for event in events if event.get("e") == "trade" and event["s"] == symbol}


def test_everybody_can_use_the_page_in_both_colours_on_a_wall_and_on_a_phone(live: Live, open_page: Callable[..., Page]) -> None:
    for name, options in {
        "wall-light": {},
        "wall-dark": {"dark": True},
        "phone-light": {"size": PHONE},
        "phone-dark": {"size": PHONE, "dark": True},
    }.items():
        page = open_page(**options)
        expect(page.get_by_role("heading", level=1)).to_contain_text("All is well")
        expect(page.get_by_role("heading", level=2)).to_have_text(QUESTIONS)
        expect(page).to_have_title("Tapeline: all is well")
        page.get_by_role("button", name="Chart of BTC/USDT").click()
        expect(page.locator("table.trades tbody tr").first).to_be_visible()
        expect(page.locator("#complete [role=gridcell]").first).to_be_visible()
        assert complaints(page) == [], name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
        picture(page, name)
        page.close()


def test_the_colours_are_those_that_the_person_chose_and_the_choice_is_kept(open_page: Callable[..., Page]) -> None:
    page = open_page(dark=True)
    back = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(back)
    page.get_by_role("button", name="Colours").click()
    light = page.evaluate(back)
    assert light != dark
    page.reload()
    page.locator("table.market tbody tr").first.wait_for()
    assert page.evaluate(back) == light
    expect(page.get_by_role("button", name="Colours: light. Change to dark")).to_be_visible()


def test_what_comes_in_shows_each_feed_with_its_connections_and_its_rate_as_a_line(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page()
    (feed,) = live.get("/v1/health")["feeds"]
    names = [connection["name"] for connection in feed["connections"]]
    rows = table(page, "table.feeds")
    assert [row[0].split("\n")[0] for row in rows] == ["binance spot", *names]
    assert all(row[1] == "connected" for row in rows)
    assert 50 < float(rows[0][2].replace(",", "")) < 500
    line = page.get_by_role("img", name="Events a second of binance/spot over the last 15 minutes")
    assert re.search(r": from [\d,]+ to [\d,]+$", line.get_attribute("aria-label") or "")
    until(lambda: line.evaluate(INKED), "the line is drawn")


def test_the_flow_shows_every_box_with_what_waits_and_every_arrow_with_its_rate(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page()
    flow = live.get("/v1/health")["flow"]
    boxes = page.get_by_role("list", name="The flow of the data").get_by_role("listitem")
    expect(boxes).to_have_count(len(flow["boxes"]))
    assert {text.split("\n")[0].strip() for text in boxes.all_inner_texts()} == {box["name"] for box in flow["boxes"]}
    for arrow in flow["arrows"]:
        text = boxes.filter(has=page.get_by_text(arrow["end"], exact=True)).text_content() or ""
        assert re.search(rf"It gets [\d.,]+ records a second from {arrow['start']}\.", text)
    assert page.locator("#flow svg .way").count() == len(flow["arrows"])
    page.get_by_text("The accounting holds").click()
    expect(page.locator(".equations li").first).to_contain_text("=")


def test_the_grid_has_a_row_for_each_key_of_the_ledger_and_a_cell_opens_its_evidence(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.get_by_role("button", name="Minutes").click()
    grid = page.get_by_role("grid", name="Completeness by symbol and minute")
    rows = [tuple(text.split()) for text in grid.get_by_role("rowheader").all_inner_texts()]
    assert rows == [(key.symbol, key.channel) for key in sorted(ledger(live.home))]
    # By the keyboard alone: the grid is one stop, and arrows move in it.
    page.locator('[role=gridcell][tabindex="0"]').focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    symbol, channel = rows[1]
    focused = page.locator(":focus")
    expect(focused).to_have_attribute("aria-label", re.compile(f"^{symbol} {channel}, "))
    while "covered" not in (focused.get_attribute("aria-label") or ""):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", level=2)).to_contain_text(f"{symbol} {channel}, ")
    expect(dialog.locator("tbody tr").first).to_be_visible()
    shown = table(page, "dialog table")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", row[1]) for row in shown)
    known = {one["evidence"] for one in live.get("/v1/gaps", symbols=symbol, channel=channel, evidence="true")["rows"]}
    assert {row[4].partition(" ids ")[0] for row in shown} <= known
    assert complaints(page) == []
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert page.evaluate("document.activeElement.getAttribute('role')") == "gridcell", "the focus is where it was"


def test_a_viewer_may_look_at_jobs_and_is_told_why_he_may_not_run_one(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page()
    jobs = [json.loads(line) for line in live.home.ask("jobs", "list", "--format", "json").stdout.splitlines()]
    assert [row[0].split("\n")[0] for row in table(page, "table.jobs")] == [job["job"] for job in jobs]
    run = page.get_by_role("button", name="Run check_lake now")
    run.click()
    expect(page.locator("#running .note")).to_have_text(re.compile("This needs the operator's token"))
    expect(run).to_be_disabled()


def test_an_operator_runs_a_job_and_sees_its_run(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page(operator=True)
    page.get_by_role("button", name="Run check_lake now").click()
    expect(page.locator("#running .note")).to_contain_text("The job check_lake was started.")
    row = page.locator("table.jobs tr", has_text="check_lake")
    expect(row).to_contain_text("succeeded", timeout=60_000)
    page.get_by_role("button", name="Runs of check_lake").click()
    expect(page.locator("dialog tbody tr")).to_have_count(1)
    (run,) = live.get("/v1/runs", job="check_lake")["rows"]
    (shown,) = table(page, "dialog table")
    assert shown[0] == run["state"] == "succeeded"
    assert shown[3] == run["origin"]
    assert complaints(page) == []
    picture(page, "runs")


def test_the_market_shows_each_symbol_and_the_chart_only_trades_that_happened(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page()
    market = page.locator("table.market")
    assert [row[0] for row in table(page, "table.market")] == SYMBOLS
    page.get_by_label("Show only symbols with this text").fill("eth")
    expect(market.locator("tbody tr")).to_have_count(1)
    page.get_by_role("button", name="Chart of ETH/USDT").click()
    trades = page.locator("table.trades tbody tr")
    expect(trades).to_have_count(14)
    first = trades.first.inner_text()
    until(lambda: trades.first.inner_text() != first, "new trades come")
    shown = [(row[0], float(row[1].replace(",", "")), float(row[2].replace(",", ""))) for row in table(page, "table.trades")]
    assert [time for time, _, _ in shown] == sorted((time for time, _, _ in shown), reverse=True)
    known = {(price, size) for _, price, size in shown}
    until(lambda: known <= sent(live, "ETHUSDT"), "the simulator has sent each of them")
    plot = page.get_by_role("img", name="Trades and quotes of ETH/USDT over the last 5 minutes")
    expect(plot.locator("canvas")).to_be_visible()
    page.get_by_role("button", name="Chart of ETH/USDT").click()
    expect(plot).to_have_count(0)
    page.get_by_role("button", name="Last", exact=True).click()
    expect(market.get_by_role("columnheader", name="Last", exact=True)).to_have_attribute("aria-sort", "descending")
