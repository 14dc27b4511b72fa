"""docs/performance.md: one section for each benchmark. A benchmark writes its own section and leaves the others as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

HEAD = """# Performance

The command in each section wrote that section. `make bench` runs all of them, `python -m bench NAME` runs one. Each section names the day
and the machine. The machines are shared, so trust the ratios within one run more than the figures, and medians more than single runs.
[What bounds these figures](decisions/0023-bounds.md) lists what was tried to improve them.
"""


def replaced(page: str, titles: Sequence[str], title: str, text: str) -> str:
    """Return the page with the section `title` new or replaced. `titles`: those of all sections, in their order."""
    sections = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", page))
    sections[title] = f"\n{text.strip()}\n"
    return HEAD + "".join(f"\n## {name}\n\n{sections[name].strip()}\n" for name in titles if name in sections)
