"""A process that works on a stream and may be told where to die: `worker.py "{...}"`, a JSON object with a place and a task."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from places import open_described
from transforming import transformed

from tapeline.errors import Unavailable
from tapeline.jobs.backfill.backfill import Backfill, Job
from tapeline.jobs.backfill.fetching import Source
from tapeline.jobs.backfill.page_log import PageLog
from tapeline.providers.registry import HISTORIES
from tapeline.records import RAW_TOPIC, TOPICS
from tapeline.streams import PartitionLost, Stream


class Fate:
    """Kill this process when a point is passed for the nth time."""

    def __init__(self, point: str, count: int) -> None:
        self._point, self._left = point, count

    def at(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def arm(fate: Fate, kind: str) -> None:
    """Put points inside the stream's own commit: between its writes, just before and just after what decides."""
    if kind == "embedded":
        from tapeline.streams import embedded

        encode = embedded.encode

        def encoding(batch: Any) -> Any:
            fate.at("within")
            return encode(batch)

        embedded.encode = encoding  # type: ignore[assignment]
    elif kind == "redis":
        from redis.commands.core import Script

        call = Script.__call__

        def calling(self: Any, *args: Any, **options: Any) -> Any:
            committing = "local read = tonumber(ARGV" in str(self.script)
            if committing:
                fate.at("within")
            done = call(self, *args, **options)
            if committing:
                fate.at("decided")
            return done

        Script.__call__ = calling  # type: ignore[method-assign]
    else:
        from tapeline.streams.kafka import transactions

        class Producer(transactions.Producer):  # type: ignore[misc, name-defined]
            def send_offsets_to_transaction(self, *args: Any) -> Any:
                fate.at("within")
                done = super().send_offsets_to_transaction(*args)
                fate.at("offsets")
                return done

            def commit_transaction(self, *args: Any) -> Any:
                done = super().commit_transaction(*args)
                fate.at("decided")
                return done

        transactions.Producer = Producer  # type: ignore[attr-defined]


def transform(stream: Stream, told: dict[str, Any], fate: Fate) -> None:
    """Read, transform, commit, until killed or told to stop. Says what it does; pauses where it is told to."""
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    member = patiently(lambda: stream.join("normalize", RAW_TOPIC, told.get("name", "")))
    print("joined", flush=True)
    while not stop:
        fate.at("poll")
        try:
            chunk = member.poll(told.get("max_rows", 50))
            if chunk is None:
                continue
            fate.at("polled")
            if "dawdle" in told:
                print("polled", flush=True)
                time.sleep(told["dawdle"])
            outputs, totals = transformed(chunk)
            member.commit(chunk, outputs, totals)
            fate.at("committed")
        except PartitionLost as lost:
            print("lost", flush=True)
            logging.info("%s", lost)
        except Unavailable as error:
            logging.info("%s", error)
            time.sleep(0.1)
    member.close()
    print("left", flush=True)


def send(stream: Stream, told: dict[str, Any], fate: Fate) -> None:
    """Hand numbered raw batches to a producer, in order, saying which are settled."""
    from made import raws

    producer = stream.producer(told["writer"])
    settled = 0
    for number in range(told.get("first", 1), told["last"] + 1):
        while True:
            try:
                producer.send(number, number % 3, raws(number, 1))
                break
            except Unavailable:
                time.sleep(0.02)
        fate.at("sent")
        if producer.settled() > settled:
            settled = producer.settled()
            print(settled, flush=True)
        time.sleep(told.get("every", 0.0))
    while producer.settled() < told["last"]:
        time.sleep(0.01)
    print(producer.settled(), flush=True)
    producer.close(1.0)


def backfill(stream: Stream, told: dict[str, Any], fate: Fate) -> None:
    """Fetch a made-up history, dying before or after a page is noted, sent or settled."""
    from made_history import Exchange

    exchange = Exchange(told["trades"], rows=lambda most: min(most, told["page"]))
    log = PageLog(Path(told["log"]))

    def armed(thing: Any, name: str) -> None:
        call = getattr(thing, name)

        def calling(*args: Any) -> Any:
            fate.at(f"before {name}")
            done = call(*args)
            fate.at(f"after {name}")
            return done

        setattr(thing, name, calling)

    for name in ("note", "settle"):
        armed(log, name)
    producer_of = stream.producer

    def producing(writer: str) -> Any:
        producer = producer_of(writer)
        armed(producer, "send")
        return producer

    stream.producer = producing  # type: ignore[method-assign]
    job = Job("binance", "spot", ("trade",), ("BTC/USDT", "ETH/USDT"), told["start_ns"], told["end_ns"])
    source = Source(HISTORIES["binance"], exchange)
    state = Backfill(job, source, stream, log, Random(1), threading.Event(), workers=2).run(lambda _: None)
    print(state.spans_done, state.pages, state.events, flush=True)


def hold(stream: Stream, told: dict[str, Any], fate: Fate) -> None:
    """Hold a lease and keep it up."""
    lease = stream.hold(told["name"])
    print("held", flush=True)
    while True:
        time.sleep(0.3)
        lease.keep()


def watch(stream: Stream, told: dict[str, Any], fate: Fate) -> None:
    """Read a topic as it grows; say each record's partition, offset and value."""
    topic = TOPICS[told["topic"]]
    at: dict[int, int] = {}
    while True:
        try:
            chunk = stream.read(topic, at, 1_000)
        except Unavailable:
            chunk = None
        if chunk is None:
            time.sleep(0.01)
            continue
        values = chunk.batch[told["column"]].to_pylist()
        print(json.dumps(list(zip(chunk.partition.tolist(), chunk.offset.tolist(), values, strict=True))), flush=True)
        at |= dict(chunk.next)


def patiently(call: Callable[[], Any]) -> Any:
    while True:
        try:
            return call()
        except Unavailable as error:
            logging.info("%s", error)
            time.sleep(0.2)


def main() -> None:
    told = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    fate = Fate(*told.get("die", ["never", 0]))
    if "die" in told:
        arm(fate, told["place"]["stream"].get("url", "embedded").partition(":")[0])
    tasks = {"transform": transform, "send": send, "backfill": backfill, "hold": hold, "watch": watch}
    tasks[told["task"]](open_described(told["place"]), told, fate)


if __name__ == "__main__":
    main()
