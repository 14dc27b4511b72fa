"""Reads files that hold one day of all tickers: each file is downloaded once, and the wanted tickers' rows are kept on local disk."""

from __future__ import annotations

import csv
import hashlib
import shutil
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import parse_qs

import msgspec
import numpy as np
import numpy.typing as npt

from tapeline.errors import DiskProblem
from tapeline.jobs.backfill.archive import piece_of
from tapeline.providers.history import MISSING, Request, WrongPage

#: How many bytes are unpacked at a time.
_BLOCK: Final = 1024 * 1024
_LONGEST_LINE: Final = 64 * 1024
_GZIP: Final = 31
_NEWLINE: Final = ord("\n")
_COMMA: Final = ord(",")
_QUOTE: Final = ord('"')
_NOTE: Final = "note.json"


class Client(Protocol):
    """Reads one bucket of the provider. Both methods raise Unavailable and Refused."""

    def version(self, path: str) -> str | None:
        """A value that changes when the file is replaced; None if there is no such file."""

    def blocks(self, path: str) -> Iterator[bytes]:
        """The bytes of a file from beginning to end, in blocks."""


class _Note(msgspec.Struct):
    """Describes the rows of a day's file on disk: the file's version, its header and the tickers."""

    version: str
    header: str
    tickers: list[str]


class DayFiles:
    """Returns a ticker's rows in pieces.

    A piece is a line with the file's version and the offset of the next piece (-1: no more), then the header, then the rows.

    A day's rows stay on disk until all wanted tickers were read to their end, so a killed job continues with them. It is safe to call from
    several threads: one thread downloads a day, and the others wait."""

    def __init__(
        self, client: Client, folder: Path, wanted: Collection[str], moment: Callable[[str, bytes], str], column: str = "ticker"
    ) -> None:
        """`folder`: where rows are kept. `wanted`: the tickers that will be requested, by the provider's own names.

        `moment(header, line)`: a line's moment; consecutive lines of the same moment stay in one piece. `column`: the ticker's column."""
        self._moment = moment
        self._client, self._wanted, self._column = client, frozenset(wanted), column
        self._folder = folder / _digest(" ".join(sorted(wanted)))  # a job for other tickers may run at the same time
        self._lock = threading.Lock()
        self._locks: dict[Path, threading.Lock] = {}
        #: The errors of files that could not be read, so that they are not downloaded again for each ticker.
        self._wrong: dict[Path, str] = {}

    def __call__(self, request: Request) -> bytes:
        """Return the piece that `request` names; a piece without rows, marked as missing, if there is no file for the day.

        Raises WrongPage for a file that cannot be read or was replaced meanwhile, DiskProblem, and the client's Unavailable and Refused."""
        path, _, query = request.path.partition("?")
        ticker, at = parse_qs(query)["ticker"][0], int(request.after.partition(" ")[2] or 0)
        day = self._folder / path.strip("/").removesuffix(".csv.gz")
        with self._lock:
            lock = self._locks.setdefault(day, threading.Lock())
        try:
            with lock:
                note = self._rows_of(path, day, ticker, begin=not at)
                return self._piece(day, note, ticker, at) if note is not None else f"{MISSING} -1\n".encode()
        except OSError as error:
            raise DiskProblem(
                f"The backfill cannot use {day}: {error}. This part of {path} was not kept. Free disk space, then start the same command "
                "again."
            ) from error

    def _rows_of(self, path: str, day: Path, ticker: str, *, begin: bool) -> _Note | None:
        """The note of the day's rows on disk; None if the provider has no file for the day.

        The file is downloaded if no rows are on disk, if they lack the ticker, or if the ticker's first piece is requested (`begin`) and
        the provider has a newer version."""
        if day in self._wrong:
            raise WrongPage(self._wrong[day])
        note = _noted(day)
        here = note is not None and ticker in note.tickers
        if here and not begin:
            return note
        version = self._client.version(path)
        if version is None:
            return None
        if here and note is not None and note.version == version:
            return note
        try:
            return self._fetch(path, day, version, self._wanted | {ticker})
        except WrongPage as error:
            self._wrong[day] = str(error)
            raise

    def _fetch(self, path: str, day: Path, version: str, tickers: frozenset[str]) -> _Note:
        aside = day.with_name(f"{day.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            try:
                header = _sort(path, _unpacked(path, self._client.blocks(path)), self._column, tickers, aside)
            except WrongPage:
                self._unchanged(path, version)  # a file replaced during the download gives parts of two files
                raise
            self._unchanged(path, version)
            note = _Note(version, header, sorted(tickers))
            (aside / _NOTE).write_bytes(msgspec.json.encode(note))
            shutil.rmtree(day, ignore_errors=True)
            aside.rename(day)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return note

    def _unchanged(self, path: str, version: str) -> None:
        if self._client.version(path) != version:
            raise WrongPage(f"{path} was published again while it was read. None of it was kept. Start the same command again.")

    def _piece(self, day: Path, note: _Note, ticker: str, at: int) -> bytes:
        table = _table(day, ticker)
        mark = table.with_suffix(".read")
        if not at:
            mark.unlink(missing_ok=True)
        piece, following = piece_of(table, at, partial(self._moment, note.header)) if table.exists() else (b"", -1)
        if following < 0:
            mark.touch()
            if all(_table(day, other).with_suffix(".read").exists() for other in note.tickers):
                shutil.rmtree(day)
        return f"{note.version} {following}\n{note.header}\n".encode() + piece


def _noted(day: Path) -> _Note | None:
    try:
        return msgspec.json.decode((day / _NOTE).read_bytes(), type=_Note)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _table(day: Path, ticker: str) -> Path:
    """The file of a ticker's rows. Its name is a digest: tickers may differ only in case, or have characters that file names may not."""
    return day / f"{_digest(ticker)}.csv"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _unpacked(path: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The unpacked content of a gzip file, which may have several members, in blocks of bounded size. Raises WrongPage if it is damaged."""
    unpacking = zlib.decompressobj(_GZIP)
    begun = False
    try:
        for block in blocks:
            while block:
                if unpacking.eof:
                    unpacking, begun = zlib.decompressobj(_GZIP), False
                begun = True
                yield unpacking.decompress(block, _BLOCK)
                block = unpacking.unused_data if unpacking.eof else unpacking.unconsumed_tail
        while not unpacking.eof and (more := unpacking.decompress(b"", _BLOCK)):
            yield more
    except zlib.error as error:
        raise WrongPage(f"{path} is not a readable gzip file: {error}. None of it was kept.") from error
    if not (begun and unpacking.eof):
        raise WrongPage(f"{path} ends in the middle of its gzip data. None of it was kept. Try again later.")


def _sort(path: str, blocks: Iterable[bytes], column: str, tickers: frozenset[str], to: Path) -> str:
    """Write each wanted ticker's lines to its file, in their order, and return the header. Raises WrongPage for an unexpected file."""
    wanted = sorted(ticker.encode() for ticker in tickers)
    names, tables = np.array(wanted), [_table(to, name.decode()) for name in wanted]
    header, place = "", 0
    for lines in _whole_lines(path, blocks):
        text = lines
        if not header:
            first, _, text = lines.partition(b"\n")
            header = first.decode("utf-8", "replace").strip()
            if column not in header.split(","):
                raise WrongPage(f"{path} begins with {header[:80]!r}, which has no column {column}. None of it was kept.")
            place = header.split(",").index(column)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE) + 1
        if not len(ends):
            continue
        starts = np.concatenate([[0], ends[:-1]])
        quoted = bool((np.frombuffer(text, np.uint8)[starts] == _QUOTE).any())
        cells = _cells(text, place) if place or quoted else _first_cells(text, starts, names.itemsize)
        which = np.minimum(np.searchsorted(names, cells), len(names) - 1)
        hits = np.flatnonzero(names[which] == cells)
        if not len(hits):
            continue
        runs: dict[int, list[bytes]] = {}
        for run in np.split(hits, np.flatnonzero((np.diff(hits) != 1) | (np.diff(which[hits]) != 0)) + 1):
            runs.setdefault(int(which[run[0]]), []).append(text[starts[run[0]] : ends[run[-1]]])
        for at, some in runs.items():
            with tables[at].open("ab") as file:
                file.writelines(some)
    if not header:
        raise WrongPage(f"{path} is empty. None of it was kept.")
    return header


def _first_cells(text: bytes, starts: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.bytes_]:
    """The first cell of each line, cut after `width` + 1 bytes. It works on the whole array, because a day may have a billion lines."""
    padded = np.frombuffer(text + bytes(width + 1), np.uint8)
    cells = padded[starts[:, None] + np.arange(width + 1)]
    behind = np.logical_or.accumulate(cells == _COMMA, axis=1)
    cells[behind] = 0
    first: npt.NDArray[np.bytes_] = cells.view(f"S{width + 1}").ravel()
    return first


def _cells(text: bytes, place: int) -> npt.NDArray[np.bytes_]:
    """The cell number `place` (from 0) of each line; empty if a line has fewer cells."""
    rows = (next(csv.reader([line]), []) for line in text.decode("utf-8", "replace").split("\n")[:-1])
    return np.array([row[place].encode() if place < len(row) else b"" for row in rows])


def _whole_lines(path: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that end at the end of a line. Raises WrongPage for a line of more than 64 KiB."""
    rest = b""
    for block in blocks:
        lines, newline, more = block.rpartition(b"\n")
        if newline:
            yield rest + lines + newline
            rest = more
        else:
            rest += more
        if len(rest) > _LONGEST_LINE:
            raise WrongPage(f"{path} has a line of more than {_LONGEST_LINE} bytes, so it is not the expected CSV. None of it was kept.")
    if rest:
        yield rest + b"\n"
