"""HTTP: a provider's limits are kept, what may pass is tried again, and a key goes nowhere but to whom it is for."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest

from made import NOON
from tapeline.errors import Barred, Refused, Unavailable
from tapeline.net.http import Endpoint, Rest, get
from tapeline.net.rate_limit import RateLimiter
from tapeline.records import NS_PER_S
from tapeline.simulators import Simulator, SimulatorOptions


class Replies(http.server.BaseHTTPRequestHandler):
    """Answers what the test has put down, in turn."""

    replies: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []

    def do_GET(self) -> None:
        status, headers, body = self.replies.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Replies) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        thread.join()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds:  # else it only asks whether to stop
            self.slept.append(seconds)


def client(server: str, time: Time, weight: int = 100) -> Rest:
    return Rest(Endpoint(server), Random(1), RateLimiter(weight, clock=lambda: time.now), sleep=time.sleep)


def test_too_many_requests_are_waited_out_as_long_as_the_provider_says(server: str) -> None:
    Replies.replies = [(429, {"Retry-After": "7"}, b"slow down"), (418, {"Retry-After": "120"}, b"banned"), (200, {}, b"[]")]
    clock = Time()
    assert client(server, clock).get("/x", 1) == b"[]"
    assert [round(seconds) for seconds in clock.slept] == [7, 120]


@pytest.fixture
def trickling() -> Iterator[Callable[[bytes, bytes], str]]:
    """`trickling(whole, slow)`: the address of a server that sends the one at once, and the other a byte every fifth of a second."""
    with socket.socket() as listening, ThreadPoolExecutor() as pool:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ended = threading.Event()

        def serve(whole: bytes, slow: bytes) -> None:
            with suppress(OSError):
                found, _ = listening.accept()
                with found:
                    found.recv(65_536)
                    found.sendall(whole)
                    for byte in slow:
                        if ended.wait(0.2):
                            return
                        found.sendall(bytes((byte,)))

        def start(whole: bytes, slow: bytes) -> str:
            pool.submit(serve, whole, slow)
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield start
        ended.set()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
SLOW = pytest.mark.parametrize(("whole", "slow"), [(b"", HEAD), (HEAD, b"x" * 1000)], ids=["head", "body"])


@SLOW
@pytest.mark.parametrize("to_file", [False, True])
def test_an_answer_that_trickles_in_keeps_nobody_from_stopping(
    trickling: Callable[[bytes, bytes], str], tmp_path: Path, whole: bytes, slow: bytes, *, to_file: bool
) -> None:
    stop = threading.Event()
    rest = Rest(Endpoint(trickling(whole, slow)), Random(1), RateLimiter(100), sleep=stop.wait)
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Unavailable, match="stopped while it waited"):
        rest.download("/x", 1, tmp_path / "x") if to_file else rest.get("/x", 1)


@SLOW
def test_the_end_of_the_loop_does_not_wait_for_an_answer_that_trickles_in(
    trickling: Callable[[bytes, bytes], str], whole: bytes, slow: bytes
) -> None:
    url = trickling(whole, slow)

    async def asked() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await get(url)

    began = time.monotonic()
    asyncio.run(asked())
    # The whole answer takes eight seconds at the least.
    assert time.monotonic() - began < 0.2 * len(slow)


@pytest.mark.parametrize(
    ("reset", "least", "most"),
    [("1700000042", 42, 43), ("1690000000", 0.1, 1), ("1799999999", 299, 300), ("9" * 400, 299, 300), ("soon", 30, 30)],
    ids=["a while", "long ago", "years", "for ever", "no time"],
)
def test_without_retry_after_the_provider_s_reset_is_waited_for_within_bounds(reset: str, least: float, most: float, server: str) -> None:
    Replies.replies = [(429, {"X-RateLimit-Reset": reset}, b"too many requests."), (200, {}, b"ok")]
    clock = Time()
    limiter = RateLimiter(100, clock=lambda: clock.now)
    rest = Rest(Endpoint(server), Random(1), limiter, wall_clock=lambda: 1.7e9, sleep=clock.sleep)
    assert rest.get("/x", 1) == b"ok"
    assert least <= sum(clock.slept) <= most


@pytest.mark.parametrize(
    ("status", "words", "said"),
    [
        (401, b'{"message":"forbidden."}', "HTTP 401: .*forbidden.*Check the key"),
        (403, b'{"message":"forbidden."}', "HTTP 403: .*forbidden.*its plan"),
        (403, b'{"message":"subscription does not permit querying recent SIP data"}', 'querying recent SIP data.*feed = "iex".*15 minutes'),
        (401, b"no such key: sesame", r"no such key: \*\*\*"),
    ],
)
def test_a_refusal_says_what_to_do_and_never_a_key(status: int, words: bytes, said: str, server: str) -> None:
    Replies.replies = [(status, {}, words)]
    rest = Rest(Endpoint(server, headers={"Authorization": "Bearer sesame"}), Random(1), RateLimiter(100))
    with pytest.raises(Refused, match=said) as refused:
        rest.get("/x", 1)
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("status", [408, 425])
def test_what_took_too_long_or_came_too_early_is_asked_again(status: int, server: str) -> None:
    Replies.replies = [(status, {}, b"later"), (200, {}, b"ok")]
    assert client(server, Time()).get("/x", 1) == b"ok"


def test_a_moment_s_firewall_is_waited_out_by_all_who_ask_that_address(server: str) -> None:
    Replies.replies = [(403, {}, b"Request blocked")] * 3 + [(200, {}, b"ok")]
    clock = Time()
    limiter = RateLimiter(100, clock=lambda: clock.now)
    paused = []

    def sleep(seconds: float) -> None:
        paused.append(limiter.take(1) > 0)
        clock.sleep(seconds)

    rest = Rest(Endpoint(server, passing={403}), Random(1), limiter, sleep=lambda seconds: sleep(seconds) if seconds else None)
    assert rest.get("/x", 1) == b"ok"
    assert all(paused)
    assert clock.slept[0] < clock.slept[-1] <= 30.0


@pytest.mark.parametrize(("status", "kind"), [(401, Barred), (403, Barred), (451, Barred), (400, Refused), (404, Refused)])
def test_a_refusal_of_everything_is_told_from_one_of_what_was_asked(status: int, kind: type[Refused], server: str) -> None:
    Replies.replies = [(status, {}, b'{"msg":"restricted location"}')]
    with pytest.raises(Refused, match="restricted location") as refused:
        client(server, Time()).get("/x", 1)
    assert type(refused.value) is kind


def test_a_ban_for_days_is_for_the_caller_to_decide_on(server: str) -> None:
    Replies.replies = [(418, {"Retry-After": "259200"}, b"banned")]
    clock = Time()
    with pytest.raises(Unavailable, match="asked for a pause: 259200 s"):
        client(server, clock).get("/x", 1)
    assert clock.slept == []


def test_a_fault_of_the_provider_is_tried_again_so_many_times_and_no_more(server: str) -> None:
    Replies.replies = [(500, {}, b"oops"), (503, {}, b"busy"), (200, {}, b"ok")]
    clock = Time()
    assert client(server, clock).get("/x", 1) == b"ok"
    Replies.replies = [(500, {}, b"oops")] * 20
    with pytest.raises(Unavailable, match="HTTP 500: oops"):
        client(server, clock).get("/x", 1)
    assert len(Replies.replies) == 14
    assert max(clock.slept) <= 30.0


def test_the_same_trouble_is_told_now_and_again_and_not_by_everybody_who_meets_it(server: str, caplog: pytest.LogCaptureFixture) -> None:
    now = Time()
    rest = Rest(Endpoint(server), Random(1), RateLimiter(100, clock=lambda: now.now), wall_clock=lambda: now.now, sleep=lambda _: None)
    for _ in range(4):
        Replies.replies = [(500, {}, b"oops"), (200, {}, b"ok")]
        rest.get("/x", 1)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    now.now += 6.0
    Replies.replies = [(500, {}, b"oops"), (200, {}, b"ok")]
    rest.get("/x", 1)
    assert [record.levelname for record in caplog.records].count("WARNING") == 2


def test_a_ban_is_remembered_and_nothing_is_asked_until_it_is_over(server: str) -> None:
    Replies.replies = [(418, {"Retry-After": "7200"}, b"banned"), (200, {}, b"ok")]
    clock = Time()
    rest = client(server, clock)
    for _ in range(3):
        with pytest.raises(Unavailable, match="asked for a pause: 7200 s"):
            rest.get("/x", 1)
    assert len(Replies.replies) == 1
    clock.now += 7_200
    assert rest.get("/x", 1) == b"ok"


def test_who_is_stopped_while_he_waits_asks_no_more(server: str) -> None:
    Replies.replies = [(429, {"Retry-After": "100"}, b"slow down"), (200, {}, b"ok")]
    rest = Rest(Endpoint(server), Random(1), RateLimiter(100), sleep=lambda _: True)
    with pytest.raises(Unavailable, match="stopped"):
        rest.get("/x", 1)
    assert len(Replies.replies) == 1


def test_an_answer_that_breaks_off_is_tried_again_and_a_path_that_is_none_is_refused(server: str) -> None:
    Replies.replies = [(200, {"Content-Length": "9", "X-Cut": "1"}, b"cut"), (200, {}, b"ok")]
    assert client(server, Time()).get("/x", 1) == b"ok"
    with pytest.raises(Refused, match="not a valid address"):
        client(server, Time()).get("/with space", 1)


def test_who_says_only_that_it_was_too_fast_is_left_alone_for_a_while(server: str) -> None:
    Replies.replies = [(429, {}, b""), (429, {"Retry-After": "soon"}, b""), (200, {}, b"ok")]
    clock = Time()
    assert client(server, clock).get("/x", 1) == b"ok"
    assert clock.slept == [30.0, 30.0]


def test_a_key_that_is_refused_is_said_in_the_provider_s_words_without_the_key(server: str) -> None:
    Replies.replies = [(401, {}, b'{"error":"Unknown API Key k3y-of-a-test"}'), (403, {}, b'{"message":"You are not entitled"}')]
    rest = Rest(Endpoint(server, headers={"Authorization": "Bearer k3y-of-a-test"}), Random(1), RateLimiter(9), sleep=Time().sleep)
    with pytest.raises(Refused, match=r"HTTP 401: .*Unknown API Key \*\*\*"):
        rest.get("/x", 1)
    with pytest.raises(Refused, match="You are not entitled"):
        rest.get("/x", 1)


def test_a_wrong_request_is_not_sent_again(server: str) -> None:
    Replies.replies = [(400, {}, b'{"code":-1121,"msg":"Invalid symbol."}')]
    with pytest.raises(Refused, match="Invalid symbol"):
        client(server, Time()).get("/x", 1)


def test_an_address_that_does_not_answer_is_given_up_in_the_end() -> None:
    clock = Time()
    with pytest.raises(Unavailable, match="tried 6 times"):
        client("http://127.0.0.1:9", clock).get("/x", 1)
    assert len(clock.slept) == 5


@pytest.mark.parametrize(
    ("date", "latest_ns"),
    [
        ("Fri, 15 Mar 2024 12:00:00 GMT", NOON + NS_PER_S),
        ("Friday, 15-Mar-24 12:00:00 GMT", NOON + NS_PER_S),
        ("yesterday", (1 << 63) - 1),
        ("Fri, 99 Mar 2024 12:00:00 GMT", (1 << 63) - 1),
    ],
)
def test_an_answer_says_after_which_time_it_holds_no_event(date: str, latest_ns: int, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replies, "date_time_string", lambda self: date)
    Replies.replies = [(200, {}, b"[]")]
    rest = client(server, Time())
    assert rest.latest_ns == (1 << 63) - 1
    rest.get("/x", 1)
    assert rest.latest_ns == latest_ns


def test_a_minute_s_weight_is_not_exceeded(server: str) -> None:
    Replies.replies = [(200, {}, b"ok")] * 7
    clock = Time()
    rest = client(server, clock, weight=100)
    for _ in range(7):
        rest.get("/x", 25)
    assert clock.slept == [60.0]


def test_keys_follow_nobody_elsewhere(server: str) -> None:
    Replies.replies = [(302, {"Location": "http://localhost:9/x"}, b"")]
    with pytest.raises(Refused, match="HTTP 302"):
        client(server, Time()).get("/x", 1)


@pytest.mark.parametrize("after", ["9" * 400, "9" * 15])
def test_no_pause_is_longer_than_any_ban(server: str, after: str) -> None:
    Replies.replies = [(418, {"Retry-After": after}, b"banned")]
    clock = Time()
    rest = client(server, clock)
    with pytest.raises(Unavailable, match="asked for a pause: 345600 s"):
        rest.get("/x", 1)


def test_a_page_is_fetched_and_an_address_that_cannot_be_is_named() -> None:
    async def test() -> None:
        simulator = Simulator(SimulatorOptions(name="binance"))
        url = (await simulator.start()).replace("ws", "http", 1)
        page = await get(f"{url}/api/v3/exchangeInfo")
        assert json.loads(page)["symbols"]
        with pytest.raises(Unavailable, match="nowhere"):
            await get(f"{url}/nowhere")
        await simulator.stop()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await get("http://127.0.0.1:1/")
        with pytest.raises(Unavailable, match="file:"):
            await get("file:///etc/passwd")

    asyncio.run(test())
