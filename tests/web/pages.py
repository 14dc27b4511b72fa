"""The dashboard's page in a real Chromium: a browser, a page that must do nothing wrong, and what is read off it."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from playwright.sync_api import Page, expect, sync_playwright
from services import chromium

import tapeline
from waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Request

ROOT: Final = Path(__file__).parents[2]
ASSETS: Final = Path(tapeline.__file__).parent / "web" / "assets"
AXE: Final = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
#: Where pictures of the page are kept, to be looked at.
PICTURES: Final = Path(os.environ.get("TAPELINE_PICTURES") or ROOT / ".cache" / "pictures")
WALL: Final = (1_440, 1_000)
PHONE: Final = (390, 844)
#: A connection that ends is part of a test, and the browser reports it as an error of its own.
_EXPECTED: Final = re.compile(
    r"WebSocket connection to|Failed to load resource: the server responded with a status of (400|403|409|503)|ERR_CONNECTION"
)


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Debian's Chromium, without a screen."""
    expect.set_options(timeout=PATIENCE_S * 1_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium.find().where), args=list(chromium.ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Wrongs:
    """What a page did that it must not do: errors, breaches of the content security policy, requests to other hosts."""

    host: str
    found: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.found.append(f"an error: {error}"))
        page.on("console", self._said)
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not _EXPECTED.search(message.text):
            self.found.append(f"{message.type}: {message.text}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.host, "data:")):
            self.found.append(f"a request to another host: {request.url}")


def context_of(browser: Browser, *, size: tuple[int, int] = WALL, dark: bool = False, **more: Any) -> BrowserContext:
    """A window of its own, with no cookies."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        **more,
    )
    context.set_default_timeout(PATIENCE_S * 1_000)
    return context


def picture(page: Page, name: str) -> None:
    """Keep a picture of the whole page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def complaints(page: Page) -> list[str]:
    """What axe says is wrong for people who use a keyboard, a screen reader or little colour."""
    page.evaluate(AXE.read_text())
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    # Only what is wrong: to describe what is right takes ten times as long.
    found: dict[str, Any] = page.evaluate("rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", rules)
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {[node['html'][:160] for node in one['nodes'][:3]]}" for one in found["violations"]
    ]


def table(page: Page, of: str) -> list[list[str]]:
    """The texts of a table's rows, without its head."""
    rows: list[list[str]] = page.locator(f"{of} tbody tr:not(.filler)").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    return rows
