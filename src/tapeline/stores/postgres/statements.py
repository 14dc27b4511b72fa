"""SQL kept in files as named blocks (`-- name: positions`), each of one or more statements that end with a semicolon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


class Statements:
    """The blocks of one file in `tapeline/stores/sql`."""

    def __init__(self, text: str) -> None:
        parts = _NAME.split(text)
        self._blocks = {name: _split(block) for name, block in zip(parts[1::2], parts[2::2], strict=True)}

    def one(self, name: str, /, **names: str) -> str:
        """Return a block of a single statement.

        `names` replace the placeholders in braces. They are the program's own names, never a user's.
        """
        (statement,) = self.each(name, **names)
        return statement

    def each(self, name: str, /, **names: str) -> Sequence[str]:
        """Return the statements of a block, in order."""
        return [_filled(statement, names) for statement in self._blocks[name]]


def load(file: str) -> Statements:
    """Return the blocks of a file in `tapeline/stores/sql`, such as `postgres.sql`."""
    return Statements((files("tapeline.stores") / "sql" / file).read_text(encoding="utf-8"))


def migrations(**names: str) -> list[Sequence[str]]:
    """Return, for each version, the statements that make it out of the one before. The first makes version 1 of an empty database."""
    paths = sorted((files("tapeline.stores") / "sql" / "migrations").iterdir(), key=lambda path: path.name)
    return [
        [_filled(statement, names) for statement in _split(path.read_text(encoding="utf-8"))] for path in paths if path.name[:4].isdecimal()
    ]


def _split(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [statement.strip() for statement in re.split(r";\s*$", "\n".join(lines), flags=re.MULTILINE) if statement.strip()]


def _filled(statement: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        statement = statement.replace(f"{{{name}}}", value)
    return statement
