"""When a job is due: the moments that a cron text or a period names, in a time zone. Pure: the clock is the caller's.

cronsim reads the cron text and treats daylight saving as Debian's cron does: a fixed time that the clock skips is due as soon as the clock
has jumped, and one that the clock repeats is due once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from tapeline.errors import ConfigError
from tapeline.records import NS_PER_S
from tapeline.times import duration_ns, zone_of

#: How far back `due` looks for a moment. No useful schedule has a longer pause: a day in a leap year comes every eight years at most.
_LONGEST_PAUSE: Final = timedelta(days=8 * 366 + 1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The moments at which a job is due. One of `cron` and `period_ns` is set, or neither: then it is never due by itself."""

    cron: str = ""
    period_ns: int = 0
    timezone: str = "UTC"

    def after(self, ns: int) -> Iterator[int]:
        """Yield the moments (ns, UTC) later than `ns`, the earliest first, without end. Nothing if there is no schedule.

        A period counts from 1970, so that all machines agree on its moments."""
        if self.period_ns:
            at = (ns // self.period_ns + 1) * self.period_ns
            while True:
                yield at
                at += self.period_ns
        if self.cron:
            zone = ZoneInfo(self.timezone)
            last = ns
            for moment in CronSim(self.cron, _EPOCH.astimezone(zone) if ns < 0 else _moment(ns).astimezone(zone)):
                at = _ns(moment)
                if at > last:  # in the hour that the clock repeats, cronsim begins with the first of the two
                    last = at
                    yield at

    def due(self, now_ns: int) -> int | None:
        """Return the latest moment that is not later than `now_ns` (ns, UTC), or None if there is none."""
        if self.period_ns:
            return now_ns // self.period_ns * self.period_ns
        if not self.cron:
            return None
        # cronsim counts back from the next second, which it leaves out. Moments are whole seconds.
        start = _moment(now_ns + 2 * NS_PER_S).astimezone(ZoneInfo(self.timezone))
        found = None
        for moment in CronSim(self.cron, start, reverse=True):
            if _ns(moment) <= now_ns:
                found = _ns(moment)
                break
            if _moment(now_ns) - moment > _LONGEST_PAUSE:
                return None
        # Counting back, cronsim leaves out a moment in an hour that the clock repeats.
        for at in self.after(found) if found is not None else ():
            if at > now_ns:
                break
            found = at
        return found


def parse(cron: str, every: str, timezone: str) -> Schedule:
    """Read a schedule from the configuration. Raises ConfigError, which says what is wrong and shows a right one."""
    if cron and every:
        raise ConfigError(f'schedule = "{cron}" and every = "{every}" exclude each other. Keep one of them.')
    zone_of(timezone)
    if cron:
        try:
            CronSim(cron, _EPOCH)
        except CronSimError as error:
            raise ConfigError(
                f'schedule = "{cron}" is not a cron expression: {error}. Write minute, hour, day, month and weekday, like "30 6 * * *".'
            ) from None
        if len(cron.split()) != 5:
            raise ConfigError(f'schedule = "{cron}" has {len(cron.split())} fields. Write five, like "30 6 * * *". For seconds, use every.')
    return Schedule(cron, duration_ns(every, "every") if every else 0, timezone)


def _moment(ns: int) -> datetime:
    return _EPOCH + timedelta(seconds=ns // NS_PER_S)


def _ns(moment: datetime) -> int:
    return int((moment - _EPOCH) / timedelta(seconds=1)) * NS_PER_S
