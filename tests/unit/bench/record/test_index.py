"""The index of a folder or a bundle: the same records as without it, whatever happens to it or to them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ProtocolError
from robustspike.bench.record import index as module
from robustspike.bench.record.bundle import count_records
from robustspike.bench.record.bundle import pack
from robustspike.bench.record.bundle import read_bundle
from robustspike.bench.record.bundle import unpacked
from robustspike.bench.record.index import NAME
from robustspike.bench.record.index import Index
from robustspike.bench.record.provenance import Session
from robustspike.bench.record.provenance import note
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
    note(tmp_path, Session("robustspike run", "a machine", "2026-01-02"))
    return tmp_path


@pytest.fixture
def bundle(folder: Path) -> Path:
    pack(folder, folder / "boards" / "mine.zip", inputs=False)
    return folder / "boards" / "mine.zip"


@pytest.fixture(params=["folder", "bundle"])
def root(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def beside(root: Path) -> Path:
    return Index(root).path


def read(root: Path) -> tuple[dict[str, CellRecord], str]:
    if root.is_file():
        with Index(root, count_records(root)) as index:
            records = [found for found in index.read_bundle() if isinstance(found, CellRecord)]
        return {record.key: record for record in records}, index.problem
    places = record_folders(root)
    with Index(root, len(places)) as index:
        found = {place.name: index.read(place) for place in places}
    return found, index.problem


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of what is read from now on: records of folders, and bundles."""
    seen: list[str] = []

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *more: [seen.append(path.name), read(path, *more)][1]

    monkeypatch.setattr(module, "read_record", counted(read_record))
    monkeypatch.setattr(module, "read_bundle", counted(read_bundle))
    return seen


def test_an_index_gives_the_records_and_reads_no_file_twice(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {place.name: read_record(place) for place in record_folders(folder)}
    assert read(root) == (plain, "")
    seen = count_reads(monkeypatch)
    again, problem = read(root)
    assert (again, problem, seen) == (plain, "", [])
    assert list(again) == list(plain)
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


def forge(path: Path) -> None:
    """Make an index say of the records, with sums that are right, that their attack was another."""
    with sqlite3.connect(path) as file:
        file.create_function("summed", -1, module._sum)
        file.execute("UPDATE cells SET own = replace(own, 'pgd.linf', 'forged')")
        file.execute("UPDATE cells SET sum = summed(key, files, own, length, packed)")
    file.close()


def attacks(root: Path) -> set[str]:
    return {record.attack for record in read(root)[0].values()}


def test_an_index_that_came_with_a_copy_says_nothing_of_it(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(root)
    forge(beside(root))
    place = tmp_path_factory.mktemp("copy") / "results"
    copy = place / root.name if root.is_file() else place
    shutil.copytree(root.parent if root.is_file() else root, place)
    assert beside(copy).is_file() and "forged" in attacks(root)
    seen = count_reads(monkeypatch)
    assert attacks(copy) == {"pgd.linf", "fgsm.linf", "noise"}
    assert len(seen) == (1 if root.is_file() else 3)


def test_what_checks_records_reads_the_bundle_itself(bundle: Path) -> None:
    read(bundle)
    forge(beside(bundle))
    with unpacked(bundle) as inside:
        shutil.copy(beside(bundle), inside / NAME)
        assert attacks(inside) == {"pgd.linf", "fgsm.linf", "noise"}
    told = robustspike("verify", bundle, "--json", cwd=bundle.parent).stdout
    assert "pgd.linf" in told and "forged" not in told


def test_an_index_inside_a_bundle_is_refused(bundle: Path) -> None:
    read(bundle)
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.write(beside(bundle), NAME)
    with pytest.raises(ArtefactError, match=f"holds '{NAME}'"):
        read(bundle)


def test_a_bundle_whose_bytes_changed_is_refused(bundle: Path) -> None:
    read(bundle)
    times, data = bundle.stat(), bytearray(bundle.read_bytes())
    data[len(data) // 4] ^= 1
    bundle.write_bytes(data)
    os.utime(bundle, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(ArtefactError):
            read(bundle)


def test_of_several_bundles_the_one_that_was_replaced_is_read_again(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(folder, bundle.with_name("other.zip"), inputs=False)
    tables = [table_of(bundle.parent) for _ in range(2)]
    assert tables[0] == tables[1]
    shutil.rmtree(record_folders(folder)[0])
    write(make_record("rrrbwe", attack="new"), folder)
    pack(folder, bundle, inputs=False)
    seen = count_reads(monkeypatch)
    changed = table_of(bundle.parent)
    assert changed != tables[0] and "new" in changed and seen == ["mine.zip"]
    with sqlite3.connect(beside(bundle)) as file:
        keys = {key for (key,) in file.execute("SELECT key FROM cells")} - {""}
    assert keys == {place.name for place in record_folders(folder)}
    for path in bundle.parent.glob("*.sqlite"):
        path.unlink()
    assert table_of(bundle.parent) == changed


def table_of(root: Path) -> str:
    done = robustspike("leaderboard", root, "--wide", "--csv", "wide.csv", "--md", "wide.md", cwd=root)
    assert done.returncode == 0, done
    return (root / "wide.csv").read_text() + (root / "wide.md").read_text()


def test_records_of_another_protocol_are_refused_from_an_index_as_they_were(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record_folders(folder)[1] / "record.json"
    path.write_bytes(path.read_bytes().replace(b'"protocol": "1"', b'"protocol": "0"'))
    pack(folder, bundle, inputs=False)
    first = robustspike("leaderboard", bundle, "--json", cwd=folder)
    seen = count_reads(monkeypatch)
    assert robustspike("leaderboard", bundle, "--json", cwd=folder) == first and not seen
    assert first.returncode == 1 and "protocol '0'" in first.stderr
    with Index(bundle, 3) as index:
        assert isinstance(list(index.read_bundle())[1], ProtocolError)


def test_a_bundle_behind_a_link_is_the_file_that_it_leads_to(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = folder / "link.zip"
    link.symlink_to(bundle)
    before, _ = read(link)
    seen = count_reads(monkeypatch)
    assert read(link) == (before, "") and not seen
    os.utime(bundle)
    assert read(link) == (before, "") and seen == ["link.zip"]


def test_a_bundle_that_changes_while_it_is_read_is_not_kept(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(path: Path, *more: Any) -> Iterator[Any]:
        yield from read_bundle(path, *more)
        os.utime(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_bundle", touched)
        before, _ = read(bundle)
    seen = count_reads(monkeypatch)
    assert read(bundle) == (before, "") and seen == ["mine.zip"]


@pytest.mark.parametrize("damage", ["text", "cut", "entry", "version", "tables", "shared", "lost"])
def test_a_damaged_or_foreign_index_is_made_again(
    root: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = read(root)
    path = beside(root)
    if damage == "text":
        path.write_bytes(b"no database at all" * 1000)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        change = {
            "entry": "UPDATE cells SET own = substr(own, 2)",
            "version": "UPDATE about SET made = 'another'",
            "tables": "DROP TABLE shared",
            "shared": "UPDATE shared SET text = replace(text, 'linf', 'l2')",
            "lost": "DELETE FROM shared WHERE id = 0",
        }[damage]
        with sqlite3.connect(path) as file:
            file.execute(change)
        file.close()
    after, _ = read(root)
    assert after == before
    seen = count_reads(monkeypatch)
    assert read(root) == (before, "") and not seen


def test_where_there_is_no_place_for_an_index_one_line_says_so(root: Path) -> None:
    beside(root).mkdir()
    found, problem = read(root)
    assert len(found) == 3
    assert str(beside(root)) in problem and "read one by one" in problem and "\n" not in problem


def test_a_link_is_never_written_through(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("elsewhere") / "precious.sqlite"
    target.write_bytes(b"precious")
    beside(root).symlink_to(target)
    _, problem = read(root)
    assert "it is a link" in problem and target.read_bytes() == b"precious"


def test_an_index_that_another_run_holds_is_done_without(bundle: Path) -> None:
    read(bundle)
    os.utime(bundle)
    with sqlite3.connect(beside(bundle)) as file:
        file.execute("BEGIN EXCLUSIVE")
        found, problem = read(bundle)
    assert len(found) == 3 and "locked" in problem


def test_a_small_folder_has_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 1000)
    read(root)
    assert not beside(root).exists()


def test_tables_are_the_same_with_and_without_an_index(root: Path, tmp_path: Path) -> None:
    outs = []
    for name in ("first", "second"):
        done = robustspike("leaderboard", root, "--out", tmp_path / name, "--wide", cwd=tmp_path)
        assert done.returncode == 0, done
        outs.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} | {"": done})
    assert outs[0] == outs[1]
    assert "a machine" in outs[1]["leaderboard.md"].decode()


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
