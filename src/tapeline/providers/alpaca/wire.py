"""Alpaca's market events as they are on the wire. The same structs read JSON and MessagePack.

Facts: Alpaca's real-time data documentation. Every event carries its type in `T`. A time is RFC 3339 text in JSON, and a Timestamp
extension in MessagePack.
"""

from __future__ import annotations

import msgspec
from msgspec.msgpack import Ext

from tapeline.providers.events import Int64

Time = str | Ext


class Event(msgspec.Struct, tag_field="T", gc=False):
    """The base of all events. Every event carries its type in `T`."""


class Trade(Event, tag="t"):
    """`{"T":"t","S":"AAPL","i":96921,"x":"D","p":126.55,"s":1,"c":["@","I"],"t":"2021-02-22T15:51:44.208Z","z":"C"}`.

    Options: `c` is one text, and there is no `i`. Crypto: `tks` is the taker's side, and there is no `x`."""

    S: str
    t: Time
    p: float
    s: float
    x: str | None = None
    i: int | None = None
    c: list[str] | str | None = None
    tks: str | None = None


class Quote(Event, tag="q"):
    """`{"T":"q","S":"AMD","bx":"U","bp":87.66,"bs":100,"ax":"Q","ap":87.68,"as":400,"c":["R"],"z":"C","t":"2021-02-22T15:51:45.3Z"}`"""

    S: str
    t: Time
    bp: float | None = None
    bs: float | None = None
    ap: float | None = None
    as_: float | None = msgspec.field(default=None, name="as")
    bx: str | None = None
    ax: str | None = None
    c: list[str] | str | None = None


class Bar(Event, tag="b"):
    """`{"T":"b","S":"SPY","o":388.985,"h":389.13,"l":388.975,"c":389.12,"v":49378,"n":461,"vw":389.062639,"t":"2021-02-22T19:15:00Z"}`"""

    S: str
    t: Time
    o: float
    h: float
    l: float  # noqa: E741 the wire's own name
    c: float
    v: float
    n: Int64 | None = None
    vw: float | None = None


class UpdatedBar(Bar, tag="u"):
    """A bar that will not be revised again."""


class DailyBar(Bar, tag="d"):
    """A bar of the current day up to now."""
