"""One client of Binance spot: streams by URL and by request, nested errors, pings that it must echo, the 24 hour limit."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tapeline.simulators.binance.tape import FEED, INTERVALS, in_microseconds
from tapeline.simulators.events import PING, TEXT, Event, Frame, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapeline.simulators.session import Link

METHODS: Final = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
MOST_STREAMS: Final = 1024
_MOST_INBOUND: Final = 5  # messages in any second, including pings and pongs
_PING_S: Final = 20.0
_DAY_S: Final = 86_400.0
_LEAST_PING_S: Final = 0.2
_KINDS: Final = re.compile(
    r"(trade|aggTrade|bookTicker|blockTrade|miniTicker|ticker|ticker_(1h|4h|1d)|avgPrice|referencePrice"
    r"|depth(5|10|20)?(@100ms|@1000ms)?"
    rf"|kline_({'|'.join(INTERVALS)})(@[+-]\d\d:\d\d)?)"
)
#: The channels of the generated market. A replay has the channels that were recorded.
MADE: Final = re.compile(r"trade|aggTrade|bookTicker|kline_.*")
_ALL_MARKET: Final = re.compile(r"!(miniTicker|ticker_(1h|4h|1d))@arr")


class RequestError(Exception):
    """A refused request, with the code and text that the client gets."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def topic_of(stream: str) -> Topic:
    """The topic of a stream name such as `btcusdt@kline_1m`. RequestError if it is not a stream name."""
    if _ALL_MARKET.fullmatch(stream):
        return Topic(FEED, stream, "!")
    symbol, _, channel = stream.partition("@")
    if symbol and symbol == symbol.lower() and _KINDS.fullmatch(channel):
        return Topic(FEED, channel, symbol.upper())
    raise RequestError(2, "Invalid request: invalid stream")


def stream_of(topic: Topic) -> str:
    """The stream name of a topic."""
    return topic.channel if topic.symbol == "!" else f"{topic.symbol.lower()}@{topic.channel}"


@dataclass(frozen=True, slots=True)
class Terms:
    """How the exchange treats a connection."""

    #: Whether each message names its stream.
    combined: bool
    microseconds: bool
    #: How long (s) a connection lasts; the exchange ends it after a day.
    day_s: float
    #: How long (s) an acknowledgement takes; None: at once.
    ack_delay_s: float | None
    reject_unknown: bool


class BinanceSession:
    """See session.Session. `streams`: those of the URL; `knows`: whether a symbol is listed; `serves`: whether a channel is simulated.

    The exchange has more channels than the simulator. A stream of a channel that is not simulated gets an error; the exchange would send
    it."""

    feed = FEED
    deflate = False

    def __init__(
        self,
        streams: Sequence[str],
        terms: Terms,
        *,
        knows: Callable[[str], bool],
        serves: Callable[[str], bool],
        clock: Callable[[], int],
    ) -> None:
        self.topics: set[Topic] = set()
        self._streams = streams
        self._combined = terms.combined
        self._microseconds = terms.microseconds
        self._day_s = terms.day_s
        self._ping_s = max(_PING_S * min(terms.day_s / _DAY_S, 1.0), _LEAST_PING_S)
        self._ack_delay_s = terms.ack_delay_s
        self._reject_unknown = terms.reject_unknown
        self._knows = knows
        self._serves = serves
        self._clock = clock
        self._link: Link | None = None
        self._inbound: deque[float] = deque(maxlen=_MOST_INBOUND)
        self._unanswered: dict[bytes, float] = {}
        self._next_ping = self._notice_at = self._end_at = float("inf")
        self._heads: dict[Topic, bytes] = {}

    def opened(self, link: Link, now: float) -> None:
        """Subscribe to the first 1,024 streams of the URL.

        As at Binance, they get no acknowledgement, and a wrong name gets no error. A channel that is not simulated gets one.
        """
        self._link = link
        self._next_ping = now + self._ping_s
        self._end_at = now + self._day_s
        self._notice_at = self._end_at - min(10.0, self._day_s / 10)
        added = []
        for stream in self._streams[:MOST_STREAMS]:
            try:
                topic = topic_of(stream)
            except RequestError:
                continue  # a wrong name in the URL gets no answer
            try:
                self._check_served([topic])
            except RequestError as error:
                self._say({"error": {"code": error.code, "msg": str(error)}})
            else:
                added.append(topic)
        self.topics.update(added)
        if added:
            link.subscribed(added)

    def heard(self, now: float) -> None:
        """Close with 1008 at the sixth frame within a second. As at Binance, pings and pongs count too."""
        if len(self._inbound) == _MOST_INBOUND and now - self._inbound[0] < 1.0:
            self._close(1008, "Too many requests")
        self._inbound.append(now)

    def pong(self, payload: bytes, _now: float) -> None:
        """Note that a ping and those before it are answered. A pong that echoes no ping has no effect."""
        if self._unanswered.pop(payload, None) is None:
            return
        for older in [sent for sent in self._unanswered if sent < payload]:
            del self._unanswered[older]
        if self._ping_s < 1.0:  # a test made pings frequent: their echoes must not use up the limit of 5 a second
            self._inbound.pop()

    def tick(self, now: float) -> None:
        """Ping every 20 s, and close with 1008 if a ping is not answered within three such intervals.

        Send `serverShutdown` 10 s before the day ends (or a tenth of the day, if that is shorter), and close with 1001 when it ends. A day
        of less than 24 h has more frequent pings.
        """
        if self._link is None:
            return
        if any(now - sent > 3 * self._ping_s for sent in self._unanswered.values()):
            self._close(1008, "Pong timeout")
        elif now >= self._next_ping:
            payload = b"%d" % (self._clock() // 1_000_000)
            self._next_ping = now + self._ping_s
            self._unanswered[payload] = now
            self._link.say(payload, PING)
        if now >= self._notice_at:
            self._notice_at = float("inf")
            self._announce_shutdown()
        if now >= self._end_at:
            self._end_at = float("inf")
            self._close(1001, "")

    def pack(self, events: Sequence[Event]) -> list[Frame]:
        """Return a frame for each event, as Binance does: combined or raw, with times in the connection's unit."""
        frames = []
        for event in events:
            text = self._text(event)
            head = self._heads.get(event.topic) or self._head(event.topic)
            frames.append(Frame(head + text + b"}" if self._combined else text, TEXT, [(event, text)]))
        return frames

    def slow(self) -> None:
        """Binance has no message for it."""

    def day_end(self) -> None:
        self._close(1001, "")

    def left(self, _now: float) -> None:
        self._link = None

    def message(self, data: bytes, _now: float) -> None:
        """Answer a request in the exchange's form: a result, or a nested error with code and text.

        With the fault `unknown_symbol`, the error for an unlisted symbol is followed by a close with 1008.
        """
        request_id: object = None
        has_id = False
        try:
            try:
                request = msgspec.json.decode(data)
            except msgspec.DecodeError:
                raise RequestError(3, "Invalid JSON: expected value at line 1 column 1") from None
            if not isinstance(request, dict):
                raise RequestError(2, "Invalid request: expected an object")
            has_id, request_id = "id" in request, request.get("id")
            _check_id(request_id)
            answer: dict[str, Any] = {"result": self._result(request)}
        except RequestError as error:
            answer = {"error": {"code": error.code, "msg": str(error)}}
            if isinstance(error, _UnknownSymbolError):
                self._say(answer | {"id": request_id})
                self._close(1008, "")
                return
        self._say(answer | ({"id": request_id} if has_id or "result" in answer else {}))

    def _result(self, request: dict[str, Any]) -> object:
        method = request.get("method")
        if method is None:
            raise RequestError(2, "Invalid request: missing field `method` at line 1 column 2")
        if method not in METHODS:
            raise RequestError(2, f"Invalid request: unknown variant `{method}`, expected one of {', '.join(METHODS)}")
        params = request.get("params")
        if method == "LIST_SUBSCRIPTIONS":
            return sorted(stream_of(topic) for topic in self.topics)
        if not isinstance(params, list):
            raise RequestError(2, "Invalid request: missing field `params` at line 1 column 2")
        if method == "SUBSCRIBE":
            self._subscribe(params)
            return None
        if method == "UNSUBSCRIBE":
            self._unsubscribe(params)
            return None
        return self._property(method, params)

    def _subscribe(self, params: list[Any]) -> None:
        requested = _topics(params)
        self._check_served(requested)
        unknown = [topic for topic in requested if topic.symbol != "!" and not self._knows(topic.symbol)]
        if unknown and self._reject_unknown:
            raise _UnknownSymbolError(2, "Invalid request: invalid stream")
        added = [topic for topic in requested if topic not in self.topics]
        if len(self.topics) + len(set(added)) > MOST_STREAMS:
            raise RequestError(4, "Too many subscriptions")
        self.topics.update(added)
        if self._link is not None and added:
            self._link.subscribed(added)

    def _check_served(self, topics: Sequence[Topic]) -> None:
        for topic in topics:
            if not self._serves(topic.channel):
                raise RequestError(
                    2, f"Not made by this simulator: {stream_of(topic)}. It makes trade, aggTrade, bookTicker and kline_<i>."
                )

    def _unsubscribe(self, params: list[Any]) -> None:
        self.topics.difference_update(_topics(params))
        if self._link is not None:
            self._link.subscribed(())

    def _property(self, method: str, params: list[Any]) -> object:
        if not params or not isinstance(params[0], str):
            raise RequestError(2, "Invalid request: property name must be a string")
        if len(params) > (2 if method == "SET_PROPERTY" else 1):
            raise RequestError(2, "Invalid request: too many parameters")
        if params[0] != "combined":
            raise RequestError(0, "Unknown property")
        if method == "GET_PROPERTY":
            return self._combined
        if len(params) < 2 or not isinstance(params[1], bool):
            raise RequestError(1, "Invalid value type: expected Boolean")
        self._combined = params[1]
        return None

    def _announce_shutdown(self) -> None:
        time = self._clock() // (1_000 if self._microseconds else 1_000_000)
        notice: dict[str, Any] = {"e": "serverShutdown", "E": time}
        self._write({"stream": "!serverShutdown", "data": notice} if self._combined else notice)

    def _say(self, answer: dict[str, Any]) -> None:
        if self._ack_delay_s is not None and self._link is not None:
            self._link.later(self._ack_delay_s, [msgspec.json.encode(answer)], TEXT)
        else:
            self._write(answer)

    def _write(self, message: dict[str, Any]) -> None:
        if self._link is not None:
            self._link.say(msgspec.json.encode(message), TEXT)

    def _close(self, code: int, reason: str) -> None:
        if self._link is not None:
            self._link.close(code, reason)

    def _text(self, event: Event) -> bytes:
        return msgspec.json.encode(in_microseconds(event)) if self._microseconds else event.json()

    def _head(self, topic: Topic) -> bytes:
        head = self._heads[topic] = b'{"stream":' + msgspec.json.encode(stream_of(topic)) + b',"data":'
        return head


class _UnknownSymbolError(RequestError):
    """A request for an unlisted symbol, on a simulator that closes the connection for it."""


def _topics(params: list[Any]) -> list[Topic]:
    if not all(isinstance(name, str) for name in params):
        raise RequestError(2, "Invalid request: invalid stream")
    return [topic_of(name) for name in params]


def _check_id(value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    text = isinstance(value, str) and len(value) <= 36
    if not (whole or text or value is None):
        raise RequestError(2, "Invalid request: request ID must be an unsigned integer")
