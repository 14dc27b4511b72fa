"""The provider `binance` (spot): its wire format, its events, its session, its history and its files. It needs no key."""

from __future__ import annotations

from typing import Final

from tapeline.providers.binance import files, history, instruments, session
from tapeline.providers.binance.normalize import CHANNELS, decode, native
from tapeline.providers.binance.symbols import name_problem, symbol_of
from tapeline.providers.binance.wire import INTERVALS
from tapeline.providers.history import FileHistory, History
from tapeline.providers.instruments import Instruments
from tapeline.providers.provider import Feed, Files, Provider

PROVIDER: Final = Provider(
    name="binance",
    feeds={
        feed: Feed(channels=channels, stream_url=session.STREAM_URL, second_url=session.SECOND_URL, history_url=session.HISTORY_URL)
        for feed, channels in CHANNELS.items()
    },
    decode=decode,
    native=native,
    plans=session.plans,
    subscription=session.subscription,
    name_problem=name_problem,
    symbol_of=symbol_of,
    options=session.Options,
    splits_names=True,
    passing=session.PASSING,
    intervals=INTERVALS,
    history=History(
        weight_a_minute=history.WEIGHT_A_MINUTE,
        channels=history.CHANNELS,
        headers=history.headers,
        settled_ns=history.settled_ns,
        first=history.first,
        page=history.page,
    ),
    files=Files(
        url=session.ARCHIVE_URL,
        history=FileHistory(
            weight_a_minute=files.WEIGHT_A_MINUTE,
            channels=history.CHANNELS,
            headers=files.headers,
            settled_ns=files.settled_ns,
            first=files.first,
            page=files.page,
            parts=files.parts,
        ),
    ),
    instruments=Instruments(
        url=session.HISTORY_URL,
        weight_a_minute=history.WEIGHT_A_MINUTE,
        headers=history.headers,
        markets=instruments.MARKETS,
        first=instruments.first,
        page=instruments.page,
    ),
    sample=(("BTCUSDT", "ETHUSDT", "SOLUSDT"), ("trade", "bookTicker")),
)
