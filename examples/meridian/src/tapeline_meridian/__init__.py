"""Meridian, an exchange for precious metals that does not exist, as a provider of Tapeline."""

from __future__ import annotations

from typing import Final

from tapeline.providers.history import History
from tapeline.providers.provider import Feed, Provider
from tapeline_meridian import history, session
from tapeline_meridian.normalize import CHANNELS, decode

PROVIDER: Final = Provider(
    name="meridian",
    feeds={"metals": Feed(channels=CHANNELS["metals"], stream_url=session.STREAM_URL, history_url=session.HISTORY_URL)},
    decode=decode,
    plans=session.plans,
    subscription=session.subscription,
    name_problem=session.name_problem,
    symbol_of=session.symbol_of,
    secrets={"key": ("TAPELINE_MERIDIAN_KEY",)},
    options=session.Options,
    passing=frozenset({418}),
    history=History(
        weight_a_minute=history.WEIGHT_A_MINUTE,
        channels=history.CHANNELS,
        headers=history.headers,
        settled_ns=history.settled_ns,
        first=history.first,
        page=history.page,
    ),
)
