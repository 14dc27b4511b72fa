"""A Kafka cluster as all clients of one stream see it: its address and settings, its topics, and what its errors mean."""

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
from tapeline.local.threads import beside
from tapeline.records import RAW_TOPIC, TOPICS, Topic
from tapeline.secret import Secret
from tapeline.streams import Codec
from tapeline.streams.kafka.errors import NO_ANSWER, NO_LEADER, OTHER_EPOCH, ClusterErrors
from tapeline.streams.kafka.moving import TELL_S, Mover
from tapeline.streams.kafka.settings import settings_of

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_PARTITIONS: Final = 4
#: A topic of one partition: who is given it holds a lease.
_LEASES: Final = "market-data.leases"
#: Where it is written how messages are numbered (numbering.py): kept for ever.
_LIVES: Final = "market-data.lives"
#: The longest message: a frame may be 64 MiB, and a batch is closed before a second one of that size.
MESSAGE_BYTES: Final = 80 * 1024 * 1024
#: The same of what is made of raw records: a rejected event has its own columns beside the bytes of such a message.
OUTPUT_BYTES: Final = MESSAGE_BYTES + 1024 * 1024
#: Of a topic that nobody gave another bound.
_USUAL_BYTES: Final = 1024 * 1024
#: How long an answer is waited for.
ASK_S: Final = 10.0
_LOOK_AGAIN_S: Final = 1.0
_ASK_METADATA_S: Final = 1.0
#: A client says so often which brokers it knows.
_BROKERS_EVERY_S: Final = 5.0
#: How it names those that it can ask.
_BROKERS: Final = ('"source":"learned"', '"source":"configured"')


#: Takes librdkafka's own lines: what they tell comes as an error as well, and is said in our words.
_UNHEARD: Final = logging.Logger("librdkafka", logging.CRITICAL + 1)


class Cluster:
    """The brokers that a `kafka://` or `kafkas://` (TLS) address names. Nothing is connected before the first call."""

    def __init__(self, config: StreamConfig, password: Secret) -> None:
        """Raises ConfigError for an address that cannot be one."""
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
        #: Counts the times at which clients were found to be of no use: brokers know less than before, or a client knows no broker.
        self.forgot = 0
        #: Counts the questions that nobody has answered: the client that was asked may know no broker any more.
        self.unanswered = 0
        #: Looks for that, beside the caller, if it is due.
        self.glance: Callable[[], None] = lambda: None

    @property
    def usual_partitions(self) -> int:
        """Of a topic that is made anew."""
        return self._config.partitions or _PARTITIONS

    def name(self, topic: Topic) -> str:
        """The topic's name on the brokers."""
        return self._config.topic_prefix + topic.name

    @property
    def leases(self) -> str:
        """The name of the topic whose one partition is handed out as a lease."""
        return self._config.topic_prefix + _LEASES

    @property
    def lives(self) -> str:
        """The name of the topic that says how messages are numbered."""
        return self._config.topic_prefix + _LIVES

    @property
    def heard(self) -> int:
        """How often a client of ours has met problem: a broker may have been away, and may have come back with less."""
        return self._errors.count

    def when_found(self, do: Callable[[], None]) -> None:
        """What is to be done before anything is read from topics or written to them."""
        self._when_found = do

    def owned(self, name: str) -> str:
        """The name of a consumer group or transaction of ours on the brokers."""
        return f"{self._config.topic_prefix}tapeline-{name}"

    def client(self, **settings: object) -> dict[str, Any]:
        """The settings of any client, and these; a name's underscores stand for dots."""
        watched = {"stats_cb": self._watched(), "statistics.interval.ms": int(_BROKERS_EVERY_S * 1000)}
        return self._settings | watched | {name.replace("_", "."): value for name, value in settings.items()}

    def _watched(self) -> Callable[[str], None]:
        """Hears from one client what it knows.

        A broker that goes down tells who asks that there is no broker at all. Then librdkafka (2.10 to 2.16) may forget every
        address, its first ones too, and stands still for good."""
        said = False

        def heard(statistics: str) -> None:
            nonlocal said
            if not said and not any(one in statistics for one in _BROKERS):
                said = True
                self.forgot += 1
                log.info("A client of Kafka at %s knows no broker any more: new clients take the place of all.", self._config.shown)

        return heard

    def _silence(self, error: KafkaException) -> None:
        """An administrator's client that got no answer is not asked again."""
        if error.args[0].code() in NO_ANSWER:
            self._admin, self.unanswered = None, self.unanswered + 1

    def consumer(self, group: str, **settings: object) -> Consumer:
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

    def told(self) -> AbstractContextManager[None]:
        """Turn what a client raises into what it means."""
        return self._errors.told()

    def silent(self, what: str) -> Unavailable:
        """The error for a question without any answer; `what`: the question, and how long was waited."""
        return self._errors.unanswered(what)

    @property
    def problem(self) -> str:
        return self._errors.last

    def codec(self, topic: Topic) -> Codec:
        return "arrow" if topic is RAW_TOPIC else getattr(self._config.codecs, topic.name.rpartition(".")[2])

    def watermarks(self, consumer: Consumer, topic: Topic, partition: int) -> tuple[int, int]:
        asked = TopicPartition(self.name(topic), partition)
        found = self.asked(lambda: consumer.get_watermark_offsets(asked, timeout=ASK_S), lambda: self._look_anew(consumer, topic))
        if found is None:
            raise self._errors.away()
        return int(found[0]), int(found[1])

    def committed(self, consumer: Consumer, topic: Topic, partitions: Sequence[int], timeout_s: float = ASK_S) -> list[TopicPartition]:
        """Where the consumer's group is in each partition: an offset, below zero where it has none yet, and its metadata."""

        def ask() -> list[TopicPartition]:
            asked = [TopicPartition(self.name(topic), some) for some in partitions]
            found: list[TopicPartition] = consumer.committed(asked, timeout=timeout_s)
            for one in found:
                if one.error is not None:  # its offset is below zero too, and means nothing
                    raise KafkaException(one.error)
            return found

        return self.asked(ask)

    def holders(self, group: str) -> set[str]:
        """The ids of those members of a group that have a partition; none while it hands them out. Raises Unavailable."""
        name = self.owned(group)

        def ask() -> Any:
            admin = self._asker()  # kept until it has answered, though another one may take its place
            return admin.describe_consumer_groups([name], request_timeout=ASK_S)[name].result()

        found = self.asked(ask)
        return {member.member_id for member in found.members if member.assignment and member.assignment.topic_partitions}

    def _look_anew(self, consumer: Consumer, topic: Topic) -> None:
        """A client that looked while a broker was starting remembers a topic without partitions, and asks again only after minutes."""
        with suppress(KafkaException):  # the question itself is asked again, and says why it has no answer
            consumer.list_topics(self.name(topic), timeout=_ASK_METADATA_S)

    def asked(self, question: Callable[[], _Answer], between: Callable[[], object] = lambda: None, patience_s: float = ASK_S) -> _Answer:
        """The answer to what is asked of a partition's leader or a group's coordinator, once there is one.

        `between`: done before it is asked again."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return question()
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
        """How many partitions a topic has; topics that are not there yet are made. Raises Unavailable after so long without a broker."""
        if topic not in self._counts:
            self.find_topics(patience_s)
            try:
                self._when_found()
            except BaseException:
                self._counts = {}
                raise
        return self._counts[topic]

    def counted(self, topic: Topic) -> int:
        """As `count`, of topics that have been found."""
        return self._counts[topic]

    def find_topics(self, patience_s: float = ASK_S) -> None:
        """See which topics there are; those that are not are made. Raises Unavailable."""
        admin = self._asker()
        with self._errors.told():
            there = self._listed(admin, patience_s)
        missing = [name for name in (*map(self.name, TOPICS.values()), self.leases, self.lives) if name not in there]
        if missing:
            self._make(admin, missing)
            there = self._settled(admin, missing)
        self._counts = {some: len(there[self.name(some)].partitions) for some in TOPICS.values()}

    def ids(self, names: Sequence[str], patience_s: float) -> dict[str, str]:
        """Of those topics that are there, what tells each from an earlier one of its name. Raises Unavailable."""
        found, admin = {}, self._asker()
        for name, described in admin.describe_topics(TopicCollection(list(names)), request_timeout=patience_s).items():
            try:
                found[name] = str(_answered(described, patience_s).topic_id)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    self._silence(error)
                    raise self._errors.meaning(error, f"topic {name} cannot be described") from error
        return found

    def latest(self, places: Sequence[tuple[str, int]], patience_s: float = ASK_S) -> dict[tuple[str, int], tuple[int, int]]:
        """Where partitions end, and the epoch of the leader that says so. Raises Unavailable."""
        newest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = {TopicPartition(name, partition): newest for name, partition in places}

        def ask() -> dict[tuple[str, int], tuple[int, int]]:
            found = {}
            admin = self._asker()  # kept until all have answered, though another one may take its place
            for place, answer in admin.list_offsets(asked, request_timeout=patience_s).items():
                end = _answered(answer, patience_s)
                found[place.topic, place.partition] = (end.offset, -1 if end.leader_epoch is None else end.leader_epoch)
            return found

        return self.asked(ask)

    def move(self, group: str, places: Sequence[TopicPartition]) -> None:
        """Write down where a group is that has no members. Raises Unavailable.

        A consumer's own waiting for that has no end while there is no broker, and an administrator's request may end the process."""
        mover = self._movers[group] = self._movers.get(group) or Mover(self.client(group_id=self.owned(group), enable_auto_commit=False))
        try:
            self.asked(lambda: mover.move(places), patience_s=TELL_S)
        except BaseException:
            del self._movers[group]
            beside(mover.close, "close")  # it waits for the answer, for half a minute
            raise

    def close(self) -> None:
        for mover in self._movers.values():
            mover.close()
        self._movers = {}

    def _listed(self, admin: AdminClient, patience_s: float) -> Mapping[str, Any]:
        try:
            return admin.list_topics(timeout=patience_s).topics
        except KafkaException as error:
            admin.poll(0.2)  # hear why
            self._silence(error)
            raise

    def known(self) -> bool:
        """Whether the topics are there. While they are not, they are seen to beside the caller."""
        if not self._counts and (self._looking is None or self._looking.done()):
            self._looking = beside(self._look, "topics")
        return bool(self._counts)

    def _look(self) -> None:
        try:
            self.count(RAW_TOPIC)
            if told := self.too_small():
                log.warning("%s", told)
        except Exception as error:  # noqa: BLE001 whatever it is: it is said wherever the topics are missed, and looked for again
            self._errors.last = str(error)
            time.sleep(_LOOK_AGAIN_S)

    def too_small(self) -> str:
        """Where the raw topic takes no message as large as a frame may be, what that means and what to do; empty where it does, and
        where the user may not ask. Somebody else has made it then."""
        most = None
        with suppress(KafkaException):
            most = self._most_bytes(RAW_TOPIC)
        if most is None or most >= MESSAGE_BYTES:
            return ""
        return (
            f"{self.name(RAW_TOPIC)} takes messages of up to {most:,} bytes: a larger frame is not kept, and is a gap. "
            f"Set the topic's max.message.bytes to {MESSAGE_BYTES}."
        )

    def largest(self, topic: Topic) -> int:
        """How many bytes a message of the topic may have. Raises Unavailable.

        Who may not ask has to take it for Kafka's usual bound: what is larger would stop the worker."""
        self.count(topic)
        with self.told():
            most = self._most_bytes(topic)
        return min(_USUAL_BYTES if most is None else most, MESSAGE_BYTES if topic is RAW_TOPIC else OUTPUT_BYTES)

    def _most_bytes(self, topic: Topic) -> int | None:
        """The topic's own bound; None where the user may not ask. Raises KafkaException."""
        resource, admin = ConfigResource(ConfigResource.Type.TOPIC, self.name(topic)), self._asker()
        try:
            found = admin.describe_configs([resource], request_timeout=ASK_S)[resource].result()
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
                return None
            raise
        return int(found["max.message.bytes"].value)

    def _asker(self) -> AdminClient:
        with self._asking:  # a second one would take with it what the first was asked
            self._admin = self._admin or AdminClient(self._settings)
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
                    raise self._errors.meaning(error, f"topic {name} cannot be made") from error

    def _settled(self, admin: AdminClient, names: Sequence[str]) -> Mapping[str, Any]:
        """The topics, once each new one has all its partitions' leaders."""
        deadline = time.monotonic() + ASK_S
        while True:
            with self._errors.told():
                there: Mapping[str, Any] = admin.list_topics(timeout=ASK_S).topics
            if all(
                name in there and there[name].partitions and all(p.leader >= 0 for p in there[name].partitions.values()) for name in names
            ):
                return there
            if time.monotonic() > deadline:
                raise Unavailable(f"Kafka at {self._config.shown} has made the topics {', '.join(names)}, and no broker leads them yet.")
            time.sleep(0.05)


def _answered(answer: Future[Any], patience_s: float) -> Any:
    """What the brokers have answered. Raises KafkaException, also where the client has forgotten that it was asked."""
    try:
        return answer.result(patience_s + 1.0)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
