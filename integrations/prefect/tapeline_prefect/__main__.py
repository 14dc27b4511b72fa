"""`python -m tapeline_prefect --config tapeline.toml`: the settings of Prefect are set before Prefect is imported."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tomllib
from pathlib import Path

from tapeline_prefect.command import CommandFailed, Tapeline, find
from tapeline_prefect.server import settings


def main() -> None:
    """Serve until stopped. The exit status is that of Tapeline's command if it could not list its jobs."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs the address of each request
    config = arguments.config.resolve()
    home = (arguments.home or _data_dir(config) / "prefect").resolve()
    api = os.environ.get("PREFECT_API_URL", "")
    # Nothing is sent to anybody, whoever's the server is.
    os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    if not api:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)  # before Prefect is imported, which would warn
        os.environ |= settings(home, arguments.port)
    from tapeline_prefect.serving import Options, serve

    # Only for the processes of the runs, as Prefect has read this process's settings: while the server restarts, a run waits four minutes.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "7")
    try:
        options = Options(
            tapeline=Tapeline(find(arguments.tapeline), str(config)),
            home=home,
            api=api or os.environ["PREFECT_API_URL"],
            port=None if api else arguments.port,
            name=arguments.name,
            at_once=arguments.at_once,
            first_wait_s=arguments.first_wait,
            late_after_s=arguments.late_after,
            poll_s=arguments.poll,
        )
        asyncio.run(serve(options))
    except (FileNotFoundError, TimeoutError) as error:
        sys.exit(f"{error}")
    except CommandFailed as error:
        print(error, file=sys.stderr)  # noqa: T201 the last word of a command
        sys.exit(error.exit_status)


def _data_dir(config: Path) -> Path:
    """The data folder of Tapeline's configuration."""
    try:
        settings_of_tapeline = tomllib.loads(config.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{config} cannot be read: {error}. Give the path of Tapeline's configuration: --config /path/to/tapeline.toml")
    return Path(str(settings_of_tapeline.get("data_dir", "./data"))).expanduser()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tapeline-prefect",
        description="Serve Tapeline's jobs in Prefect. Without PREFECT_API_URL it starts Prefect's own server on this machine.",
    )
    add = parser.add_argument
    add("--config", "-c", type=Path, default=Path("tapeline.toml"), help="Tapeline's configuration (tapeline.toml)")
    add("--tapeline", default="", help="the program tapeline; if left out, the one of this environment or on the PATH")
    add("--home", type=Path, help="the folder of Prefect's database; if left out, `prefect` in Tapeline's data folder")
    add("--port", type=int, default=4200, help="the port of Prefect's own server (4200)")
    add("--name", default="tapeline", help="the name of every deployment, if several configurations share a server (tapeline)")
    add("--at-once", type=int, default=2, help="the most runs at once (2)")
    add("--first-wait", type=float, default=30.0, help="seconds before a failed run is tried again; each wait is twice the one before (30)")
    add(
        "--late-after",
        type=float,
        help="seconds after which a run that has not succeeded is late; if left out, the job's deadline or timeout",
    )
    add("--poll", type=float, default=10.0, help="how often Prefect is asked for runs to start, in seconds (10)")
    return parser


if __name__ == "__main__":
    main()
