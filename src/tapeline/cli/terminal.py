"""What every command shares: reading the configuration, the log, the output, and stopping."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.logging import RichHandler

from tapeline.config import Config, environment, load, secrets_of
from tapeline.errors import ConfigError
from tapeline.local.console import printable
from tapeline.local.locks import own
from tapeline.records import NS_PER_S
from tapeline.secret import Guard

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The configuration file; tapeline.toml in the current folder if left out.")
]


class Format(StrEnum):
    """The formats in which a query's rows are printed or written to a file."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class TableOrJson(StrEnum):
    """The formats of a result that is not a table of rows."""

    table = "table"
    json = "json"


def load_config(path: Path | None) -> Config:
    """Start logging to stderr, read the configuration, and keep its secrets out of the log and of errors. Raises ConfigError.

    `path`: as in `config.load`.
    """
    _log_to_stderr()
    config = load(path, environment())
    for guard in _guards():
        guard.learn(secrets_of(config, environment()))
    return config


def without_secrets(text: str) -> str:
    """The text with every secret removed."""
    for guard in _guards():
        text = guard.cleaned(text)
    return text


def _guards() -> list[Guard]:
    return [some for handler in logging.getLogger().handlers for some in handler.filters if isinstance(some, Guard)]


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """The reader of our output (head, less) may close the pipe early. This is not an error."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def _log_to_stderr() -> None:
    supervised = "TAPELINE_LOG" in os.environ
    logging.getLogger("picows").setLevel(logging.WARNING)  # it logs the socket options of each connection
    if sys.stderr.isatty() and not supervised:
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if not _guards():
        guard = Guard(secrets_of(Config(), environment()))  # before the configuration is read, so that its own errors are guarded too
        for handler in logging.getLogger().handlers:
            handler.addFilter(guard)


def terminal() -> Console:
    """The console of the log, on stderr. A live table that uses it does not collide with the log's lines."""
    consoles = [handler.console for handler in logging.getLogger().handlers if isinstance(handler, RichHandler)]
    return consoles[0] if consoles else Console(stderr=True)


_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
#: The pipe's end that signals are written to.
_wakeup_fds: list[int] = []


def stop_on_signal(*, with_parent: bool = False) -> threading.Event:
    """An event that is set by SIGTERM, by SIGINT and, `with_parent`, by the supervisor's death."""
    stop = threading.Event()
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)  # required of a signal's write

    def set_on_signal() -> None:
        while number := os.read(read_fd, 1):
            if number[0] in _STOPPING:
                stop.set()
        os.close(read_fd)

    # A handler in Python runs late: only when the main thread has come back from a library's call. It also interrupts that thread
    # anywhere, even while it holds the event's own lock. Python's handler in C writes each signal's number at once.
    threading.Thread(target=set_on_signal, name="wait for a signal", daemon=True).start()
    for number in _STOPPING:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    while _wakeup_fds:
        os.close(_wakeup_fds.pop())  # ends the thread that listened until now
    _wakeup_fds.append(write_fd)
    if with_parent and supervisor() is not None:
        threading.Thread(target=_watch_parent, args=(stop,), name="watch supervisor", daemon=True).start()
    return stop


def supervisor() -> int | None:
    """The supervisor's process id, if a supervisor started this stage."""
    mode, _, pid = os.environ.get("TAPELINE_LOG", "").partition(" ")
    return int(pid) if mode == "supervised" else None


def _watch_parent(stop: threading.Event) -> None:
    """Stop when the supervisor is gone: one that was killed cannot stop its stages."""
    while os.getppid() == supervisor() and not stop.wait(0.5):
        pass
    stop.set()


def midnight_ns(text: str) -> int:
    """The first moment of a UTC day, in ns. Raises ConfigError if the text is not a day."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a day. Write it like 2026-01-05.") from None
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * NS_PER_S


def run_loop(body: Any) -> None:
    """Run a coroutine function, on uvloop if it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(body())
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


def echo(text: str, *, err: bool = False) -> None:
    """Print one line of plain text, whatever characters it contains."""
    typer.echo(printable(text), err=err)


def escape(text: str) -> str:
    """Return the text so that rich prints its square brackets as they are."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def own_stage(settings: Config, stage: str, stop: threading.Event | None = None) -> Iterator[None]:
    """A stage's lock, and its answers over HTTP. Under a supervisor, the supervisor answers.

    Under a supervisor, this also waits for a predecessor that is just ending: at most as long as it may take to finish its work, and not
    after `stop`."""
    gc.freeze()  # objects from start-up are never garbage; a collection that walks them all would add latency
    wait_s = 90.0 if supervisor() is not None else 0.0
    with own(settings.root / "locks" / stage, f"tapeline {stage}", wait_s=wait_s, stop=stop), answering(settings, stage):
        yield


def answering(settings: Config, stage: str) -> AbstractContextManager[None]:
    """Answer for a stage over HTTP while the block runs. Under a supervisor, the supervisor answers."""
    if supervisor() is not None:
        return nullcontext()
    from tapeline.app.monitor import monitored

    return monitored(settings, {stage})


def progress(*columns: str | ProgressColumn, shown: bool = True) -> Progress:
    """A progress bar that disappears when it is done. There is none if stderr is not a terminal."""
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)


@contextmanager
def progress_bars(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal for each table that is processed."""
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn

    rows = TextColumn("{task.completed:,} of {task.total:,} rows")
    columns = (TextColumn("{task.description}"), BarColumn(), rows, TimeRemainingColumn())
    with progress(*columns) as bar:
        tasks: dict[str, TaskID] = {}

        def report(table: str, done: int, rows: int) -> None:
            if table not in tasks:
                tasks[table] = bar.add_task(f"{what} {table}", total=rows)
            bar.update(tasks[table], completed=done)

        yield report
