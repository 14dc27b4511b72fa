"""Processes killed in the middle of their work: nothing is lost, nothing is kept twice, and the accounts balance all the while."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from processes import block, kept

from proving import PROVE, proof
from tapeline.monitor.health import equations
from tapeline.providers.registry import identity
from tapeline.stores.lake import Lake
from tapeline.streams.embedded import EmbeddedStream
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import Home, Quote, SimulatorProcess, Trade

pytestmark = proof("crashes")

SEEDS = range(8) if PROVE else range(1)
CHANNELS = ("trade", "bookTicker")


@pytest.mark.parametrize(
    "stages", [("ingest", "normalize", "lake"), ("ingest-one", "ingest-two", "normalize", "normalize-2", "lake")], ids=len
)
@pytest.mark.parametrize("seed", SEEDS)
def test_killing_every_process_in_turn_changes_nothing_in_the_lake(
    seed: int,
    stages: tuple[str, ...],
    home: Home,
    simulator: Callable[..., SimulatorProcess],
    captures: list[Path],
    recordings: tuple[list[Trade], list[Quote]],
) -> None:
    random = Random(seed)

    def replay() -> str:
        return simulator("binance", *(f"--capture={path}" for path in captures), "--speed", "0", "--fault", "rewind:all").url

    if len(stages) == 3:
        partitions, feeds = 1, block("binance", replay(), ["BTCUSDT", "ETHUSDT"], CHANNELS)
    else:
        # A simulator for each: one alone would pass over what the process that comes later has not yet subscribed to.
        partitions, feeds = 3, block("binance", replay(), ["BTCUSDT"], CHANNELS, process="one")
        feeds += block("binance", replay(), ["ETHUSDT"], CHANNELS, process="two")
    workers = sum(stage.startswith("normalize") for stage in stages)
    settings = f"normalize_workers = {workers}\n[stream]\npartitions = {partitions}\n"
    home.configure(settings + feeds, flush_seconds=0.05, flush_rows=1500)
    run = home.start("run")
    lake = Lake(home.lake, identity)
    looks = 0
    with closing(EmbeddedStream(home.root / "stream", partitions)) as stream:

        def looked() -> bool:
            nonlocal looks
            found = equations(stream, {"lake": lake})
            assert all(one.balanced for one in found), [str(one) for one in found]
            looks += len(found)
            return bool(found)

        for victim in random.sample(stages, len(stages)):
            until(looked, "nothing has flowed")
            for _ in range(random.randrange(40)):
                looked()
            home.kill(victim)
        # The supervisor itself, and another at once in its place: the stages of the first end by themselves.
        pids = [until(lambda stage=stage: home.pid(stage), "a stage is not running") for stage in stages]  # type: ignore[misc]
        run.popen.kill()
        run.ends()
        again = home.start("run", "--until-idle", "1")
        until(lambda: looked() and not again.running, "the run did not end")
    assert again.ends() == 0, again.said
    assert looks > 100
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert kept(home.lake) == recordings
    status = home.status()
    assert all(entry["balanced"] for entry in status["equations"])
    assert not any(entry["records"] for entry in status["backlog"])
