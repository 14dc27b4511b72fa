"""Writes the reference pages that follow from the code: commands, settings, columns. `make docs` runs it, and a test compares."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import msgspec
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from tapeline import config, records
from tapeline.cli.app import app
from tapeline.providers.registry import ARCHIVES, PROVIDERS
from tapeline.telemetry.families import FAMILIES

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py. Change the code, then run `make docs`. -->\n"

#: Command or block of the settings to the pages that say more about it.
MORE = {
    "tapeline backfill": ["[Backfill history](../history.md)", "[The providers' histories](histories.md)"],
    "tapeline compact": ["[Look after the lake](../lake-care.md#compact-a-day-now)"],
    "tapeline complete": ["[Find and fill gaps](../gaps.md)", "[Is this data complete?](../completeness.md)"],
    "tapeline export": ["[Read stored data](../read-data.md#export-plain-files)"],
    "tapeline gaps": ["[Find and fill gaps](../gaps.md)", "[States and evidence](completeness.md)"],
    "tapeline jobs run": ["[Run jobs on a schedule](../jobs.md)"],
    "tapeline lake check": ["[Findings](../operations.md#findings-of-tapeline-lake-check)"],
    "tapeline lake prune": ["[Look after the lake](../lake-care.md#keep-so-many-days-or-so-many-gigabytes)"],
    "tapeline lake repair": ["[Look after the lake](../lake-care.md#repair-damaged-files)"],
    "tapeline lake tidy": ["[What the lake does by itself](../lake.md#what-the-lake-does-by-itself)"],
    "tapeline ledger": ["[Is this data complete?](../completeness.md)"],
    "tapeline normalize": ["[Scale out](../scaling.md)"],
    "tapeline reconcile": [
        "[Reconciling a day](../history.md#reconciling-a-day)",
        "[What reconcile proves](../history-pages.md#what-reconcile-proves)",
    ],
    "tapeline rejected list": ["[Look at rejected events](../rejected.md)"],
    "tapeline rejected retry": ["[Look at rejected events](../rejected.md)"],
    "tapeline rejected show": ["[Look at rejected events](../rejected.md)"],
    "tapeline rename": ["[Rename a symbol that was split wrongly](../rename.md)"],
    "tapeline repair": ["[Find and fill gaps](../gaps.md)", "[How gaps are filled](../completeness.md#how-gaps-are-filled)"],
    "tapeline replay": ["[Read stored data](../read-data.md#publish-it-to-another-stream)"],
    "tapeline schedule": ["[Run jobs on a schedule](../jobs.md)"],
    "tapeline simulate": ["[Simulate a provider](../simulators.md)", "[The simulators](simulators.md)"],
    "tapeline sql": ["[Views](views.md)", "[Columns](columns.md)"],
    "tapeline status": ["[Messages](../operations.md)"],
    "[stream]": ["[Use Kafka or Redis](../brokers.md)", "[Streams and topics](topics.md)"],
    "[[providers]]": [
        "[Fields of each provider](../records.md)",
        "[Two lines](../completeness.md#two-lines)",
        "[Backfill history](../history.md)",
    ],
    "[[stores]]": ["[Look after the lake](../lake-care.md)", "[Store in PostgreSQL](../postgres.md)"],
    "[[jobs]]": ["[Run jobs on a schedule](../jobs.md)"],
    "[[sla]]": ["[Promises and alerts](../alerts.md)"],
    "[monitor]": ["[Watch it with Prometheus](../monitoring.md)", "[Metrics](metrics.md)"],
}


def commands() -> str:
    """Every command, with what its help says."""
    import tapeline.cli  # noqa: F401 the commands register themselves

    found = [NOTE, "# Commands\n", "[Exit statuses](exit-statuses.md) lists the statuses with which a command may end.\n"]
    for name, command in _leaves(get_command(app), "tapeline"):
        help_text = inspect.cleandoc(command.help or "").replace("<", "&lt;")
        found.append(f"## `{name}`\n\n{help_text}\n")
        shown = [parameter for parameter in command.params if isinstance(parameter, TyperOption | TyperArgument)]
        rows = [_row(parameter) for parameter in shown if parameter.name != "help"]
        if rows:
            found.append("| option | what | if left out |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n")
        found += _more(name)
    return "\n".join(found)


def _leaves(command: object, name: str) -> list[tuple[str, TyperCommand]]:
    if isinstance(command, TyperGroup):
        return [leaf for word, inner in sorted(command.commands.items()) for leaf in _leaves(inner, f"{name} {word}")]
    assert isinstance(command, TyperCommand), f"{name} is neither a command nor a group of commands"
    return [(name, command)]


def _more(name: str) -> list[str]:
    return [f"More: {', '.join(MORE[name])}.\n"] if name in MORE else []


def _row(parameter: TyperOption | TyperArgument) -> str:
    is_argument = isinstance(parameter, TyperArgument)
    names = f"`{str(parameter.name).upper()}`" if is_argument else " ".join(f"`{one}`" for one in parameter.opts)
    what = " ".join((parameter.help or "").split()).replace("|", "\\|")
    default = parameter.default
    needed = "must be given" if parameter.required else "" if default in (None, False) or callable(default) else f"`{default}`"
    return f"| {names} | {what} | {needed} |"


def settings() -> str:
    """Every key of the configuration, with the comment that stands beside it."""
    found = [NOTE, "# Settings\n", SETTINGS]
    parts = (
        ("", config.Config),
        ("[stream]", config.StreamConfig),
        ("[stream.codecs]", config.CodecsConfig),
        ("[[providers]]", config.ProviderConfig),
        ("[[stores]]", config.StoreConfig),
        ("[[jobs]]", config.JobConfig),
        ("[[sla]]", config.SlaConfig),
        ("[[notify]]", config.NotifyConfig),
        ("[monitor]", config.MonitorConfig),
        ("[dashboard]", config.DashboardConfig),
    )
    for title, struct in parts:
        found.append(f"## {'At the top' if not title else f'`{title}`'}\n\n{inspect.getdoc(struct)}\n\n{_table(struct)}\n")
        found += _more(title)
    found.append(_of_providers())
    for name, provider in PROVIDERS.items():
        if msgspec.structs.fields(provider.options):
            found.append(f"## `options` of {name}\n\n{_table(provider.options)}\n")
    found.append(_secrets())
    return "\n".join(found)


SETTINGS = """\
Tapeline reads `tapeline.toml` in the current folder, or the file that you name with `--config FILE`. If there is neither, it uses a few
symbols of a public feed. An unknown key is an error, and the message names the nearest valid key.

Environment variables override the file. The name of a variable is `TAPELINE_` and the path of the setting, with two underscores between
levels: `TAPELINE_STREAM__URL=embedded:`, `TAPELINE_PROVIDERS__0__FEED=sip`. Write lists as in TOML. The file holds no secrets
([Secrets](#secrets)).
"""


def _of_providers() -> str:
    """What a key of [[providers]] is for each provider, if it is left out."""
    rows = ["| provider | key | if left out |", "| --- | --- | --- |"]
    for name, provider in PROVIDERS.items():
        others = [f"`{feed}`" for feed in provider.feeds if feed != provider.default_feed]
        values = {"feed": f"`{provider.default_feed}`" + (f" (others: {', '.join(others)})" if others else "")}
        feed = provider.feeds[provider.default_feed]
        urls = {"url": feed.stream_url, "second_url": feed.second_url, "rest_url": feed.history_url}
        if name in ARCHIVES:
            urls["files_url"] = ARCHIVES[name].url
        values |= {key: f"`{url}`" for key, url in urls.items() if url}
        rows += [f"| {name} | `{key}` | {value} |" for key, value in values.items()]
    return "## Feeds and addresses of each provider\n\n" + "\n".join(rows) + "\n"


def _secrets() -> str:
    """Where each secret is taken from."""
    rows = ["| secret | environment variable | or the file that this key names |", "| --- | --- | --- |"]
    for name, provider in PROVIDERS.items():
        for kind, variables in provider.secrets.items():
            rows.append(f"| {kind} of {name} | {' or '.join(f'`{one}`' for one in variables)} | `{kind}_file` in `[[providers]]` |")
        variables = ARCHIVES[name].secrets if name in ARCHIVES else ("", "")
        rows += [
            f"| {kind} of the files of {name} | `{one}` | `files_{kind}_file` in `[[providers]]` |"
            for kind, one in zip(("key", "secret"), variables, strict=True)
            if one
        ]
    rows.append("| password of the user in `stream.url` | `TAPELINE_STREAM_PASSWORD` | `password_file` in `[stream]` |")
    rows.append("| password of the user in `stores[].url` | `TAPELINE_STORE_PASSWORD` | `password_file` in `[[stores]]` |")
    return "## Secrets\n\nIf a key names a file, Tapeline does not read that secret from the environment.\n\n" + "\n".join(rows) + "\n"


#: A field of a settings block: the lines `#:` above it, its name, and the comment beside it.
FIELD = re.compile(r"((?:^    #: [^\n]*\n)*)^    (\w+): [^\n]*?  # ([^\n]*)$", re.MULTILINE)


def _table(struct: type[msgspec.Struct]) -> str:
    comments = {name: _sentences(beside, above) for above, name, beside in FIELD.findall(inspect.getsource(struct))}
    rows = ["| key | default | what |", "| --- | --- | --- |"]
    for field in msgspec.structs.fields(struct):
        if isinstance(field.default, msgspec.Struct) or (
            isinstance(field.default, tuple) and field.default and isinstance(field.default[0], msgspec.Struct)
        ):
            continue
        default = (
            "" if field.required else "`{}`" if field.default is msgspec.NODEFAULT else f"`{msgspec.json.encode(field.default).decode()}`"
        )
        rows.append(f"| `{field.encode_name}` | {default} | {comments.get(field.name, '').replace('|', ' or ')}{_choices(field.type)} |")
    return "\n".join(rows)


def _sentences(beside: str, above: str) -> str:
    further = " ".join(re.findall(r"#: (.*)", above)).removesuffix(".")
    return f"{beside}. {further}" if further else beside


def _choices(kind: object) -> str:
    """The values that a setting can have, if they are few."""
    values = [f"`{value}`" for value in get_args(kind) if value] if get_origin(kind) is Literal else []
    return f" ({', '.join(values[:-1])} or {values[-1]})" if values else ""


def columns() -> str:
    """Every column of every table."""
    about = "A time is whole nanoseconds since 1970, in UTC. [Fields of each provider](../records.md) says what fills them.\n"
    found = [NOTE, "# Columns\n", about]
    source = inspect.getsource(records)
    # The title, the schema, and the first schema of the source with comments on its columns: that of a list is part of the instruments'.
    tables = [(name.lower(), name, name) for name in ("TICKS", "BARS", "NOTICES", "REJECTED")] + [("instruments", "INSTRUMENTS", "LISTED")]
    for title, name, begin in tables:
        block = source[source.index(f"{begin}: Final = pa.schema(") :]
        block = block[: block.index("\n)", block.index(f"{name}: Final = pa.schema("))]
        origin = source[source.index("_ORIGIN: Final = [") : source.index("RAW: Final")]  # the last columns of every table
        comments = dict(re.findall(r"(?:_field|pa\.field)\(\"(\w+)\"[^\n]*?\),?  # ([^\n]*)", origin + block))
        told = {field.name: comments.get(field.name, "").replace("|", " or ") for field in getattr(records, name)}
        rows = [f"| `{one.name}` | {one.type} | {'yes' if one.nullable else 'no'} | {told[one.name]} |" for one in getattr(records, name)]
        found.append(f"## `{title}`\n\n" + "\n".join(["| column | type | null | what |", "| --- | --- | --- | --- |", *rows]) + "\n")
    return "\n".join(found)


METRICS = """\
Each process of Tapeline has these metrics. The address that `[monitor] listen` names answers with those of all processes of the machine
([Watch it with Prometheus](../monitoring.md)). Every metric has the label `stage`: the process that reports it, or the stage that it is
about. The value of `connection` is the name of a connection in `tapeline status`.

A counter begins at zero when its process starts, unless it is counted in the stream or in a store. A histogram has classic buckets, and
native ones for a server that asks for them.
"""


def metrics() -> str:
    """Every metric."""
    rows = ["| metric | kind | labels | what |", "| --- | --- | --- | --- |"]
    for family in FAMILIES.values():
        labels = ", ".join(f"`{name}`" for name in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.meaning} |")
    return "\n".join([NOTE, "# Metrics\n", METRICS, *rows, ""])


PAGES = {"commands.md": commands, "settings.md": settings, "columns.md": columns, "metrics.md": metrics}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / "reference" / page).write_text(text(), encoding="utf-8")
