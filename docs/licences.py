"""Writes THIRD_PARTY.md: the packages that an installed Tapeline uses or contains, with their licences. `make docs` runs it.

The packages of Python are those that uv.lock names for Tapeline with all extras. Their licences are what their metadata says.
The packages of npm are those that end up in the dashboard's page: a wheel contains them, so their texts are in the file.
The crates are those that cargo links into the native core. Their licences are what their manifests say.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import files, metadata
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from packaging.markers import Marker

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "THIRD_PARTY.md"
#: The licences, by their SPDX names, under which Tapeline may be used and passed on with the package. Add one only after reading it.
ALLOWED: Final = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "PSF-2.0", "Zlib"),
        "MPL-2.0",  # its own files stay under it; it does not reach what uses them
    }
)
#: What older metadata says, in lower case, and what it means.
_MEANS: Final = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "isc": "ISC",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "the mit license": "MIT",
}
_SHORT: Final = 60
#: The system of the list. The rest is as it is here.
_SYSTEM: Final = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"}


class Package(NamedTuple):
    """A package in its locked version. `text`: the text of its licence, if a wheel of Tapeline contains the package."""

    name: str
    version: str
    licence: str
    text: str = ""


def python_packages() -> list[Package]:
    """Return the packages that Tapeline with all extras needs. Raises ValueError if another version than the locked one is installed."""
    locked: list[dict[str, Any]] = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    found: dict[str, Package] = {}
    waiting = list(_needed(next(one for one in locked if one["name"] == "tapeline"), None))
    seen = set()
    while waiting:
        name, version, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        one = next(one for one in locked if one["name"] == name and version in ("", one["version"]))
        found[name] = Package(name, one["version"], _licence(name, one["version"]))
        waiting += _needed(one, extra)
    return [found[name] for name in sorted(found)]


def _needed(package: Mapping[str, Any], extra: str | None) -> Iterator[tuple[str, str, str | None]]:
    """Yield name, version (empty if there is only one) and extra of what a package needs here. Of Tapeline itself: with every extra."""
    extras: dict[str, list[dict[str, Any]]] = package.get("optional-dependencies", {})
    chosen = [one for name, some in extras.items() for one in some if package["name"] == "tapeline" or name == extra]
    for one in [*package.get("dependencies", ()), *chosen]:
        if "marker" not in one or Marker(one["marker"]).evaluate(_SYSTEM):
            for some in [None, *one.get("extra", ())]:
                yield one["name"], one.get("version", ""), some


def _licence(name: str, locked: str) -> str:
    about = metadata(name)
    if about["Version"] != locked:
        raise ValueError(f"{name} {about['Version']} is installed, and uv.lock names {locked}. Run `make install`.")
    if "License-Expression" in about:
        return about["License-Expression"]
    stated = [about["License"]] if "License" in about else []
    stated += [one.rpartition(" :: ")[2] for one in about.get_all("Classifier") or () if one.startswith("License :: ")]
    stated += [lines[0] for one in files(name) or () if "LICENSE" in one.name and (lines := one.read_text().strip().splitlines())]
    known = [_MEANS[one.strip().lower()] for one in stated if one.strip().lower() in _MEANS]
    if known:
        return known[0]
    return next((one.strip() for one in stated if 0 < len(one.strip()) < _SHORT and "\n" not in one), "not stated")


def page_packages() -> list[Package]:
    """Return the packages of npm that end up in the dashboard's page. They must be fetched: `make page`."""
    packages: dict[str, dict[str, Any]] = json.loads((ROOT / "web" / "package-lock.json").read_text())["packages"]
    found = []
    for place, one in sorted(packages.items()):
        if place and not one.get("dev"):
            (text,) = (ROOT / "web" / place).glob("LICENSE*")
            found.append(Package(place.removeprefix("node_modules/"), one["version"], one["license"], text.read_text().strip()))
    return found


def crates() -> list[Package]:
    """Return the crates of Rust that end up in the native core, but for itself. Rust must be installed."""
    command = ["cargo", "metadata", "--quiet", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]
    about = json.loads(subprocess.run(command, cwd=ROOT / "native", capture_output=True, check=True).stdout)  # noqa: S603 our own words
    packages = {one["id"]: one for one in about["packages"]}
    needs = {node["id"]: node["deps"] for node in about["resolve"]["nodes"]}
    waiting, found = [about["resolve"]["root"]], set()
    while waiting:
        for need in needs[waiting.pop()]:
            here = any(kind["kind"] is None for kind in need["dep_kinds"])  # not only for building or testing
            only_compiles = any("proc-macro" in target["kind"] for target in packages[need["pkg"]]["targets"])
            if here and not only_compiles and need["pkg"] not in found:
                found.add(need["pkg"])
                waiting.append(need["pkg"])
    linked = sorted((packages[name] for name in found), key=itemgetter("name"))
    return [Package(one["name"], one["version"], one["license"]) for one in linked]


def not_allowed(expression: str) -> list[str]:
    """Return the licences of an SPDX expression that are not in ALLOWED. An exception makes another licence: `X WITH Y`."""
    bare = re.sub(r"[()]", " ", expression)
    return [one.strip() for one in re.split(r"\s(?:AND|OR)\s", bare) if one.strip() not in ALLOWED]


def text() -> str:
    """Return what THIRD_PARTY.md says."""
    found = [
        "<!-- Written by docs/licences.py. Run `make docs`. -->",
        "# Third-party software",
        "",
        "Tapeline's own licence is in LICENSE.",
        "",
        "## In the wheel",
        "",
        "The dashboard's page contains these packages of npm:",
        "",
        *_table(page_packages()),
        "## In the wheel of the native core",
        "",
        "The native core (the package `tapeline-native`) contains these crates of Rust:",
        "",
        *_table(crates()),
        "## Installed beside it",
        "",
        "Tapeline uses these packages of Python. They are installed from their own files, in the versions that `uv.lock` names. This is",
        "the list for Tapeline with all extras, on Linux with Python 3.11. The licences are what the packages' metadata says.",
        "",
        *_table(python_packages()),
        "## Texts",
        "",
    ]
    for one in page_packages():
        found += [f"### {one.name}", "", "```", one.text, "```", ""]
    return "\n".join(found)


def _table(packages: list[Package]) -> list[str]:
    rows = [f"| {one.name} | {one.version} | {one.licence} |" for one in packages]
    return ["| package | version | licence |", "| --- | --- | --- |", *rows, ""]


if __name__ == "__main__":
    PAGE.write_text(text())
