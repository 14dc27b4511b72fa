"""What the ledger costs as it grows old: connections that break, and between any two of them events that are lost.

They break four times a day for a year, or every 15 seconds for some hours."""

from __future__ import annotations

import json
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pyarrow as pa

from bench.machine import table
from tapeline.ledger.absorbing import absorb
from tapeline.ledger.folding import Account
from tapeline.ledger.sqlite import LedgerFile
from tapeline.providers.history import PageHeader
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import NS_PER_MS, NS_PER_S, RAW, RAW_TOPIC, Chunk

SYMBOLS = [f"C{number:03d}USDT" for number in range(200)]
_CHANNELS = ("trade", "bookTicker")
_BREAKS_A_DAY = 4
_BEGIN_NS = 1_735_689_600 * NS_PER_S  # 2025-01-01
#: The time between two breaks, in seconds, and after how many past connections the cost is shown.
_SERIES = {86_400 // _BREAKS_A_DAY: (10, 50, 200, 1_000, 365 * _BREAKS_A_DAY), 15: (10, 50, 200, 1_000)}
#: The first brings a connection and closes the one before, with the second that one is condensed, the third is one of many.
_FLUSHES = 3
_LATEST = 5
_FIRST_ID = 100  # of connection 1. A connection brings three ids of a hundred.
_HEAD = ["past connections", "one flush", "after a break", "after a repair", "start", "intervals of one symbol", "peak memory", "on disk"]

Record = tuple[str, str, int, bytes]


def run() -> str:
    """The section of the report."""
    lines: dict[int, list[list[str]]] = {}
    for every_s, shown in _SERIES.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # each has a memory of its own
            lines[every_s] = pool.submit(measure, every_s, shown).result()
    year, flapping = lines.values()
    return (
        f"There are {len(SYMBOLS)} symbols with trades and best quotes. Connections break one after the other, and each break loses"
        " events of every symbol. Before a flush, every symbol has new records. The flush computes and commits their intervals."
        " *After a break* is the flush with the end of one connection and the beginning of the next. *After a repair* is the flush with"
        " a page of history for the oldest gap of one symbol. The times are CPU time. The time of a flush is the median of"
        f" {_LATEST} flushes.\n\nEvery day, {_BREAKS_A_DAY} connections break:\n\n{table(_HEAD, year)}"
        f"\n\nA connection breaks every 15 s:\n\n{table(_HEAD, flapping)}"
    )


def measure(every_s: int, shown: tuple[int, ...]) -> list[list[str]]:
    """The lines of the table if a connection breaks so often."""
    with tempfile.TemporaryDirectory() as folder:
        one = _Measured(Path(folder) / "ledger.sqlite", every_s)
        lines = []
        for number in range(1, shown[-1] + 2):
            one.connects(number)
            if number - 1 in shown:
                lines.append([f"{number - 1:,}", *one.line(number)])
                print(f"every {every_s} s: {lines[-1]}", file=sys.stderr, flush=True)
        return lines


class _Measured:
    """A ledger, and how long its flushes took."""

    def __init__(self, path: Path, every_s: int) -> None:
        self._path, self._ledger, self._every_s = path, LedgerFile(path), every_s
        self._account, self._offset = Account(self._ledger.load()[0], self._ledger.pieces), 0
        self._took: list[float] = []
        self._pages = 0

    def connects(self, number: int) -> None:
        """One more connection opens and brings events, and the one before closes."""
        for some, now_ns in _connection(number, self._every_s):
            self._took.append(self._flush(some, now_ns))

    def line(self, number: int) -> list[str]:
        """The line of the table after this connection has opened."""
        plain, broken = (self._took[-_FLUSHES * _LATEST + kind :: _FLUSHES] for kind in (_FLUSHES - 1, 0))
        start_ms = _timed(lambda: Account(self._ledger.load()[0], self._ledger.pieces))
        with closing(sqlite3.connect(self._path)) as db:
            (intervals,) = db.execute("SELECT count(*) FROM intervals").fetchone()
        size = sum(file.stat().st_size for file in self._path.parent.iterdir())
        answer_ms = _timed(lambda: self._ledger.intervals((f"{SYMBOLS[0].removesuffix('USDT')}/USDT",)))
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        now_ns = _BEGIN_NS + (number * self._every_s + self._every_s - 1) * NS_PER_S
        self._pages += 1
        repair_ms = self._flush([_page(self._pages, self._every_s, now_ns)], now_ns)
        times = [statistics.median(plain), statistics.median(broken), repair_ms, start_ms, answer_ms]
        return [*(f"{ms:,.0f} ms" for ms in times), f"{mib:,.0f} MiB", f"{size / 1e6:,.0f} MB ({intervals:,} intervals)"]

    def _flush(self, some: list[Record], now_ns: int) -> float:
        part = _chunk(some, self._offset)
        self._offset += part.rows
        absorb(self._account.facts, part, normalize(part, DECODERS))

        def flush() -> None:
            changes = self._account.changes(now_ns)
            self._ledger.save(self._account.facts, changes, {0: self._offset})
            self._account.saved(changes)

        return _timed(flush)


def _timed(work: Callable[[], object]) -> float:
    """How many ms of a core it takes."""
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1e3


def _connection(number: int, every_s: int) -> list[tuple[list[Record], int]]:
    """The records of one connection, by flush, and when each is."""
    name, begin_ns = f"spot-{number}", _BEGIN_NS + number * every_s * NS_PER_S
    topics = [f"{symbol.lower()}@{channel}" for symbol in SYMBOLS for channel in _CHANNELS]
    first_events = [("opened", {"url": "wss://x", "topics": topics}), ("subscribed", {"asked": topics, "missing": []})]
    flushes: list[tuple[list[Record], int]] = []
    for at in range(_FLUSHES):
        now_ns = begin_ns + at * every_s * NS_PER_S // _FLUSHES
        records = [(name, kind, now_ns, json.dumps(detail).encode()) for kind, detail in first_events] if at == 0 else []
        frames = (frame for symbol in SYMBOLS for frame in _frames(symbol, number * _FIRST_ID + at, now_ns // NS_PER_MS))
        records += [(name, "frame", now_ns + NS_PER_S, json.dumps(frame, separators=(",", ":")).encode()) for frame in frames]
        if at == 0:
            closed = json.dumps({"by": "network", "reason": "reset"}).encode()
            records.append((f"spot-{number - 1}", "closed", begin_ns - NS_PER_S, closed))
        flushes.append((records, now_ns + 2 * NS_PER_S))
    return flushes


def _page(number: int, every_s: int, now_ns: int) -> Record:
    """A page of history with one of the events that were lost between the first two connections."""
    lost, symbol = _FIRST_ID + 10 + number, SYMBOLS[0]
    asked = PageHeader("trade", f"{symbol.removesuffix('USDT')}/USDT", "", now_ns // NS_PER_MS, 0, 0, lost, lost, True, 1)
    at_ms = _BEGIN_NS // NS_PER_MS + 2_000 * every_s - 100 + number
    row = {"id": lost, "price": "1.5", "qty": "2", "quoteQty": "3", "time": at_ms, "isBuyerMaker": True, "isBestMatch": True}
    return "repair-1", "fetched", now_ns, msgspec.json.encode(asked) + b"\n" + msgspec.json.encode([row])


def _frames(symbol: str, number: int, at_ms: int) -> list[dict[str, object]]:
    trade = {"e": "trade", "E": at_ms, "s": symbol, "t": number, "p": "1.5", "q": "2", "T": at_ms, "m": True, "M": True}
    quote = {"u": number, "s": symbol, "b": "1", "B": "2", "a": "3", "A": "4"}
    return [{"stream": f"{symbol.lower()}@{channel}", "data": data} for channel, data in zip(_CHANNELS, (trade, quote), strict=True)]


def _chunk(records: list[Record], offset: int) -> Chunk:
    names, kinds, received, payloads = (list(column) for column in zip(*records, strict=True))
    columns = [["binance"] * len(names), ["spot"] * len(names), names, kinds, received, payloads]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, RAW, strict=True)]
    return Chunk.dense(RAW_TOPIC, 0, offset, pa.RecordBatch.from_arrays(arrays, schema=RAW))


if __name__ == "__main__":
    print(run())
