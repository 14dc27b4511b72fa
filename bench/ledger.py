"""What the ledger costs as it grows old: a year of connections that break, and between any two of them events that are lost."""

from __future__ import annotations

import json
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from bench.machine import table
from tapeline.ledger.absorbing import absorb
from tapeline.ledger.folding import Account
from tapeline.ledger.sqlite import LedgerFile
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import NS_PER_MS, NS_PER_S, RAW, RAW_TOPIC, Chunk

SYMBOLS = [f"C{number:03d}USDT" for number in range(200)]
_CHANNELS = ("trade", "bookTicker")
_BREAKS_A_DAY = 4
_SHOWN = (10, 50, 200, 365, 365 * _BREAKS_A_DAY)
_BEGIN_NS = 1_735_689_600 * NS_PER_S  # 2025-01-01
_BETWEEN_NS = 86_400 * NS_PER_S // _BREAKS_A_DAY
#: The first brings a connection and closes the one before, with the second that one is condensed, the third is one of many.
_FLUSHES = 3
_LATEST = 5

Record = tuple[str, str, int, bytes]


def run() -> str:
    """The section of the report."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = LedgerFile(path)
        account = Account(ledger.load()[0], ledger.pieces)
        lines, offset = [], 0
        took: list[float] = []
        for number in range(1, _SHOWN[-1] + 1):
            for some, now_ns in _connection(number):
                part = _chunk(some, offset)
                offset += part.rows
                absorb(account.facts, part, normalize(part, DECODERS))
                began = time.process_time()
                changes = account.changes(now_ns)
                ledger.save(account.facts, changes, {0: offset})
                account.saved(changes)
                took.append((time.process_time() - began) * 1e3)
            if number in _SHOWN:
                began = time.process_time()
                Account(ledger.load()[0], ledger.pieces)
                start_ms = (time.process_time() - began) * 1e3
                with closing(sqlite3.connect(path)) as db:
                    (intervals,) = db.execute("SELECT count(*) FROM intervals").fetchone()
                size = sum(file.stat().st_size for file in path.parent.iterdir())
                began_answer = time.process_time()
                ledger.intervals((f"{SYMBOLS[0].removesuffix('USDT')}/USDT",))
                answer_ms = (time.process_time() - began_answer) * 1e3
                flush = statistics.median(took[-_FLUSHES * _LATEST + _FLUSHES - 1 :: _FLUSHES])
                mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                times = [f"{flush:,.0f} ms", f"{start_ms:,.0f} ms", f"{answer_ms:,.0f} ms"]
                lines.append([f"{number:,}", *times, f"{mib:,.0f} MiB", f"{size / 1e6:,.0f} MB", f"{intervals:,}"])
                print(lines[-1], file=sys.stderr, flush=True)
    head = ["connections so far", "one flush", "start", "intervals of one symbol", "peak memory", "on disk", "intervals"]
    return (
        f"There are {len(SYMBOLS)} symbols with trades and best quotes. Every day, {_BREAKS_A_DAY} connections break, one after the other."
        " Each break loses events of every symbol. Before a flush, every symbol has new records. The flush computes and commits their"
        f" intervals. The times are CPU time. The time of a flush is the median of {_LATEST} flushes.\n\n" + table(head, lines)
    )


def _connection(number: int) -> list[tuple[list[Record], int]]:
    """The records of one connection, by flush, and when each is."""
    name, begin_ns = f"spot-{number}", _BEGIN_NS + number * _BETWEEN_NS
    topics = [f"{symbol.lower()}@{channel}" for symbol in SYMBOLS for channel in _CHANNELS]
    first_events = [("opened", {"url": "wss://x", "topics": topics}), ("subscribed", {"asked": topics, "missing": []})]
    flushes: list[tuple[list[Record], int]] = []
    for at in range(_FLUSHES):
        now_ns = begin_ns + at * 7_000 * NS_PER_S
        records = [(name, kind, now_ns, json.dumps(detail).encode()) for kind, detail in first_events] if at == 0 else []
        frames = (frame for symbol in SYMBOLS for frame in _frames(symbol, number * 100 + at, now_ns // NS_PER_MS))
        records += [(name, "frame", now_ns + NS_PER_S, json.dumps(frame, separators=(",", ":")).encode()) for frame in frames]
        if at == 0:
            closed = json.dumps({"by": "network", "reason": "reset"}).encode()
            records.append((f"spot-{number - 1}", "closed", begin_ns - NS_PER_S, closed))
        flushes.append((records, now_ns + 2 * NS_PER_S))
    return flushes


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
