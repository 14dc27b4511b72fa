"""How much is tried: `make test` runs the quick form of everything, `make prove` the full form of what is marked as a proof.

A test that has a full form is marked `@proof("part")` and asks `PROVE` which form it is in; property tests are proofs of the part
`properties` by themselves. `make prove PART=chaos` runs one part.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import is_hypothesis_test

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The parts, and what each proves.
PARTS: Final = {
    "chaos": "everything goes wrong at once, by many seeds: the stores are what happened, and the ledger says what is missing",
    "crashes": "processes and servers killed at many more moments: nothing is lost, nothing is doubled",
    "streams": "every promise of a stream by the second codec too, on every server, with more of everything",
    "timeouts": "what takes real time: locks, leases and servers that are away for long",
    "properties": "whatever a property test can think of, a thousand times and more",
    "lake": "every bit that can flip and every point at which maintenance can die",
    "page": "the dashboard's page under load and for long: as many frames as an empty page, and it does not grow",
    "install": "a bare system to a running pipeline: the wheel in an empty environment, and Debian with systemd, as docs/systemd.md says",
    "containers": "the image, and the stacks of deploy/compose, in a real Docker engine: each is well, loses nothing and stops cleanly",
    "readers": "other programs: the notebook, Spark, the engines, the page of Next.js in a browser, the containers of the services",
}
_ASKED: Final = os.environ.get("TAPELINE_PROVE", "")
#: Whether this run is a proof.
PROVE: Final = bool(_ASKED)


def check_part() -> None:
    """Raises pytest.UsageError where this run is to prove a part that does not exist."""
    if PROVE and _ASKED != "1" and _ASKED not in PARTS:
        raise pytest.UsageError(f"There is no part {_ASKED!r} to prove. Parts: {', '.join(PARTS)}.")


def proof(part: str, *, quick: bool = True) -> pytest.MarkDecorator:
    """Marks a test that has a full form; `part`: one of PARTS. `quick`: whether `make test` runs it too."""
    assert part in PARTS, f"there is no part {part!r}: {', '.join(PARTS)}"
    return pytest.mark.proof(part, quick=quick)


def part_of(item: pytest.Item) -> str:
    """The part that a test proves; empty where its quick form is all there is."""
    mark = item.get_closest_marker("proof")
    if mark is not None:
        return str(mark.args[0])
    return "properties" if is_hypothesis_test(getattr(item, "obj", None)) else ""


def asked_for(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Of all tests, those that this run is for."""
    if not PROVE:
        return [item for item in items if (mark := item.get_closest_marker("proof")) is None or mark.kwargs["quick"]]
    return [item for item in items if part_of(item) and _ASKED in ("1", part_of(item))]


def table(reports: Sequence[pytest.TestReport]) -> list[str]:
    """The lines of the closing table: for each test function, by part, how often it passed and how long it took."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        noted = dict(report.user_properties)
        name = report.nodeid.partition("[")[0].rpartition("::")[2].partition("@")[0].removeprefix("test_").replace("_", " ")
        line = found.setdefault((str(noted.get("part", "")), name), {"times": 0, "seconds": 0.0, "failed": 0})
        line["seconds"] += report.duration
        if report.when == "call":
            line["times"] += int(noted.get("examples", 1)) if report.passed else 0
            line["failed"] += report.failed
    lines = [f"{'times':>7} {'seconds':>8}  what was proven"]
    for part, title in PARTS.items():
        mine = sorted((name, line) for (some, name), line in found.items() if some == part)
        if mine:
            lines += ["", f"{'':>17}{part}: {title}"]
            for name, line in mine:
                failed = f"  ({line['failed']} FAILED)" if line["failed"] else ""
                lines.append(f"{line['times']:>7,} {line['seconds']:>8.1f}  {name}{failed}")
    return lines
