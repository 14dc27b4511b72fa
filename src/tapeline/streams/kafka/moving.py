"""A client that records a group's position and waits a limited time for the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

#: How long recording a group's new position may take. A process that stops waits for it.
MOVE_S: Final = 5.0


class Mover:
    """A client that records a group's position and waits a limited time for the answer."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings` belong to a client of the group that commits nothing by itself."""
        self._answers: list[tuple[KafkaError | None, list[TopicPartition]]] = []
        self._consumer = Consumer({**settings, "on_commit": lambda error, places: self._answers.append((error, places))})

    def move(self, places: Sequence[TopicPartition]) -> None:
        """Record the positions. Raises KafkaException if they were refused or no answer came in time."""
        self._answers.clear()
        self._consumer.commit(offsets=list(places), asynchronous=True)
        deadline = time.monotonic() + MOVE_S
        while not self._answers:
            if time.monotonic() > deadline:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            self._consumer.poll(0.02)
        error, answered = self._answers[0]
        for one in (error, *(some.error for some in answered)):
            if one is not None:
                raise KafkaException(one)

    def close(self) -> None:
        """Close the client. If a request has no answer yet, this waits for it for up to half a minute."""
        self._consumer.close()
