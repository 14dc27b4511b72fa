"""The provider `alpaca`: its wire format, its events, its session and its history."""

from __future__ import annotations

from typing import Final

from tapeline.providers.alpaca import history, instruments, session
from tapeline.providers.alpaca.normalize import CHANNELS, decode, native
from tapeline.providers.history import History
from tapeline.providers.instruments import Instruments
from tapeline.providers.provider import Feed, Provider

#: The feeds that bring data at all times. All others are of US stocks and options, which share the holidays and half days of New York.
_NEVER_CLOSED: Final = frozenset({"test", "crypto"})

PROVIDER: Final = Provider(
    name="alpaca",
    feeds={
        feed: Feed(
            channels=channels,
            stream_url=session.STREAM_URL,
            history_url=session.HISTORY_URL,
            calendar="" if feed in _NEVER_CLOSED else "XNYS",
            delay_ns=history.DELAY_NS if feed == "delayed_sip" else 0,
        )
        for feed, channels in CHANNELS.items()
    },
    decode=decode,
    native=native,
    plans=session.plans,
    subscription=session.subscription,
    name_problem=session.name_problem,
    symbol_of=session.symbol_of,
    secrets={"key": ("TAPELINE_ALPACA_KEY", "APCA_API_KEY_ID"), "secret": ("TAPELINE_ALPACA_SECRET", "APCA_API_SECRET_KEY")},
    options=session.Options,
    one_connection=True,
    arrays=True,
    intervals=("1m", "1d"),
    history=History(
        weight_a_minute=history.WEIGHT_A_MINUTE,
        channels=history.CHANNELS,
        headers=history.headers,
        settled_ns=history.settled_ns,
        first=history.first,
        page=history.page,
    ),
    instruments=Instruments(
        url=instruments.URL,
        weight_a_minute=history.WEIGHT_A_MINUTE,
        headers=history.headers,
        markets=instruments.MARKETS,
        first=instruments.first,
        page=instruments.page,
        advice=instruments.ADVICE,
    ),
)
