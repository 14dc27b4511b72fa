"""Splits an exchange's symbols into base and quote: by the configuration first, then by the exchange's own symbol list.

The provider's built-in table splits most symbols correctly; this module keeps only the exceptions. The symbol list is a raw record. It lies
before the exchange's frames in every partition that has them, so a replay needs no network. The stage that reads the list stores it as a
note beside the stream, for readers that start behind the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.events import UNREADABLE, Names
from tapeline.providers.registry import PROVIDERS
from tapeline.records import Chunk, has_kind
from tapeline.streams import Stream

#: The kind of the raw records that hold a symbol list, and the name of the note in the stream.
LISTED: Final = "listed"


class KnownNames:
    """The symbol names that are known so far. It does not query the stream before the first chunk."""

    def __init__(self, stream: Stream, configured: Names) -> None:
        self._stream, self._configured = stream, configured
        self._listed: dict[tuple[str, str], dict[str, str]] = {}
        self._next: dict[int, int] = {}

    def of(self, chunk: Chunk) -> Names:
        """The names that apply to a chunk of raw records. A list inside the chunk applies to the whole chunk.

        Raises Unavailable when the stream's note cannot be read or written."""
        if any(self._next.get(partition) != position for partition, position in chunk.begin.items()):
            self._listed = noted(self._stream)  # another process has read in between and may have found a list
        self._next |= chunk.next
        if has_kind(chunk.batch, LISTED):
            self._learn(chunk.batch.filter(pc.equal(chunk.batch["kind"], LISTED)))
        return merged(self._listed, self._configured)

    def _learn(self, records: pa.RecordBatch) -> None:
        for provider, feed, payload in zip(*(records[name].to_pylist() for name in ("provider", "feed", "payload")), strict=True):
            try:
                listed = msgspec.json.decode(payload, type=_List).names
            except UNREADABLE:
                continue  # the normalizer reports it as a notice
            known = PROVIDERS.get(provider)
            if known is not None:
                names = self._listed.setdefault((provider, feed), {})
                names |= {name: symbol for name, symbol in listed.items() if symbol.replace("/", "") == name}
                self._listed[provider, feed] = {name: symbol for name, symbol in names.items() if known.symbol_of(feed, name) != symbol}
        # Also where nothing is new: Kafka forgets a note after a week, so each start of ingest renews it.
        self._stream.note(LISTED, msgspec.json.encode(_texts(self._listed)).decode())


class _List(msgspec.Struct):
    #: The exchange's name of each configured symbol -> its canonical name.
    names: dict[str, str] = {}


def noted(stream: Stream) -> dict[tuple[str, str], dict[str, str]]:
    """The names from the lists so far, where they differ from the provider's table: (provider, feed) -> {exchange name: canonical name}.

    Raises Unavailable when the stream's note cannot be read."""
    text = stream.noted(LISTED)
    by_feed = msgspec.json.decode(text, type=dict[str, dict[str, str]]) if text else {}
    return {(key.partition(" ")[0], key.partition(" ")[2]): names for key, names in by_feed.items()}


def merged(listed: Names, configured: Names) -> Names:
    """Both sets of names in one mapping. A configured name overrides a listed one."""
    return {feed: {**listed.get(feed, {}), **configured.get(feed, {})} for feed in {*listed, *configured}}


def _texts(names: Names) -> dict[str, Mapping[str, str]]:
    return {" ".join(feed): dict(sorted(some.items())) for feed, some in sorted(names.items()) if some}
