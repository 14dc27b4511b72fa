"""One client of Polygon.io: greeting, login, topics acknowledged one by one, and the limit on connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tapeline.simulators.events import TEXT, Event, Frame, Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapeline.simulators.accounts import Accounts
    from tapeline.simulators.rate_limiter import RateLimiter
    from tapeline.simulators.session import Link

#: The topic prefixes of each cluster. A prefix that the tape does not know is acknowledged, and brings no data.
PREFIXES: Final[dict[str, tuple[str, ...]]] = {
    "stocks": ("T", "Q", "A", "AM", "LULD", "NOI", "FMV"),
    "options": ("T", "Q", "A", "AM", "FMV"),
    "crypto": ("XT", "XQ", "XAS", "XA", "FMV", "LV"),
}
_LOGIN_WITHIN_S: Final = 10.0
_MOST_EVENTS: Final = 200  # in one frame
_MOST_ACKS: Final = 100  # in one frame
_MOST_OPTION_QUOTES: Final = 1_000
_DELAYED: Final = (
    "You don't have access real-time data. If your plan only includes delayed data, you can connect to the delayed "
    "websocket at wss://delayed.polygon.io/stocks."
)
_TOO_MANY: Final = "Maximum number of websocket connections exceeded. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules for every client of one simulator."""

    accounts: Accounts[PolygonSession]
    evict_oldest: bool
    refused_logins: RateLimiter
    refused_connections: RateLimiter
    not_authorized: str | None  # a topic prefix outside the plan
    delayed_plan: bool


class PolygonSession:
    """See session.Session."""

    deflate = False

    def __init__(self, feed: str, rules: Rules) -> None:
        self.feed = feed
        self.topics: set[Topic] = set()
        self._rules = rules
        self._link: Link | None = None
        self._key: str | None = None
        self._doomed = False  # one connection too many: refused after its first subscription
        self._early: list[dict[str, Any]] = []  # requests that came before the login
        self._login_by = float("inf")

    def opened(self, link: Link, now: float) -> None:
        """Send the greeting. The client has 10 s to log in."""
        self._link = link
        self._login_by = now + _LOGIN_WITHIN_S
        self._status("connected", "Connected Successfully")

    def heard(self, _now: float) -> None:
        """No limit on inbound messages is documented."""

    def pong(self, _payload: bytes, _now: float) -> None:
        """The simulator sends no pings."""

    def tick(self, now: float) -> None:
        """Send `auth_timeout` and close with 1008 if no login has come within 10 s."""
        if self._key is None and now >= self._login_by and self._link is not None:
            self._login_by = float("inf")
            self._status("auth_timeout", "No authentication request received.")
            self._link.close(1008, "")

    def message(self, data: bytes, _now: float) -> None:
        """Handle a login or a change of topics. A change before the login waits for it. A message that cannot be read gets no answer."""
        try:
            request = msgspec.json.decode(data)
        except msgspec.DecodeError:
            return
        if not isinstance(request, dict) or not isinstance(request.get("params"), str):
            return
        if request.get("action") == "auth":
            self._login(request["params"], _now)
        elif self._key is None:
            self._early.append(request)
        else:
            self._change(request)

    def pack(self, events: Sequence[Event]) -> list[Frame]:
        """Return JSON arrays of at most 200 events."""
        frames = []
        for start in range(0, len(events), _MOST_EVENTS):
            entries = [(event, event.json()) for event in events[start : start + _MOST_EVENTS]]
            frames.append(Frame(b"[" + b",".join([text for _, text in entries]) + b"]", TEXT, entries))
        return frames

    def slow(self) -> None:
        """Send the status `slow_consumer`. The simulator then hangs up."""
        self._status("slow_consumer", "")

    def day_end(self) -> None:
        if self._link is not None:
            self._link.close(1001, "")

    def left(self, _now: float) -> None:
        if self._key is not None:
            self._rules.accounts.leave((self.feed, self._key), self)
        self._link = None

    def evicted(self) -> None:
        """Close this connection: the account has one too many."""
        self._status("max_connections", _TOO_MANY)
        if self._link is not None:
            self._link.close(1008, "")

    def _login(self, key: str, now: float) -> None:
        if self._link is None or self._key is not None:
            return
        if not key or key.startswith("bad") or self._rules.refused_logins.take():
            self._status("auth_failed", "authentication failed")
            self._link.hang_up()
            return
        accounts, account = self._rules.accounts, (self.feed, key)
        self._key = key
        accounts.join(account, self)
        self._status("auth_success", "authenticated")
        if self._rules.refused_connections.take():
            self._doomed = True
        elif accounts.excess(account, now) > 0:
            if self._rules.evict_oldest:
                oldest = accounts.oldest(account)
                accounts.leave(account, oldest)
                oldest.evicted()
            else:
                self._doomed = True
        early, self._early = self._early, []
        for request in early:
            self._change(request)

    def _change(self, request: dict[str, Any]) -> None:
        if self._link is None:
            return
        names = [name.strip() for name in request["params"].split(",")]
        before = set(self.topics)
        if request["action"] == "subscribe":
            answers = [answer for name in names for answer in self._add(name)]
        elif request["action"] == "unsubscribe":
            answers = [answer for name in names for answer in self._remove(name)]
        else:
            return
        for start in range(0, len(answers), _MOST_ACKS):
            self._send(answers[start : start + _MOST_ACKS])
        if self._doomed:
            self.topics.clear()
            self.evicted()
            return
        self._link.subscribed(sorted(self.topics - before))

    def _topic(self, name: str) -> Topic | None:
        """The topic of a name such as `T.AAPL`. None for an unknown prefix, which gets no answer."""
        prefix, _, symbol = name.partition(".")
        return Topic(self.feed, prefix, symbol) if symbol and prefix in PREFIXES[self.feed] else None

    def _add(self, name: str) -> list[dict[str, str]]:
        topic = self._topic(name)
        if topic is None:
            return []
        if self._rules.delayed_plan:
            return [_status_message("error", _DELAYED)]
        if topic.channel == self._rules.not_authorized or self._too_many_quotes(topic):
            return [_status_message("error", "not authorized")]
        self.topics.add(topic)
        return [_status_message("success", f"subscribed to: {name}")]

    def _remove(self, name: str) -> list[dict[str, str]]:
        topic = self._topic(name)
        if topic is None:
            return []
        self.topics.discard(topic)
        return [_status_message("success", f"unsubscribed to: {name}")]

    def _too_many_quotes(self, topic: Topic) -> bool:
        if self.feed != "options" or topic.channel != "Q":
            return False
        return topic.symbol == "*" or sum(one.channel == "Q" for one in self.topics) >= _MOST_OPTION_QUOTES

    def _status(self, status: str, message: str) -> None:
        self._send([_status_message(status, message)])

    def _send(self, messages: list[dict[str, str]]) -> None:
        if self._link is not None:
            self._link.say(msgspec.json.encode(messages), TEXT)


def _status_message(status: str, message: str) -> dict[str, str]:
    return {"ev": "status", "status": status, "message": message}
