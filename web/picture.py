"""Takes a picture of the dashboard, for the documentation. It needs Debian's chromium, and a pipeline that has run for some minutes.

`.venv/bin/python web/picture.py --chart BTC/USDT docs/images/dashboard.png`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Open the page, choose a symbol, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8765")
    parser.add_argument("--chart", default="", help="the symbol whose last minutes are shown")
    parser.add_argument("--cells", default="Minutes", help="Minutes, Hours or Days")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(color_scheme="dark" if arguments.dark else "light")
        page.set_viewport_size({"width": arguments.width, "height": 1_000})
        page.goto(arguments.url)
        page.get_by_role("button", name=arguments.cells).click()
        if arguments.chart:
            page.get_by_role("button", name=f"Chart of {arguments.chart}").click()
            page.locator("table.trades tbody tr").nth(10).wait_for()
        page.wait_for_timeout(4_000)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=arguments.picture, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
