"""The settings: every block and key of the configuration, with its default and the comment that the reference shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from tapeline.secret import without_password

#: A number that is not negative and not infinite, such as a number of seconds.
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
#: A name that becomes part of a file's name.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,60}\Z")]
#: The characters that Kafka allows in a topic's name (https://kafka.apache.org/documentation/#brokerconfigs). The length leaves room for
#: the rest of the name.
TopicPrefix = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,100}\Z")]

CodecName = Literal["arrow", "protobuf"]


class CodecsConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The format of the normalized topics on Kafka and Redis. The raw topic is always Arrow."""

    normalized: CodecName = "protobuf"  # ticks
    bars: CodecName = "protobuf"  # bars
    notices: CodecName = "protobuf"  # notices
    rejected: CodecName = "protobuf"  # rejected events


class StreamConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The stream that carries the records between the stages."""

    url: str = "embedded:"  # embedded: | redis://host:6379/0 | rediss://... | kafka://host:9092,host2:9092 | kafkas://...
    password_file: str = ""  # a file with the password of the user in the url, instead of TAPELINE_STREAM_PASSWORD
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"  # Kafka: how the user in the url logs in
    ca_file: str = ""  # a certificate authority to trust for TLS (Kafka: instead of the system's)
    topic_prefix: TopicPrefix = ""  # a prefix for the name of every topic, key, group and transaction on Kafka and Redis
    partitions: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0  # the number of partitions of new topics; 0: 1 if embedded, else 4
    replication: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1  # the replication factor of new Kafka topics
    codecs: CodecsConfig = CodecsConfig()
    commit_ms: NotNegative = 100.0  # Kafka: how many ms normalize collects outputs for one transaction
    #: Embedded: only after every group has acknowledged them. Redis keeps as much as it has room for.
    retain_hours: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 72.0  # embedded and Kafka: older records are removed
    memory_mb: Annotated[int, msgspec.Meta(ge=16)] = 2048  # Redis: the most memory of the stream; writers slow down before it is exceeded
    spool_mb: Annotated[int, msgspec.Meta(ge=1)] = 8192  # the most that ingest keeps on its disk while it cannot reach Kafka or Redis

    @property
    def shown(self) -> str:
        """The url without its password."""
        return without_password(self.url)


class ProviderConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One feed of one provider."""

    name: str  # the name of an installed provider
    feed: str = ""  # the feed; if left out, the provider's default feed
    url: str = ""  # the address of the stream; if left out, the provider's own
    rest_url: str = ""  # the address of the history over REST; if left out, the provider's own
    lists_url: str = ""  # the address of the lists of instruments; if left out, the provider's own
    files_url: str = ""  # the address of the history's files; if left out, the provider's own
    lines: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1  # 2: every connection twice, to two addresses; the first copy of each event counts
    #: Must be set if there are two lines and `url` is set.
    second_url: str = ""  # the address of the second line; if left out, another host of the provider
    #: All processes together.
    connections: Annotated[int, msgspec.Meta(ge=1)] = 1  # how many connections the account may have to one endpoint
    process: Name = ""  # the ingest process that opens these connections: `tapeline ingest --process NAME`
    live: bool = True  # open its websockets; false: only its history is used, as by the job sync
    symbols: tuple[str, ...] = ()  # the symbols, by the provider's own names
    channels: tuple[str, ...] = ()  # the channels, by the provider's own names
    #: This setting has priority over that list.
    names: dict[str, str] = {}  # how to split symbols that are not known from the exchange's list: ADAEUR = "ADA/EUR"
    options: dict[str, object] = {}  # the provider's own options
    key_file: str = ""  # a file with the key, instead of the environment
    secret_file: str = ""  # a file with the secret, instead of the environment
    files_key_file: str = ""  # a file with the access key to the history's files, instead of the environment
    files_secret_file: str = ""  # a file with the secret of that access key, instead of the environment
    ca_file: str = ""  # a certificate authority to trust for TLS, besides the system's
    #: By channel it is a table, such as `{ trade = 30.0 }`.
    stale_after: NotNegative | dict[str, NotNegative] = 0.0  # seconds without data before a reconnect, for all or by channel; 0: learned
    rotate_after: NotNegative = 0.0  # seconds after which a new connection replaces the old one; 0: the provider's own limit


class StoreConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A store that keeps the records."""

    url: str = "lake:"  # lake:, lake:/a/folder, postgresql://user@host:5432/database
    password_file: str = ""  # PostgreSQL: a file with the user's password, instead of TAPELINE_STORE_PASSWORD
    flush_seconds: NotNegative = 5.0  # how long the store collects records for one commit
    flush_rows: Annotated[int, msgspec.Meta(ge=1)] = 250_000  # the most rows that the store collects for one commit
    keep_days: Annotated[int, msgspec.Meta(ge=0)] = 0  # the number of UTC days to keep (in PostgreSQL, only ticks are removed); 0: all
    keep_gb: NotNegative = 0.0  # the lake: if it is larger than this (10**9 bytes), the oldest days are removed; 0: never
    compact: bool = True  # the lake: compact the days that are over, and merge the small files of other days, while it is written

    @property
    def shown(self) -> str:
        """The url without its password."""
        return without_password(self.url)


class JobConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One job: what runs, when, and how often it is tried. A key that is left out has the job's usual value."""

    job: str  # the job: `tapeline jobs list` says what each does
    name: Name = ""  # its name, if there are several of one job; if left out, the job
    schedule: str = ""  # a cron expression: minute, hour, day, month, weekday
    every: str = ""  # a period instead of a schedule: 30s, 5m, 1h
    timezone: str = "UTC"  # the time zone of schedule, and of the day that a job works on
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5  # how often a run that failed is tried again; the waits grow
    timeout: str = ""  # a run that takes longer is stopped: 30m, 2h
    deadline: str = ""  # a time of the day, such as 08:00: if the run that was due before has not succeeded by then, an alert is raised
    notify: tuple[str, ...] = ()  # the names of the [[notify]] blocks that are told of a missed deadline
    catch_up: Literal["", "all", "latest", "none"] = ""  # which runs that were missed are made up for
    arguments: dict[str, object] = {}  # the job's own arguments


class SlaConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One promise. While it is broken, there is an alert."""

    name: str  # the name of the promise and of its alert
    check: Literal["freshness", "latency", "backlog", "completeness", "job", "disk", "uptime", "rejects"]  # what is promised
    provider: str = ""  # only this provider; if left out, each configured one
    feed: str = ""  # only this feed
    symbols: tuple[str, ...] = ()  # freshness, completeness, uptime: only these symbols (canonical)
    channels: tuple[str, ...] = ()  # freshness, completeness, uptime: only these channels
    stage: str = ""  # backlog: only this stage: normalize, ledger or a store; if left out, each of them
    job: str = ""  # job: the name of the job
    within: str = ""  # a duration: the greatest age (freshness, job), latency or backlog; the time looked at (uptime, rejects)
    at_least: float | None = None  # disk: GB (10**9 bytes) that must be free; uptime: the least covered share, such as 0.999
    at_most: float | None = None  # rejects: the greatest share of rejected events, such as 0.001
    by: str = ""  # completeness: the time of the day, such as 08:00, by which the day before must be complete
    timezone: str = "UTC"  # completeness: the time zone of `by`
    sessions: bool = True  # freshness, completeness, uptime: count only the time in which the market is open
    notify: tuple[str, ...] = ()  # the names of the [[notify]] blocks that are told
    remind: str = "4h"  # how often a person is reminded while the promise is broken


class NotifyConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Somebody who is told of alerts."""

    name: str  # the name that [[sla]] and [[jobs]] use
    urls_file: str  # a file with one address of Apprise on each line: Slack, e-mail, a webhook and many others


class MonitorConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What Tapeline says of itself over HTTP: `/metrics` for Prometheus, `/live` and `/ready`."""

    #: Anybody who reaches the address can read the metrics, so it is on loopback unless you say otherwise. Empty: none.
    listen: str = "127.0.0.1:9464"  # the address, as host:port, at which this machine's processes answer


class DashboardConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The dashboard, the live feed and the history over HTTP. Any address but loopback needs a token."""

    listen: str = "127.0.0.1:8765"  # the address, as host:port
    run: bool = False  # start it with `tapeline run`
    #: Whoever has it may look. It also comes from TAPELINE_DASHBOARD_TOKEN.
    token_file: str = ""  # a file with the token; without a token, everybody who reaches the address may look
    #: Whoever has it may look and act. It also comes from TAPELINE_DASHBOARD_OPERATOR_TOKEN.
    operator_token_file: str = ""  # a file with the token that is needed to run a job or a repair
    actions: bool = False  # without an operator's token: everybody who may look may also run a job or a repair
    hosts: tuple[str, ...] = ()  # further names, besides that of `listen`, by which browsers reach it: "tapeline.example.com"
    origins: tuple[str, ...] = ()  # other sites whose pages may read it: "https://www.example.com"
    tls_certificate: str = ""  # a file with the certificate and its chain, for https
    tls_key: str = ""  # a file with its key
    clients: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2_000  # the most clients of the live feed at once
    #: Slow clients get the latest values instead, or are cut off and can come back.
    clients_mb: Annotated[int, msgspec.Meta(ge=16, le=100_000)] = 128  # the most megabytes that wait for all of them together


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The settings that belong to no block."""

    data_dir: str = "./data"  # the folder of everything that Tapeline keeps on this machine
    stream: StreamConfig = StreamConfig()
    providers: tuple[ProviderConfig, ...] = ()  # the [[providers]] blocks (below); if left out, a few symbols of a public feed
    stores: tuple[StoreConfig, ...] = (StoreConfig(),)
    #: More processes than partitions do not help.
    normalize_workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # the number of normalize processes; they share the partitions
    ledger: bool = True  # record which data is complete; false: only normalize reads the raw topic
    #: For earlier days, `tapeline complete` answers that nothing is known.
    ledger_days: Annotated[int, msgspec.Meta(ge=0)] = 0  # how many days the ledger keeps its records; 0: for ever
    repair: bool = True  # fill gaps from the providers' histories, if a provider keeps one
    history_from: str = ""  # the first UTC day, such as 2026-01-01, that the job `backfill` loads; if left out, yesterday
    #: With `prefect` and `airflow`, the scheduler of `tapeline run` starts only the jobs that repeat within a minute.
    scheduler: Literal["embedded", "prefect", "airflow", "none"] = "embedded"  # who starts the jobs
    jobs: tuple[JobConfig, ...] = ()  # jobs that differ from the usual ones, and further ones
    sla: tuple[SlaConfig, ...] = ()  # promises that are checked all the time
    notify: tuple[NotifyConfig, ...] = ()  # who is told of broken promises
    monitor: MonitorConfig = MonitorConfig()
    dashboard: DashboardConfig = DashboardConfig()

    @property
    def root(self) -> Path:
        """The data folder as an absolute path, with `~` and symbolic links resolved. It may not exist yet."""
        return Path(self.data_dir).expanduser().resolve()
