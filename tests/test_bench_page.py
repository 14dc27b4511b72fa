"""docs/performance.md: a benchmark writes its own section, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from bench.page import HEAD, replaced

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
TITLES = ["One", "Two", "Three"]


def test_a_section_is_replaced_and_the_others_stay_as_they_are() -> None:
    page = replaced(replaced("", TITLES, "Three", "`command`\n\n| a | b |"), TITLES, "One", "first\n\n### Part\n\nmore")
    assert page == f"{HEAD}\n## One\n\nfirst\n\n### Part\n\nmore\n\n## Three\n\n`command`\n\n| a | b |\n"
    again = replaced(page, TITLES, "Two", "second")
    assert again == page.replace("\n## Three", "\n## Two\n\nsecond\n\n## Three")
    assert replaced(again, TITLES, "Two", "other") == again.replace("second", "other")


def test_every_section_of_the_page_is_of_a_benchmark_and_names_its_command() -> None:
    program = (Path(__file__).parent.parent / "bench" / "__main__.py").read_text()
    names = {title: name for name, title in re.findall(r'"([\w-]+)": \("([^"]+)", \w+\.\w+\)', program)}
    page = PAGE.read_text()
    found = re.findall(r"(?m)^## ([^\n]+)\n\n`python -m bench ([\w-]+)`, \d{4}-\d\d-\d\d, ", page)
    assert found
    assert dict(found) == {title: names[title] for title, _ in found}
    assert len(found) == page.count("\n## ")
    assert page.startswith(HEAD)
