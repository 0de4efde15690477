"""Certificates as cells and as a column: kept apart from attacks, checked against them, resumable."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.certify.base import radius_needed
from robustspike.bench.certify.intervals import Intervals
from robustspike.bench.certify.smoothing import Smoothing
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import count
from robustspike.bench.record.schema import encode_record
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.schema import read_record
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.run.verify import verify
from robustspike.bench.suite.cell import NotApplicable
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.sections.certificates import contradicted
from robustspike.leaderboard.write.markdown import to_markdown
from tests.support.folders import contents
from tests.support.records import make_proof
from tests.support.records import make_record

SUITE = """
name = "proofs"
samples = 24
shard = 12
[[threats]]
geometry = "linf"
eps = "1/400"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "pgd.linf"
params = { steps = 5 }
[[certify]]
name = "*"
"""


def test_a_suite_certifies_beside_its_attacks(tmp_path: Path) -> None:
    path = tmp_path / "proofs.toml"
    path.write_text(SUITE)
    settings = Settings(tmp_path / "one")
    plan = make_plan(read_suite(str(path)))
    misfits: list[NotApplicable] = []
    attacked, proof = run(plan, settings, on_misfit=misfits.append)
    assert [misfit.reason.partition(" it must draw")[0] for misfit in misfits] == ["smoothing:"]
    assert [(record.attack, record.task) for record in (attacked, proof)] == [
        ("pgd.linf", Task.CLASSIFY),
        ("intervals", Task.CERTIFY),
    ]
    assert proof.task is Task.CERTIFY and proof.flags == ()
    assert 0 < proof.counts["robust"] < proof.counts["clean"] == attacked.counts["clean"]
    assert proof.counts["robust"] + proof.counts["uncertified"] == proof.counts["clean"]
    assert not contradicted([proof], [attacked])
    for place in (tmp_path / "one" / "records").iterdir():
        assert verify(place, settings).problems == ()

    class Stop(Exception):
        pass

    def stop(_: object) -> None:
        raise Stop

    for _ in range(3):  # one more shard each time
        with pytest.raises(Stop):
            run(plan, Settings(tmp_path / "two"), on_tick=stop)
    run(plan, Settings(tmp_path / "two"))
    assert contents(tmp_path / "one" / "records") == contents(tmp_path / "two" / "records")


def test_a_forged_certificate_does_not_verify(tmp_path: Path) -> None:
    path = tmp_path / "proofs.toml"
    path.write_text(SUITE)
    plan = make_plan(read_suite(str(path)), only=[("attack", "intervals")])
    settings = Settings(tmp_path / "out")
    (proof,) = run(plan, settings)
    place = tmp_path / "out" / "records" / proof.key
    assert verify(place, settings).problems == ()
    rows = tuple(
        replace(row, status=Status.ROBUST) if row.status is Status.UNCERTIFIED else row for row in proof.rows
    )
    samples = encode_samples(rows)
    forged = replace(
        proof, rows=rows, counts=count(rows), digests=proof.digests | {"samples": sha256(samples)}
    )
    (place / "samples.csv").write_bytes(samples)
    (place / "record.json").write_bytes(encode_record(forged))
    assert read_record(place).counts["robust"] == proof.counts["clean"]
    (problem,) = verify(place, settings).problems
    assert problem == f"running intervals again changes {proof.counts['uncertified']} of 24 samples"


def test_certified_is_a_column_of_its_own() -> None:
    records = [
        make_record("rrbbw"),
        make_record("rrrbw", defense="sr"),
        make_proof("ruuuw"),
        make_proof("rrrrr", eps=Fraction(1, 20)),  # another budget
        make_proof("rrrrr", data="d2"),  # other data
    ]
    here = next(s for s in build(records) if "linf 1/10" in s.title and len(s.frame) == 2)
    (plain,) = build(records[:2])
    rows = here.frame.set_index("defense")
    assert rows["certified"]["none"] == 1 / 5 and rows["certified"].isna()["sr"]
    assert rows["certified_by"].to_dict() == {"none": "intervals", "sr": ""}
    for column in ("worst_case", "rank_low", "rank_high", "asr", "propagations", "acc:pgd.linf"):
        assert rows[column].to_dict() == plain.frame.set_index("defense")[column].to_dict()
    headers, cells = here.tables()[0].headers, here.tables()[0].rows
    shown = {row[2]: row[headers.index("certified [95 %]")] for row in cells}
    assert shown == {"none": "20.0 [3.6, 62.4]", "sr": "n/a"}
    assert ["net", "none", "intervals", "1/5", "linf 0.1", "1"] in here.tables()[2].rows
    assert "certified" not in to_markdown([plain])
    assert "*Certified*" in to_markdown([here])


def test_a_certificate_on_other_weights_is_a_row_of_its_own() -> None:
    proof = make_proof("rrrrw")
    other = replace(proof, digests=proof.digests | {"weights": "another training"})
    (section,) = build([make_record("bbbbw"), other])
    rows = section.frame.set_index("weights")
    assert rows["certified"].isna()["netnone"] and rows["certified"]["another training"] == 4 / 5
    assert rows["worst_case"]["netnone"] == 0 and rows["worst_case"].isna()["another training"]
    assert not any("contradicted" in flags for flags in section.frame["flags"])
    assert rows["name"].to_dict() == {"netnone": "net #netnone", "another training": "net #another "}
    assert {row[6] for row in section.tables()[0].rows} == {"n/a", "80.0 [37.6, 96.4]"}


def test_a_certificate_without_attacks_is_shown_and_not_ranked() -> None:
    (section,) = build([make_proof("rruuw")])
    (row,) = section.frame.to_dict("records")
    assert (row["certified"], row["clean"], row["flags"]) == (2 / 5, 4 / 5, "no_gradient_attack")
    assert section.frame["rank_low"].isna().all() and section.frame["worst_case"].isna().all()
    assert section.tables()[0].rows[0][5] == "-"


@pytest.mark.parametrize(
    ("proof", "attacked", "refuted"),
    [
        (make_proof("ruuuw"), "rbbbw", False),
        (make_proof("uruuw"), "rbbbw", True),  # one proven sample broke
        (make_proof("urruw", confidence=0.999), "rrbbw", False),  # the vote was decided on other draws
        (make_proof("rrruw", confidence=0.999), "rrbbw", True),  # more than what stands
    ],
)
def test_a_refuted_certificate_is_flagged(proof: CellRecord, attacked: str, refuted: bool) -> None:
    (section,) = build([proof, make_record(attacked)])
    assert ("certificate_contradicted" in section.frame["flags"][0].split()) == refuted
    assert section.frame["rank_low"].isna().all() == refuted


def test_the_radius_covers_the_threat() -> None:
    linf, l2 = (ThreatModel(geometry=name, eps=Fraction(1, 4)) for name in ("linf", "l2"))
    assert (radius_needed(linf, "linf", 64), radius_needed(linf, "l1", 64)) == (0.25, 16.0)
    assert (radius_needed(l2, "linf", 64), radius_needed(l2, "l1", 64)) == (0.25, 2.0)
    assert radius_needed(ThreatModel(geometry="l2", eps=None), "l1", 64) is None
    assert radius_needed(replace(linf, goal=Goal.TARGETED), "linf", 64) is None
    assert radius_needed(ThreatModel(geometry="l0", eps=Fraction(1)), "l1", 64) is None


def test_mistakes_in_a_certify_table_are_named(tmp_path: Path) -> None:
    for old, new, message in (
        ('[[certify]]\nname = "*"', '[[certify]]\nname = "interval"', "Did you mean 'intervals'"),
        ('[[certify]]\nname = "*"', '[[certify]]\nname = "smoothing"\nparams = { votes = 0 }', "at least 1"),
        ("[[certify]]", "[[certfy]]", "Did you mean 'certify'"),
        ("[[certify]]", "[certify]", "at least one"),
    ):
        path = tmp_path / "wrong.toml"
        path.write_text(SUITE.replace(old, new))
        with pytest.raises(ConfigError, match=message):
            make_plan(read_suite(str(path)))


def test_smoothing_certifies_a_network_that_sees_nothing_but_its_coding() -> None:
    victim = load_victim("poisson_cnn.digits")
    assert Smoothing().fits(victim) is None

    class SidePath(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x) + x.flatten(1)[:, :1]
            return out

    class Before(SidePath):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner((x > 0.5).to(x.dtype))
            return out

    for wrapper in (SidePath, Before):
        reason = Smoothing().fits(ModuleVictim(wrapper(victim.module), victim.spec))
        assert reason is not None and "raw input alone" in reason


def test_intervals_refuse_a_network_whose_answers_are_not_those_of_its_layers() -> None:
    inner = load_victim("lif_cnn.digits").module

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.steps, self.inner = inner.body, inner.steps, inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x / 2)
            return out

    victim = wrap(Halves(), name="halves", shape=(1, 8, 8), classes=10, steps=4)
    reason = Intervals().fits(victim)
    assert reason is not None and "its layers alone" in reason
    assert Intervals().fits(load_victim("lif_cnn.digits")) is None


def test_certified_samples_survive_attacks_on_a_shipped_net() -> None:
    data = registry("datasets").get("digits").load("test")[:24]
    victim = load_victim("if_cnn.digits")
    eps = Fraction(1, 400)
    found = Intervals().certify(victim, data.x, data.y, radii=[float(eps)], streams=None)  # type: ignore[arg-type]
    attacked = evaluate(victim, "pgd.linf", data.x, data.y, eps=eps)
    broken = torch.cat([shard.status for shard in attacked.shards]) == 1
    assert found.count(eps) > 0 and not bool((found.holds(eps) & broken).any())
