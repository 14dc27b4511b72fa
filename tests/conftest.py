"""How the suite runs: processes by forking, tests in several workers, property tests by a seed that is printed, proofs on request."""

from __future__ import annotations

import os
import re
import zlib
from random import SystemRandom
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

import forking
import proving

if TYPE_CHECKING:
    from collections.abc import Generator

#: The real servers.
pytest_plugins = ["brokers"]

#: A test waits more than it works: so many workers for each core.
_WORKERS_A_CORE = 2
#: Brokers that tests of Kafka share; each is a Java of its own.
_BROKERS = 2

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("quick", max_examples=20, deadline=None, database=None, suppress_health_check=_SLOW)
settings.register_profile("prove", max_examples=1_000, deadline=None, database=None, suppress_health_check=_SLOW)
settings.load_profile("prove" if proving.PROVE else "quick")


def pytest_xdist_auto_num_workers() -> int:
    return _WORKERS_A_CORE * len(os.sched_getaffinity(0))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proof(part): it has a full form, which `make prove` runs (tests/proving.py)")
    proving.check_part()
    works_itself = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if works_itself:  # the controller starts the workers, which are no programs of ours
        forking.install()
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = SystemRandom().randrange(1 << 32)


def pytest_unconfigure() -> None:
    forking.stop()


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups at the same time
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if (group := _group(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    chosen = proving.asked_for(items)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def _group(item: pytest.Item) -> str | None:
    """Tests of one group run in one worker, one after the other: those that share a broker, or something that a module makes once.

    None: the test is in no group, or has named its own."""
    if item.get_closest_marker("xdist_group") is not None:
        return None
    fixtures = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    if any(some[-1].scope == "module" for some in fixtures.values()):
        return item.path.stem
    if "kafka" in item.name:
        return f"kafka {zlib.crc32(item.nodeid.encode()) % _BROKERS}"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if proving.PROVE:
        passing = re.search(r"(\d+) passing", getattr(item, "hypothesis_statistics", ""))
        report.user_properties += [("part", proving.part_of(item)), *([("examples", int(passing[1]))] if passing else [])]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"property tests: --hypothesis-seed={config.getoption('hypothesis_seed')}")
    if proving.PROVE and not config.option.collectonly:
        reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
        terminalreporter.write_line("\n".join(proving.table(reports)))
