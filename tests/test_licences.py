"""The licences of everything that Tapeline uses or contains are listed, and each is one that was read and allowed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from modules import module_at

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def licences() -> Any:
    return module_at(ROOT / "docs" / "licences.py")


def test_the_list_is_what_the_installed_packages_say(licences: Any) -> None:
    assert licences.text() == licences.PAGE.read_text(), "run `make docs`"


def test_every_licence_is_allowed(licences: Any) -> None:
    packages = [*licences.python_packages(), *licences.page_packages(), *licences.crates()]
    assert {"pyarrow", "confluent-kafka", "apprise", "preact", "pyo3"} <= {package.name for package in packages}
    new = {package.name: found for package in packages if (found := licences.not_allowed(package.licence))}
    assert new == {}, "read the licence; then allow it in docs/licences.py, or do without the package"


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("MIT", []),
        ("BSD-3-Clause AND 0BSD AND (MIT OR Apache-2.0)", []),
        ("AGPL-3.0-only", ["AGPL-3.0-only"]),
        ("MIT AND SSPL-1.0", ["SSPL-1.0"]),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", ["GPL-3.0-or-later WITH GCC-exception-3.1"]),
        ("not stated", ["not stated"]),
    ],
)
def test_a_licence_that_nobody_has_read_is_named(expression: str, found: list[str], licences: Any) -> None:
    assert licences.not_allowed(expression) == found


def test_a_wheel_has_the_list() -> None:
    assert "THIRD_PARTY.md" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]
