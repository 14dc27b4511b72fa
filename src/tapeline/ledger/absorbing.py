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
from tapeline.providers.history import decode_page_header
from tapeline.providers.normalizing import Normalized
from tapeline.providers.registry import HISTORIES
from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, NS_PER_MS, NS_PER_S, REJECTED_TOPIC, TICKS_TOPIC, Chunk

#: Notices about a connection.
_ABOUT_CONNECTIONS: Final = frozenset({"opened", "subscribed", "closed", "dropped", "fetched", "leapt"})
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
    for name, connection in facts.connections.items():
        if connection.partition in lost and not connection.fetched and not connection.closed_ns and not connection.forgotten_since_ns:
            connection.forgotten_since_ns = connection.heard_ns
            facts.touched_connections.add(name)


def absorb(facts: Facts, chunk: Chunk, normalized: Normalized, *, taken: bool = True, names: Names = MappingProxyType({})) -> None:
    """Add to the facts what a chunk of raw records proves, together with the events that were made of it with these names.

    `taken`: whether every store has the events. If not, the records only tell about their connections, and that something was lost."""
    raw = chunk.batch
    received = raw["received_ns"].to_numpy()
    encoded = raw["connection"].dictionary_encode()
    code = encoded.indices.to_numpy()
    known = encoded.dictionary.to_pylist()
    for at in np.unique(code, return_index=True)[1].tolist():
        name = known[code[at]]
        facts.touched_connections.add(name)
        if name not in facts.connections:
            partition, offset = int(chunk.partition[at]), int(chunk.offset[at])
            connection = ConnectionRecord(raw["provider"][at].as_py(), raw["feed"][at].as_py(), name.rpartition("-")[0])
            connection.partition, connection.first_offset, connection.last_offset = partition, offset, offset
            facts.connections[name] = connection
    for at, first in _extremes(code, chunk.offset, np.minimum):
        connection = facts.connections[known[at]]
        connection.first_offset = min(connection.first_offset, first)
    for at, last in _extremes(code, chunk.offset, np.maximum):
        connection = facts.connections[known[at]]
        connection.last_offset = max(connection.last_offset, last)
    for at, first_ns in _extremes(code, received, np.minimum):
        connection = facts.connections[known[at]]
        if not taken:
            connection.forgotten_since_ns = connection.forgotten_since_ns or connection.heard_ns or first_ns
        elif connection.forgotten_since_ns:
            span = (connection.forgotten_since_ns, max(connection.forgotten_since_ns, first_ns - 1))
            connection.forgotten = sorted([*connection.forgotten, span])
            connection.forgotten_since_ns = 0
    heard = pc.not_equal(raw["kind"], "closed").to_numpy(zero_copy_only=False)
    for at, last_ns in _extremes(code[heard], received[heard], np.maximum):
        connection = facts.connections[known[at]]
        connection.heard_ns = max(connection.heard_ns, last_ns)
    _absorb_notices(facts, normalized.batches[NOTICES_TOPIC], _rejected(normalized.batches[REJECTED_TOPIC]), names, taken=taken)
    facts.forget_connection(_OF_NONE)
    if taken:
        place = _Places(chunk)
        for topic in (TICKS_TOPIC, BARS_TOPIC):
            batch = normalized.batches[topic]
            if batch.num_rows:
                _absorb_events(facts, batch, code[place.rows(batch)], known)
    # These records are copies: everything about a connection in the past is known already.
    for name in facts.past_connections.keys() & set(known):
        facts.forget_connection(name)


class _Places:
    """Finds the row of a chunk that an event came from."""

    def __init__(self, chunk: Chunk) -> None:
        order = np.lexsort((chunk.offset, chunk.partition))
        self._order = order
        self._partition, self._offset = chunk.partition[order], chunk.offset[order]

    def rows(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        partition, offset = batch["raw_partition"].to_numpy(), batch["raw_offset"].to_numpy()
        rows = np.empty(len(offset), np.int64)
        for some in np.unique(partition).tolist():
            mine = partition == some
            low, high = np.searchsorted(self._partition, [some, some + 1])
            rows[mine] = self._order[low + np.searchsorted(self._offset[low:high], offset[mine])]
        return rows


def _rejected(rejected: pa.RecordBatch) -> dict[tuple[int, int], bool]:
    """Return the places of records from which something was rejected.

    The value is whether a whole page was unreadable, so that nothing of it came.
    """
    places: dict[tuple[int, int], bool] = {}
    for row in rejected.select(["reason", "raw_partition", "raw_offset"]).to_pylist() if rejected.num_rows else ():
        place = (row["raw_partition"], row["raw_offset"])
        places[place] = places.get(place, False) or row["reason"].startswith("page: ")
    return places


def _absorb_notices(facts: Facts, notices: pa.RecordBatch, rejected: Mapping[tuple[int, int], bool], names: Names, *, taken: bool) -> None:
    if not notices.num_rows:
        return
    for row in notices.select(["connection", "kind", "detail", "received_ns", "raw_partition", "raw_offset"]).to_pylist():
        connection = facts.connections[row["connection"]]
        try:
            detail = msgspec.json.decode(row["detail"]) if row["kind"] in _ABOUT_CONNECTIONS else None
        except UNREADABLE:
            detail = None
        if not isinstance(detail, dict):
            continue
        at_ns = row["received_ns"]
        _absorb_other_line(facts, detail, at_ns)
        if row["kind"] == "opened":
            connection.opened_ns, connection.topics = at_ns, [str(topic) for topic in detail.get("topics", ())]
            connection.names = dict(names.get((connection.provider, connection.feed), {}))
            for key in keys_of(connection):
                facts.carries(row["connection"], key)
        elif row["kind"] == "subscribed":
            connection.subscribed_ns, connection.missing = at_ns, [str(topic) for topic in detail.get("missing", ())]
        elif row["kind"] == "closed":
            connection.closed_ns, connection.by, connection.reason = at_ns, _text(detail, "by"), _text(detail, "reason")
            connection.stale = _text(detail, "stale") if "stale" in detail else None
        elif row["kind"] == "fetched":
            connection.fetched = True
            place = (row["raw_partition"], row["raw_offset"])
            if taken and not rejected.get(place, False):
                _absorb_read(connection, row["detail"], spoiled=place in rejected)
            for key in keys_of(connection):
                facts.carries(row["connection"], key)
        else:
            span = (int(detail.get("from_ns", at_ns)), int(detail.get("to_ns", at_ns)))
            if row["kind"] == "leapt":
                connection.leapt = sorted({*connection.leapt, span})
            else:
                connection.dropped = sorted({*connection.dropped, span})


def _absorb_other_line(facts: Facts, detail: dict[str, object], at_ns: int) -> None:
    names = detail.get("beside")
    for name in names if isinstance(names, list) else ():
        # The named connection has opened already, because both lines write into one partition.
        if isinstance(name, str) and name in facts.connections:
            connection = facts.connections[name]
            connection.concurrent_ns = max(connection.concurrent_ns, at_ns)
            facts.touched_connections.add(name)


def _absorb_read(connection: ConnectionRecord, line: str, *, spoiled: bool) -> None:
    """Add one more page of a read of history. `spoiled`: events of the page were rejected."""
    try:
        request = decode_page_header(line)
    except UNREADABLE:
        return
    label = f"{request.channel} {request.symbol}".replace("\0", "")[:_LONGEST_REASON]
    by_id = request.first is not None and request.last is not None
    wanted = (label, request.first or 0, request.last or 0) if by_id else (label, request.start_ns, request.end_ns)
    begun = connection.asking if by_id else connection.reading
    if request.page != next((entry[3] for entry in begun if entry[:3] == wanted), 0) + 1:
        return  # this page was counted before, or an earlier page is missing
    others = [entry for entry in begun if entry[:3] != wanted]
    begun = others if request.done else sorted([*others, (*wanted, request.page)])
    if by_id:
        connection.asking = begun
    else:
        connection.reading = begun
    spoiled = spoiled or (request.page > 1 and wanted in connection.rejecting)
    rejecting = {entry for entry in connection.rejecting if entry != wanted}
    connection.rejecting = sorted(rejecting | {wanted} if spoiled and not request.done else rejecting)
    history = HISTORIES.get(connection.provider)
    if not request.done or history is None:
        return
    if by_id:
        connection.asked = sorted({*connection.asked, wanted})
        connection.rejected = sorted({entry for entry in connection.rejected if entry != wanted} | ({wanted} if spoiled else set()))
        return
    # A page proves nothing about events after the request, or shortly before it, because they may not have been in the history yet.
    end_ns = min(request.end_ns, request.time_ms * NS_PER_MS - history.settled_ns(request.channel))
    if spoiled:
        connection.rejected = sorted({*connection.rejected, (label, request.start_ns, end_ns)})
    else:
        connection.read = with_stretch(connection.read, (label, request.start_ns, end_ns))


def _text(detail: dict[str, object], name: str) -> str:
    """Return a notice's text in a form that every store keeps."""
    return str(detail.get(name, "")).replace("\0", "")[:_LONGEST_REASON]


def _absorb_events(facts: Facts, batch: pa.RecordBatch, connection_index: npt.NDArray[np.int32], names: list[str]) -> None:
    keys, code = _keys(batch)
    named = np.array([len(key.symbol) <= _LONGEST_SYMBOL and "\0" not in key.symbol for key in keys])[code]
    if not named.all():
        batch, connection_index, code = batch.filter(pa.array(named)), connection_index[named], code[named]
    received = batch["received_ns"].to_numpy()
    both = connection_index.astype(np.int64) * len(keys) + code
    for at, first in _extremes(both, received, np.minimum):
        name, key = names[at // len(keys)], keys[at % len(keys)]
        connection = facts.connections[name]
        label = f"{key.channel} {key.symbol}"
        if label not in connection.first:
            facts.carries(name, key)
        connection.first[label] = min(first, connection.first.get(label, first))
    for at, last in _extremes(both, received, np.maximum):
        connection, channel = facts.connections[names[at // len(keys)]], keys[at % len(keys)].channel
        connection.last[channel] = max(last, connection.last.get(channel, last))
    if "sequence" in batch.schema.names:
        _absorb_ages(facts, received - batch["ts_ns"].to_numpy(), received, connection_index, names)
    ids, start_ns, end_ns = _numbered(batch)
    live = np.array([not facts.connections[name].fetched for name in names])[connection_index]
    strange = live & (np.abs(start_ns - received) > _DRIFT_NS)
    start_ns, end_ns = np.where(strange, received, start_ns), np.where(strange, received, end_ns)
    counted = np.array([_contiguous(key) for key in keys])[code] & (ids >= 0)
    if counted.any():
        for at, run in _runs(code[counted], ids[counted], start_ns[counted], end_ns[counted]):
            join(facts.runs.setdefault(keys[at], []), run)
            facts.touched_runs.add(keys[at])


def _absorb_ages(
    facts: Facts, age: npt.NDArray[np.int64], received: npt.NDArray[np.int64], connection_index: npt.NDArray[np.int32], names: list[str]
) -> None:
    # An event without a time of its own has the receive time instead. Its age says nothing.
    valid = (age != 0) & (np.abs(age) < _DRIFT_NS)
    age, received, connection_index = age[valid], received[valid], connection_index[valid]
    for at, least in _extremes(connection_index, age, np.minimum):
        connection = facts.connections[names[at]]
        connection.least_age_ns = least if connection.least_age_ns is None else min(connection.least_age_ns, least)
    # Of the ticks received last, take the youngest: a single one may have been reported late.
    order = np.lexsort((age, -received, connection_index))
    some = connection_index[order]
    for at in order[np.flatnonzero(np.diff(some, prepend=-1))].tolist():
        connection, last = facts.connections[names[connection_index[at]]], (int(received[at]), -int(age[at]))
        if last > (connection.last_tick_ns, -connection.last_age_ns):
            connection.last_tick_ns, connection.last_age_ns = last[0], -last[1]


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
