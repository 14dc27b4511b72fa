"""Metrics as Prometheus reads them, from what every process says in its status: as text, as OpenMetrics, or as protobuf."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from tapeline.monitor.health import alive
from tapeline.records import NS_PER_S
from tapeline.telemetry.families import FAMILIES, REPORTED, STARTED, UP, Family
from tapeline.telemetry.latencies import BOUNDS_S, SCHEMA, Buckets

#: The media type of metrics as protobuf, of which a message begins with its length. Only this one has native histograms.
PROTOBUF: Final = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
_OF_STAGE: Final = "stage"


@dataclass(frozen=True, slots=True)
class Series:
    """A metric's value with its labels."""

    labels: Mapping[str, str]
    value: float | Buckets


def series_of(statuses: Mapping[str, Mapping[str, Any]], now_ns: int) -> dict[Family, list[Series]]:
    """Return every metric of the processes with these statuses, by their names. `now_ns`: UTC.

    A process that has died says only that it is not up: what it said last is old."""
    found: dict[Family, list[Series]] = {}

    def add(family: Family, labels: Mapping[str, str], value: float | Buckets) -> None:
        found.setdefault(family, []).append(Series(labels, value))

    for stage, status in statuses.items():
        up = alive(status, now_ns)
        mine = {_OF_STAGE: stage}
        add(UP, mine, float(up))
        if not up:
            continue
        add(STARTED, mine, status["started_ns"] / NS_PER_S)
        add(REPORTED, mine, status["updated_ns"] / NS_PER_S)
        for name, values, value in status.get("metrics", ()):
            family = FAMILIES.get(name)
            if family is not None:  # another version may report others
                labels = dict(zip(family.labels, values, strict=True))
                add(family, labels if _OF_STAGE in family.labels else mine | labels, value)
    return {family: found[family] for family in FAMILIES.values() if family in found}


def exposed(series: Mapping[Family, Sequence[Series]], accept: str) -> tuple[bytes, str]:
    """Return the metrics in the best form that a client accepts, by its header Accept, and the media type of that form."""
    if "application/vnd.google.protobuf" in accept and "MetricFamily" in accept:
        return b"".join(delimited(_family(family, some)) for family, some in series.items()), PROTOBUF
    encode, media_type = choose_encoder(accept)
    return encode(_Collected([_metric(family, some) for family, some in series.items()])), media_type


@dataclass(frozen=True, slots=True)
class _Collected:
    metrics: Sequence[Metric]

    def collect(self) -> Iterator[Metric]:
        yield from self.metrics


def _metric(family: Family, series: Sequence[Series]) -> Metric:
    names = list(dict.fromkeys(name for one in series for name in one.labels))
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.meaning, labels=names)
        for one in series:
            buckets = _buckets(one)
            below = list(accumulate(buckets["classic"]))
            bounds = [*map(repr, BOUNDS_S), "+Inf"]
            histogram.add_metric([one.labels[name] for name in names], list(zip(bounds, below, strict=True)), buckets["sum_s"])
        return histogram
    metric = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(family.name, family.meaning, labels=names)
    for one in series:
        metric.add_metric([one.labels[name] for name in names], _number(one))
    return metric


def _number(one: Series) -> float:
    assert not isinstance(one.value, dict), f"{one.labels} is a histogram"
    return one.value


def _buckets(one: Series) -> Buckets:
    assert isinstance(one.value, dict), f"{one.labels} is no histogram"
    return one.value


# Protobuf: messages of io.prometheus.client, by their field numbers in Prometheus' client_model (metrics.proto). No library of Python
# writes native histograms, and these few fields need no generated code.

_TYPES: Final = {"counter": 0, "gauge": 1, "histogram": 4}
_VALUE_FIELDS: Final = {"counter": 3, "gauge": 2, "histogram": 7}


def _family(family: Family, series: Iterable[Series]) -> bytes:
    parts = [_text(1, family.name), _text(2, family.meaning), _number_field(3, _TYPES[family.kind])]
    for one in series:
        labels = b"".join(_message(1, _text(1, name) + _text(2, value)) for name, value in one.labels.items())
        value = _histogram(_buckets(one)) if family.kind == "histogram" else _double(1, _number(one))
        parts.append(_message(4, labels + _message(_VALUE_FIELDS[family.kind], value)))
    return b"".join(parts)


def _histogram(buckets: Buckets) -> bytes:
    """A histogram that is both classic and native, so that the server takes the one that it knows."""
    below = list(accumulate(buckets["classic"]))
    parts = [_number_field(1, below[-1]), _double(2, buckets["sum_s"])]
    parts += [_message(3, _number_field(1, count) + _double(2, bound)) for bound, count in zip(BOUNDS_S, below, strict=False)]
    parts += [_number_field(5, _zigzag(SCHEMA)), _double(6, 2.0**-128), _number_field(7, 0)]
    # A span is a run of buckets without an empty one between them; its offset counts from the end of the span before, the first from 0.
    spans: list[list[int]] = []
    for number, _ in buckets["native"]:
        if spans and sum(spans[-1]) == number:
            spans[-1][1] += 1
        else:
            spans.append([number, 1])
    ends = [0, *(sum(span) for span in spans)]
    for end, (begin, size) in zip(ends, spans, strict=False):
        parts.append(_message(12, _number_field(1, _zigzag(begin - end)) + _number_field(2, size)))
    counts = [0, *(count for _, count in buckets["native"])]
    parts += [_number_field(13, _zigzag(after - before)) for before, after in pairwise(counts)]
    return b"".join(parts)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _zigzag(number: int) -> int:
    return number * 2 if number >= 0 else -number * 2 - 1


def _number_field(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _double(field: int, number: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", number)


def _message(field: int, message: bytes) -> bytes:
    return _varint(field << 3 | 2) + delimited(message)


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def delimited(message: bytes) -> bytes:
    """Return a protobuf message after its length as a varint."""
    return _varint(len(message)) + message
