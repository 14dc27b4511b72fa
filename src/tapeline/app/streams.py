"""Opens the stream that the configuration names, and says which consumer groups read which topics."""

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


def open_stream(config: Config, environ: Mapping[str, str] | None = None, *, soon: bool = False) -> Stream:
    """The configured stream. It is not connected yet. `soon`: what is read is shown, so it does not wait until there is much.

    Raises ConfigError for an address of no known kind and for a package that is not installed."""
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

            return KafkaStream(stream, stream_password(stream, secrets), soon=soon)
    except ModuleNotFoundError as error:
        extra = scheme.removesuffix("s") if scheme != "redis" else scheme
        raise ConfigError(f"{stream.shown} needs the package {error.name}. Install it: pip install 'tapeline[{extra}]'.") from None
    raise ConfigError(f'stream.url = "{stream.shown}" is not a stream. Use "embedded:", "redis://host:6379/0" or "kafka://host:9092".')


def consumer_groups(config: Config) -> dict[str, tuple[Topic, ...]]:
    """The consumer groups of the configuration, each with the topics that it reads."""
    return dict.fromkeys(raw_consumer_groups(config), (RAW_TOPIC,)) | {store_name(store): NORMALIZED_TOPICS for store in config.stores}


def raw_consumer_groups(config: Config) -> tuple[str, ...]:
    """The consumer groups that read the raw topic."""
    return (NORMALIZE, LEDGER) if config.ledger else (NORMALIZE,)


def open_spool(config: Config, process: str) -> Spool | None:
    """The spool for records that the stream does not take. None for the embedded stream, which is on the same disk."""
    if config.stream.url == "embedded:":
        return None
    return Spool(config.root / "spool" / f"{ingest_name(process)}.sqlite", config.stream.spool_mb * 1_000_000)


def open_stream_with_data(config: Config) -> Stream | None:
    """The stream of an earlier run, for those who look at it; None if there was none. A reader must not create a stream."""
    return None if config.stream.url == "embedded:" and not (config.root / "stream").exists() else open_stream(config, soon=True)


def stream_with_data(config: Config) -> Stream:
    """The stream of an earlier run. Raises ConfigError if there was none: a reader must not create a stream."""
    if config.stream.url == "embedded:" and not (config.root / "stream").exists():
        raise ConfigError(f"There is no data in {config.root} yet. Start `tapeline run`, or use another --config.")
    return open_stream(config)
