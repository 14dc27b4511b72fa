"""The ledger stage reads raw records and keeps the ledger of which data is complete."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from tapeline.ledger import Ledger
from tapeline.ledger.absorbing import absorb, forget
from tapeline.ledger.facts import Facts
from tapeline.ledger.folding import Account
from tapeline.ledger.intervals import MISSING
from tapeline.providers.decoding import native
from tapeline.providers.events import Decode, Names
from tapeline.records import NS_PER_S, RAW_TOPIC, Chunk
from tapeline.retry import loop
from tapeline.retry.backoff import backoff
from tapeline.stages.forgotten import StreamLoss
from tapeline.stages.names import KnownNames
from tapeline.stages.normalize import NORMALIZE, normalize_all
from tapeline.stages.taken import Taken
from tapeline.streams import Stream
from tapeline.telemetry import families
from tapeline.telemetry.latencies import Latencies
from tapeline.telemetry.status import StatusFile

log = logging.getLogger(__name__)

#: The consumer group of the ledger stage. It reads the raw topic, as normalize does.
LEDGER: Final = "ledger"
_CHUNK_ROWS: Final = 24_576
#: After a read of this many records the stage does not rest: more records are probably waiting.
_MORE_ROWS: Final = 1_000
#: How often the ledger removes facts that are older than `keep_days`.
_PRUNE_EVERY_NS: Final = 3_600 * NS_PER_S
_DAY_NS: Final = 86_400 * NS_PER_S
#: Long on purpose: the ledger need not be quick, and large batches cost less.
_REST_S: Final = 0.25
_FLUSH_NS: Final = NS_PER_S


@dataclass(frozen=True, slots=True)
class Scope:
    """What the ledger has to know of the pipeline around it."""

    #: The consumer groups of the stores. The ledger counts an event as present only when all of them have it.
    stores: Sequence[str] = ()
    #: The configured symbol names.
    names: Names = field(default_factory=lambda: MappingProxyType({}))
    #: For how many days facts are kept; 0 keeps them for ever.
    keep_days: int = 0


ALONE: Final = Scope()


class LedgerWriter:
    """Reads the raw topic into the ledger. It starts at the position that is stored in the ledger itself."""

    def __init__(
        self,
        stream: Stream,
        ledger: Ledger,
        decoders: Mapping[str, Decode],
        status: StatusFile,
        stop: threading.Event,
        scope: Scope = ALONE,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`clock`: UTC, ns."""
        self._keep_ns, self._prune_due_ns = scope.keep_days * _DAY_NS, 0
        self._names = KnownNames(stream, scope.names)
        self._stream, self._ledger, self._decoders, self._status, self._stop, self._clock = stream, ledger, decoders, status, stop, clock
        self._taken = Taken(stream, NORMALIZE, scope.stores, clock)
        self._forgotten = StreamLoss(stream, LEDGER, clock)
        self._account: Account | None = None
        self._positions: dict[int, int] = {}
        self._ahead: Chunk | None = None  # a chunk that was read and is not absorbed yet
        self._at_hand: Chunk | None = None  # the chunk that is being absorbed
        self._read: dict[int, int] = {}
        self._passed_over = 0  # records that were skipped since the start
        self._since: int | None = None
        self._every_ns = _FLUSH_NS
        self._flushes = Latencies(clock)

    def step(self) -> bool:
        if self._account is None:
            facts, self._positions = self._ledger.load()
            self._read = dict(self._positions)
            self._taken.begin(self._ledger.lives())
            self._account = Account(facts, self._ledger.pieces)
        account = self._account
        self._status.maybe(self._report)
        # The stream may be away and raise below. `_at_hand` keeps the chunk, so the next step processes the same one.
        chunk = self._at_hand = self._at_hand or self._next(account.facts)
        if chunk is not None:
            reach = self._taken.reach()
            forget(account.facts, self._forgotten.met(chunk))
            names = self._names.of(chunk)
            for part, taken in ((chunk.before(reach.doubtful), False), (chunk.after(reach.doubtful), True)):
                if part.rows:
                    self._absorb(account.facts, part, names, taken=taken)
            self._positions |= chunk.next
            self._at_hand = None
            self._since = self._clock() if self._since is None else self._since
        if self._since is not None and (self._clock() - self._since >= self._every_ns or (chunk is None and self._stop.is_set())):
            self._flush(account)
        return chunk is not None and (chunk.rows >= _MORE_ROWS or self._stop.is_set())  # when stopping: until nothing is left

    def _next(self, facts: Facts) -> Chunk | None:
        """The next raw records whose events every store has already; None if there are none yet."""
        reach = self._taken.reach(now=self._stop.is_set())
        if self._ahead is None:
            self._ahead = self._stream.read(RAW_TOPIC, self._read, _CHUNK_ROWS)
            self._read |= self._ahead.next if self._ahead is not None else {}
        if self._ahead is None:
            self._forgotten.look(RAW_TOPIC, self._read)
            forget(facts, [partition for _, partition in self._forgotten.ahead])
            return None
        ready, rest = self._ahead.before(reach.settled), self._ahead.after(reach.settled)
        self._ahead = rest if rest.rows else None
        return ready if ready.next != ready.begin else None

    def _absorb(self, facts: Facts, chunk: Chunk, names: Names, *, taken: bool) -> None:
        """Call `absorb`. If it fails, split the chunk in halves until the bad record is found, log it and skip it.

        Absorbing a record twice changes nothing. Copies are included (`copies=True`): a later copy proves that its line was receiving."""
        try:
            absorb(facts, chunk, normalize_all(chunk, self._decoders, copies=True, names=names), taken=taken, names=names)
        except MemoryError:
            raise
        except Exception:
            if chunk.rows == 1:
                self._passed_over += 1
                log.exception(
                    "Raw record %d of partition %d cannot be processed. The ledger skips it. Report this error.",
                    chunk.offset[0],
                    chunk.partition[0],
                )
                return
            for part in (chunk.slice(0, chunk.rows // 2), chunk.slice(chunk.rows // 2, chunk.rows)):
                self._absorb(facts, part, names, taken=taken)

    def _flush(self, account: Account) -> None:
        began_ns = self._clock()
        changes = account.changes(began_ns)
        self._ledger.save(account.facts, changes, self._positions, self._taken.lives)
        account.saved(changes)
        if self._keep_ns and began_ns >= self._prune_due_ns:
            self._prune_due_ns = began_ns + _PRUNE_EVERY_NS
            account.prune(self._ledger.prune, began_ns - self._keep_ns)
        self._since = None
        self._stream.acknowledge(LEDGER, RAW_TOPIC, self._positions)
        self._flushes.add(np.array([self._clock() - began_ns]))
        # A flush of a large ledger takes long. Flushing uses at most a twentieth of the time.
        self._every_ns = max(_FLUSH_NS, 20 * (self._clock() - began_ns))

    def _report(self) -> dict[str, Any]:
        states = dict(self._account.states()) if self._account is not None else {}
        return {
            "keys": self._account.keys if self._account is not None else 0,
            "states": states,
            "decoder": native.in_use(),
            "metrics": [
                families.NATIVE.at(bool(native.version())),
                *(families.GAPS.at(states.get(state, 0), state) for state in sorted(MISSING)),
                families.PASSED_OVER.at(self._passed_over),
                families.FLUSHES.at(self._flushes.since_start()),
            ],
            "forgotten": self._forgotten.losses,
            "ahead": self._forgotten.ahead,
            "passed_over": self._passed_over,
        }

    def finish(self) -> None:
        self._status.write(self._report())


def run_ledger(stage: LedgerWriter, stop: threading.Event, random: Random) -> None:
    """Run the stage until `stop` is set. The stream and the ledger may be away for any time. Raises what waiting cannot end."""
    loop.run(stage.step, stop, rest_s=_REST_S, waits=lambda: backoff(random, cap_s=5.0), drain_s=60.0)
    stage.finish()
