"""The one configuration: a small TOML file, overridden by TAPELINE_... environment variables, checked strictly at the edge.

Secrets never stand in the file: a key comes from the environment, or from a file that the configuration names.
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
#: Variables of this prefix that are not settings.
_NOT_SETTINGS: Final = frozenset(
    {"TAPELINE_CONFIG", "TAPELINE_PROVE", "TAPELINE_LOG", "TAPELINE_CACHE", "TAPELINE_STREAM_PASSWORD", "TAPELINE_STORE_PASSWORD"}
)
#: How a secret may be called, be it of a provider that is not installed or misspelt: none of them is shown.
_SECRET: Final = re.compile(r"TAPELINE_(?!.*__).*_(KEY|SECRET|PASSWORD)")

#: A number of seconds, say, that means something: neither below zero nor endless.
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
#: A part of a file's name and of a lock's.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,60}\Z")]
#: What Kafka allows in a topic's name (https://kafka.apache.org/documentation/#brokerconfigs), with room for the names behind it.
TopicPrefix = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,100}\Z")]

CodecName = Literal["arrow", "protobuf"]


class CodecsConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How the normalized topics are written on Kafka and Redis; raw is always Arrow."""

    normalized: CodecName = "protobuf"
    bars: CodecName = "protobuf"
    notices: CodecName = "protobuf"
    rejected: CodecName = "protobuf"


class StreamConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where records flow between the stages."""

    url: str = "embedded:"  # embedded: | redis://host:6379/0 | rediss://... | kafka://host:9092,host2:9092 | kafkas://...
    password_file: str = ""  # for the user in the url; or TAPELINE_STREAM_PASSWORD
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"  # how that user logs in to Kafka
    ca_file: str = ""  # trust this certificate authority for TLS, besides the system's
    topic_prefix: TopicPrefix = ""  # stands before the name of every topic, key, group and transaction on Kafka and Redis
    partitions: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0  # of topics made anew; 0: 1 embedded, else 4
    replication: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1  # of Kafka topics made anew
    codecs: CodecsConfig = CodecsConfig()
    commit_ms: NotNegative = 100.0  # Kafka: how long normalize gathers outputs for one transaction
    retain_hours: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 72.0  # what every group has acknowledged is removed after so long
    memory_mb: Annotated[int, msgspec.Meta(ge=16)] = 2048  # Redis: the writer slows down rather than let it hold more
    spool_mb: Annotated[int, msgspec.Meta(ge=1)] = 8192  # what ingest keeps on disk while Kafka or Redis is away

    @property
    def shown(self) -> str:
        """The url without its password."""
        return without_password(self.url)


class ProviderConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One feed of one provider."""

    name: str  # of an installed provider
    feed: str = ""  # the provider's usual one where left out
    url: str = ""  # the provider's own address where left out
    rest_url: str = ""  # of its history over REST; the provider's own where left out
    files_url: str = ""  # of the files of its history
    lines: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1  # 2: the same twice, to two addresses; of each event the first copy counts
    second_url: str = ""  # where the second line goes; another host of the provider's where left out
    connections: Annotated[int, msgspec.Meta(ge=1)] = 1  # how many the account may have to one endpoint
    process: Name = ""  # which ingest process opens it: `tapeline ingest --process NAME`
    symbols: tuple[str, ...] = ()  # the provider's own names
    channels: tuple[str, ...] = ()  # the provider's own names
    names: dict[str, str] = {}  # of symbols that the exchange's list was never had for: ADAEUR = "ADA/EUR"
    options: dict[str, object] = {}  # of the provider's own
    key_file: str = ""  # a file holding the key, for those who keep secrets in files
    secret_file: str = ""  # the same for the secret
    ca_file: str = ""  # trust this certificate authority for TLS, besides the system's
    stale_after: NotNegative | dict[str, NotNegative] = 0.0  # seconds without data, for all or by channel; 0: learned
    rotate_after: NotNegative = 0.0  # seconds after which a new connection replaces the old; 0: the provider's own limit


class StoreConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where records are kept."""

    url: str = "lake:"  # lake:, lake:/a/folder, postgresql://user@host:5432/database
    password_file: str = ""  # PostgreSQL's; or the environment's TAPELINE_STORE_PASSWORD
    flush_seconds: NotNegative = 5.0
    flush_rows: Annotated[int, msgspec.Meta(ge=1)] = 250_000
    keep_days: Annotated[int, msgspec.Meta(ge=0)] = 0  # earlier UTC days are removed (of PostgreSQL: ticks); 0: never
    keep_gb: NotNegative = 0.0  # the lake: the oldest days are removed where it is larger (10**9 bytes); 0: never
    compact: bool = True  # the lake: compact the days that are over, and merge the small files of the others, while it is written

    @property
    def shown(self) -> str:
        """The url without its password."""
        return without_password(self.url)


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Everything that can be set."""

    data_dir: str = "./data"  # where everything is that is kept on this machine
    stream: StreamConfig = StreamConfig()
    providers: tuple[ProviderConfig, ...] = ()
    stores: tuple[StoreConfig, ...] = (StoreConfig(),)
    normalize_workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # processes that share the raw topic's partitions
    ledger: bool = True  # keep account of what is complete
    ledger_days: Annotated[int, msgspec.Meta(ge=0)] = 0  # how long the ledger keeps what it knows; 0: for ever
    repair: bool = True  # ask the providers' history for what the ledger misses, as far as they keep one

    @property
    def root(self) -> Path:
        return Path(self.data_dir).expanduser().resolve()


@cache
def default() -> Config:
    """With no configuration at all: what a provider gives to anybody without a key."""
    samples = {name: provider.sample for name, provider in PROVIDERS.items()}
    blocks = (ProviderConfig(name=name, symbols=some[0], channels=some[1]) for name, some in samples.items() if some is not None)
    return Config(providers=tuple(blocks)[:1])


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration of `path` (None: `tapeline.toml` here if there is one, else the defaults) and the environment.

    Raises ConfigError that names the key, the file and the nearest valid key.
    """
    found = path or (Path("tapeline.toml") if Path("tapeline.toml").exists() else None)
    settings: dict[str, Any] = {}
    if found is not None:
        try:
            settings = tomllib.loads(found.read_text(encoding="utf-8-sig"))  # some editors of Windows begin with a mark
        except FileNotFoundError:
            raise ConfigError(f"There is no configuration file {found}. Name one that exists.") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{found} cannot be read: {error}") from None
    if any(name.startswith(f"{PREFIX}PROVIDERS__") for name in environ):
        settings.setdefault("providers", msgspec.json.decode(msgspec.json.encode(default().providers)))
    source = str(found) if found is not None else "the environment"
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
            hint = f"Did you mean {near[0]!r}?" if near else f"Installed are: {', '.join(PROVIDERS)}."
            raise ConfigError(f"{source}: {provider.name!r} is no provider. {hint}")
        try:
            options_of(provider)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        for name in ("url", "rest_url", "second_url", "files_url"):
            if _more_than_an_address(getattr(provider, name)):
                raise ConfigError(
                    f"{source}: {name} of {provider.name} has a user, a password or a query in it, which would stand in logs and data. "
                    "Write the address alone: keys come from the environment or from a key_file."
                )


def options_of(provider: ProviderConfig) -> msgspec.Struct:
    """The options of a provider's own, of the type that it names. Raises ConfigError that names the key and the nearest valid one."""
    kind = PROVIDERS[provider.name].options
    try:
        return msgspec.convert(provider.options, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of {provider.name}: {_explain(str(error), kind)}") from None


def _more_than_an_address(url: str) -> bool:
    return "@" in url or "?" in url or "#" in url


@cache
def _secret_names() -> frozenset[str]:
    """The variables in which the installed providers' secrets are looked for."""
    found = {name for provider in PROVIDERS.values() for names in provider.secrets.values() for name in names}
    return frozenset(found | {name for files in ARCHIVES.values() for name in files.secrets if name})


def _override(settings: dict[str, Any], environ: Mapping[str, str]) -> bool:
    """Put TAPELINE_STREAM__URL, TAPELINE_PROVIDERS__0__SYMBOLS and the like in their places."""
    found = False
    secrets = _secret_names() if any(name.startswith(PREFIX) for name in environ) else frozenset[str]()
    for name, text in sorted(environ.items(), key=_in_order):
        if not name.startswith(PREFIX) or name in _NOT_SETTINGS or name in secrets:
            continue
        found = True
        place: Any = settings
        *path, last = name.removeprefix(PREFIX).lower().split("__")
        for step, following in zip(path, [*path, last][1:], strict=True):
            empty: Any = [] if following.isdecimal() else {}
            place = _enter(place, step, empty, name)
        _put(place, last, _value(text), name)
    return found


def _in_order(variable: tuple[str, str]) -> list[tuple[int, str]]:
    """Variables by name, list positions by number."""
    return [(int(step), "") if step.isdecimal() else (-1, step) for step in variable[0].split("__")]


def _enter(place: Any, step: str, empty: Any, name: str) -> Any:
    if isinstance(place, list):
        at = _index(place, step, name)
        if at == len(place):
            place.append(empty)
        return place[at]
    if not isinstance(place, dict):
        raise ConfigError(f"{name}: {step!r} would go into a plain value, which has no keys.")
    return place.setdefault(step, empty)


def _put(place: Any, last: str, value: Any, name: str) -> None:
    if isinstance(place, list):
        at = _index(place, last, name)
        place[at : at + 1] = [value]
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"{name}: {last!r} would go into a plain value, which has no keys.")


def _index(place: list[Any], step: str, name: str) -> int:
    if not step.isdecimal() or int(step) > len(place):
        raise ConfigError(f"{name}: {step!r} is no position in a list of {len(place)}; use 0 to {len(place)}.")
    return int(step)


def _value(text: str) -> Any:
    """As TOML would read it; plain text where it would not."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(problem: str, top: type[msgspec.Struct] | None = None) -> str:
    """msgspec's words, with the nearest valid key where one is unknown. `top`: what was read; the configuration if left out."""
    unknown = re.match(r"Object contains unknown field `(?P<key>[^`]*)`(?: - at `\$(?P<where>[^`]*)`)?", problem)
    if unknown is None:
        return problem.replace("$.", "").replace("`$`", "the top level")
    where = unknown["where"] or ""
    struct = top or Config
    for part, kind in (("stream", StreamConfig), ("stream.codecs", CodecsConfig), ("providers", ProviderConfig), ("stores", StoreConfig)):
        if where.startswith(f".{part}"):
            struct = kind
    valid = [field.encode_name for field in msgspec.structs.fields(struct)]
    near = difflib.get_close_matches(unknown["key"], valid, n=1, cutoff=0.4)
    at = f" in [{where.lstrip('.').replace('[...]', '')}]" if where else ""
    known = f"Valid keys: {', '.join(valid)}." if valid else "It has none."
    hint = f"Did you mean {near[0]!r}?" if near else known
    return f"unknown key {unknown['key']!r}{at}. {hint}"


def secret(provider: ProviderConfig, kind: str, environ: Mapping[str, str]) -> Secret:
    """The provider's `key` or `secret`. Raises ConfigError that says where it was looked for, never what was found."""
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
    """Access key and secret of the provider's files. Raises ConfigError that names the variable that is not set."""
    names = ARCHIVES[provider].secrets
    for name in names:
        if not environ.get(name):
            raise ConfigError(f"The files of {provider} need an S3 access key and its secret, which are not its API key. Set {name}.")
    key, secret_ = (checked(name, environ[name], key=True) for name in names)
    return key, secret_


def stream_password(stream: StreamConfig, environ: Mapping[str, str]) -> Secret:
    """The password of the user in the stream's url, from its file or the environment; empty where neither has one."""
    if stream.password_file:
        return _from_file("stream.password_file", stream.password_file, key=False)
    return checked("TAPELINE_STREAM_PASSWORD", environ.get("TAPELINE_STREAM_PASSWORD", ""), key=False)


def store_password(store: StoreConfig, environ: Mapping[str, str]) -> Secret:
    """As `stream_password`, of a store."""
    if store.password_file:
        return _from_file("stores.password_file", store.password_file, key=False)
    return checked("TAPELINE_STORE_PASSWORD", environ.get("TAPELINE_STORE_PASSWORD", ""), key=False)


def secrets_of(config: Config, environ: Mapping[str, str]) -> list[Secret]:
    """Everything secret that the configuration and the environment hold, as far as it can be read."""
    found = [text for name, text in environ.items() if name in _secret_names() or _SECRET.fullmatch(name)]
    files = [config.stream.password_file, *(store.password_file for store in config.stores)]
    files += [path for provider in config.providers for path in (provider.key_file, provider.secret_file)]
    for path in files:
        with suppress(OSError, UnicodeDecodeError):  # whoever needs it says so
            found += Path(path).expanduser().read_text(encoding="utf-8").splitlines() if path else []
    for url in (config.stream.url, *(store.url for store in config.stores)):
        found += [unquote(part) for group in (_USERINFO, _PASSWORD_FIELD) for part in group.findall(url)]
    return [Secret(text.strip()) for text in found if text.strip()]


def without_password(url: str) -> str:
    """An address as it may be shown."""
    return _PASSWORD_FIELD.sub(lambda found: found[0].replace(found[1], "***"), re.sub(r"(://[^:/@]*):.*@", r"\1@", url))


#: The password in `://user:password@host`, and in `?password=...`.
_USERINFO: Final = re.compile(r"://[^:/@]*:(.*)@")
_PASSWORD_FIELD: Final = re.compile(r"[?&;\s](?:ssl)?(?:password|passwd|pwd|secret|token|api_?key)=([^&;\s]+)", re.IGNORECASE)


def _from_file(what: str, path: str, *, key: bool) -> Secret:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path} holds no text.") from None
    if not text:
        raise ConfigError(f"{what} {path} is empty.")
    return checked(f"{what} {path}", text, key=key)


def environment() -> Mapping[str, str]:
    """The process environment; the one place that reads it."""
    return os.environ
