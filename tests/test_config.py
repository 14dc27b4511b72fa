"""The configuration: one file, overridden by the environment, checked at the edge, with messages that help and secrets that stay hidden."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapeline.app.connections import connection_plans
from tapeline.config import Config, ProviderConfig, default, load, options_of, secret
from tapeline.errors import ConfigError
from tapeline.providers import registry
from tapeline.providers.alpaca.session import Options
from tapeline.providers.registry import PROVIDERS
from tapeline.secret import Secret

SECRET = "hunter2-hunter2"


def written(folder: Path, text: str) -> Path:
    path = folder / "some.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, environ: dict[str, str]) -> str:
    """The text of the ConfigError that loading raises."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_file_and_without_settings_it_is_binance_without_a_key() -> None:
    config = load(None, {"PATH": "/bin", "TAPELINE_CONFIG": "x", "TAPELINE_PROVE": "1", "TAPELINE_LOG": "debug"})
    assert config == default()
    assert [provider.name for provider in config.providers] == ["binance"]
    assert connection_plans(config, {})


def test_a_file_in_the_working_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "tapeline.toml").write_text('data_dir = "elsewhere"')
    assert load(None, {}).root == tmp_path / "elsewhere"


def test_a_full_file_is_read_as_written(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        data_dir = "/tmp/x"
        [stream]
        url = "embedded:"
        [[providers]]
        name = "alpaca"
        feed = "crypto"
        symbols = ["BTC/USD", "币安人生"]
        channels = ["trades"]
        options = { codec = "msgpack" }
        stale_after = { trades = 30.0 }
        [[stores]]
        url = "lake:"
        flush_rows = 7
        """,
    )
    config = load(path, {})
    (provider,) = config.providers
    assert (provider.feed, provider.symbols, options_of(provider), provider.stale_after) == (
        "crypto",
        ("BTC/USD", "币安人生"),
        Options(codec="msgpack"),
        {"trades": 30.0},
    )
    assert config.stores[0].flush_rows == 7


UNKNOWN = [
    ('data_dri = "x"', "data_dri", "data_dir"),
    ('[strem]\nurl = "x"', "strem", "stream"),
    ('[stream]\nulr = "x"', "ulr", "url"),
    ('[[providers]]\nname = "binance"\nsymbol = ["X"]', "symbol", "symbols"),
    ('[[providers]]\nname = "binance"\nchanels = ["X"]', "chanels", "channels"),
    ("[[stores]]\nflush_second = 1.0", "flush_second", "flush_seconds"),
]


@pytest.mark.parametrize(("text", "key", "nearest"), UNKNOWN)
def test_an_unknown_key_is_named_with_the_nearest_that_exists_and_the_file(text: str, key: str, nearest: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    message = refusal(path, {})
    assert repr(key) in message
    assert repr(nearest) in message
    assert str(path) in message


def test_an_unknown_key_like_no_other_brings_the_list_of_those_there_are(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, "[stream]\nqqqqqq = 1"), {})
    assert "Valid keys: url" in message


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("data_dir = 3", "data_dir"),
        ('[[stores]]\nflush_rows = "many"', "flush_rows"),
        ('[[providers]]\nname = "kraken"', "kraken"),
        ('[[providers]]\nfeed = "sip"', "name"),
        ('[[providers]]\nname = "binance"\nsymbols = "BTCUSDT"', "symbols"),
        ('[[providers]]\nname = "alpaca"\noptions = { codec = "xml" }', "xml"),
        ('stream = "embedded:"', "stream"),
        ("[[stores]]\nflush_seconds = inf", "flush_seconds"),
        ("[[stores]]\nflush_seconds = nan", "flush_seconds"),
        ("[[stores]]\nkeep_gb = inf", "keep_gb"),
        ("[stream]\nretain_hours = inf", "retain_hours"),
        ("[stream]\ncommit_ms = inf", "commit_ms"),
        ("[[providers]]\nname = 'binance'\nmute_after = inf", "stale_after"),
        ("[[providers]]\nname = 'binance'\nmute_after = { trade = inf }", "stale_after"),
        ("[[providers]]\nname = 'binance'\nprocess = 'a/b'", "process"),
        ("[[providers]]\nname = 'binance'\nprocess = '../x'", "process"),
        ("[stream]\ntopic_prefix = 'a b'", "topic_prefix"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_the_name_of_its_key(text: str, names: str, tmp_path: Path) -> None:
    assert names in refusal(written(tmp_path, text), {})


@pytest.mark.parametrize("text", ["= 1", "a = ", "[stream", 'a = "\n', "a = 1\na = 2", "[[providers]\n"])
def test_bad_toml_is_refused_with_the_file_and_the_place(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    message = refusal(path, {})
    assert str(path) in message
    assert "line" in message or "at end of document" in message


def test_a_file_that_is_missing_a_folder_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.toml", "", "binary.toml"):
        assert str(tmp_path / name) in refusal(tmp_path / name, {})


def test_a_file_in_utf_8_is_read_so_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import locale

    monkeypatch.setattr(locale, "getencoding", lambda: "ascii")
    monkeypatch.setattr("io.text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    path = written(tmp_path, '[[providers]]\nname = "binance"\nsymbols = ["币安人生USDT"]\nchannels = ["trade"]')
    assert load(path, {}).providers[0].symbols == ("币安人生USDT",)


def test_a_file_that_begins_with_the_mark_of_an_editor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tapeline.toml"
    path.write_bytes(b'\xef\xbb\xbfdata_dir = "here"\n')
    assert load(path, {}).data_dir == "here"


# The environment


def test_the_environment_overrides_the_file_at_every_depth(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        data_dir = "file"
        [[providers]]
        name = "binance"
        symbols = ["A", "B"]
        channels = ["trade"]
        [[providers]]
        name = "alpaca"
        feed = "iex"
        """,
    )
    config = load(
        path,
        {
            "TAPELINE_DATA_DIR": "environment",
            "TAPELINE_STREAM__URL": "embedded:",
            "TAPELINE_PROVIDERS__0__SYMBOLS": '["X", "Y"]',
            "TAPELINE_PROVIDERS__1__FEED": "sip",
            "TAPELINE_PROVIDERS__1__SYMBOLS__0": "AAPL",
            "TAPELINE_PROVIDERS__1__STALE_AFTER__TRADES": "2.5",
            "TAPELINE_PROVIDERS__2__NAME": "polygon",
            "TAPELINE_STORES__0__FLUSH_ROWS": "17",
        },
    )
    assert config.data_dir == "environment"
    assert [provider.name for provider in config.providers] == ["binance", "alpaca", "polygon"]
    assert config.providers[0].symbols == ("X", "Y")
    assert config.providers[0].channels == ("trade",)
    assert (config.providers[1].feed, config.providers[1].symbols) == ("sip", ("AAPL",))
    assert config.providers[1].stale_after == {"trades": 2.5}
    assert config.stores[0].flush_rows == 17


def test_the_environment_overrides_the_defaults_where_there_is_no_file() -> None:
    config = load(None, {"TAPELINE_PROVIDERS__0__SYMBOLS": '["ETHBTC"]'})
    assert config.providers == (ProviderConfig(name="binance", symbols=("ETHBTC",), channels=default().providers[0].channels),)
    config = load(None, {"TAPELINE_PROVIDERS__0__SYMBOLS__1": "ETHBTC"})
    assert config.providers[0].symbols == ("BTCUSDT", "ETHBTC", "SOLUSDT")
    assert load(None, {"TAPELINE_DATA_DIR": "x"}).providers == default().providers


def test_a_list_of_more_than_ten_is_filled_in_the_order_of_its_numbers() -> None:
    symbols = [f"S{at}USDT" for at in range(25)]
    environ = {f"TAPELINE_PROVIDERS__0__SYMBOLS__{at}": symbol for at, symbol in enumerate(symbols)}
    assert load(None, environ).providers[0].symbols == tuple(symbols)


@pytest.mark.parametrize(
    "name",
    [
        "TAPELINE_DATA_DRI",
        "TAPELINE_",
        "TAPELINE___",
        "TAPELINE_STREAM",
        "TAPELINE_STREAM__URL__MORE",
        "TAPELINE_STREAM__URL__MORE__AND__MORE",
        "TAPELINE_DATA_DIR__X__Y",
        "TAPELINE_PROVIDERS__7__NAME",
        "TAPELINE_PROVIDERS__-1__NAME",
        "TAPELINE_PROVIDERS__X__NAME",
        "TAPELINE_PROVIDERS__²__NAME",
        "TAPELINE_PROVIDERS__0",
        "TAPELINE_PROVIDERS__0__SYMBOLS__9",
        "TAPELINE_PROVIDERS__0__NAME__0",
        "TAPELINE_POLYGON_KEYS",
        "TAPELINE_POLYGON__KEY",
        "TAPELINE_PROVIDERS__0__KEY",
    ],
)
def test_a_variable_that_is_no_setting_is_refused_without_showing_its_value(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, 'data_dir = "x"\n[stream]\nurl = "embedded:"\n[[providers]]\nname = "binance"\nsymbols = ["A"]')
    for found in (path, None):
        message = refusal(found, {name: SECRET})
        assert SECRET not in message


@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="\0="), max_size=20),
    value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
def test_no_variable_at_all_raises_anything_but_a_config_error(name: str, value: str) -> None:
    for prefix in ("TAPELINE_", "TAPELINE_PROVIDERS__0__", "TAPELINE_STREAM__", "TAPELINE_PROVIDERS__", "TAPELINE_PROVIDERS__0__SYMBOLS__"):
        with suppress(ConfigError):
            assert isinstance(load(None, {prefix + name: value}), Config)


# Secrets


def provider_of(name: str, **more: str) -> ProviderConfig:
    return ProviderConfig(name=name, **more)  # type: ignore[arg-type]


def test_secrets_come_from_the_environment_ours_before_the_provider_s_own_names() -> None:
    for provider, some in PROVIDERS.items():
        for kind, names in some.secrets.items():
            for at, name in enumerate(names):
                environ = dict.fromkeys(names[at + 1 :], "other") | {name: SECRET} | dict.fromkeys(names[:at], "")
                assert secret(provider_of(provider), kind, environ) == Secret(SECRET)


def test_our_variables_for_secrets_are_no_settings() -> None:
    environ = {name: SECRET for some in PROVIDERS.values() for names in some.secrets.values() for name in names}
    config = load(None, environ)
    assert config == default()
    assert SECRET not in repr(config)


def test_a_secret_in_a_file_is_read_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"  {SECRET}\n")
    assert secret(provider_of("polygon", key_file=str(tmp_path / "key")), "key", {"POLYGON_API_KEY": "other"}) == Secret(SECRET)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff" + SECRET.encode()], ids=["absent", "empty", "blank", "no text"])
def test_a_secret_file_that_cannot_be_used_is_named_and_not_shown(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        secret(provider_of("alpaca", secret_file=str(path)), "secret", {})
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_secret_says_where_it_was_looked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        secret(provider_of("alpaca"), "secret", {"APCA_API_KEY_ID": SECRET})
    message = str(caught.value)
    assert all(name in message for name in ("TAPELINE_ALPACA_SECRET", "APCA_API_SECRET_KEY", "secret_file"))
    assert SECRET not in message


def test_the_installed_providers_are_found_by_their_entry_points() -> None:
    assert set(PROVIDERS) == set(registry.names()) == {"alpaca", "binance", "polygon"}
    assert {name: set(some.secrets) for name, some in PROVIDERS.items()} == {
        "alpaca": {"key", "secret"},
        "binance": set(),
        "polygon": {"key"},
    }


# What only the opened parts can tell


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('name = "binance"\nfeed = "futures"\nsymbols = ["A"]\nchannels = ["trade"]', "futures"),
        ('name = "binance"\nsymbols = ["A"]\nchannels = ["trades"]', "trades"),
        ('name = "binance"\nsymbols = []\nchannels = ["trade"]', "symbols"),
        ('name = "polygon"\nsymbols = ["A"]\nchannels = ["T"]', "TAPELINE_POLYGON_KEY"),
        ('name = "binance"\nsymbols = ["A", "B", "A"]\nchannels = ["trade"]', "the symbol 'A' more than once"),
        ('name = "binance"\nsymbols = ["A"]\nchannels = ["trade", "trade"]', "the channel 'trade' more than once"),
    ],
)
def test_a_feed_a_channel_or_a_secret_that_is_not_there_is_named(text: str, names: str, tmp_path: Path) -> None:
    config = load(written(tmp_path, f"[[providers]]\n{text}"), {})
    with pytest.raises(ConfigError, match=names):
        connection_plans(config, {})
