"""The faults a simulator can be told to show, each with its parameter, and what is wrong with a name nobody knows."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

#: name -> one line of help. P is a probability (0 to 1), S a time in seconds, N a count; a default follows the sign =.
FAULTS: dict[str, str] = {
    # any simulator: the connection
    "close": "S=5: a clean close (1001), S seconds after a connection opened",
    "reset": "S=5: part of a frame, then a TCP reset, S seconds after a connection opened",
    "stale": "S=5: no more data S seconds after a connection opened; the socket stays open and pings are answered",
    "half_open": "S=5: the socket goes dead without a FIN, S seconds after a connection opened; pings are not answered",
    "day_end": "S=5: the forced disconnect, S seconds after a connection opened (binance: serverShutdown first)",
    "slow_consumer": "S=2: a client that has not read for S seconds is dropped, with the provider's own word, if any",
    "auth_refused": "N: refuse the first N logins (no N: all); binance, without logins, refuses upgrades with 403",
    "connection_limit": "N: refuse the first N connections as too many (no N: all); binance: 429 on the upgrade",
    "split": "P=0.01 a frame: the frame leaves in two TCP segments, 5 ms apart",
    # any simulator: the data
    "garbage": "P=0.01 a frame: an extra frame of random bytes",
    "truncated": "P=0.01 a frame: an extra frame, the copy of one event cut off in the middle",
    "wrong_types": "P=0.01 an event: an extra copy of the event with a list where a number belongs",
    "unknown_event": "P=0.01 an event: an extra event of an unknown type",
    "huge": "S=1: one frame of 9 MB, S seconds after a connection opened: an event padded with blanks",
    "duplicate": "P=0.01 a frame: the frame is sent twice",
    "reorder": "P=0.01 a frame: the frame changes places with the next",
    "skip": "P=0.01 an event: generated but never sent (sequence numbers jump); in the journal as skipped",
    "rewind": "N or all=all: a new subscriber first gets the last N events of the stream again (all: up to 500,000)",
    "burst": "S=5: 10,000 events at once, every S seconds (generated market)",
    "clock_skew": "S=-1.27: the simulator's event times run S seconds ahead of the clock (generated market)",
    "late_report": "P=0.01 a trade: reported up to 90 s after its time; the bars it falls into are sent again",
    # any simulator: its history
    "rest_429": "N: refuse the first N REST requests as too many (no N: all); binance: to come back in a second",
    "rest_error": "N: answer the first N REST requests with HTTP 500 (no N: all)",
    # binance
    "unknown_symbol": "subscribing to an unknown symbol brings an error and a close (otherwise: acknowledged, silent)",
    "ack_after_data": "S=0.2: acknowledgements come S seconds after the request, behind the first data",
    "list_cut": "N: the first N answers of exchangeInfo break off in the middle (no N: all)",
    "archive_checksum": "N: give the first N files of the archive a wrong checksum (no N: all)",
    # polygon, alpaca: the history
    "rest_limit": "N: an account may send N REST requests a minute; further ones get HTTP 429 (polygon: 5, alpaca: 200)",
    "rest_cut": "N: the first N pages of history or of a list break off in the middle (no N: all)",
    "rest_repeat": "N: the first N pages that have a next page name themselves as it (no N: all)",
    # polygon
    "evict_oldest": "one connection too many: the oldest is closed (polygon's default)",
    "refuse_newcomer": "one connection too many: the newcomer is acknowledged, then closed",
    "not_authorized": "PREFIX=Q: topics of this prefix are not in the plan; others work",
    "delayed_plan": "subscriptions bring the error that the plan includes delayed data only",
    "duplicate_q": "P=0.01 an event: it carries the sequence number of the event before it",
    "regressing_q": "P=0.01 an event: it carries a sequence number lower than the event before it",
    # alpaca
    "error": "CODE=500: this error, at login (402 404 406 409), at a subscription (400 401 405 410 413) or 1 s later",
    "close_after_error": "the socket is closed after every error",
    "keep_after_error": "the socket stays open after every error",
    "symbol_limit": "N=30: more symbols in trades or quotes bring error 405, and the subscription stays as it was",
    "zombie_slot": "S=90: a connection lost without a close still counts against the account for S seconds",
    "http_429": "N: refuse the first N upgrades with HTTP 429 (no N: all)",
    "rest_page": "N=100: a page of history has at most N rows, whatever was requested",
    "recent_sip": "history of the SIP feed within the last 15 minutes is refused, as on the free plan",
}

_SOME_SIMULATORS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("binance",): ("unknown_symbol", "ack_after_data", "list_cut", "archive_checksum"),
    ("polygon", "alpaca"): ("rest_limit", "rest_cut", "rest_repeat"),
    ("polygon",): ("evict_oldest", "refuse_newcomer", "not_authorized", "delayed_plan", "duplicate_q", "regressing_q"),
    ("alpaca",): (
        *("error", "close_after_error", "keep_after_error", "symbol_limit", "zombie_slot", "http_429"),
        *("rest_page", "recent_sip"),
    ),
}


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of one simulator: name -> parameter text, empty where none was given."""

    chosen: dict[str, str]

    @classmethod
    def parse(cls, texts: tuple[str, ...], simulator: str) -> Faults:
        """Read `name` and `name:parameter`; ValueError for an unknown name or a parameter that is no number."""
        chosen: dict[str, str] = {}
        for text in texts:
            name, _, parameter = text.partition(":")
            if name not in FAULTS:
                near = get_close_matches(name, FAULTS, n=1, cutoff=0.0)
                raise ValueError(f"There is no fault {name!r}. Did you mean {near[0]!r}? ({FAULTS[near[0]]})")
            for simulators, names in _SOME_SIMULATORS.items():
                if name in names and simulator not in simulators:
                    raise ValueError(f"The fault {name!r} works for {' and '.join(simulators)}, not for {simulator}.")
            chosen[name] = _checked(name, parameter)
        return cls(chosen)

    def __contains__(self, name: str) -> bool:
        return name in self.chosen

    def number(self, name: str) -> float | None:
        """The fault's number (a probability, seconds or a count), its default without one; None when not chosen."""
        if name not in self.chosen:
            return None
        text = self.chosen[name] or _default(name)
        return float(text) if text else float("inf")

    def chance(self, name: str) -> float:
        """The fault's probability; 0 when not chosen."""
        return self.number(name) or 0.0

    def text(self, name: str) -> str | None:
        """The fault's parameter as text, its default if none was given; None when not chosen."""
        return self.chosen[name] or _default(name) if name in self.chosen else None


def _default(name: str) -> str:
    sign, equals, rest = FAULTS[name].partition(":")[0].partition("=")
    return rest.split()[0] if equals and len(sign) < 12 else ""


def _checked(name: str, parameter: str) -> str:
    if parameter and name != "not_authorized" and not (name == "rewind" and parameter == "all"):
        try:
            number = float(parameter)
        except ValueError:
            raise ValueError(f"{name}:{parameter}: the parameter must be a number ({FAULTS[name]})") from None
        if FAULTS[name].startswith("P") and not 0 <= number <= 1 and name != "not_authorized":
            raise ValueError(f"{name}:{parameter}: a probability lies between 0 and 1 ({FAULTS[name]})")
    return parameter
