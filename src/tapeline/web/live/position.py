"""A position in the live topics: how far each partition was read, also as the text that is the id of every message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tapeline.errors import WrongArgument

#: The text of a position, such as `ticks:120,98;bars:4,0`: for each table, the next offset of each partition, from partition 0 on.
_TEXT: Final = re.compile(r"(?:[a-z]{1,20}:\d{1,19}(?:,\d{1,19}){0,1023}(?:;|\Z)){1,8}")


#: How much of a wrong text is repeated to the one who sent it.
_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class Position:
    """How far the live topics were read: for each table (`ticks`, `bars`), the next offset of each partition."""

    next: Mapping[str, tuple[int, ...]]
    #: The id of every message at this position, for each client: so it is made once.
    _text: str = field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        if self.known:
            object.__setattr__(self, "_text", ";".join(f"{table}:{','.join(map(str, offsets))}" for table, offsets in self.next.items()))

    @property
    def known(self) -> bool:
        """Whether it is known how many partitions the topics have: not before the stream was reached."""
        return all(self.next.values())

    def __str__(self) -> str:
        """The text of a position; empty if nothing is known."""
        return self._text

    def reaches(self, other: Position) -> bool:
        """Whether this position is at or after another one in every partition. False if the two have other tables or partitions."""
        return self.next.keys() == other.next.keys() and all(
            len(mine) == len(other.next[table]) and all(a >= b for a, b in zip(mine, other.next[table], strict=True))
            for table, mine in self.next.items()
        )

    def begun(self, first: Position) -> Position:
        """Return this position with `first` in place of each offset 0: who has read nothing begins where the records begin."""
        if {table: len(parts) for table, parts in self.next.items()} != {table: len(parts) for table, parts in first.next.items()}:
            return self  # it is of another stream
        return Position(
            {
                table: tuple(mine or begin for mine, begin in zip(parts, first.next[table], strict=True))
                for table, parts in self.next.items()
            }
        )


def parse(text: str) -> Position:
    """Read the text of a position. Raises WrongArgument."""
    if not _TEXT.fullmatch(text) or text.endswith(";"):
        raise WrongArgument(f"{text[:_SHOWN]!r} is not a position. Use the id of a message, such as 'ticks:120;bars:4', or leave it out.")
    parts = [part.partition(":") for part in text.split(";")]
    found = {table: tuple(map(int, offsets.split(","))) for table, _, offsets in parts}
    if len(found) < len(parts):
        raise WrongArgument(f"{text[:_SHOWN]!r} names a table twice. Use the id of a message as it came.")
    return Position(found)
