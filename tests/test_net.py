"""A line keeps its connection open through everything a network and a provider can do, and records all of it in order."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from peer import BINARY, CLOSE, PING, TEXT, Peer, frame, serving
from tapeline.errors import Unavailable
from tapeline.local.clock import Leap
from tapeline.net.listener import Limits
from tapeline.net.pace import Pace
from tapeline.net.rate_limit import RateLimiter
from tapeline.net.staleness import StalenessWatchdog
from tapeline.net.websocket import Dialing, FeedConnection, reach
from tapeline.providers.registry import PROVIDERS
from tapeline.providers.session import FeedSettings, Plan, Problem, Reply
from tapeline.records import NS_PER_S, RawKind
from tapeline.retry.backoff import backoff
from tapeline.secret import Secret
from tapeline.simulators import Simulator, SimulatorOptions
from waiting import PATIENCE_S, eventually


@dataclass
class Tape:
    """A recorder that remembers, and that can be full."""

    records: list[tuple[str, str, int, bytes]] = field(default_factory=list)
    pausers: list[Callable[[bool], None]] = field(default_factory=list)

    def record(self, plan: Plan, connection: str, kind: RawKind, received_ns: int, payload: bytes) -> None:
        self.records.append((connection, kind, received_ns, payload))

    def on_pause(self, pause: Callable[[bool], None]) -> None:
        self.pausers.append(pause)

    def full(self, full: bool) -> None:
        for pause in self.pausers:
            pause(full)

    def frames(self) -> list[bytes]:
        return [payload for _, kind, _, payload in self.records if kind == "frame"]

    def kinds(self) -> list[tuple[int, str]]:
        """(connection counted from 1, kind) in order, runs of frames as one."""
        order = list(dict.fromkeys(connection for connection, *_ in self.records))
        found = [(order.index(connection) + 1, kind) for connection, kind, *_ in self.records]
        return [one for at, one in enumerate(found) if at == 0 or one != found[at - 1] or one[1] != "frame"]

    def details(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(payload) for _, found, _, payload in self.records if found == kind]


class Talk:
    """A conversation: says hello, is confirmed by `ok`, takes what begins with `d` for data and the rest for orders."""

    def __init__(self, hello: Sequence[bytes]) -> None:
        self.hello = hello
        self.confirmed = False

    def opened(self) -> Sequence[bytes]:
        return self.hello

    def received(self, frame: bytes) -> Reply | None:
        problems = {b"stop": Problem("no", "stop"), b"warn": Problem("hm", "warn"), b"wait": Problem("later", "reconnect", 0.6)}
        self.confirmed = self.confirmed or frame == b"ok"
        return Reply(problem=problems.get(frame), successor=frame == b"next", send=[b"again"] if frame == b"repeat" else ())

    def channel(self, frame: bytes) -> bytes | None:
        return frame[:2] if frame.startswith(b"d") else None

    def missing(self) -> Sequence[str]:
        return [] if self.confirmed else ["topic"]


#: The same waits as in earnest, shorter.
SHORT = Limits(
    look_every_s=0.03, confirm_within_s=0.4, overlap_s=0.6, replace_again_s=0.2, too_fast_s=0.5, first_wait_s=0.02, longest_wait_s=0.2
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    for name in ("picows", "asyncio", "tapeline.net.websocket"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield
    for name in ("picows", "asyncio", "tapeline.net.websocket"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def plan(url: str, hello: Sequence[bytes] = (), **more: Any) -> Plan:
    return Plan("binance", "spot", "line", url, ["topic"], lambda: Talk(hello), **more)


def line_of(plan: Plan, tape: Tape, stale_after: float | dict[str, float] = 0.0, limits: Limits = SHORT) -> FeedConnection:
    return FeedConnection(plan, tape, time.time_ns, StalenessWatchdog(stale_after), Dialing(Pace(0.0), Random(1), limits=limits))


@asynccontextmanager
async def kept(line: FeedConnection) -> AsyncIterator[asyncio.Task[None]]:
    """The line while it keeps its connection; stopped in the end."""
    keeper = asyncio.create_task(line.keep())
    try:
        yield keeper
    finally:
        line.stop()
        async with asyncio.timeout(PATIENCE_S):
            await keeper


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


# A connection's life


def test_what_the_provider_sent_before_it_agrees_to_the_end_is_kept() -> None:
    """What lies unread in the socket when a person stops the line has arrived, and nothing would say that it is missing."""

    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept(frame(b"ok") + frame(b"d1"))
            while (await peer.hear())[0] != CLOSE:
                pass
            peer.say(b"d2", b"d3")
            await peer.say_goodbye()

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: b"d1" in tape.frames())
        assert tape.frames() == [b"ok", b"d1", b"d2", b"d3"]
        assert tape.kinds()[-1] == (1, "closed")
        assert tape.details("closed") == [{"by": "tapeline", "reason": "stopped"}]

    run(test())


def test_a_greeting_that_comes_with_the_upgrade_is_recorded_after_the_opening() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept(frame(b"ok") + frame(b"d1"))

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url, [b"hello"]), tape)):
            await eventually(lambda: "subscribed" in [kind for _, kind in tape.kinds()])
        assert tape.kinds() == [(1, "opened"), (1, "frame"), (1, "subscribed"), (1, "closed")]
        assert tape.details("opened") == [{"url": url, "topics": ["topic"]}]
        assert tape.details("subscribed") == [{"asked": ["topic"], "missing": []}]
        assert tape.details("closed") == [{"by": "tapeline", "reason": "stopped"}]

    run(test())


def test_after_a_clean_close_the_line_dials_again_and_both_lives_are_recorded() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok", b"d%d" % peer.number)
            if peer.number < 3:
                await asyncio.sleep(0.15)
                await peer.say_goodbye(1001, b"going away")

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: tape.kinds().count((3, "subscribed")))
        one_life = ["opened", "frame", "subscribed", "closed"]
        assert tape.kinds() == [(number, kind) for number in (1, 2, 3) for kind in one_life]
        assert tape.frames() == [b"ok", b"d1", b"ok", b"d2", b"ok", b"d3"]
        assert tape.details("closed")[:2] == [{"by": "provider", "code": 1001, "reason": "going away"}] * 2

    run(test())


@pytest.mark.parametrize("payload", [b"", (4321).to_bytes(2, "big") + b"own code", (1005).to_bytes(2, "big"), b"\x03", b"\x03\xe8\xff"])
def test_a_close_frame_of_any_shape_is_recorded_and_survived(payload: bytes) -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"d1")
            if peer.number == 1:
                peer.write(frame(payload, CLOSE))

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: len(tape.frames()) == 2)
        assert tape.details("closed")[0]["by"] in ("provider", "tapeline")

    run(test())


def test_a_reset_amid_a_frame_keeps_what_was_whole_and_says_that_the_network_broke() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok", b"d1")
            peer.write(frame(b"d" * 500)[:100])
            if peer.number == 1:
                await asyncio.sleep(0.15)
                peer.reset()

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: len(tape.frames()) == 4)
        assert tape.frames() == [b"ok", b"d1"] * 2
        assert tape.details("closed")[0]["by"] == "network"

    run(test())


def test_a_message_in_fragments_is_joined_even_around_a_ping() -> None:
    async def test() -> None:
        pongs = []

        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.write(frame(b"d1 one", fin=False) + frame(b" two", 0, fin=False) + frame(b"17", PING) + frame(b"", 0))
            peer.write(frame(b"d2 \x00", BINARY, fin=False) + frame(b"\xff", 0) + frame(b"", TEXT))
            pongs.append(await peer.hear())

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: len(tape.frames()) == 3 and pongs)
        assert tape.frames() == [b"d1 one two", b"d2 \x00\xff", b""]
        assert pongs == [(10, b"17")]

    run(test())


@pytest.mark.parametrize("fragments", [1, 4])
def test_a_message_over_the_limit_ends_the_connection_and_the_record_says_so(fragments: int) -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"d1")
            if peer.number == 1:
                size = 12_000 // fragments
                for at in range(fragments):
                    peer.write(frame(b"d" * size, TEXT if at == 0 else 0, fin=at == fragments - 1))

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape, limits=replace(SHORT, frame_bytes=10_000))):
            await eventually(lambda: len(tape.frames()) == 2)
        closed = tape.details("closed")[0]
        assert closed["by"] == "tapeline"
        assert "10000" in closed["reason"]

    run(test())


def test_what_was_asked_and_never_confirmed_is_recorded_and_shown() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"d1")

        tape = Tape()
        async with serving(script) as url:
            line = line_of(plan(url), tape)
            async with kept(line):
                await eventually(lambda: tape.details("subscribed"))
                assert "topic" in line.state.problem
        assert tape.details("subscribed") == [{"asked": ["topic"], "missing": ["topic"]}]

    run(test())


# StalenessWatchdog


def test_a_stale_socket_is_given_up_after_the_limit_set_and_dialed_again() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok", b"d1")

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape, stale_after=0.4)):
            await eventually(lambda: len(tape.details("closed")) == 1)
            await eventually(lambda: len(tape.frames()) == 4)
        closed = tape.details("closed")[0]
        assert closed["by"] == "tapeline"
        assert closed["reason"].startswith("stale: no ")
        opened, ended = [at for _, kind, at, _ in tape.records if kind in ("opened", "closed")][:2]
        assert 0.4 < (ended - opened) / NS_PER_S < 2.0

    run(test())


def test_one_stale_channel_among_busy_ones_is_given_up_and_named() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            for _ in range(200):
                peer.say(b"d1")
                await asyncio.sleep(0.02)

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape, stale_after={"d2": 0.3})):
            await eventually(lambda: tape.details("closed"))
        assert tape.details("closed")[0]["reason"].startswith("stale: no channel d2 for 0.")

    run(test())


def test_where_one_channel_is_stale_what_the_others_sent_before_the_end_is_kept() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept(frame(b"d1"))
            while (await peer.hear())[0] != CLOSE:
                pass
            peer.say(b"d1 late")
            await peer.say_goodbye()

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape, stale_after={"d2": 0.3})):
            await eventually(lambda: tape.details("closed"))
        assert tape.frames()[:2] == [b"d1", b"d1 late"]
        assert tape.details("closed")[0]["reason"].startswith("stale: no channel d2 for 0.")

    run(test())


def test_a_half_open_socket_is_noticed_by_its_unanswered_ping() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"d1")
            await asyncio.sleep(30)  # reads nothing, says nothing

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape, limits=replace(SHORT, ping_after_s=0.3))):
            await eventually(lambda: len(tape.frames()) == 2)

    run(test())


SECOND = NS_PER_S


def test_silence_is_ten_times_the_longest_so_far_between_a_floor_and_a_cap() -> None:
    watchdog = StalenessWatchdog(floor_s=15, cap_s=100)
    watchdog.begin(0)
    assert watchdog.stale(15 * SECOND) is None
    assert watchdog.stale(16 * SECOND) == ("", 16.0)
    for at in (1, 2, 5, 6):
        watchdog.heard(b"t", at * SECOND)
    assert watchdog.stale((6 + 30) * SECOND) is None
    assert watchdog.stale((6 + 31) * SECOND) is not None
    watchdog.heard(b"t", 56 * SECOND)
    assert watchdog.stale((56 + 100) * SECOND) is None
    assert watchdog.stale((56 + 101) * SECOND) is not None


def test_each_channel_has_its_own_silence_and_one_heard_once_teaches_nothing() -> None:
    watchdog = StalenessWatchdog()
    watchdog.begin(0)
    for at in range(100):
        watchdog.heard(b"quotes", at * SECOND)
        if at < 50 and at % 2 == 0:
            watchdog.heard(b"trades", at * SECOND)
    watchdog.heard(b"rare", 99 * SECOND)
    assert watchdog.stale(99 * SECOND) == ("trades", 51.0)
    watchdog.heard(b"trades", 99 * SECOND)
    for at in range(99, 140):
        watchdog.heard(b"quotes", at * SECOND)
        watchdog.heard(b"trades", at * SECOND)
    assert watchdog.stale(140 * SECOND) is None


def test_a_connection_that_opens_starts_every_silence_anew() -> None:
    watchdog = StalenessWatchdog({"trades": 5.0})
    watchdog.begin(0)
    watchdog.heard(b"trades", SECOND)
    watchdog.begin(100 * SECOND)
    assert watchdog.stale(104 * SECOND) is None
    assert watchdog.stale(106 * SECOND) == ("trades", 6.0)


def test_a_channel_with_a_limit_is_missed_even_if_it_never_came() -> None:
    watchdog = StalenessWatchdog({"trades": 5.0})
    watchdog.begin(0)
    for at in range(6):
        watchdog.heard(b"quotes", at * SECOND)
    assert watchdog.stale(int(5.5 * SECOND)) == ("trades", 5.5)


def test_a_closed_market_is_dialed_ever_more_rarely_and_a_thin_channel_does_not_ride_on_a_busy_one() -> None:
    watchdog = StalenessWatchdog(floor_s=15)
    watchdog.begin(0)
    watchdog.heard(b"trades", 0)
    watchdog.heard(b"trades", SECOND)
    now, waits = SECOND, []
    for _ in range(6):
        watchdog.begin(now)
        began = now
        while (stale := watchdog.stale(now)) is None:
            now += SECOND
            watchdog.heard(b"quotes", now)
        waits.append((now - began) // SECOND)
        watchdog.doubt(stale[0])
    assert waits == [16, 31, 61, 121, 241, 481]
    watchdog.heard(b"trades", now)
    watchdog.begin(now)
    for at in range(now, now + 20 * SECOND, SECOND):
        watchdog.heard(b"quotes", at)
    assert watchdog.stale(now + 20 * SECOND) is None  # what it was silent for, it may be silent for again


# Dialing again


@pytest.mark.parametrize("seed", range(20))
def test_waits_double_up_to_the_cap_each_between_half_of_it_and_all(seed: int) -> None:
    waits = backoff(Random(seed), 0.5, 60.0)
    ceilings = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    drawn = [next(waits) for _ in ceilings]
    assert all(ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(drawn, ceilings, strict=True))
    assert len(set(drawn)) == len(drawn)


def test_acknowledgements_do_not_start_the_waits_anew_and_data_does() -> None:
    drawn: list[int] = []

    class Counted(Limits):
        def waits(self, random: Random) -> Iterator[float]:
            for number in range(1000):
                drawn.append(number)
                yield 0.01

    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok", b"d1") if peer.number % 4 == 0 else peer.say(b"ok")
            await asyncio.sleep(0.02)
            await peer.say_goodbye()

        async with serving(script) as url, kept(line_of(plan(url), Tape(), limits=Counted(look_every_s=0.03))):
            await eventually(lambda: len(drawn) >= 9)
        assert drawn[:8] == [0, 1, 2, 0, 1, 2, 3, 0]

    run(test())


def test_a_refused_port_is_dialed_again_until_somebody_listens() -> None:
    async def test() -> None:
        async with serving(lambda peer: peer.accept()) as url:
            pass
        tape = Tape()
        line = line_of(plan(url), tape)
        async with kept(line) as keeper:
            await eventually(lambda: line.state.problem)
            assert url in line.state.problem
            port = int(url.rsplit(":")[-1])

            async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await Peer(1, reader, writer).accept(frame(b"d1"))
                await reader.read()
                writer.close()

            server = await asyncio.start_server(greet, "127.0.0.1", port)
            await eventually(lambda: tape.frames())
            assert line.state.problem == ""
            server.close()
            line.stop()
            await keeper
            await asyncio.sleep(0.05)

    run(test())


@pytest.mark.parametrize(
    ("status", "headers", "least_s"),
    [
        ("429 Too Many Requests", "", 0.5),
        ("429 Too Many Requests", "Retry-After: soon\r\n", 0.5),
        ("418 I'm a teapot", "Retry-After: 1\r\n", 1.0),
    ],
)
def test_an_upgrade_refused_as_too_fast_is_tried_again_after_what_is_asked(status: str, headers: str, least_s: float) -> None:
    async def test() -> None:
        dialed = []

        async def script(peer: Peer) -> None:
            dialed.append(peer.opened_s)
            if peer.number == 1:
                await peer.refuse(status, headers)
            else:
                await peer.accept(frame(b"d1"))

        tape = Tape()
        async with serving(script) as url:
            line = line_of(plan(url), tape)
            async with kept(line):
                await eventually(lambda: line.state.problem)
                assert status[:3] in line.state.problem
                await eventually(lambda: tape.frames())
        assert dialed[1] - dialed[0] >= least_s
        assert not line.state.stopped

    run(test())


def test_what_one_process_was_told_to_wait_every_process_of_its_address_waits(tmp_path: Path) -> None:
    async def test() -> None:
        dialed: list[float] = []

        async def script(peer: Peer) -> None:
            dialed.append(peer.opened_s)
            await (peer.refuse("429 Too Many Requests", "Retry-After: 1\r\n") if peer.number == 1 else peer.accept(frame(b"d1")))

        def pace() -> Pace:
            """As a process has it."""
            return Pace(0.0, lambda place: RateLimiter(60, tmp_path / f"{sha256(place.encode()).hexdigest()}.json"))

        tapes = [Tape(), Tape()]
        async with serving(script) as url:
            first, second = (
                FeedConnection(
                    plan(f"{url}?streams={number}"), tape, time.time_ns, StalenessWatchdog(), Dialing(pace(), Random(1), limits=SHORT)
                )
                for number, tape in enumerate(tapes)
            )
            async with kept(first):
                await eventually(lambda: first.state.problem)
                async with kept(second):
                    await eventually(lambda: all(tape.frames() for tape in tapes))
        assert all(later - dialed[0] >= 1.0 for later in dialed[1:])

    run(test())


def test_a_book_of_dials_that_cannot_be_written_keeps_nobody_from_recording(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "quotas").write_text("no folder")
    caplog.set_level(logging.WARNING, "tapeline.net.websocket")

    async def test() -> None:
        async def script(peer: Peer) -> None:
            await (peer.refuse("429 Too Many Requests") if peer.number == 1 else peer.accept(frame(b"d1")))

        tape, pace = Tape(), Pace(0.0, lambda _: RateLimiter(60, tmp_path / "quotas" / "dials.json"))
        async with (
            serving(script) as url,
            kept(FeedConnection(plan(url), tape, time.time_ns, StalenessWatchdog(), Dialing(pace, Random(1), limits=SHORT))),
        ):
            await eventually(lambda: tape.frames())

    run(test())
    assert "Tapeline connects anyway." in caplog.text
    assert "do not know that they must wait" in caplog.text


def test_a_server_in_trouble_is_dialed_again_soon() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            if peer.number < 4:
                await peer.refuse("503 Service Unavailable")
            else:
                await peer.accept(frame(b"d1"))

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: tape.frames())

    run(test())


REFUSALS = ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found", "451 Unavailable For Legal Reasons"]


@pytest.mark.parametrize("status", REFUSALS)
def test_an_upgrade_that_was_refused_before_it_ever_worked_stops_the_line_with_the_provider_s_words(status: str) -> None:
    async def test() -> None:
        async with serving(lambda peer: peer.refuse(status, body=b'{"code":0,\n"msg":"a restricted\x1b[2J location"}')) as url:
            line = line_of(plan(url), Tape())
            async with asyncio.timeout(PATIENCE_S):
                await line.keep()
        assert line.state.stopped
        assert status[:3] in line.state.problem
        assert '{"code":0, "msg":"a restricted [2J location"}' in line.state.problem

    run(test())


@pytest.mark.parametrize("status", [*REFUSALS, "408 Request Timeout", "500 Oops"])
def test_an_upgrade_that_is_refused_after_it_has_worked_is_tried_again(status: str) -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            if peer.number in (2, 3):
                await peer.refuse(status)
                return
            await peer.accept(frame(b"d1"))
            if peer.number == 1:
                peer.reset()

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: len(tape.frames()) == 2)

    run(test())


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found"])
def test_binance_s_firewall_stops_nothing_also_before_anything_has_worked(status: str) -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await (peer.refuse(status) if peer.number < 3 else peer.accept(frame(b"d1")))

        tape = Tape()
        async with serving(script) as url, kept(line_of(replace(plan(url), refusal=simulator_plan("binance", url).refusal), tape)):
            await eventually(lambda: tape.frames())

    run(test())


def test_a_redirect_is_followed_nowhere() -> None:
    async def test() -> None:
        met: list[int] = []

        async def elsewhere(peer: Peer) -> None:
            met.append(peer.number)
            await peer.accept(frame(b"d1"))

        async with serving(elsewhere) as other, serving(lambda peer: peer.refuse("302 Found", f"Location: {other}/key?of=me\r\n")) as url:
            line = line_of(plan(url), Tape())
            async with asyncio.timeout(PATIENCE_S):
                await line.keep()
        assert met == []
        assert "302" in line.state.problem
        assert "of=me" not in line.state.problem

    run(test())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "ws://", "nonsense", "ws://127.0.0.1:99999999/"])
def test_an_address_that_is_none_stops_the_line_and_is_named(url: str) -> None:
    line = line_of(plan(url), Tape())
    run(asyncio.wait_for(line.keep(), PATIENCE_S))
    assert line.state.stopped
    assert url in line.state.problem


def test_a_provider_that_says_no_for_good_stops_its_line_and_no_other() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            _, said = await peer.hear()
            peer.say(b"ok", b"stop" if said == b"first" else b"d1")

        first, second = Tape(), Tape()
        async with serving(script) as url:
            doomed, fine = line_of(plan(url, [b"first"]), first), line_of(plan(url, [b"second"]), second)
            async with kept(fine):
                async with asyncio.timeout(PATIENCE_S):
                    await doomed.keep()
                assert doomed.state.stopped
                assert doomed.state.problem == "no"
                assert first.kinds()[-1] == (1, "closed")
                assert first.details("closed") == [{"by": "tapeline", "reason": "no"}]
                await eventually(lambda: second.frames() == [b"ok", b"d1"])
                assert fine.state.connected
                assert not fine.state.stopped

    run(test())


def test_a_warning_leaves_the_connection_open() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok", b"warn", b"d1")

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: len(tape.frames()) == 3)
            await asyncio.sleep(0.3)
            assert not tape.details("closed")

    run(test())


def test_a_trouble_with_a_wait_is_dialed_again_only_after_it() -> None:
    async def test() -> None:
        dialed = []

        async def script(peer: Peer) -> None:
            dialed.append(peer.opened_s)
            await peer.accept()
            peer.say(b"ok", b"wait" if peer.number == 1 else b"d1")

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: b"d1" in tape.frames())
        assert dialed[1] - dialed[0] >= 0.6
        assert tape.details("closed")[0] == {"by": "tapeline", "reason": "later"}

    run(test())


@pytest.mark.parametrize("by_s", [2, -2])
def test_a_clock_that_leapt_is_put_on_record_and_one_that_was_set_back_begins_a_new_connection(by_s: int) -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok", b"d%d" % peer.number)

        tape = Tape()
        async with serving(script) as url:
            line = line_of(plan(url), tape)
            async with kept(line):
                await eventually(lambda: b"d1" in tape.frames())
                now = time.time_ns()
                line.clock_leapt(Leap(now - 3 * NS_PER_S, now, by_s * NS_PER_S))
                if by_s < 0:
                    await eventually(lambda: b"d2" in tape.frames())
        if by_s > 0:
            (leapt,) = tape.details("leapt")
            assert leapt == {"from_ns": now - 3 * NS_PER_S, "to_ns": now, "reason": "the clock leapt ahead by 2.0 s"}
            assert [kind for _, kind in tape.kinds()].count("opened") == 1
        else:
            assert tape.details("closed")[0] == {"by": "tapeline", "reason": "the clock was set back by 2.0 s"}

    run(test())


def test_a_message_in_parts_without_end_ends_the_connection_however_small_they_are() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            if peer.number == 1:
                peer.write(frame(b"x", fin=False) + frame(b"", 0, fin=False) * 70_000)
            else:
                peer.say(b"ok", b"d2")

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: b"d2" in tape.frames())
        assert tape.details("closed")[0] == {"by": "tapeline", "reason": "a message of more than 65536 parts"}

    run(test())


def test_a_peer_that_pings_and_reads_nothing_is_left_before_its_answers_fill_the_memory() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            if peer.number > 1:
                peer.say(b"ok", b"d2")
                return
            peer.reader._transport.pause_reading()  # type: ignore[attr-defined]  # nothing else keeps the loop from reading
            for _ in range(4_000):
                peer.write(frame(b"p" * 125, PING) * 200)
                await peer.writer.drain()

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: b"d2" in tape.frames())
        (first, *_) = tape.details("closed")
        assert first["by"] == "tapeline"
        assert "the peer reads nothing" in first["reason"]

    run(test())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webs"])
def test_a_stop_does_not_wait_for_an_upgrade_that_is_not_answered(answer: bytes) -> None:
    async def test() -> None:
        dialed = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.reader.readuntil(b"\r\n\r\n")
            peer.write(answer)
            dialed.set()
            await asyncio.sleep(PATIENCE_S)

        async with serving(script) as url:
            line = line_of(plan(url), Tape())
            keeper = asyncio.create_task(line.keep())
            await dialed.wait()
            line.stop()
            async with asyncio.timeout(5):
                await keeper

    run(test())


def test_dials_of_one_provider_keep_their_distance_however_many_lines_there_are() -> None:
    async def test() -> None:
        dialed: list[float] = []

        async def script(peer: Peer) -> None:
            dialed.append(peer.opened_s)
            await peer.accept()

        async with serving(script) as url:
            pace, began = Pace(0.1), asyncio.get_running_loop().time()
            lines = [
                FeedConnection(plan(url), Tape(), time.time_ns, StalenessWatchdog(), Dialing(pace, Random(1), limits=SHORT))
                for _ in range(5)
            ]
            keepers = [asyncio.create_task(line.keep()) for line in lines]
            await eventually(lambda: len(dialed) == 5)
            for line in lines:
                line.stop()
            await asyncio.gather(*keepers)
        assert all(at - began >= 0.1 * number - 0.01 for number, at in enumerate(dialed))

    run(test())


@pytest.mark.parametrize("when", ["dialing", "resting", "connected", "paused"])
def test_a_line_that_is_told_to_stop_does_so_soon(when: str) -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            if when == "dialing":
                await asyncio.sleep(30)
            elif when == "resting":
                peer.reset()
            else:
                await peer.accept(frame(b"d1"))
                await asyncio.sleep(30)

        tape = Tape()
        async with serving(script) as url:
            line = line_of(plan(url), tape)
            keeper = asyncio.create_task(line.keep())
            await asyncio.sleep(0.3)
            if when == "paused":
                tape.full(True)
            line.stop()
            if when == "dialing":
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)
            else:
                async with asyncio.timeout(PATIENCE_S):
                    await keeper
        assert [kind for _, kind in tape.kinds()].count("opened") == len(tape.details("closed"))

    run(test())


# Replacing a connection


def test_a_rotation_opens_the_new_connection_before_it_closes_the_old_and_misses_nothing() -> None:
    async def test() -> None:
        told = 0
        peers: list[Peer] = []

        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok")
            peers.append(peer)

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url, rotate_after_s=0.5), tape)):
            while len(peers) < 3 or not tape.kinds().count((3, "frame")):
                told += 1
                for peer in peers:
                    if not peer.writer.is_closing():
                        peer.say(b"d%d" % told)
                await asyncio.sleep(0.01)
        kinds = tape.kinds()
        for number in (1, 2):
            assert kinds.index((number + 1, "opened")) < kinds.index((number, "closed"))
        assert all("replaced by line-" in closed["reason"] for closed in tape.details("closed")[:2])
        numbers = {int(text[1:]) for text in tape.frames() if text.startswith(b"d")}
        assert numbers == set(range(min(numbers), max(numbers) + 1))

    run(test())


def test_a_provider_about_to_shut_down_is_left_for_a_new_connection() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok", b"d%d" % peer.number)
            if peer.number == 1:
                peer.say(b"next")

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: tape.details("closed"))
            await eventually(lambda: tape.kinds().count((2, "subscribed")))
        kinds = tape.kinds()
        assert kinds.index((2, "opened")) < kinds.index((1, "closed"))

    run(test())


@pytest.mark.parametrize("refusal", ["http", "problem", "reset"])
def test_a_replacement_that_fails_leaves_the_old_connection_in_place_and_is_tried_again(refusal: str) -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            if peer.number == 2 and refusal == "http":
                await peer.refuse("503 Service Unavailable")
                return
            await peer.accept()
            if peer.number == 2:
                peer.say(b"wait") if refusal == "problem" else peer.reset()
                return
            peer.say(b"ok", *([b"next"] if peer.number == 1 else []))
            for _ in range(300):
                peer.say(b"d%d" % peer.number)
                await asyncio.sleep(0.01)

        tape = Tape()
        async with serving(script) as url, kept(line_of(plan(url), tape)):
            await eventually(lambda: tape.frames().count(b"d3") > 5)
        old = tape.records[0][0]
        last = [payload for connection, kind, _, payload in tape.records if connection == old and kind == "frame"]
        assert len(last) > 5
        (closed,) = [json.loads(payload) for connection, kind, _, payload in tape.records if (connection, kind) == (old, "closed")]
        assert "replaced by" in closed["reason"]
        opened = [kind for _, kind in tape.kinds()].count("opened")
        assert len(tape.details("closed")) == opened

    run(test())


# A recorder that is full


@pytest.mark.parametrize("stale_after", [0.0, 0.3])
def test_a_full_recorder_stops_the_reading_and_nothing_is_lost_or_given_up(stale_after: float) -> None:
    count = 4_000

    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            peer.say(b"ok", b"d-first")
            await asyncio.sleep(0.1)
            for at in range(count):
                peer.say(b"d%d " % at + b"." * 2_000)
                await peer.writer.drain()

        tape = Tape()
        watchdog = StalenessWatchdog(stale_after) if stale_after else StalenessWatchdog(floor_s=0.3)
        async with serving(script) as url:
            limits = replace(SHORT, ping_after_s=0.2)
            line = FeedConnection(plan(url, rotate_after_s=0.4), tape, time.time_ns, watchdog, Dialing(Pace(0.0), Random(1), limits=limits))
            async with kept(line):
                await eventually(lambda: len(tape.frames()) == 2)
                tape.full(True)
                await asyncio.sleep(0.2)
                held = len(tape.frames())
                await asyncio.sleep(1.2)
                assert len(tape.frames()) == held < count
                assert tape.kinds()[-1][0] == 1
                line.plan = plan(url)
                tape.full(False)
                await eventually(lambda: len(tape.frames()) >= count + 2)
        first = tape.records[0][0]
        got = [payload.split()[0] for connection, kind, _, payload in tape.records if kind == "frame" and connection == first]
        assert got == [b"ok", b"d-first", *(b"d%d" % at for at in range(count))]

    run(test())


def test_a_connection_opened_while_the_recorder_is_full_is_not_read_either() -> None:
    async def test() -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await asyncio.sleep(0.1)
            peer.say(b"ok", b"d1")

        tape = Tape()
        async with serving(script) as url:
            line = line_of(plan(url), tape)
            async with kept(line):
                await asyncio.sleep(0)
                tape.full(True)
                await eventually(lambda: tape.kinds() == [(1, "opened")])
                await asyncio.sleep(0.4)
                assert tape.frames() == []
                tape.full(False)
                await eventually(lambda: tape.frames() == [b"ok", b"d1"])

    run(test())


# What is sent


def test_messages_leave_in_order_and_no_faster_than_the_pace() -> None:
    async def test() -> None:
        heard: list[tuple[float, int, bytes]] = []

        async def script(peer: Peer) -> None:
            await peer.accept()
            while len(heard) < 4:
                opcode, text = await peer.hear()
                heard.append((asyncio.get_running_loop().time(), opcode, text))

        async with serving(script) as url, kept(line_of(plan(url, [b"1", b"2", b"3", b"4"], pace_s=0.15, binary=True), Tape())):
            await eventually(lambda: len(heard) == 4)
        assert [text for _, _, text in heard] == [b"1", b"2", b"3", b"4"]
        assert {opcode for _, opcode, _ in heard} == {BINARY}
        assert all(after[0] - before[0] > 0.12 for before, after in pairwise(heard))

    run(test())


# The real simulators


def simulator_plan(provider: str, url: str, **more: Any) -> Plan:
    feed, symbols, channels = {
        "binance": ("spot", ("BTCUSDT", "ETHUSDT"), ("trade", "bookTicker")),
        "polygon": ("stocks", ("AAPL", "MSFT"), ("T", "Q")),
        "alpaca": ("iex", ("AAPL", "MSFT"), ("trades", "quotes")),
    }[provider]
    asked = FeedSettings(feed, symbols, channels, url=url, key=Secret("k"), secret=Secret("s"), **more)
    (found,) = PROVIDERS[provider].plans(asked)
    return found


@asynccontextmanager
async def simulator(provider: str, *faults: str, journal: Path | None = None, **more: Any) -> AsyncIterator[tuple[str, Simulator]]:
    open_simulator = Simulator(SimulatorOptions(name=provider, faults=faults, journal=journal, **more))
    try:
        yield await open_simulator.start(), open_simulator
    finally:
        await open_simulator.stop()


def market(provider: str, tape: Tape, frames: Sequence[bytes] | None = None) -> int:
    """How many market events were recorded."""
    found = 0
    for payload in tape.frames() if frames is None else frames:
        parsed = json.loads(payload)
        if provider == "binance":
            found += parsed.get("stream", "!")[0] != "!"
        else:
            found += sum(event.get("ev", event.get("T")) not in ("status", "success", "subscription", "error") for event in parsed)
    return found


@pytest.mark.parametrize(
    ("provider", "fault"),
    [("binance", "close:0.3"), ("polygon", "close:0.3"), ("alpaca", "close:0.3"), ("binance", "split:0.2"), ("polygon", "huge:0.2")],
)
def test_every_event_that_a_simulator_sent_is_recorded_whatever_its_sockets_do(provider: str, fault: str) -> None:
    async def test() -> None:
        tape = Tape()
        async with (
            simulator(provider, fault, rate=4_000.0, limit=3_000) as (url, open_simulator),
            kept(line_of(simulator_plan(provider, url), tape)),
        ):
            await eventually(
                lambda: sum(open_simulator.sent.values()) >= 3_000 and market(provider, tape) >= sum(open_simulator.sent.values())
            )
        assert market(provider, tape) == sum(open_simulator.sent.values())
        if fault.startswith("close"):
            assert any(closed.get("code") == 1001 for closed in tape.details("closed"))
            assert tape.kinds()[:2] == [(1, "opened"), (1, "frame")]

    run(test())


@pytest.mark.parametrize(
    ("provider", "fault", "reason"), [("polygon", "reset:0.3", "broke"), ("alpaca", "stale:0.3", "stale"), ("binance", "half_open:0.3", "")]
)
def test_the_line_comes_back_from_a_reset_a_stale_and_a_dead_socket(provider: str, fault: str, reason: str) -> None:

    async def test() -> None:
        tape = Tape()
        stale_after = 0.5 if fault.startswith("stale") else 0.0
        async with (
            simulator(provider, fault, rate=500.0, max_connections=3) as (url, _),
            kept(line_of(simulator_plan(provider, url), tape, stale_after, replace(SHORT, ping_after_s=0.4))),
        ):
            await eventually(lambda: tape.details("closed"))
            before = market(provider, tape)
            await eventually(lambda: market(provider, tape) > before + 20)
        assert reason in tape.details("closed")[0]["reason"]

    run(test())


def test_binance_shutting_down_after_a_short_day_loses_no_trade() -> None:
    async def test() -> None:
        tape = Tape()
        async with simulator("binance", rate=800.0, day_seconds=2.5) as (url, _), kept(line_of(simulator_plan("binance", url), tape)):
            await eventually(lambda: tape.details("closed"))
            count = len(tape.frames())
            await eventually(lambda: len(tape.frames()) > count + 100)
        trades: dict[str, set[int]] = {}
        for payload in tape.frames():
            data = json.loads(payload).get("data", {})
            if data.get("e") == "trade":
                trades.setdefault(data["s"], set()).add(data["t"])
        assert trades
        for numbers in trades.values():
            assert numbers == set(range(min(numbers), max(numbers) + 1))
        assert "replaced by" in tape.details("closed")[0]["reason"]

    run(test())


@pytest.mark.parametrize(
    ("provider", "fault", "says"),
    [
        ("polygon", "auth_refused", "auth_failed"),
        ("alpaca", "auth_refused", "402"),
        ("alpaca", "error:409", "409"),
    ],
)
def test_a_simulator_that_refuses_for_good_stops_the_line(provider: str, fault: str, says: str) -> None:
    async def test() -> None:
        async with simulator(provider, fault) as (url, _):
            line = line_of(simulator_plan(provider, url), Tape())
            async with asyncio.timeout(PATIENCE_S):
                await line.keep()
            assert line.state.stopped
            assert says in line.state.problem

    run(test())


@pytest.mark.parametrize(
    ("provider", "fault", "cool_s"),
    [
        ("polygon", "connection_limit:1", 0.8),
        ("alpaca", "connection_limit:1", 0.8),
        ("alpaca", "http_429:1", 0.5),
        ("binance", "connection_limit:1", 0.5),
    ],
)
def test_a_simulator_that_is_full_is_given_time(provider: str, fault: str, cool_s: float) -> None:
    async def test() -> None:
        tape = Tape()
        began = time.monotonic()
        async with simulator(provider, fault, rate=500.0) as (url, _):
            open_plan = simulator_plan(provider, url)
            session = open_plan.session

            def brisk() -> Any:
                """The session, its minute of cooling down cut short."""
                made = session()
                received = made.received

                def hurried(frame: bytes) -> Reply | None:
                    reply = received(frame)
                    if reply is None or reply.problem is None or not reply.problem.wait_s:
                        return reply
                    return replace(reply, problem=replace(reply.problem, wait_s=cool_s))

                made.received = hurried  # type: ignore[method-assign]
                return made

            if provider == "binance":  # its Retry-After is two minutes
                line = line_of(open_plan, tape)
                async with kept(line):
                    await eventually(lambda: line.state.problem)
                    await asyncio.sleep(1.0)
                assert "429" in line.state.problem
                assert tape.records == []
                return
            async with kept(line_of(replace(open_plan, session=brisk), tape)):
                await eventually(lambda: market(provider, tape) > 20)
        assert time.monotonic() - began > cool_s

    run(test())


def test_two_hundred_streams_are_asked_of_binance_without_offending_it() -> None:
    async def test() -> None:
        symbols = tuple(f"S{at}USDT" for at in range(500))
        tape = Tape()
        async with simulator("binance", symbols=symbols, rate=2_000.0) as (url, _):
            (asked,) = PROVIDERS["binance"].plans(FeedSettings("spot", symbols, ("trade",), url=url))
            async with kept(line_of(asked, tape)):
                await eventually(lambda: tape.details("subscribed"))
        assert tape.details("subscribed")[0]["missing"] == []
        assert len(tape.details("closed")) == 1

    run(test())


def test_a_simulator_in_reach_is_reached_and_one_out_of_reach_is_unavailable() -> None:
    async def test() -> None:
        async with simulator("polygon") as (url, _):
            assert await reach(simulator_plan("polygon", url), None) < 5
        with pytest.raises(Unavailable, match="cannot be reached"):
            await reach(simulator_plan("polygon", url), None)

    run(test())
