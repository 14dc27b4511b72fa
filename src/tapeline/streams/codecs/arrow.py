"""The Arrow codec: one batch as the bytes of one entry, compressed where that pays."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from tapeline.streams.shortening import TAKEN_EVERYWHERE

#: Batches over this size are compressed: below it the call costs more than the bytes saved.
_COMPRESS_FROM: Final = 32 * 1024
_LZ4: Final = pa.ipc.IpcWriteOptions(compression="lz4")
#: How an Arrow message begins (its continuation marker); no protobuf message begins so.
MARKER: Final = b"\xff\xff\xff\xff"


def encode(batch: pa.RecordBatch) -> memoryview:
    """A bare record batch message, or where it is compressed a whole IPC stream."""
    if batch.nbytes < _COMPRESS_FROM:
        return memoryview(batch.serialize())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_LZ4) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def pieces(batch: pa.RecordBatch, most: int = TAKEN_EVERYWHERE) -> list[pa.RecordBatch]:
    """A batch in parts of at most so many bytes, as any topic takes them. One row that is larger itself stays whole."""
    if batch.num_rows < 2 or batch.nbytes <= most:
        return [batch]
    half = batch.num_rows // 2
    return [*pieces(batch.slice(0, half), most), *pieces(batch.slice(half), most)]


def decode(data: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """What `encode` wrote. Raises pa.ArrowException or EOFError for anything else."""
    buffer = pa.py_buffer(data)
    message = pa.ipc.read_message(buffer)
    if message.type == "record batch":
        return pa.ipc.read_record_batch(message, schema)
    return pa.ipc.open_stream(buffer).read_next_batch()
