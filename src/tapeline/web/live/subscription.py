"""What a client wants to get: which symbols and kinds, how often, and in which form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import translate

import msgspec

from tapeline.errors import WrongArgument
from tapeline.web import queries
from tapeline.web.queries import MOST_PATTERNS, MOST_SYMBOLS, RATE, FeedForm, Wanted, WantedKinds


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What a subscription is changed by: further, or no more."""

    symbols: Wanted = []
    kinds: WantedKinds = []


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends on its websocket."""

    subscribe: Change | None = None
    unsubscribe: Change | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """Clients with equal subscriptions get the same messages."""

    #: Canonical names and patterns: `BTC/USDT`, `BTC/*`, `*`.
    symbols: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    #: How many times a second at most the kind `latest` is sent.
    rate: float = RATE
    form: FeedForm = "json"
    #: All patterns as one.
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if patterns := _patterns(self.symbols):
            object.__setattr__(self, "_pattern", re.compile("|".join(map(translate, patterns))))

    def matches(self, symbol: str) -> bool:
        """Whether a symbol is subscribed to."""
        return symbol in self.symbols or (self._pattern is not None and self._pattern.match(symbol) is not None)

    def changed(self, request: Request) -> Subscription:
        """Return the subscription after a client's request. Raises WrongArgument."""
        more, fewer = request.subscribe or Change(), request.unsubscribe or Change()
        return replace(
            self,
            symbols=_not_too_many((self.symbols | set(more.symbols)) - set(fewer.symbols)),
            kinds=(self.kinds | set(more.kinds)) - set(fewer.kinds),
        )


def requested(parameters: Mapping[str, str]) -> Subscription:
    """Return the subscription of an address's parameters. `since` is read by others. Raises WrongArgument, which names the parameter.

    Without `kinds`, it is ticks if there are symbols, and otherwise nothing: a websocket may subscribe later."""
    given = queries.read(queries.Stream, parameters)
    kinds = given.kinds if not isinstance(given.kinds, msgspec.UnsetType) else ["ticks"] if given.symbols else []
    return Subscription(_not_too_many(frozenset(given.symbols)), frozenset(kinds), given.rate, given.format)


def _not_too_many(symbols: frozenset[str]) -> frozenset[str]:
    """Check what a single request does not show: what it adds up to, and how many of it are patterns."""
    if len(symbols) > MOST_SYMBOLS:
        raise WrongArgument(f"symbols has {len(symbols)} names. Use at most {MOST_SYMBOLS}, or a pattern, such as *.")
    if (count := len(_patterns(symbols))) > MOST_PATTERNS:
        raise WrongArgument(f"symbols has {count} patterns. Use at most {MOST_PATTERNS}, or a wider one, such as *.")
    return symbols


def _patterns(symbols: Iterable[str]) -> list[str]:
    return [name for name in symbols if "*" in name or "?" in name]
