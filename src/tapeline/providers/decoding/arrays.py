"""Decodes frames that are arrays of events of mixed types, each type with its tag. Polygon.io and Alpaca send such frames.

The whole array is decoded at once into tagged structs. If that fails, each element is decoded alone. So one bad event becomes one reject,
and the other events of the frame are not affected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tapeline.providers.decoding import whole_numbers
from tapeline.providers.events import UNREADABLE, Channel, Events, Frames, Notice, Reject

_ELEMENTS: Final[dict[str, Any]] = {
    "json": msgspec.json.Decoder(list[msgspec.Raw]),
    "msgpack": msgspec.msgpack.Decoder(list[msgspec.Raw]),
}
#: Turns a control event (the struct, its bytes as JSON text) into a notice.
ToNotice = Callable[[Any, str], Notice]
#: Gives the market event that a control event brings in addition to its notice; None if it brings none.
ToMarket = Callable[[Any], msgspec.Struct | None]


@dataclass(frozen=True, slots=True)
class _Codec:
    name: str
    many: Callable[[bytes], list[Any]]
    one: Callable[[bytes], Any]


class ArrayDecoder:
    """Sorts the events of array frames into channels and notices.

    `market` maps each struct type of a market event to its channel. `control` maps the other struct types to the function that makes the
    notice. `additional` maps some of these to the function that gives the market event which they bring in addition. `binary_text` turns a
    MessagePack event into JSON text."""

    def __init__(
        self,
        tag: str,
        market: Mapping[type[msgspec.Struct], Channel],
        control: Mapping[type[msgspec.Struct], ToNotice],
        binary_text: Callable[[bytes], str] = bytes.decode,
        additional: Mapping[type[msgspec.Struct], ToMarket] | None = None,
    ) -> None:
        self._tag = tag
        self._market = dict(market)
        self._control = dict(control)
        self._binary_text = binary_text
        self._additional = dict(additional or {})
        union: Any = None
        for event in (*market, *control):
            union = event if union is None else union | event
        many, one = (whole_numbers.reading(msgspec.json.Decoder(of).decode) for of in (list[union], union))
        self._json = _Codec("json", many, one)
        self._msgpack = _Codec("msgpack", msgspec.msgpack.Decoder(list[union]).decode, msgspec.msgpack.Decoder(union).decode)
        self._tag_of: Any = msgspec.defstruct("Tag", [("tag", str, "")], rename={"tag": tag})

    def __call__(self, frames: Frames, events: Events) -> None:
        rows = {event: events.rows(channel) for event, channel in self._market.items()}
        for row, frame in frames:
            codec = self._msgpack if frame[:1] > b"\x7f" else self._json
            try:
                decoded = codec.many(frame)
            except UNREADABLE:
                self._one_by_one(codec, row, frame, events)
                continue
            events.seen += len(decoded)
            elements: list[msgspec.Raw] = []
            for index, event in enumerate(decoded):
                place = rows.get(type(event))
                if place is None:
                    elements = elements or _ELEMENTS[codec.name].decode(frame)
                    self._notice(codec, event, row, index, bytes(elements[index]), events)
                else:
                    place.events.append(event)
                    place.row.append(row)
                    place.index.append(index)
        for event, channel in self._market.items():
            if not rows[event].events:
                events.channels.pop(channel, None)

    def _one_by_one(self, codec: _Codec, row: int, frame: bytes, events: Events) -> None:
        try:
            elements = _ELEMENTS[codec.name].decode(frame)
        except UNREADABLE as error:
            events.seen += 1
            events.rejects.add(Reject(f"not an array of events in {codec.name}: {error}", frame), row, 0)
            return
        events.seen += len(elements)
        for index, raw in enumerate(elements):
            payload = bytes(raw)
            try:
                event = codec.one(payload)
            except UNREADABLE as error:
                events.rejects.add(Reject(self._reason(codec, payload, error), payload), row, index)
                continue
            channel = self._market.get(type(event))
            if channel is None:
                self._notice(codec, event, row, index, payload, events)
            else:
                events.rows(channel).add(event, row, index)

    def _reason(self, codec: _Codec, payload: bytes, error: Exception) -> str:
        """The reason for a reject. It names the event type if the type is unknown."""
        decode = msgspec.msgpack.decode if codec is self._msgpack else msgspec.json.decode
        try:
            tag = decode(payload, type=self._tag_of).tag
        except UNREADABLE:
            return f"{codec.name}: {error}"
        events: tuple[Any, ...] = (*self._market, *self._control)
        known = {event.__struct_config__.tag for event in events}
        return f"event type {tag!r}: {error}" if tag in known else f"unknown event type ({tag!r})"

    def _notice(self, codec: _Codec, event: Any, row: int, index: int, payload: bytes, events: Events) -> None:
        try:
            text = payload.decode() if codec is self._json else self._binary_text(payload)
        except UNREADABLE as error:  # the unreadable field is one that the struct does not have, so the struct was decoded
            events.rejects.add(Reject(f"{codec.name}: {error}", payload), row, index)
            return
        events.notices.add(self._control[type(event)](event, text), row, index)
        to_market = self._additional.get(type(event))
        brought = to_market(event) if to_market is not None else None
        if brought is not None:
            events.seen += 1
            events.rows(self._market[type(brought)]).add(brought, row, index)
