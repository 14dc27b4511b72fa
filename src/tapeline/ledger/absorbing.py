"""Turns raw records and their events into facts of the ledger. Pure: it takes records and changes facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.ledger.facts import (
    ConnectionRecord,
    Facts,
    Key,
    Run,
    channel_of,
    join,
    keys_of,
    window_of,
    with_stretch,
)
from tapeline.providers.events import UNREADABLE, Names
from tapeline.providers.history import asked_of
from tapeline.providers.normalizing import Normalized
from tapeline.providers.registry import HISTORIES
from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, NS_PER_MS, NS_PER_S, REJECTED_TOPIC, TICKS_TOPIC, Chunk

#: Notices about a connection.
_TELLING: Final = frozenset({"opened", "subscribed", "closed", "refused", "fetched", "leapt"})
#: The connection name of records that no connection brought, such as an exchange's list of its symbols.
_OF_NONE: Final = ""
_DAY_S: Final = 86_400
#: A live event's own time is ignored if it differs from the receive time by more than this (ns).
_DRIFT_NS: Final = _DAY_S * NS_PER_S
#: Longer names, and names with a zero character, are not symbols, and no database keeps them.
_LONGEST_SYMBOL: Final = 200
_LONGEST_REASON: Final = 300


def forget(facts: Facts, partitions: Iterable[int]) -> None:
    """Note that the stream lost records of these partitions of the raw topic.

    Which records of open connections were lost is not known.
    """
    lost = set(partitions)
    for name, life in facts.lives.items():
        if life.partition in lost and not life.fetched and not life.closed_ns and not life.forgotten_since_ns:
            life.forgotten_since_ns = life.heard_ns
            facts.touched_lives.add(name)


def absorb(facts: Facts, chunk: Chunk, normalized: Normalized, *, taken: bool = True, names: Names = MappingProxyType({})) -> None:
    """Add to the facts what a chunk of raw records proves, together with the events that were made of it with these names.

    `taken`: whether every store has the events. If not, the records only tell about their connections, and that something was lost."""
    raw = chunk.batch
    received = raw["received_ns"].to_numpy()
    connections = raw["connection"].dictionary_encode()
    code = connections.indices.to_numpy()
    known = connections.dictionary.to_pylist()
    for at in np.unique(code, return_index=True)[1].tolist():
        name = known[code[at]]
        facts.touched_lives.add(name)
        if name not in facts.lives:
            partition, offset = int(chunk.partition[at]), int(chunk.offset[at])
            life = ConnectionRecord(raw["provider"][at].as_py(), raw["feed"][at].as_py(), name.rpartition("-")[0])
            life.partition, life.first_offset, life.last_offset = partition, offset, offset
            facts.lives[name] = life
    for at, first in _extremes(code, chunk.offset, np.minimum):
        life = facts.lives[known[at]]
        life.first_offset = min(life.first_offset, first)
    for at, last in _extremes(code, chunk.offset, np.maximum):
        life = facts.lives[known[at]]
        life.last_offset = max(life.last_offset, last)
    for at, first_ns in _extremes(code, received, np.minimum):
        life = facts.lives[known[at]]
        if not taken:
            life.forgotten_since_ns = life.forgotten_since_ns or life.heard_ns or first_ns
        elif life.forgotten_since_ns:
            life.forgotten = sorted([*life.forgotten, (life.forgotten_since_ns, max(life.forgotten_since_ns, first_ns - 1))])
            life.forgotten_since_ns = 0
    heard = pc.not_equal(raw["kind"], "closed").to_numpy(zero_copy_only=False)
    for at, last_ns in _extremes(code[heard], received[heard], np.maximum):
        life = facts.lives[known[at]]
        life.heard_ns = max(life.heard_ns, last_ns)
    _absorb_notices(facts, normalized.batches[NOTICES_TOPIC], _rejected(normalized.batches[REJECTED_TOPIC]), names, taken=taken)
    facts.forget_life(_OF_NONE)
    if taken:
        place = _Places(chunk)
        for topic in (TICKS_TOPIC, BARS_TOPIC):
            batch = normalized.batches[topic]
            if batch.num_rows:
                _absorb_events(facts, batch, code[place.rows(batch)], known)
    # These records are copies: everything about a connection in the past is known already.
    for name in facts.past_connections.keys() & set(known):
        facts.forget_life(name)


class _Places:
    """Finds the row of a chunk that an event came from."""

    def __init__(self, chunk: Chunk) -> None:
        order = np.lexsort((chunk.offset, chunk.partition))
        self._order = order
        self._partition, self._offset = chunk.partition[order], chunk.offset[order]

    def rows(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        partition, offset = batch["raw_partition"].to_numpy(), batch["raw_offset"].to_numpy()
        found = np.empty(len(offset), np.int64)
        for some in np.unique(partition).tolist():
            mine = partition == some
            low, high = np.searchsorted(self._partition, [some, some + 1])
            found[mine] = self._order[low + np.searchsorted(self._offset[low:high], offset[mine])]
        return found


def _rejected(rejected: pa.RecordBatch) -> dict[tuple[int, int], bool]:
    """Return the places of records from which something was rejected.

    The value is whether a whole page was unreadable, so that nothing of it came.
    """
    found: dict[tuple[int, int], bool] = {}
    for row in rejected.select(["reason", "raw_partition", "raw_offset"]).to_pylist() if rejected.num_rows else ():
        place = (row["raw_partition"], row["raw_offset"])
        found[place] = found.get(place, False) or row["reason"].startswith("page: ")
    return found


def _absorb_notices(facts: Facts, notices: pa.RecordBatch, rejected: Mapping[tuple[int, int], bool], names: Names, *, taken: bool) -> None:
    if not notices.num_rows:
        return
    for row in notices.select(["connection", "kind", "detail", "received_ns", "raw_partition", "raw_offset"]).to_pylist():
        life = facts.lives[row["connection"]]
        try:
            told = msgspec.json.decode(row["detail"]) if row["kind"] in _TELLING else None
        except UNREADABLE:
            told = None
        if not isinstance(told, dict):
            continue
        at_ns = row["received_ns"]
        _absorb_other_line(facts, told, at_ns)
        if row["kind"] == "opened":
            life.opened_ns, life.topics = at_ns, [str(topic) for topic in told.get("topics", ())]
            life.names = dict(names.get((life.provider, life.feed), {}))
            for key in keys_of(life):
                facts.carries(row["connection"], key)
        elif row["kind"] == "subscribed":
            life.subscribed_ns, life.missing = at_ns, [str(topic) for topic in told.get("missing", ())]
        elif row["kind"] == "closed":
            life.closed_ns, life.by, life.reason = at_ns, _text(told, "by"), _text(told, "reason")
            life.stale = _text(told, "stale") if "stale" in told else None
        elif row["kind"] == "fetched":
            life.fetched = True
            place = (row["raw_partition"], row["raw_offset"])
            if taken and not rejected.get(place, False):
                _absorb_read(life, row["detail"], spoiled=place in rejected)
            for key in keys_of(life):
                facts.carries(row["connection"], key)
        else:
            span = (int(told.get("from_ns", at_ns)), int(told.get("to_ns", at_ns)))
            if row["kind"] == "leapt":
                life.leapt = sorted({*life.leapt, span})
            else:
                life.refused = sorted({*life.refused, span})


def _absorb_other_line(facts: Facts, told: dict[str, object], at_ns: int) -> None:
    names = told.get("beside")
    for name in names if isinstance(names, list) else ():
        # The named connection has opened already, because both lines write into one partition.
        if isinstance(name, str) and name in facts.lives:
            life = facts.lives[name]
            life.beside_ns = max(life.beside_ns, at_ns)
            facts.touched_lives.add(name)


def _absorb_read(life: ConnectionRecord, line: str, *, spoiled: bool) -> None:
    """Add one more page of a read of history. `spoiled`: events of the page were rejected."""
    try:
        asked = asked_of(line)
    except UNREADABLE:
        return
    label = f"{asked.channel} {asked.symbol}".replace("\0", "")[:_LONGEST_REASON]
    by_id = asked.first is not None and asked.last is not None
    wanted = (label, asked.first or 0, asked.last or 0) if by_id else (label, asked.start_ns, asked.end_ns)
    begun = life.asking if by_id else life.reading
    if asked.page != next((entry[3] for entry in begun if entry[:3] == wanted), 0) + 1:
        return  # this page was counted before, or an earlier page is missing
    others = [entry for entry in begun if entry[:3] != wanted]
    begun = others if asked.done else sorted([*others, (*wanted, asked.page)])
    if by_id:
        life.asking = begun
    else:
        life.reading = begun
    spoiled = spoiled or (asked.page > 1 and wanted in life.rejecting)
    rejecting = {entry for entry in life.rejecting if entry != wanted}
    life.rejecting = sorted(rejecting | {wanted} if spoiled and not asked.done else rejecting)
    history = HISTORIES.get(life.provider)
    if not asked.done or history is None:
        return
    if by_id:
        life.asked = sorted({*life.asked, wanted})
        life.rejected = sorted({entry for entry in life.rejected if entry != wanted} | ({wanted} if spoiled else set()))
        return
    # A page proves nothing about events after the request, or shortly before it, because they may not have been in the history yet.
    end_ns = min(asked.end_ns, asked.time_ms * NS_PER_MS - history.settled_ns(asked.channel))
    if spoiled:
        life.rejected = sorted({*life.rejected, (label, asked.start_ns, end_ns)})
    else:
        life.read = with_stretch(life.read, (label, asked.start_ns, end_ns))


def _text(told: dict[str, object], name: str) -> str:
    """Return a notice's text in a form that every store keeps."""
    return str(told.get(name, "")).replace("\0", "")[:_LONGEST_REASON]


def _absorb_events(facts: Facts, batch: pa.RecordBatch, connection: npt.NDArray[np.int32], names: list[str]) -> None:
    keys, code = _keys(batch)
    named = np.array([len(key.symbol) <= _LONGEST_SYMBOL and "\0" not in key.symbol for key in keys])[code]
    if not named.all():
        batch, connection, code = batch.filter(pa.array(named)), connection[named], code[named]
    received = batch["received_ns"].to_numpy()
    both = connection.astype(np.int64) * len(keys) + code
    for at, first in _extremes(both, received, np.minimum):
        name, key = names[at // len(keys)], keys[at % len(keys)]
        life = facts.lives[name]
        label = f"{key.channel} {key.symbol}"
        if label not in life.first:
            facts.carries(name, key)
        life.first[label] = min(first, life.first.get(label, first))
    for at, last in _extremes(both, received, np.maximum):
        life, channel = facts.lives[names[at // len(keys)]], keys[at % len(keys)].channel
        life.last[channel] = max(last, life.last.get(channel, last))
    if "sequence" in batch.schema.names:
        _absorb_ages(facts, received - batch["ts_ns"].to_numpy(), received, connection, names)
    ids, start_ns, end_ns = _numbered(batch)
    live = np.array([not facts.lives[name].fetched for name in names])[connection]
    strange = live & (np.abs(start_ns - received) > _DRIFT_NS)
    start_ns, end_ns = np.where(strange, received, start_ns), np.where(strange, received, end_ns)
    counted = np.array([_contiguous(key) for key in keys])[code] & (ids >= 0)
    if counted.any():
        for at, run in _runs(code[counted], ids[counted], start_ns[counted], end_ns[counted]):
            join(facts.runs.setdefault(keys[at], []), run)
            facts.touched_runs.add(keys[at])


def _absorb_ages(
    facts: Facts, age: npt.NDArray[np.int64], received: npt.NDArray[np.int64], connection: npt.NDArray[np.int32], names: list[str]
) -> None:
    # An event without a time of its own has the receive time instead. Its age says nothing.
    telling = (age != 0) & (np.abs(age) < _DRIFT_NS)
    age, received, connection = age[telling], received[telling], connection[telling]
    for at, least in _extremes(connection, age, np.minimum):
        life = facts.lives[names[at]]
        life.least_age_ns = least if life.least_age_ns is None else min(life.least_age_ns, least)
    # Of the ticks received last, take the youngest: a single one may have been reported late.
    order = np.lexsort((age, -received, connection))
    some = connection[order]
    for at in order[np.flatnonzero(np.diff(some, prepend=-1))].tolist():
        life, last = facts.lives[names[connection[at]]], (int(received[at]), -int(age[at]))
        if last > (life.last_tick_ns, -life.last_age_ns):
            life.last_tick_ns, life.last_age_ns = last[0], -last[1]


def _keys(batch: pa.RecordBatch) -> tuple[list[Key], npt.NDArray[np.int64]]:
    """Return the keys of a batch, and the index of each row's key."""
    code = np.zeros(batch.num_rows, np.int64)
    columns = [batch[name].dictionary_encode() for name in Key._fields]
    for column in columns:
        code = code * len(column.dictionary) + column.indices.to_numpy()
    present, first, dense = np.unique(code, return_index=True, return_inverse=True)
    texts = [column.dictionary.to_pylist() for column in columns]
    at = [column.indices.to_numpy() for column in columns]
    keys = [Key(*(text[index[row]] for text, index in zip(texts, at, strict=True))) for row in first[: len(present)].tolist()]
    return keys, dense


def _contiguous(key: Key) -> bool:
    channel = channel_of(key)
    return channel is not None and channel.contiguous


def _numbered(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each event's number (-1: it has none), and the start and end of the time it stands for.

    For a bar that is its whole window.
    """
    ts_ns = batch["ts_ns"].to_numpy()
    if "sequence" in batch.schema.names:
        ids = batch["sequence"].fill_null(-1).to_numpy()
        return ids, ts_ns, ts_ns
    ids, end_ns = np.full(len(ts_ns), -1, np.int64), ts_ns.copy()
    columns = (batch[name].to_pylist() for name in ("channel", "interval", "final", "ts_ns"))
    for row, (channel, interval, final, start) in enumerate(zip(*columns, strict=True)):
        # A bar of another interval than its channel's would count on a different grid.
        if final and channel.endswith(f"_{interval}") and (window := window_of(interval, start)) is not None:
            ids[row], end_ns[row] = window
    return ids, ts_ns, end_ns


def _extremes(
    code: npt.NDArray[np.int64] | npt.NDArray[np.int32], values: npt.NDArray[np.int64], choose: np.ufunc
) -> Iterator[tuple[int, int]]:
    """Yield each code with the least or the greatest of its values."""
    if not len(code):
        return
    order = np.argsort(code, kind="stable")
    some = code[order]
    begin = np.flatnonzero(np.concatenate([[True], some[1:] != some[:-1]]))
    yield from zip(some[begin].tolist(), choose.reduceat(values[order], begin).tolist(), strict=True)


def _runs(
    code: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], start_ns: npt.NDArray[np.int64], end_ns: npt.NDArray[np.int64]
) -> Iterator[tuple[int, Run]]:
    """Yield the neighbouring ids of each code as one run."""
    order = np.lexsort((start_ns, ids, code))
    # If copies of one event have different times, the earliest holds, as it does where runs join. So the division into chunks does not
    # matter.
    order = order[np.concatenate([[True], (np.diff(code[order]) != 0) | (np.diff(ids[order]) != 0)])]
    code, ids, start_ns, end_ns = code[order], ids[order], start_ns[order], end_ns[order]
    begin = np.flatnonzero(np.concatenate([[True], (code[1:] != code[:-1]) | (ids[1:] - ids[:-1] > 1)]))
    last = np.concatenate([begin[1:], [len(ids)]]) - 1
    for a, b in zip(begin.tolist(), last.tolist(), strict=True):
        yield int(code[a]), Run(int(ids[a]), int(ids[b]), int(start_ns[a]), int(end_ns[b]))
