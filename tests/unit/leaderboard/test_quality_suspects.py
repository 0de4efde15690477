"""Whole runs on quality models that no number should be believed of: constant, noise-sensitive, NaN."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import BenchError
from robustspike.bench.api import Split
from robustspike.bench.api import registry
from robustspike.bench.contract.registry import Registered
from robustspike.bench.data.quality.photopatch_iqa import PhotopatchIqa
from robustspike.bench.data.quality.photos import photograph
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.training.train import train
from robustspike.defenses.none import Undefended
from robustspike.leaderboard.sections import build
from robustspike.victims.quality.regressors import QualityRegressor

SUITE = """
name = "suspects"
samples = 8
[[threats]]
geometry = "linf"
eps = "4/255"
goal = "shift"
levels = 255
[[victims]]
name = "suspect_iqa"
[[attacks]]
name = "quality.ifgsm"
params = { steps = 3 }
[[attacks]]
name = "quality.random_sign"
"""


Judge = Callable[[str], list[CellRecord]]


class Suspect(nn.Module):
    """A score that is 50 whatever it sees, one of roughness alone, or none at all outside training."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        rough = (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(dim=1, keepdim=True)
        if self.what == "constant":
            return 50 + 0 * self.weight * rough
        if self.what == "nan" and not self.training:
            return rough * torch.nan
        return 100 * torch.sigmoid(self.weight * (100 * rough - 3))


@dataclass(frozen=True, kw_only=True)
class SuspectRecipe(QualityRegressor):
    what: str = "constant"

    def build(self, rng: torch.Generator) -> nn.Module:
        del rng
        return Suspect(self.what)


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """Train, register and run a suspect; return its records."""
    image = photograph("china", 0.75)[:128, :320].reshape(2, 64, 5, 64, 3).transpose(0, 2, 4, 1, 3)
    x = torch.from_numpy(np.ascontiguousarray(image.reshape(10, 3, 64, 64))).float() / 255
    made = Split(x, torch.linspace(20, 80, 10).double(), torch.arange(10))
    monkeypatch.setattr(PhotopatchIqa, "load", lambda self, split, root=None: made)
    monkeypatch.setattr(PhotopatchIqa, "prepare", lambda self, progress=None: None)
    monkeypatch.setattr(PhotopatchIqa, "images", lambda self, ids: ids)

    def judge(what: str) -> list[CellRecord]:
        recipe = SuspectRecipe(name="suspect_iqa", what=what)
        short = replace(recipe, schedule=replace(recipe.schedule, epochs=1))
        train(short, Undefended(), out=tmp_path)
        entry = Registered("suspect_iqa", "victims", f"{__file__}:{what}", "file", "0", lambda: recipe)
        monkeypatch.setitem(registry("victims")._entries, "suspect_iqa", entry)
        (tmp_path / "suite.toml").write_text(SUITE)
        plan = make_plan(read_suite(str(tmp_path / "suite.toml")), weights=tmp_path)
        return run(plan, Settings(out=tmp_path / "out", weights=tmp_path))

    yield judge


@pytest.mark.parametrize(("what", "flag"), [("constant", "constant_score"), ("rough", "noise_sensitive")])
def test_a_suspect_model_is_flagged_and_loses_its_rank(judged: Judge, what: str, flag: str) -> None:
    records = judged(what)
    (section,) = [section for section in build(records) if section.kind.name == "quality"]
    (row,) = section.frame.to_dict("records")
    assert flag in row["flags"].split() and np.isnan(row["rank_low"])
    moved = row["mae:quality.random_sign"]
    assert moved == 0 if what == "constant" else moved > 1


def test_a_model_that_answers_nan_is_refused_by_name(judged: Judge) -> None:
    with pytest.raises(BenchError, match=r"suspect_iqa.*(not finite|nan)"):
        judged("nan")
