"""The native core of Tapeline: the frames of market data providers to Arrow columns, as plain buffers."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from typing_extensions import Buffer

__version__: str
#: Grows with every change of what Python calls here.
INTERFACE: int

#: How many values are null, the validity bits (None: no value is null), and one or two buffers of values as Arrow lays them out.
Column: TypeAlias = tuple[int, bytes | None, bytes, bytes | None]
#: The place of each row (int64: row of the frame << 32 | number in the frame), and the columns that are not null in every row.
Table: TypeAlias = tuple[bytes, dict[str, Column]]

class Decoder:
    """Decodes the frames of one feed."""

    @staticmethod
    def binance(bars: Sequence[str]) -> Decoder:
        """`bars`: the names of the channels with bars."""
    @staticmethod
    def polygon(crypto: bool, exchanges: Mapping[int, str], facilities: Mapping[int, str]) -> Decoder:
        """`exchanges`, `facilities`: code to the name of an exchange, and of a facility that reports trades off exchange."""
    @staticmethod
    def alpaca(exchanges: Mapping[str, str] | None, bars_exchange: str | None) -> Decoder:
        """`exchanges`: letter to the name of an exchange. `bars_exchange`: the exchange of bars; None: the feed has no bars."""
    def decode(
        self,
        offsets: Buffer,
        data: Buffer,
        first: int,
        count: int,
        rows: Buffer | None,
        canonical: Callable[[str], str | None] | None,
    ) -> tuple[Table, Table, bytes]:
        """Return the ticks, the bars, and the rows (int64) of the frames that it does not understand.

        `offsets` and `data` are the buffers of a binary column whose elements `first` to `first + count` are the frames. `rows` (int64)
        chooses some of them. `canonical` gives the canonical symbol for a provider's name; None: the names are canonical."""
