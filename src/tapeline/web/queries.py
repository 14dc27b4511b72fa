"""The parameters of each address, with their limits. Requests are checked by these types, and they describe the API."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from tapeline.errors import WrongArgument
from tapeline.web.live.messages import Kind

_Query = TypeVar("_Query", bound=msgspec.Struct)
#: How much is repeated of a wrong value, and how long it may make what is said of it.
_SHOWN, _LONGEST = 100, 300


def _about(text: str, *examples: str) -> msgspec.Meta:
    return msgspec.Meta(description=text, examples=list(examples) or None)


Symbols = Annotated[str, _about("Canonical names with commas between them, such as AAPL,BTC/USDT.", "BTC/USDT")]
Moment = Annotated[str, _about("ISO 8601 with a zone, a UTC date, or ns since 1970.", "2026-01-05T14:30:00Z", "2026-01-05")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000_000, description="The most rows.")]
Form = Annotated[Literal["json", "csv", "arrow"], _about("JSON, CSV, or an Arrow stream with the columns of the store.")]

#: The most symbols and patterns of one subscription to the live feed.
MOST_SYMBOLS: Final = 1_000
#: How many of them may be patterns: each new symbol is compared with every pattern of every client.
MOST_PATTERNS: Final = 100
#: How many times a second at most the kind `latest` is sent, if the client does not say.
RATE: Final = 2.0
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^\[]*$")]
Wanted = Annotated[
    list[_Name],
    msgspec.Meta(
        max_length=MOST_SYMBOLS,
        description=f"Canonical names, such as AAPL, and patterns, such as BTC/* or *. At most {MOST_PATTERNS} may be patterns.",
    ),
]
WantedKinds = Annotated[list[Kind], _about("What is sent. Without it: ticks, if there are symbols.")]
FeedForm = Annotated[Literal["json", "arrow", "protobuf"], _about("Another form than JSON needs a websocket.")]


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

    symbols: Wanted = []
    kinds: WantedKinds | msgspec.UnsetType = msgspec.UNSET
    rate: Annotated[float, msgspec.Meta(ge=0.1, le=20, description="How many times a second at most `latest` is sent.")] = RATE
    format: FeedForm = "json"
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


def read(kind: type[_Query], parameters: Mapping[str, str]) -> _Query:
    """Return the parameters of a request as a type of this module. Raises WrongArgument, which names the parameter and its value."""
    valid = properties(kind)
    given = {name: split(text) if valid.get(name, {}).get("type") == "array" else text for name, text in parameters.items()}
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise WrongArgument(_wrong(error, valid, parameters)) from None


@cache
def properties(kind: type[msgspec.Struct]) -> Mapping[str, Mapping[str, Any]]:
    """Return the JSON Schema of each parameter of a type."""
    found: Mapping[str, Mapping[str, Any]] = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return found


def _wrong(error: msgspec.ValidationError, valid: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, str]) -> str:
    text, _, place = str(error)[:_LONGEST].partition(" - at `$.")
    name = place.partition("[")[0].removesuffix("`")
    if name not in valid:
        text = text.replace("Object missing required", "The request has no").replace("Object", "The request")
        return f"{text}. The parameters are: {', '.join(valid) or 'none'}."
    about = valid[name]
    choices = about.get("enum") or about.get("items", {}).get("enum", ())
    hint = f" Use {'some' if 'items' in about else 'one'} of: {', '.join(choices)}." if choices else ""
    return f"{name} = {parameters[name][:_SHOWN]!r} is wrong: {text}.{hint}"
