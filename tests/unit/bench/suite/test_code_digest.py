"""A cell's key hangs on the code that its components run, and on no other."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from robustspike.bench.api import Domain
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry
from robustspike.bench.contract import sources as hashing
from robustspike.bench.contract.registry import Registered
from robustspike.bench.contract.registry import Registry
from robustspike.bench.contract.registry import load_file
from robustspike.bench.suite.code_digest import code_digest
from robustspike.bench.suite.code_digest import files
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.identity import identity
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.testing.reference import reference
from robustspike.bench.testing.reference import samples


def modules(name: str, kind: str = "attacks", **params: object) -> set[str]:
    return {m.removeprefix("robustspike.") for m in files(registry(kind).get(name, **params), kind)}


def test_an_attack_hangs_on_what_it_imports_and_on_every_estimator() -> None:
    found = modules("sda.l0")
    assert {"attacks.spikes.sda", "attacks.gradients.pdsg", "attacks.gradients.assg"} <= found
    assert not {"attacks.spikes.scg", "attacks.pixels.apgd", "attacks.quality.iterated"} & found
    assert "attacks.spikes.scg" in modules("scg.image")
    assert "attacks.pixels.scg_image" not in modules("scg.l0")


def test_attacks_that_run_others_hang_on_those_and_on_the_weights_that_they_craft_on() -> None:
    found = modules("autoattack.snn")
    assert {"attacks.pixels.apgd", "attacks.pixels.square", "victims.direct.lif_cnn"} <= found
    assert "weights of lif_cnn.digits" in found
    assert not {"attacks.spikes.sda", "attacks.quality.iterated", "victims.quality.regressors"} & found
    assert "attacks.spikes.sda" in modules("refined") and "attacks.spikes.sda" not in modules("reduced")
    assert "attacks.spikes.scg" in modules("reduced", attack="scg.l0")
    assert "weights of snn_iqa.photopatch" in modules("quality.transfer")
    assert not {"attacks.spikes.sda", "weights of snn_iqa.photopatch"} & modules("quality.ifgsm")


@pytest.mark.parametrize(
    ("name", "domain"),
    [("autoattack.snn", Domain.STATIC), ("transfer.linf", Domain.STATIC), ("refined", Domain.SPIKES)],
)
def test_what_is_looked_up_at_run_time_was_declared(
    name: str, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, asked, get = registry("attacks").get(name), set(), Registry.get
    known = files(attack, "attacks")

    def spy(self: Registry, text: str, **params: object) -> object:
        found = get(self, text, **params)
        if self.kind in ("attacks", "victims", "defenses") and text != "none":
            asked.add(type(found).__module__)
        return found

    monkeypatch.setattr(Registry, "get", spy)
    victim, x = reference(domain), samples(domain)[:4]
    y = victim.logits(x).argmax(dim=1)
    flips = {"geometry": "l0", "domain": domain, "eps": None}
    threat = ThreatModel(**flips) if domain is Domain.SPIKES else ThreatModel(eps=Fraction(1, 10))
    evaluate_shard(victim, attack, threat, x, y, torch.arange(len(x)))
    assert asked and asked <= known.keys()


def test_victims_and_defenses_do_not_hang_on_each_other() -> None:
    assert "victims.quality.regressors" not in modules("lif_cnn.digits", "victims")
    found = modules("sr", "defenses")
    assert {"defenses.sr", "defenses.slopes"} <= found and "defenses.mppd" not in found


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of a third party: an attack and a module that it imports."""
    folder = tmp_path / "their_attacks"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "unrelated.py").write_text("X = 1\n")
    (folder / "loops.py").write_text("STEP = 1\n")
    (folder / "attack.py").write_text(
        "from dataclasses import dataclass\n"
        "from robustspike.attacks.pixels.fgsm import Fgsm\n"
        "from .loops import STEP\n"
        "@dataclass(frozen=True)\n"
        "class Theirs(Fgsm):\n"
        "    step: int = STEP\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [m for m in sys.modules if m.startswith("their_attacks")]:
        del sys.modules[name]


def test_a_plugin_hangs_on_its_own_package_too(package: Path) -> None:
    from their_attacks.attack import Theirs  # type: ignore[import-not-found]

    found = files(Theirs(), "attacks")
    assert {"their_attacks.attack", "their_attacks.loops", "robustspike.attacks.pixels.fgsm"} <= found.keys()
    assert "their_attacks.unrelated" not in found
    before = code_digest(Theirs(), "attacks")
    (package / "unrelated.py").write_text("X = 2\n")
    hashing._digest.cache_clear()
    hashing._content.cache_clear()
    assert code_digest(Theirs(), "attacks") == before
    (package / "loops.py").write_text("STEP = 2\n")
    hashing._digest.cache_clear()
    hashing._content.cache_clear()
    assert code_digest(Theirs(), "attacks") != before


def test_a_plugin_file_hangs_on_itself(tmp_path: Path) -> None:
    path = tmp_path / "lonely_attack.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from robustspike.bench.api import AttackSpec\n"
        "@dataclass(frozen=True)\n"
        "class Lonely:\n"
        "    spec: ClassVar[AttackSpec] = AttackSpec(name='lonely.test', geometries=('linf',), source='x')\n"
        "    def run(self, oracle, x0, y, *, rng):\n"
        "        return x0\n"
    )
    with loaded(path) as (entry,):
        assert path in files(registry("attacks").get(entry.name), "attacks").values()


@contextmanager
def loaded(*paths: Path) -> Iterator[list[Registered]]:
    entries = [entry for path in paths for entry in load_file(path)]
    try:
        yield entries
    finally:
        for entry in entries:
            registry(entry.kind)._entries.pop(entry.name, None)


ATTACK = """
from dataclasses import dataclass
from typing import ClassVar
from robustspike.bench.api import AttackSpec
{imports}
@dataclass(frozen=True)
class Mine:
    spec: ClassVar[AttackSpec] = AttackSpec(name="{name}", geometries=("linf",), source="x")
    def run(self, oracle, x0, y, *, rng):
        return x0 + {step}
"""


def test_two_plugin_files_of_one_stem_are_two(tmp_path: Path) -> None:
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "mine.py")
        paths[-1].write_text(ATTACK.format(imports="", name=f"{folder}.mine", step=len(paths)))
    with loaded(*paths) as (one, two):
        parts = [registry("attacks").get(entry.name) for entry in (one, two)]
        assert [[p for p in files(part, "attacks").values() if p.name == "mine.py"] for part in parts] == [
            [path] for path in paths
        ]
        assert code_digest(parts[0], "attacks") != code_digest(parts[1], "attacks")


def test_a_plugin_file_that_is_edited_and_loaded_again_has_another_digest(tmp_path: Path) -> None:
    path, found = tmp_path / "edited.py", []
    for step in (1, 2):
        path.write_text(ATTACK.format(imports="", name="edited.mine", step=step))
        with loaded(path):
            found.append(code_digest(registry("attacks").get("edited.mine"), "attacks"))
    assert found[0] != found[1]


def test_a_plugin_file_hangs_on_what_lies_beside_it_and_on_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_the_plugin.py").write_text("X = 1\n")
    path = tmp_path / "with_helper.py"
    path.write_text(ATTACK.format(imports="import numpy, beside_the_plugin", name="helped.mine", step=1))
    monkeypatch.syspath_prepend(str(tmp_path))
    with loaded(path):
        found = files(registry("attacks").get("helped.mine"), "attacks")
    assert tmp_path / "beside_the_plugin.py" in found.values()
    assert not any(name.startswith(("numpy", "torch", "robustspike.bench")) for name in found)


def test_a_certifier_hangs_on_the_proofs_that_it_runs() -> None:
    found = modules("intervals", "certifiers")
    assert {"bench.certify.intervals", "bench.certify.interval_bounds", "bench.snn.neurons"} <= found
    assert "bench.certify.smoothing" not in found
    assert {"bench.certify.smoothing", "bench.numbers.stats"} <= modules("smoothing", "certifiers")


_NUMBER = itertools.count()


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of a third party that registers an estimator, a geometry and a data set."""
    package = f"their_parts_{next(_NUMBER)}"  # what a package of that name holds is remembered
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "slopes.py").write_text("ALPHA = 1\n")
    (folder / "parts.py").write_text(
        "from dataclasses import dataclass\n"
        "from robustspike.attacks.gradients.surrogates import Triangle\n"
        "from robustspike.bench.data.images.digits import Digits\n"
        "from robustspike.bench.threats.geometry import Linf\n"
        f"from {package}.slopes import ALPHA\n"
        "@dataclass(frozen=True)\n"
        "class Slope(Triangle):\n"
        "    name = 'their_slope'\n"
        "class Ball(Linf):\n"
        "    name = 'their_ball'\n"
        "@dataclass(frozen=True)\n"
        "class Data(Digits):\n"
        "    name = 'their_data'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = {"estimators": "Slope", "geometries": "Ball", "datasets": "Data"}
    names = {"estimators": "their_slope", "geometries": "their_ball", "datasets": "their_data"}
    for kind, attribute in made.items():
        target = f"{package}.parts:{attribute}"
        point = EntryPoint(name=names[kind], value=target, group=f"robustspike.{kind}")
        registry(kind).add(Registered(names[kind], kind, target, "theirs", "1", point.load))
    yield folder
    for kind in made:
        del registry(kind)._entries[names[kind]]


@pytest.mark.parametrize(
    "attack", ["pgd.linf(estimator='their_slope')", "reduced(attack=\"scg.l0(estimator='their_slope')\")"]
)
def test_an_attack_hangs_on_the_estimator_of_a_third_party_that_it_names(attack: str, theirs: Path) -> None:
    assert theirs / "slopes.py" not in files(registry("attacks").get("pgd.linf"), "attacks").values()
    assert theirs / "slopes.py" in files(registry("attacks").get(attack), "attacks").values()


SUITE = """
name = "theirs"
samples = 4
[[threats]]
geometry = "{geometry}"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
params = {{ dataset = "{data}", shares = "lif_cnn.digits" }}
[[attacks]]
name = "noise"
"""


@pytest.mark.parametrize("data", ["digits", "their_data"])
def test_the_key_hangs_on_the_code_of_a_third_partys_data_set(
    data: str, theirs: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(SUITE.format(geometry="linf", data=data))
    (cell,) = make_plan(read_suite(str(tmp_path / "s.toml"))).cells

    def key() -> str:
        hashing._digest.cache_clear()
        hashing._content.cache_clear()
        return identity(cell, weights=None, root=None, device="cpu")[0]

    before = key()
    (theirs / "slopes.py").write_text("ALPHA = 2\n")
    assert (key() != before) == (data == "their_data")


def test_the_key_hangs_on_the_code_of_a_third_partys_geometry(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SUITE.format(geometry="linf", data="digits"))
    (cell,) = make_plan(read_suite(str(tmp_path / "s.toml"))).cells
    cell = replace(cell, threat=replace(cell.threat, geometry="their_ball"))

    def key() -> str:
        hashing._digest.cache_clear()
        hashing._content.cache_clear()
        return identity(cell, weights=None, root=None, device="cpu")[0]

    before = key()
    (theirs / "slopes.py").write_text("ALPHA = 3\n")
    assert key() != before


def test_where_a_module_lies_is_not_part_of_its_digest(tmp_path: Path) -> None:
    """Moving or renaming a module costs no key; a change of what is imported does."""
    texts = {
        "here": "from a.b import f\nfrom c.d import g as h\n\nX = f(h)\n",
        "moved": "from a.z.b import (\n    f,\n)\nfrom m import g as h\nX = f(h)\n",
        "other": "from a.b import f\nfrom c.d import k as h\n\nX = f(h)\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    digests = {name: hashing._digest(((name, tmp_path / f"{name}.py"),)) for name in texts}
    assert digests["here"] == digests["moved"] != digests["other"]
