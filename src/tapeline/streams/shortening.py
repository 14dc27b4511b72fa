"""Shortening of rejects and notices that are larger than a stream's largest record.

The shortened row keeps part of the text and says where the whole of it is. A reject's row is larger than the raw record it came in,
because it carries the event's own bytes. A notice can also be larger, because JSON writes some characters longer than MessagePack
does. Ticks and bars are small (`normalizing.LONGEST_TEXT`).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import AMENDS, REJECTED_TOPIC, Topic, bytes_of

#: Every stream takes a record of this many bytes. A broker's usual limit is 1 MiB, and a message holds more than the record.
TAKEN_EVERYWHERE: Final = 900 * 1024
#: The bytes a message may hold in addition to a record's texts, and the divisor for the part by which compression may lengthen it.
_OVERHEAD: Final = 2 * 1024
_LONGER: Final = 4_096
#: A number or another value of fixed size takes at most this many bytes of a row.
_FIXED: Final = 16
#: Longer names are cut as well.
_LONGEST_NAME: Final = 256
#: A shortened notice keeps at most this many characters of its text.
_BEGIN_CHARS: Final = 64 * 1024
#: JSON writes a character with at most this many bytes.
_JSON_BYTES: Final = 6
#: How a reject's reason ends if its bytes were cut.
_CUT: Final = re.compile(
    r" \(cut: ([0-9]+) of ([0-9]+) bytes are left out; partition [0-9]+ of the raw topic has all of them at offset [0-9]+\)\Z"
)


def sizes(topic: Topic, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Return the bytes of each row. The key counts twice, because a message also holds it outside the record."""
    totals = np.full(batch.num_rows, _FIXED * batch.num_columns, np.int64)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            length = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
            totals += length * (2 if name == topic.key else 1)
    return totals


def larger(topic: Topic, batch: pa.RecordBatch, most: int) -> npt.NDArray[np.int64]:
    """Return the indexes of the rows that are larger than `most` bytes."""
    if bytes_of(batch) <= most // 2:  # usual case: a key that counts twice makes no row larger than that
        return np.zeros(0, np.int64)
    return np.flatnonzero(sizes(topic, batch) > most)


def shortened(topic: Topic, batch: pa.RecordBatch, most: int) -> pa.RecordBatch:
    """Return rejects or notices shortened so that a stream whose largest message has `most` bytes takes them.

    Small rows stay as they are.
    """
    room = max(0, most - _OVERHEAD - most // _LONGER)
    pieces, at = [], 0
    for row in larger(topic, batch, room).tolist():
        cut = _cut(topic, batch.slice(row, 1).to_pylist()[0], room)
        pieces += [batch.slice(at, row - at), pa.RecordBatch.from_pylist([cut], topic.schema)]
        at = row + 1
    return pa.concat_batches([*pieces, batch.slice(at)]) if pieces else batch


def length_before(reason: str) -> int | None:
    """Return how many bytes a rejected event had before it was cut, read from its reason. None: it was not cut."""
    match = _CUT.search(reason)
    return int(match[2]) if match else None


def _cut(topic: Topic, row: dict[str, Any], room: int) -> dict[str, Any]:
    """Return one row with shorter texts. `room` is the number of bytes for the whole row."""
    row = {name: value if name in ("reason", "detail") else _name(value) for name, value in row.items()}
    bulk = "payload" if topic is REJECTED_TOPIC else "detail"
    bare = pa.RecordBatch.from_pylist([{**row, bulk: b"" if topic is REJECTED_TOPIC else ""}], topic.schema)
    room = max(0, room - int(sizes(topic, bare)[0]))
    if topic is REJECTED_TOPIC:
        return _cut_reject(row, room)
    return row if len(row["detail"].encode()) <= room else row | {"detail": _begin(row, room)}


def _name(value: object) -> object:
    return f"{value[: _LONGEST_NAME - 1]}…" if isinstance(value, str) and len(value) > _LONGEST_NAME else value


def _cut_reject(row: dict[str, Any], room: int) -> dict[str, Any]:
    whole = len(row["payload"])
    if whole <= room:
        return row
    kept = max(0, room - 2 * _LONGEST_NAME)  # the addition to the reason takes room too
    where = f"partition {row['raw_partition']} of the raw topic has all of them at offset {row['raw_offset']}"
    reason = f"{row['reason']} (cut: {whole - kept} of {whole} bytes are left out; {where})"
    return row | {"payload": row["payload"][:kept], "reason": reason}


def _begin(row: dict[str, Any], room: int) -> str:
    """Return a JSON object that replaces a text that is too long.

    It says where the whole text is, how the text begins, and which trade it takes back.
    """
    detail: str = row["detail"]
    cut = {"bytes": len(detail.encode()), "partition": row["raw_partition"], "offset": row["raw_offset"]}
    begin = detail[: min(_BEGIN_CHARS, room // (2 * _JSON_BYTES))]
    amends = re.search(AMENDS, detail)
    ending = f",{amends[0]}" if amends and len(amends[0]) <= 4 * _LONGEST_NAME else "}"  # a longer match is not a trade's name
    return msgspec.json.encode({"cut": cut, "begin": begin}).decode()[:-1] + ending
