"""Detects an open connection that has gone silent. It learns how long each channel is usually silent."""

from __future__ import annotations

from dataclasses import dataclass, field

from tapeline.records import NS_PER_S


@dataclass(slots=True)
class StalenessWatchdog:
    """Learns how long each channel is usually silent, and reports a channel whose silence has lasted too long.

    A channel is stale after `floor_s` or ten times its longest silence so far, whichever is longer, but at most `cap_s`. A limit that is
    set in `limits` (seconds) replaces this, and applies from the start of each connection. If a reconnect brings no data on a channel,
    that channel's limit doubles. So a closed market is not dialed all night, and a quiet channel does not interrupt busy ones for ever.
    """

    limits: float | dict[str, float] = 0.0
    floor_s: float = 15.0
    cap_s: float = 3600.0
    _last: dict[bytes, int] = field(default_factory=dict)
    _longest: dict[bytes, int] = field(default_factory=dict)
    _patience: dict[bytes, float] = field(default_factory=dict)

    def begin(self, now_ns: int) -> None:
        """A connection has opened (ns since 1970): silence counts from now on."""
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
        """A reconnect because of this channel has begun. The channel's limit doubles until it has data again, up to 256 times."""
        name = channel.encode()
        self._patience[name] = min(self._patience.get(name, 1.0) * 2, 256.0)

    def stale(self, now_ns: int) -> tuple[str, float] | None:
        """(channel, seconds of silence) of a channel that is stale; None if there is none. The channel "" stands for all data."""
        for channel, last in self._last.items():
            if channel not in self._longest and channel != b"" and not self._set_limit(channel):
                continue  # the channel had data only once, so its usual silence is not known yet
            silent_s = (now_ns - last) / NS_PER_S
            if silent_s > self._limit(channel) * self._patience.get(channel, 1.0):
                return channel.decode("utf-8", "replace"), silent_s
        return None

    def _set_limit(self, channel: bytes) -> float:
        """The configured limit in seconds; 0 if there is none."""
        if isinstance(self.limits, dict):
            return self.limits.get(channel.decode("utf-8", "replace"), 0.0)
        return self.limits

    def _limit(self, channel: bytes) -> float:
        if limit := self._set_limit(channel):
            return limit
        longest = max(self._longest.values(), default=0) if channel == b"" else self._longest.get(channel, 0)
        return min(self.cap_s, max(self.floor_s, 10 * longest / NS_PER_S))
