"""One Redis server as all parts of the stream see it: its connections, its run id, and the meaning of its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tapeline.config import StreamConfig
from tapeline.errors import ConfigError, NewerData, Refused, Unavailable
from tapeline.records import RAW_TOPIC, Topic
from tapeline.secret import Secret
from tapeline.streams.redis.keys import Keys, literal

_PARTITIONS: Final = 4
_FORMAT: Final = b"1"
_CHECK: Final = "Check that the server is running and that stream.url is correct."


class RedisServer:
    """One Redis server. Connects at the first call."""

    def __init__(self, config: StreamConfig, password: Secret, groups: Mapping[str, tuple[Topic, ...]], timeout_s: float) -> None:
        """`groups` maps each group to the topics it reads. Raises ConfigError if the address is invalid."""
        self.config = config
        self.keys = Keys(config.topic_prefix)
        self._groups = groups
        #: The redis-py client with its connections. Its commands have no useful types.
        self.client: Any = _client(config, password, timeout_s, self._met)
        #: The server's run id, which changes each time the server starts. Empty: not known.
        self.run = ""
        #: The number of partitions the stream was made with. Known once `begin` has been called.
        self.count = 0

    @property
    def shown(self) -> str:
        """The address without its secret parts."""
        return self.config.shown

    @property
    def partitions(self) -> int:
        """The number of partitions the stream was made with. While the server is away, the configured number."""
        try:
            self.begin()
        except Unavailable:
            return self.config.partitions or _PARTITIONS
        return self.count

    def begin(self, *, anew: bool = False) -> None:
        """Learn, once for each connection, what the stream was made with and the server's run id, and make sure that the groups exist.

        `anew`: do so even if the run id is known, because the server may have started again."""
        if self.run and not anew:
            return
        self.run = ""
        with self.errors():
            run = str(self.client.info("server")["run_id"])
            facts = self.keys.facts
            self.client.hsetnx(facts, "format", _FORMAT)
            if not self.client.hexists(facts, "partitions"):
                self.client.hsetnx(facts, "partitions", self._known() or self.config.partitions or _PARTITIONS)
            form, count = self.client.hmget(facts, ["format", "partitions"])
            if form != _FORMAT:
                raise NewerData(
                    f"{self.shown} holds streams that a newer Tapeline wrote (format {form.decode()}). "
                    "Nothing was changed. Upgrade Tapeline."
                )
            self.count = int(count)
            for group, topics in self._groups.items():
                for topic in topics:
                    for partition in range(self.count):
                        with suppress(redis.ResponseError):  # BUSYGROUP: it exists already
                            self.client.xgroup_create(self.keys.stream(topic, partition), group, "0", mkstream=True)
        self.run = run

    def _known(self) -> int:
        """Return how many partitions exist if Redis has lost only their number; 0 if there are none."""
        ends = self.client.scan_iter(match=f"{literal(self.keys.end(RAW_TOPIC, 0)[:-1])}*", count=1000)
        return max((int(key.rpartition(b":")[2]) + 1 for key in ends), default=0)

    def _met(self, connection: Any) -> None:
        """Check each new connection, including those that the client opens by itself after one broke."""
        connection.on_connect()
        if self.run:
            connection.send_command("INFO", "server")
            if self.run.encode() not in connection.read_response():
                self.run = ""
                raise redis.ConnectionError("the server has restarted")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Translate errors into messages that name the server and say what to do."""
        try:
            yield
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise Refused(f"Redis at {self.shown} has refused access: {without_point(error)}. Check the user and the password.") from error
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError) as error:
            self.run = ""
            text = f"Redis at {self.shown} does not answer: {without_point(error)}. A running stage retries. {_CHECK}"
            raise Unavailable(text) from error
        except redis.OutOfMemoryError as error:
            text = f"Redis at {self.shown} is full: {without_point(error)}. Nothing is dropped: Tapeline waits. Raise its maxmemory."
            raise Unavailable(text) from error
        except redis.ResponseError as error:
            self.run = ""
            raise Unavailable(f"Redis at {self.shown}: {without_point(error)}. A running stage retries.") from error


def without_point(error: Exception) -> str:
    """Return the error's text without a final full stop, which some redis-py messages have."""
    return str(error).rstrip(".")


def _client(config: StreamConfig, password: Secret, timeout_s: float, met: Callable[[Any], None]) -> Any:
    parts = urlsplit(config.url)
    try:
        port = parts.port or 6379
    except ValueError:
        port = 0
    if (
        not port
        or parts.scheme not in ("redis", "rediss")
        or not parts.hostname
        or (not parts.path.strip("/").isdecimal() and parts.path.strip("/"))
    ):
        raise ConfigError(f'stream.url = "{config.shown}" is not a valid address. Write redis://[user@]host:6379/0 (rediss:// for TLS).')
    tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": config.ca_file or None} if parts.scheme == "rediss" else {}
    return redis.Redis(
        host=parts.hostname,
        port=port,
        db=int(parts.path.strip("/") or 0),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else password.reveal() or None,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),  # a script that was sent may have run: only the caller knows whether to retry
        **{"redis_connect_func": met, **tls},
    )
