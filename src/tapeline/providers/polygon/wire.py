"""Polygon.io's market and status events as they are on the wire, for stocks, options and crypto.

Facts: Polygon.io's WebSocket documentation.
"""

from __future__ import annotations

import msgspec

from tapeline.providers.events import Int64


class Event(msgspec.Struct, tag_field="ev", gc=False):
    """The base of all events. Every event carries its type in `ev`."""


class Status(Event, tag="status"):
    """`{"ev":"status","status":"auth_success","message":"authenticated"}`"""

    status: str = ""
    message: str = ""


class Trade(Event, tag="T"):
    """`{"ev":"T","sym":"MSFT","x":4,"i":"12345","z":3,"p":114.125,"s":100,"ds":"100.0","c":[0,12],"t":1536036818784,"q":3681328,
    "trfi":201,"trft":1536036818780}`. `t` is in ms. Options have no `i` and no `z`."""

    sym: str
    x: int
    p: float
    s: float
    t: Int64
    q: Int64 | None = None
    i: str | None = None
    ds: str | None = None  # the size with its fraction; `s` has no fraction
    c: list[int] | None = None
    trfi: int | None = None


class Quote(Event, tag="Q"):
    """`{"ev":"Q","sym":"MSFT","bx":4,"bp":114.125,"bs":100,"ax":7,"ap":114.128,"as":160,"c":0,"i":[604],"t":1536036818784,
    "q":50385480,"z":3}`. Sizes are in shares, `t` is in ms."""

    sym: str
    t: Int64
    bx: int | None = None
    bp: float | None = None
    bs: float | None = None
    ax: int | None = None
    ap: float | None = None
    as_: float | None = msgspec.field(default=None, name="as")
    c: int | list[int] | None = None
    q: Int64 | None = None


class Bar(Event, tag="AM"):
    """`{"ev":"AM","sym":"GTE","v":4110,"vw":0.4488,"o":0.4488,"c":0.4486,"h":0.4489,"l":0.4486,"z":685,"s":1610144640000,
    "e":1610144700000}`. `s` is the window's start and `e` its end, in ms."""

    sym: str
    s: Int64
    o: float
    h: float
    l: float  # noqa: E741 the wire's own name
    c: float
    v: float
    vw: float | None = None
    dv: str | None = None


class SecondBar(Bar, tag="A"):
    """`{"ev":"A",..}` with the fields of `Bar`. The window is one second."""


class PastBar(Bar, tag="past"):
    """A bar of the provider's history, which no socket sends. It has the count of trades, and says whether it is final."""

    n: int | None = None
    final: bool = False


class CryptoTrade(Event, tag="XT"):
    """`{"ev":"XT","pair":"BTC-USD","p":33021.9,"t":1610462007425,"s":0.01616617,"c":[2],"i":"14272084","x":3,"r":1610462007576}`"""

    pair: str
    p: float
    s: float
    t: Int64
    x: int
    i: str | int | None = None
    c: list[int] | int | None = None


class CryptoQuote(Event, tag="XQ"):
    """`{"ev":"XQ","pair":"BTC-USD","bp":33052.79,"bs":0.48,"ap":33073.19,"as":0.601,"t":1610462411115,"x":1,"r":1610462411128}`"""

    pair: str
    t: Int64
    x: int
    bp: float | None = None
    bs: float | None = None
    ap: float | None = None
    as_: float | None = msgspec.field(default=None, name="as")


class CryptoBar(Event, tag="XA"):
    """`{"ev":"XA","pair":"BCD-USD","v":951.6112,"vw":0.7756,"z":73,"o":0.772,"c":0.784,"h":0.784,"l":0.771,"s":..,"e":..}`"""

    pair: str
    s: Int64
    o: float
    h: float
    l: float  # noqa: E741 the wire's own name
    c: float
    v: float
    vw: float | None = None
    dv: str | None = None


class CryptoSecondBar(CryptoBar, tag="XAS"):
    """`{"ev":"XAS",..}` with the fields of `CryptoBar`. The window is one second."""
