"""The dashboards for Grafana: they are what Python makes of them, Grafana's own types accept them, and a person can read them."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from dashboards import GRAFANA, OF_GRAFANA, boards, filled, panels, questions, used, variables
from environments import modules_of, python_of
from tapeline.telemetry.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOT = GRAFANA.parents[1]
BOARDS = boards()
PANELS = [pytest.param(panel, id=f"{name}: {panel['title']}") for name, board in BOARDS.items() for panel in panels(board)]
#: What Prometheus itself knows of each series.
OF_PROMETHEUS = {"job", "instance"}
#: The units of Grafana that are in use here.
UNITS = {"none", "short", "s", "decbytes", "percentunit", "cps", "reqps"}
METRIC = re.compile(r"\b(tapeline_[a-z_]+?)(_bucket|_sum|_count)?\b(?:\{([^}]*)\})?")


@pytest.mark.parametrize("docs", ["", "https://docs.example.com/tapeline"], ids=["as they are here", "with links to another address"])
def test_the_dashboards_are_what_python_makes_of_them(docs: str, tmp_path: Path) -> None:
    command = [python_of(GRAFANA), "-m", "tapeline_grafana", "--to", str(tmp_path), *(["--docs", docs] if docs else [])]
    subprocess.run(command, check=True, cwd=GRAFANA)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()}
    if docs:
        kept = {name: text.replace("http://127.0.0.1:8000", docs) for name, text in kept.items()}
    assert made == kept, "run `make grafana`"


#: What Grafana does not know, in a dashboard of which all else is right.
WRONG: dict[str, Callable[[Any], object]] = {
    "dashboard": lambda board: board.update(titel="x"),
    "title": lambda board: board["panels"][1].update(title=1),
    "grid": lambda board: board["panels"][1]["gridPos"].update(z=1),
    "option": lambda board: board["panels"][1]["options"].update(colourMode="value"),
    "value": lambda board: board["panels"][1]["options"].update(colorMode="loud"),
    "query": lambda board: board["panels"][1]["targets"][0].update(exp="up"),
    "thresholds": lambda board: board["panels"][1]["fieldConfig"]["defaults"]["thresholds"].update(mode="none"),
    "field": lambda board: next(one for one in board["panels"] if one["type"] == "timeseries")["fieldConfig"]["defaults"]["custom"].update(
        fillOpacity="much"
    ),
    "variable": lambda board: board["templating"]["list"][0].update(multy=True),
}


def test_grafana_s_own_types_accept_the_dashboards_and_would_reject_what_grafana_does_not_know(tmp_path: Path) -> None:
    wrong = {name: boards()["overview"] for name in WRONG}
    for name, board in wrong.items():
        WRONG[name](board)
    errors = rejected({**BOARDS, **{f"wrong_{name}": board for name, board in wrong.items()}}, tmp_path)
    assert {name: errors.get(name) for name in BOARDS} == dict.fromkeys(BOARDS), "no error in ours"
    assert set(errors) == {f"wrong_{name}" for name in WRONG}


def rejected(some: dict[str, dict[str, Any]], folder: Path) -> dict[str, str]:
    """By the names of the dashboards: what TypeScript finds wrong in them, by the types that Grafana publishes."""
    types = ROOT / "tests" / "grafana"
    (folder / "node_modules").symlink_to(modules_of(types) / "node_modules")
    for name in ("kinds.ts", "tsconfig.json"):
        shutil.copy(types / name, folder / name)
    lines, owners = ['import type { Board, Shown } from "./kinds";'], [""]
    for name, board in some.items():
        parts = [(f"Shown[{json.dumps(panel['type'])}]", panel) for panel in board["panels"]]
        for place, (kind, part) in enumerate([("Board", {**board, "panels": []}), *parts]):
            lines.append(f"export const {name}_{place}: {kind} = {json.dumps(part)};")
            owners.append(name)
    (folder / "dashboards.ts").write_text("\n".join(lines))
    command = ["node", "node_modules/typescript/bin/tsc", "--project", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = re.findall(r"^dashboards\.ts\((\d+),.*", done.stdout, re.MULTILINE)
    assert bool(done.returncode) == bool(found), done.stdout + done.stderr
    return {owners[int(number) - 1]: done.stdout for number in found}


def test_there_is_a_dashboard_for_each_subject_and_each_knows_the_others() -> None:
    assert set(BOARDS) == {"overview", "ingest", "stream", "stores", "completeness", "jobs"}
    for name, board in BOARDS.items():
        assert board["uid"] == f"tapeline-{name}"
        assert board["title"] == f"Tapeline: {name}"
        assert board["description"].endswith(".")
        assert (board["timezone"], board["refresh"]) == ("utc", "10s")
        (link,) = board["links"]
        assert (link["type"], link["tags"]) == ("dashboards", board["tags"])


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_ids_of_their_own_and_lie_beside_each_other(name: str) -> None:
    shown = BOARDS[name]["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown)
    assert len({panel["title"] for panel in shown}) == len(shown)
    places = [panel["gridPos"] for panel in shown]
    assert all(at["x"] + at["w"] <= 24 and at["h"] > 0 for at in places)
    cells = [(at["x"] + dx, at["y"] + dy) for at in places for dx, dy in itertools.product(range(at["w"]), range(at["h"]))]
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_in_which_unit_and_what_to_do(panel: dict[str, Any]) -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    anchors = {re.sub("[^a-z0-9 ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    for one in panel.get("links", []):
        page, _, anchor = filled(one["url"], {"docs": "docs"}).partition("#")
        assert page == "docs/alerts.html"
        assert anchor in anchors
    levels = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": []})["steps"]
    assert not any(step["color"] == "red" for step in levels[1:]) or panel["links"], "what is red has a runbook"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_the_chosen_data_source_and_names_its_series(panel: dict[str, Any]) -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    for target in panel["targets"]:
        assert target["datasource"] == source
        assert target["legendFormat"]
        assert target.get("instant", False) != target.get("range", False)


@pytest.mark.parametrize("one", list(questions()), ids=str)
def test_a_query_asks_for_what_exists_in_a_way_that_is_right_for_it(one: Any) -> None:
    assert "symbol" not in one.expr
    found = METRIC.findall(one.expr)
    assert found or "ALERTS" in one.expr
    for name, part, selector in found:
        family = FAMILIES[name]
        assert bool(part) == (family.kind == "histogram"), name
        labels = {"stage", *family.labels, *OF_PROMETHEUS}
        assert set(re.findall(r"(\w+)\s*[=!]~?\"", selector)) <= labels, name
    for asked, name, window in re.findall(r"\b(rate|increase|delta)\((\w+)(?:\{[^}]*\})?\[([^]]+)\]", one.expr):
        assert (asked == "delta") != name.endswith(("_total", "_bucket", "_count")), "a rate is one of a counter"
        assert window in ("$__rate_interval", "$__range")
    assert one.expr.count("[") == len(re.findall(r"\[(\$__\w+|15m|1h|6h)\]", one.expr))
    assert "histogram_quantile" not in one.expr or re.search(r"sum by \(le\b[^)]*\) \(rate\(\w+_bucket", one.expr)


def test_every_metric_is_in_a_dashboard() -> None:
    asked = {name for one in questions() for name, _, _ in METRIC.findall(one.expr)}
    assert asked == set(FAMILIES)


@pytest.mark.parametrize("name", BOARDS)
def test_each_variable_is_used_and_what_is_used_is_a_variable(name: str) -> None:
    board = BOARDS[name]
    known = {one["name"] for one in board["templating"]["list"]}
    text = json.dumps([board["panels"], [one for one in board["templating"]["list"] if one["type"] == "query"]])
    assert used(text) - OF_GRAFANA == known
    for metric, label in variables(board).values():
        assert label in {"stage", *FAMILIES[metric].labels}


def test_the_pages_about_monitoring_name_metrics_that_exist() -> None:
    for page in ("monitoring.md", "grafana.md", "alerts.md"):
        for name, _, _ in METRIC.findall((ROOT / "docs" / page).read_text()):
            assert name in FAMILIES or name == "tapeline_grafana", f"{page}: {name}"


def test_grafana_is_told_of_prometheus_and_of_the_dashboards() -> None:
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "tapeline.yml").read_text())["datasources"]
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (folder,) = yaml.safe_load((provisioning / "dashboards" / "tapeline.yml").read_text())["providers"]
    assert (folder["type"], folder["allowUiUpdates"]) == ("file", False)
    how_to = (ROOT / "docs" / "grafana.md").read_text()
    assert folder["options"]["path"] in how_to
