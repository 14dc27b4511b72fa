"""The commands for alerts: list them, send a test message, and raise or resolve one for another program."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, TableOrJson, echo, load_config, reader_may_leave
from tapeline.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from tapeline.orchestration.alerts import Alert, Alerts

alerts_app = typer.Typer(invoke_without_command=True, help="List the alerts, send a test message, raise or resolve an alert.")

app.add_typer(alerts_app, name="alerts")


@alerts_app.callback()
def alerts(context: typer.Context) -> None:
    """List the alerts: without a further word, as `tapeline alerts list`."""
    if context.invoked_subcommand is None:
        alerts_list()


@alerts_app.command("list")
def alerts_list(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many alerts at most.")] = 20,
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table, or json: one object a line.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """List the alerts, the open ones first. Each row says what is wrong, since when, and who was told.

    Status 0: no alert is open. Status 1: some are.

    Example: `tapeline alerts list --format json`
    """
    from tapeline.local.output import show_rows

    found = _record(config).latest(lines)
    if format is TableOrJson.json:
        for one in found:
            echo(json.dumps(_plain(one)))
    elif not found:
        echo("There are no alerts.")
    else:
        with reader_may_leave():
            show_rows([_row(one) for one in found])
    raise typer.Exit(1 if any(one.resolved_ns is None for one in found) else 0)


@alerts_app.command("test")
def alerts_test(receiver: Annotated[str, typer.Argument(help="The name of a [[notify]] block.")], config: ConfigOption = None) -> None:
    """Send a test message to a receiver.

    Example: `tapeline alerts test ops`
    """
    from tapeline.orchestration.alerts import Alert, Message
    from tapeline.orchestration.notifying import Notifier

    now_ns = time.time_ns()
    alert = Alert(0, "test", now_ns, now_ns, None, "This is a test. Nothing is wrong.", "docs/alerts.md", (receiver,), {})
    settings = load_config(config)
    if receiver not in {some.name for some in settings.notify}:
        known = ", ".join(some.name for some in settings.notify) or "none"
        raise ConfigError(f"There is no [[notify]] block {receiver!r}. There are: {known}.")
    why = Notifier(settings).send(Message(receiver, "raised", alert))
    if why:
        raise Unavailable(f"The test message was not delivered: {why.rstrip('.')}. Correct the addresses, and try again.")
    echo(f"{receiver} accepted the test message.")


@alerts_app.command("raise")
def alerts_raise(
    name: Annotated[str, typer.Argument(help="The name of the alert.")],
    text: Annotated[str, typer.Option(help="What is wrong.")],
    notify: Annotated[list[str] | None, typer.Option(help="The name of a [[notify]] block that is told; repeatable.")] = None,
    config: ConfigOption = None,
) -> None:
    """Raise an alert, for a program that watches Tapeline. If it is open already, only its text changes.

    Example: `tapeline alerts raise "job reconcile" --text "It is late."`
    """
    from tapeline.orchestration.alerts import Problem
    from tapeline.orchestration.notifying import Notifier
    from tapeline.orchestration.watching import OTHERS

    record, settings = _record(config), load_config(config)
    receivers = tuple(notify or (some.name for some in settings.notify))
    record.raise_(Problem(name, text, OTHERS, receivers))
    record.tell(Notifier(settings).send, {})
    echo(f"The alert {name!r} is open.")


@alerts_app.command("resolve")
def alerts_resolve(name: Annotated[str, typer.Argument(help="The name of the alert.")], config: ConfigOption = None) -> None:
    """Resolve an alert that `tapeline alerts raise` raised. It is no error if there is none of this name."""
    from tapeline.orchestration.notifying import Notifier

    record = _record(config)
    known = record.resolve(name)
    record.tell(Notifier(load_config(config)).send, {})
    echo(f"The alert {name!r} is resolved." if known else f"No alert {name!r} was open.")


def _record(config: Any) -> Alerts:
    from tapeline.orchestration.alerts import Alerts
    from tapeline.orchestration.opening import open_database

    return Alerts(open_database(load_config(config)))


def _plain(alert: Alert) -> dict[str, Any]:
    told = {receiver: {"what": one.what, "at_ns": one.at_ns} for receiver, one in alert.told.items() if one.delivered}
    return {**asdict(alert), "told": told}


def _row(alert: Alert) -> Mapping[str, str]:
    from tapeline import times

    return {
        "alert": alert.name,
        "since": times.text(alert.raised_ns)[5:16],
        "until": times.text(alert.resolved_ns)[5:16] if alert.resolved_ns is not None else "open",
        "told": ", ".join(name for name, one in alert.told.items() if one.delivered),
        "what": f"{alert.text} What to do: {alert.runbook}" if alert.resolved_ns is None else alert.text,
    }
