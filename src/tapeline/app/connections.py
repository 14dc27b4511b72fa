"""Turns the configuration into the connections of ingest: the plan, the line, the lease and the partition of each."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from random import Random

from tapeline.app.feeds import feed_of
from tapeline.config import Config, ProviderConfig, options_of, secret
from tapeline.errors import Busy, ConfigError, TapelineError, Unavailable
from tapeline.local.files import write
from tapeline.net.http import CheckRequest
from tapeline.net.listener import Recorder
from tapeline.net.pace import Pace
from tapeline.net.rate_limit import RateLimiter
from tapeline.net.staleness import StalenessWatchdog
from tapeline.net.tls import tls_context
from tapeline.net.websocket import DIALS_A_MINUTE, Dialing, FeedConnection
from tapeline.providers.provider import Provider
from tapeline.providers.registry import CHANNELS, PROVIDERS
from tapeline.providers.session import FeedSettings, Plan
from tapeline.records import RAW_TOPIC
from tapeline.retry.backoff import backoff
from tapeline.stages.ingest.arbitration import Arbitration
from tapeline.streams import Lease, Stream

log = logging.getLogger(__name__)


def connection_plans(config: Config, environ: Mapping[str, str]) -> list[tuple[ProviderConfig, Plan]]:
    """The plans of all connections of the live feeds, each with its block.

    Raises ConfigError that names the wrong feed, channel or secret."""
    plans: list[tuple[ProviderConfig, Plan]] = []
    for provider in config.providers:
        module = PROVIDERS[provider.name]
        feeds = CHANNELS[provider.name]
        feed = feed_of(provider)
        if feed not in feeds:
            raise ConfigError(f"{provider.name} has no feed {feed!r}. It has: {', '.join(feeds)}.")
        wrong = [channel for channel in provider.channels if channel not in feeds[feed]]
        if wrong:
            raise ConfigError(f"{provider.name} {feed} has no channel {wrong[0]!r}. It has: {', '.join(feeds[feed])}.")
        if not provider.live:
            continue
        if not provider.symbols or not provider.channels:
            raise ConfigError(f"{provider.name} {feed} needs symbols and channels. Set both in its [[providers]] block.")
        for what, names in (("symbol", provider.symbols), ("channel", provider.channels)):
            if twice := [name for name, times in Counter(names).items() if times > 1]:
                raise ConfigError(f"{provider.name} {feed} names the {what} {twice[0]!r} more than once. Name it once.")
        second_url = _second_url(provider, module)
        secrets = {kind: secret(provider, kind, environ) for kind in module.secrets}
        settings = FeedSettings(
            feed=feed,
            symbols=provider.symbols,
            channels=provider.channels,
            url=provider.url.rstrip("/"),
            rest_url=provider.rest_url.rstrip("/"),
            options=options_of(provider),
            rotate_after_s=provider.rotate_after,
            **secrets,
        )
        planned = module.plans(settings)
        again = module.plans(replace(settings, url=second_url)) if second_url else [None] * len(planned)
        for plan, second in zip(planned, again, strict=True):
            account = _account(module, plan, settings)
            name = _unused(plan.name, [known.name for _, known in plans])
            plans.append((provider, replace(plan, name=name, account=account, arbitration=name if second is not None else "")))
            if second is not None:
                plans.append((provider, replace(second, name=f"{name}-second", arbitration=name, check=None)))
    return plans


def _second_url(provider: ProviderConfig, module: Provider) -> str:
    """The address of a block's second line; empty if it has one line.

    Raises ConfigError if two lines are not possible, or if both would use the same address."""
    block, feed = f"{provider.name} {feed_of(provider)}", module.feeds[feed_of(provider)]
    if provider.lines == 1:
        if provider.second_url:
            raise ConfigError(f"{block} has a second_url but only one line. Set lines = 2, or remove second_url.")
        return ""
    if module.one_connection:
        raise ConfigError(
            f"{block} cannot have lines = 2. An account of {provider.name} may have one connection to an endpoint: the provider would "
            f"refuse the second line, or close the first. Remove lines. Two lines work with {', '.join(_of_two_lines())}."
        )
    if provider.url and not provider.second_url:
        raise ConfigError(
            f'{block} has lines = 2 and url = "{provider.url}", but no second_url. Set second_url to another address of the same '
            f"market. Or remove url: the lines then go to {feed.stream_url} and {feed.second_url}."
        )
    first, second = ((provider.url or feed.stream_url).rstrip("/"), (provider.second_url or feed.second_url).rstrip("/"))
    if first == second:
        raise ConfigError(
            f"{block} has lines = 2, but both lines go to {first}. A failure there would end both. Set second_url to another address."
        )
    return second


def _of_two_lines() -> list[str]:
    return [name for name, some in PROVIDERS.items() if any(feed.second_url for feed in some.feeds.values())]


def _account(module: Provider, plan: Plan, settings: FeedSettings) -> str:
    """The name of an account that may have only one connection to an endpoint; empty if the provider has no such limit.

    The name has a digest of the key, so it does not reveal the key."""
    if not module.one_connection:
        return ""
    digest = hashlib.sha256(f"{plan.url} {settings.key.reveal()}".encode()).hexdigest()[:12]
    return f"the one connection of {plan.provider} {plan.feed}, account {digest}"


def _unused(name: str, used: Sequence[str]) -> str:
    return next(some for some in chain([name], (f"{name}-{number}" for number in count(2))) if some not in used)


def account_leases(planned: Sequence[tuple[ProviderConfig, Plan]], stream: Stream) -> list[Lease]:
    """Take a lease for each connection to an account with a limited number of connections.

    Raises Busy, which names the account, and Unavailable; then no lease is held."""
    held: list[Lease] = []
    try:
        held += [_first_free(plan.account, provider.connections, stream) for provider, plan in planned if plan.account]
    except TapelineError:
        for lease in held:
            lease.drop()
        raise
    return held


def _first_free(account: str, connections: int, stream: Stream) -> Lease:
    for number in range(1, connections):
        with suppress(Busy):
            return stream.hold(f"{account}, connection {number}")
    return stream.hold(f"{account}, connection {connections}")


def raw_partitions(config: Config, stream: Stream) -> int:
    """The number of partitions of the raw topic. If the stream is away, it is the number last seen, or 1 if the stream was never seen.

    The number must not be too large: nobody would read a record in a partition that does not exist. Every topic has at least one."""
    if config.stream.url == "embedded:":
        return stream.partitions
    note = config.root / "spool" / "partitions"
    topics = f"{config.stream.shown} {config.stream.topic_prefix}".rstrip()
    try:
        count = len(stream.ends(RAW_TOPIC))
    except Unavailable:
        with suppress(OSError, ValueError):
            known, of = note.read_text(encoding="utf-8").split(" ", 1)
            return int(known) if of == topics else 1
        return 1
    with suppress(OSError):  # the note is only needed while the stream is away, and the next start writes it again
        note.parent.mkdir(parents=True, exist_ok=True)
        write(note, f"{count} {topics}".encode())
    return count


def plan_partitions(planned: Sequence[tuple[ProviderConfig, Plan]], number: int) -> dict[str, int]:
    """Plan name -> raw partition. Plans are assigned in turn, so the load is even, and all processes of a configuration agree.

    Both lines of a feed have the same partition, so that no later copy of an event is kept without the first. `number`: of partitions."""
    turns = {name: at for at, name in enumerate(dict.fromkeys(plan.arbitration or plan.name for _, plan in planned))}
    return {plan.name: turns[plan.arbitration or plan.name] % number for _, plan in planned}


def arbitrations(planned: Sequence[tuple[ProviderConfig, Plan]], recorder: Recorder, dropped: Callable[[], int]) -> dict[str, Arbitration]:
    """Each arbitration by its name. `dropped`: as in `Arbitration`."""
    names = dict.fromkeys(plan.arbitration for _, plan in planned if plan.arbitration)
    return {name: Arbitration(recorder, [plan for _, plan in planned if plan.arbitration == name], dropped) for name in names}


def feed_connections(
    planned: Sequence[tuple[ProviderConfig, Plan]],
    recorder: Recorder,
    marking: Mapping[str, Arbitration],
    clock: Callable[[], int],
    random: Random,
    root: Path | None = None,
) -> list[FeedConnection]:
    """A connection for each plan, not dialed yet. `marking`: the arbitrations by name.

    If a provider tells one connection to wait, all connections of the processes with the same `root` wait. Without `root`, those of this
    process do. `clock`: UTC, ns."""
    paces: dict[str, Pace] = {}

    def dials(place: str) -> RateLimiter:
        digest = hashlib.sha256(place.encode()).hexdigest()[:16]
        return RateLimiter(DIALS_A_MINUTE, root / "quotas" / f"dials-{digest}.json" if root is not None else None)

    return [
        FeedConnection(
            plan,
            marking.get(plan.arbitration, recorder),
            clock,
            StalenessWatchdog(provider.stale_after),
            Dialing(paces.setdefault(provider.name, Pace(shared=dials)), random, tls_context(provider.ca_file)),
        )
        for provider, plan in planned
    ]


def connection_checks(planned: Sequence[tuple[ProviderConfig, Plan]]) -> dict[str, CheckRequest]:
    """Return the symbol check of each plan that has one, by the plan's name, with the TLS context for its request."""
    return {plan.name: CheckRequest(plan.check, tls_context(provider.ca_file)) for provider, plan in planned if plan.check is not None}


async def leases_in_time(
    planned: Sequence[tuple[ProviderConfig, Plan]], stream: Stream, random: Random, stop: asyncio.Event, busy_s: float
) -> list[Lease]:
    """As `account_leases`, but wait for a stream that is away, because only the stream knows who holds a lease.

    A lease may belong to a predecessor that was killed. Such a lease expires, so a held lease is waited for up to `busy_s` seconds; then
    Busy is raised. Returns no leases if `stop` is set first."""
    deadline: float | None = None
    for delay in backoff(random, cap_s=5.0):
        try:
            return account_leases(planned, stream)
        except Unavailable as error:
            log.warning("%s Accounts with a connection limit wait until the stream is back. Next attempt in %.1f s.", error, delay)
        except Busy as error:
            now = asyncio.get_running_loop().time()
            deadline = now + busy_s if deadline is None else deadline
            if now >= deadline:
                raise
            log.warning("%s Tapeline requests the lease again in %.1f s.", error, delay)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), delay)
        if stop.is_set():
            return []
    return []
