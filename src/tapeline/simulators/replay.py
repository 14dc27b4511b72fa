"""Replay of recorded frames, on one clock for the whole simulator.

A recording is text, plain or gzip, with one frame a line: the receive time in nanoseconds, a blank, and the exact JSON of a
combined-stream frame. Other lines, such as REST snapshots, are skipped. A stream is replayed only to the clients that subscribed to it.
"""

from __future__ import annotations

import gzip
import heapq
import zlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tapeline.simulators.events import Event, Topic
from tapeline.simulators.source import BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tapeline.simulators.options import SimulatorOptions

SETTLE_S: Final = 0.3  # from the first subscription to the first frame: several requests count as one
_IDS: Final = {"trade": "t", "aggTrade": "a"}
_HEAD: Final = b'{"stream":"'
_DATA: Final = b'","data":'


class Replay:
    """Recorded events, at `speed` times the recorded pace, or, at speed 0, as fast as the client reads.

    At speed 0, the replay waits while no client is subscribed. At other speeds, its clock keeps running, like an exchange's.
    """

    def __init__(self, options: SimulatorOptions) -> None:
        self.behind = False
        self._speed = options.speed
        self._left = options.limit
        self._files = ExitStack()
        self._records = _merged(options.captures, self._files)
        self._next: tuple[int, Event] | None = None
        self._wanted: frozenset[Topic] = frozenset()
        self._ready_s: float | None = None  # when the first frame may be sent
        self._start: tuple[float, int] | None = None  # the start, in loop seconds and as a receive time

    def open(self) -> None:
        """Read up to the first frame. Raises OSError or ValueError if a recording cannot be read."""
        try:
            self._next = next(self._records, None)
        except BaseException:
            self.close()
            raise

    def heard(self, wanted: frozenset[Topic], now_s: float) -> None:
        """Change the wanted topics. The recording's clock starts 0.3 s after the first of them, so that several requests count as one.

        At speed 0, the replay also waits 0.3 s each time that clients come back.
        """
        if wanted and not self._wanted and (self._start is None or self._speed == 0):
            self._ready_s = now_s + SETTLE_S
        self._wanted = wanted

    def take(self, now_s: float) -> list[Event]:
        """Return the recorded events that are due, at most 512. Events that no client wants are skipped, and do not count for the limit.

        Raises OSError or ValueError if a recording cannot be read any further.
        """
        self.behind = False
        if self._ready_s is None or now_s < self._ready_s or (self._speed == 0 and not self._wanted):
            return []
        if self._start is None and self._next is not None:
            self._start = (now_s, self._next[0])
        made: list[Event] = []
        while self._next is not None and self._left != 0 and self._due(self._next[0], now_s):
            if len(made) >= BATCH:
                self.behind = True
                break
            event = self._next[1]
            if event.topic in self._wanted:
                made.append(event)
                self._left = None if self._left is None else self._left - 1
            self._next = next(self._records, None)
        return made

    def close(self) -> None:
        """Close the recordings."""
        self._files.close()

    def _due(self, received_ns: int, now_s: float) -> bool:
        if self._speed == 0:
            return True
        assert self._start is not None
        began_s, first_ns = self._start
        return received_ns - first_ns <= (now_s - began_s) * self._speed * 1e9


def _merged(paths: tuple[Path, ...], files: ExitStack) -> Iterator[tuple[int, Event]]:
    """All recordings in the order of their receive times."""
    return heapq.merge(*(_records(path, files) for path in paths), key=lambda record: record[0])


def _records(path: Path, files: ExitStack) -> Iterator[tuple[int, Event]]:
    file = files.enter_context(path.open("rb"))
    lines: Iterable[bytes] = files.enter_context(gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
    topics: dict[bytes, Topic] = {}
    for number, line in enumerate(_whole(path, lines), 1):
        received, _, text = line.rstrip().partition(b" ")
        stream, mark, data = text.removeprefix(_HEAD).partition(_DATA)
        if not (mark and text.startswith(_HEAD) and received.isdigit()):
            continue
        topic = topics.get(stream)
        if topic is None:
            symbol, _, channel = stream.decode().partition("@")
            topic = topics[stream] = Topic("spot", channel, symbol.upper())
        try:
            yield int(received), _event(topic, int(received), data[:-1])
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


def _whole(path: Path, lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same lines. Raises ValueError if the file's compression ends too early or is damaged."""
    try:
        yield from lines
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {error}. The recording is damaged or was cut off.") from error


def _event(topic: Topic, received_ns: int, data: bytes) -> Event:
    decoded = msgspec.json.decode(data)
    fields: dict[str, Any] = decoded if isinstance(decoded, dict) else {}  # a stream of the whole market sends an array
    key = "u" if topic.channel == "bookTicker" else _IDS.get(topic.channel)
    ns = fields["T"] * 1_000_000 if isinstance(fields.get("T"), int) else received_ns
    return Event(topic, fields.get(key) if key else None, ns, fields, data)
