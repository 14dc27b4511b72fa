"""One client of Alpaca: two codecs, login by header or message, full-state acknowledgements, errors by number."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tapeline.simulators.alpaca.tape import CHANNELS, OPTION_FEEDS
from tapeline.simulators.bars import SECOND_NS
from tapeline.simulators.events import BINARY, TEXT, Event, Frame, Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapeline.simulators.accounts import Accounts
    from tapeline.simulators.rate_limiter import RateLimiter
    from tapeline.simulators.session import Link

ERRORS: Final = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
    412: "option messages are only available in MsgPack format",
    413: "star subscription is not allowed for option quotes",
    500: "internal error",
}
_CLOSES: Final = (402, 404, 406, 407, 409, 412, 500)  # unless a fault says otherwise; after other errors a client may continue
_AT_LOGIN: Final = (402, 404, 406, 409)
_AT_SUBSCRIPTION: Final = (400, 401, 405, 410, 413)
_LOGIN_WITHIN_S: Final = 10.0
_UNPROVOKED_S: Final = 1.0
_MOST_EVENTS: Final = 100  # in one frame
_SYMBOL: Final = re.compile(r"\*|[A-Z0-9./]{1,24}")
_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules for every client of one simulator."""

    accounts: Accounts[AlpacaSession]
    refused_logins: RateLimiter
    refused_connections: RateLimiter
    zombie_s: float | None  # how long a lost connection still counts
    symbol_limit: int | None
    error: int | None  # sent once to every client
    close_after_error: bool
    keep_after_error: bool


class _RefusedError(Exception):
    """A subscription that is refused, with the error's number."""

    def __init__(self, code: int) -> None:
        super().__init__(ERRORS[code])
        self.code = code


class AlpacaSession:
    """See session.Session. `key` and `secret` come from the upgrade's headers, if they were sent."""

    def __init__(self, feed: str, rules: Rules, *, msgpack: bool, deflate: bool, key: str | None, secret: str | None) -> None:
        self.feed = feed
        self.deflate = deflate
        self.topics: set[Topic] = set()
        self._rules = rules
        self._msgpack = msgpack
        self._given = (key, secret)
        self._key: str | None = None
        self._link: Link | None = None
        self._login_by = self._error_at = float("inf")

    def opened(self, link: Link, now: float) -> None:
        """Send the greeting, and log in at once if the upgrade's headers had a key.

        As at Alpaca, an option feed without MessagePack brings error 412 instead.
        """
        self._link = link
        if self.feed in OPTION_FEEDS and not self._msgpack:
            self._error(412)
            return
        self._login_by = now + _LOGIN_WITHIN_S
        if self._rules.error is not None and self._rules.error not in (*_AT_LOGIN, *_AT_SUBSCRIPTION):
            self._error_at = now + _UNPROVOKED_S
        self._send({"T": "success", "msg": "connected"})
        if self._given[0] is not None:
            self._login(*self._given, now)

    def heard(self, _now: float) -> None:
        """No limit on inbound messages is documented."""

    def pong(self, _payload: bytes, _now: float) -> None:
        """The simulator sends no pings."""

    def tick(self, now: float) -> None:
        """Send error 404 if no login has come within 10 s.

        The fault `error` comes 1 s after the opening, unless its code is one of a login or of a subscription.
        """
        if self._key is None and now >= self._login_by:
            self._login_by = float("inf")
            self._error(404)
        if now >= self._error_at and self._rules.error is not None:
            self._error_at = float("inf")
            self._error(self._rules.error)

    def message(self, data: bytes, now: float) -> None:
        """Handle `auth`, `subscribe` and `unsubscribe`. Anything else brings error 400, and a subscription before the login 401."""
        try:
            request = msgspec.msgpack.decode(data) if self._msgpack else msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            request = None
        action = request.get("action") if isinstance(request, dict) else None
        if action == "auth":
            self._login(request.get("key"), request.get("secret"), now)
        elif action not in ("subscribe", "unsubscribe"):
            self._error(400)
        elif self._key is None:
            self._error(401)
        else:
            self._change(request, action)

    def pack(self, events: Sequence[Event]) -> list[Frame]:
        """Return arrays of at most 100 events, in the client's codec. In MessagePack, `t` is a Timestamp, as Alpaca sends it."""
        frames = []
        for start in range(0, len(events), _MOST_EVENTS):
            entries = [(event, event.json()) for event in events[start : start + _MOST_EVENTS]]
            if self._msgpack:
                maps = [_packed(event) for event, _ in entries]
                frames.append(Frame(_array_head(len(maps)) + b"".join(maps), BINARY, entries))
            else:
                frames.append(Frame(b"[" + b",".join([text for _, text in entries]) + b"]", TEXT, entries))
        return frames

    def slow(self) -> None:
        """Send error 407. The simulator then hangs up."""
        self._send({"T": "error", "code": 407, "msg": ERRORS[407]})

    def day_end(self) -> None:
        if self._link is not None:
            self._link.close(1001, "")

    def left(self, now: float) -> None:
        """Free the account's connection. With the fault `zombie_slot`, one that the client did not close counts for some seconds more.

        Alpaca does the same: a second connection gets error 406 until then.
        """
        if self._key is not None and self._link is not None:
            zombie_s = self._rules.zombie_s
            until = now + zombie_s if zombie_s is not None and not self._link.clean else None
            self._rules.accounts.leave((self.feed, self._key), self, until)
        self._link = None

    def _login(self, key: object, secret: object, now: float) -> None:
        rules = self._rules
        if self._key is not None:
            self._error(403)
            return
        good = isinstance(key, str) and isinstance(secret, str) and key and secret and not key.startswith("bad")
        if not good or rules.refused_logins.take():
            self._error(402)
            return
        assert isinstance(key, str)
        account = (self.feed, key)
        if rules.refused_connections.take() or rules.accounts.excess(account, now) >= 0:
            self._error(406)
            return
        if rules.error in _AT_LOGIN:
            self._error(rules.error)
            return
        self._key = key
        rules.accounts.join(account, self)
        self._send({"T": "success", "msg": "authenticated"})

    def _change(self, request: dict[str, Any], action: str) -> None:
        try:
            if self._rules.error in _AT_SUBSCRIPTION:
                raise _RefusedError(self._rules.error)
            named = self._named(request)
            after = self.topics | named if action == "subscribe" else self.topics - named
            self._check_limit(after)
        except _RefusedError as refusal:
            self._error(refusal.code)
            return
        added, self.topics = sorted(after - self.topics), after
        self._send(self._state())
        if self._link is not None:
            self._link.subscribed(added)

    def _named(self, request: dict[str, Any]) -> set[Topic]:
        """The topics that a request names."""
        named = set()
        for channel, symbols in request.items():
            if channel == "action" or not symbols:
                continue
            if channel not in CHANNELS[self.feed]:
                raise _RefusedError(410)
            if not isinstance(symbols, list):
                raise _RefusedError(400)
            for symbol in symbols:
                if not (isinstance(symbol, str) and _SYMBOL.fullmatch(symbol)):
                    raise _RefusedError(400)
                if symbol == "*" and self.feed in OPTION_FEEDS and channel == "quotes":
                    raise _RefusedError(413)
                named.add(Topic(self.feed, channel, symbol))
        return named

    def _check_limit(self, topics: set[Topic]) -> None:
        limit = self._rules.symbol_limit
        for channel in ("trades", "quotes"):
            if limit is not None and sum(topic.channel == channel for topic in topics) > limit:
                raise _RefusedError(405)

    def _state(self) -> dict[str, Any]:
        """The full list of subscriptions, which every acknowledgement carries."""
        state: dict[str, Any] = {"T": "subscription"}
        for channel in CHANNELS[self.feed]:
            state[channel] = sorted(topic.symbol for topic in self.topics if topic.channel == channel)
        if "statuses" in state:
            state |= {"corrections": state["trades"], "cancelErrors": state["trades"]}
        return state

    def _error(self, code: int) -> None:
        self._send({"T": "error", "code": code, "msg": ERRORS.get(code, "error")})
        closes = (code in _CLOSES or self._rules.close_after_error) and not self._rules.keep_after_error
        if closes and self._link is not None:
            self._link.close(1000, "")

    def _send(self, message: dict[str, Any]) -> None:
        if self._link is None:
            return
        if self._msgpack:
            self._link.say(_encode([message]), BINARY)
        else:
            self._link.say(msgspec.json.encode([message]), TEXT)


def timestamp(ns: int) -> msgspec.msgpack.Ext:
    """A msgpack timestamp (extension -1) of nanoseconds since the epoch, in its shortest form."""
    seconds, rest = divmod(ns, SECOND_NS)
    if not rest and 0 <= seconds < 1 << 32:
        return msgspec.msgpack.Ext(-1, struct.pack(">I", seconds))
    if 0 <= seconds < 1 << 34:
        return msgspec.msgpack.Ext(-1, struct.pack(">Q", rest << 34 | seconds))
    return msgspec.msgpack.Ext(-1, struct.pack(">Iq", rest, seconds))


def _packed(event: Event) -> bytes:
    return _encode(event.fields | {"t": timestamp(event.ns)}) if "t" in event.fields else _encode(event.fields)


def _array_head(size: int) -> bytes:
    return bytes((0x90 | size,)) if size < 16 else b"\xdc" + size.to_bytes(2, "big")
