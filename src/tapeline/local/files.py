"""Files that are there whole or not at all, and are on disk before anything is built on them."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: bytes | memoryview, *, durable: bool = True, aside: str = ".{}.aside") -> None:
    """Write a file aside, and give it its name. `durable`: it is on disk for good when this returns. Raises OSError: nothing has changed.

    `aside`: what it is called meanwhile, with the file's name in it; of several writers each needs another one."""
    part = path.with_name(aside.format(path.name))
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
    """Have a file's bytes, or a folder's names, on disk. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
