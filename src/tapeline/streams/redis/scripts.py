"""The Lua scripts in this folder. Redis runs each one whole or not at all."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

#: The files with the functions that each script calls.
_CALLED: Final = {
    "append": ("entries",),
    "send": ("entries",),
    "commit": ("entries", "groups"),
    "place": ("groups",),
    "acknowledge": ("groups",),
}


@cache
def script(name: str) -> str:
    """Return the text of a script, preceded by the functions that it calls."""
    return "\n".join(files(__package__).joinpath(f"{part}.lua").read_text("utf-8") for part in (*_CALLED.get(name, ()), name))
