"""The secrets that the configuration names: each comes from a file or from the environment, and is never shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from tapeline.config.settings import Config, DashboardConfig, ProviderConfig, StoreConfig, StreamConfig
from tapeline.errors import ConfigError
from tapeline.providers.registry import ARCHIVES, PROVIDERS
from tapeline.secret import Secret, checked, passwords_in

#: Names of variables that may hold a secret, also of a provider that is not installed or whose name is misspelt. Their values are never
#: shown.
_SECRET: Final = re.compile(r"TAPELINE_(?!.*__).*_(KEY|SECRET|PASSWORD|TOKEN)")
#: A token that is shorter could be guessed.
_SHORTEST_TOKEN: Final = 16


@cache
def secret_names() -> frozenset[str]:
    """The environment variables that may hold secrets of the installed providers."""
    variables = {name for provider in PROVIDERS.values() for names in provider.secrets.values() for name in names}
    return frozenset(variables | {name for files in ARCHIVES.values() for name in files.secrets if name})


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


def files_secrets(provider: ProviderConfig, environ: Mapping[str, str]) -> tuple[Secret, Secret]:
    """The access key and the secret for the provider's files, each from its file or the environment.

    Raises ConfigError, which says what is not set."""
    key, secret_ = ARCHIVES[provider.name].secrets
    settings = (("files_key_file", provider.files_key_file, key), ("files_secret_file", provider.files_secret_file, secret_))
    found = []
    for setting, path, name in settings:
        if not path and not environ.get(name):
            raise ConfigError(
                f"The files of {provider.name} need an S3 access key and its secret. The API key does not work here. "
                f'Set {name}, or {setting} = "..." in the [[providers]] block.'
            )
        found.append(_from_file(f"{provider.name}: {setting}", path, key=True) if path else checked(name, environ[name], key=True))
    return found[0], found[1]


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


def dashboard_tokens(dashboard: DashboardConfig, environ: Mapping[str, str]) -> tuple[Secret, Secret]:
    """The token of those who may look, and that of those who may also act; empty if there is none. Raises ConfigError."""
    tokens = []
    for name, path in (("token", dashboard.token_file), ("operator_token", dashboard.operator_token_file)):
        variable = f"TAPELINE_DASHBOARD_{name.upper()}"
        found = _from_file(f"dashboard.{name}_file", path, key=True) if path else checked(variable, environ.get(variable, ""), key=True)
        if 0 < len(found.reveal()) < _SHORTEST_TOKEN:
            raise ConfigError(f"The {name} of the dashboard is shorter than {_SHORTEST_TOKEN} characters. Use a long random one.")
        tokens.append(found)
    return tokens[0], tokens[1]


def secrets_of(config: Config, environ: Mapping[str, str]) -> list[Secret]:
    """All secrets in the environment, in the configuration's urls and in the files that it names. A file that cannot be read is skipped."""
    texts = [text for name, text in environ.items() if name in secret_names() or _SECRET.fullmatch(name)]
    files = [config.stream.password_file, *(store.password_file for store in config.stores)]
    files += [some.urls_file for some in config.notify]
    files += [config.dashboard.token_file, config.dashboard.operator_token_file]
    files += [path for provider in config.providers for path in _key_files(provider)]
    for path in files:
        with suppress(OSError, UnicodeDecodeError):  # the code that needs the file reports the error
            texts += Path(path).expanduser().read_text(encoding="utf-8").splitlines() if path else []
    for url in (config.stream.url, *(store.url for store in config.stores)):
        texts += passwords_in(url)
    return [Secret(text.strip()) for text in texts if text.strip()]


def _key_files(provider: ProviderConfig) -> tuple[str, ...]:
    return (provider.key_file, provider.secret_file, provider.files_key_file, provider.files_secret_file)


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
