"""Stretches of a partition: between two of them Kafka forgot what it held, and each gives numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tapeline.streams.kafka.messages import Stretch

#: Numbers are counted from the year 2000 on, and each second has so many (2^31): 32,768 messages. They fit 63 bits until 2136.
_SINCE_NS: Final = 946_684_800 * 10**9
#: Rows in a message are counted in so many bits of a position; and in so many before there were stretches.
BITS: Final = 16
_SECOND_BITS: Final = 31


@dataclass(frozen=True, slots=True)
class Found:
    """Where to read on from a position."""

    offset: int
    #: Nothing that is there has given this position: it is one of a life that is gone.
    lost: bool = False
    #: Retention has removed what lay there.
    removed: bool = False


class StretchRow(msgspec.Struct, frozen=True, array_like=True):
    """A stretch as it is written down."""

    topic: str
    topic_id: str
    partition: int
    epoch: int
    base: int
    bits: int
    end: int


class Lost(msgspec.Struct, frozen=True, array_like=True):
    """A position of which somebody found that what had given it is gone."""

    topic: str
    topic_id: str
    partition: int
    position: int


def number_of(now_ns: int) -> int:
    """The position that a stretch gives to what comes next when it begins now."""
    return ((now_ns - _SINCE_NS) << _SECOND_BITS) // 10**9 >> BITS << BITS


def stretches_of(rows: Sequence[StretchRow]) -> list[Stretch]:
    """The stretches of a partition as they were written down, by whomever. The first word about an epoch holds, and none goes back."""
    found: list[Stretch] = []
    for row in rows:
        if not found:
            found.append(Stretch(row.epoch, row.base, row.bits, row.end))
        elif row.epoch > found[-1].epoch:
            base = max(row.base, found[-1].position(row.end) - (row.end << row.bits))
            found.append(Stretch(row.epoch, base, row.bits, row.end))
    return found


class WrittenDown(msgspec.Struct, frozen=True, omit_defaults=True):
    stretches: tuple[StretchRow, ...] = ()
    lost: tuple[Lost, ...] = ()
