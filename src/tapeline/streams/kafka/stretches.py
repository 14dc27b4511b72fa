"""Stretches of a partition: each has numbers of its own, and between two of them Kafka may have forgotten what it held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tapeline.streams.kafka.messages import Stretch

#: Numbers are counted from the year 2000. Each second has 2^31 of them, which is 32,768 messages. They fit in 63 bits until 2136.
_SINCE_NS: Final = 946_684_800 * 10**9
#: The number of bits of a position that count the rows in a message.
BITS: Final = 16
_SECOND_BITS: Final = 31


@dataclass(frozen=True, slots=True)
class Found:
    """Where to continue reading from a position."""

    offset: int
    #: No existing stretch gave this position: it belongs to a life that is gone.
    lost: bool = False
    #: Retention has removed the records at this position.
    removed: bool = False


class StretchRow(msgspec.Struct, frozen=True, array_like=True):
    """A stretch as it is stored."""

    topic: str
    topic_id: str
    partition: int
    epoch: int
    base: int
    bits: int
    end: int


class Lost(msgspec.Struct, frozen=True, array_like=True):
    """A position whose stretch somebody found to be gone."""

    topic: str
    topic_id: str
    partition: int
    position: int


def number_of(now_ns: int) -> int:
    """Return the position that a stretch gives to its next message if the stretch begins now."""
    return ((now_ns - _SINCE_NS) << _SECOND_BITS) // 10**9 >> BITS << BITS


def stretches_of(rows: Sequence[StretchRow]) -> list[Stretch]:
    """Return a partition's stretches from the stored rows, whoever wrote them.

    The first row for an epoch counts, and epochs never go back.
    """
    stretches: list[Stretch] = []
    for row in rows:
        if not stretches:
            stretches.append(Stretch(row.epoch, row.base, row.bits, row.end))
        elif row.epoch > stretches[-1].epoch:
            base = max(row.base, stretches[-1].position(row.end) - (row.end << row.bits))
            stretches.append(Stretch(row.epoch, base, row.bits, row.end))
    return stretches


class WrittenDown(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of the topic `Cluster.lives`: stretches that began, and positions that were found lost."""

    stretches: tuple[StretchRow, ...] = ()
    lost: tuple[Lost, ...] = ()
