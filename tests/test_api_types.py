"""What the description of the API says of parameters and rows is what the server does: each limit at its very edge, each name."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from made import bars, ticks
from tapeline.errors import WrongArgument
from tapeline.orchestration.runs import Run
from tapeline.records import BARS_TOPIC, TICKS_TOPIC
from tapeline.web.description import asyncapi, openapi
from tapeline.web.live.messages import KINDS, ROWS, Bar, Tick
from tapeline.web.live.subscription import Request, requested
from tapeline.web.routes import STREAM, JobRun

PARAMETERS: Final = {one["name"]: one for one in openapi()["paths"][STREAM]["get"]["parameters"]}
PAGE: Final = (Path(__file__).parents[1] / "docs" / "reference" / "live-feed.md").read_text()


def shape(name: str) -> dict[str, Any]:
    found: dict[str, Any] = PARAMETERS[name]["schema"]
    return found


def refused(**parameters: str) -> str:
    with pytest.raises(WrongArgument) as caught:
        requested(parameters)
    return str(caught.value)


# The parameters of the live feed


def test_a_parameter_that_is_not_described_is_refused_and_the_described_ones_are_named() -> None:
    for name in PARAMETERS:
        requested({name: {"rate": "1", "format": "json", "kinds": "ticks"}.get(name, "A")})
    assert refused(symbol="A") == f"The request contains unknown field `symbol`. The parameters are: {', '.join(PARAMETERS)}."


def test_the_described_rates_are_those_that_are_allowed() -> None:
    least, most = shape("rate")["minimum"], shape("rate")["maximum"]
    assert [requested({"rate": str(rate)}).rate for rate in (least, most)] == [least, most]
    assert requested({}).rate == shape("rate")["default"]
    for rate in (math.nextafter(least, 0), math.nextafter(most, math.inf), math.nan, -math.inf, "fast", ""):
        assert refused(rate=str(rate)).startswith(f"rate = {str(rate)!r} is wrong: Expected `float`")
    assert f"{least} to {most:g}" in PAGE


@pytest.mark.parametrize(("name", "field"), [("kinds", "kinds"), ("format", "form")])
def test_the_described_names_are_those_that_are_allowed(name: str, field: str) -> None:
    several = "items" in shape(name)
    names = (shape(name)["items"] if several else shape(name))["enum"]
    for one in names:
        assert getattr(requested({name: one}), field) == ({one} if several else one)
        assert f"`{one}`" in PAGE
        assert f"is wrong: Invalid enum value '{one}s'. Use {'some' if several else 'one'} of: {', '.join(names)}." in refused(
            **{name: f"{one}s"}
        )


def test_all_kinds_can_be_asked_for_at_once_as_the_description_says() -> None:
    assert (PARAMETERS["kinds"]["style"], PARAMETERS["kinds"]["explode"]) == ("form", False)
    assert sorted(KINDS) == shape("kinds")["items"]["enum"]
    assert requested({"kinds": ",".join(KINDS)}).kinds == set(KINDS)


def test_the_described_number_and_length_of_symbols_are_those_that_are_allowed() -> None:
    most, longest = shape("symbols")["maxItems"], shape("symbols")["items"]["maxLength"]
    names = [f"NAME{number}" for number in range(most + 1)]
    assert requested({"symbols": ",".join(names[:most])}).symbols == set(names[:most])
    assert f"Expected `array` of length <= {most}" in refused(symbols=",".join(names))
    assert requested({"symbols": "A" * longest}).symbols == {"A" * longest}
    assert f"Expected `str` of length <= {longest}" in refused(symbols="A" * (longest + 1))
    for name in ("[A]", "A["):
        assert re.search(shape("symbols")["items"]["pattern"], name) is None
        assert "Expected `str` matching regex" in refused(symbols=name)
    patterns = int(re.search(r"(\d+) may be patterns", PARAMETERS["symbols"]["description"])[1])  # type: ignore[index]
    assert len(requested({"symbols": ",".join(f"A{number}*" for number in range(patterns))}).symbols) == patterns
    assert f"symbols has {patterns + 1} patterns" in refused(symbols=",".join(f"A{number}*" for number in range(patterns + 1)))
    assert f"{most:,}, of which at most {patterns} are patterns; {longest} characters each" in PAGE


def test_a_change_of_a_subscription_has_the_limits_of_a_subscription() -> None:
    change = asyncapi()["components"]["schemas"]["Change"]["properties"]
    for name in ("symbols", "kinds"):
        assert {key: value for key, value in change[name].items() if key != "default"} == {
            key: value for key, value in shape(name).items() if key != "default"
        }
    subscription = requested({"symbols": ",".join(f"NAME{number}" for number in range(shape("symbols")["maxItems"]))})
    with pytest.raises(WrongArgument, match="Use at most"):
        subscription.changed(msgspec.json.decode(b'{"subscribe": {"symbols": ["ONE/MORE"]}}', type=Request))
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'tick'"):
        msgspec.json.decode(b'{"subscribe": {"kinds": ["tick"]}}', type=Request)


# The rows


@pytest.mark.parametrize(
    ("topic", "kind", "batch"), [(TICKS_TOPIC, Tick, ticks({}, {"kind": "quote", "bid": 0.5})), (BARS_TOPIC, Bar, bars({}))]
)
def test_a_row_has_what_is_known_of_each_column(topic: Any, kind: type[msgspec.Struct], batch: Any) -> None:
    """`id` names the frame that brought it, and numbers that are too large for JavaScript are text."""
    ns = {"ts_ns", "received_ns", "sequence"}
    names = [field.name for field in msgspec.structs.fields(kind)]
    for row, encoded in zip(batch.to_pylist(), ROWS[topic.table](batch), strict=True):
        known = {name: str(row[name]) if name in ns else row[name] for name in names if row.get(name) is not None}
        known["id"] = f"{row['raw_partition']}-{row['raw_offset']}-{row['raw_index']}"
        assert msgspec.json.decode(encoded) == known
        assert msgspec.json.decode(encoded, type=kind)
    left_out = {"latency_ns", "raw_partition", "raw_offset", "raw_index"}
    assert set(names) == {*topic.schema.names, "id"} - left_out


def test_a_run_is_described_as_it_is_recorded() -> None:
    assert [field.name for field in msgspec.structs.fields(JobRun)] == [field.name for field in dataclasses.fields(Run)]
