"""The parameters of each address, with their limits. Requests are checked by these types, and they describe the API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from tapeline.errors import WrongArgument


def _about(text: str, *examples: str) -> msgspec.Meta:
    return msgspec.Meta(description=text, examples=list(examples) or None)


Symbols = Annotated[str, _about("Canonical names with commas between them, such as AAPL,BTC/USDT.", "BTC/USDT")]
Moment = Annotated[str, _about("ISO 8601 with a zone, a UTC date, or ns since 1970.", "2026-01-05T14:30:00Z", "2026-01-05")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000_000, description="The most rows.")]
Form = Annotated[Literal["json", "csv", "arrow"], _about("JSON, CSV, or an Arrow stream with the columns of the store.")]


class Nothing(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """No parameters."""


class Ticks(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which ticks."""

    symbols: Symbols
    start: Moment
    end: Annotated[Moment, _about("The end, not included; now if left out.")] = ""
    provider: str = ""
    kind: Literal["", "trade", "quote"] = ""
    corrected: Annotated[bool, _about("Leave out trades that were taken back.")] = False
    source: Annotated[str, _about("The store: lake or postgresql.")] = "lake"
    limit: Limit = 10_000
    format: Form = "json"


class Bars(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which bars."""

    symbols: Symbols
    start: Moment
    end: Annotated[Moment, _about("The end, not included; now if left out.")] = ""
    provider: str = ""
    interval: Annotated[str, _about("Only this one, as the provider spells it: 1s, 1m, 1d.")] = ""
    source: Annotated[str, _about("The store: lake or postgresql.")] = "lake"
    limit: Limit = 10_000
    format: Form = "json"


class Coverage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which part of the grid."""

    start: Moment
    end: Moment
    step: Annotated[str, _about("The length of a cell, such as 1h or 1d.")] = "1h"
    symbols: Annotated[Symbols, _about("Only these; all if left out.")] = ""
    provider: str = ""


class Gaps(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which intervals of the ledger."""

    symbols: Annotated[Symbols, _about("Only these; all if left out.")] = ""
    provider: str = ""
    feed: str = ""
    channel: str = ""
    start: Annotated[Moment, _about("Only what ends after this.")] = ""
    end: Annotated[Moment, _about("Only what begins before this.")] = ""
    evidence: Annotated[bool, _about("Also the intervals in which nothing is missing, with their evidence.")] = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=100_000, description="The most intervals, the latest first.")] = 1_000
    format: Form = "json"


class Health(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which moment."""

    at: Annotated[Moment, _about("The last look at or before this moment of the last hour; the present if left out.")] = ""


class Past(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which part of the last hour."""

    seconds: Annotated[int, msgspec.Meta(ge=1, le=3_600, description="How far back.")] = 900
    end: Annotated[Moment, _about("The end, not included; now if left out.")] = ""
    points: Annotated[int, msgspec.Meta(ge=1, le=3_600, description="The most points of a line.")] = 300


class Runs(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which runs of jobs."""

    job: Annotated[str, _about("Only the runs of this job.")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000, description="The most runs, the latest first.")] = 50


class Stream(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a client of the live feed wants."""

    symbols: Annotated[str, _about("Canonical names and patterns with commas between them, such as BTC/*,AAPL.")] = ""
    kinds: Annotated[str, _about("Some of: ticks, bars, latest, health, gaps, jobs, alerts. With symbols and without kinds: ticks.")] = ""
    rate: Annotated[float, msgspec.Meta(ge=0.1, le=20, description="How many times a second at most `latest` is sent.")] = 2.0
    format: Annotated[Literal["json", "arrow", "protobuf"], _about("Another form than JSON needs a websocket.")] = "json"
    since: Annotated[str, _about("The id of the last message that the client got, as the header Last-Event-ID.")] = ""


class RunJob(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A job to run now."""

    job: str
    #: They replace the configured ones.
    arguments: dict[str, Any] = {}


class Repair(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which gaps are to be requested from the provider's history."""

    symbols: Annotated[list[str], msgspec.Meta(max_length=1_000)] = []
    provider: str | None = None


def split(text: str) -> list[str]:
    """Return the names in a parameter."""
    return [name for name in text.split(",") if name]


def read(kind: type[msgspec.Struct], parameters: dict[str, str]) -> msgspec.Struct:
    """Return the parameters of a request as a type of this module. Raises WrongArgument, which names the parameter."""
    try:
        return msgspec.convert(parameters, kind, strict=False)
    except msgspec.ValidationError as error:
        valid = ", ".join(field.encode_name for field in msgspec.structs.fields(kind)) or "none"
        raise WrongArgument(f"{str(error).replace('$.', '').replace('Object', 'The request')}. The parameters are: {valid}.") from None
