"""The commands for trying Tapeline out: the demo, and the simulators of the providers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import echo, run_loop, stop_on_signal
from tapeline.errors import ConfigError
from tapeline.local.console import Output


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="How many seconds the simulators send.")] = 30.0,
    rate: Annotated[float, typer.Option(help="Events a second from each simulator.")] = 1000.0,
    data_dir: Annotated[
        Path, typer.Option(help="The folder for the demo's data and a tapeline.toml to read it. A folder of an earlier demo is replaced.")
    ] = Path("demo-data"),
) -> None:
    """Run the whole pipeline against three local simulators. There is nothing to set up, and no network is needed.

    Status 0: every event that the simulators sent is in the lake exactly once, or was rejected with a reason. Status 1: some event is not.
    """
    from tapeline.demo.demo import Demo

    console = Output()
    ok = Demo(data_dir.resolve(), seconds, rate, console).run(stop_on_signal())
    raise typer.Exit(0 if ok else 1)


@app.command()
def simulate(
    name: Annotated[str, typer.Argument(help="The provider to simulate. An unknown name lists the providers.", metavar="PROVIDER")],
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes any free port.")] = 0,
    host: Annotated[str, typer.Option(help="The address to listen on. Whoever reaches it is served.")] = "127.0.0.1",
    files_port: Annotated[int | None, typer.Option(help="polygon: serve its flat files too, on this port; 0 takes any free port.")] = None,
    rate: Annotated[float, typer.Option(help="Events a second.")] = 1000.0,
    symbols: Annotated[str, typer.Option(help="Comma-separated, the provider's own names; a default set if left out.")] = "",
    capture: Annotated[list[Path] | None, typer.Option(help="Replay this recording instead of generating a market; repeatable.")] = None,
    speed: Annotated[float, typer.Option(help="The pace of a replay. 1: as recorded; 0: as fast as the client reads.")] = 1.0,
    fault: Annotated[list[str] | None, typer.Option(help="A fault: name or name:parameter; repeatable. `--fault list` shows all.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Serve wss with a test certificate for localhost.")] = False,
    seed: Annotated[int, typer.Option(help="The seed of the generated market. The same seed makes the same market.")] = 1,
    journal: Annotated[Path | None, typer.Option(help="Write each event that is sent into this file, one JSON object a line.")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop sending after this many events.")] = None,
    day_seconds: Annotated[
        float, typer.Option(help="The length of a day in seconds. Binance closes each connection after a day.")
    ] = 86400.0,
) -> None:
    """Run a local simulator of a provider, on real sockets, for tests and CI.

    Example: `tapeline simulate binance --port 9101 --rate 5000 --fault reset:30`
    """
    from tapeline.simulators import FAULTS, SimulatorOptions, serve

    if fault == ["list"]:
        return echo("\n".join(f"{fault_name:20} {text}" for fault_name, text in FAULTS.items()))
    try:
        options = SimulatorOptions(
            name=name,
            host=host,
            port=port,
            files_port=files_port,
            rate=rate,
            symbols=tuple(text for text in symbols.split(",") if text),
            captures=tuple(capture or ()),
            speed=speed,
            faults=tuple(fault or ()),
            tls=tls,
            seed=seed,
            journal=journal,
            limit=limit,
            day_seconds=day_seconds,
        )
        run_loop(lambda: serve(options))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        ports = f"port {port}" if files_port is None else f"port {port} or {files_port}"
        text = f"{ports} cannot be opened at {host}: {error.strerror or error}. Choose another --port, or 0 for any free port."
        raise ConfigError(text) from error
