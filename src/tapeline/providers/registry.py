"""Finds the installed providers through the entry-point group `tapeline.providers`. Tapeline's own three are found the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final, TypeVar

from tapeline.errors import ConfigError

if TYPE_CHECKING:  # reading only the names must not wait for these imports
    from tapeline.providers.events import Channel, Decode
    from tapeline.providers.history import History
    from tapeline.providers.instruments import Instruments
    from tapeline.providers.provider import Files, Provider
    from tapeline.records import Identity

_GROUP: Final = "tapeline.providers"
T = TypeVar("T")


@cache
def names() -> tuple[str, ...]:
    """The names of the installed providers, sorted. No provider is imported for this."""
    return tuple(sorted({point.name for point in entry_points(group=_GROUP)}))


@cache
def _installed() -> dict[str, Provider]:
    from tapeline.providers.provider import Provider

    providers: dict[str, Provider] = {}
    for point in sorted(entry_points(group=_GROUP), key=lambda point: point.name):
        try:
            provider = point.load()
        except Exception as error:  # importing a package runs its code, which may raise anything
            raise _broken(point, f"cannot be imported ({type(error).__name__}: {error}).") from error
        if not isinstance(provider, Provider) or provider.name != point.name:
            raise _broken(point, f"is not a Provider with the name {point.name!r}.")
        providers[point.name] = provider
    return providers


def _broken(point: EntryPoint, why: str) -> ConfigError:
    package = point.dist.name if point.dist is not None else "unknown"
    return ConfigError(
        f"The installed package {package} offers the provider {point.name}, but {point.value} {why} Update the package, or remove it."
    )


class _Each(Mapping[str, T]):
    """Provider name to one part of that provider. Providers without the part are left out. The first access imports all providers."""

    def __init__(self, part: Callable[[Provider], T | None]) -> None:
        self._part = part
        self._cached: dict[str, T] | None = None

    def _parts(self) -> dict[str, T]:
        if self._cached is None:
            parts = {name: self._part(provider) for name, provider in _installed().items()}
            self._cached = {name: part for name, part in parts.items() if part is not None}
        return self._cached

    def __getitem__(self, name: str) -> T:
        return self._parts()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts())

    def __len__(self) -> int:
        return len(self._parts())


def _channels(provider: Provider) -> Mapping[str, Mapping[str, Channel]]:
    return {name: feed.channels for name, feed in provider.feeds.items()}


def _decode(provider: Provider) -> Decode:
    from tapeline.providers.decoding.native import with_core

    return with_core(provider.decode, provider.native)


def _history(provider: Provider) -> History | None:
    return provider.history


def _files(provider: Provider) -> Files | None:
    return provider.files


def _instruments(provider: Provider) -> Instruments | None:
    return provider.instruments


PROVIDERS: Final[Mapping[str, Provider]] = _Each(lambda provider: provider)
#: Provider to the function that sorts its frames into events. It uses the native core where that is installed.
DECODERS: Final[Mapping[str, Decode]] = _Each(_decode)
#: Provider to its function in Python, which defines what is right.
PYTHON_DECODERS: Final[Mapping[str, Decode]] = _Each(lambda provider: provider.decode)
#: Provider, then feed, then channel name, to the channel.
CHANNELS: Final[Mapping[str, Mapping[str, Mapping[str, Channel]]]] = _Each(_channels)
#: Provider to its history over REST. Providers without one are left out.
HISTORIES: Final[Mapping[str, History]] = _Each(_history)
#: Provider to its history as files, each of a day or a month. Providers without files are left out.
ARCHIVES: Final[Mapping[str, Files]] = _Each(_files)
#: Provider to its lists of instruments. Providers without a list are left out.
LISTS: Final[Mapping[str, Instruments]] = _Each(_instruments)


def identity(provider: str, feed: str, channel: str) -> Identity:
    """The rule by which two events of this channel are the same event. For an unknown channel, no two events ever are."""
    from tapeline.records import Identity

    known = CHANNELS.get(provider, {}).get(feed, {}).get(channel)
    return known.identity if known is not None else Identity()
