"""Uses the native core where it is installed. It decodes the frames that it understands, and leaves the others to Python's decoders.

The core is the package `tapeline-native`, built from the folder `native/`. A frame is decoded in the core only if every byte of it is what
the core expects, and if all of its events keep the rules in `rules`. So the decoders in Python stay the definition of what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import pyarrow as pa

from tapeline.providers.events import Columns, Decode, Events, Frames, Read
from tapeline.records import BARS_TOPIC, TICKS_TOPIC, Topic

if TYPE_CHECKING:
    import tapeline_native

#: Gives the canonical symbol for a provider's name of it, with the names that have priority; None if there is none.
Canonical: TypeAlias = Callable[[str, Mapping[str, str]], "str | None"]
#: What the core must offer. It is a package of its own, so another one than ours may be installed.
_INTERFACE: Final = 1
_SENT: Final = pa.field("sent_ns", pa.int64())
_TYPES: Final[Mapping[Topic, Mapping[str, pa.DataType]]] = {
    TICKS_TOPIC: {field.name: field.type for field in TICKS_TOPIC.schema},
    BARS_TOPIC: {field.name: field.type for field in (*BARS_TOPIC.schema, _SENT)},
}
_NO_OFFSETS: Final = pa.py_buffer(bytes(4))


@dataclass(frozen=True, slots=True)
class NativeDecoder:
    """The decoder of one feed in the native core."""

    decoder: tapeline_native.Decoder
    #: None: the names in the events are canonical.
    canonical: Canonical | None = None


#: Makes the decoder of a feed from the class that the core has. None: the core does not know the feed.
MakeNative: TypeAlias = Callable[["type[tapeline_native.Decoder]", str], "NativeDecoder | None"]


@cache
def version() -> str:
    """Return the version of the native core that is in use; empty where none is installed that fits this version of Tapeline."""
    try:
        import tapeline_native
    except ImportError:
        return ""
    return tapeline_native.__version__ if tapeline_native.INTERFACE == _INTERFACE else ""


def in_use() -> str:
    """Return what decodes the frames in this environment, in words."""
    return f"native core {version()}" if version() else "Python"


def with_core(decode: Decode, make: MakeNative | None) -> Decode:
    """Return a function that decodes with the native core what it understands, and all else with `decode`."""
    if make is None or not version():
        return decode
    import tapeline_native

    made = cache(partial(make, tapeline_native.Decoder))

    def both(feed: str, frames: Frames, events: Events) -> None:
        native = made(feed)
        rest = frames if native is None else _left(native, frames, events)
        if len(rest):
            decode(feed, rest, events)

    return both


def _left(native: NativeDecoder, frames: Frames, events: Events) -> Frames:
    """Add the events of the frames that the core understands. Return the other frames, and the pages of a history among them."""
    payload, rows = frames.payload, frames.rows
    if frames.pages:
        every = np.arange(len(payload)) if rows is None else rows
        rows = every[~np.isin(every, list(frames.pages))]
    _, offsets, data = payload.buffers()
    ticks, bars, left = native.decoder.decode(
        offsets or _NO_OFFSETS,
        data or b"",
        payload.offset,
        len(payload),
        None if rows is None else rows.data,
        None if (canonical := native.canonical) is None else lambda name: canonical(name, events.names),
    )
    for topic, (place, columns) in ((TICKS_TOPIC, ticks), (BARS_TOPIC, bars)):
        if place:
            where = np.frombuffer(place, np.int64)
            events.seen += len(where)
            events.reads.append(Read(topic, where, _arrays(topic, len(where), columns)))
    others = np.frombuffer(left, np.int64)
    if frames.pages:
        others = np.sort(np.concatenate([others, np.fromiter(frames.pages, np.int64)]))
    return replace(frames, rows=others)


def _arrays(topic: Topic, rows: int, columns: Mapping[str, tapeline_native.Column]) -> Columns:
    types, made = _TYPES[topic], {}
    for name, (nulls, valid, *values) in columns.items():
        buffers = [None if buffer is None else pa.py_buffer(buffer) for buffer in (valid, *values)]
        made[name] = pa.Array.from_buffers(types[name], rows, buffers if values[1] is not None else buffers[:2], nulls)
    return made
