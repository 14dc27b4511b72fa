"""Entries of either codec as one batch: a topic may hold both, and what nobody can read stops nothing that comes after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import groupby

import pyarrow as pa

from tapeline.records import RAW, RAW_TOPIC, Topic
from tapeline.streams.codecs import arrow, protobuf

log = logging.getLogger(__name__)


def decode(topic: Topic, entries: Sequence[bytes], name: Callable[[int], str]) -> tuple[pa.RecordBatch, list[int]]:
    """The records of all entries, and how many each entry holds. `name` says where the entry at a place was found.

    An entry that is no record of the topic is told. Of raw, it becomes a record that normalize will reject, with its bytes; else none.
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
            raise ValueError("raw records are Arrow batches")
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
        log.error("%s is no record of %s and is passed over: %s", name(at), topic.name, error)
        unknown = [("unknown", "", "", "frame", 0, entry)] if topic is RAW_TOPIC else []
        return pa.RecordBatch.from_pylist([dict(zip(RAW.names, row, strict=True)) for row in unknown], topic.schema)
