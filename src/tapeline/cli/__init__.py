"""The command line. A shell calls `main`. Each module here has the commands of one concern."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

from rich.console import Console

# --help lists the commands in the order of these imports.
# isort: off
from tapeline.cli import stages, trying, looking, completeness, backfilling, rejected, lake, renaming, exporting

# isort: on
from tapeline.cli.app import app
from tapeline.cli.terminal import escape, without_secrets
from tapeline.errors import TapelineError
from tapeline.local.console import printable

__all__ = ["app", "backfilling", "completeness", "exporting", "lake", "looking", "main", "rejected", "renaming", "stages", "trying"]


class _WithoutPandas(MetaPathFinder):
    """Keeps pyarrow from loading pandas, which no command uses. It would cost every stage 50 MB and a quarter of a second."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        del path, target
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


def main() -> None:
    """Entry point. An error becomes one message on stderr and an exit status with a meaning (docs/commands.md)."""
    sys.meta_path.insert(0, _WithoutPandas())
    try:
        app(prog_name="tapeline")
    except TapelineError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(printable(without_secrets(str(error))))}", highlight=False, soft_wrap=True)
        sys.exit(getattr(error, "status", error.exit_status))
    except KeyboardInterrupt:
        sys.exit(130)
