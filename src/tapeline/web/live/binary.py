"""Events as Arrow or as protobuf, for clients that want less than JSON."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from tapeline.errors import WrongArgument
from tapeline.monitor.metrics import delimited
from tapeline.records import Topic
from tapeline.web.live.messages import Message


def binary_message(kind: str, id: str, batch: pa.RecordBatch, topic: Topic, form: Literal["arrow", "protobuf"]) -> Message:  # noqa: A002
    """Return a message of events: JSON that says what follows, and the events as one binary message.

    `arrow`: an Arrow stream of one batch, with the columns of docs/reference/columns.md. `protobuf`: messages of market_data.proto, each
    after its length as a varint."""
    body = b'{"kind":"%b","id":"%b","binary":"%b","count":%d}' % (kind.encode(), id.encode(), form.encode(), batch.num_rows)
    return Message(kind, id, body, batch.num_rows, _arrow(batch) if form == "arrow" else _protobuf(batch, topic))


def check(form: str) -> None:
    """Raise WrongArgument if a form needs a package that is not installed."""
    if form == "protobuf":
        try:
            import ptars  # noqa: F401 whether it is there
        except ModuleNotFoundError:
            raise WrongArgument("format = protobuf needs the package ptars. Install it: pip install 'tapeline[kafka]'.") from None


def _arrow(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _protobuf(batch: pa.RecordBatch, topic: Topic) -> bytes:
    from tapeline.streams.codecs.protobuf import encode

    return b"".join(map(delimited, encode(topic, batch)))
