"""Waiting for a state instead of for a time: as long as the busiest machine may take, and no moment longer than the state takes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Answer = TypeVar("_Answer")

#: How long anything may take on a machine that others keep busy. Only a test that fails waits so long.
PATIENCE_S: Final = 120.0
_LOOK_EVERY_S = 0.01
#: And no oftener than so many times as long as a look takes: who waits leaves the cores to those that work.
_REST_FOR_A_LOOK = 4
_LONGEST_REST_S = 1.0


def until(true: Callable[[], _Answer], what: str = "it is so", seconds: float = PATIENCE_S) -> _Answer:
    """Ask until the answer is true, and return it. AssertionError names what did not come. `seconds`: of what takes longer than usual."""
    deadline = time.monotonic() + seconds
    began = time.monotonic()
    while not (answer := true()):
        now = time.monotonic()
        assert now < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(min(max(_LOOK_EVERY_S, _REST_FOR_A_LOOK * (now - began)), _LONGEST_REST_S))
        began = time.monotonic()
    return answer


async def eventually(true: Callable[[], _Answer], what: str = "it is so") -> _Answer:
    """As `until`, beside other tasks of the event loop."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := true()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        await asyncio.sleep(_LOOK_EVERY_S)
    return answer
