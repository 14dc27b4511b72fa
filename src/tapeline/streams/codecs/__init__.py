"""Decoding of entries in either codec into one batch.

A topic may hold both codecs. An entry that cannot be decoded does not block the entries after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import groupby

import pyarrow as pa

from tapeline.records import RAW, RAW_TOPIC, Topic
from tapeline.streams.codecs import arrow, protobuf

log = logging.getLogger(__name__)


def decode(topic: Topic, entries: Sequence[bytes], name: Callable[[int], str]) -> tuple[pa.RecordBatch, list[int]]:
    """Return the records of all entries, and how many records each entry holds. `name` describes the entry at a given index.

    An entry that is not a record of the topic is logged. In the raw topic it becomes a record with the entry's bytes, which normalize
    will reject. In other topics it is dropped.
    """
    try:
        return _decoded(topic, entries)
    except (ValueError, EOFError, pa.ArrowException):
        parts = [_alone(topic, entry, name, at) for at, entry in enumerate(entries)]
        return pa.concat_batches(parts), [part.num_rows for part in parts]


def _decoded(topic: Topic, entries: Sequence[bytes]) -> tuple[pa.RecordBatch, list[int]]:
    batches: list[pa.RecordBatch] = []
    counts: list[int] = []
    for is_arrow, run in groupby(entries, key=lambda entry: entry.startswith(arrow.MARKER)):
        some = list(run)
        if is_arrow:
            batches += [arrow.decode(entry, topic.schema) for entry in some]
            counts += [batch.num_rows for batch in batches[-len(some) :]]
        elif topic is RAW_TOPIC:
            raise ValueError("raw records must be Arrow batches")
        elif not all(some):
            raise ValueError("it is empty")
        else:
            batches.append(protobuf.decode(topic, some))
            counts += [1] * len(some)
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches), counts


def _alone(topic: Topic, entry: bytes, name: Callable[[int], str], at: int) -> pa.RecordBatch:
    try:
        return _decoded(topic, [entry])[0]
    except (ValueError, EOFError, pa.ArrowException) as error:
        log.error("%s is not a record of %s: %s. Tapeline continues with the next one.", name(at), topic.name, error)
        unknown = [("unknown", "", "", "frame", 0, entry)] if topic is RAW_TOPIC else []
        return pa.RecordBatch.from_pylist([dict(zip(RAW.names, row, strict=True)) for row in unknown], topic.schema)
