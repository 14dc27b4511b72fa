"""The interface of a store's table of instruments: read versions, and put new or closed versions in with one commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import INSTRUMENTS, NS_PER_S, NS_PER_US

#: The columns that tell two versions apart. Two versions never have the same.
KEY: Final = ("provider", "market", "native", "valid_from_ns")
#: The order of every answer. Text is compared by its bytes.
ORDER: Final = ("provider", "market", "symbol", "native", "valid_from_ns")
_DAY_NS: Final = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Versions:
    """Which versions to read. None: any value."""

    provider: str | None = None
    market: str | None = None
    symbols: Sequence[str] | None = None  # canonical
    #: Versions that are valid at this moment (ns, UTC).
    at_ns: int | None = None
    #: Versions that no later list has closed.
    open: bool = False
    #: Versions that began or ended after this moment (ns, UTC).
    since_ns: int | None = None


class InstrumentStore(Protocol):
    """A store's table of instruments. Every call raises Unavailable, NewerData or ConfigError as the store does."""

    @property
    def name(self) -> str:
        """The name of the store, such as `lake`."""

    def changed_ns(self, provider: str, market: str) -> int:
        """Return the moment (ns, UTC) of the last list that changed something here; 0 if there was none."""

    def versions(self, wanted: Versions) -> pa.Table:
        """Return versions with the schema `INSTRUMENTS`, in the order `ORDER`."""

    def put(self, versions: pa.Table) -> None:
        """Add versions, in one commit. A version that is there already, by `KEY`, is replaced: it may have been closed since."""


def with_times(versions: pa.Table) -> pa.Table:
    """Add what stores have for people and pruning: the UTC `date` on which a version began, and `valid_from` and `valid_to` (UTC, µs)."""
    begun = versions["valid_from_ns"].to_numpy()
    days = pc.cast(pc.cast(pa.array(np.floor_divide(begun, _DAY_NS)), pa.int32()), pa.date32())
    found = versions.append_column(pa.field("date", pa.date32(), nullable=False), days)
    for name, nullable in (("valid_from", False), ("valid_to", True)):
        kind = pa.timestamp("us", "UTC")
        times = pc.cast(pc.divide(versions[f"{name}_ns"], NS_PER_US), kind)  # lists came after 1970, so this rounds down
        found = found.append_column(pa.field(name, kind, nullable=nullable), times)
    return found


def in_order(versions: pa.Table) -> pa.Table:
    """Return versions with the schema `INSTRUMENTS`, in the order `ORDER`."""
    found = versions.select(INSTRUMENTS.names).cast(INSTRUMENTS)
    return found.sort_by([(name, "ascending") for name in ORDER])
