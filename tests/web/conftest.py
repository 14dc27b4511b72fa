"""One browser for all tests of a module, and pages of the dashboard in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pages import ASSETS, WALL, Wrongs, context_of, opened_browser
from processes import Spawner
from services import chromium
from watched import OPERATOR

from brokers import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page
    from watched import Live


@pytest.fixture(scope="module")
def spawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawner]:
    spawner = Spawner(tmp_path_factory.mktemp("said"))
    yield spawner
    spawner.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need(chromium)
    assert (ASSETS / "index.html").exists(), "the page is not built: run `make page`"
    with opened_browser() as found:
        yield found


@pytest.fixture
def open_page(browser: Browser, live: Live) -> Iterator[Callable[..., Page]]:
    """`open_page(size=PHONE, dark=True)`: the dashboard in a window of its own. At the end, no page has done anything wrong."""
    contexts, wrongs = [], Wrongs(live.url)

    def make(*, size: tuple[int, int] = WALL, dark: bool = False, operator: bool = False) -> Page:
        contexts.append(context_of(browser, size=size, dark=dark))
        page = contexts[-1].new_page()
        wrongs.watch(page)
        if operator:
            page.goto(f"{live.url}/login")
            page.get_by_label("Token").fill(OPERATOR)
            page.get_by_role("button", name="Enter").click()
        else:
            page.goto(live.url)
        page.locator("table.market tbody tr").first.wait_for()
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrongs.found == []
