"""The configuration: a small TOML file that TAPELINE_... environment variables override. It is checked strictly when it is read.

The file never holds secrets. A key comes from the environment, or from a file that the configuration names.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from tapeline.config.secrets import dashboard_tokens, files_secrets, secret, secret_names, secrets_of, store_password, stream_password
from tapeline.config.settings import (
    CodecsConfig,
    Config,
    DashboardConfig,
    JobConfig,
    MonitorConfig,
    NotifyConfig,
    ProviderConfig,
    SlaConfig,
    StoreConfig,
    StreamConfig,
)
from tapeline.errors import ConfigError
from tapeline.providers.registry import PROVIDERS

__all__ = [
    "CodecsConfig",
    "Config",
    "DashboardConfig",
    "JobConfig",
    "MonitorConfig",
    "NotifyConfig",
    "ProviderConfig",
    "SlaConfig",
    "StoreConfig",
    "StreamConfig",
    "dashboard_tokens",
    "default",
    "environment",
    "files_secrets",
    "load",
    "options_of",
    "parse_listen",
    "secret",
    "secrets_of",
    "store_password",
    "stream_password",
]

PREFIX: Final = "TAPELINE_"
_LAST_PORT: Final = 65_535
#: Variables with this prefix that are not settings.
_NOT_SETTINGS: Final = frozenset(
    {
        *("TAPELINE_CONFIG", "TAPELINE_PROVE", "TAPELINE_LOG", "TAPELINE_CACHE", "TAPELINE_STREAM_PASSWORD", "TAPELINE_STORE_PASSWORD"),
        *("TAPELINE_DASHBOARD_TOKEN", "TAPELINE_DASHBOARD_OPERATOR_TOKEN"),
        *("TAPELINE_COMMAND", "TAPELINE_FIRST_WAIT"),  # integrations/: how another scheduler calls Tapeline
    }
)


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
    if config.history_from:
        try:
            date.fromisoformat(config.history_from)
        except ValueError:
            raise ConfigError(f'{source}: history_from = "{config.history_from}" is not a day. Write it like 2026-01-31.') from None
    for block, listen in (("monitor", config.monitor.listen), ("dashboard", config.dashboard.listen)):
        if listen:
            parse_listen(f"{source}: [{block}] listen", listen)
    return config


def parse_listen(what: str, text: str) -> str:
    """Return an address, host:port, as it is. `what`: where it comes from, for the message. Raises ConfigError if it is none."""
    if not re.fullmatch(r"([^:\s]+|\[[0-9a-fA-F:]+\]):\d{1,5}", text) or int(text.rpartition(":")[2]) > _LAST_PORT:
        raise ConfigError(f"{what} = {text!r} is not an address. Write it like 127.0.0.1:9464.")
    return text


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
        for name in ("url", "rest_url", "second_url", "lists_url", "files_url"):
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


def _override(settings: dict[str, Any], environ: Mapping[str, str]) -> bool:
    """Put variables such as TAPELINE_STREAM__URL and TAPELINE_PROVIDERS__0__SYMBOLS into `settings`. Returns whether there were any."""
    overridden = False
    secrets = secret_names() if any(name.startswith(PREFIX) for name in environ) else frozenset[str]()
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
        "sla": SlaConfig,
        "notify": NotifyConfig,
        "monitor": MonitorConfig,
        "dashboard": DashboardConfig,
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


def environment() -> Mapping[str, str]:
    """The environment of the process. Settings and secrets are read from it only through this function."""
    return os.environ
