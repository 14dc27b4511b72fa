"""The faults in one connection's data: unreadable extra frames, and frames that are repeated, reordered or split in two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tapeline.simulators.events import BINARY, Event, Frame, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from tapeline.simulators.faults import Faults
    from tapeline.simulators.session import Session

_NUMBERS: Final = ("p", "bp", "b", "o", "k", "u", "cp")  # fields with a number (or the kline's object); the first that exists is used
_HUGE: Final = 9_000_000


class Mischief:
    """Decides with a seeded random generator what goes wrong with each event and frame."""

    def __init__(self, faults: Faults, random: np.random.Generator, stranger: Callable[[Event], Event]) -> None:
        self._random = random
        self._stranger = stranger
        self._wrong_types = faults.chance("wrong_types")
        self._unknown = faults.chance("unknown_event")
        self._garbage = faults.chance("garbage")
        self._truncated = faults.chance("truncated")
        self._duplicate = faults.chance("duplicate")
        self._reorder = faults.chance("reorder")
        self._split = faults.chance("split")
        self._waiting: Frame | None = None  # to change places with the next frame
        names = ("wrong_types", "unknown_event", "garbage", "truncated", "duplicate", "reorder")
        self.active = any(name in faults for name in names)

    def events(self, events: Sequence[Event]) -> list[Event]:
        """The events, with unreadable ones among them."""
        if not (self._wrong_types or self._unknown):
            return list(events)
        mixed: list[Event] = []
        for event in events:
            mixed.append(event)
            if self._strikes(self._wrong_types):
                mixed.append(_with_wrong_type(event))
            if self._strikes(self._unknown):
                mixed.append(self._stranger(event))
        return mixed

    def frames(self, session: Session, frames: Sequence[Frame]) -> list[Frame]:
        """The frames, with broken ones among them, some repeated and some late."""
        mixed: list[Frame] = []
        for frame in frames:
            if self._waiting is not None:
                mixed += (frame, self._waiting)
                self._waiting = None
            elif self._strikes(self._reorder):
                self._waiting = frame
                continue
            else:
                mixed.append(frame)
            if self._strikes(self._duplicate):
                mixed.append(frame._replace(repeat=True))
            if self._strikes(self._garbage):
                mixed.append(self._noise(session.feed))
            if self._strikes(self._truncated):
                mixed.append(self._cut_off(session, frame))
        if not frames and self._waiting is not None:
            mixed.append(self._waiting)
            self._waiting = None
        return mixed

    def waits(self) -> bool:
        """Whether a frame waits to change places with the next one."""
        return self._waiting is not None

    def splits(self) -> bool:
        """Whether the next write leaves in two pieces."""
        return self._strikes(self._split)

    def _strikes(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance

    def _noise(self, feed: str) -> Frame:
        noise = self._random.bytes(64)
        event = Event(Topic(feed, "garbage", ""), None, 0, {}, noise, raw=True)
        return Frame(noise, BINARY, [(event, noise)])

    def _cut_off(self, session: Session, frame: Frame) -> Frame:
        whole, _ = frame.entries[0]
        single = session.pack([whole])[0]
        payload = single.payload[: len(single.payload) // 2]
        event = Event(whole.topic, whole.id, whole.ns, {}, payload, raw=True)
        return Frame(payload, frame.opcode, [(event, payload)])


def _with_wrong_type(event: Event) -> Event:
    key = next(key for key in _NUMBERS if key in event.fields)
    return Event(event.topic, event.id, event.ns, event.fields | {key: []}, raw=True)


def huge(session: Session, event: Event) -> Frame:
    """A frame of 9 MB that carries one good event and blanks."""
    frame = session.pack([event])[0]
    if frame.opcode == BINARY:  # msgpack cannot be padded with blanks: add a key to the map
        padded = Event(event.topic, event.id, event.ns, event.fields | {"pad": " " * _HUGE})
        return Frame(session.pack([padded])[0].payload, BINARY, frame.entries, repeat=True)
    payload = frame.payload[:-1] + b" " * _HUGE + frame.payload[-1:]
    return frame._replace(payload=payload, repeat=True)
