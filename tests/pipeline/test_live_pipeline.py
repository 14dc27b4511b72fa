"""The live feed of a running pipeline: over lost connections and killed servers, a client gets every event of the lake once."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import urllib3
from processes import Home, block
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import tapeline
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from processes import SimulatorProcess

IDS: Final = "SELECT raw_partition || '-' || raw_offset || '-' || raw_index FROM ticks"


@pytest.fixture
def listen() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def get(listen: str, path: str, **headers: str) -> tuple[int, Any]:
    """The status and the JSON of an answer; 0 while nobody answers."""
    try:
        answer = urllib3.request("GET", f"http://{listen}{path}", headers=headers, timeout=30.0, retries=False)
    except urllib3.exceptions.HTTPError:
        return 0, None
    return answer.status, json.loads(answer.data) if "json" in answer.headers.get("content-type", "") else answer.data


def post(listen: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    answer = urllib3.request("POST", f"http://{listen}{path}", json=body, timeout=30.0, retries=False)
    return answer.status, json.loads(answer.data)


@dataclass
class Listener:
    """A client of the websocket that comes back with its last id, until it is stopped."""

    address: str
    since: str = ""
    ids: list[str] = field(default_factory=list)
    hellos: list[dict[str, Any]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _socket: Any = None

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(f"{self.address}&since={self.since}", max_size=None, open_timeout=5.0) as self._socket:
                    for text in self._socket:
                        message = json.loads(text)
                        self.since = message["id"]
                        if message["kind"] == "hello":
                            self.hellos.append(message)
                        elif message["kind"] == "ticks":
                            self.ids += [row["id"] for row in message["rows"]]
            except (OSError, ConnectionClosed, TimeoutError):
                self._stop.wait(0.1)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        return thread

    def lose(self) -> None:
        """Break the connection off without a word."""
        if self._socket is not None:
            self._socket.socket.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._stop.set()
        self.lose()


def events_of(listen: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events, (id, data), until the reader stops."""
    with urllib3.request("GET", f"http://{listen}{path}", preload_content=False, timeout=30.0, retries=False) as answer:
        known: dict[str, str] = {}
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            known[name] = value
            if not name and "data" in known:
                yield known.get("id", ""), json.loads(known["data"])
                known = {}


def test_a_client_gets_every_event_once_over_lost_connections_and_a_killed_server(
    home: Home, simulator: Callable[..., SimulatorProcess], listen: str
) -> None:
    market = simulator("binance", "--rate", "400")
    home.configure(
        f'dashboard.listen = "{listen}"\ndashboard.actions = true\n'
        + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker", "kline_1s"]),
        ledger=True,
    )
    run = home.start("run", "--dashboard")
    until(lambda: get(listen, "/v1/health")[0] == 200 or not run.running, "the dashboard answers")
    assert run.running, run.said
    listener = Listener(f"ws://{listen}/v1/stream?symbols=*&kinds=ticks")
    thread = listener.start()
    until(lambda: len(listener.ids) > 50, "it gets ticks")
    first = listener.ids[0]
    listener.lose()
    count = len(listener.hellos)
    until(lambda: len(listener.hellos) > count, "it is back")
    until(lambda: len(listener.ids) > 150, "it gets more")
    home.kill("dashboard")
    count = len(listener.hellos)
    until(lambda: len(listener.hellos) > count, "it is back after the server was killed")
    assert [hello["resumed"] for hello in listener.hellos[1:]] == [True] * (len(listener.hellos) - 1), listener.hellos

    # History, and the live feed from where it ends.
    status, page = get(listen, "/v1/ticks?symbols=BTC/USDT&start=2020-01-01&kind=trade&limit=1000000")
    assert (status, page["truncated"]) == (200, False)
    joined = Listener(f"ws://{listen}/v1/stream?symbols=BTC/USDT&kinds=ticks", since=page["next"])
    other = joined.start()
    until(lambda: len(joined.ids) > 50, "the live feed goes on from the history")
    assert joined.hellos[0]["resumed"] is True

    # By server-sent events: the same position, the same events.
    sent: list[str] = []
    for _, message in events_of(listen, f"/v1/stream?symbols=BTC/USDT&kinds=ticks&since={page['next']}"):
        sent += [row["id"] for row in message["rows"]] if message["kind"] == "ticks" else []
        if len(sent) > 50:
            break

    of_history = [row["id"] for row in page["rows"]]
    market.halt()
    until(lambda: not any(entry["records"] for entry in home.status()["backlog"]), "the stores have everything")
    kept = [row[0] for row in home.rows(f"{IDS} ORDER BY raw_partition, raw_offset, raw_index")]
    wanted = kept[kept.index(first) :]
    trades = {row[0] for row in home.rows(f"{IDS} WHERE symbol = 'BTC/USDT' AND kind = 'trade'")}
    with suppress(AssertionError):
        until(lambda: len(listener.ids) >= len(wanted) and not trades - {*of_history, *joined.ids}, "everything has come", 20.0)
    listener.stop()
    joined.stop()
    thread.join(10.0)
    other.join(10.0)
    market.process.send(9)
    assert run.running
    run.end()
    assert sorted(listener.ids) == sorted(wanted), "each event from the first one on, once"
    assert trades - {*of_history, *joined.ids} == set(), "history and live together miss nothing"
    assert len(set(joined.ids)) == len(joined.ids)
    assert len(set(of_history) & set(joined.ids)) < len(of_history)
    assert sent == joined.ids[: len(sent)]


def test_a_client_that_does_not_read_slows_nobody_and_is_told_what_it_missed(
    home: Home, simulator: Callable[..., SimulatorProcess], listen: str
) -> None:
    market = simulator("binance", "--rate", "4000")
    home.configure(f'dashboard.listen = "{listen}"\n' + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"]))
    run = home.start("run", "--dashboard")
    until(lambda: get(listen, "/v1/health")[0] == 200 or not run.running, "the dashboard answers")
    quick = Listener(f"ws://{listen}/v1/stream?symbols=BTC/USDT&kinds=ticks")
    quick.start()
    skipped = 0
    with connect(f"ws://{listen}/v1/stream?symbols=*&kinds=ticks", max_size=None, max_queue=1, close_timeout=0.1) as slow:
        # Before anything is left out, the buffers of both sockets and the client's queue of a megabyte fill up.
        until(lambda: len(quick.ids) > 1_000, "others get what is theirs")
        time.sleep(8.0)
        before = len(quick.ids)
        for text in slow:
            message = json.loads(text)
            if message["kind"] == "conflated":
                skipped = message["skipped"]
                assert {row["symbol"] for row in message["rows"]} == {"BTC/USDT", "ETH/USDT"}
                break
        assert skipped > 0
        until(lambda: len(quick.ids) > before, "others still get what is theirs")
        until(lambda: get(listen, "/v1/health")[1]["skipped"] >= skipped, "it is counted")
    quick.stop()
    until(lambda: get(listen, "/v1/health")[1]["clients"] == 0, "clients that left are forgotten")
    run.end()


def test_what_the_page_asks_for(home: Home, simulator: Callable[..., SimulatorProcess], listen: str) -> None:
    market = simulator("binance", "--rate", "200")
    home.configure(
        f'dashboard.listen = "{listen}"\n' + block("binance", market.url, ["BTCUSDT"], ["trade", "kline_1s"], rest_url=market.url),
        ledger=True,
    )
    run = home.start("run", "--dashboard")
    until(lambda: (get(listen, "/v1/health")[1] or {}).get("verdict", {}).get("state") == "well", "all is well")
    until(lambda: get(listen, "/v1/ticks?symbols=BTC/USDT&start=2020-01-01")[1].get("rows"), "the lake has rows")
    _, health = get(listen, "/v1/health")
    feed = health["feeds"][0]
    assert (feed["provider"], feed["feed"], feed["connections"][0]["connected"]) == ("binance", "spot", True)
    assert [(box["name"], box["running"]) for box in health["flow"]["boxes"]] == [
        (name, True) for name in ("ingest", "raw", "normalize", "normalized", "ledger", "lake")
    ]
    until(lambda: all(arrow["per_s"] > 20 for arrow in get(listen, "/v1/health")[1]["flow"]["arrows"][:3]), "the arrows have rates")

    start, end = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 3600)), time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400))
    _, grid = until(lambda: (answer := get(listen, f"/v1/coverage?start={start}&end={end}&step=1h"))[1].get("rows") and answer, "a grid")
    row = next(row for row in grid["rows"] if row["channel"] == "trade")
    states = [cell["state"] for cell in row["cells"]]
    assert (row["symbol"], len(states) % 24, set(states) <= {"unknown", "open", "proven", "ahead"}) == ("BTC/USDT", 0, True)
    _, found = get(listen, "/v1/gaps?symbols=BTC/USDT&channel=trade&evidence=true")
    assert any(one["state"] == "proven" and int(one["last_id"]) > int(one["first_id"]) for one in found["rows"])

    # The past: a provider dies, and the page sees when.
    market.process.send(9)
    until(lambda: get(listen, "/v1/health")[1]["verdict"]["state"] == "problem", "it is told")
    problem = get(listen, "/v1/health")[1]["verdict"]["problems"][0]
    assert "binance spot is not connected" in problem["text"]
    assert problem["runbook"].startswith("docs/alerts.md#")
    _, lines = get(listen, "/v1/past?seconds=600&points=600")
    assert {"well", "problem"} <= set(lines["state"])
    assert len(lines["feeds"]["binance/spot"]["events_per_s"]) == len(lines["at_ns"])
    well_ns = lines["at_ns"][lines["state"].index("well")]
    assert get(listen, f"/v1/health?at={well_ns}")[1]["verdict"]["state"] == "well"

    # Acting needs a permission of its own; what is wrong is said.
    assert post(listen, "/v1/jobs/run", {"job": "vacuum"})[0] == 403
    assert get(listen, "/v1/ticks?symbols=BTCUSDT&start=2020-01-01") == (
        400,
        {"error": get(listen, "/v1/ticks?symbols=BTCUSDT&start=2020-01-01")[1]["error"]},
    )
    assert "BTC/USDT" in get(listen, "/v1/ticks?symbols=BTCUSDT&start=2020-01-01")[1]["error"]
    assert get(listen, "/v1/ticks?symbols=BTC/USDT")[0] == 400
    assert get(listen, "/v1/stream?kinds=nothing")[0] == 400
    assert get(listen, "/v1/health", Origin="https://evil.example")[0] == 403
    run.end()


def test_a_job_is_run_by_a_request(home: Home, listen: str) -> None:
    """The dashboard needs no pipeline: it says that nothing runs."""
    home.configure(
        f'dashboard = {{ listen = "{listen}", actions = true }}\n' + block("binance", "ws://127.0.0.1:9", ["BTCUSDT"], ["trade"]),
        ledger=True,
    )
    home.lake.mkdir(parents=True)
    served = home.start("dashboard")
    until(lambda: get(listen, "/v1/health")[0] == 200 or not served.running, "it answers")
    assert served.running, served.said
    verdict = get(listen, "/v1/health")[1]["verdict"]
    assert (verdict["state"], "does not run" in verdict["text"]) == ("problem", True)
    assert post(listen, "/v1/jobs/run", {"job": "vacuum"}) == (202, {"job": "vacuum", "started": True})
    assert "There is no job" in post(listen, "/v1/jobs/run", {"job": "coffee"})[1]["error"]
    assert post(listen, "/v1/jobs/run", {"job": "vacuum", "arguments": {"day": 1}})[0] == 400

    def ended() -> Any:
        rows = get(listen, "/v1/runs?job=vacuum")[1]["rows"]
        return rows[0] if rows and rows[0]["state"] != "running" else None

    done = until(ended, "the run has ended")
    assert (done["state"], done["origin"]) == ("succeeded", "person")
    page = urllib3.request("GET", f"http://{listen}/", timeout=10.0)
    assert page.status == 200
    assert b"<html" in page.data
    served.end()
    again = home.start("dashboard")
    until(lambda: get(listen, "/v1/health")[0] == 200, "it is back")
    second = home.start("dashboard")
    assert second.ends() == 75, second.said
    again.end()


def test_over_tls_with_a_token_and_no_secret_in_any_answer(home: Home, listen: str) -> None:
    certificate = Path(tapeline.__file__).parent / "simulators" / "loopback_test_only.crt"
    secrets = {"TAPELINE_POLYGON_KEY": "key-0123456789abcdef", "TAPELINE_DASHBOARD_TOKEN": "token-0123456789abcdef"}
    home.env = secrets
    home.configure(
        f'[dashboard]\nlisten = "{listen}"\ntls_certificate = "{certificate}"\ntls_key = "{certificate.with_suffix(".key")}"\n'
        + block("polygon", "ws://127.0.0.1:9", ["AAPL"], ["T"]),
        ledger=True,
    )
    served = home.start("dashboard")
    with urllib3.PoolManager(ca_certs=str(certificate), assert_hostname=False) as client:

        def ask(path: str, **headers: str) -> urllib3.BaseHTTPResponse:
            return client.request("GET", f"https://{listen}{path}", headers=headers, retries=False, redirect=False, timeout=10.0)

        def answers() -> bool:
            try:
                return ask("/v1/health").status == 401
            except urllib3.exceptions.HTTPError:
                return not served.running

        until(answers, "it answers")
        assert served.running, served.said
        token = {"authorization": f"Bearer {secrets['TAPELINE_DASHBOARD_TOKEN']}"}
        assert ask("/", accept="text/html").headers["location"] == "/login"
        for path in ("/v1/health", "/v1/jobs", "/v1/runs", "/v1/past", "/v1/openapi.json", "/v1/asyncapi.json", "/v1/symbols", "/"):
            answer = ask(path, **token)
            assert answer.status == 200, path
            assert not any(secret.encode() in answer.data for secret in secrets.values())
        assert ask("/v1/stream?kinds=health").status == 401
        form = client.request("POST", f"https://{listen}/login", fields={"token": "wrong"}, encode_multipart=False, redirect=False)
        assert form.status == 403
        form = client.request(
            "POST",
            f"https://{listen}/login",
            fields={"token": secrets["TAPELINE_DASHBOARD_TOKEN"]},
            encode_multipart=False,
            redirect=False,
        )
        assert (form.status, "Secure" in form.headers["set-cookie"]) == (303, True)
        assert ask("/v1/health", cookie=form.headers["set-cookie"].partition(";")[0]).status == 200
    served.end()
    home.says_nothing_of(*secrets.values())
