"""Alerts: each is raised once, reminded of and resolved once, by a real webhook and real mail; a late job and a broken promise are seen."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from made import NOON
from set_clock import SetClock
from tapeline.cli import app
from tapeline.config import Config, JobConfig, NotifyConfig, SlaConfig
from tapeline.errors import ConfigError
from tapeline.orchestration.alerts import Alerts, Message, Problem
from tapeline.orchestration.catalog import jobs_of
from tapeline.orchestration.database import Database, SqliteDatabase
from tapeline.orchestration.notifying import Notifier
from tapeline.orchestration.postgres import PostgresDatabase
from tapeline.orchestration.runs import Claim, Runs
from tapeline.orchestration.watching import deadline_of, missed, watch
from tapeline.records import NS_PER_S
from tapeline.secret import NO_SECRET
from tapeline.stores.postgres.database import Database as Postgres

MINUTE_NS = 60 * NS_PER_S
HOUR_NS = 60 * MINUTE_NS
LATE = Problem("job reconcile", "It is late.", "docs/alerts.md#job", ("ops",), remind_ns=HOUR_NS)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture(params=["file", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, clock: SetClock) -> Database:
    """Where the alerts are kept."""
    if request.param == "file":
        return SqliteDatabase(tmp_path / "data" / "runs.sqlite", clock)
    return PostgresDatabase(Postgres(request.getfixturevalue("database"), NO_SECRET), clock)


class Sent(list[tuple[str, str, str]]):
    """What was sent: the receiver, what it was told, and of which alert. `fails`: nothing is delivered."""

    fails = False

    def __call__(self, message: Message) -> str:
        if self.fails:
            return "it does not answer"
        self.append((message.receiver, message.what, message.alert.name))
        return ""


# The record.


def test_an_alert_is_raised_once_reminded_of_and_resolved_once(kept: Database, clock: SetClock) -> None:
    alerts, sent = Alerts(kept), Sent()

    def look(*problems: Problem, over: tuple[str, ...] = ()) -> None:
        alerts.settle(problems, over)
        alerts.tell(sent, {LATE.name: LATE.remind_ns})

    for _ in range(4):  # within the hour
        look(LATE)
        clock.ns += 14 * MINUTE_NS
    assert sent == [("ops", "raised", "job reconcile")]
    clock.ns += 4 * MINUTE_NS
    look(replace(LATE, text="It is later."))
    assert sent[1:] == [("ops", "reminder", "job reconcile")]
    (one,) = alerts.open()
    assert (one.raised_ns, one.seen_ns, one.text, one.resolved_ns) == (NOON, NOON + HOUR_NS, "It is later.", None)
    clock.ns += MINUTE_NS
    look(over=("job reconcile", "another"))
    look(over=("job reconcile",))
    assert sent[2:] == [("ops", "resolved", "job reconcile")]
    (one,) = alerts.latest()
    assert (one.resolved_ns, alerts.open()) == (NOON + HOUR_NS + MINUTE_NS, [])
    look(LATE)
    assert sent[3:] == [("ops", "raised", "job reconcile")], "what comes again is a new alert"
    assert [alert.resolved_ns is None for alert in alerts.latest()] == [True, False], "the open ones first"


def test_a_message_that_is_not_delivered_is_sent_again_in_a_minute(kept: Database, clock: SetClock) -> None:
    alerts, sent = Alerts(kept), Sent()
    sent.fails = True
    alerts.raise_(LATE)
    alerts.tell(sent, {})
    sent.fails = False
    clock.ns += 59 * NS_PER_S
    alerts.tell(sent, {})
    assert sent == []
    clock.ns += NS_PER_S
    alerts.tell(sent, {})
    alerts.tell(sent, {})
    assert sent == [("ops", "raised", "job reconcile")]


def test_who_never_heard_of_a_problem_is_not_told_that_it_is_over(kept: Database, clock: SetClock) -> None:
    alerts, sent = Alerts(kept), Sent()
    sent.fails = True
    alerts.raise_(LATE)
    alerts.tell(sent, {})
    assert alerts.resolve("job reconcile")
    assert not alerts.resolve("job reconcile")
    sent.fails = False
    clock.ns += HOUR_NS
    alerts.tell(sent, {})
    assert sent == []


def test_what_a_look_that_was_killed_did_not_send_is_sent_by_the_next(kept: Database) -> None:
    sent = Sent()
    Alerts(kept).settle([LATE], ())  # and killed
    Alerts(kept).tell(sent, {})
    assert sent == [("ops", "raised", "job reconcile")]


def test_of_several_that_tell_at_once_one_sends_the_message(kept: Database) -> None:
    alerts, sent = Alerts(kept), Sent()
    alerts.raise_(LATE)

    def slowly(message: Message) -> str:
        Alerts(kept).tell(sent, {})  # another process, while this one sends
        return sent(message)

    alerts.tell(slowly, {})
    assert sent == [("ops", "raised", "job reconcile")]
    (one,) = alerts.open()
    assert one.told["ops"].delivered


def test_a_problem_that_could_not_be_looked_up_stays_as_it_is(kept: Database) -> None:
    alerts = Alerts(kept)
    alerts.settle([LATE], ())
    alerts.settle([], ())
    assert [one.name for one in alerts.open()] == ["job reconcile"]


# A late job.


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * NS_PER_S


def job(**settings: Any) -> Any:
    some = JobConfig(**{"job": "reconcile", "schedule": "30 6 * * *", "timezone": "America/New_York", "deadline": "08:00", **settings})
    return jobs_of(Config(jobs=(some,)))["reconcile"]


@pytest.mark.parametrize(
    ("schedule", "deadline", "moment", "by"),
    [
        ("30 6 * * *", "08:00", "2026-01-06T06:30-05:00", "2026-01-06T08:00-05:00"),
        ("0 23 * * *", "02:00", "2026-01-06T23:00-05:00", "2026-01-07T02:00-05:00"),
        ("0 8 * * *", "08:00", "2026-01-06T08:00-05:00", "2026-01-07T08:00-05:00"),
        ("0 23 * * *", "08:00", "2026-03-07T23:00-05:00", "2026-03-08T08:00-04:00"),
        ("0 23 * * *", "08:00", "2026-10-31T23:00-04:00", "2026-11-01T08:00-05:00"),
    ],
)
def test_the_deadline_is_the_next_time_that_the_clock_shows_it(schedule: str, deadline: str, moment: str, by: str) -> None:
    assert deadline_of(job(schedule=schedule, deadline=deadline), ns(moment)) == ns(by)


def test_a_job_is_late_from_its_deadline_until_a_run_has_succeeded(tmp_path: Path, clock: SetClock) -> None:
    runs, one = Runs(SqliteDatabase(tmp_path / "runs.sqlite", clock)), job()
    due_ns, deadline_ns = ns("2026-01-06T06:30-05:00"), ns("2026-01-06T08:00-05:00")

    def late(at: int) -> int | None:
        clock.ns = at
        return missed(one, runs.of(), 0, at)

    assert late(deadline_ns - 1) == ns("2026-01-05T06:30-05:00"), "yesterday's never ran"
    assert missed(one, [], ns("2026-01-06T00:00-05:00"), deadline_ns - 1) is None, "the job was not known then"
    assert late(deadline_ns) == due_ns
    clock.ns = deadline_ns + 1
    number = runs.claim(Claim(job="reconcile", thing="2026-01-05", arguments={}, origin="person", process="p"))
    assert number is not None
    assert late(deadline_ns + 2) == due_ns, "it is under way"
    runs.end(number, "succeeded", exit_status=0, result={})
    assert late(deadline_ns + 3) is None, "whoever ran it"
    assert late(ns("2026-01-07T07:59-05:00")) is None
    assert late(ns("2026-01-07T08:00-05:00")) == ns("2026-01-07T06:30-05:00")


# Real receivers.


class Receivers:
    """A webhook and a mail server on this machine, and what they got."""

    def __init__(self) -> None:
        got = self.posts = list[dict[str, Any]]()
        mails = self.mails = list[str]()

        class Post(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Mail(StreamRequestHandler):
            """As much of RFC 5321 as a client needs."""

            def handle(self) -> None:
                self.wfile.write(b"220 here\r\n")
                while line := self.rfile.readline():
                    word = line[:4].upper()
                    if word == b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        body = b""
                        while (more := self.rfile.readline()) != b".\r\n":
                            body += more
                        mails.append(body.decode())
                    self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
                    if word == b"QUIT":
                        return

        self.http = HTTPServer(("127.0.0.1", 0), Post)
        self.smtp = ThreadingTCPServer(("127.0.0.1", 0), Mail)
        for server in (self.http, self.smtp):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def addresses(self) -> str:
        http, smtp = self.http.server_address[1], self.smtp.server_address[1]
        return f"# people\njson://127.0.0.1:{http}/hook\nmailto://127.0.0.1:{smtp}?from=tapeline@example.com&to=ops@example.com&mode=insecure\n"

    def close(self) -> None:
        for server in (self.http, self.smtp):
            server.shutdown()
            server.server_close()


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    found = Receivers()
    yield found
    found.close()


@pytest.fixture
def configured(tmp_path: Path, receivers: Receivers) -> Config:
    (tmp_path / "urls").write_text(receivers.addresses())
    late = JobConfig(job="reconcile", schedule="30 6 * * *", deadline="08:00", notify=("ops",))
    disk = SlaConfig(name="room", check="disk", at_least=1e9, notify=("ops",))  # no disk has so much
    return Config(
        data_dir=str(tmp_path / "data"), jobs=(late,), sla=(disk,), notify=(NotifyConfig(name="ops", urls_file=str(tmp_path / "urls")),)
    )


def test_a_late_job_and_a_broken_promise_arrive_once_and_are_resolved(configured: Config, receivers: Receivers, clock: SetClock) -> None:
    configured.root.mkdir(parents=True)
    database = SqliteDatabase(configured.root / "runs.sqlite", clock)
    runs, alerts = Runs(database), Alerts(database)
    clock.ns = ns("2026-01-05T00:00+00:00")
    runs.since("reconcile")
    clock.ns = ns("2026-01-06T08:00+00:00")
    with watch(configured, jobs_of(configured), runs, alerts, clock) as look:
        for _ in range(3):
            found = look.look()
            clock.ns += 15 * NS_PER_S
    assert (found["kept"], found["broken"], found["unknown"]) == (0, 2, 0)
    titles = sorted(post["title"].partition(" (")[0] for post in receivers.posts)
    assert titles == ["job reconcile", "room"]
    assert len(receivers.mails) == 2
    (mail,) = (mail for mail in receivers.mails if "reconcile should have succeeded by 08:00" in mail)
    assert "docs/alerts.md#job" in mail
    (post,) = (post for post in receivers.posts if post["title"].startswith("room"))
    assert "promised are 1e+09 GB" in post["message"]
    number = runs.claim(Claim(job="reconcile", thing="2026-01-05", arguments={}, origin="person", process="p"))
    assert number is not None
    runs.end(number, "succeeded", exit_status=0, result={})
    mended = replace_sla(configured, at_least=0.0)
    with watch(mended, jobs_of(mended), runs, alerts, clock) as look:
        assert look.look() == {"kept": 1, "broken": 0, "unknown": 0, "problems": []}
        look.look()
    assert sorted(post["title"].partition(" (")[0] for post in receivers.posts[2:]) == ["Resolved: job reconcile", "Resolved: room"]
    assert len(receivers.mails) == 4


def replace_sla(config: Config, **settings: Any) -> Config:
    from msgspec.structs import replace as with_values

    return with_values(config, sla=tuple(with_values(some, **settings) for some in config.sla))


def test_a_promise_that_is_no_longer_configured_has_no_alert(configured: Config, clock: SetClock) -> None:
    from msgspec.structs import replace as with_values

    configured.root.mkdir(parents=True)
    database = SqliteDatabase(configured.root / "runs.sqlite", clock)
    runs, alerts = Runs(database), Alerts(database)
    alerts.raise_(Problem("by another program", "It says so.", "docs/alerts.md#others"))
    with watch(configured, {}, runs, alerts, clock) as look:
        look.look()
    assert {one.name for one in alerts.open()} == {"by another program", "room"}
    with watch(with_values(configured, sla=()), {}, runs, alerts, clock) as look:
        look.look()
    assert [one.name for one in alerts.open()] == ["by another program"]


def test_an_address_that_cannot_be_used_is_named_by_its_line_and_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "urls").write_text("nonsense://very-secret-token\n")
    config = Config(notify=(NotifyConfig(name="ops", urls_file=str(tmp_path / "urls")), NotifyConfig(name="gone", urls_file="/no/where")))
    alert = Alerts(SqliteDatabase(tmp_path / "runs.sqlite", SetClock()))
    alert.raise_(LATE)
    (one,) = alert.open()
    for receiver, why in (("ops", "address 1 in"), ("gone", "cannot be read"), ("who", "no [[notify]] block")):
        assert why in Notifier(config).send(Message(receiver, "raised", one))
    assert "very-secret-token" not in caplog.text
    assert "not delivered to ops" in caplog.text


# The command.


def command(tmp_path: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["alerts", *words, "--config", str(tmp_path / "tapeline.toml")])


def test_a_person_sees_alerts_and_another_program_raises_and_resolves_one(tmp_path: Path, receivers: Receivers) -> None:
    (tmp_path / "urls").write_text(receivers.addresses())
    notify = f'[[notify]]\nname = "ops"\nurls_file = "{tmp_path / "urls"}"\n'
    (tmp_path / "tapeline.toml").write_text(f'data_dir = "{tmp_path / "data"}"\n{notify}')
    nothing = command(tmp_path, "list")
    assert (nothing.exit_code, nothing.stdout.strip()) == (0, "There are no alerts.")
    for text in ("It is late.", "It is later."):
        assert command(tmp_path, "raise", "job reconcile", "--text", text).exit_code == 0
    listed = command(tmp_path, "list", "--format", "json")
    (one,) = map(json.loads, listed.stdout.splitlines())
    assert (listed.exit_code, one["name"], one["text"], one["resolved_ns"]) == (1, "job reconcile", "It is later.", None)
    assert one["told"]["ops"]["what"] == "raised"
    assert "job reconcile" in command(tmp_path, "list").stdout
    assert command(tmp_path, "resolve", "job reconcile").exit_code == 0
    assert "No alert" in command(tmp_path, "resolve", "job reconcile").stdout
    assert [post["title"].partition(" (")[0] for post in receivers.posts] == ["job reconcile", "Resolved: job reconcile"]
    assert command(tmp_path, "test", "ops").exit_code == 0
    assert receivers.posts[-1]["title"].startswith("test (Tapeline on")
    wrong = command(tmp_path, "test", "nobody")
    assert isinstance(wrong.exception, ConfigError)
    assert "There are: ops." in str(wrong.exception)


def test_every_runbook_is_a_heading_of_the_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "alerts.md").read_text()
    checks = get_args(get_type_hints(SlaConfig)["check"])
    assert {*checks, "unknown", "others"} == set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
