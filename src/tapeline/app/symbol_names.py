"""Finds the names under which symbols are stored: from the configuration first, then from the exchange's list in the stream."""

from __future__ import annotations

from tapeline.app.feeds import feed_of
from tapeline.app.streams import open_stream_with_data
from tapeline.config import Config
from tapeline.errors import ConfigError, Refused, Unavailable
from tapeline.providers.events import Names
from tapeline.providers.registry import PROVIDERS
from tapeline.stages.names import merged, noted
from tapeline.streams import Stream


def configured_names(config: Config) -> Names:
    """The configured splits of symbols: (provider, feed) -> {exchange name: canonical name}.

    Raises ConfigError for a split that is not possible."""
    splits: dict[tuple[str, str], dict[str, str]] = {}
    for some in config.providers:
        for name, symbol in some.names.items():
            if not PROVIDERS[some.name].splits_names or symbol.replace("/", "") != name or symbol.count("/") != 1:
                raise ConfigError(
                    f'[[providers]] names: {name} = "{symbol}" does not split a symbol of {some.name}. Write it like ADAEUR = "ADA/EUR".'
                )
            splits.setdefault((some.name, feed_of(some)), {})[name] = symbol
    return splits


def known_names(config: Config) -> Names:
    """The configured names and those of the exchange's lists in the stream. Only the configured names if the stream is away or not begun.

    Raises ConfigError as `configured_names`."""
    configured = configured_names(config)
    stream = open_stream_with_data(config)
    if stream is None:
        return configured
    try:
        return names_in_force(config, stream)
    except (Unavailable, Refused):
        return configured
    finally:
        stream.close()


def names_in_force(config: Config, stream: Stream | None) -> Names:
    """The configured names and those of the exchange's lists in the stream. Without a stream, only the configured names.

    Raises Unavailable when the stream is away, and ConfigError as `configured_names`."""
    return merged(noted(stream), configured_names(config)) if stream is not None else configured_names(config)
