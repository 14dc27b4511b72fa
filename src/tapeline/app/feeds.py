"""Lists the feeds that the configuration names."""

from __future__ import annotations

from tapeline.config import Config, ProviderConfig
from tapeline.providers.registry import PROVIDERS


def configured_feeds(config: Config) -> set[tuple[str, str]]:
    """The configured feeds, as (provider, feed)."""
    return {(some.name, feed_of(some)) for some in config.providers}


def feed_of(some: ProviderConfig) -> str:
    """Return the feed of a [[providers]] block, or the provider's default feed if the block names none."""
    return some.feed or PROVIDERS[some.name].default_feed
