"""The command that serves the dashboard, the live feed and the history over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, echo, load_config, own_stage, run_loop, stop_on_signal, supervisor
from tapeline.errors import ConfigError


@app.command()
def dashboard(
    config: ConfigOption = None,
    listen: Annotated[str, typer.Option(help="The address, as host:port; [dashboard] listen if left out.")] = "",
) -> None:
    """Serve the dashboard: a page that shows the pipeline live. The same address has the live feed and the history, for programs.

    Everything but loopback needs a token (TAPELINE_DASHBOARD_TOKEN).

    Example: `tapeline dashboard --listen 127.0.0.1:8765`
    """
    from msgspec.structs import replace

    from tapeline.config import parse_listen
    from tapeline.web.server import serve

    settings = load_config(config)
    if listen:
        settings = replace(settings, dashboard=replace(settings.dashboard, listen=parse_listen("--listen", listen)))
    if not settings.dashboard.listen:
        raise ConfigError("[dashboard] listen is empty. Set it to an address, such as 127.0.0.1:8765, or give --listen.")
    stop = stop_on_signal(with_parent=True)

    def ready(address: str) -> None:
        if supervisor() is None:
            echo(f"The dashboard is at {address}. Press Ctrl-C to stop it.", err=True)

    with own_stage(settings, "dashboard", stop):
        run_loop(lambda: serve(settings, config, stop, ready))
