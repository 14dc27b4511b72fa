"""One client's queue of messages: bounded, and latest instead of everything where the client does not keep up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

from tapeline.records import NS_PER_S
from tapeline.web.live.messages import STATES, Message
from tapeline.web.live.subscription import Subscription

#: The most bytes that wait for one client. A client that takes less than it is sent gets the latest values instead.
LIMIT: Final = 1_000_000
#: Without a message for so long, a client is sent a sign of life. It carries the position, so that a client of quiet symbols can continue
#: after its connection was lost: a position that is older than what is kept says nothing.
SIGN_OF_LIFE_NS: Final = 5 * NS_PER_S
#: A client that takes nothing for so long is cut off.
_PATIENCE_NS: Final = 60 * NS_PER_S
#: The most bytes of earlier windows that a client that came back is given at once.
_AT_ONCE: Final = 250_000


class Client:
    """What one connection has still to be sent. All methods belong to the event loop."""

    def __init__(
        self, subscription: Subscription, conflate: Callable[[Client, int], Message], clock: Callable[[], int], limit: int = LIMIT
    ) -> None:
        """`conflate`: makes the message that stands for so many events that this client does not get. `clock`: monotonic, ns.
        `limit`: bytes."""
        self.subscription = subscription
        #: How many events this client did not get.
        self.skipped = 0
        #: Set when the client takes nothing any more.
        self.gone = asyncio.Event()
        self._conflate, self._clock, self._limit = conflate, clock, limit
        self._earlier: Iterator[Message] | None = None
        self._queue: deque[Message] = deque()
        self._size = 0
        self._behind = False
        self._left_out = 0
        self._ready = asyncio.Event()
        #: Whether all that there was has been sent, and when (ns) the last of it was taken.
        self._waits, self._taken_ns = False, clock()

    @property
    def waiting(self) -> int:
        """How many bytes wait for this client."""
        return self._size

    def begin(self, first: Message, earlier: Iterator[Message]) -> None:
        """Queue the first message, and what the client missed while it was away, which is made when it is sent, before everything else."""
        self._earlier = chain([first], earlier)
        self._ready.set()

    def put(self, message: Message) -> None:
        """Queue a message. If there is no room, what waits is left out: of each state the last message stays."""
        self._ready.set()
        if not self._behind and self._size + len(message) > self._limit and self._queue:
            self._behind = True
            waiting, self._queue = self._queue, deque()
            for one in waiting:
                self._leave_out(one)
        if self._behind:
            self._leave_out(message)
        else:
            self._queue.append(message)
            self._size += len(message)

    async def take(self) -> list[Message]:
        """Wait until there is something to be sent, and return it, in order."""
        while not (taken := self.taken()):
            self._ready.clear()
            self._waits = True
            await self._ready.wait()
        self._waits, self._taken_ns = False, self._clock()
        return taken

    def taken(self) -> list[Message]:
        """Take what is to be sent now, in order; it may be nothing."""
        taken = self._take_earlier()
        if self._earlier is not None:
            return taken  # what is queued is later, and so are the positions in it: a client that is lost now continues in the earlier ones
        if self._behind:
            left_out, self._left_out, self._behind = self._left_out, 0, False
            self.skipped += left_out
            taken.append(self._conflate(self, left_out))
        taken += self._queue
        self._queue.clear()
        self._size = 0
        return taken

    def tend(self, alive: Message) -> None:
        """Queue a sign of life if the client waits for long, and set `gone` if it has not taken what it was sent for longer."""
        passed_ns = self._clock() - self._taken_ns
        if self._waits and passed_ns > SIGN_OF_LIFE_NS:
            self.put(alive)
        elif not self._waits and passed_ns > _PATIENCE_NS:
            self.gone.set()

    def _take_earlier(self) -> list[Message]:
        """Take what the client missed while it was away, as much as is sent at once."""
        taken, size = [], 0
        for message in self._earlier or ():
            taken.append(message)
            size += len(message)
            if size > _AT_ONCE:
                return taken
        self._earlier = None
        return taken

    def _leave_out(self, message: Message) -> None:
        self._left_out += message.events
        if message.kind in STATES:
            kept = [one for one in self._queue if one.kind != message.kind]
            self._queue = deque([*kept, message])
