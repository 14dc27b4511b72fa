"""The rules for Prometheus: promtool accepts them, each alert has a test and a page that says what to do, and each metric exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from services import prometheus

import tapeline
from brokers import need
from tapeline.telemetry.families import FAMILIES

ROOT = Path(tapeline.__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"


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


def test_each_alert_has_a_severity_and_a_page_that_says_what_to_do() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    anchors = {f"alerts.md#{re.sub('[^a-z0-9 ]', '', heading.lower()).replace(' ', '-')}" for heading in headings}
    for rule in rules("alerting.rules.yml"):
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["runbook"] in anchors, rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]


def test_each_metric_of_the_rules_exists() -> None:
    recorded = {rule["record"] for rule in rules("recording.rules.yml")}
    for rule in (*rules("recording.rules.yml"), *rules("alerting.rules.yml")):
        used = re.findall(r"[a-z]*:?tapeline_\w+(?::\w+)?", rule["expr"])
        assert used, rule
        for name in used:
            known = name in recorded or name in FAMILIES or re.sub(r"_(bucket|sum|count)$", "", name) in FAMILIES
            assert known, f"{name} in {rule.get('alert') or rule['record']}"
