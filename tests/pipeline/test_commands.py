"""The commands that look at what a run has left: their output in each form, and their exit statuses."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import COMMAND, Home, Spawner, ask, block, environment, rows

from tapeline.local.output import json_lines
from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC, TICKS_TOPIC, Topic
from tapeline.streams.embedded import EmbeddedStream
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from processes import SimulatorProcess

QUERY = "SELECT symbol, kind, ts_ns, last, bid, sequence, conditions, date, ts FROM ticks ORDER BY symbol, kind, sequence"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """What a short run has left: the lake at a place of its own, unreadable events among the good."""
    folder = tmp_path_factory.mktemp("done")
    spawn = Spawner(folder / "said")
    options = ("--rate", "500", "--limit", "1100", "--fault", "wrong_types:0.02")
    url = spawn("simulate", "binance", *options).says(" at ").rpartition(" at ")[2].strip()
    home = Home(folder / "data", spawn)
    home.configure(block("binance", url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker", "kline_1s"]))
    text = home.config.read_text().replace('"lake:"', f'"lake:{folder}/elsewhere"')
    home.config.write_text(text)
    assert home.run("--until-idle", "0.7") == 0
    yield home
    spawn.end()


def expected(home: Home) -> list[dict[str, Any]]:
    """The stream's own ticks, in the order of QUERY."""
    with closing(EmbeddedStream(home.root / "stream")) as stream:
        chunk = stream.read(TICKS_TOPIC, {0: 0}, 1_000_000)
    assert chunk is not None
    found: list[dict[str, Any]] = chunk.batch.to_pylist()
    assert len(found) > 500
    return sorted(found, key=lambda row: (row["symbol"], row["kind"], row["sequence"]))


def test_sql_gives_the_same_rows_in_every_form(done: Home, tmp_path: Path) -> None:
    ticks = expected(done)
    names = [name.strip() for name in QUERY.partition(" FROM")[0].removeprefix("SELECT ").split(",")][:-2]

    as_json = [json.loads(line) for line in done.ask("sql", QUERY, "--format", "json").stdout.splitlines()]
    assert [{name: row[name] for name in names} for row in as_json] == [{name: row[name] for name in names} for row in ticks]

    file = tmp_path / "ticks.csv"
    assert done.ask("sql", QUERY, "--format", "csv", "--output", str(file)).returncode == 0
    as_csv = list(csv.DictReader(io.StringIO(file.read_text())))
    for got, row in zip(as_csv, ticks, strict=True):
        assert (got["symbol"], got["kind"], int(got["ts_ns"])) == (row["symbol"], row["kind"], row["ts_ns"])
        assert (float(got["last"]) if got["last"] else None) == row["last"]

    piped = subprocess.run(
        [*COMMAND, "sql", QUERY, "--format", "parquet", "--config", str(done.config)],
        capture_output=True,
        check=True,
        env=environment(),
        timeout=60,
    )
    as_parquet = pq.read_table(io.BytesIO(piped.stdout)).to_pylist()
    assert [{name: row[name] for name in names} for row in as_parquet] == [{name: row[name] for name in names} for row in ticks]

    counted = "SELECT symbol, count(*) AS ticks FROM ticks GROUP BY ALL ORDER BY ALL"
    shown = done.ask("sql", counted).stdout.split()
    btc = sum(row["symbol"] == "BTC/USDT" for row in ticks)
    assert shown == ["symbol", "ticks", "BTC/USDT", str(btc), "ETH/USDT", str(len(ticks) - btc)]


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_a_reader_that_goes_before_it_has_read_all_is_no_error(form: str, tmp_path: Path) -> None:
    command = [*COMMAND, "sql", "SELECT * FROM range(300000)", "--format", form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


@pytest.mark.parametrize("words", [("--help",), ("sql", "SELECT 1 AS a"), ("sql", "SELECT 1 AS a", "--format", "json")])
def test_output_that_cannot_be_written_is_an_error_in_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path, check=False
        )
    assert done.returncode == 74
    assert done.stderr == "error: The output could not be written: No space left on device. Free disk space, or write it elsewhere.\n"


def test_an_error_of_the_system_that_is_not_the_output_s_is_not_taken_for_it(tmp_path: Path) -> None:
    program = "from tapeline.cli import app, main\n@app.command()\ndef breaks() -> None:\n    raise ConnectionResetError(104, 'x')\nmain()"
    command = [sys.executable, "-c", program, "breaks"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "ConnectionResetError" in done.stderr
    assert "could not be written" not in done.stderr


def test_a_command_that_is_done_does_not_wait_for_what_libraries_do_at_the_end(tmp_path: Path) -> None:
    """A client of Kafka whose broker is away takes a minute to be destroyed. Here something takes for ever."""
    program = (
        "import atexit, sys, time; atexit.register(time.sleep, 1e6); from tapeline.cli import main; sys.argv = ['x', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", program, "sql", "SELECT range AS n FROM range(20000)", "--format", "csv"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ['"n"', *map(str, range(20_000))], "all of the output is out"


def test_csv_holds_no_formula_that_a_spreadsheet_would_calculate(tmp_path: Path) -> None:
    query = "SELECT '=1+1' AS a, '@x' AS b, '-x' AS c, '+49' AS d, '-1.5e3' AS e, -3 AS f, '\t=1' AS g, NULL AS h, 'BTC/USDT' AS i"
    shown = ask("sql", query, "--format", "csv", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    (row,) = csv.reader(io.StringIO(shown.stdout.partition("\n")[2]))
    assert row == ["'=1+1", "'@x", "'-x", "+49", "-1.5e3", "-3", "'\t=1", "", "BTC/USDT"]


def test_what_stages_say_goes_to_stderr_and_stdout_is_empty(tmp_path: Path, spawn: Spawner) -> None:
    home = Home(tmp_path / "data", spawn)
    home.configure(block("binance", "ws://127.0.0.1:1", ["BTCUSDT"], ["trade"]))
    command = [*COMMAND, "run", "--config", str(home.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True) as process:
        assert process.stderr is not None
        assert any("tapeline.net.websocket: binance-spot-0: cannot connect to ws://127.0.0.1:1" in line for line in process.stderr)
        process.terminate()
        assert process.communicate()[0] == ""


def test_sql_reaches_no_file_but_the_lake_s_unless_it_is_allowed(done: Home, tmp_path: Path) -> None:
    secret, written = tmp_path / "secret.csv", tmp_path / "out.csv"
    secret.write_text("a\nhush\n")
    within = done.root.parent / "elsewhere" / "ticks" / "x.csv"
    for query in (
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM '{secret}'",
        f"SELECT * FROM read_text('{secret}')",
        f"SELECT * FROM glob('{tmp_path}/*')",
        f"COPY (SELECT 1) TO '{written}'",
        f"COPY (SELECT 1) TO '{within}'",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{within}'",
        f"ATTACH '{tmp_path}/x.db'",
        f"EXPORT DATABASE '{tmp_path}/all'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SELECT * FROM read_csv('http://127.0.0.1:1/x.csv')",
        "DROP VIEW ticks",
    ):
        found = done.ask("sql", query)
        assert (found.returncode, found.stdout) == (78, ""), query
        assert "hush" not in found.stderr
        assert "Traceback" not in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.csv"]
    assert not within.exists()
    for query in (
        "DESCRIBE ticks",
        "SUMMARIZE bars",
        "FROM ticks LIMIT 1",
        "EXPLAIN SELECT * FROM ticks",
        "PIVOT ticks ON kind USING count(*)",
    ):
        assert done.ask("sql", query, "--format", "json").returncode == 0, query
    assert done.ask("sql", f"SELECT * FROM read_csv('{secret}')", "--allow-files", "--format", "json").stdout == '{"a": "hush"}\n'
    assert done.ask("sql", f"COPY (SELECT 1) TO '{written}'", "--allow-files").returncode == 0
    assert written.exists()


def test_sql_says_what_is_wrong_with_a_query(done: Home) -> None:
    wrong = done.ask("sql", "SELECT nothing FROM ticks")
    assert (wrong.returncode, wrong.stdout) == (78, "")
    assert "nothing" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("topic", [RAW_TOPIC, *NORMALIZED_TOPICS], ids=lambda topic: topic.name)
def test_tail_shows_the_latest_records_of_a_topic(topic: Topic, done: Home) -> None:
    found = done.ask("tail", topic.table or "raw", "-n", "3")
    assert found.returncode == 0, found.stderr
    with closing(EmbeddedStream(done.root / "stream")) as stream:
        chunk = stream.read(topic, stream.tail_positions(topic, 3), 10)
    assert chunk is not None
    assert found.stdout.splitlines() == list(json_lines(pa.Table.from_batches([chunk.batch])))
    assert 1 <= len(found.stdout.splitlines()) <= 3


def test_tail_shows_one_symbol_where_there_are_symbols(done: Home) -> None:
    found = done.ask("tail", "ticks", "--symbol", "ETH/USDT", "-n", "5")
    records = [json.loads(line) for line in found.stdout.splitlines()]
    mine = [row for row in expected(done) if row["symbol"] == "ETH/USDT"]
    assert records == sorted(mine, key=lambda row: row["raw_offset"])[-5:]
    refused = done.ask("tail", "raw", "--symbol", "ETH/USDT")
    assert refused.returncode == 78
    assert "--symbol" in refused.stderr


def test_tail_follows_until_it_is_stopped_and_does_not_mind_a_closed_pipe(done: Home) -> None:
    follower = done.start("tail", "ticks", "--follow", "-n", "2")
    until(lambda: len(follower.said.splitlines()) >= 2, "nothing is shown")
    assert follower.running
    with closing(EmbeddedStream(done.root / "stream")) as stream:
        chunk = stream.read(TICKS_TOPIC, {0: 0}, 1)
        assert chunk is not None
        stream.append(TICKS_TOPIC, chunk.batch.slice(0, 1))
    assert len(until(lambda: len(follower.said.splitlines()) == 3 and follower.said.splitlines(), "the new one is not shown")) == 3
    follower.send(signal.SIGINT)
    assert follower.ends() == 0

    command = [*COMMAND, "tail", "raw", "-n", "100000", "--config", str(done.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read().decode()
        assert (process.wait(30), complaint) == (0, "")


def test_status_shows_the_accounts_and_check_what_is_reachable(done: Home) -> None:
    shown = done.ask("status")
    assert shown.returncode == 0
    assert "accounting (in = out + duplicates + rejected)" in shown.stdout
    found = done.status()
    assert [entry["stage"] for entry in found["equations"]][:2] == ["normalize", "lake"]
    assert all(entry["balanced"] for entry in found["equations"])
    checked = done.ask("check")
    assert checked.returncode == 0, checked.stdout
    assert "reachable in" in checked.stdout
    assert "symbols: all listed" in checked.stdout


def test_a_run_in_a_folder_of_any_name_can_be_asked_everything(
    tmp_path: Path, spawn: Spawner, simulator: Callable[..., SimulatorProcess]
) -> None:
    for name, symbol in (("one", "ETHUSDT"), ('a b#ä%?*"', "BTCUSDT")):
        market = simulator("binance", "--rate", "300", "--limit", "300")
        home = Home(tmp_path / name, spawn)
        home.configure(block("binance", market.url, [symbol], ["trade"]), ledger=True)
        assert home.run("--until-idle", "1") == 0
    count = home.rows("SELECT count(*) FROM ticks")
    assert count == [(300,)]
    assert json.loads(home.ask("sql", "SELECT count(*) AS n, min(symbol) AS s FROM ticks", "--format", "json").stdout) == {
        "n": 300,
        "s": "BTC/USDT",
    }
    assert home.ask("status").returncode == 0
    assert "BTC/USDT, binance spot trade" in home.ask("gaps").stdout
    assert home.ask("lake", "check").returncode == 0
    ((partition, offset, index),) = home.rows("SELECT raw_partition, raw_offset, raw_index FROM ticks ORDER BY sequence LIMIT 1")
    assert "kept in" in home.ask("audit", f"{partition}-{offset}-{index}").stdout


def test_a_command_without_data_says_so_and_makes_none(tmp_path: Path, spawn: Spawner) -> None:
    home = Home(tmp_path / "nothing", spawn)
    home.configure("")
    for command in (("status",), ("tail", "ticks")):
        found = home.ask(*command)
        assert found.returncode == 78, found.stdout + found.stderr
        assert "There is no data in" in found.stderr
    assert not home.root.exists()
    empty = home.ask("sql", "SELECT count(*) AS n FROM ticks", "--format", "json")
    assert (empty.returncode, empty.stdout) == (0, '{"n": 0}\n')


def test_the_help_of_a_simulator_and_its_faults(tmp_path: Path) -> None:
    help_text = ask("simulate", "--help").stdout
    for option in ("--capture", "--speed", "--fault", "--journal", "--limit", "--port"):
        assert option in help_text
    faults = ask("simulate", "binance", "--fault", "list").stdout
    assert "rewind" in faults
    wrong = ask("simulate", "binance", "--fault", "garbagge")
    assert wrong.returncode == 78
    assert "Did you mean 'garbage'" in wrong.stderr


def test_a_simulator_says_that_its_port_is_taken(simulator: Callable[..., SimulatorProcess]) -> None:
    first = simulator("binance")
    port = first.url.rpartition(":")[2]
    second = ask("simulate", "alpaca", "--port", port)
    assert second.returncode == 78
    assert f"port {port} cannot be opened" in second.stderr
    assert "Traceback" not in second.stderr


def test_the_demo_ends_well_and_its_numbers_are_those_of_the_lake(tmp_path: Path) -> None:
    of_the_user = {"TAPELINE_STREAM__URL": "kafka://127.0.0.1:1"}  # the demo has settings of its own
    shown = ask("demo", "--seconds", "3", "--rate", "300", "--data-dir", "made", env=of_the_user, cwd=tmp_path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "\x1b" not in shown.stdout
    (every,) = re.findall(r"Every one of the ([\d,]+) events sent is in the lake exactly once\.", shown.stdout)
    notices = sum(int(line.split()[3]) for line in shown.stdout.splitlines() if line.split()[2:3] == ["notice"])
    assert 2_700 <= int(every.replace(",", "")) <= 2_700 + notices  # a correction is a notice and the right trade
    counted = "SELECT provider, feed, kind, count(*) FROM ticks GROUP BY ALL UNION ALL "
    counted += "SELECT provider, feed, 'bar', count(*) FROM bar_revisions GROUP BY ALL"
    lake = {(provider, feed, kind): number for provider, feed, kind, number in rows(tmp_path / "made" / "lake", counted)}
    cells = [line.split() for line in shown.stdout.splitlines()]
    told = {tuple(cell[:3]): int(cell[4].replace(",", "")) for cell in cells if cell[2:3] in (["trade"], ["quote"], ["bar"])}
    assert told == lake
    ticks = sum(number for (*_, kind), number in lake.items() if kind != "bar")
    assert f"lake: {ticks:,} ticks = {ticks:,} rows + 0 duplicates" in shown.stdout
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    refused = ask("demo", "--seconds", "1", "--data-dir", "mine", cwd=tmp_path)
    assert refused.returncode == 70
    assert (tmp_path / "mine" / "precious").exists()
