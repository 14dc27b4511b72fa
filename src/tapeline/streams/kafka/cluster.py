"""A Kafka cluster as all clients of one stream see it: its address and settings, its topics, and the meaning of its errors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec  # type: ignore[attr-defined]  # public, and not marked as exported
from confluent_kafka.cimpl import NewTopic

from tapeline.config import StreamConfig
from tapeline.errors import Unavailable
from tapeline.local.threads import concurrently
from tapeline.records import RAW_TOPIC, TOPICS, Topic
from tapeline.secret import Secret
from tapeline.streams import Codec
from tapeline.streams.kafka.errors import NO_ANSWER, NO_LEADER, OTHER_EPOCH, ClusterErrors, answered
from tapeline.streams.kafka.moving import MOVE_S, Mover
from tapeline.streams.kafka.settings import MESSAGE_BYTES, OUTPUT_BYTES, settings_of

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_PARTITIONS: Final = 4
#: A topic of one partition. The member that is assigned the partition holds a lease.
_LEASES: Final = "market-data.leases"
#: The topic that records how messages are numbered (numbering.py). It is kept for ever.
_LIVES: Final = "market-data.lives"
#: The limit in bytes of a topic for which nobody set another.
_USUAL_BYTES: Final = 1024 * 1024
#: How long to wait for an answer.
ASK_S: Final = 10.0
_LOOK_AGAIN_S: Final = 1.0
_ASK_METADATA_S: Final = 1.0
#: How often a client reports which brokers it knows.
_BROKERS_EVERY_S: Final = 5.0
#: How that report marks brokers that the client can ask.
_BROKERS: Final = ('"source":"learned"', '"source":"configured"')


#: Swallows librdkafka's own log lines. What they report also arrives as an error, and Tapeline reports it in its own words.
_UNHEARD: Final = logging.Logger("librdkafka", logging.CRITICAL + 1)


class Cluster:
    """The brokers that a `kafka://` or `kafkas://` (TLS) address names. Connects at the first call."""

    def __init__(self, config: StreamConfig, password: Secret) -> None:
        """Raises ConfigError if the address is invalid."""
        self._config = config
        self._errors = ClusterErrors(config.shown)
        self._settings = settings_of(config, password) | {
            "error_cb": self._errors.heard,
            "logger": _UNHEARD,
            "socket.nagle.disable": True,
        }
        self._counts: dict[Topic, int] = {}
        self._when_found: Callable[[], None] = lambda: None
        self._looking: Future[None] | None = None
        self._admin: AdminClient | None = None
        self._asking = threading.Lock()
        self._movers: dict[str, Mover] = {}
        #: Counts how often clients were found useless: the brokers know less than before, or a client knows no broker.
        self.forgot = 0
        #: Counts the requests that got no answer. The client that sent one may know no broker any more.
        self.unanswered = 0
        #: Checks for that in a background thread, if a check is due.
        self.glance: Callable[[], None] = lambda: None

    @property
    def usual_partitions(self) -> int:
        """The number of partitions of a new topic."""
        return self._config.partitions or _PARTITIONS

    def name(self, topic: Topic) -> str:
        """Return the topic's name on the brokers."""
        return self._config.topic_prefix + topic.name

    @property
    def leases(self) -> str:
        """The name of the topic whose single partition is assigned as a lease."""
        return self._config.topic_prefix + _LEASES

    @property
    def lives(self) -> str:
        """The name of the topic that records how messages are numbered."""
        return self._config.topic_prefix + _LIVES

    @property
    def heard(self) -> int:
        """How often one of our clients has met a problem. A broker may have been away and may have come back with less data."""
        return self._errors.count

    def when_found(self, do: Callable[[], None]) -> None:
        """Set what is to be done before topics are read or written."""
        self._when_found = do

    def owned(self, name: str) -> str:
        """Return the name on the brokers of one of our consumer groups or transactions."""
        return f"{self._config.topic_prefix}tapeline-{name}"

    def client(self, **settings: object) -> dict[str, Any]:
        """Return the settings that every client shares, plus these. Underscores in a name stand for dots."""
        watched = {"stats_cb": self._watched(), "statistics.interval.ms": int(_BROKERS_EVERY_S * 1000)}
        return self._settings | watched | {name.replace("_", "."): value for name, value in settings.items()}

    def _watched(self) -> Callable[[str], None]:
        """Return a callback that hears from one client which brokers it knows.

        A broker that goes down tells its clients that there is no broker at all. librdkafka (2.10 to 2.16) may then forget every
        address, including its first ones, and stand still for good."""
        reported = False

        def heard(statistics: str) -> None:
            nonlocal reported
            if not reported and not any(one in statistics for one in _BROKERS):
                reported = True
                self.forgot += 1
                log.info("A client of Kafka at %s no longer knows any broker. Tapeline replaces all its clients.", self._config.shown)

        return heard

    def _silence(self, error: KafkaException) -> None:
        """Discard an admin client that got no answer."""
        if error.args[0].code() in NO_ANSWER:
            self._admin, self.unanswered = None, self.unanswered + 1

    def consumer(self, group: str, **settings: object) -> Consumer:
        """Return a new consumer of one of our groups, which the caller closes. Underscores in a setting's name stand for dots.

        Unless `settings` say otherwise, it reads committed records only, commits nothing by itself, needs an offset to start from, and
        reports the end of a partition as an error (`_PARTITION_EOF`).
        """
        return Consumer(
            self.client(
                group_id=self.owned(group),
                enable_auto_commit=False,
                auto_offset_reset="error",
                isolation_level="read_committed",
                enable_partition_eof=True,
                fetch_wait_max_ms=100,
                fetch_max_bytes=OUTPUT_BYTES + 1024,
                queued_max_messages_kbytes=65_536,
                fetch_queue_backoff_ms=10,
            )
            | {name.replace("_", "."): value for name, value in settings.items()}
        )

    def errors(self) -> AbstractContextManager[None]:
        """Translate what a client raises into Tapeline's errors."""
        return self._errors.translated()

    def silent(self, what: str) -> Unavailable:
        """Return the error for a request without any answer. `what` names the request and how long it waited."""
        return self._errors.unanswered(what)

    @property
    def problem(self) -> str:
        """The last error that was met in the background, or an empty string. It stays when the brokers answer again."""
        return self._errors.last

    def codec(self, topic: Topic) -> Codec:
        """Return how the topic's records are encoded. The raw topic is always Arrow."""
        return "arrow" if topic is RAW_TOPIC else getattr(self._config.codecs, topic.name.rpartition(".")[2])

    def watermarks(self, consumer: Consumer, topic: Topic, partition: int) -> tuple[int, int]:
        """Return Kafka's first offset of a partition and the offset after its last one. Raises Unavailable or Refused.

        For a consumer of committed records, the end is where the first open transaction begins.
        """
        place = TopicPartition(self.name(topic), partition)
        marks = self.request(lambda: consumer.get_watermark_offsets(place, timeout=ASK_S), lambda: self._look_anew(consumer, topic))
        if marks is None:
            raise self._errors.away()
        return int(marks[0]), int(marks[1])

    def committed(self, consumer: Consumer, topic: Topic, partitions: Sequence[int], timeout_s: float = ASK_S) -> list[TopicPartition]:
        """Return where the consumer's group is in each partition: an offset (below zero if it has none yet) and its metadata."""

        def ask() -> list[TopicPartition]:
            places = [TopicPartition(self.name(topic), some) for some in partitions]
            offsets: list[TopicPartition] = consumer.committed(places, timeout=timeout_s)
            for one in offsets:
                if one.error is not None:  # its offset is also below zero, but means nothing
                    raise KafkaException(one.error)
            return offsets

        return self.request(ask)

    def holders(self, group: str) -> set[str]:
        """Return the ids of the group's members that have a partition: none while it assigns them. Raises Unavailable."""
        name = self.owned(group)

        def ask() -> Any:
            admin = self._asker()  # keep the reference until it has answered, because another client may replace it
            return admin.describe_consumer_groups([name], request_timeout=ASK_S)[name].result()

        description = self.request(ask)
        return {member.member_id for member in description.members if member.assignment and member.assignment.topic_partitions}

    def _look_anew(self, consumer: Consumer, topic: Topic) -> None:
        """Refresh the view of a client that looked while a broker was starting: it asks again only after minutes."""
        with suppress(KafkaException):  # the request itself is repeated, and reports why it has no answer
            consumer.list_topics(self.name(topic), timeout=_ASK_METADATA_S)

    def request(self, question: Callable[[], _Answer], between: Callable[[], object] = lambda: None, patience_s: float = ASK_S) -> _Answer:
        """Return the answer of a partition's leader or a group's coordinator. Raises Unavailable after `patience_s` seconds without one.

        `between` is called before each retry."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                answer = question()
                self._errors.forget()
                return answer
            except KafkaException as error:
                code = error.args[0].code()
                if code in OTHER_EPOCH:
                    self.forgot += 1
                if code in OTHER_EPOCH or code in NO_ANSWER or code == KafkaError._NOENT:
                    self._admin, self.unanswered = None, self.unanswered + 1
                if (code not in NO_LEADER and code not in OTHER_EPOCH and code != KafkaError._NOENT) or time.monotonic() > deadline:
                    raise self._errors.meaning(error, "a request failed") from error
                between()
                time.sleep(0.1)

    def count(self, topic: Topic, patience_s: float = ASK_S) -> int:
        """Return how many partitions a topic has. Create missing topics. Raises Unavailable after `patience_s` seconds without a broker."""
        if topic not in self._counts:
            self.find_topics(patience_s)
            try:
                self._when_found()
            except BaseException:
                self._counts = {}
                raise
        return self._counts[topic]

    def counted(self, topic: Topic) -> int:
        """As `count`, for topics that have been found already."""
        return self._counts[topic]

    def find_topics(self, patience_s: float = ASK_S) -> None:
        """Find out which topics exist and create the missing ones. Raises Unavailable."""
        admin = self._asker()
        with self._errors.translated():
            there = self._listed(admin, patience_s)
        missing = [name for name in (*map(self.name, TOPICS.values()), self.leases, self.lives) if name not in there]
        if missing:
            self._make(admin, missing)
            there = self._settled(admin, missing)
        self._counts = {some: len(there[self.name(some)].partitions) for some in TOPICS.values()}

    def ids(self, names: Sequence[str], patience_s: float) -> dict[str, str]:
        """Return the id of each topic that exists. The id tells a topic from an earlier one of the same name. Raises Unavailable."""
        ids, admin = {}, self._asker()
        for name, described in admin.describe_topics(TopicCollection(list(names)), request_timeout=patience_s).items():
            try:
                ids[name] = str(answered(described, patience_s).topic_id)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    self._silence(error)
                    raise self._errors.meaning(error, f"topic {name} cannot be described") from error
        return ids

    def latest(self, places: Sequence[tuple[str, int]], patience_s: float = ASK_S) -> dict[tuple[str, int], tuple[int, int]]:
        """Return where each partition ends, and the epoch of the leader that says so. Raises Unavailable."""
        newest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        wanted = {TopicPartition(name, partition): newest for name, partition in places}

        def ask() -> dict[tuple[str, int], tuple[int, int]]:
            ends = {}
            admin = self._asker()  # keep the reference until all have answered, because another client may replace it
            for place, answer in admin.list_offsets(wanted, request_timeout=patience_s).items():
                end = answered(answer, patience_s)
                ends[place.topic, place.partition] = (end.offset, -1 if end.leader_epoch is None else end.leader_epoch)
            return ends

        return self.request(ask)

    def move(self, group: str, places: Sequence[TopicPartition]) -> None:
        """Record the position of a group that has no members. Raises Unavailable."""
        # A consumer's own synchronous commit never returns while there is no broker, and an admin client's request may end the process.
        mover = self._movers[group] = self._movers.get(group) or Mover(self.client(group_id=self.owned(group), enable_auto_commit=False))
        try:
            self.request(lambda: mover.move(places), patience_s=MOVE_S)
        except BaseException:
            del self._movers[group]
            concurrently(mover.close, "close")  # closing waits for the answer, for half a minute
            raise

    def close(self) -> None:
        """Close the clients that record positions. Consumers from `consumer` belong to their callers."""
        for mover in self._movers.values():
            mover.close()
        self._movers = {}

    def _listed(self, admin: AdminClient, patience_s: float) -> Mapping[str, Any]:
        try:
            return admin.list_topics(timeout=patience_s).topics
        except KafkaException as error:
            admin.poll(0.2)  # learn why
            self._silence(error)
            raise

    def known(self) -> bool:
        """Return whether the topics are known. While they are not, a background thread looks for them."""
        if not self._counts and (self._looking is None or self._looking.done()):
            self._looking = concurrently(self._look, "topics")
        return bool(self._counts)

    def _look(self) -> None:
        try:
            self.count(RAW_TOPIC)
            if warning := self.too_small():
                log.warning("%s", warning)
        except Exception as error:  # noqa: BLE001 any error is reported wherever the topics are missed, and the search is repeated
            if not isinstance(error, Unavailable):  # such an error says what the client has reported already
                self._errors.last = str(error)
            time.sleep(_LOOK_AGAIN_S)

    def too_small(self) -> str:
        """Return a warning with its remedy if the raw topic does not take messages as large as a frame may be.

        Empty if it does, or if the user may not ask. In the latter case somebody else has made the topic."""
        most = None
        with suppress(KafkaException):
            most = self._most_bytes(RAW_TOPIC)
        if most is None or most >= MESSAGE_BYTES:
            return ""
        return (
            f"{self.name(RAW_TOPIC)} accepts messages of up to {most:,} bytes. A larger frame is not kept and becomes a gap. "
            f"Set the topic's max.message.bytes to {MESSAGE_BYTES}."
        )

    def largest(self, topic: Topic) -> int:
        """Return how many bytes a message of the topic may have. Raises Unavailable.

        If the user may not ask, the answer is Kafka's usual limit, because a larger message would stop the worker."""
        self.count(topic)
        with self.errors():
            most = self._most_bytes(topic)
        return min(_USUAL_BYTES if most is None else most, MESSAGE_BYTES if topic is RAW_TOPIC else OUTPUT_BYTES)

    def _most_bytes(self, topic: Topic) -> int | None:
        """Return the topic's own limit in bytes, or None if the user may not ask. Raises KafkaException."""
        resource, admin = ConfigResource(ConfigResource.Type.TOPIC, self.name(topic)), self._asker()
        try:
            settings = admin.describe_configs([resource], request_timeout=ASK_S)[resource].result()
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
                return None
            raise
        return int(settings["max.message.bytes"].value)

    def _asker(self) -> AdminClient:
        with self._asking:  # replacing a client would lose the requests that the first one was sent
            if self._admin is None:  # a client that has nothing to do is false, because its length is the number of its requests
                self._admin = AdminClient(self._settings)
            return self._admin

    def _make(self, admin: AdminClient, names: Sequence[str]) -> None:
        settings = {
            "retention.ms": str(int(self._config.retain_hours * 3_600_000)),
            "compression.type": "producer",
        }
        bounds = {self.name(topic): MESSAGE_BYTES if topic is RAW_TOPIC else OUTPUT_BYTES for topic in TOPICS.values()}
        count = self._config.partitions or _PARTITIONS
        wanted = [
            NewTopic(name, count, self._config.replication, config=settings | {"max.message.bytes": str(bounds[name])})
            if name in bounds
            else NewTopic(name, 1, self._config.replication, config={"retention.ms": "-1"} if name == self.lives else {})
            for name in names
        ]
        for name, done in admin.create_topics(wanted, request_timeout=ASK_S).items():
            try:
                done.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._errors.meaning(error, f"topic {name} cannot be created") from error

    def _settled(self, admin: AdminClient, names: Sequence[str]) -> Mapping[str, Any]:
        """Return the topics, once every partition of each new topic has a leader."""
        deadline = time.monotonic() + ASK_S
        while True:
            with self._errors.translated():
                there: Mapping[str, Any] = admin.list_topics(timeout=ASK_S).topics
            if all(
                name in there and there[name].partitions and all(p.leader >= 0 for p in there[name].partitions.values()) for name in names
            ):
                return there
            if time.monotonic() > deadline:
                raise Unavailable(f"Kafka at {self._config.shown} has created the topics {', '.join(names)}, but no broker leads them yet.")
            time.sleep(0.05)
