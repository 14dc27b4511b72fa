"""From the configuration to the stream, and who reads which topics of it."""

from __future__ import annotations

from collections.abc import Mapping

from tapeline.app.process_names import ingest_name, store_name
from tapeline.config import Config, environment, stream_password
from tapeline.errors import ConfigError
from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC, Topic
from tapeline.stages.ingest.spool import Spool
from tapeline.stages.ledger import LEDGER
from tapeline.stages.normalize import NORMALIZE
from tapeline.streams import Stream
from tapeline.streams.embedded import EmbeddedStream
from tapeline.streams.lives import birth


def open_stream(config: Config, environ: Mapping[str, str] | None = None) -> Stream:
    """The configured stream; nothing is connected yet. Raises ConfigError for an address that no stream has."""
    stream = config.stream
    secrets = environment() if environ is None else environ
    scheme = stream.url.partition(":")[0]
    if stream.url == "embedded:":
        return EmbeddedStream(
            config.root / "stream", stream.partitions or 1, groups=consumer_groups(config), retain_s=stream.retain_hours * 3600, born=birth
        )
    try:
        if scheme in ("redis", "rediss"):
            from tapeline.streams.redis import RedisStream

            return RedisStream(stream, stream_password(stream, secrets), consumer_groups(config))
        if scheme in ("kafka", "kafkas"):
            from tapeline.streams.kafka import KafkaStream

            return KafkaStream(stream, stream_password(stream, secrets))
    except ModuleNotFoundError as error:
        extra = scheme.removesuffix("s") if scheme != "redis" else scheme
        raise ConfigError(f"{stream.shown} needs the package {error.name}. Install it: pip install 'tapeline[{extra}]'.") from None
    raise ConfigError(f'stream.url = "{stream.shown}" is no stream. Use "embedded:", "redis://host:6379/0" or "kafka://host:9092".')


def consumer_groups(config: Config) -> dict[str, tuple[Topic, ...]]:
    """Who reads which topics, by the configuration."""
    return dict.fromkeys(raw_consumer_groups(config), (RAW_TOPIC,)) | {store_name(store): NORMALIZED_TOPICS for store in config.stores}


def raw_consumer_groups(config: Config) -> tuple[str, ...]:
    """Who reads the raw topic."""
    return (NORMALIZE, LEDGER) if config.ledger else (NORMALIZE,)


def open_spool(config: Config, process: str) -> Spool | None:
    """Where ingest keeps what the stream does not take; none for the embedded stream, whose disk is the same one."""
    if config.stream.url == "embedded:":
        return None
    return Spool(config.root / "spool" / f"{ingest_name(process)}.sqlite", config.stream.spool_mb * 1_000_000)


def open_stream_with_data(config: Config) -> Stream | None:
    """The stream of a run that was; None where there was none: looking on makes none."""
    return None if config.stream.url == "embedded:" and not (config.root / "stream").exists() else open_stream(config)


def stream_with_data(config: Config) -> Stream:
    """The stream of a run that was; looking on makes none."""
    if config.stream.url == "embedded:" and not (config.root / "stream").exists():
        raise ConfigError(f"There is no data in {config.root} yet. Start with `tapeline run`, or name another --config.")
    return open_stream(config)
