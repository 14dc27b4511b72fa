"""The scripts that Redis runs, each of them whole or not at all: the files of Lua in this folder."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

#: Files with the functions that a script calls.
_CALLED: Final = {
    "append": ("entries",),
    "send": ("entries",),
    "commit": ("entries", "groups"),
    "place": ("groups",),
    "acknowledge": ("groups",),
}


def script(name: str) -> str:
    """The text of a script, the functions that it calls before it."""
    return "\n".join(files(__package__).joinpath(f"{part}.lua").read_text("utf-8") for part in (*_CALLED.get(name, ()), name))
