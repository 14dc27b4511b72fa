"""The spool keeps raw batches in order, up to a bound, and what it took outlives the process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from made import raws
from tapeline.errors import DiskProblem
from tapeline.stages.ingest import spool as spool_module
from tapeline.stages.ingest.spool import Spool, SpoolDamaged, SpoolFull

MB = 1_000_000


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(opened(tmp_path)) as found:
        yield found


def opened(folder: Path, max_bytes: int = 10 * MB) -> Spool:
    found = Spool(folder / "spool" / "ingest.sqlite", max_bytes)
    found.open()
    return found


def held(spool: Spool, after: int = 0) -> list[int]:
    """The numbers of what waits, each batch checked against what was put under its number."""
    found: list[int] = []
    while some := list(spool.after(found[-1] if found else after)):
        for one in some:
            assert one.batch.equals(raws(one.number, 3))
            assert one.partition == one.number % 4
            found.append(one.number)
    return found


def put(spool: Spool, *numbers: int, writer: str = "w") -> None:
    for number in numbers:
        spool.put(writer, number, number % 4, raws(number, 3))


def test_batches_come_back_in_order_from_any_number_on(spool: Spool) -> None:
    numbers = [1, 2, 3, 7, 8, *range(20, 200)]
    put(spool, *numbers)
    for after in (0, 1, 5, 7, 8, 150, 199):
        assert held(spool, after) == [number for number in numbers if number > after]
    assert (spool.records, spool.last) == (3 * len(numbers), 199)


def test_what_is_removed_is_gone_and_no_longer_counted(spool: Spool) -> None:
    put(spool, 1, 2, 3, 4)
    first = spool.bytes
    put(spool, 5, 6, 7, 8, 9, 10)
    rest = spool.bytes - first
    spool.remove(4)
    assert held(spool) == [5, 6, 7, 8, 9, 10]
    assert (spool.records, spool.bytes) == (18, rest)
    spool.remove(4)
    spool.remove(0)
    assert (spool.records, spool.bytes) == (18, rest)
    spool.remove(10)
    assert (held(spool), spool.records, spool.bytes, spool.last) == ([], 0, 0, 10)


def test_each_writer_s_batches_are_removed_by_partition_and_inherited_by_name(tmp_path: Path) -> None:
    times = iter([50, 60, 70, 80])
    spool = Spool(tmp_path / "s.sqlite", MB, times.__next__)
    spool.open()
    put(spool, 1, 2, writer="a")
    put(spool, 3, writer="b")
    put(spool, 5, writer="a")  # in the partition of 1
    assert spool.writers() == {"a": 50, "b": 70}
    spool.remove_of("a", 2, range(6))
    assert (held(spool), spool.records) == ([1, 3, 5], 9)
    spool.remove_of("a", 1, {1, 4, 99})
    assert (held(spool), spool.records) == ([3, 5], 6)
    spool.remove_of("a", 3, range(4))  # that one is the other writer's
    assert spool.writers() == {"a": 80, "b": 70}
    spool.inherit("c")
    assert spool.writers() == {"c": 70}
    spool.remove_of("b", 3, range(4))
    assert (held(spool), spool.records) == ([3, 5], 6)
    spool.remove_of("c", 1, range(6))
    assert (held(spool), spool.records) == ([3], 3)
    spool.close()


def test_a_full_spool_takes_no_more_keeps_what_it_has_and_takes_again_when_there_is_room(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as spool:
        put(spool, 1)
        one = spool.bytes
    with closing(opened(tmp_path, one * 5 + one // 2)) as spool:
        put(spool, 2, 3, 4, 5)
        with pytest.raises(SpoolFull, match=r"spool\.sqlite|ingest\.sqlite") as caught:
            put(spool, 6)
        assert "stream.spool_mb" in str(caught.value)
        assert held(spool) == [1, 2, 3, 4, 5]
        assert (spool.records, spool.bytes, spool.last) == (15, one * 5, 5)
        spool.remove(2)
        put(spool, 6, 7)
        with pytest.raises(SpoolFull):
            put(spool, 8)
        assert held(spool) == [3, 4, 5, 6, 7]


def test_what_was_put_is_there_after_it_was_opened_anew(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as spool:
        put(spool, 1, 2, 3)
        spool.remove(1)
        size = spool.bytes
        spool.close()
    with closing(opened(tmp_path)) as spool:
        assert (spool.records, spool.bytes, spool.last) == (6, size, 3)
        assert held(spool) == [2, 3]


WRITER = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from made import raws
from tapeline.stages.ingest.spool import Spool
spool = Spool(Path(sys.argv[1]) / "spool" / "ingest.sqlite", 1 << 30)
spool.open()
number = spool.last
while True:
    number += 1
    spool.put("w", number, number % 4, raws(number, 3))
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_all_that_it_had_put(tmp_path: Path) -> None:
    last = 0
    for after_s in (0.02, 0.07, 0.13):
        code = WRITER.format(tests=str(Path(__file__).parent))
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        first = int(process.stdout.readline())
        assert first == last + 1
        time.sleep(after_s)
        process.kill()
        said = [int(line) for line in process.communicate()[0].splitlines(keepends=True) if line.endswith(b"\n")]
        with closing(opened(tmp_path)) as spool:
            found = held(spool)
            assert found == list(range(1, len(found) + 1))
            assert len(found) >= max([first, *said])
            assert len(found) <= max([first, *said]) + 1  # it may have died before it said so
            assert spool.records == 3 * len(found)
            last = spool.last
            assert last == len(found)


def test_a_spool_that_has_been_emptied_gives_its_space_back_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_WORTH_RETURNING", MB)
    with closing(opened(tmp_path, 100 * MB)) as spool:
        for number in range(1, 41):
            spool.put("w", number, 0, raws(number, 1, bytes(100_000)))
        spool.remove(39)
        assert spool.path.stat().st_size > MB
        spool.remove(40)
        assert sum(path.stat().st_size for path in spool.path.parent.iterdir()) < 100_000
        assert (spool.records, spool.bytes, spool.last) == (0, 0, 40)
        put(spool, 41, 42)
    with closing(opened(tmp_path)) as spool:
        assert held(spool) == [41, 42]


@pytest.mark.parametrize("damage", ["garbage", "half", "data"])
def test_a_damaged_spool_is_set_aside_so_that_ingest_can_record(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    with closing(opened(tmp_path)) as spool:
        put(spool, *range(1, 60))
    content = spool.path.read_bytes()
    if damage == "data":
        content = content.replace(raws(30, 3)["payload"][1].as_py(), b"\0" * 3).replace(b"\xff\xff\xff\xff", b"\1\1\1\1")
    spool.path.write_bytes({"garbage": b"no database" * 1000, "half": content[: len(content) // 2], "data": content}[damage])
    before = spool.path.read_bytes()
    told = ""
    with closing(opened(tmp_path)) as again:
        if again.records:  # it is met only where it is read: what comes after it would follow on a hole that nobody sees
            with pytest.raises(SpoolDamaged, match=r"ingest\.sqlite is damaged") as met:
                list(again.after(0))
            told = str(met.value)
            with pytest.raises(DiskProblem, match="is damaged"):
                put(again, 60)
    with closing(opened(tmp_path)) as anew:
        assert (anew.records, held(anew)) == (0, [])
        put(anew, 1, 2)
        assert held(anew) == [1, 2]
    (aside,) = spool.path.parent.glob("ingest.sqlite.damaged-*Z")
    assert aside.read_bytes()[4096:] == before[4096:]
    assert str(aside) in caplog.text + told
    assert "Free disk space" not in caplog.text + told


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    with pytest.raises(DiskProblem, match="spool"):
        opened(tmp_path)
