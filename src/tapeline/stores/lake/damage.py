"""Damage to a file of the lake, found by its size, the checksum in its name and its footer."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

_CHECKSUM: Final = re.compile(r"-([0-9a-f]{8})\.parquet$")
_READ_BYTES: Final = 1 << 20


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file's bytes."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc


def named_checksum(name: str) -> int | None:
    """Return the checksum in a file's name, or None for names that earlier versions gave."""
    match = _CHECKSUM.search(name)
    return int(match[1], 16) if match else None


def damage(folder: Path, path: str, size: int, rows: int) -> str | None:
    """Return what is wrong with a file of the log, by its size, the checksum in its name and its footer. None: nothing.

    A file of an earlier version has no checksum in its name and is read whole instead. A value that still reads may nevertheless have
    been changed."""
    file = folder / path
    try:
        held = file.stat().st_size
        if held != size:
            return f"holds {held:,} bytes, but the log says {size:,}"
        expected = named_checksum(file.name)
        if expected is not None and (found := checksum(file)) != expected:
            return f"has the checksum {found:08x}, but its name says {expected:08x}: bytes were changed"
        footer = pq.ParquetFile(file, page_checksum_verification=True)
        if footer.metadata.num_rows != rows:
            return f"holds {footer.metadata.num_rows:,} rows, but the log says {rows:,}"
        if expected is None:
            for _ in footer.iter_batches():
                pass
    except FileNotFoundError:
        return "is missing"
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read: {error}"
    return None
