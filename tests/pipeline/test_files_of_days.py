"""`tapeline backfill --from files` against a server of S3's protocol: a day's trades come once and whole, through a kill in the middle."""

from __future__ import annotations

import gzip
import json
import signal
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import pyarrow.fs as fs
from processes import Home, block, records

from frames import rows
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import NS_PER_S, RAW_TOPIC
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import SimulatorProcess


def test_flat_files_come_once_and_whole_though_it_was_killed_in_the_middle(home: Home, s3_url: str) -> None:
    keys = {"access_key": "filesaccess", "secret_key": "fileshidden", "region": "us-east-1"}
    remote = fs.S3FileSystem(**keys, endpoint_override=s3_url, allow_bucket_creation=True, request_timeout=30)
    remote.create_dir("flatfiles")
    friday_ns, count = 1_710_475_200 * NS_PER_S, 15_000  # 2024-03-15 04:00 UTC, midnight in New York
    lines = [
        f'{ticker},"12,37",0,11,{at},171.55,{at},{friday_ns + at * 1_000_000},10.000000,3'
        for ticker in ("AAPL", "IBM", "MSFT")
        for at in range(count)
    ]
    header = "ticker,conditions,correction,exchange,id,price,sequence_number,sip_timestamp,size,tape"
    with remote.open_output_stream("flatfiles/us_stocks_sip/trades_v1/2024/03/2024-03-15.csv.gz", compression=None) as file:
        file.write(gzip.compress("\n".join((header, *lines, "")).encode(), 1))

    home.env = {"TAPELINE_POLYGON_FILES_KEY": keys["access_key"], "TAPELINE_POLYGON_FILES_SECRET": keys["secret_key"]}
    home.configure(block("polygon", "ws://127.0.0.1:1", ["AAPL", "MSFT"], ["T"], files_url=s3_url))
    asked = ("backfill", "--from", "files", "--start", str(friday_ns), "--end", "2024-03-17", "--format", "json")
    killed = home.start(*asked)
    with closing(home.stream()) as stream:
        until(lambda: len(records(stream, RAW_TOPIC)) >= 2, "no page comes")
    killed.popen.kill()
    killed.popen.wait()
    done = home.ask(*asked)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["spans"], told["spans_done"], told["events"], told["failed"]) == (4, 4, 2 * count, [])  # of Friday and of Saturday
    with closing(home.stream()) as stream:
        chunk = stream.read(RAW_TOPIC, {}, 10_000)
        assert chunk is not None
        made = [(row["symbol"], row["sequence"] or 0) for row in rows(normalize(chunk, DECODERS))["ticks"]]
    assert sorted(made) == [(symbol, at) for symbol in ("AAPL", "MSFT") for at in range(count)]
    assert [path for path in (home.root / "backfill" / "files").rglob("*") if path.is_file()] == []
    home.says_nothing_of(*home.env.values())
    home.env = {}
    without = home.ask(*asked)
    assert (without.returncode, "Set TAPELINE_POLYGON_FILES_KEY" in without.stderr) == (78, True)


def test_the_simulator_s_files_are_what_its_sockets_were_sent_faults_included(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    start_ns = time.time_ns()
    faults = ("--fault=rest_429:2", "--fault=rest_error:2", "--fault=rest_cut:1", "--fault=late_report:1e-12")
    market = simulator("polygon", "--files-port", "0", "--symbols", "AAPL,MSFT", "--rate", "1000", "--limit", "3000", *faults)
    files = market.process.says("its files at ").rpartition("its files at ")[2].split()[0]
    home.env = {"TAPELINE_POLYGON_KEY": "k", "TAPELINE_POLYGON_FILES_KEY": "files", "TAPELINE_POLYGON_FILES_SECRET": "fileshidden"}
    home.configure(block("polygon", market.url, ["AAPL", "MSFT"], ["T", "Q"], files_url=files))
    live = home.start("ingest")
    sent = until(lambda: len(market.journal.read_text().splitlines()) == 3_000 and market.journal.read_text(), "the market goes on")
    live.send(signal.SIGTERM)
    assert live.ends() == 0

    later = Home(home.root.with_name("later"), home.spawn, home.env)
    later.configure(block("polygon", market.url, ["AAPL", "MSFT"], ["T", "Q"], files_url=files))
    end_ns = time.time_ns()
    done = later.ask("backfill", "--from", "files", "--start", str(start_ns), "--end", str(end_ns), "--format", "json")
    assert (done.returncode, json.loads(done.stdout)["failed"]) == (0, []), done.stderr
    with closing(later.stream()) as stream:
        chunk = stream.read(RAW_TOPIC, {}, 10_000)
        assert chunk is not None
        made = Counter((row["symbol"], row["channel"], row["sequence"]) for row in rows(normalize(chunk, DECODERS))["ticks"])
    told = [json.loads(line) for line in sent.splitlines()]
    assert made == Counter((one["event"]["sym"], one["channel"], one["event"]["q"]) for one in told)

    later.env = {**home.env, "TAPELINE_POLYGON_FILES_KEY": "badfiles"}
    wrong = later.ask("backfill", "--again", "--from", "files", "--start", str(start_ns), "--end", str(end_ns))
    assert wrong.returncode == 1
    assert "The access key ID you provided does not exist" in wrong.stderr
    later.says_nothing_of("fileshidden")
