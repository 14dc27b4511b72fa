"""The Arrow codec: one batch is the bytes of one entry, compressed where that pays."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import RAW, bytes_of, has_kind
from tapeline.streams.shortening import TAKEN_EVERYWHERE

#: Batches over this size are compressed. Below it, compression costs more than the bytes it saves.
_COMPRESS_FROM: Final = 32 * 1024
_LZ4: Final = pa.ipc.IpcWriteOptions(compression="lz4")
#: The first bytes of an Arrow message (its continuation marker). No protobuf message begins with them.
MARKER: Final = b"\xff\xff\xff\xff"
#: What earlier versions called the kind `dropped` of raw records.
_FORMERLY_DROPPED: Final = "refused"


def encode(batch: pa.RecordBatch) -> memoryview:
    """Return a bare record batch message, or a whole IPC stream if it is compressed."""
    if bytes_of(batch) < _COMPRESS_FROM:
        return memoryview(batch.serialize())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_LZ4) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def pieces(batch: pa.RecordBatch, most: int = TAKEN_EVERYWHERE) -> list[pa.RecordBatch]:
    """Split a batch into parts of at most `most` bytes; any topic takes parts of the default size.

    A single row that is larger stays whole.
    """
    if batch.num_rows < 2 or bytes_of(batch) <= most:
        return [batch]
    half = batch.num_rows // 2
    return [*pieces(batch.slice(0, half), most), *pieces(batch.slice(half), most)]


def decode(data: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Return the batch that `encode` wrote, in this version or an earlier one. Raises pa.ArrowException or EOFError for anything else."""
    buffer = pa.py_buffer(data)
    message = pa.ipc.read_message(buffer)
    alone = message.type == "record batch"
    batch = pa.ipc.read_record_batch(message, schema) if alone else pa.ipc.open_stream(buffer).read_next_batch()
    return _with_todays_kinds(batch) if schema is RAW else batch


def _with_todays_kinds(raw: pa.RecordBatch) -> pa.RecordBatch:
    """Return raw records with the kinds that this version writes.

    All streams keep raw records in this codec, so every reader gets them from here. A spool of an earlier version goes through a stream."""
    at = raw.schema.get_field_index("kind")
    if at < 0 or not has_kind(raw, _FORMERLY_DROPPED):
        return raw
    kind = raw.column(at)
    return raw.set_column(at, raw.schema.field(at), pc.if_else(pc.equal(kind, _FORMERLY_DROPPED), "dropped", kind))
