"""Plugins of every kind as a user meets them: made, checked, trained, run, bundled, verified elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustspike.bench.cli.new import package
from tests.support.commands import robustspike


def alone(*args: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Call the command line in a process of its own: what a plugin registers must not stay."""
    call = [sys.executable, "-m", "robustspike.bench.cli", *map(str, args)]
    done = subprocess.run(call, cwd=cwd, capture_output=True, text=True, env={**os.environ})
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("kind", ["attack", "defense", "victim", "dataset"])
def test_the_template_of_every_kind_is_checked_from_its_file(tmp_path: Path, kind: str) -> None:
    assert robustspike("new", kind, f"my_{kind}", cwd=tmp_path).returncode == 0
    file = tmp_path / f"my_{kind}" / f"my_{kind}.py"
    done = alone("validate", file, "--json", cwd=tmp_path)
    rows = json.loads(done.stdout)
    assert {row["kind"] for row in rows} == {kind}
    assert sum(row["result"] == "passed" for row in rows) >= 3
    assert all(row["detail"] for row in rows if row["result"] == "skipped")
    if kind == "victim":
        assert "untrained network" in done.stderr
        assert "can_be_measured" in done.stdout


@pytest.mark.parametrize(
    ("name", "kind", "check"),
    [
        ("quality.fgsm", "attack", "moves_the_score_its_way"),
        ("intervals", "certifier", "certificates_hold"),
        ("median(draws=100)", "certifier", "bounds_hold"),
        ("digits", "dataset", "dataset_splits_share_no_sample"),
        ("cifar10", "dataset", "dataset_names_missing_files"),
        ("lif_cnn.digits", "victim", "recipe_fits_its_data"),
        ("lif_cnn.cifar10", "victim", "has_a_gradient"),
        ("pgd.linf(steps=3)", "attack", "respects_budgets"),
    ],
)
def test_every_kind_of_component_is_checked_by_name(tmp_path: Path, name: str, kind: str, check: str) -> None:
    done = robustspike("validate", name, "--kind", kind, cwd=tmp_path)
    assert f"{check}\n" in done.stdout and "passed" in done.stdout.splitlines()[-1]


def test_validate_names_what_a_component_is(tmp_path: Path) -> None:
    assert (
        "is no attack, but: dataset"
        in robustspike("validate", "digits", "--kind", "attack", cwd=tmp_path).stderr
    )


PLUGINS = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from robustspike.bench.api import Dataset, Split, registry


@dataclass(frozen=True)
class Few(Dataset):
    name: ClassVar[str] = "few_digits"
    shape: ClassVar[tuple[int, ...]] = (1, 8, 8)
    classes: ClassVar[int] = 10
    source: ClassVar[str] = "the first digits"

    def load(self, split, *, root=None):
        return registry("datasets").get("digits").load(split)[:120]
"""


@pytest.mark.slow
def test_a_bundle_of_plugins_is_confirmed_elsewhere_with_what_is_inside(tmp_path: Path) -> None:
    """A data set, a victim on it and an attack, each from a file; the reader has nothing but the bundle."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir(), away.mkdir()
    (home / "few.py").write_text(PLUGINS)
    attack = package("attack", "my_attack")
    (home / "my_attack.py").write_text(attack["my_attack.py"])
    victim = package("victim", "my_victim")["my_victim.py"].replace('"digits"', '"few_digits"')
    (home / "my-victim.py").write_text(victim)
    (home / "suite.toml").write_text(
        'samples = 12\nshard = 8\n[[threats]]\ngeometry = "linf"\neps = "1/4"\n'
        '[[victims]]\nname = "my_victim"\n[[attacks]]\nname = "my_attack"\n[[attacks]]\nname = "noise"\n'
    )
    plugins = [word for name in ("few.py", "my_attack.py", "my-victim.py") for word in ("--plugin", name)]
    short = ("--set", "schedule={'epochs': 2}")
    alone("train", "my_victim", *plugins, *short, "--out", "w", cwd=home)
    named = next((home / "w").glob("*.safetensors")).name.removesuffix(".safetensors")
    alone("validate", "my_victim", *plugins, "--weights", "w", cwd=home)
    if named != "my_victim":  # changed parameters may be part of the name of the weights
        for path in (home / "w").iterdir():
            path.rename(path.with_name(path.name.replace(named, "my_victim")))
    run = ("run", "suite.toml", "--jobs", 1, "--weights", "w", "--out", "out")
    alone(*run, *plugins, cwd=home)
    packed = alone("submit", "out", cwd=home)
    assert packed.stderr.count("encloses plugins/") == 3 and packed.stderr.count("encloses weights/") == 2
    (home / "out.zip").rename(away / "out.zip")

    offered = alone("verify", "out.zip", cwd=away, code=3)
    assert offered.stdout.count("cannot check") == 3  # two records, and the last line
    assert "--trust" in offered.stdout and offered.stderr.count("which was not run") == 3
    digests = [line.split("sha256 ")[1][:12] for line in offered.stderr.splitlines() if "sha256" in line]
    trust = [word for digest in digests for word in ("--trust", digest)]
    held = alone("verify", "out.zip", *trust, "--rerun", cwd=away)
    assert held.stdout.count("confirmed  ") == 2 and "2 confirmed" in held.stdout
    assert "expected the first 8" in alone("verify", "out.zip", "--trust", "0" * 12, cwd=away, code=2).stderr
    assert not list(away.glob("*/"))


def test_a_sample_says_what_it_drew(tmp_path: Path) -> None:
    args = ("run", "--samples", 6, "--only", "victim=lif_cnn.digits", "--only", "defense=none", "--jobs", 1)
    robustspike(*args, "--only", "attack=fgsm*", "--out", "out", cwd=tmp_path)
    done = robustspike("verify", "out", "--sample", "1", "--json", cwd=tmp_path)
    assert "sample, seed 0: 1 of" in done.stderr and "1 static" in done.stderr
    assert [row["verdict"] for row in json.loads(done.stdout)] == ["confirmed"]
