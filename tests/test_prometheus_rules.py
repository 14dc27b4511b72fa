"""The rules for Prometheus and the routes for Alertmanager: their own tools accept them, and each alert has a test and a runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from services import alertmanager, prometheus

import tapeline
from brokers import need
from tapeline.config import SlaConfig
from tapeline.telemetry.families import FAMILIES

ROOT = Path(tapeline.__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
ROUTES = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
#: What docs/alerts.md has headings for beside the checks: a promise that cannot be checked, and the alerts of other programs.
OTHERS = {"unknown", "others"}
#: What only the dashboard says.
ON_THE_DASHBOARD = {"the-live-feed-waits"}


@pytest.fixture(scope="module")
def promtool() -> str:
    need(prometheus)
    found = shutil.which("promtool")
    assert found, "Debian's package prometheus brings promtool"
    return found


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((RULES / name).read_text())["groups"] for rule in group["rules"]]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=RULES, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration_and_the_rules(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "check", "config", "prometheus.yml")
    assert "SUCCESS" in run(promtool, "check", "rules", "--lint=all", "--lint-fatal", "recording.rules.yml", "alerting.rules.yml")


def test_each_alert_fires_for_what_it_is_about_and_not_before(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", "rules.test.yml")
    tests = yaml.safe_load((RULES / "rules.test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test.get("alert_rule_test", ()) if one["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules("alerting.rules.yml")}


def checks() -> set[str]:
    """What can be promised. The runbook of each has its name."""
    return set(get_args(get_type_hints(SlaConfig)["check"]))


def runbooks() -> set[str]:
    """The anchors of the headings below "What to do" on the page of alerts."""
    page = (ROOT / "docs" / "alerts.md").read_text().partition("\n## What to do\n")[2]
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    return {re.sub("[^a-z0-9 ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_alert_has_a_severity_and_a_runbook_and_each_runbook_an_alert() -> None:
    named = set()
    for rule in rules("alerting.rules.yml"):
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        page, _, heading = rule["annotations"]["runbook"].partition("#")
        assert page == "alerts.md"
        named |= (checks() | OTHERS | {"job"}) if heading == "{{ $labels.runbook }}" else {heading}
    assert named | ON_THE_DASHBOARD == runbooks()


def test_the_page_about_monitoring_names_each_alert() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert set(re.findall(r"`(Tapeline\w+)`", page)) == {rule["alert"] for rule in rules("alerting.rules.yml")}


def test_alertmanager_accepts_the_routes_and_each_rule_that_they_name_exists() -> None:
    need(alertmanager)
    assert "SUCCESS" in run("amtool", "check-config", str(ROUTES))
    routes = yaml.safe_load(ROUTES.read_text())
    known = {rule["alert"] for rule in rules("alerting.rules.yml")}
    named = re.findall(r"Tapeline\w+", str(routes["inhibit_rules"]))
    assert named
    assert set(named) <= known


def test_each_metric_of_the_rules_exists() -> None:
    recorded = {rule["record"] for rule in rules("recording.rules.yml")}
    for rule in (*rules("recording.rules.yml"), *rules("alerting.rules.yml")):
        used = re.findall(r"[a-z]*:?tapeline_\w+(?::\w+)?", rule["expr"])
        assert used or rule["expr"].startswith("up{"), rule  # a metric of Prometheus itself
        for name in used:
            known = name in recorded or name in FAMILIES or re.sub(r"_(bucket|sum|count)$", "", name) in FAMILIES
            assert known, f"{name} in {rule.get('alert') or rule['record']}"
