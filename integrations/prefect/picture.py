"""Takes a picture of Prefect's page of the runs, for the documentation. It needs Playwright and Debian's chromium.

`uv run --no-project --with playwright==1.65.2 integrations/prefect/picture.py --top 1237 --height 764 docs/images/prefect_runs.png`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Open the page of the runs, and write the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", type=Path)
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--page", default="/runs", help="the path of another page")
    parser.add_argument("--text", default="reconcile", help="what the page shows when it is ready")
    parser.add_argument("--top", type=int, default=0, help="the first row of the page that the picture shows")
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": arguments.top + arguments.height}, color_scheme="light")
        page.goto(f"http://127.0.0.1:{arguments.port}{arguments.page}", timeout=120_000)
        page.get_by_text(arguments.text).first.wait_for(timeout=120_000)
        page.wait_for_timeout(5_000)
        clip = {"x": 256, "y": arguments.top, "width": 1024, "height": arguments.height}
        page.screenshot(path=arguments.picture, clip=clip)
        browser.close()


if __name__ == "__main__":
    main()
