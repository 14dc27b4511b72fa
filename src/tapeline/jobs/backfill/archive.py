"""Reads a provider's zip archives: downloads a zip, compares it with its checksum, unpacks it on local disk and reads it in pieces."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from tapeline.errors import DiskProblem
from tapeline.local.files import write
from tapeline.providers.history import Request, WrongPage

#: The size of a piece. Each piece becomes one record of the stream.
_PIECE_BYTES: Final = 512 * 1024
_BLOCK: Final = 1024 * 1024


class Client(Protocol):
    """Sends requests to the archive's address. Both methods raise Unavailable and Refused. `weight` counts against the provider's limit."""

    def get(self, path: str, weight: int) -> bytes:
        """Return a small body."""

    def download(self, path: str, weight: int, to: Path) -> None:
        """Write a large body to the file `to`."""


class Archive:
    """Returns a zip's CSV in pieces. Before each piece is a line with the zip's SHA-256 and the offset of the next piece (-1: no more)."""

    def __init__(self, client: Client, folder: Path) -> None:
        """`folder`: where unpacked files are kept while they are read."""
        self._client, self._folder = client, folder

    def __call__(self, request: Request) -> bytes:
        """Return the piece that `request` names.

        Raises WrongPage for a wrong checksum or a file that is no such zip, DiskProblem, and Unavailable and Refused from the client."""
        try:
            table = self._folder / f"{Path(request.path).stem}.csv"
            note = table.with_suffix(".sha256")
            if not (table.exists() and note.exists()):
                self._fetch(request, table, note)
            return _piece(table, note, int(request.after.partition(" ")[2] or 0))
        except OSError as error:
            raise DiskProblem(
                f"The backfill cannot use {self._folder}: {error}. This part of {request.path} was not kept. Free disk space, then start "
                "the same command again."
            ) from error

    def _fetch(self, request: Request, table: Path, note: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        checksum = self._client.get(f"{request.path}.CHECKSUM", request.weight).decode("ascii", "replace").split()
        packed = table.with_suffix(".zip")
        try:
            self._client.download(request.path, request.weight, packed)
            with packed.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not checksum or checksum[0].lower() != digest:
                raise WrongPage(
                    f"{request.path} has SHA-256 {digest}, but its CHECKSUM says {' '.join(checksum)[:80] or 'nothing'}. None of it was "
                    "kept. The provider sometimes replaces files: try again later."
                )
            _unpack(request, packed, table)
            write(note, digest.encode("ascii"))
        finally:
            packed.unlink(missing_ok=True)


def _unpack(request: Request, packed: Path, table: Path) -> None:
    aside = table.with_suffix(".part")
    try:
        with zipfile.ZipFile(packed) as zipped, aside.open("wb") as to:
            names = zipped.namelist()
            if len(names) != 1:
                raise WrongPage(f"{request.path} holds {len(names)} files, but one is expected. None of it was kept.")
            with zipped.open(names[0]) as lines:
                while block := lines.read(_BLOCK):
                    to.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise WrongPage(f"{request.path} is not a readable zip file: {error}. None of it was kept.") from error
    aside.rename(table)


def _piece(table: Path, note: Path, at: int) -> bytes:
    """The piece of a file that begins at offset `at`, with its first line. The file is deleted after its last piece."""
    digest = note.read_text(encoding="ascii")
    piece, following = piece_of(table, at)
    if following < 0:
        with suppress(FileNotFoundError):
            table.unlink()
            note.unlink()
    return f"{digest} {following}\n".encode() + piece


def piece_of(table: Path, at: int, moment: Callable[[bytes], str] | None = None) -> tuple[bytes, int]:
    """The whole lines of one piece, from offset `at` of a file, and the offset of the next piece (-1: no more).

    `moment`: returns a line's moment. Consecutive lines of the same moment stay in one piece."""
    with table.open("rb") as file:
        file.seek(at)
        piece = file.read(_PIECE_BYTES)
        last = len(piece) < _PIECE_BYTES
        if not last:
            piece += file.readline()
            following = file.readline()
            if moment is not None and following:
                now = moment(piece[piece.rstrip(b"\n").rfind(b"\n") + 1 :])
                while following and moment(following) == now:
                    piece, following = piece + following, file.readline()
            last = not following
    return piece, -1 if last else at + len(piece)
