"""The dashboards for Grafana as tests read them: their panels, and what each panel asks Prometheus with the variables put in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import tapeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GRAFANA: Final = Path(tapeline.__file__).parents[2] / "deploy" / "grafana"
#: Variables that Grafana itself puts in.
OF_GRAFANA: Final = {"__rate_interval", "__range", "__value", "__all"}


class Question(NamedTuple):
    """What a panel asks Prometheus."""

    board: str
    panel: str
    expr: str
    legend: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}"


def boards() -> dict[str, dict[str, Any]]:
    """Every dashboard by the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard that show something: not the headings of its rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def questions() -> Iterator[Question]:
    """What all panels of all dashboards ask."""
    for name, board in boards().items():
        for panel in panels(board):
            yield from (Question(name, panel["title"], target["expr"], target["legendFormat"]) for target in panel["targets"])


def variables(board: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The variables whose values Prometheus knows: name to the metric and the label."""
    found = {}
    for one in board["templating"]["list"]:
        if one["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", one["query"]["query"])
            assert asked, one
            found[one["name"]] = (asked[1], asked[2])
    return found


def filled(text: str, values: Mapping[str, str]) -> str:
    """A query or an address as Grafana would send it, with the values of its variables. `$name` and `${name}` are the same."""

    def value(found: re.Match[str]) -> str:
        return values[found[1] or found[2]]

    return re.sub(r"\$(?:\{(\w+)(?:\.\w+)?\}|(\w+))", value, text)


def used(text: str) -> set[str]:
    """The names of the variables in a text."""
    return {one[0] or one[1] for one in re.findall(r"\$(?:\{(\w+)(?:\.\w+)?\}|(\w+))", text)}
