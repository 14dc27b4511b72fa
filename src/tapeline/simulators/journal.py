"""The journal: an independent record of every event that a simulator handed to a socket, one JSON object a line."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from tapeline.simulators.events import Event, Topic

_FLUSH_BYTES = 1 << 20


class Journal:
    """Writes lines to a file, buffered; `flush` puts them on disk.

    Keys: provider, feed, channel, symbol (the provider's own name), id, connection (counted from 1), event (the fields as sent; null if
    the event is malformed on purpose). Some lines have more keys: `raw` is true for a malformed event, with its bytes in `text` (or in
    `hex`, if they are not text); `repeat` is true for an event that was sent before; `skipped` is true for an event that was generated
    and never sent.
    """

    def __init__(self, path: Path | None, provider: str) -> None:
        self._path = path
        self._provider = provider
        self._file: IO[bytes] | None = None
        self._lines: list[bytes] = []
        self._bytes = 0
        self._heads: dict[Topic, bytes] = {}

    def open(self) -> None:
        """Start a new file, if the journal has a path."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb", buffering=0)

    def close(self) -> None:
        """Write what is left and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def flush(self) -> None:
        """Hand every line to the operating system."""
        if self._lines and self._file is not None:
            self._file.write(b"".join(self._lines))
        self._lines.clear()
        self._bytes = 0

    def write(self, event: Event, text: bytes, connection: int, *, repeat: bool = False, skipped: bool = False) -> None:
        """Record one event; `text` is its JSON as sent (or the malformed bytes)."""
        if self._file is None:
            return
        head = self._heads.get(event.topic) or self._head(event.topic)
        mark = b',"repeat":true' if repeat else b',"skipped":true' if skipped else b""
        body = _malformed(text) if event.raw else b',"event":' + text
        line = b'%b%b%b,"connection":%d%b}\n' % (head, _id(event.id), mark, connection, body)
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes > _FLUSH_BYTES:
            self.flush()

    def _head(self, topic: Topic) -> bytes:
        named = {
            "provider": self._provider,
            "feed": topic.feed,
            "channel": topic.channel,
            "symbol": topic.symbol,
        }
        head = self._heads[topic] = msgspec.json.encode(named)[:-1] + b',"id":'
        return head


def _id(value: int | str | None) -> bytes:
    return b"%d" % value if isinstance(value, int) else msgspec.json.encode(value)


def _malformed(data: bytes) -> bytes:
    try:
        return b',"event":null,"raw":true,"text":' + msgspec.json.encode(data.decode())
    except UnicodeDecodeError:
        return b',"event":null,"raw":true,"hex":"%b"' % data.hex().encode()
