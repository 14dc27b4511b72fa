"""Airflow runs the jobs of Tapeline: a real Airflow in an environment of its own, which calls the command line, against simulators."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from processes import Home, block, environment

from environments import python_of
from proving import proof
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.runs import Run, Runs
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "integrations" / "airflow"
HERE = Path(__file__).parent
DAY_NS = 86_400 * 10**9


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tapeline_command", FOLDER / "dags" / "tapeline_command.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tapeline_command"] = module
    spec.loader.exec_module(module)
    return module


command = _module()


def stand_in(folder: Path, text: str) -> Any:
    """A Tapeline whose command is a shell script."""
    (folder / "tapeline").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "tapeline").chmod(0o755)
    (folder / "tapeline.toml").touch()
    return command.Tapeline((str(folder / "tapeline"),), folder / "tapeline.toml", folder / "kept")


def job(**more: Any) -> dict[str, Any]:
    return dict.fromkeys(command._NEEDED) | {"job": "compact", "providers": ["binance"]} | more


# The command, without Airflow.


def test_the_jobs_are_asked_for_once_and_again_when_the_configuration_changes_or_an_hour_has_passed(tmp_path: Path) -> None:
    tapeline = stand_in(tmp_path, f"echo asked >> {tmp_path}/asked\necho '{json.dumps(job())}'")
    now = [1e9]
    for later_s, text, asked in ((0, "a = 1", 1), (5, "a = 1", 1), (5, "b = 2", 2), (3_601, "b = 2", 3)):
        now[0] += later_s
        (tmp_path / "tapeline.toml").write_text(text)
        assert tapeline.jobs(lambda: now[0]) == [job()]
        assert len((tmp_path / "asked").read_text().splitlines()) == asked


@pytest.mark.parametrize(("status", "kept"), [(69, True), (75, True), (78, False), (70, False)])
def test_an_old_list_is_good_enough_while_the_error_may_pass(tmp_path: Path, status: int, *, kept: bool) -> None:
    tapeline = stand_in(tmp_path, f"test -e {tmp_path}/away && echo The reason. >&2 && exit {status}\necho '{json.dumps(job())}'")
    tapeline.jobs(lambda: 0.0)
    (tmp_path / "away").touch()
    if kept:
        assert tapeline.jobs(lambda: 9e9) == [job()]
        return
    with pytest.raises(command.CommandFailed, match=rf"ended with status {status}:\nThe reason\."):
        tapeline.jobs(lambda: 9e9)


def test_a_tapeline_that_is_older_than_the_dags_is_named(tmp_path: Path) -> None:
    with pytest.raises(command.CommandFailed, match="is older than these DAGs"):
        stand_in(tmp_path, 'echo \'{"job": "compact"}\'').jobs()


def test_a_run_tells_every_line_and_returns_its_outcome(tmp_path: Path) -> None:
    outcome = {"job": "compact", "exit_status": 0, "result": {"day": "2026-01-05"}}
    tapeline = stand_in(tmp_path, f"echo a warning >&2\necho '{{\"progress\": {{\"rows\": 5}}}}'\necho '{json.dumps(outcome)}'")
    told: list[str] = []
    assert command.Run(tapeline.arguments("jobs", "run", "compact")).follow(told.append) == outcome
    assert sorted(told[1:]) == ["a warning", '{"progress": {"rows": 5}}']
    assert " jobs run compact --config " in told[0]


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    failed = {"job": "compact", "exit_status": 77, "error": "The key is wrong."}
    for text, status, why in ((f"echo '{json.dumps(failed)}'; exit 77", 77, "The key is wrong."), ("echo Oh >&2; exit 70", 70, "Oh")):
        with pytest.raises(command.CommandFailed, match=why) as raised:
            command.Run(stand_in(tmp_path, text).arguments()).follow(lambda _: None)
        assert raised.value.status == status


def test_a_run_that_is_told_to_stop_stops_its_command(tmp_path: Path) -> None:
    line = stand_in(tmp_path, f"trap 'echo stopped > {tmp_path}/stopped; exit 75' TERM\ntouch {tmp_path}/up\nwhile :; do sleep 0.1; done")
    run = command.Run(line.arguments())
    ended: list[Exception] = []

    def follow() -> None:
        try:
            run.follow(lambda _: None)
        except command.CommandFailed as error:
            ended.append(error)

    thread = Thread(target=follow)
    thread.start()
    until((tmp_path / "up").exists)
    run.stop()
    thread.join(30.0)
    assert (tmp_path / "stopped").exists()
    assert [error.status for error in ended] == [75]


def test_tapeline_sees_nothing_of_airflow_and_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_HOME", "PYTHONPATH", "VIRTUAL_ENV", "TAPELINE_COMMAND"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("TAPELINE_ALPACA_KEY", "k")
    seen = command.environment()
    assert seen["TAPELINE_ALPACA_KEY"] == "k"
    assert not [name for name in seen if name.startswith(("AIRFLOW", "PYTHON", "VIRTUAL")) or name == "TAPELINE_COMMAND"]


# Airflow itself.


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter of Airflow's environment."""
    return python_of(FOLDER)


@pytest.fixture
def airflow(python: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of Airflow, or a script with its interpreter, with a database of its own."""
    settings = {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "TAPELINE_COMMAND": shlex.join([sys.executable, "-m", "tapeline"]),
        "TAPELINE_CONFIG": str(tmp_path / "data.toml"),
    }

    def run(*words: str, script: Path | None = None) -> subprocess.CompletedProcess[str]:
        line = [python, str(script), *words] if script else [str(Path(python).with_name("airflow")), *words]
        return subprocess.run(line, env=environment(**settings), capture_output=True, text=True, timeout=600.0, check=False)

    return run


def dags(airflow: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    done = airflow(script=HERE / "list_dags.py")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


JOBS = """
[[jobs]]
job = "reconcile"
schedule = "30 6 * * *"
timezone = "America/New_York"
deadline = "08:00"
retries = 7
[[jobs]]
job = "backfill"
[[jobs]]
job = "repair"
[[jobs]]
job = "compact"
catch_up = "latest"
[[jobs]]
job = "prune"
every = "30s"
"""


def exports(folder: Path) -> str:
    return "".join(
        f'[[jobs]]\njob = "export"\nname = "export-{symbol}"\narguments = {{ symbol = "{symbol}/USDT", to = "{folder}" }}\n'
        for symbol in ("BTC", "ETH")
    )


@pytest.mark.timeout(900)
def test_there_is_a_dag_for_each_job_and_one_for_the_day_and_an_error_is_shown_with_its_reason(
    home: Home, airflow: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    feeds = block("binance", "ws://127.0.0.1:9", ["BTCUSDT"], ["trade"]) + block("alpaca", "ws://127.0.0.1:9", ["AAPL"], ["trades"])
    home.configure(feeds + JOBS + exports(tmp_path))
    found = dags(airflow)
    assert (found["errors"], found["warnings"]) == ([], [])
    made = found["dags"]
    of_jobs = "backfill check_lake compact export-BTC export-ETH reconcile repair symbols vacuum".split()  # prune repeats within a minute
    assert sorted(made) == ["tapeline_day", *(f"tapeline_job_{name}" for name in of_jobs)]
    reconcile = made["tapeline_job_reconcile"]
    assert "expression='30 6 * * *', timezone='America/New_York'" in reconcile["schedule"]
    assert reconcile["catchup"]
    assert reconcile["deadline_s"] == [90 * 60]
    assert reconcile["pools"] == {"reconcile_binance": "tapeline_binance", "reconcile_alpaca": "tapeline_alpaca"}
    assert set(reconcile["retries"].values()) == {7}
    assert not made["tapeline_job_compact"]["catchup"]
    assert "seconds=300" in made["tapeline_job_repair"]["schedule"]
    day = made["tapeline_day"]
    assert day["schedule"] == reconcile["schedule"]
    for provider in ("binance", "alpaca"):
        for earlier, later in (("symbols", "backfill"), ("backfill", "reconcile"), ("reconcile", "repair")):
            assert day["after"][f"{later}_{provider}"] == [f"{earlier}_{provider}"]
    assert day["after"]["compact"] == ["repair_alpaca", "repair_binance"]
    assert (day["after"]["check_lake"], day["after"]["export"]) == (["compact"], ["check_lake"])

    ended, line = found["outcomes"], "run compact --format json --by airflow --by-id r --by-url http://127.0.0.1/x --attempt 2"
    noon_ns = int(datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp()) * 10**9
    assert {status: ended[status] for status in ("2", "65", "77", "78")} == dict.fromkeys(("2", "65", "77", "78"), "AirflowFailException")
    assert {status: ended[status] for status in ("69", "70", "75")} == dict.fromkeys(("69", "70", "75"), "AirflowException")
    assert ended["late"] == "AirflowSkipException"
    assert ended["0"] == ended["late, made up for"] == f"{line} --due-ns {noon_ns}"
    assert (ended["by hand"], ended["by hand, without a day"]) == (f"{line} --day 2026-01-03", line)
    assert ended["one provider"] == f"{line} --provider binance --due-ns {noon_ns}"

    home.configure(feeds + '[[jobs]]\njob = "recon"\n')
    (error,) = dags(airflow)["errors"]
    assert 'job = "recon" is not a job. The jobs are: backfill, reconcile' in error


def start_yesterday(home: Home, *faults: str) -> tuple[subprocess.Popen[bytes], str, Path]:
    """A simulator of Binance where it is yesterday: its process, its address and its journal."""
    journal, said = home.root.with_name("sent.jsonl"), home.root.with_name("yesterday.log")
    with said.open("wb") as sink:
        line = [sys.executable, str(HERE / "yesterday.py"), "binance", str(journal), *faults]
        process = subprocess.Popen(line, stdout=sink, env=environment(), start_new_session=True)
    return process, str(until(lambda: said.read_text().strip(), "it listens")), journal


@pytest.fixture
def yesterday(home: Home) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], str, Path]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*faults: str) -> tuple[subprocess.Popen[bytes], str, Path]:
        found = start_yesterday(home, *faults)
        started.append(found[0])
        return found

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def day_that_is_over() -> str:
    return str(datetime.now(UTC).date() - timedelta(days=1))


def sent(journal: Path) -> set[tuple[str, int]]:
    """The symbols and ids of the trades that happened."""
    events = [json.loads(line)["event"] for line in journal.read_text().splitlines()]
    return {(f"{event['s'][:-4]}/USDT", event["t"]) for event in events if event["e"] == "trade"}


def kept(home: Home) -> list[tuple[str, int]]:
    """The symbols and ids of the trades in the lake."""
    return [(symbol, number) for symbol, number in home.rows("SELECT symbol, sequence FROM ticks WHERE channel = 'trade'")]


def runs_of(home: Home, name: str | None = None) -> list[Run]:
    """The runs that Tapeline has recorded, the latest first."""
    return Runs(SqliteDatabase(home.root / "runs.sqlite", time.time_ns)).of(name, 500)


def prepare(home: Home, url: str, journal: Path, process: subprocess.Popen[bytes], jobs: str) -> None:
    """A market that was open for a while, to which nobody listened for trades, and a pipeline with a lake."""
    feed = block("binance", url, ["BTCUSDT", "ETHUSDT"], ["trade"], rest_url=url.replace("ws", "http", 1))
    home.configure(f'scheduler = "airflow"\nrepair = false\n{feed}{jobs}', ledger=True)
    other = Home(home.root.with_name("other"), home.spawn)
    other.configure(feed)
    listening = other.start("ingest")
    until(lambda: journal.exists() and journal.stat().st_size > 400_000, "trades happen")
    listening.end()
    process.send_signal(signal.SIGUSR1)
    home.configure(f'scheduler = "airflow"\nrepair = false\n{feed.replace("trade", "kline_1m")}{jobs}', ledger=True)
    home.start("run")
    until(lambda: home.word("lake"), "the lake's store runs")


@pytest.mark.timeout(900)
def test_airflow_dags_test_runs_the_operational_day(
    home: Home, airflow: Callable[..., subprocess.CompletedProcess[str]], yesterday: Callable[..., Any], tmp_path: Path
) -> None:
    process, url, journal = yesterday("rest_error:2", "rest_429:2")
    jobs = '[[jobs]]\njob = "backfill"\narguments = { channels = ["trades"] }\n[[jobs]]\njob = "compact"\n' + exports(tmp_path / "exports")
    prepare(home, url, journal, process, jobs)
    assert airflow("db", "migrate").returncode == 0
    done = airflow("dags", "test", "tapeline_day", "--conf", json.dumps({"day": day_that_is_over()}))
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    found = list(reversed(runs_of(home)))
    assert [run.job for run in found[:5]] == ["symbols", "backfill", "reconcile", "compact", "check_lake"]
    assert {run.job for run in found[5:]} == {"export-BTC", "export-ETH"}
    assert {(run.state, run.origin, run.attempt) for run in found} == {("succeeded", "airflow", 1)}
    assert {run.thing for run in found if run.job in ("reconcile", "compact", "export-BTC")} == {day_that_is_over()}
    until(lambda: set(kept(home)) >= sent(journal), "every trade is in the lake")
    assert len(kept(home)) == len(set(kept(home)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Server:
    """Airflow as `start.py` runs it, and its REST interface."""

    def __init__(self, python: str, folder: Path, config: Path, tapeline: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.log = folder / "start.log"
        folder.mkdir()
        line = [python, str(FOLDER / "start.py"), "--config", str(config), "--tapeline", str(tapeline), "--home", str(folder)]
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*line, "--port", str(self.port), "--first-wait", "2"], stdout=sink, stderr=sink, env=environment(), start_new_session=True
            )
        self._token = ""

    def part(self, name: str) -> int:
        """The process of a part of Airflow, which is the last one that was told."""
        told = [line.split() for line in self.log.read_text().splitlines() if line.startswith(f"{name} is process")]
        return int(told[-1][-1].rstrip(".")) if told else 0

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of Airflow's REST interface; None while it does not answer."""
        if not self._token and path != "/auth/token":
            password = json.loads((self.folder / "simple_auth_manager_passwords.json.generated").read_text())["admin"]
            self._token = self.ask("POST", "/auth/token", {"username": "admin", "password": password})["access_token"]
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60.0) as answer:
            return json.load(answer)

    def healthy(self) -> bool:
        with suppress(OSError):
            health = self.ask("GET", "/api/v2/monitor/health")
            return all(health[part]["status"] == "healthy" for part in ("scheduler", "dag_processor"))
        assert self.process.poll() is None, self.log.read_text()
        return False

    def states(self, dag: str) -> list[str]:
        found = self.ask("GET", f"/api/v2/dags/{dag}/dagRuns?order_by=run_after")["dag_runs"]
        return [str(run["state"]) for run in found]

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120.0)


@pytest.fixture
def tapeline(tmp_path: Path) -> Path:
    """The program tapeline, which also writes down each alert that it is told of."""
    program = tmp_path / "tapeline"
    real = Path(sys.executable).with_name("tapeline")
    program.write_text(f'#!/bin/sh\n[ "$1" = alerts ] && echo "$@" >> {tmp_path}/alerts\nexec {real} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.timeout(1_500)
@proof("crashes", quick=False)
def test_airflow_makes_up_for_missed_days_retries_with_growing_waits_and_survives_a_killed_scheduler(
    home: Home, python: str, tapeline: Path, yesterday: Callable[..., Any], tmp_path: Path
) -> None:
    process, url, journal = yesterday("rest_error:13", "rest_429:2")
    trades = 'arguments = { channels = ["trades"] }\n'
    reconcile = f'[[jobs]]\njob = "reconcile"\nretries = 9\ntimeout = "20s"\ndeadline = "07:00"\n{trades}'
    prepare(home, url, journal, process, reconcile + f'[[jobs]]\njob = "backfill"\nschedule = "0 0 1 1 *"\nretries = 9\n{trades}')
    three_days_ago = time.time_ns() - 3 * DAY_NS
    Runs(SqliteDatabase(home.root / "runs.sqlite", lambda: three_days_ago)).since("reconcile")
    process.send_signal(signal.SIGSTOP)  # REST hangs
    server = Server(python, tmp_path / "airflow", home.config, tapeline)
    try:
        until(server.healthy, "Airflow is healthy", 600.0)
        until(lambda: [run for run in runs_of(home, "reconcile") if run.state == "failed"], "a run failed", 300.0)
        process.send_signal(signal.SIGCONT)  # REST answers 500, then 429, then the truth
        until(lambda: server.states("tapeline_job_reconcile") == ["success"] * 3, "the three days are made up for", 600.0)
        done = [run for run in runs_of(home, "reconcile") if run.state == "succeeded"]
        today = datetime.now(UTC).date()
        assert sorted(run.thing for run in done) == sorted(str(day_of(run.due_ns)) for run in done)
        assert len({run.thing for run in done}) == 3
        assert max(run.thing for run in done) in (str(today - timedelta(days=1)), str(today - timedelta(days=2)))
        earliest = min(run.due_ns or 0 for run in done)
        first = sorted((run for run in runs_of(home, "reconcile") if run.due_ns == earliest), key=lambda run: run.attempt)
        assert [run.attempt for run in first] == list(range(1, len(first) + 1))
        assert len(first) >= 3
        waits_s = [(later.started_ns - (earlier.ended_ns or 0)) / 1e9 for earlier, later in pairwise(first)]
        assert all(wait_s >= 2.0 * 2**at for at, wait_s in enumerate(waits_s)), waits_s
        told = until(lambda: alerts(tmp_path, "resolve airflow-reconcile"), "the alert is resolved")
        assert told[0].startswith("alerts raise airflow-reconcile --text reconcile has not succeeded by 07:00 (UTC).")

        process.send_signal(signal.SIGSTOP)
        server.ask("POST", "/api/v2/dags/tapeline_job_backfill/dagRuns", {"logical_date": None, "conf": {"day": day_that_is_over()}})
        until(lambda: [run for run in runs_of(home, "backfill") if run.state == "running"], "the backfill is under way", 120.0)
        killed = server.part("scheduler")
        os.kill(killed, signal.SIGKILL)
        process.send_signal(signal.SIGCONT)
        until(lambda: server.part("scheduler") != killed, "the scheduler is started again")
        until(lambda: server.states("tapeline_job_backfill")[-1:] == ["success"], "the backfill is done", 900.0)
        until(lambda: set(kept(home)) >= sent(journal), "every trade is in the lake")
        assert len(kept(home)) == len(set(kept(home)))
    finally:
        server.end()


def day_of(due_ns: int | None) -> Any:
    assert due_ns is not None
    return (datetime.fromtimestamp(due_ns / 1e9, UTC) - timedelta(days=1)).date()


def alerts(folder: Path, text: str) -> list[str]:
    """The alerts that Tapeline was told of, if one of them has this text."""
    with suppress(OSError):
        told = (folder / "alerts").read_text().splitlines()
        return told if any(text in line for line in told) else []
    return []
