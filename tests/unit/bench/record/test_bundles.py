"""Several bundles read together, and a folder of more records than one bundle may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustspike.bench.errors import ArtefactError
from robustspike.bench.record import bundle as module
from robustspike.bench.record.bundle import pack
from robustspike.bench.record.bundle import parts_missing
from robustspike.bench.record.bundle import read_bundle
from robustspike.bench.record.bundle import sources
from robustspike.bench.record.bundle import unpacked_all
from robustspike.bench.record.provenance import Session
from robustspike.bench.record.provenance import note
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.store import record_folders
from tests.support.commands import robustspike
from tests.support.records import make_record
from tests.support.records import write

ATTACKS = ("pgd.linf", "fgsm.linf", "noise", "bim.linf", "square.linf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    for attack in ATTACKS:
        write(make_record("rrbbw", attack=attack), root)
    note(root, Session("robustspike run", "a machine", "2026-01-02"))
    return root


def tables(*given: object, cwd: Path) -> tuple[str, str]:
    done = robustspike("leaderboard", *map(str, given), "--wide", "--csv", "wide.csv", cwd=cwd)
    assert done.returncode == 0, done
    return (cwd / "wide.csv").read_text(), done.stderr


def test_more_files_than_a_bundle_may_have_make_several_that_are_read_together(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = tables(folder, cwd=tmp_path)
    monkeypatch.setattr(module, "MAX_FILES", 6)  # manifest, run.json, and two records of two files
    made = pack(folder, tmp_path / "parts" / "mine.zip", inputs=False)
    assert {path.name: n for path, n in made.items()} == {
        f"mine-{i}-of-3.zip": n for i, n in ((1, 2), (2, 2), (3, 1))
    }
    parts = sorted(made)
    for given in (parts, [tmp_path / "parts"]):
        assert tables(*given, cwd=tmp_path) == (whole, "")
    assert parts_missing(parts) == []
    (line,) = parts_missing(parts[1:])
    assert "one of 3 bundles" in line and "1 were not given" in line
    assert "1 were not given" in tables(*parts[1:], cwd=tmp_path)[1]


def test_inputs_of_some_records_alone_are_enclosed(folder: Path, tmp_path: Path) -> None:
    for place in record_folders(folder):
        (place / "adversarials.safetensors").write_bytes(b"inputs")
    done = robustspike("submit", folder, "--out", "mine.zip", "--inputs-of", "attack=pgd.*", cwd=tmp_path)
    assert done.returncode == 0 and "verify mine.zip --rerun" in done.stderr, done
    with unpacked_all([tmp_path / "mine.zip"]) as (root,):
        held = [
            place.name for place in record_folders(root) if (place / "adversarials.safetensors").is_file()
        ]
        assert [read_record(root / "records" / key).attack for key in held] == ["pgd.linf"]
    wrong = robustspike("submit", folder, "--no-inputs", "--inputs-of", "attack=pgd.*", cwd=tmp_path)
    assert wrong.returncode == 2 and "--no-inputs encloses none" in wrong.stderr
    none = robustspike("submit", folder, "--inputs-of", "attack=pdg.linf", cwd=tmp_path)
    assert none.returncode == 2 and "--inputs-of attack=pdg.linf: none of the 5" in none.stderr


def test_one_bundle_is_no_part_of_anything(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "mine.zip", inputs=False)
    assert parts_missing([tmp_path / "mine.zip"]) == []


def test_a_bundle_is_read_as_it_is_unpacked(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "mine.zip", inputs=False)
    told: list[bytes] = []
    found = list(read_bundle(tmp_path / "mine.zip", told.append))
    assert found == [read_record(place) for place in record_folders(folder)]
    assert told == [(folder / "run.json").read_bytes()]


def test_a_folder_of_bundles_stands_for_them_and_one_of_records_for_itself(
    folder: Path, tmp_path: Path
) -> None:
    pack(folder, tmp_path / "boards" / "b.zip", inputs=False)
    pack(folder, tmp_path / "boards" / "a.zip", inputs=False)
    assert sources([tmp_path / "boards"]) == [tmp_path / "boards" / "a.zip", tmp_path / "boards" / "b.zip"]
    (folder / "kept.zip").write_bytes(b"")
    assert sources([folder]) == [folder]
    with unpacked_all([tmp_path / "boards"]) as roots:
        assert len(roots) == 2 and len(record_folders(*roots)) == len(ATTACKS)


def test_a_folder_of_neither_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = robustspike("leaderboard", "empty", cwd=tmp_path)
    assert done.returncode == 2 and "a folder of bundles" in done.stderr


def test_a_bundle_without_records_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    (root / "records" / ("0" * 32)).mkdir(parents=True)
    with pytest.raises(ArtefactError):
        pack(root, tmp_path / "empty.zip")
    assert not list(tmp_path.glob("*.zip*")) and not list(tmp_path.glob(".*"))


def test_rows_of_several_bundles_are_compared_and_printed_as_those_of_one(tmp_path: Path) -> None:
    for name, attack in (("a", "pgd.linf"), ("b", "fgsm.linf")):
        write(make_record("rrbbw", attack=attack), tmp_path / name)
        pack(tmp_path / name, tmp_path / "board" / f"{name}.zip", inputs=False)
        write(make_record("rrbbw", attack=attack), tmp_path / "both")
    done = robustspike("compare", "both", "board", "--json", cwd=tmp_path)
    assert done.returncode == 0 and '"changed": []' in done.stdout, done
