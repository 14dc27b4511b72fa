"""Writes files so that they exist whole or not at all, and are on disk before anything depends on them."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file under a temporary name and then rename it to `path`.

    With `durable`, the file is on disk when this returns. One writer at a time. Raises OSError; if it comes from the writing or the
    rename, an existing file is unchanged."""
    part = path.with_name(f".{path.name}.aside")
    try:
        part.write_bytes(content)
        if durable:
            sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to disk. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
