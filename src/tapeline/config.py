"""The configuration: a small TOML file that TAPELINE_... environment variables override. It is checked strictly when it is read.

The file never holds secrets. A key comes from the environment, or from a file that the configuration names.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

import msgspec

from tapeline.errors import ConfigError
from tapeline.providers.registry import ARCHIVES, PROVIDERS
from tapeline.secret import Secret, checked

PREFIX: Final = "TAPELINE_"
#: Variables with this prefix that are not settings.
_NOT_SETTINGS: Final = frozenset(
    {"TAPELINE_CONFIG", "TAPELINE_PROVE", "TAPELINE_LOG", "TAPELINE_CACHE", "TAPELINE_STREAM_PASSWORD", "TAPELINE_STORE_PASSWORD"}
)
#: Names of variables that may hold a secret, also of a provider that is not installed or whose name is misspelt. Their values are never
#: shown.
_SECRET: Final = re.compile(r"TAPELINE_(?!.*__).*_(KEY|SECRET|PASSWORD)")

#: A number that is not negative and not infinite, such as a number of seconds.
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
#: A name that becomes part of a file's name.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,60}\Z")]
#: The characters that Kafka allows in a topic's name (https://kafka.apache.org/documentation/#brokerconfigs). The length leaves room for
#: the rest of the name.
TopicPrefix = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,100}\Z")]

CodecName = Literal["arrow", "protobuf"]


class CodecsConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The format of the normalized topics on Kafka and Redis. The raw topic is always Arrow."""

    normalized: CodecName = "protobuf"  # ticks: protobuf or arrow
    bars: CodecName = "protobuf"  # bars: the same
    notices: CodecName = "protobuf"  # notices: the same
    rejected: CodecName = "protobuf"  # rejected events: the same


class StreamConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The stream that carries the records between the stages."""

    url: str = "embedded:"  # embedded: | redis://host:6379/0 | rediss://... | kafka://host:9092,host2:9092 | kafkas://...
    password_file: str = ""  # a file with the password of the user in the url, instead of TAPELINE_STREAM_PASSWORD
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"  # Kafka: how the user in the url logs in
    ca_file: str = ""  # a certificate authority to trust for TLS (Kafka: instead of the system's)
    topic_prefix: TopicPrefix = ""  # a prefix for the name of every topic, key, group and transaction on Kafka and Redis
    partitions: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0  # the number of partitions of new topics; 0: 1 if embedded, else 4
    replication: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1  # the replication factor of new Kafka topics
    codecs: CodecsConfig = CodecsConfig()
    commit_ms: NotNegative = 100.0  # Kafka: how many ms normalize collects outputs for one transaction
    retain_hours: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 72.0  # older records are removed (embedded: if acknowledged; Redis: never)
    memory_mb: Annotated[int, msgspec.Meta(ge=16)] = 2048  # Redis: the most memory of the stream; writers slow down before it is exceeded
    spool_mb: Annotated[int, msgspec.Meta(ge=1)] = 8192  # the most that ingest keeps on its disk while it cannot reach Kafka or Redis

    @property
    def shown(self) -> str:
        """The url without its password."""
        return without_password(self.url)


class ProviderConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One feed of one provider."""

    name: str  # the name of an installed provider
    feed: str = ""  # the feed; if left out, the provider's default feed
    url: str = ""  # the address of the stream; if left out, the provider's own
    rest_url: str = ""  # the address of the history over REST; if left out, the provider's own
    files_url: str = ""  # the address of the history's files; if left out, the provider's own
    lines: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1  # 2: every connection twice, to two addresses; the first copy of each event counts
    second_url: str = ""  # the address of the second line; if left out, another host of the provider
    connections: Annotated[int, msgspec.Meta(ge=1)] = 1  # how many connections the account may have to one endpoint
    process: Name = ""  # the ingest process that opens these connections: `tapeline ingest --process NAME`
    live: bool = True  # open its websockets; false: only its history is used, as by the job sync
    symbols: tuple[str, ...] = ()  # the symbols, by the provider's own names
    channels: tuple[str, ...] = ()  # the channels, by the provider's own names
    names: dict[str, str] = {}  # how to split symbols that are not known from the exchange's list: ADAEUR = "ADA/EUR"
    options: dict[str, object] = {}  # the provider's own options
    key_file: str = ""  # a file with the key, instead of the environment
    secret_file: str = ""  # a file with the secret, instead of the environment
    ca_file: str = ""  # a certificate authority to trust for TLS, besides the system's
    stale_after: NotNegative | dict[str, NotNegative] = 0.0  # seconds without data before a reconnect, for all or by channel; 0: learned
    rotate_after: NotNegative = 0.0  # seconds after which a new connection replaces the old one; 0: the provider's own limit


class StoreConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A store that keeps the records."""

    url: str = "lake:"  # lake:, lake:/a/folder, postgresql://user@host:5432/database
    password_file: str = ""  # PostgreSQL: a file with the user's password, instead of TAPELINE_STORE_PASSWORD
    flush_seconds: NotNegative = 5.0  # how long the store collects records for one commit
    flush_rows: Annotated[int, msgspec.Meta(ge=1)] = 250_000  # the most rows that the store collects for one commit
    keep_days: Annotated[int, msgspec.Meta(ge=0)] = 0  # the number of UTC days to keep (in PostgreSQL, only ticks are removed); 0: all
    keep_gb: NotNegative = 0.0  # the lake: if it is larger than this (10**9 bytes), the oldest days are removed; 0: never
    compact: bool = True  # the lake: compact the days that are over, and merge the small files of other days, while it is written

    @property
    def shown(self) -> str:
        """The url without its password."""
        return without_password(self.url)


class JobConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One job: what runs, when, and how often it is tried. A key that is left out has the job's usual value."""

    job: str  # backfill, reconcile, sync, repair, compact, prune, vacuum, check_lake or export
    name: Name = ""  # its name, if there are several of one job; if left out, the job
    schedule: str = ""  # a cron expression: minute, hour, day, month, weekday
    every: str = ""  # a period instead of a schedule: 30s, 5m, 1h
    timezone: str = "UTC"  # the time zone of schedule, and of the day that a job works on
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5  # how often a run that failed is tried again; the waits grow
    timeout: str = ""  # a run that takes longer is stopped: 30m, 2h
    catch_up: Literal["", "all", "latest", "none"] = ""  # which runs that were missed are made up for
    arguments: dict[str, object] = {}  # the job's own arguments


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The settings that belong to no block."""

    data_dir: str = "./data"  # the folder of everything that Tapeline keeps on this machine
    stream: StreamConfig = StreamConfig()
    providers: tuple[ProviderConfig, ...] = ()  # the [[providers]] blocks (below); if left out, a few symbols of a public feed
    stores: tuple[StoreConfig, ...] = (StoreConfig(),)
    normalize_workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # the number of normalize processes; they share the partitions
    ledger: bool = True  # record which data is complete
    ledger_days: Annotated[int, msgspec.Meta(ge=0)] = 0  # how many days the ledger keeps its records; 0: for ever
    repair: bool = True  # fill gaps from the providers' histories, if a provider keeps one
    scheduler: Literal["embedded", "none"] = "embedded"  # who starts the jobs: the scheduler of tapeline run, or nobody
    jobs: tuple[JobConfig, ...] = ()  # jobs that differ from the usual ones, and further ones

    @property
    def root(self) -> Path:
        """The data folder as an absolute path, with `~` and symbolic links resolved. It may not exist yet."""
        return Path(self.data_dir).expanduser().resolve()


@cache
def default() -> Config:
    """The configuration when nothing is configured: the sample of the first provider that needs no key."""
    samples = {name: provider.sample for name, provider in PROVIDERS.items()}
    blocks = (ProviderConfig(name=name, symbols=some[0], channels=some[1]) for name, some in samples.items() if some is not None)
    return Config(providers=tuple(blocks)[:1])


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the configuration from `path` and from the environment, which has priority.

    If `path` is None, it reads `tapeline.toml` in the current folder if that exists, and else uses the defaults. Raises ConfigError, which
    names the key, the file and the nearest valid key.
    """
    file = path or (Path("tapeline.toml") if Path("tapeline.toml").exists() else None)
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some Windows editors write a byte order mark
        except FileNotFoundError:
            raise ConfigError(f"There is no configuration file {file}. Name one that exists.") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from None
    if any(name.startswith(f"{PREFIX}PROVIDERS__") for name in environ):
        settings.setdefault("providers", msgspec.json.decode(msgspec.json.encode(default().providers)))
    source = str(file) if file is not None else "the environment"
    overridden = _override(settings, environ)
    if not settings and not overridden:
        return default()
    if "providers" not in settings:
        settings["providers"] = msgspec.to_builtins(default().providers)
    try:
        config = msgspec.convert(settings, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error))}") from None
    _check_providers(config, source)
    return config


def _check_providers(config: Config, source: str) -> None:
    for provider in config.providers:
        if provider.name not in PROVIDERS:
            near = difflib.get_close_matches(provider.name, PROVIDERS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The installed providers are: {', '.join(PROVIDERS)}."
            raise ConfigError(f"{source}: {provider.name!r} is not a provider. {hint}")
        try:
            options_of(provider)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        for name in ("url", "rest_url", "second_url", "files_url"):
            if _more_than_an_address(getattr(provider, name)):
                raise ConfigError(
                    f"{source}: {name} of {provider.name} contains a user, a password or a query, which would appear in logs and data. "
                    "Write only the address. Tapeline takes keys from the environment or from a key_file."
                )


def options_of(provider: ProviderConfig) -> msgspec.Struct:
    """The provider's own options, as the type `Provider.options`. Raises ConfigError, which names the key and the nearest valid key."""
    kind = PROVIDERS[provider.name].options
    try:
        return msgspec.convert(provider.options, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of {provider.name}: {_explain(str(error), kind)}") from None


def _more_than_an_address(url: str) -> bool:
    return "@" in url or "?" in url or "#" in url


@cache
def _secret_names() -> frozenset[str]:
    """The environment variables that may hold secrets of the installed providers."""
    variables = {name for provider in PROVIDERS.values() for names in provider.secrets.values() for name in names}
    return frozenset(variables | {name for files in ARCHIVES.values() for name in files.secrets if name})


def _override(settings: dict[str, Any], environ: Mapping[str, str]) -> bool:
    """Put variables such as TAPELINE_STREAM__URL and TAPELINE_PROVIDERS__0__SYMBOLS into `settings`. Returns whether there were any."""
    overridden = False
    secrets = _secret_names() if any(name.startswith(PREFIX) for name in environ) else frozenset[str]()
    for name, text in sorted(environ.items(), key=_in_order):
        if not name.startswith(PREFIX) or name in _NOT_SETTINGS or name in secrets:
            continue
        overridden = True
        place: Any = settings
        *path, last = name.removeprefix(PREFIX).lower().split("__")
        for step, following in zip(path, [*path, last][1:], strict=True):
            empty: Any = [] if following.isdecimal() else {}
            place = _enter(place, step, empty, name)
        _put(place, last, _value(text), name)
    return overridden


def _in_order(variable: tuple[str, str]) -> list[tuple[int, str]]:
    """The sort key of a variable. Names sort as text, and list positions as numbers, so that position 10 comes after 9."""
    return [(int(step), "") if step.isdecimal() else (-1, step) for step in variable[0].split("__")]


def _enter(place: Any, step: str, empty: Any, name: str) -> Any:
    if isinstance(place, list):
        at = _index(place, step, name)
        if at == len(place):
            place.append(empty)
        return place[at]
    if not isinstance(place, dict):
        raise ConfigError(f"{name}: {step!r} is set inside a plain value, which has no keys. Correct the variable's name.")
    return place.setdefault(step, empty)


def _put(place: Any, last: str, value: Any, name: str) -> None:
    if isinstance(place, list):
        at = _index(place, last, name)
        place[at : at + 1] = [value]
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"{name}: {last!r} is set inside a plain value, which has no keys. Correct the variable's name.")


def _index(place: list[Any], step: str, name: str) -> int:
    if not step.isdecimal() or int(step) > len(place):
        raise ConfigError(f"{name}: {step!r} is not a position in a list of {len(place)} entries. Use 0 to {len(place)}.")
    return int(step)


def _value(text: str) -> Any:
    """The value that TOML reads from `text`; the text itself if it is not a TOML value."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(problem: str, top: type[msgspec.Struct] | None = None) -> str:
    """msgspec's message in plainer words. For an unknown key it names the nearest valid key.

    `top` is the type that was read; None means `Config`."""
    unknown = re.match(r"Object contains unknown field `(?P<key>[^`]*)`(?: - at `\$(?P<where>[^`]*)`)?", problem)
    if unknown is None:
        return problem.replace("$.", "").replace("`$`", "the top level")
    where = unknown["where"] or ""
    struct = top or Config
    parts: dict[str, type[msgspec.Struct]] = {
        "stream": StreamConfig,
        "stream.codecs": CodecsConfig,
        "providers": ProviderConfig,
        "stores": StoreConfig,
        "jobs": JobConfig,
    }
    for part, kind in parts.items():
        if where.startswith(f".{part}"):
            struct = kind
    valid = [field.encode_name for field in msgspec.structs.fields(struct)]
    near = difflib.get_close_matches(unknown["key"], valid, n=1, cutoff=0.4)
    at = f" in [{where.lstrip('.').replace('[...]', '')}]" if where else ""
    known = f"Valid keys: {', '.join(valid)}." if valid else "This provider has no options."
    hint = f"Did you mean {near[0]!r}?" if near else known
    return f"unknown key {unknown['key']!r}{at}. {hint}"


def secret(provider: ProviderConfig, kind: str, environ: Mapping[str, str]) -> Secret:
    """The provider's secret of one kind, `key` or `secret`, from its file or the environment.

    Raises ConfigError if it is missing or malformed. The error says where the secret is expected, and never shows it."""
    path = provider.key_file if kind == "key" else provider.secret_file
    if path:
        return _from_file(f"{provider.name}: {kind}_file", path, key=True)
    names = PROVIDERS[provider.name].secrets[kind]
    for name in names:
        if environ.get(name):
            return checked(name, environ[name], key=True)
    raise ConfigError(
        f"{provider.name} needs a {kind}. Set {names[0]} in the environment (or {', '.join(names[1:])}), "
        f'or {kind}_file = "..." in its [[providers]] block.'
    )


def files_secrets(provider: str, environ: Mapping[str, str]) -> tuple[Secret, Secret]:
    """The access key and the secret for the provider's files. Raises ConfigError, which names the variable that is not set."""
    names = ARCHIVES[provider].secrets
    for name in names:
        if not environ.get(name):
            raise ConfigError(f"The files of {provider} need an S3 access key and its secret. The API key does not work here. Set {name}.")
    key, secret_ = (checked(name, environ[name], key=True) for name in names)
    return key, secret_


def stream_password(stream: StreamConfig, environ: Mapping[str, str]) -> Secret:
    """The password of the user in the stream's url, from its file or the environment; empty if there is none. Raises ConfigError."""
    if stream.password_file:
        return _from_file("stream.password_file", stream.password_file, key=False)
    return checked("TAPELINE_STREAM_PASSWORD", environ.get("TAPELINE_STREAM_PASSWORD", ""), key=False)


def store_password(store: StoreConfig, environ: Mapping[str, str]) -> Secret:
    """The password of the user in the store's url, as `stream_password`."""
    if store.password_file:
        return _from_file("stores.password_file", store.password_file, key=False)
    return checked("TAPELINE_STORE_PASSWORD", environ.get("TAPELINE_STORE_PASSWORD", ""), key=False)


def secrets_of(config: Config, environ: Mapping[str, str]) -> list[Secret]:
    """All secrets in the environment, in the configuration's urls and in the files that it names. A file that cannot be read is skipped."""
    texts = [text for name, text in environ.items() if name in _secret_names() or _SECRET.fullmatch(name)]
    files = [config.stream.password_file, *(store.password_file for store in config.stores)]
    files += [path for provider in config.providers for path in (provider.key_file, provider.secret_file)]
    for path in files:
        with suppress(OSError, UnicodeDecodeError):  # the code that needs the file reports the error
            texts += Path(path).expanduser().read_text(encoding="utf-8").splitlines() if path else []
    for url in (config.stream.url, *(store.url for store in config.stores)):
        texts += [unquote(part) for group in (_USERINFO, _PASSWORD_FIELD) for part in group.findall(url)]
    return [Secret(text.strip()) for text in texts if text.strip()]


def without_password(url: str) -> str:
    """An address without its password, as it may be shown."""
    return _PASSWORD_FIELD.sub(lambda match: match[0].replace(match[1], "***"), re.sub(r"(://[^:/@]*):.*@", r"\1@", url))


#: The password in `://user:password@host`, and in `?password=...`.
_USERINFO: Final = re.compile(r"://[^:/@]*:(.*)@")
_PASSWORD_FIELD: Final = re.compile(r"[?&;\s](?:ssl)?(?:password|passwd|pwd|secret|token|api_?key)=([^&;\s]+)", re.IGNORECASE)


def _from_file(what: str, path: str, *, key: bool) -> Secret:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path} is not UTF-8 text. Save it as UTF-8.") from None
    if not text:
        raise ConfigError(f"{what} {path} is empty.")
    return checked(f"{what} {path}", text, key=key)


def environment() -> Mapping[str, str]:
    """The environment of the process. Settings and secrets are read from it only through this function."""
    return os.environ
