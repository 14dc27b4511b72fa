"""Keeps pandas out of a process until something needs it: pyarrow loads it wherever it is installed."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder


class _WithoutPandas(MetaPathFinder):
    """Says that pandas is not installed. It would cost every process 50 MB and a quarter of a second."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        del path, target
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


def keep_out() -> None:
    """Let every import of pandas fail in this process, as if it was not installed, until `let_in`."""
    sys.meta_path.insert(0, _WithoutPandas())


def let_in() -> None:
    """Allow the import of pandas again. Without `keep_out`, nothing changes."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _WithoutPandas)]
