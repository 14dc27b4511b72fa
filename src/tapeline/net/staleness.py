"""Learns how long each kind of data is usually silent, and tells when silence has lasted too long."""

from __future__ import annotations

from dataclasses import dataclass, field

from tapeline.records import NS_PER_S


@dataclass(slots=True)
class StalenessWatchdog:
    """Learns how long each kind of data is usually silent, and tells when silence has lasted too long.

    A kind is stale after `floor_s` or ten times its longest silence so far, whichever is longer, at most `cap_s`; a set limit replaces
    that, and holds from the start of each connection. Each reconnect for silence of a kind that brought none of it doubles the wait
    for that kind, so that a closed market is not dialed all night, nor a thin channel for the sake of a busy one.
    """

    limits: float | dict[str, float] = 0.0
    floor_s: float = 15.0
    cap_s: float = 3600.0
    _last: dict[bytes, int] = field(default_factory=dict)
    _longest: dict[bytes, int] = field(default_factory=dict)
    _patience: dict[bytes, float] = field(default_factory=dict)

    def begin(self, now_ns: int) -> None:
        """A connection has opened: what was heard before does not count as silence."""
        named = (name.encode() for name in self.limits) if isinstance(self.limits, dict) else ()
        self._last = dict.fromkeys((b"", *named, *self._last), now_ns)

    def heard(self, channel: bytes, now_ns: int) -> None:
        before = self._last.get(channel)
        self._last[channel] = self._last[b""] = now_ns
        if before is not None and now_ns - before > self._longest.get(channel, 0):
            self._longest[channel] = now_ns - before
        if self._patience:
            self._patience.pop(channel, None)
            self._patience.pop(b"", None)

    def doubt(self, channel: str) -> None:
        """A reconnect for the sake of this kind of data is under way: wait twice as long for it the next time."""
        name = channel.encode()
        self._patience[name] = min(self._patience.get(name, 1.0) * 2, 256.0)

    def stale(self, now_ns: int) -> tuple[str, float] | None:
        """(kind of data, seconds of silence) where silence has lasted too long; "" is all data."""
        for channel, last in self._last.items():
            if channel not in self._longest and channel != b"" and not self._set_limit(channel):
                continue  # heard once: nothing to learn from yet
            silent_s = (now_ns - last) / NS_PER_S
            if silent_s > self._limit(channel) * self._patience.get(channel, 1.0):
                return channel.decode("utf-8", "replace"), silent_s
        return None

    def _set_limit(self, channel: bytes) -> float:
        """What the configuration says; 0: nothing."""
        if isinstance(self.limits, dict):
            return self.limits.get(channel.decode("utf-8", "replace"), 0.0)
        return self.limits

    def _limit(self, channel: bytes) -> float:
        if limit := self._set_limit(channel):
            return limit
        longest = max(self._longest.values(), default=0) if channel == b"" else self._longest.get(channel, 0)
        return min(self.cap_s, max(self.floor_s, 10 * longest / NS_PER_S))
