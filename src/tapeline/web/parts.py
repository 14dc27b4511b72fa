"""The opened parts that the routes need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anyio import CapacityLimiter

from tapeline.config import Config
from tapeline.web.actions import Actions
from tapeline.web.history import History
from tapeline.web.live.hub import Hub
from tapeline.web.recent import Looks


@dataclass(frozen=True, slots=True)
class Parts:
    """One server's parts."""

    config: Config
    hub: Hub
    looks: Looks
    history: History
    actions: Actions
    #: How many questions about the history are answered at once.
    limiter: CapacityLimiter
    #: ns, UTC.
    clock: Callable[[], int]
