"""An engine that knows nothing of Tapeline but market_data.proto: reads a topic with a plain client, writes each record as a JSON line.

    plain_consumer.py kafka|redis ADDRESS TOPIC MESSAGE OUTPUT

The code that protoc made of market_data.proto is found by PYTHONPATH. It ends after its input is closed, once nothing more comes.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import TYPE_CHECKING, Any

import market_data_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

_QUIET_S = 2.0


def from_kafka(address: str, topic: str) -> Iterator[tuple[int, str, bytes] | None]:
    """Partition, key and value of each record; None where there is none for the moment."""
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": f"engine of {topic}",
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    while True:
        record = consumer.poll(0.2)
        yield None if record is None or record.error() else (record.partition(), record.key().decode(), record.value())


def from_redis(address: str, topic: str) -> Iterator[tuple[int, str, bytes] | None]:
    """The same of the Redis Streams `TOPIC:0`, `TOPIC:1` and so on."""
    import redis

    client = redis.Redis.from_url(address)
    at: dict[bytes, bytes] = {}
    while True:
        for name in client.scan_iter(match=f"{topic}:*"):
            at.setdefault(name, b"0")
        found: Any = client.xread(at, count=500, block=200) if at else []
        for name, entries in found:
            for entry, fields in entries:
                at[name] = entry
                yield int(name.rpartition(b":")[2]), "", fields[b"d"]
        if not found:
            yield None


def fields(message: Any) -> dict[str, Any]:
    """Every field, null where the record has none."""
    return {
        field.name: None if field.has_presence and not message.HasField(field.name) else getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
    }


def main(kind: str, address: str, topic: str, message: str, output: str) -> None:
    parse = getattr(market_data_pb2, message).FromString
    last = time.monotonic()
    with open(output, "w") as file:
        for record in (from_kafka if kind == "kafka" else from_redis)(address, topic):
            if record is not None:
                partition, key, value = record
                file.write(json.dumps({"partition": partition, "key": key, **fields(parse(value))}) + "\n")
                last = time.monotonic()
            elif select.select([sys.stdin], [], [], 0)[0] and time.monotonic() - last > _QUIET_S:
                break
    assert not any(name.partition(".")[0] == "tapeline" for name in sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])
