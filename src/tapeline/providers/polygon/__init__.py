"""The provider `polygon` (Polygon.io, now Massive): its wire format, its events, its session, its history and its files."""

from __future__ import annotations

from typing import Final

from tapeline.providers.history import FileHistory, History
from tapeline.providers.instruments import Instruments
from tapeline.providers.polygon import files, history, instruments, session
from tapeline.providers.polygon.normalize import CHANNELS, decode, native
from tapeline.providers.provider import Feed, Files, Provider

PROVIDER: Final = Provider(
    name="polygon",
    feeds={
        feed: Feed(
            channels=channels,
            stream_url=session.STREAM_URL,
            history_url=session.HISTORY_URL,
            # US stocks and options share the holidays and half days of New York.
            calendar="" if feed == "crypto" else "XNYS",
            delayed_urls=dict.fromkeys(session.DELAYED_URLS, session.DELAY_NS),
        )
        for feed, channels in CHANNELS.items()
    },
    decode=decode,
    native=native,
    plans=session.plans,
    subscription=session.subscription,
    name_problem=session.name_problem,
    symbol_of=session.symbol_of,
    secrets={"key": ("TAPELINE_POLYGON_KEY", "MASSIVE_API_KEY", "POLYGON_API_KEY")},
    one_connection=True,
    arrays=True,
    intervals=("1s", "1m"),
    history=History(
        weight_a_minute=history.WEIGHT_A_MINUTE,
        channels=history.CHANNELS,
        headers=history.headers,
        settled_ns=history.settled_ns,
        first=history.first,
        page=history.page,
    ),
    files=Files(
        url=session.FILES_URL,
        history=FileHistory(
            weight_a_minute=history.WEIGHT_A_MINUTE,
            channels=files.CHANNELS,
            headers=files.headers,
            settled_ns=history.settled_ns,
            first=files.first,
            page=files.page,
            parts=files.parts,
        ),
        bucket=session.FILES_BUCKET,
        secrets=("TAPELINE_POLYGON_FILES_KEY", "TAPELINE_POLYGON_FILES_SECRET"),
        ticker=files.ticker,
        moment=files.moment,
    ),
    instruments=Instruments(
        url=session.HISTORY_URL,
        weight_a_minute=history.WEIGHT_A_MINUTE,
        headers=history.headers,
        markets=instruments.MARKETS,
        first=instruments.first,
        page=instruments.page,
    ),
)
