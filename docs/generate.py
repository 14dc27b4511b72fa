"""Writes the reference pages that follow from the code: commands, settings, columns. `make docs` runs it, and a test compares."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import msgspec
import typer
from typer.main import get_command

from tapeline import config, records
from tapeline.cli.app import app
from tapeline.providers.registry import PROVIDERS

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py. Change the code, then run `make docs`. -->\n"


def commands() -> str:
    """Every command, with what its help says."""
    import tapeline.cli  # noqa: F401 the commands register themselves

    found = [NOTE, "# Commands\n"]
    top = typer.Context(get_command(app), info_name="tapeline")
    for name, command in _leaves(top.command, "tapeline"):
        help_text = inspect.cleandoc(command.help or "").replace("<", "&lt;")
        found.append(f"## `{name}`\n\n{help_text}\n")
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            found.append("| option | what | if left out |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(found)


def _leaves(command: object, name: str) -> list[tuple[str, typer.core.TyperCommand]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(name, command)]  # type: ignore[list-item]  # a group has commands
    return [leaf for word in sorted(inner) for leaf in _leaves(inner[word], f"{name} {word}")]


def _row(parameter: object) -> str:
    names = " ".join(f"`{one}`" for one in getattr(parameter, "opts", []))
    if getattr(parameter, "param_type_name", "") == "argument":
        names = f"`{str(getattr(parameter, 'name', '')).upper()}`"
    what = " ".join(str(getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
    default = getattr(parameter, "default", None)
    needed = (
        "must be given"
        if getattr(parameter, "required", False)
        else ""
        if default in (None, False) or callable(default)
        else f"`{default}`"
    )
    return f"| {names} | {what} | {needed} |"


def settings() -> str:
    """Every key of the configuration, with the comment that stands beside it."""
    about = "The settings are in one file, `tapeline.toml`. You can also set a key in the environment, such as `TAPELINE_STREAM__URL`.\n"
    found = [NOTE, "# Settings\n", about]
    parts = (
        ("", config.Config),
        ("[stream]", config.StreamConfig),
        ("[stream.codecs]", config.CodecsConfig),
        ("[[providers]]", config.ProviderConfig),
        ("[[stores]]", config.StoreConfig),
        ("[[jobs]]", config.JobConfig),
    )
    for title, struct in parts:
        found.append(f"## {'At the top' if not title else f'`{title}`'}\n\n{inspect.getdoc(struct)}\n\n{_table(struct)}\n")
    for name, provider in PROVIDERS.items():
        if msgspec.structs.fields(provider.options):
            found.append(f"## `options` of {name}\n\n{_table(provider.options)}\n")
    return "\n".join(found)


def _table(struct: type[msgspec.Struct]) -> str:
    comments = dict(re.findall(r"^    (\w+): [^\n]*?  # ([^\n]*)$", inspect.getsource(struct), re.MULTILINE))
    rows = ["| key | default | what |", "| --- | --- | --- |"]
    for field in msgspec.structs.fields(struct):
        if isinstance(field.default, msgspec.Struct) or (
            isinstance(field.default, tuple) and field.default and isinstance(field.default[0], msgspec.Struct)
        ):
            continue
        default = (
            "" if field.required else "`{}`" if field.default is msgspec.NODEFAULT else f"`{msgspec.json.encode(field.default).decode()}`"
        )
        rows.append(f"| `{field.encode_name}` | {default} | {comments.get(field.name, '').replace('|', ' or ')} |")
    return "\n".join(rows)


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


PAGES = {"commands.md": commands, "settings.md": settings, "columns.md": columns}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / "reference" / page).write_text(text(), encoding="utf-8")
