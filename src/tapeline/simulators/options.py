"""The options of a simulator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NAMES = ("binance", "polygon", "alpaca")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """All options of a simulator. A ValueError names the value that is wrong."""

    name: str  # binance | polygon | alpaca
    host: str = "127.0.0.1"  # the address to listen on: other machines and containers reach any but loopback
    port: int = 0  # 0: any free port
    files_port: int | None = None  # polygon: the port for its flat files; 0: any free port
    rate: float = 1000.0  # generated market: events/s over all subscribed symbols and channels
    symbols: tuple[str, ...] = ()  # the provider's own names; empty: a default set for each of its feeds
    seed: int = 1
    captures: tuple[Path, ...] = ()  # recordings to replay instead of generating a market
    speed: float = 1.0  # replay: 1 as recorded, 0 as fast as the client reads
    faults: tuple[str, ...] = ()  # "name" or "name:parameter", see FAULTS
    tls: bool = False  # with the package's loopback test certificate
    journal: Path | None = None  # the journal file: one JSON line for each event handed to a socket
    limit: int | None = None  # stop generating after this many events; connections stay open
    day_seconds: float = 86400.0  # the length of a day for Binance's forced disconnect, in seconds
    max_connections: int = 1  # at the same time, for each account and endpoint (polygon, alpaca)

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"There is no simulator {self.name!r}. Choose one of: {', '.join(NAMES)}.")
        if self.files_port is not None and self.name != "polygon":
            raise ValueError(f"files_port is for polygon's flat files. {self.name} needs no such port. Leave out files_port.")
        if self.rate <= 0:
            raise ValueError(f"rate is events per second and must be above 0, not {self.rate}")
        if self.speed < 0:
            raise ValueError(f"speed must be 0 (as fast as possible) or more, not {self.speed}")
        if self.day_seconds <= 0:
            raise ValueError(f"day_seconds must be above 0, not {self.day_seconds}")
        if self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {self.max_connections}")
