"""The meaning of Kafka's errors, in messages that name the broker and say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from tapeline.errors import Refused, Unavailable

#: No broker has answered.
NO_ANSWER: Final = frozenset({KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN})
_CHECK: Final = "Check that the broker is running and that stream.url is correct."


class ClusterErrors:
    """Translates Kafka's errors into messages that name the broker and say what to do."""

    _NO: Final = frozenset(
        {
            KafkaError._AUTHENTICATION,
            KafkaError.SASL_AUTHENTICATION_FAILED,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError.CLUSTER_AUTHORIZATION_FAILED,
            KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        }
    )

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self.last = ""
        self.count = 0
        self._refused = False

    def heard(self, error: KafkaError) -> None:
        """Note an error that a client's own threads met."""
        self.count += 1
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self.last:
            return  # the reason was reported before
        self.last = str(error.str())
        self._refused = error.code() in self._NO

    def forget(self) -> None:
        """A broker has answered, so what was heard before is over: a later problem is not to be explained by it."""
        self.last, self._refused = "", False

    def away(self) -> Unavailable | Refused:
        """Return the error to raise if no broker answers. It is Refused if the last error that a client met was a refusal."""
        if self._refused:
            return Refused(f"Kafka at {self._shown} has refused access: {self.last}. Check the user, the password and stream.sasl.")
        why = f": {self.last}" if self.last else ""
        return Unavailable(f"Kafka at {self._shown} does not answer{why}. {_CHECK}")

    def unanswered(self, what: str) -> Unavailable:
        """Return the error for a request without any answer. `what` names the request and how long it waited."""
        why = f" ({self.last})" if self.last else ""
        return Unavailable(f"Kafka at {self._shown} does not answer: {what}{why}. {_CHECK}")

    def meaning(self, error: KafkaException, what: str) -> Unavailable | Refused:
        """Return the error to raise in place of a client's: Refused if access was refused, else Unavailable.

        `what` says what failed. It is left out if no broker answers.
        """
        inner: KafkaError = error.args[0]
        if inner.code() in self._NO:
            return Refused(f"Kafka at {self._shown} has refused access ({what}): {inner.str()}. Check the user and its rights.")
        if inner.code() in NO_ANSWER:
            return self.away()
        return Unavailable(f"Kafka at {self._shown}: {what}: {inner.str()} ({inner.name()}). A running stage retries.")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate a KafkaException of the block into Unavailable or Refused. Other errors pass unchanged."""
        try:
            yield
        except KafkaException as error:
            raise self.meaning(error, "a request failed") from error


#: A partition is between two leaders, a group is between two coordinators, or an offset belongs to an open transaction.
NO_LEADER: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
    }
)
#: A client rejects any leader whose epoch is below one that it has seen. If a broker came back from an older copy, only a new client
#: helps. An admin client reports that such leaders do not exist (_NOENT), for as long as it keeps what it has seen.
OTHER_EPOCH: Final = frozenset({KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.FENCED_LEADER_EPOCH})


def answered(answer: Future[Any], patience_s: float) -> Any:
    """Return the brokers' answer. Raises KafkaException, also if the client has forgotten the request."""
    try:
        return answer.result(patience_s + 1.0)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
