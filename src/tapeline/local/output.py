"""Writes tables to the screen, a file or a pipe, in the requested format."""

from __future__ import annotations

import base64
import datetime
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tapeline.local.console import Output, printable

#: Texts that a spreadsheet would calculate as a formula.
_FORMULA: Final = r"^[=+\-@\t\r]"
_NUMBER: Final = r"^[+\-]?(\d+\.?\d*|\.\d+)([eE][+\-]?\d+)?$"
#: The most rows that the format `table` shows. The other formats give all rows.
_SHOWN_ROWS: Final = 40


def write(table: pa.Table, form: str, output: Path | None) -> None:
    """Write a table to `output`, or to the standard output if it is None. `form` is table, csv, json (one object a line) or parquet."""
    if form in ("table", "json"):
        table = _with_readable_times(table)
    if form == "table":
        console = Output(file=output.open("w") if output else None)
        _show(table, console)
        return
    sink: BinaryIO = output.open("wb") if output else sys.stdout.buffer
    if form == "csv":
        pa_csv.write_csv(without_formulas(table), sink)
    elif form == "parquet":
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        sink.write(buffer.getvalue())
    else:
        for line in json_lines(table):
            sink.write(line.encode() + b"\n")
    sink.flush()
    if output:
        sink.close()


def show_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows of texts as a table. The last column takes what is left of the screen's width, and breaks into lines."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    *names, last = rows[0]
    for name in names:
        shown.add_column(name, no_wrap=True)
    shown.add_column(last, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(value)) for value in row.values()))
    Output().print(shown)


def without_formulas(table: pa.Table) -> pa.Table:
    """The table with an apostrophe before each text that a spreadsheet would take for a formula. Numbers written as text stay unchanged."""
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            column = table[at]
            formula = pc.and_not(pc.match_substring_regex(column, _FORMULA), pc.match_substring_regex(column, _NUMBER))
            if pc.any(formula).as_py():
                marked = pc.binary_join_element_wise(pa.scalar("'", field.type), column, pa.scalar("", field.type))
                table = table.set_column(at, field, pc.if_else(pc.fill_null(formula, False), marked, column))
    return table


def _with_readable_times(table: pa.Table) -> pa.Table:
    """The table with its nanosecond times as text, because Python's own times have only microseconds."""
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            text = pc.replace_substring(table[at].cast(pa.timestamp("ns")).cast(pa.string()), " ", "T")
            table = table.set_column(at, field.name, pc.binary_join_element_wise(text, "+00:00", "") if field.type.tz else text)
    return table


def json_lines(table: pa.Table) -> Iterator[str]:
    """Each row as a JSON object. Bytes become text if they are UTF-8, else base64."""
    for batch in table.to_batches(max_chunksize=8192):
        for row in batch.to_pylist():
            yield json.dumps({name: plain(value) for name, value in row.items()})


def plain(value: object) -> object:
    """A value as JSON can hold it. Bytes become text if they are UTF-8, else base64. NaN and infinity become null."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


def _show(table: pa.Table, console: Console) -> None:
    """Print a table if it fits the screen. Otherwise print each row as a block of lines, so that nothing is cut off."""
    shown_rows = table.slice(0, _SHOWN_ROWS).to_pylist()
    rows = [["" if value is None else printable(str(plain(value))) for value in row.values()] for row in shown_rows]
    names = table.schema.names
    widths = [max([len(name), *(len(row[at]) for row in rows)]) for at, name in enumerate(names)]
    if sum(widths) + 2 * len(widths) <= console.width:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for field in table.schema:
            numeric = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
            shown.add_column(field.name, justify="right" if numeric else "left", no_wrap=True)
        for row in rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
    else:
        pad = max(map(len, names))
        for number, row in enumerate(rows, 1):
            console.print(f"-- {number}", style="dim")
            for name, value in zip(names, row, strict=True):
                console.print(Text.assemble((name.ljust(pad), "bold"), f"  {value}"), soft_wrap=True)
    if table.num_rows > _SHOWN_ROWS:
        console.print(f"{table.num_rows - _SHOWN_ROWS:,} more rows. Use --format csv, json or parquet to get them all.", style="dim")
