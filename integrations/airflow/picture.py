"""Takes a picture of the grid of a DAG from a running Airflow, for the documentation. It needs Playwright and Debian's chromium.

`uv run --no-project --with playwright==1.65.2 integrations/airflow/picture.py --home data/airflow docs/images/airflow_grid.png`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Log in, open the grid of the operational day, and write the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", type=Path)
    parser.add_argument("--home", type=Path, default=Path("data/airflow"), help="the folder that start.py was given")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    passwords = json.loads((arguments.home / "simple_auth_manager_passwords.json.generated").read_text())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 640}, color_scheme="light")
        page.goto(f"http://127.0.0.1:{arguments.port}/auth/login", timeout=120_000)
        page.locator("input[name=username]").fill("admin", timeout=120_000)
        page.locator("input[name=password]").fill(passwords["admin"])
        page.locator("button[type=submit]").click()
        page.wait_for_url(lambda url: "/auth/login" not in url, timeout=120_000)
        page.goto(f"http://127.0.0.1:{arguments.port}/dags/tapeline_day", timeout=120_000)
        page.get_by_text("symbols_binance").first.wait_for(timeout=120_000)
        page.mouse.move(700, 200)
        page.wait_for_timeout(5_000)
        page.screenshot(path=arguments.picture)
        browser.close()


if __name__ == "__main__":
    main()
