"""The address that Prefect's automations post to: it believes only who knows its secret, and passes on what it understands."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tapeline import __file__ as installed
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(installed).parents[2] / "integrations" / "prefect"


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[str]]:
    """A stand-in of the program `tapeline`, and what it was called with. It fails while there is a file `away`."""
    program = tmp_path / "tapeline"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ntest ! -e {tmp_path}/away || exit 69\n')
    program.chmod(0o755)
    noted = tmp_path / "calls"
    return lambda: noted.read_text().splitlines() if noted.exists() else []


@pytest.fixture
def url(tmp_path: Path, calls: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(PACKAGE))  # its alerts need nothing of Prefect
    from tapeline_prefect.alerts import Alerts  # type: ignore[import-not-found]
    from tapeline_prefect.command import Tapeline  # type: ignore[import-not-found]

    with Alerts(Tapeline(str(tmp_path / "tapeline"), "t.toml")) as alerts:
        alerts.listen_for(["reconcile"])
        yield alerts.url
    for name in [name for name in sys.modules if name.startswith("tapeline_prefect")]:
        del sys.modules[name]


def post(url: str, said: object) -> int:
    request = urllib.request.Request(url, json.dumps(said).encode(), {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


LATE = {"job": "reconcile", "late": True, "text": "it is late; rm -rf $HOME"}


def test_what_is_late_is_raised_and_what_is_not_is_resolved_once(url: str, calls: Callable[[], list[str]]) -> None:
    assert post(url, LATE) == 204
    for _ in range(3):
        assert post(url, {"job": "reconcile", "late": False, "text": ""}) == 204
    assert post(url, LATE) == 204
    raised = "alerts raise prefect-reconcile-late --text it is late; rm -rf $HOME --config t.toml"
    until(lambda: len(calls()) == 3, "it is passed on")
    assert calls() == [raised, "alerts resolve prefect-reconcile-late --config t.toml", raised]


def test_an_alert_that_cannot_be_passed_on_is_tried_again(url: str, calls: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / "away").touch()
    assert post(url, LATE) == 204
    until(lambda: len(calls()) == 1, "it is tried")
    (tmp_path / "away").unlink()
    until(lambda: len(calls()) == 2, "it is tried again")


@pytest.mark.parametrize(
    "said", [{"job": "unknown", "late": True, "text": ""}, {"job": "reconcile"}, ["reconcile"], {**LATE, "late": "yes"}, "x" * 70_000]
)
def test_what_is_not_understood_is_refused(said: object, url: str, calls: Callable[[], list[str]]) -> None:
    assert post(url, said) in (400, 413)
    assert calls() == []


def test_who_does_not_know_the_secret_is_refused(url: str, calls: Callable[[], list[str]]) -> None:
    place, _, secret = url.rpartition("/")
    for path in ("", secret[:-1], secret + "x", f"{secret}/"):
        assert post(f"{place}/{path}", LATE) == 404
    assert calls() == []
