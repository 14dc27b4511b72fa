"""Rejects and notices that are larger than a stream lets a record be: what is kept of one, and where the whole of it is.

A rejected event carries its own bytes, so its row is larger than the raw record that it came in, and a notice's text may be: JSON
writes some characters longer than MessagePack does. Ticks and bars are small (`normalizing.LONGEST_TEXT`).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import AMENDS, REJECTED_TOPIC, Topic

#: Every stream takes a record of so many bytes: a broker's usual bound is 1 MiB, and a message holds more than the record.
TAKEN_EVERYWHERE: Final = 900 * 1024
#: What a message may hold beside the texts of a record, and by what part compression may make it longer.
_BESIDE: Final = 2 * 1024
_LONGER: Final = 4_096
#: Numbers and the like take at most so much of a row each.
_FIXED: Final = 16
#: Names that are longer than this are cut as well.
_LONGEST_NAME: Final = 256
#: The most of a notice's text that is kept of one that is cut.
_BEGIN_CHARS: Final = 64 * 1024
#: JSON writes a character with at most so many bytes.
_JSON_BYTES: Final = 6
#: How the reason of a reject ends whose bytes were cut.
_CUT: Final = re.compile(
    r" \(cut: ([0-9]+) of ([0-9]+) bytes are left out; partition [0-9]+ of the raw topic has all of them at offset [0-9]+\)\Z"
)


def sizes(topic: Topic, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """The bytes of each row. The key counts twice: a message has it beside the record."""
    found = np.full(batch.num_rows, _FIXED * batch.num_columns, np.int64)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            length = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
            found += length * (2 if name == topic.key else 1)
    return found


def larger(topic: Topic, batch: pa.RecordBatch, most: int) -> npt.NDArray[np.int64]:
    """The rows of more than so many bytes."""
    if batch.nbytes <= most // 2:  # the usual case: a key that counts twice makes no row larger than that
        return np.zeros(0, np.int64)
    return np.flatnonzero(sizes(topic, batch) > most)


def shortened(topic: Topic, batch: pa.RecordBatch, most: int) -> pa.RecordBatch:
    """Rejects or notices, each as a stream takes it whose largest message has `most` bytes; those that were small enough as they are."""
    room = max(0, most - _BESIDE - most // _LONGER)
    pieces, at = [], 0
    for row in larger(topic, batch, room).tolist():
        cut = _cut(topic, batch.slice(row, 1).to_pylist()[0], room)
        pieces += [batch.slice(at, row - at), pa.RecordBatch.from_pylist([cut], topic.schema)]
        at = row + 1
    return pa.concat_batches([*pieces, batch.slice(at)]) if pieces else batch


def length_before(reason: str) -> int | None:
    """How many bytes a rejected event had before it was cut, by its reason; None: it was not."""
    found = _CUT.search(reason)
    return int(found[2]) if found else None


def _cut(topic: Topic, row: dict[str, Any], room: int) -> dict[str, Any]:
    """One row with shorter texts; `room`: for all of it."""
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
    kept = max(0, room - 2 * _LONGEST_NAME)  # what the reason says of it takes room too
    where = f"partition {row['raw_partition']} of the raw topic has all of them at offset {row['raw_offset']}"
    reason = f"{row['reason']} (cut: {whole - kept} of {whole} bytes are left out; {where})"
    return row | {"payload": row["payload"][:kept], "reason": reason}


def _begin(row: dict[str, Any], room: int) -> str:
    """A JSON object in place of a text that is too long: where it is whole, how it begins, and which trade it takes back."""
    detail: str = row["detail"]
    cut = {"bytes": len(detail.encode()), "partition": row["raw_partition"], "offset": row["raw_offset"]}
    begin = detail[: min(_BEGIN_CHARS, room // (2 * _JSON_BYTES))]
    found = re.search(AMENDS, detail)
    ending = f",{found[0]}" if found and len(found[0]) <= 4 * _LONGEST_NAME else "}"  # a name that is longer is no trade's
    return msgspec.json.encode({"cut": cut, "begin": begin}).decode()[:-1] + ending
