"""How fast the providers' own clients turn frames into their typed objects, with no network. It runs in the environment of one client.

    python array_clients.py stocks|crypto|alpaca FRAMES REPEATS

`stocks` and `crypto` are the markets of massive, the client of Polygon.io (now Massive). `alpaca` is alpaca-py, which knows MessagePack
only. FRAMES is a file of frames. Each frame follows its length (4 bytes, little-endian). The time covers the client's work between its
socket and its handler: it decodes a frame and makes an object of each event. The last line is JSON: the number of events, and the seconds
of each pass.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path


def massive(market: str) -> Callable[[bytes], int]:
    from massive.websocket.models import Market, parse

    log, of = logging.getLogger("massive"), Market(market)

    def read(frame: bytes) -> int:
        return len(parse(json.loads(frame), log, of))

    return read


def alpaca() -> Callable[[bytes], int]:
    import msgpack
    from alpaca.data.live import CryptoDataStream

    stream = CryptoDataStream("key", "secret")

    def read(frame: bytes) -> int:
        return len([stream._cast(event) for event in msgpack.unpackb(frame)])

    return read


def main() -> None:
    name, path, repeats = sys.argv[1:]
    read = alpaca() if name == "alpaca" else massive(name)
    data, frames, at = Path(path).read_bytes(), [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        frames.append(data[at + 4 : end])
        at = end
    passes = []
    for _ in range(int(repeats)):
        began = time.perf_counter()
        events = sum(map(read, frames))
        passes.append(time.perf_counter() - began)
    print(json.dumps({"events": events, "seconds": passes}))


if __name__ == "__main__":
    main()
