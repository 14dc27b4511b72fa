"""Shows the pipeline's health while it runs: a live table on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tapeline.monitor.table import line, tables

_REFRESH_S: Final = 0.5
#: A narrower terminal cannot hold the table.
_LEAST_COLUMNS: Final = 60


class Screen:
    """Shows the snapshots that `look` returns. Call `tick` often; it updates the display when that is due. `say` prints other messages
    above the table. On a terminal, the display is updated every 0.5 s, otherwise every `line_every_s` seconds."""

    def __init__(self, console: Console, look: Callable[[], Mapping[str, Any]], line_every_s: float) -> None:
        self._console = console
        self._look = look
        self._every_s = line_every_s
        self._due = time.monotonic() + min(2.0, line_every_s)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and self._console.width >= _LEAST_COLUMNS:
            self._due, self._every_s = 0.0, _REFRESH_S
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def tick(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._every_s
            self._show()

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _show(self) -> None:
        seen = self._look()
        if self._live is not None:
            self._live.update(tables(seen), refresh=True)
        else:
            self.say(line(seen))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            if kind is None:
                self._show()
            self._live.stop()
