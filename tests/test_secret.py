"""Secrets are checked where they come in, refused by name, and shown nowhere: in no message, log line, file or record."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapeline.config import Config, ProviderConfig, StoreConfig, StreamConfig, load, secret, secrets_of, store_password
from tapeline.errors import ConfigError
from tapeline.secret import Guard, Secret, checked, without_password

TEXT = "pk_MADE_UP"
WRONG = {
    "a second line": f"{TEXT}\nanother",
    "a carriage return in its middle": f"{TEXT}\r\r{TEXT}",
    "a zero": f"{TEXT}\0{TEXT}",
    "not ASCII": f"{TEXT}\u00e9",
    "quotation marks": f'"{TEXT}"',
    "other quotation marks": f"'{TEXT}'",
    "an assignment": f"KEY={TEXT}",
    "an exported assignment": f"export API_KEY={TEXT}",
    "a blank": f"Bearer {TEXT}",
    "a byte order mark": f"\ufeff{TEXT}",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_key_that_cannot_be_one_is_refused_by_its_name_and_not_shown(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TAPELINE_POLYGON_KEY") as refused:
        secret(ProviderConfig(name="polygon"), "key", {"TAPELINE_POLYGON_KEY": wrong})
    assert TEXT not in str(refused.value)
    file = tmp_path / "key"
    file.write_text(f"x{wrong}" if wrong.startswith("\ufeff") else wrong, encoding="utf-8")
    with pytest.raises(ConfigError, match="key_file") as refused:
        secret(ProviderConfig(name="polygon", key_file=str(file)), "key", {})
    assert TEXT not in str(refused.value)


@pytest.mark.parametrize("written", [f"{TEXT}\n", f"{TEXT}\r\n", f"  {TEXT}\t", TEXT])
def test_blanks_and_line_ends_around_a_secret_are_none_of_it(written: str, tmp_path: Path) -> None:
    assert secret(ProviderConfig(name="polygon"), "key", {"TAPELINE_POLYGON_KEY": written}) == Secret(TEXT)
    file = tmp_path / "key"
    file.write_bytes(b"\xef\xbb\xbf" + written.encode())
    assert secret(ProviderConfig(name="polygon", key_file=str(file)), "key", {}) == Secret(TEXT)
    assert store_password(StoreConfig(), {"TAPELINE_STORE_PASSWORD": written}) == Secret(TEXT)


def test_a_password_may_be_any_text_of_one_line() -> None:
    for text in ('"quoted"', "NAME=value", "p\u00e4ss w\u00f6rd", "p@ss/w?rd#1"):
        assert checked("password", text, key=False).reveal() == text
    with pytest.raises(ConfigError, match="line end"):
        checked("password", "one\ntwo", key=False)


@given(st.text(min_size=1))
def test_a_secret_prints_itself_in_no_way(text: str) -> None:
    some = Secret(text)
    assert {str(some), repr(some), f"{some}", f"{some!r}", "%s" % some} == {"***"}  # noqa: UP031 each way
    assert some.reveal() == text
    assert repr(Config()) == repr(Config())


@given(st.text(st.characters(codec="utf-8"), min_size=4), st.text(max_size=5), st.text(max_size=5))
def test_a_secret_is_taken_out_of_a_text_in_whatever_form_it_stands_there(text: str, before: str, after: str) -> None:
    for form in (text, json.dumps(text)[1:-1]):
        assert text not in Secret(text).taken_out(f"{before}{form}{after}").replace("***", "\uffff") or text in "\uffff"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:MADE_UP@h/db", "postgresql://u@h/db"),
        ("postgresql://h/db?user=u&password=MADE_UP", "postgresql://h/db?user=u&password=***"),
        ("postgresql://h/db?password=MADE_UP&sslmode=require", "postgresql://h/db?password=***&sslmode=require"),
        ("postgresql://h/db?sslpassword=MADE_UP", "postgresql://h/db?sslpassword=***"),
        ("redis://h/0?PASSWORD=MADE_UP", "redis://h/0?PASSWORD=***"),
        ("host=h password=MADE_UP dbname=x", "host=h password=*** dbname=x"),
        ("redis://u:a@b:c@h/0", "redis://u@h/0"),
        ("lake:", "lake:"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("name", ["url", "rest_url", "second_url", "files_url"])
@pytest.mark.parametrize("address", ["ws://bob:MADE_UP@h:1", "ws://MADE_UP@h", "ws://h/?apiKey=MADE_UP", "ws://h/#MADE_UP"])
def test_a_provider_s_address_with_more_than_an_address_in_it_is_refused_and_not_shown(name: str, address: str, tmp_path: Path) -> None:
    file = tmp_path / "tapeline.toml"
    file.write_text(f'[[providers]]\nname = "binance"\n{name} = "{address}"\n')
    with pytest.raises(ConfigError, match=f"{name} of binance") as refused:
        load(file, {})
    assert "MADE_UP" not in str(refused.value)


def test_everything_secret_of_a_configuration_is_known(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("of-a-file\nsecond line\n")
    config = Config(
        stream=StreamConfig(url="redis://u:of%2Fredis@h/0"),
        providers=(ProviderConfig(name="polygon", key_file=str(file)), ProviderConfig(name="alpaca", secret_file="/nowhere")),
        stores=(StoreConfig(url="postgresql://h/db?password=of-postgres"),),
    )
    environ = {"TAPELINE_STORE_PASSWORD": " of-the-environment\n", "APCA_API_SECRET_KEY": "of-alpaca", "TAPELINE_DATA_DIR": "no secret"}
    found = {some.reveal() for some in secrets_of(config, environ)}
    assert found == {"of-a-file", "second line", "of/redis", "of-postgres", "of-the-environment", "of-alpaca"}


def test_a_log_line_passes_through_a_guard_with_what_libraries_say_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(Guard([Secret("pk/MADE UP"), Secret("x")]))
    log = logging.getLogger("test of a guard")
    log.addHandler(handler)
    log.propagate = False
    try:
        log.error("%s and %s", "pk/MADE UP", ["pk%2FMADE%20UP", "pk%2FMADE+UP"])
        try:
            raise ValueError("Invalid header value b'Bearer pk/MADE UP'")
        except ValueError:
            log.exception("It failed with x.")
    finally:
        log.removeHandler(handler)
    said = capsys.readouterr().err
    assert "MADE" not in said
    assert "It failed with x." in said
    assert "Invalid header value b'Bearer ***'" in said


@pytest.mark.parametrize("order", [("abcd", "abcdefgh"), ("abcdefgh", "abcd")])
def test_of_a_secret_that_begins_as_another_nothing_stays(order: tuple[str, str]) -> None:
    assert Guard([Secret(text) for text in order]).cleaned("key=abcdefgh, abcd") == "key=***, ***"


def test_a_traceback_that_another_handler_has_written_and_the_callers_of_a_line_pass_through_too() -> None:
    record = logging.LogRecord("a library", logging.ERROR, "file.py", 1, "It failed.", None, None, sinfo="Stack: of MADE UP")
    record.exc_text = "ValueError: MADE UP"
    assert Guard([Secret("MADE UP")]).filter(record)
    assert (record.exc_text, record.stack_info) == ("ValueError: ***", "Stack: of ***")


def test_a_log_line_with_arguments_that_do_not_fit_ends_nothing_and_shows_no_secret() -> None:
    record = logging.LogRecord("a library", logging.ERROR, "file.py", 1, "%d of %d", ("MADE UP",), None)
    assert Guard([Secret("MADE UP")]).filter(record)
    assert record.getMessage() == "%d of %d ('***',)"
