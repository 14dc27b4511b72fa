"""The one place that knows concrete classes: from the configuration to streams, stores and connections."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pyarrow as pa

from tapeline.config import Config, ProviderConfig, StoreConfig, environment, files_secrets, secret, store_password, stream_password
from tapeline.errors import Busy, ConfigError, Refused, TapelineError, Unavailable
from tapeline.jobs.backfill import fetching
from tapeline.jobs.backfill.archive import Archive
from tapeline.jobs.backfill.day_files import DayFiles
from tapeline.ledger import Ledger
from tapeline.ledger.sqlite import LedgerFile
from tapeline.net import websocket as net
from tapeline.net.http import Rest
from tapeline.net.rate_limit import Quota
from tapeline.providers.history import History
from tapeline.providers.normalizing import Names
from tapeline.providers.registry import ARCHIVES, CHANNELS, HISTORIES, PROVIDERS, Provider, identity
from tapeline.providers.session import FeedSettings, Plan, rest_of
from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC, Topic
from tapeline.retry.backoff import backoff
from tapeline.secret import NO_SECRET
from tapeline.stages.ingest.arbitration import Pair
from tapeline.stages.ingest.spool import Spool
from tapeline.stages.ledger import LEDGER
from tapeline.stages.names import merged, noted
from tapeline.stages.normalize import NORMALIZE
from tapeline.stages.upkeep import Upkeep
from tapeline.stores import Store
from tapeline.stores.lake import Lake
from tapeline.stores.lake.due import due
from tapeline.stores.lake.retention import Keep, prune
from tapeline.stores.renaming import Renames
from tapeline.stores.selection import Source
from tapeline.streams import Lease, Stream
from tapeline.streams.embedded import EmbeddedStream
from tapeline.streams.lives import birth
from tapeline.telemetry.status import worker_name

log = logging.getLogger(__name__)


def open_stream(config: Config, environ: Mapping[str, str] | None = None) -> Stream:
    """The configured stream; nothing is connected yet. Raises ConfigError for an address that no stream has."""
    stream = config.stream
    secrets = environment() if environ is None else environ
    scheme = stream.url.partition(":")[0]
    if stream.url == "embedded:":
        return EmbeddedStream(
            config.root / "stream", stream.partitions or 1, groups=groups(config), retain_s=stream.retain_hours * 3600, born=birth
        )
    try:
        if scheme in ("redis", "rediss"):
            from tapeline.streams.redis import RedisStream

            return RedisStream(stream, stream_password(stream, secrets), groups(config))
        if scheme in ("kafka", "kafkas"):
            from tapeline.streams.kafka import KafkaStream

            return KafkaStream(stream, stream_password(stream, secrets))
    except ModuleNotFoundError as error:
        extra = scheme.removesuffix("s") if scheme != "redis" else scheme
        raise ConfigError(f"{stream.shown} needs the package {error.name}. Install it: pip install 'tapeline[{extra}]'.") from None
    raise ConfigError(f'stream.url = "{stream.shown}" is no stream. Use "embedded:", "redis://host:6379/0" or "kafka://host:9092".')


def groups(config: Config) -> dict[str, tuple[Topic, ...]]:
    """Who reads which topics, by the configuration."""
    return dict.fromkeys(raw_groups(config), (RAW_TOPIC,)) | {store_name(store): NORMALIZED_TOPICS for store in config.stores}


def raw_groups(config: Config) -> tuple[str, ...]:
    """Who reads the raw topic."""
    return (NORMALIZE, LEDGER) if config.ledger else (NORMALIZE,)


def open_ledger(config: Config, environ: Mapping[str, str] | None = None) -> Ledger:
    """The configured ledger: in PostgreSQL where that is a store, else a file beside the data; nothing is opened yet.

    Raises ConfigError."""
    store = _postgres_store(config)
    if store is None:
        return LedgerFile(config.root / "ledger.sqlite")
    try:
        from tapeline.ledger.postgres import PostgresLedger
        from tapeline.stores.postgres.database import Database
    except ModuleNotFoundError as error:
        raise _needs_package(store, error) from None
    return PostgresLedger(Database(store.url, store_password(store, environment() if environ is None else environ)))


def ledger_rows(config: Config) -> pa.Table | None:
    """What the ledger says, for SQL over the lake; None, and a warning, while it is away: the lake can be read all the same."""
    try:
        return open_ledger(config).intervals()
    except Unavailable as error:
        log.warning("%s coverage and gaps are left out.", error)
        return None


def stage_names(config: Config) -> set[str]:
    """The stages that the configuration has, as the status page names them."""
    found = {"run", "repair", *(worker_name(number) for number in range(1, config.normalize_workers + 1))}
    found |= {ingest_name(provider.process) for provider in config.providers} | {store_name(store) for store in config.stores}
    return found | ({LEDGER} if config.ledger else set())


def has_history(config: Config) -> bool:
    """Whether any of the configuration's feeds keeps a history that gaps can be filled from."""
    return any(_feed(some) in HISTORIES[some.name].CHANNELS for some in config.providers if some.name in HISTORIES)


def histories(
    config: Config, environ: Mapping[str, str], random: Random, sleep: Callable[[float], object] = time.sleep
) -> dict[tuple[str, str], fetching.Source]:
    """The histories of the configuration's feeds, by provider and feed; each is asked by the first of the blocks for it.

    `sleep` gives True where it was broken off. Raises ConfigError that names a missing key."""
    found: dict[tuple[str, str], fetching.Source] = {}
    clients: dict[tuple[str, ...], Rest] = {}  # an account has its limits, whichever feed is asked for
    for some in config.providers:
        module, history, feed = PROVIDERS[some.name], HISTORIES.get(some.name), _feed(some)
        if history is None or feed not in history.CHANNELS or (some.name, feed) in found:
            continue
        secrets = {kind: secret(some, kind, environ) for kind in module.SECRET_KINDS}
        headers = history.headers(secrets.get("key", NO_SECRET), secrets.get("secret", NO_SECRET))
        url = some.rest_url or _stand_in(some) or module.HISTORY_URL
        account = (url, *headers.values())
        if account not in clients:
            clients[account] = _client(config, some, history, url, headers, random, sleep)
        found[some.name, feed] = fetching.Source(history, _getter(clients[account]))
    return found


def feeds(config: Config) -> set[tuple[str, str]]:
    """The configuration's feeds, by provider and feed."""
    return {(some.name, _feed(some)) for some in config.providers}


def archives(
    config: Config, environ: Mapping[str, str], folder: Path, random: Random, sleep: Callable[[float], object] = time.sleep
) -> dict[tuple[str, str], fetching.Source]:
    """As `histories`, from the files that providers keep of whole days and months; `folder`: where those are kept while they are read.

    Of files that hold all symbols only the configuration's are kept."""
    found: dict[tuple[str, str], fetching.Source] = {}
    for some in config.providers:
        archived, feed = ARCHIVES.get(some.name), _feed(some)
        if archived is None or feed not in archived.history.CHANNELS or (some.name, feed) in found:
            continue
        url = some.files_url or _stand_in(some) or archived.url
        get: fetching.Get
        if archived.bucket:
            from tapeline.net.s3 import Bucket

            bucket = Bucket(url, archived.bucket, *files_secrets(some.name, environ), ca_file=some.ca_file, sleep=sleep)
            get = DayFiles(bucket, folder / some.name, _tickers(config, some.name, feed))
        else:
            get = Archive(_client(config, some, archived.history, url, {}, random, sleep), folder)
        found[some.name, feed] = fetching.Source(archived.history, get)
    return found


def _tickers(config: Config, provider: str, feed: str) -> set[str]:
    """By which names a provider's files have the configuration's symbols."""
    written = {symbol for some in config.providers if (some.name, _feed(some)) == (provider, feed) for symbol in some.symbols}
    known = {PROVIDERS[provider].symbol_of(feed, symbol) for symbol in written}
    return {ARCHIVES[provider].ticker(feed, symbol) for symbol in known if symbol is not None}


def _client(
    config: Config,
    some: ProviderConfig,
    history: History,
    url: str,
    headers: Mapping[str, str],
    random: Random,
    sleep: Callable[[float], object],
) -> Rest:
    url = url.rstrip("/")
    digest = hashlib.sha256(" ".join((url, *headers.values())).encode()).hexdigest()[:16]
    quota = Quota(history.WEIGHT_A_MINUTE, config.root / "quotas" / f"{some.name}-{digest}.json")
    return Rest(url, net.tls_context(some.ca_file), random, quota, headers=headers, passing=PROVIDERS[some.name].PASSING, sleep=sleep)


def _stand_in(some: ProviderConfig) -> str:
    """The HTTP address of a stand-in that the configuration names; empty where it names the provider itself."""
    module = PROVIDERS[some.name]
    other = some.url and _owner(some.url) not in (_owner(module.HISTORY_URL), _owner(module.STREAM_URL))
    return rest_of(some.url) if other else ""


def _getter(client: Rest) -> fetching.Get:
    return lambda asked: client.get(asked.path, asked.weight)


def _feed(some: ProviderConfig) -> str:
    return some.feed or PROVIDERS[some.name].DEFAULT_FEED


def _owner(url: str) -> str:
    """The domain that an address belongs to: its last two names."""
    return ".".join((urlsplit(url).hostname or "").split(".")[-2:])


def _postgres_store(config: Config) -> StoreConfig | None:
    return next((some for some in config.stores if store_name(some) == "postgresql"), None)


def member_name(config: Config, worker: str) -> str:
    """A name in the stream that only the process with this worker's lock can have."""
    place = hashlib.sha256(str(config.root).encode()).hexdigest()[:8]
    return f"{platform.node()}-{place}-{worker}"


def spool(config: Config, process: str) -> Spool | None:
    """Where ingest keeps what the stream does not take; none for the embedded stream, whose disk is the same one."""
    if config.stream.url == "embedded:":
        return None
    return Spool(config.root / "spool" / f"{ingest_name(process)}.sqlite", config.stream.spool_mb * 1_000_000)


def ingest_name(process: str) -> str:
    """The stage's name on the status page and in its lock: `ingest`, or `ingest-NAME`."""
    return f"ingest-{process}" if process else "ingest"


def store_name(store: StoreConfig) -> str:
    """`lake` or `postgresql`: the store's name in commands and on the status page."""
    scheme = store.url.partition(":")[0]
    return "postgresql" if scheme == "postgres" else scheme


def open_store(config: Config, store: StoreConfig, environ: Mapping[str, str] | None = None) -> Store:
    """The configured store; nothing is connected yet. Raises ConfigError for an address that no store has."""
    if store.url == "lake:" or store.url.startswith("lake:/"):
        return Lake(_lake_folder(config, store), identity)
    if store_name(store) == "postgresql":
        if store.keep_gb:
            raise ConfigError("keep_gb is a setting of the lake alone. Set keep_days for PostgreSQL.")
        try:
            from tapeline.stores.postgres import Postgres
        except ModuleNotFoundError as error:
            raise _needs_package(store, error) from None
        return Postgres(store.url, store_password(store, environment() if environ is None else environ), identity, store.keep_days)
    raise ConfigError(
        f'stores.url = "{store.shown}" is no store that this version has. Use "lake:", "lake:/a/folder" or "postgresql://user@host/database".'
    )


def lake_keep(config: Config) -> Keep:
    """How much the configuration's lake keeps."""
    return next((Keep(some.keep_days, some.keep_gb) for some in config.stores if store_name(some) == "lake"), Keep())


def tidy(config: Config, store: StoreConfig) -> Callable[[], None] | None:
    """What keeps a store to its days and its size, to be called now and again; None where it does so by itself, or keeps everything."""
    keep = Keep(store.keep_days, store.keep_gb)
    if store_name(store) != "lake" or keep == Keep():
        return None
    root = _lake_folder(config, store)

    def prune_lake() -> None:
        if root.exists():
            for one in prune(root, keep, datetime.now(UTC).date()):
                log.info(
                    "The lake's %s of %s are removed: %d rows, %d bytes (keep_days, keep_gb).", one.table, one.day, one.rows, one.bytes
                )

    return prune_lake


def upkeep(config: Config, store: StoreConfig, path: Path | None) -> Upkeep | None:
    """What seals a lake's days while its store runs; None where the configuration, which is at `path`, does not want that."""
    if store_name(store) != "lake" or not store.seal:
        return None
    root = _lake_folder(config, store)
    command = [sys.executable, "-m", "tapeline", "lake", "tidy", *(["--config", str(path)] if path is not None else [])]
    return Upkeep("lake", command, lambda: bool(due(root, datetime.now(UTC))))


def postgres_source(config: Config, environ: Mapping[str, str] | None = None) -> Source:
    """The configuration's database, to be read. Raises ConfigError where it has none."""
    store = _postgres_store(config)
    if store is None:
        raise ConfigError(
            'The configuration has no store in PostgreSQL. Add one ([[stores]] url = "postgresql://..."), or use source="lake".'
        )
    try:
        from tapeline.stores.postgres.database import Database
        from tapeline.stores.postgres.reading import PostgresSource
    except ModuleNotFoundError as error:
        raise _needs_package(store, error) from None
    return PostgresSource(Database(store.url, store_password(store, environment() if environ is None else environ)))


def _needs_package(store: StoreConfig, error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(f"{store.shown} needs the package {error.name}. Install it: pip install 'tapeline[postgres]'.")


def lake_folder(config: Config) -> Path:
    """Where the configuration's lake is; the usual place where it has none."""
    return next((_lake_folder(config, store) for store in config.stores if store_name(store) == "lake"), config.root / "lake")


def _lake_folder(config: Config, store: StoreConfig) -> Path:
    return config.root / (store.url.removeprefix("lake:") or "lake")


def open_stores(config: Config) -> dict[str, Store]:
    stores = {store_name(store): open_store(config, store) for store in config.stores}
    if len(stores) < len(config.stores):
        raise ConfigError("Two [[stores]] are of one kind; each kind can be used once.")
    return stores


def open_renames(config: Config, environ: Mapping[str, str] | None = None) -> list[Renames]:
    """What gives a symbol another name in each of the configured stores; nothing is connected yet. Raises ConfigError."""
    open_stores(config)  # an address that no store has and a package that is missing are named there
    found: list[Renames] = []
    for store in config.stores:
        if store_name(store) == "lake":
            from tapeline.stores.lake.renaming import LakeRenaming

            found.append(LakeRenaming(_lake_folder(config, store), identity))
        else:
            from tapeline.stores.postgres.database import Database
            from tapeline.stores.postgres.renaming import PostgresRenaming

            password = store_password(store, environment() if environ is None else environ)
            found.append(PostgresRenaming(Database(store.url, password), identity))
    return found


def plans(config: Config, environ: Mapping[str, str]) -> list[tuple[ProviderConfig, Plan]]:
    """The connections that the configuration asks for. Raises ConfigError that names the feed, channel or secret at fault."""
    found: list[tuple[ProviderConfig, Plan]] = []
    for provider in config.providers:
        module = PROVIDERS[provider.name]
        feeds = CHANNELS[provider.name]
        feed = _feed(provider)
        if feed not in feeds:
            raise ConfigError(f"{provider.name} has no feed {feed!r}. It has: {', '.join(feeds)}.")
        wrong = [channel for channel in provider.channels if channel not in feeds[feed]]
        if wrong:
            raise ConfigError(f"{provider.name} {feed} has no channel {wrong[0]!r}. It has: {', '.join(feeds[feed])}.")
        if not provider.symbols or not provider.channels:
            raise ConfigError(f"{provider.name} {feed} needs symbols and channels: nothing would arrive without.")
        for what, names in (("symbol", provider.symbols), ("channel", provider.channels)):
            if twice := [name for name, times in Counter(names).items() if times > 1]:
                raise ConfigError(f"{provider.name} {feed} names the {what} {twice[0]!r} more than once. Name it once.")
        second_url = _second_url(provider, module)
        secrets = {kind: secret(provider, kind, environ) for kind in module.SECRET_KINDS}
        settings = FeedSettings(
            feed=feed,
            symbols=provider.symbols,
            channels=provider.channels,
            url=provider.url.rstrip("/"),
            rest_url=provider.rest_url.rstrip("/"),
            time_unit=provider.time_unit,
            codec=provider.codec,
            rotate_after_s=provider.rotate_after,
            **secrets,
        )
        planned = module.plans(settings)
        again = module.plans(replace(settings, url=second_url)) if second_url else [None] * len(planned)
        for plan, second in zip(planned, again, strict=True):
            account = _account(module, plan, settings)
            name = _unused(plan.name, [known.name for _, known in found])
            found.append((provider, replace(plan, name=name, account=account, pair=name if second is not None else "")))
            if second is not None:
                found.append((provider, replace(second, name=f"{name}-second", pair=name, check=None)))
    return found


def _second_url(provider: ProviderConfig, module: Provider) -> str:
    """Where the second line of a block goes; empty where it has one line. Raises ConfigError where two cannot be had, or would be one."""
    block = f"{provider.name} {_feed(provider)}"
    if provider.lines == 1:
        if provider.second_url:
            raise ConfigError(f"{block} has a second_url and one line. Set lines = 2, or leave out second_url.")
        return ""
    if module.ONE_CONNECTION:
        raise ConfigError(
            f"{block} cannot have lines = 2: an account of {provider.name} may have one connection to an endpoint, so a second line "
            "would be refused, or would end the first. Leave out lines; two lines are for binance."
        )
    if provider.url and not provider.second_url:
        raise ConfigError(
            f'{block} has lines = 2 and url = "{provider.url}", and nobody says where the second line goes. Set second_url to another '
            f"address of the same market, or leave out url: then the lines go to {module.STREAM_URL} and {module.SECOND_URL}."
        )
    first, second = ((provider.url or module.STREAM_URL).rstrip("/"), (provider.second_url or module.SECOND_URL).rstrip("/"))
    if first == second:
        raise ConfigError(
            f"{block} has lines = 2, and both go to {first}: what ends one would end the other. Set second_url to another address."
        )
    return second


def _account(module: Provider, plan: Plan, settings: FeedSettings) -> str:
    """What may have one connection alone, by a name that gives no key away; empty where the provider sets no such limit."""
    if not module.ONE_CONNECTION:
        return ""
    digest = hashlib.sha256(f"{plan.url} {settings.key.reveal()}".encode()).hexdigest()[:12]
    return f"the one connection of {plan.provider} {plan.feed}, account {digest}"


def _unused(name: str, used: Sequence[str]) -> str:
    return next(some for some in chain([name], (f"{name}-{number}" for number in count(2))) if some not in used)


async def leases_in_time(
    planned: Sequence[tuple[ProviderConfig, Plan]], stream: Stream, random: Random, stop: asyncio.Event, busy_s: float
) -> list[Lease]:
    """As `leases`, waiting for a stream that is away: without it nobody knows whether another process has the connection.

    Who holds a lease may be a predecessor that was killed: its lease ends by itself, and is waited for as long as `busy_s`."""
    deadline: float | None = None
    for delay in backoff(random, cap_s=5.0):
        try:
            return leases(planned, stream)
        except Unavailable as error:
            log.warning("%s No account with a limit of connections is dialed before the stream is back. Next try in %.1f s.", error, delay)
        except Busy as error:
            now = asyncio.get_running_loop().time()
            deadline = now + busy_s if deadline is None else deadline
            if now >= deadline:
                raise
            log.warning("%s It is asked for again in %.1f s.", error, delay)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), delay)
        if stop.is_set():
            return []
    return []


def leases(planned: Sequence[tuple[ProviderConfig, Plan]], stream: Stream) -> list[Lease]:
    """Hold the right to each account that may have few connections. Raises Busy that names the account, Unavailable."""
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
    """How many the raw topic has. Of a stream that is away: as many as when it was last seen; never seen: the one that each has.

    A record for a partition that turns out not to exist would be read by nobody."""
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
    with suppress(OSError):  # it is asked again at the next start
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{count} {topics}", encoding="utf-8")
    return count


def partitions(planned: Sequence[tuple[ProviderConfig, Plan]], number: int) -> dict[str, int]:
    """The raw partition of each plan: in turn, so that they share the load evenly, the same for every process of one configuration.

    Two lines of a pair have one: no later copy of an event is then kept without the first."""
    turns = {name: at for at, name in enumerate(dict.fromkeys(plan.pair or plan.name for _, plan in planned))}
    return {plan.name: turns[plan.pair or plan.name] % number for _, plan in planned}


def names(config: Config) -> Names:
    """How symbols are split, as a person has configured it. Raises ConfigError for what cannot be."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for some in config.providers:
        for name, symbol in some.names.items():
            if some.name != "binance" or symbol.replace("/", "") != name or symbol.count("/") != 1:
                raise ConfigError(f'[[providers]] names: {name} = "{symbol}" splits no symbol of Binance. Write ADAEUR = "ADA/EUR".')
            found.setdefault((some.name, _feed(some)), {})[name] = symbol
    return found


def known_names(config: Config) -> Names:
    """As configured, and as the exchange's lists in the stream say; where that is away or not begun, as configured."""
    configured = names(config)
    stream = open_stream_with_data(config)
    if stream is None:
        return configured
    try:
        return names_in_force(config, stream)
    except (Unavailable, Refused):
        return configured
    finally:
        stream.close()


def open_stream_with_data(config: Config) -> Stream | None:
    """The stream of a run that was; None where there was none: looking on makes none."""
    return None if config.stream.url == "embedded:" and not (config.root / "stream").exists() else open_stream(config)


def names_in_force(config: Config, stream: Stream | None) -> Names:
    """As configured, and as the exchange's lists in the stream say. Raises Unavailable."""
    return merged(noted(stream), names(config)) if stream is not None else names(config)


def pairs(planned: Sequence[tuple[ProviderConfig, Plan]], recorder: net.Recorder, refused: Callable[[], int]) -> dict[str, Pair]:
    """The recorder of each pair of lines, by the pair's name. `refused`: as in `Pair`."""
    names = dict.fromkeys(plan.pair for _, plan in planned if plan.pair)
    return {name: Pair(recorder, [plan for _, plan in planned if plan.pair == name], refused) for name in names}


def lines(
    planned: Sequence[tuple[ProviderConfig, Plan]],
    recorder: net.Recorder,
    pairs: Mapping[str, Pair],
    clock: Callable[[], int],
    random: Random,
    root: Path | None = None,
) -> list[net.Line]:
    """A line for each plan, not dialed yet. `pairs`: the recorders of those that are two for the same. `root`: processes
    that have it in common share what one of them was told to wait; without it the lines of this one do."""
    paces: dict[str, net.Pace] = {}

    def dials(place: str) -> Quota:
        digest = hashlib.sha256(place.encode()).hexdigest()[:16]
        return Quota(net.DIALS_A_MINUTE, root / "quotas" / f"dials-{digest}.json" if root is not None else None)

    return [
        net.Line(
            plan,
            pairs.get(plan.pair, recorder),
            clock,
            random,
            paces.setdefault(provider.name, net.Pace(shared=dials)),
            net.Silence(provider.mute_after),
            net.tls_context(provider.ca_file),
        )
        for provider, plan in planned
    ]


def checks(planned: Sequence[tuple[ProviderConfig, Plan]]) -> dict[str, net.CheckRequest]:
    return {
        plan.name: net.CheckRequest(plan.check, net.tls_context(provider.ca_file)) for provider, plan in planned if plan.check is not None
    }
