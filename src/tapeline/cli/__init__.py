"""The command line. A shell calls `main`. Each module here has the commands of one concern."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

from rich.console import Console

# --help lists the commands in the order of these imports.
# isort: off
from tapeline.cli import stages, trying, looking, completeness, backfilling, rejected, lake, renaming, exporting, jobs, alerts, dashboard

# isort: on
from tapeline.cli.app import app
from tapeline.cli.terminal import escape, without_secrets
from tapeline.errors import DiskProblem, TapelineError
from tapeline.local import without_pandas
from tapeline.local.console import printable

__all__ = [
    "alerts",
    "app",
    "backfilling",
    "completeness",
    "dashboard",
    "exporting",
    "jobs",
    "lake",
    "looking",
    "main",
    "rejected",
    "renaming",
    "stages",
    "trying",
]


def main() -> NoReturn:
    """Entry point. An error becomes one message on stderr and an exit status with a meaning (docs/reference/exit-statuses.md)."""
    without_pandas.keep_out()  # no command uses what pyarrow would do with it
    try:
        app(prog_name="tapeline")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except TapelineError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(printable(without_secrets(str(error))))}", highlight=False, soft_wrap=True)
        status = getattr(error, "status", error.exit_status)
    except OSError:
        if (failed := _output_error()) is None:
            raise  # of something else: it must not look like an end without an error
        status = _not_written(failed)
    except KeyboardInterrupt:
        status = 130
    _end(status)


def _output_error() -> OSError | None:
    """Write out what is left of the output. Return the error if that is impossible."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _not_written(error: OSError) -> int:
    """Say that the output could not be written, and return the status. The reader of a pipe may leave: that is no error."""
    if isinstance(error, BrokenPipeError):
        return 0
    with suppress(OSError):
        sys.stderr.write(f"error: The output could not be written: {error.strerror}. Free disk space, or write it elsewhere.\n")
    return DiskProblem.exit_status


def _end(status: int) -> NoReturn:
    """End the process now. Every command has closed what it opened.

    The interpreter would first destroy the clients of libraries that are still in memory. librdkafka waits there for a broker that is away,
    for more than a minute (2.16), and DuckDB's bindings print what they have leaked."""
    logging.shutdown()
    if (failed := _output_error()) is not None:
        status = status or _not_written(failed)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)
