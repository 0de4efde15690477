"""Adversarial inputs alone lower the rows that they break, credited; what is wrong with them is said."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from robustspike.bench.record.adversarials import read_adversarials
from tests.support.bundles import measured
from tests.support.commands import Done
from tests.support.commands import robustspike

TWO = ('geometry = "linf"\neps = "1/20"', 'geometry = "linf"\neps = "1/10"')


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of FGSM at two budgets, inputs that PGD found at the larger one, and a board of flips."""
    root = tmp_path_factory.mktemp("rescore")
    measured(root / "board", "fgsm.linf", threats=TWO)
    (strong,) = measured(root / "strong", "pgd.linf")
    safetensors.torch.save_file(
        dict(zip(("rows", "x"), read_adversarials(root / "strong" / "records" / strong.key), strict=True)),
        root / "pgd.safetensors",
    )
    flips = ('domain = "spikes"\ngeometry = "l0"\neps = "8"',)
    measured(root / "flips", "flip.random", victim="lif_cnn.digits_events", threats=flips, samples=8)
    (found,) = measured(
        root / "greedy", "flip.greedy", victim="lif_cnn.digits_events", threats=flips, samples=8
    )
    kept = root / "greedy" / "records" / found.key / "adversarials.safetensors"
    (root / "greedy.safetensors").write_bytes(kept.read_bytes())
    return root


def rescore(
    measurements: Path, inputs: Path | str, cwd: Path, *more: object, board: str = "board.zip"
) -> Done:
    given = ("--victim", "lif_cnn.digits", "--records", measurements / board, "--by", "Jane Doe")
    return robustspike("rescore", inputs, *given, *more, cwd=cwd)


def row(folder: Path, *sources: object) -> dict[str, str]:
    """Return the row at the largest budget."""
    done = robustspike("leaderboard", *sources, "--out", "tables", cwd=folder)
    assert done.returncode == 0, done.stderr
    *_, last = csv.DictReader((folder / "tables" / "rows.csv").open())
    return last


def test_stronger_inputs_lower_the_row_that_they_break_and_are_credited(
    measurements: Path, tmp_path: Path
) -> None:
    before = row(tmp_path, measurements / "board.zip")
    done = rescore(
        measurements, measurements / "pgd.safetensors", tmp_path, "--source", "https://example.org"
    )
    assert done.returncode == 0, done.stderr
    assert "linf 1/10" in done.stdout and "1/20" not in done.stdout  # they are legal under one threat alone
    after = row(tmp_path, measurements / "board.zip", "rescored")
    page = (tmp_path / "tables" / "leaderboard.md").read_text()
    strong = row(tmp_path, measurements / "strong.zip")
    assert float(after["worst_case"]) == float(strong["worst_case"]) < float(before["worst_case"])
    fallen = round(16 * (float(before["worst_case"]) - float(after["worst_case"])))
    assert after["notes"] == f"{fallen} samples fall to inputs by Jane Doe alone: https://example.org"
    assert after["flags"] == before["flags"] and after["energy_nj"] == before["energy_nj"]
    assert "inputs by Jane Doe" in page and after["notes"] in page

    for more in ((), ("--rerun",)):
        checked = robustspike("verify", "rescored", *more, cwd=tmp_path)
        assert checked.returncode == 0 and "1 confirmed" in checked.stdout, checked.stdout
    assert "no attack to run again" in checked.stdout
    assert robustspike("submit", "rescored", cwd=tmp_path).returncode == 0
    assert row(tmp_path, measurements / "board.zip", "rescored.zip") == after


def test_a_record_of_inputs_that_claims_another_name_is_refuted(measurements: Path, tmp_path: Path) -> None:
    rescore(measurements, measurements / "pgd.safetensors", tmp_path)
    (path,) = tmp_path.glob("rescored/records/*/record.json")
    value = json.loads(path.read_text())
    value["parameters"]["given"]["by"] = "Somebody Else"
    path.write_text(json.dumps(value))
    done = robustspike("verify", "rescored", cwd=tmp_path)
    assert done.returncode == 1 and "its key is not the digest" in done.stdout


def test_inputs_that_break_nothing_new_leave_no_record(measurements: Path, tmp_path: Path) -> None:
    rows, x = (safetensors.torch.load_file(measurements / "pgd.safetensors")[name] for name in ("rows", "x"))
    done = rescore(measurements, measurements / "pgd.safetensors", tmp_path, board="strong.zip")
    assert done.returncode == 1 and "0 of them samples that stood" in done.stdout, done.stdout
    assert "no row is lowered" in done.stderr and not (tmp_path / "rescored").exists()
    assert len(rows) == len(x)


def test_flips_packed_or_plain_are_inputs_too(measurements: Path, tmp_path: Path) -> None:
    packed = measurements / "greedy.safetensors"
    given = ("--victim", "lif_cnn.digits_events", "--records", measurements / "flips.zip", "--by", "J")
    first = robustspike("rescore", packed, *given, cwd=tmp_path)
    assert first.returncode == 0 and "l0 8" in first.stdout, first
    place = tmp_path / "plain"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adversarials.safetensors").write_bytes(packed.read_bytes())
    rows, x = read_adversarials(tmp_path / "a")
    safetensors.torch.save_file({"rows": rows, "x": x.to(torch.uint8)}, tmp_path / "plain.safetensors")
    second = robustspike("rescore", "plain.safetensors", *given, "--out", place, cwd=tmp_path)
    assert second.stdout == first.stdout
    assert [p.name for p in (place / "records").iterdir()] == [
        p.name for p in (tmp_path / "rescored/records").iterdir()
    ]
    x[0, 0, 0, 0, 0] = 0.5
    safetensors.torch.save_file({"rows": rows, "x": x}, tmp_path / "half.safetensors")
    done = robustspike("rescore", "half.safetensors", *given, cwd=tmp_path)
    assert done.returncode == 2 and f"sample {int(rows[0])} leaves the threat model" in done.stderr


def wrong(measurements: Path, change: str) -> dict[str, Tensor]:
    tensors = safetensors.torch.load_file(measurements / "pgd.safetensors")
    rows, x = tensors["rows"].clone(), tensors["x"].clone()
    changed: dict[str, dict[str, Tensor]] = {
        "double": {"rows": rows, "x": x.double()},
        "bytes": {"rows": rows, "x": (255 * x).to(torch.uint8)},
        "ids": {"rows": rows.float(), "x": x},
        "shape": {"rows": rows, "x": x.squeeze(1)},
        "nan": {"rows": rows, "x": x.index_fill(0, torch.tensor([2]), float("nan"))},
        "far": {"rows": rows, "x": x.clamp(0.2, 0.8)},
        "domain": {
            "rows": rows,
            "x": x.index_put((torch.tensor(1), *[torch.tensor(0)] * 3), torch.tensor(-0.01)),
        },
        "twice": {"rows": rows.index_fill(0, torch.tensor([0, 1]), 3), "x": x},
        "strange": {"rows": rows.index_fill(0, torch.tensor([0]), 999), "x": x},
        "few": {"rows": rows[1:], "x": x},
        "none": {"rows": rows[:0], "x": x[:0]},
        "unnamed": {"x": x},
    }
    return changed[change]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("double", "x is float64, expected float32 in [0, 1]"),
        ("bytes", "x is uint8, expected float32"),
        ("ids", "rows is float32, expected sample ids as int64"),
        ("shape", "inputs of shape [8, 8], expected [1, 8, 8]"),
        ("nan", "holds NaN or infinity"),
        ("far", "linf 1/10: sample "),
        ("domain", "leave the domain [0.0, 1.0]"),
        ("twice", "sample 3 comes twice"),
        ("strange", "sample 999 is none of the row's 16 samples"),
        ("few", "sample ids for"),
        ("none", "holds no input"),
        ("unnamed", "not readable adversarial inputs"),
    ],
)
def test_what_is_wrong_with_inputs_is_said_in_one_line(
    measurements: Path, tmp_path: Path, change: str, said: str
) -> None:
    safetensors.torch.save_file(
        {name: part.contiguous() for name, part in wrong(measurements, change).items()},
        tmp_path / "x.safetensors",
    )
    done = rescore(measurements, "x.safetensors", tmp_path)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stderr.startswith("error: x.safetensors: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "rescored").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--victim", "lif_cnn.digit"), "no record is of it. Did you mean 'lif_cnn.digits'?"),
        (("--defense", "sr"), "has rows with none only"),
        (("--threat", "linf 1/2"), "has rows under linf 1/20, linf 1/10 only"),
        (("--threat", "linf 1/20"), "linf 1/20: sample "),
        (("--by", " "), "expected a name"),
    ],
)
def test_a_row_that_is_not_there_is_named(
    measurements: Path, tmp_path: Path, more: tuple[str, str], said: str
) -> None:
    done = rescore(measurements, measurements / "pgd.safetensors", tmp_path, *more)
    assert done.returncode == 2 and said in done.stderr, done.stderr
