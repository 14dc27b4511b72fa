"""One client's queue of messages, and the room of all queues: bounded, and latest instead of everything where a client does not keep up."""

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
#: The most bytes that wait for all clients together.
ROOM: Final = 128_000_000
#: Without a message for so long, a client is sent a sign of life. It carries the position, so that a client of quiet symbols can continue
#: after its connection was lost: a position that is older than what is kept says nothing.
_SIGN_OF_LIFE_NS: Final = 5 * NS_PER_S
#: A client that takes nothing for so long is cut off.
_PATIENCE_NS: Final = 60 * NS_PER_S
#: The most bytes that a client is given at once; a larger message comes alone. A client that takes nothing holds so much besides its queue.
_AT_ONCE: Final = 16_000


class Room:
    """The memory for what waits for all clients. Where it is short, those for whom most waits give it up: they get the latest values."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes."""
        self._limit = limit
        #: How many bytes wait. A message that waits for several clients is there once.
        self.taken = 0
        self.clients: set[Client] = set()

    def add(self, message: Message) -> None:
        """Count a message that waits for one more client."""
        message.queues += 1
        if message.queues == 1:
            self.change(len(message))

    def remove(self, message: Message) -> None:
        """Count a message that waits for one client less."""
        message.queues -= 1
        if message.queues == 0:
            self.change(-len(message))

    def change(self, size: int) -> None:
        """Count so many bytes more, or fewer."""
        self.taken += size
        if size > 0 and self.taken > self._limit:
            self._make_room()

    def _make_room(self) -> None:
        """Free a quarter of the room: those with the most come first.

        First, clients that take nothing give up their queues. If that is not enough, they are cut off. Only a burst that is larger than
        the whole room costs a client that reads something."""
        most_first = sorted(self.clients, key=lambda client: client.waiting, reverse=True)
        blocked = [client for client in most_first if client.under_way]
        for clients, give_up in ((blocked, Client.fall_behind), (blocked, Client.cut_off), (most_first, Client.fall_behind)):
            for client in clients:
                if self.taken <= self._limit * 3 // 4:
                    return
                give_up(client)


class Client:
    """What one connection has still to be sent. All methods belong to the event loop."""

    def __init__(
        self, subscription: Subscription, conflate: Callable[[Client, int], Message], clock: Callable[[], int], limit: int, room: Room
    ) -> None:
        """`conflate`: makes the message that stands for so many events that this client does not get. `clock`: monotonic, ns.

        `limit`: bytes. `room`: that of all clients."""
        self.subscription = subscription
        #: How many events this client did not get.
        self.skipped = 0
        #: Ends the connection at once.
        self.sever: Callable[[], None] = lambda: None
        #: How many bytes are under way: while the client takes nothing, what it was given last, and what the transport has still.
        self.under_way = 0
        self._conflate, self._clock, self._limit, self._room = conflate, clock, limit, room
        self._earlier: Iterator[Message] | None = None
        self._queue: deque[Message] = deque()
        self._size = self._given = 0
        self._behind = self._gone = False
        self._left_out = 0
        self._ready = asyncio.Event()
        #: Whether all that there was has been sent, and when (ns) the last of it was taken.
        self._waits, self._taken_ns = False, clock()
        self._room.clients.add(self)

    @property
    def waiting(self) -> int:
        """How many bytes wait for this client."""
        return self._size + self.under_way

    def begin(self, first: Message, earlier: Iterator[Message]) -> None:
        """Queue the first message, and what the client missed while it was away, which is made when it is sent, before everything else."""
        self._earlier = chain([first], earlier)
        self._ready.set()

    def put(self, message: Message) -> None:
        """Queue a message. If there is no room, what waits is left out: of each state the last message stays."""
        if self._gone:
            return
        self._ready.set()
        if self._behind and message.kind not in STATES:
            self._left_out += message.events
            return
        self._queue.append(message)
        self._size += len(message)
        self._room.add(message)
        if self._behind or (self._size > self._limit and len(self._queue) > 1):
            self.fall_behind()

    def fall_behind(self) -> None:
        """Leave out what waits in the queue, but the last message of each state."""
        last = {message.kind: message for message in self._queue if message.kind in STATES}
        waiting, self._queue, self._size = self._queue, deque(), 0
        for message in waiting:
            if last.get(message.kind) is message:
                self._queue.append(message)
                self._size += len(message)
            else:
                self._room.remove(message)
                self._left_out += message.events
                self._behind = self._behind or message.kind not in STATES

    def cut_off(self) -> None:
        """End the connection. The client can come back with the id of its last message."""
        self.leave()
        self.sever()

    def leave(self) -> None:
        """Hold nothing any more."""
        self._gone, self._earlier = True, None
        while self._queue:
            self._room.remove(self._queue.popleft())
        self._size = 0
        self._give(0)
        self._room.clients.discard(self)

    async def take(self) -> list[Message]:
        """As `taken`, but wait until there is something."""
        while not (taken := self.taken()):
            self._ready.clear()
            self._waits = True
            await self._ready.wait()
        self._waits, self._taken_ns = False, self._clock()
        return taken

    def taken(self) -> list[Message]:
        """Return what is to be sent now, in order: not all that waits, if that is much. It may be nothing.

        Who calls it has sent what it returned before."""
        self._give(0)
        taken = self._take_earlier()
        if self._earlier is None:  # what is queued is later, and so are the positions in it: who is lost now continues in the earlier ones
            if self._behind:
                left_out, self._left_out, self._behind = self._left_out, 0, False
                self.skipped += left_out
                taken.append(self._conflate(self, left_out))
            self._take_queue(taken)
        self._give(sum(map(len, taken)))
        return taken

    def tend(self, alive: Message) -> None:
        """Queue a sign of life if nothing came for long, and cut the client off if it has not taken for longer what it was sent."""
        passed_ns = self._clock() - self._taken_ns
        if self._waits and passed_ns > _SIGN_OF_LIFE_NS:
            self.put(alive)
        elif not self._waits and passed_ns > _PATIENCE_NS:
            self.cut_off()

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

    def _take_queue(self, taken: list[Message]) -> None:
        """Move messages from the queue to what is taken already, as much as is sent at once."""
        size = sum(map(len, taken))
        while self._queue and (not taken or size + len(self._queue[0]) <= _AT_ONCE):
            message = self._queue.popleft()
            self._size -= len(message)
            self._room.remove(message)
            taken.append(message)
            size += len(message)

    def _give(self, size: int) -> None:
        """Count what is under way now. The transport may still hold what was given before, until it takes something new (0)."""
        under_way = size + self._given if size and not self._gone else 0
        self._given = size or self._given
        change, self.under_way = under_way - self.under_way, under_way
        self._room.change(change)
