"""How an exchange itself splits its symbols into base and quote: as the configuration says, else as its own list does, a raw record.

A provider's table splits most of them right; what is kept here is the rest. The list is a record in every partition that has the
exchange's frames, before them, so a replay needs no network. Who meets it notes it beside the stream, for who reads on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.events import UNREADABLE, Names
from tapeline.providers.registry import PROVIDERS
from tapeline.records import Chunk
from tapeline.streams import Stream

#: The kind of raw record that holds a list, and under which name it is noted.
LISTED: Final = "listed"
_KIND: Final = pa.scalar(LISTED)


class KnownNames:
    """What is known at the moment. Nothing is asked before the first chunk."""

    def __init__(self, stream: Stream, configured: Names) -> None:
        self._stream, self._configured = stream, configured
        self._listed: dict[tuple[str, str], dict[str, str]] = {}
        self._next: dict[int, int] = {}

    def of(self, chunk: Chunk) -> Names:
        """The names in force for a chunk of raw records: a list in it counts for all of it. Raises Unavailable."""
        if any(self._next.get(partition) != position for partition, position in chunk.begin.items()):
            self._listed = noted(self._stream)  # another has read in between, and may have met a list there
        self._next |= chunk.next
        if pc.any(pc.equal(chunk.batch["kind"], _KIND)).as_py():
            self._learn(chunk.batch.filter(pc.equal(chunk.batch["kind"], _KIND)))
        return merged(self._listed, self._configured)

    def _learn(self, records: pa.RecordBatch) -> None:
        before = msgspec.json.encode(_texts(self._listed))
        for provider, feed, payload in zip(*(records[name].to_pylist() for name in ("provider", "feed", "payload")), strict=True):
            try:
                told = msgspec.json.decode(payload, type=_List).names
            except UNREADABLE:
                continue  # the normalizer keeps it as a notice, for people to see
            known = PROVIDERS.get(provider)
            if known is not None:
                found = self._listed.setdefault((provider, feed), {})
                found |= {name: symbol for name, symbol in told.items() if symbol.replace("/", "") == name}
                self._listed[provider, feed] = {name: symbol for name, symbol in found.items() if known.symbol_of(feed, name) != symbol}
        now = msgspec.json.encode(_texts(self._listed))
        if now != before:
            self._stream.note(LISTED, now.decode())


class _List(msgspec.Struct):
    #: The exchange's own name of each configured symbol to the canonical one.
    names: dict[str, str] = {}


def noted(stream: Stream) -> dict[tuple[str, str], dict[str, str]]:
    """What lists so far have said, as far as the provider's table says otherwise. Raises Unavailable."""
    text = stream.noted(LISTED)
    found = msgspec.json.decode(text, type=dict[str, dict[str, str]]) if text else {}
    return {(key.partition(" ")[0], key.partition(" ")[2]): names for key, names in found.items()}


def merged(listed: Names, configured: Names) -> Names:
    """What a person has configured counts before what a list says."""
    return {feed: {**listed.get(feed, {}), **configured.get(feed, {})} for feed in {*listed, *configured}}


def _texts(names: Names) -> dict[str, Mapping[str, str]]:
    return {" ".join(feed): dict(sorted(some.items())) for feed, some in sorted(names.items()) if some}
