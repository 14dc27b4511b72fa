"""What a client wants to get: which symbols and kinds, how often, and in which form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal

import msgspec

from tapeline.errors import WrongArgument
from tapeline.web.live.messages import KINDS

Form = Literal["json", "arrow", "protobuf"]
FORMS: Final[tuple[Form, ...]] = ("json", "arrow", "protobuf")
#: The most symbols and patterns of one subscription, and the longest of them.
MOST_SYMBOLS: Final = 1_000
_LONGEST: Final = 100
_RATE: Final = 2.0
_SLOWEST, _FASTEST = 0.1, 20.0


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What a subscription is changed by: further, or no more."""

    symbols: Annotated[list[str], msgspec.Meta(max_length=MOST_SYMBOLS)] = []
    kinds: Annotated[list[str], msgspec.Meta(max_length=20)] = []


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
    rate: float = _RATE
    form: Form = "json"

    def matches(self, symbol: str) -> bool:
        """Whether a symbol is subscribed to."""
        return symbol in self.symbols or any(fnmatchcase(symbol, pattern) for pattern in self.symbols if "*" in pattern or "?" in pattern)

    def changed(self, request: Request) -> Subscription:
        """Return the subscription after a client's request. Raises WrongArgument."""
        more, fewer = request.subscribe or Change(), request.unsubscribe or Change()
        return replace(
            self,
            symbols=_symbols((self.symbols | set(more.symbols)) - set(fewer.symbols)),
            kinds=_kinds((self.kinds | set(more.kinds)) - set(fewer.kinds)),
        )


def requested(parameters: Mapping[str, str]) -> Subscription:
    """Return the subscription of an address's parameters: symbols, kinds, rate, format. Raises WrongArgument, which names the parameter.

    Without `kinds`, it is ticks if there are symbols, and otherwise nothing: a websocket may subscribe later."""
    names = [name for name in parameters.get("symbols", "").split(",") if name]
    kinds = [kind for kind in parameters.get("kinds", "ticks" if names else "").split(",") if kind]
    wanted = parameters.get("format", "json")
    form = next((some for some in FORMS if some == wanted), None)
    if form is None:
        raise WrongArgument(f"format = {wanted!r} is not a form of the live feed. Use one of: {', '.join(FORMS)}.")
    try:
        rate = float(parameters.get("rate", _RATE))
    except ValueError:
        rate = 0.0
    if not _SLOWEST <= rate <= _FASTEST:
        raise WrongArgument(
            f"rate = {parameters.get('rate')!r} is not a rate. Use a number from {_SLOWEST} to {_FASTEST:g}, times a second."
        )
    return Subscription(_symbols(names), _kinds(kinds), rate, form)


def _symbols(names: Iterable[str]) -> frozenset[str]:
    chosen = frozenset(names)
    if len(chosen) > MOST_SYMBOLS:
        raise WrongArgument(f"symbols has {len(chosen)} names. Use at most {MOST_SYMBOLS}, or a pattern, such as *.")
    wrong = next((name for name in chosen if not name or len(name) > _LONGEST or not name.isprintable() or "[" in name), None)
    if wrong is not None:
        raise WrongArgument(f"symbols has {wrong[:_LONGEST]!r}. Use canonical names, such as AAPL, and patterns, such as BTC/*.")
    return chosen


def _kinds(names: Iterable[str]) -> frozenset[str]:
    chosen = frozenset(names)
    if unknown := sorted(chosen - set(KINDS)):
        raise WrongArgument(f"kinds has {unknown[0][:_LONGEST]!r}, which is not a kind. Use some of: {', '.join(KINDS)}.")
    return chosen
