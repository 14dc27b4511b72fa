"""Inserting into PostgreSQL: the store's own writes beside psql's COPY of the same rows into the same table, in turns."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
from services import postgres
from services.postgres import PostgresServer

from bench.machine import scratch, table
from tapeline.providers.registry import identity
from tapeline.records import NS_PER_MS, NS_PER_S, TICKS, TICKS_TOPIC, Chunk
from tapeline.secret import NO_SECRET
from tapeline.stores.postgres import Postgres

_ROUNDS = 5
_ROWS = 1_000_000
_FLUSH = 250_000
_SYMBOLS = 200
_START = 1_710_504_000 * NS_PER_S
#: A server with the settings of a small real one; the tests' has less memory.
_SETTINGS = ("shared_buffers = '1GB'", "max_wal_size = '8GB'", "checkpoint_timeout = '15min'")
_UNIQUE = {
    "without a unique index": "",
    "with a unique index on (symbol, sequence, ts)": "CREATE UNIQUE INDEX ticks_once ON ticks (symbol, sequence, ts)",
}


def run() -> str:
    """The section of the report."""
    with scratch() as folder, PostgresServer(folder / "server") as server:
        for setting in _SETTINGS:
            server.ask(f"ALTER SYSTEM SET {setting}")
        server.restart()
        results = {name: [_round(server, folder, extra, trades) for _ in range(_ROUNDS)] for trades, name, extra in _cases()}
    rows = [
        [name, *(f"{statistics.median(r[part] for r in rounds):,.0f}" for part in (0, 1)), _share(rounds)]
        for name, rounds in results.items()
    ]
    return (
        f"The store writes {_ROWS:,} ticks of {_SYMBOLS} symbols in flushes of {_FLUSH:,}. The figures are medians of {_ROUNDS} rounds,"
        f" with PostgreSQL {postgres.installed().version} and durable commits. *psql COPY* writes the same rows into the same table with"
        " psql's `\\copy`, in binary, one COPY for each flush. Tapeline's tables have no unique index.\n\n"
        + table(["rows/s into `ticks`", "Tapeline", "psql COPY", "Tapeline / COPY"], rows)
    )


def _cases() -> Iterator[tuple[bool, str, str]]:
    for name, extra in _UNIQUE.items():
        yield True, f"trades with rising ids, {name}", extra
    yield False, "quotes without an id, without a unique index", ""


def _share(rounds: Sequence[tuple[float, float]]) -> str:
    return f"{statistics.median(ours / theirs for ours, theirs in rounds):.2f}"


def _round(server: PostgresServer, folder: Path, extra: str, trades: bool) -> tuple[float, float]:
    """Rows a second of the store, and of psql."""
    server.ask("DROP DATABASE IF EXISTS bench WITH (FORCE)")
    server.ask("CREATE DATABASE bench")
    url = server.url.rpartition("/")[0] + "/bench"
    with closing(Postgres(url, NO_SECRET, identity)) as store:
        chunks = [Chunk.dense(TICKS_TOPIC, 0, first, _ticks(first, trades)) for first in range(0, _ROWS + 1_000, _FLUSH)]
        store.write(Chunk.dense(TICKS_TOPIC, 0, 0, chunks[0].batch.slice(0, 1_000)))  # tables, parts, connection
        if extra:
            _psql(url, extra)
        began = time.perf_counter()
        kept = sum(store.write(chunk).rows for chunk in chunks)
        ours = kept / (time.perf_counter() - began)
    files = []
    for number in range(len(chunks)):
        file = folder / f"part-{number}"
        low, high = number * _FLUSH, (number + 1) * _FLUSH
        part = f"SELECT * FROM ticks WHERE raw_offset >= {low} AND raw_offset < {high} ORDER BY symbol, ts_ns"
        _psql(url, f"\\copy ({part}) TO '{file}' (FORMAT binary)")
        files.append(file)
    _psql(url, "TRUNCATE ticks")
    _psql(url, "CHECKPOINT")
    began = time.perf_counter()
    _psql(url, *[f"\\copy ticks FROM '{file}' (FORMAT binary)" for file in files])
    return ours, (kept + 1_000) / (time.perf_counter() - began)


def _ticks(first: int, trades: bool) -> pa.RecordBatch:
    """A flush, as a busy feed gives it: prices that walk, times that rise, symbols in turn."""
    count = min(_FLUSH, _ROWS + 1_000 - first)
    numbers = np.arange(first, first + count)
    names = pa.array([f"S{number:03d}/USDT" for number in range(_SYMBOLS)])
    ts = _START + numbers * NS_PER_MS // 10
    price = np.round(100 + np.cumsum(np.random.default_rng(first).normal(0, 0.01, count)), 2)
    nothing = pa.nulls(count, pa.float64())
    columns = {
        "symbol": pa.DictionaryArray.from_arrays(pa.array(numbers % _SYMBOLS, pa.int32()), names).cast(pa.string()),
        "ts_ns": pa.array(ts),
        "bid": nothing if trades else pa.array(price),
        "ask": nothing if trades else pa.array(price + 0.01),
        "bid_size": nothing if trades else pa.array(price),
        "ask_size": nothing if trades else pa.array(price),
        "last": pa.array(price) if trades else nothing,
        "volume": pa.array(price) if trades else nothing,
        "sequence": pa.array(numbers),
        "trade_id": pa.array(numbers).cast(pa.string()) if trades else pa.nulls(count, pa.string()),
        "received_ns": pa.array(ts + 5 * NS_PER_MS),
        "latency_ns": pa.array(np.full(count, 5 * NS_PER_MS)),
        "raw_partition": pa.array(np.zeros(count, np.int32)),
        "raw_offset": pa.array(numbers),
        "raw_index": pa.array(np.zeros(count, np.int32)),
    }
    texts = {"kind": "trade", "side": "buy", "exchange": "binance", "provider": "binance", "feed": "spot", "channel": "trade"}
    if not trades:
        texts |= {"kind": "quote", "side": "", "exchange": "XNAS", "provider": "polygon", "feed": "stocks", "channel": "Q"}
    constants = {name: pa.array([text or None]).take(pa.array(np.zeros(count, np.int32))) for name, text in texts.items()}
    constants["conditions"] = pa.nulls(count, pa.string())
    return pa.RecordBatch.from_arrays([(columns | constants)[name].cast(TICKS.field(name).type) for name in TICKS.names], schema=TICKS)


def _psql(url: str, *commands: str) -> None:
    flags = [flag for command in commands for flag in ("-c", command)]
    subprocess.run([postgres.installed().where / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, *flags], check=True)


if __name__ == "__main__":
    print(run())
