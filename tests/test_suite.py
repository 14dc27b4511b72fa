"""The suite's own tools do what docs/test-suite.md says: forks are processes, waiting waits, proofs are counted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import proving
from waiting import until

PARENTS = "import os; print(os.getpid(), os.getppid(), os.getsid(0), flush=True)"


def program(code: str, *flags: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["a fork", "a new interpreter"])
@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("raise SystemExit('no')", 1, "no\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("import atexit, sys; atexit.register(lambda: print('end', file=sys.stderr))", 0, "end\n"),
        (
            "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print(1, file=__import__('sys').stderr))).start()",
            0,
            "1\n",
        ),
    ],
    ids=["well", "a status", "a text", "an error", "killed", "ended", "at exit", "a thread goes on"],
)
def test_a_program_ends_as_in_a_new_interpreter(code: str, status: int, said: str, flags: tuple[str, ...]) -> None:
    done = program(code, *flags)
    assert done.returncode == status
    assert done.stderr.endswith(said) or said in done.stderr
    assert bool(done.stderr) == bool(said)


def test_a_fork_has_its_own_pid_session_folder_environment_arguments_and_files(tmp_path: Path) -> None:
    code = "import os, sys; own = os.getpid() == os.getsid(0);"
    code += "print(os.getcwd(), os.environ.get('A'), len(os.environ), sys.argv[1:], sys.stdin.read(), own)"
    command = [sys.executable, "-c", code, "one", "two words"]
    done = subprocess.run(
        command, input="in", capture_output=True, text=True, check=True, cwd=tmp_path, env={"A": "ä"}, start_new_session=True
    )
    assert done.stdout == f"{tmp_path} ä 1 ['one', 'two words'] in True\n"


def test_a_fork_dies_of_kill_9_and_sees_whoever_started_it_as_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", f"{PARENTS}; import time; time.sleep(600)"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, parent, _ = map(int, process.stdout.readline().split())
        assert (pid, parent) == (process.pid, os.getpid())
        assert process.poll() is None
        os.kill(pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        until(lambda: not os.path.exists(f"/proc/{pid}"), "it is gone")


def test_a_fork_whose_starter_is_killed_sees_that_it_has_another_parent(tmp_path: Path) -> None:
    told = tmp_path / "told"
    child = "import os, time; first = os.getppid(); print('ready', flush=True)\nwhile os.getppid() == first: time.sleep(0.01)\n"
    child += f"open({str(told)!r}, 'w').write('orphan')"
    starter = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    until(lambda: told.exists() and told.read_text() == "orphan", "the child notices")


def test_waiting_gives_the_answer_and_names_what_did_not_come() -> None:
    answers = iter([None, 0, "", "yes"])
    assert until(lambda: next(answers)) == "yes"
    with pytest.raises(AssertionError, match="not within 0 s: the moon"):
        until(lambda: False, "the moon", 0.05)


def test_the_table_of_proofs_says_what_was_proven_how_often_and_how_long() -> None:
    def report(name: str, when: str, duration: float, outcome: str = "passed", **noted: Any) -> Any:
        return SimpleNamespace(
            nodeid=f"tests/a.py::{name}",
            when=when,
            duration=duration,
            passed=outcome == "passed",
            failed=outcome == "failed",
            user_properties=list(noted.items()),
        )

    lines = proving.table(
        [
            report("test_all_is_well[1]", "call", 1.5, part="chaos"),
            report("test_all_is_well[2]@a group", "call", 2.0, part="chaos"),
            report("test_all_is_well[2]", "teardown", 0.5, part="chaos"),
            report("test_numbers", "call", 3.0, part="properties", examples=1_000),
            report("test_worse@another", "call", 1.0, "failed", part="chaos"),
        ]
    )
    assert [line.split(maxsplit=2) for line in lines if line and line.strip()[0].isdecimal()] == [
        ["2", "4.0", "all is well"],
        ["0", "1.0", "worse  (1 FAILED)"],
        ["1,000", "3.0", "numbers"],
    ]


def test_tests_that_share_something_run_in_one_worker() -> None:
    """Their group is a part of the name by which pytest-xdist gives them to a worker."""
    file = Path(__file__).with_name("test_prometheus_rules.py")  # two of its tests share a fixture of their module
    command = [sys.executable, "-u", "-m", "pytest", "--numprocesses", "2", "--dist", "loadgroup", "-vv", str(file)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parents[1], env=kept)
    assert done.returncode == 0, done.stdout
    ran = re.findall(r"^\[(gw\d)\].* PASSED (\S+)", done.stdout, re.MULTILINE)
    workers = [worker for worker, name in ran if name.endswith("@test_prometheus_rules")]
    assert len(workers) == 2, done.stdout
    assert len({*workers}) == 1
