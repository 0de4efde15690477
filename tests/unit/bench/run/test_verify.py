"""The three verdicts on a record: confirmed, refuted, and cannot be checked here, with what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from robustspike.bench.contract.specs import Status
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.record.adversarials import pack_adversarials
from robustspike.bench.record.adversarials import unpack_adversarials
from robustspike.bench.record.bundle import unpacked
from robustspike.bench.record.enclosures import enclosed_weights
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import decode_samples
from robustspike.bench.record.store import record_folders
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.run.sampling import kind_of
from robustspike.bench.run.sampling import parse_share
from robustspike.bench.run.sampling import sample
from robustspike.bench.run.verify import Finding
from robustspike.bench.run.verify import Verdict
from robustspike.bench.run.verify import verify
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan

SUITE = """
name = "tiny"
samples = {samples}
shard = {shard}
[[threats]]
geometry = "{geometry}"
eps = "{eps}"
{more}
[[victims]]
name = "{victim}"
[[attacks]]
name = "{attack}"
"""
BOARD = Path(__file__).resolve().parents[4] / "leaderboard" / "results" / "records"


def measured(
    out: Path,
    victim: str = "lif_cnn.digits",
    attack: str = "pgd.linf",
    *,
    geometry: str = "linf",
    eps: str = "1/10",
    samples: int = 16,
    shard: int = 8,
    more: str = "",
) -> tuple[CellRecord, Path]:
    path = out.with_suffix(".toml")
    values = {"victim": victim, "attack": attack, "geometry": geometry, "eps": eps, "more": more}
    path.write_text(SUITE.format(samples=samples, shard=shard, **values))
    (record,) = run(make_plan(read_suite(str(path))), Settings(out))
    return record, out / "records" / record.key


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured(tmp_path_factory.mktemp("verify") / "out")[1]


@pytest.fixture
def place(plain: Path, tmp_path: Path) -> Path:
    """A private copy of one honest record."""
    copy = tmp_path / "records" / plain.name
    shutil.copytree(plain, copy)
    return copy


def edit(place: Path, **changes: object) -> None:
    """Change fields of record.json ("digests.code": one entry) and make its digests of files agree again."""
    path = place / "record.json"
    value = json.loads(path.read_text())
    for name, change in changes.items():
        table, _, key = name.partition("__")
        if key:
            value[table][key] = change
        else:
            value[table] = change
    value["digests"]["samples"] = sha256((place / "samples.csv").read_bytes())
    path.write_text(json.dumps(value))


def zero_inputs(place: Path) -> None:
    path = place / "adversarials.safetensors"
    rows, x = unpack_adversarials(path.read_bytes(), path)
    path.write_bytes(pack_adversarials(rows, torch.zeros_like(x), binary=False))
    edit(place, digests__adversarials=sha256(path.read_bytes()))


def test_a_stochastic_victim_is_judged_by_the_streams_that_judged_it(tmp_path: Path) -> None:
    record, place = measured(
        tmp_path / "out", "poisson_cnn.digits", "fgsm.linf", eps="3/20", samples=30, shard=25
    )
    assert record.measures["noisy"] > 0 < record.counts["broken"]
    verdict = verify(place, Settings(tmp_path / "out"))
    assert verdict.finding is Finding.CONFIRMED, verdict
    assert verdict.confirmed == verdict.broken == record.counts["broken"]
    zero_inputs(place)
    assert verify(place, Settings(tmp_path / "out")).finding is Finding.REFUTED


@pytest.mark.parametrize(
    ("victim", "attack", "threat"),
    [
        ("lif_cnn.digits_events", "flip.greedy", {"geometry": "l0", "eps": "8", "more": 'domain = "spikes"'}),
        (
            "lif_cnn.digits_events",
            "flip.random",
            {"geometry": "l0", "eps": "40", "more": 'domain = "spikes"'},
        ),
        (
            "snn_iqa.photopatch",
            "quality.fgsm",
            {"eps": "8/255", "more": 'goal = "shift"\nlevels = 255'},
        ),
        ("lif_cnn.digits", "pgd.linf", {"more": 'goal = "targeted"', "eps": "1/5"}),
        ("poisson_cnn.digits", "fgsm.linf", {"more": 'goal = "targeted"', "eps": "1/2"}),
        ("lif_cnn.digits", "pgd.linf", {"samples": 7, "shard": 3}),
    ],
)
def test_every_kind_of_record_is_confirmed(
    tmp_path: Path, victim: str, attack: str, threat: dict[str, str]
) -> None:
    record, place = measured(tmp_path / "out", victim, attack, **{"samples": 8, **threat})  # type: ignore[arg-type]
    verdict = verify(place, Settings(tmp_path / "out"))
    assert verdict.finding is Finding.CONFIRMED, verdict
    assert verdict.confirmed == verdict.broken == record.counts["broken"]


def test_other_code_is_a_note_where_the_stored_inputs_still_fool_the_victim(place: Path) -> None:
    edit(place, digests__code="0" * 32)
    verdict = verify(place, Settings(place))
    assert verdict.finding is Finding.CONFIRMED and verdict.confirmed == verdict.broken > 0
    assert "not what measured it" in " ".join(verdict.notes)
    assert verify(place, Settings(place), rerun=True).finding is Finding.CONFIRMED  # the same bytes
    zero_inputs(place)
    assert verify(place, Settings(place)).finding is Finding.REFUTED


def test_a_run_with_other_code_or_elsewhere_that_differs_cannot_refute(place: Path) -> None:
    samples = place / "samples.csv"
    rows = decode_samples(samples.read_bytes(), samples)
    lines = samples.read_text().splitlines()
    at = next(place for place, row in enumerate(rows) if row.status is Status.BROKEN)
    cells = lines[at + 1].split(",")
    cells[6] = str(int(cells[6]) + 1)  # one forward pass more
    samples.write_text("\n".join([*lines[: at + 1], ",".join(cells), *lines[at + 2 :]]) + "\n")
    edit(place)
    assert verify(place, Settings(place), rerun=True).finding is Finding.REFUTED
    edit(place, environment__torch="2.0")
    verdict = verify(place, Settings(place), rerun=True)
    assert verdict.finding is Finding.CONFIRMED and "0 of them in their verdicts" in " ".join(verdict.notes)
    cells[4] = "robust"
    path = place / "adversarials.safetensors"
    ids, x = unpack_adversarials(path.read_bytes(), path)
    keep = ids != rows[at].row
    path.write_bytes(pack_adversarials(ids[keep], x[keep], binary=False))
    samples.write_text("\n".join([*lines[: at + 1], ",".join(cells), *lines[at + 2 :]]) + "\n")
    counts = json.loads((place / "record.json").read_text())["counts"]
    edit(
        place,
        digests__code="0" * 32,
        digests__adversarials=sha256(path.read_bytes()),
        counts=counts | {"broken": counts["broken"] - 1, "robust": counts["robust"] + 1},
    )
    verdict = verify(place, Settings(place), rerun=True)
    assert verdict.finding is Finding.CANNOT and "code, torch: run it again" in " ".join(verdict.missing)
    assert verdict.confirmed == verdict.broken


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digests__weights": "0" * 64}, "--weights DIR"),
        ({"digests__data": "0" * 64}, "--data DIR"),
        ({"dataset": "my_data", "environment__data_from": "robustspike-my-data"}, "robustspike-my-data"),
        ({"dataset": "mnist"}, "--data DIR"),
        ({"attack": "my_attack", "environment__attack_from": "file"}, "--trust"),
        ({"attack": "my_attack", "environment__attack_from": "their-attack"}, "package their-attack"),
        ({"defense": "my_defense", "environment__defense_from": "file"}, "--plugin"),
    ],
)
def test_what_is_missing_here_is_named_with_how_to_get_it(
    place: Path, changes: dict[str, str], said: str
) -> None:
    edit(place, **changes)
    verdict = verify(place, Settings(place))
    assert verdict.finding is Finding.CANNOT
    assert said in " ".join(verdict.missing)


def test_a_record_whose_attack_is_not_here_is_refuted_by_its_own_inputs(place: Path) -> None:
    edit(place, attack="my_attack", environment__attack_from="file")
    assert verify(place, Settings(place)).confirmed > 0
    zero_inputs(place)
    assert verify(place, Settings(place)).finding is Finding.REFUTED


@pytest.mark.parametrize("column", [1, 2])
def test_forged_labels_and_clean_answers_refute(place: Path, column: int) -> None:
    samples = place / "samples.csv"
    lines = [line.split(",") for line in samples.read_text().splitlines()]
    lines[2][column] = str((int(float(lines[2][column])) + 1) % 10)
    samples.write_text("\n".join(",".join(cells) for cells in lines) + "\n")
    edit(place)
    assert verify(place, Settings(place)).finding is Finding.REFUTED


def test_inputs_of_another_shape_refute(place: Path) -> None:
    path = place / "adversarials.safetensors"
    rows, x = unpack_adversarials(path.read_bytes(), path)
    path.write_bytes(pack_adversarials(rows, x[:, :, :4], binary=False))
    edit(place, digests__adversarials=sha256(path.read_bytes()))
    assert "shape" in " ".join(verify(place, Settings(place)).problems)
    edit(place, shard=0)
    assert verify(place, Settings(place)).finding is Finding.REFUTED


def test_enclosed_weights_are_found_by_digest_alone(tmp_path: Path) -> None:
    (tmp_path / "weights" / ("a" * 64)).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    assert enclosed_weights(tmp_path, digest="a" * 64) == tmp_path / "weights" / ("a" * 64)
    for digest in ("b" * 64, "../elsewhere", "", ".", "A" * 64):
        assert enclosed_weights(tmp_path, digest=digest) is None


def test_a_sample_is_seeded_and_holds_every_kind(plain: Path, tmp_path: Path) -> None:
    value = json.loads((plain / "record.json").read_text())
    kinds = ["static"] * 40 + ["spikes"] * 3 + ["quality"] + ["unreadable"] * 2
    folders = []
    for number, kind in enumerate(kinds):
        folder = tmp_path / f"{number:032x}"
        folder.mkdir()
        folders.append(folder)
        task = kind if kind == "quality" else "classify"
        made = value | {"task": task, "threat": value["threat"] | {"domain": "static"}}
        if kind == "spikes":
            made["threat"]["domain"] = kind
            made["measures"] = {"noisy": 3}
        (folder / "record.json").write_text("{" if kind == "unreadable" else json.dumps(made))
    assert [kind_of(folder) for folder in folders[-3:]] == ["quality", "unreadable", "unreadable"]
    drawn = sample(folders, 0.05, seed=1)
    counts = {kind: len(members) for kind, members in drawn.items()}
    assert counts == {"static": 2, "stochastic spikes": 1, "quality": 1, "unreadable": 2}
    assert drawn == sample(folders[::-1][::-1], 0.05, seed=1)
    assert any(drawn["static"] != sample(folders, 0.05, seed=seed)["static"] for seed in (2, 3))
    assert sum(map(len, sample(folders, 10).values())) <= 14
    assert parse_share("1%") == 0.01 and parse_share("20") == 20
    for text in ("", "0", "0%", "101%", "x", "1.5", "-1", "nan%"):
        with pytest.raises(ConfigError, match="--sample"):
            parse_share(text)


CHEAP = {
    "spikes": ("lif_cnn.digits_events", "flip.random"),
    "static": ("lif_cnn.digits", "fgsm.linf"),
    "stochastic static": ("poisson_cnn.digits", "noise"),
    "quality": ("snn_iqa.photopatch", "quality.fgsm"),
    "certify": ("lif_cnn.digits", "intervals"),
}
"""A record of every kind that is cheap to run again; certificates are not on every board."""


def test_a_sample_of_the_committed_records_of_every_kind_is_confirmed() -> None:
    """They were measured with the code of their day: what comes out the same when run again is confirmed."""
    found: dict[str, Verdict] = {}
    for bundle in sorted(BOARD.glob("*.zip")):
        with unpacked(bundle) as root:
            for folder in record_folders(root):
                value = json.loads((folder / "record.json").read_text())
                kind = kind_of(folder)
                if (value["victim"], value["label"]) == CHEAP.get(kind) and kind not in found:
                    found[kind] = verify(folder, Settings(root), rerun=True)
    assert {"static", "stochastic static", "spikes", "quality"} <= found.keys()
    assert {kind: v.finding for kind, v in found.items()} == dict.fromkeys(found, Finding.CONFIRMED), found
    assert sum(verdict.confirmed for verdict in found.values()) > 0
