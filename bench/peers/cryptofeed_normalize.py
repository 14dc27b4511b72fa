"""Throughput of cryptofeed's Binance spot normalisation on recorded frames, with no network.

The script replays recorded WebSocket frames through cryptofeed's own ``Binance`` feed, from the
text of a frame to the normalised ``Trade`` or ``Ticker`` object in a user callback, and prints one
JSON line with the rate. It needs Python 3.11 or newer and cryptofeed; uvloop is optional.

    python cryptofeed_normalize.py CAPTURE.gz [CAPTURE.gz ...] [--repeats 15]

A capture is gzip text, one frame a line: ``<receive time, ns since the epoch> <frame JSON>``, the
frame being a Binance combined-stream message. Only ``@trade`` and ``@bookTicker`` frames are used.

What is timed: ``await message_handler(msg, conn, timestamp)`` for every frame, one after another
in one coroutine. That covers JSON parsing, dispatch, symbol translation, decimals, the typed object
and an ``async`` callback with an empty body. Reading, decompressing and decoding captures, building
the feed, and the socket read path (``websockets``, ``ConnectionHandler``) are outside the timing.
The median over all passes is the result; the best pass is given too, as the figure least disturbed
by whatever else the machine was doing.

Choices, each in cryptofeed's favour where there was a choice:

* Frames are ``str``, which is what ``websockets`` yields for a text frame.
* No backend is attached, and callbacks are bare coroutine functions, without the ``Callback``
  wrapper. Callbacks are counted in a separate pass first, so the timed ones have nothing to do.
* Symbols come from the captures through ``Symbols.set``, so no exchange information is requested.
* Event loop: uvloop if it can be imported, as ``FeedHandler`` does, unless ``--loop asyncio``.
* The garbage collector keeps its default settings; objects alive before the first timed pass are
  frozen out of its reach.

Trades need a transcription. cryptofeed subscribes to Binance's ``aggTrade`` stream and its handler
knows no ``trade`` event: it logs a warning for each and calls nobody. So every ``@trade`` frame is
relabelled while it is loaded, outside the timing: the stream and event names become ``aggTrade``
and the id key ``t`` becomes ``a``. Prices, quantities, times, flags and field order are untouched,
and the two extra fields of a genuine aggTrade (``f`` and ``l``) are not added. cryptofeed itself is
not modified. The result's ``trade_frames_relabelled`` says how many frames this concerns;
``--channels ticker`` measures frames exactly as received, and ``--raw-trades`` shows the failure.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import gzip
import json
import logging
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from cryptofeed.connection import AsyncConnection
from cryptofeed.defines import SPOT, TICKER, TRADES
from cryptofeed.exchanges import Binance
from cryptofeed.symbols import Symbol, Symbols
from cryptofeed.types import Ticker, Trade

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
OnTrade = Callable[[Trade, float], Awaitable[None]]
OnTicker = Callable[[Ticker, float], Awaitable[None]]
Handler = Callable[[str, AsyncConnection, float], Awaitable[None]]

STREAM_PREFIX = '{"stream":"'
CHANNEL_OF_STREAM = {"trade": TRADES, "bookTicker": TICKER}
QUOTE_ASSETS = ("FDUSD", "USDT", "USDC", "TUSD", "BUSD", "BTC", "ETH", "BNB", "EUR", "TRY")


class Frame(NamedTuple):
    """One message, with the receipt time in seconds that a connection would pass along."""

    text: str
    received: float


class Workload(NamedTuple):
    """The frames to replay, the exchange's names of their instruments, and frames per channel."""

    frames: list[Frame]
    instruments: list[str]
    expected: dict[str, int]


def as_aggregate_trade(text: str) -> str:
    """Relabel a ``trade`` frame as an aggTrade, the only form of trade that cryptofeed reads."""
    for old, new in (
        ('@trade"', '@aggTrade"'),
        ('"e":"trade"', '"e":"aggTrade"'),
        ('"t":', '"a":'),
    ):
        if text.count(old) != 1:
            raise ValueError(f"not a trade frame of the known form (wanted one {old!r}): {text}")
        text = text.replace(old, new)
    return text


def load(captures: Sequence[Path], channels: Sequence[str], relabel_trades: bool) -> Workload:
    """Read the captures into memory, in the given order, keeping only the wanted channels."""
    frames: list[Frame] = []
    instruments: set[str] = set()
    expected = dict.fromkeys(channels, 0)
    for capture in captures:
        with gzip.open(capture, "rt", encoding="utf-8") as lines:
            for line in lines:
                received_ns, _, text = line.rstrip("\n").partition(" ")
                if not text.startswith(STREAM_PREFIX):
                    continue  # a REST snapshot, not a stream message
                stream = text[len(STREAM_PREFIX) : text.index('"', len(STREAM_PREFIX))]
                instrument, _, kind = stream.partition("@")
                channel = CHANNEL_OF_STREAM.get(kind)
                if channel is None or channel not in expected:
                    continue
                if channel == TRADES and relabel_trades:
                    text = as_aggregate_trade(text)
                expected[channel] += 1
                instruments.add(instrument.upper())
                frames.append(Frame(text, int(received_ns) / 1e9))
    return Workload(frames, sorted(instruments), expected)


def install_symbols(instruments: Sequence[str]) -> list[str]:
    """Fill cryptofeed's symbol table in place of a REST answer and return its symbol names."""
    exchange_names: dict[str, str] = {}
    for instrument in instruments:
        quote = next((q for q in QUOTE_ASSETS if instrument.endswith(q) and instrument != q), None)
        if quote is None:
            raise ValueError(f"{instrument!r} ends in no known quote asset")
        base = instrument.removesuffix(quote)
        exchange_names[Symbol(base, quote, type=SPOT).normalized] = instrument
    kinds = dict.fromkeys(exchange_names, SPOT)
    Symbols.set(Binance.id, exchange_names, {"instrument_type": kinds})
    return list(exchange_names)


def build(symbols: Sequence[str], channels: Sequence[str], on_trade: OnTrade, on_ticker: OnTicker) -> tuple[Handler, AsyncConnection]:
    """Build the feed and take from it the handler and connection that it would itself use."""
    feed = Binance(
        config={},  # keeps a configuration named by the environment out
        symbols=list(symbols),
        channels=list(channels),
        callbacks={TRADES: on_trade, TICKER: on_ticker},
    )
    ((connection, _subscribe, handler, _authenticate),) = feed.connect()  # made, never opened
    return handler, connection


async def replay(handler: Handler, connection: AsyncConnection, frames: Sequence[Frame]) -> float:
    """Handle every frame once and return the seconds it took."""
    started = time.perf_counter()
    for text, received in frames:
        await handler(text, connection, received)
    return time.perf_counter() - started


async def count_callbacks(workload: Workload, symbols: Sequence[str], channels: Sequence[str]) -> dict[str, int]:
    """Replay once, untimed, and return how many callbacks each channel received."""
    counts = dict.fromkeys(channels, 0)

    async def on_trade(_trade: Trade, _received: float) -> None:
        counts[TRADES] += 1

    async def on_ticker(_ticker: Ticker, _received: float) -> None:
        counts[TICKER] += 1

    handler, connection = build(symbols, channels, on_trade, on_ticker)
    await replay(handler, connection, workload.frames)
    return counts


async def measure(workload: Workload, symbols: Sequence[str], channels: Sequence[str], repeats: int) -> list[float]:
    """Replay with callbacks that do nothing and return each pass's seconds."""

    async def on_trade(_trade: Trade, _received: float) -> None:
        pass

    async def on_ticker(_ticker: Ticker, _received: float) -> None:
        pass

    handler, connection = build(symbols, channels, on_trade, on_ticker)
    gc.collect()
    gc.freeze()
    return [await replay(handler, connection, workload.frames) for _ in range(repeats)]


def choose_loop(wanted: str) -> tuple[str, LoopFactory]:
    """Resolve ``auto``, ``uvloop`` or ``asyncio`` to a loop's name and its factory."""
    if wanted != "asyncio":
        try:
            import uvloop
        except ImportError:
            if wanted == "uvloop":
                raise
        else:
            return "uvloop", uvloop.new_event_loop
    return "asyncio", asyncio.new_event_loop


def positive(text: str) -> int:
    """Parse a whole number of at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure cryptofeed's Binance spot normalisation on recorded frames.")
    parser.add_argument("captures", nargs="+", type=Path, help="gzip captures to replay")
    parser.add_argument("--repeats", type=positive, default=15, help="timed passes (default 15)")
    parser.add_argument("--channels", nargs="+", choices=(TRADES, TICKER), default=[TRADES, TICKER])
    parser.add_argument("--loop", choices=("auto", "uvloop", "asyncio"), default="auto")
    parser.add_argument(
        "--raw-trades",
        action="store_true",
        help="leave @trade frames as received; cryptofeed drops them, so the count check fails",
    )
    return parser.parse_args()


def main() -> int:
    """Check the callback counts, time the passes, print the result as one JSON line."""
    arguments = parse_arguments()
    channels = list(dict.fromkeys(arguments.channels))
    logging.getLogger("feedhandler").addHandler(logging.NullHandler())

    workload = load(arguments.captures, channels, relabel_trades=not arguments.raw_trades)
    if not workload.frames:
        print("no frame of the wanted channels in the captures", file=sys.stderr)
        return 1
    symbols = install_symbols(workload.instruments)
    loop_name, loop_factory = choose_loop(arguments.loop)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        counts = runner.run(count_callbacks(workload, symbols, channels))
        if counts != workload.expected:
            print(f"callbacks {counts} but frames {workload.expected}", file=sys.stderr)
            return 1
        seconds = runner.run(measure(workload, symbols, channels, arguments.repeats))

    median = statistics.median(seconds)
    ticks = sum(counts.values())
    result = {
        "library": "cryptofeed",
        "version": version("cryptofeed"),
        "frames": len(workload.frames),
        "ticks": ticks,
        "seconds_median": round(median, 6),
        "ticks_per_s": round(ticks / median),
        "seconds_best": round(min(seconds), 6),
        "ticks_per_s_best": round(ticks / min(seconds)),
        "passes": len(seconds),
        "callbacks": counts,
        "trade_frames_relabelled": 0 if arguments.raw_trades else workload.expected.get(TRADES, 0),
        "python": sys.version.split()[0],
        "event_loop": loop_name,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
