"""The index of a folder: the same records as without it, whatever happens to it or to them."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from robustspike.bench.errors import ArtefactError
from robustspike.bench.record import index as module
from robustspike.bench.record.index import NAME
from robustspike.bench.record.index import Index
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.store import record_folders
from tests.support.commands import robustspike
from tests.support.records import make_record
from tests.support.records import write


@pytest.fixture(autouse=True)
def indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for attack in ("pgd.linf", "fgsm.linf", "noise"):
        write(
            make_record("rrbbwe", attack=attack, measures={"score_range": [0.0, 1.0], "late_hits": 2}),
            tmp_path,
        )
    return tmp_path


def read(folder: Path) -> tuple[dict[str, CellRecord], str]:
    places = record_folders(folder)
    with Index(folder, len(places)) as index:
        found = {place.name: index.read(place) for place in places}
    return found, index.problem


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def counted(place: Path) -> CellRecord:
        seen.append(place.name)
        return read_record(place)

    monkeypatch.setattr(module, "read_record", counted)
    return seen


def test_an_index_gives_the_records_of_the_folder_and_reads_no_file_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {place.name: read_record(place) for place in record_folders(folder)}
    assert read(folder) == (plain, "")
    seen = count_reads(monkeypatch)
    assert read(folder) == (plain, "") and not seen
    again, _ = read(folder)
    first, second, _ = again.values()
    assert first.environment is second.environment and first.threat is second.threat


def test_what_changed_came_or_went_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = read(folder)
    first, second, third = record_folders(folder)
    changed = replace(before[first.name], suite="another")
    shutil.rmtree(first)
    write(changed, folder)
    shutil.rmtree(second)
    write(make_record(attack="new"), folder)
    seen = count_reads(monkeypatch)
    after, _ = read(folder)
    assert after[first.name].suite == "another" and second.name not in after
    assert third.name not in seen and len(seen) == 2
    with sqlite3.connect(folder / NAME) as file:
        assert {key for (key,) in file.execute("SELECT key FROM cells")} == after.keys()


def test_a_file_edited_in_place_with_its_time_put_back_is_refused(folder: Path) -> None:
    read(folder)
    path = record_folders(folder)[0] / "samples.csv"
    times, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b"robust", b"broken", 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    with pytest.raises(ArtefactError, match="changed after it was written"):
        read(folder)


def test_an_index_that_came_with_a_copied_folder_says_nothing_of_it(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(folder)
    with sqlite3.connect(folder / NAME) as file:
        file.execute("UPDATE cells SET own = replace(own, 'pgd.linf', 'forged')")
    copy = tmp_path_factory.mktemp("copy") / "results"
    shutil.copytree(folder, copy)
    seen = count_reads(monkeypatch)
    assert {record.attack for record in read(copy)[0].values()} == {"pgd.linf", "fgsm.linf", "noise"}
    assert len(seen) == 3


@pytest.mark.parametrize("damage", ["text", "cut", "entry", "version", "tables"])
def test_a_damaged_or_foreign_index_is_made_again(
    folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = read(folder)
    path = folder / NAME
    if damage == "text":
        path.write_bytes(b"no database at all" * 1000)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        change = {
            "entry": "UPDATE cells SET own = substr(own, 2)",
            "version": "UPDATE about SET made = 'another'",
            "tables": "DROP TABLE shared",
        }[damage]
        with sqlite3.connect(path) as file:
            file.execute(change)
        file.close()
    after, _ = read(folder)
    assert after == before
    seen = count_reads(monkeypatch)
    assert read(folder) == (before, "") and not seen


def test_where_there_is_no_place_for_an_index_one_line_says_so(folder: Path) -> None:
    (folder / NAME).mkdir()
    found, problem = read(folder)
    assert len(found) == 3
    assert NAME in problem and "read one by one" in problem and "\n" not in problem


def test_a_link_is_never_written_through(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("elsewhere") / "precious.sqlite"
    target.write_bytes(b"precious")
    (folder / NAME).symlink_to(target)
    _, problem = read(folder)
    assert "it is a link" in problem and target.read_bytes() == b"precious"


def test_an_index_that_another_run_holds_is_done_without(folder: Path) -> None:
    read(folder)
    write(make_record(attack="new"), folder)
    with sqlite3.connect(folder / NAME) as file:
        file.execute("BEGIN EXCLUSIVE")
        found, problem = read(folder)
    assert len(found) == 4 and "locked" in problem


def test_a_small_folder_has_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 1000)
    read(folder)
    assert not (folder / NAME).exists()


def test_tables_are_the_same_with_and_without_an_index(folder: Path) -> None:
    outs = []
    for name in ("first", "second"):
        done = robustspike("leaderboard", str(folder), "--out", str(folder / name), "--wide", cwd=folder)
        assert done.returncode == 0, done
        outs.append({path.name: path.read_bytes() for path in (folder / name).iterdir()})
    assert outs[0] == outs[1]


def test_packed_samples_are_the_samples() -> None:
    rows = tuple(replace(row, extras={"ssim": 0.5}) for row in make_record("rbweu").rows)
    packed = module.Samples.of(rows)
    assert (
        tuple(packed) == rows and packed[1] == rows[1] and packed[1:3] == rows[1:3] and packed[-1] == rows[-1]
    )
    assert packed == rows and len(packed) == 5 and packed != rows[:4]
    assert packed.column("row").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        packed[5]
