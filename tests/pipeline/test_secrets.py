"""Every command and stage with planted secrets, right and wrong: none is in any output, log, status file, record or table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from processes import block

from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import Home, SimulatorProcess

MARK = "pk7MADE8UP9"
COMMANDS = (
    ("check",),
    ("status",),
    ("backfill", "--start", "2026-01-05", "--end", "2026-01-06"),
    ("reconcile", "--start", "2026-01-05"),
    ("repair",),
    ("gaps",),
    ("sql", "SELECT detail FROM notices"),
    ("rejected", "list"),
    ("tail", "raw", "-n", "50"),
)


def everything_says_nothing(home: Home) -> None:
    for command in COMMANDS:
        for form in ((), ("--format", "json")):
            done = home.ask(*command, *form)
            assert MARK not in done.stdout + done.stderr, (command, done.stdout, done.stderr)
    home.says_nothing_of(MARK)


@pytest.mark.parametrize(
    ("provider", "fault"),
    [("polygon", "none"), ("polygon", "auth_refused"), ("alpaca", "none"), ("alpaca", "auth_refused"), ("alpaca", "error:409")],
)
def test_a_provider_s_keys(provider: str, fault: str, home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    market = simulator(provider, "--rate", "200", *(() if fault == "none" else ("--fault", fault)))
    channels = ["T"] if provider == "polygon" else ["trades"]
    home.env = {f"TAPELINE_{provider.upper()}_KEY": MARK, "TAPELINE_ALPACA_SECRET": f"{MARK}-too"}
    home.configure(block(provider, market.url, ["AAPL"], channels), ledger=True)
    run = home.start("run")
    if fault == "none":
        until(lambda: home.word("lake").get("tables", {}).get("ticks", {}).get("rows", 0) > 50, "nothing flows")
    else:
        run.says("stopped")
    everything_says_nothing(home)
    run.popen.terminate()
    run.ends()
    home.says_nothing_of(MARK)


WRONG = {"lines": f"{MARK}\nsecond", "letters": f"{MARK}\u00e9", "quotes": f'"{MARK}"', "name": f"KEY={MARK}"}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_key_that_cannot_be_one(wrong: str, home: Home) -> None:
    home.env = {"TAPELINE_POLYGON_KEY": wrong}
    home.configure(block("polygon", "ws://127.0.0.1:1", ["AAPL"], ["T"], rest_url="http://127.0.0.1:1"))
    refused = home.ask("backfill", "--start", "2026-01-05", "--end", "2026-01-06")
    assert refused.returncode == 78
    assert "TAPELINE_POLYGON_KEY" in refused.stderr
    assert home.run() == 78
    everything_says_nothing(home)


@pytest.mark.parametrize(
    ("stream", "store"),
    [
        (f"redis://u:{MARK}@127.0.0.1:1/0", "lake:"),
        (f"redis://127.0.0.1:1/0?password={MARK}", "lake:"),
        (f"kafka://u:{MARK}@127.0.0.1:1", "lake:"),
        ("embedded:", f"postgresql://u:{MARK}@127.0.0.1:1/db"),
        ("embedded:", f"postgresql://127.0.0.1:1/db?user=u&password={MARK}"),
        ("embedded:", f"postgresql://u:{MARK}@[bad/db"),
    ],
)
def test_passwords_in_addresses(stream: str, store: str, home: Home) -> None:
    home.configure(block("binance", "ws://127.0.0.1:1", ["BTCUSDT"], ["trade"]))
    text = home.config.read_text().replace('url = "lake:"', f'url = "{store}"')
    home.config.write_text(text + f'\n[stream]\nurl = "{stream}"\n')
    for command in (("check",), ("status",), ("check", "--format", "json")):
        done = home.ask(*command)
        assert MARK not in done.stdout + done.stderr, done.stdout + done.stderr
    home.says_nothing_of(MARK) if home.root.exists() else None


def test_the_password_of_a_server_that_refuses_it(own_redis: Any, home: Home) -> None:
    server = own_redis(password="another")
    home.env = {"TAPELINE_STREAM_PASSWORD": MARK}
    home.configure(block("binance", "ws://127.0.0.1:1", ["BTCUSDT"], ["trade"]) + f'[stream]\nurl = "redis://{server.address}/0"\n')
    run = home.start("run")
    run.says("refused")
    done = home.ask("check")
    assert done.returncode == 77
    assert MARK not in done.stdout + done.stderr
    run.popen.terminate()
    run.ends()
    home.says_nothing_of(MARK)
