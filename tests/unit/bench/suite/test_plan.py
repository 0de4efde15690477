"""Suite files: what fits, what does not, and one clear message for every mistake."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
from torch import nn

from robustspike.bench.contract.registry import Registry
from robustspike.bench.contract.registry import registry
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.run.verify import verify
from robustspike.bench.suite.file import AttackEntry
from robustspike.bench.suite.file import SuiteText
from robustspike.bench.suite.file import ThreatEntry
from robustspike.bench.suite.file import VictimEntry
from robustspike.bench.suite.file import parse_suite
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.file import shipped_suites
from robustspike.bench.suite.identity import identity
from robustspike.bench.suite.plan import Plan
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.suite.variant import variant_of
from robustspike.bench.training.fit import Schedule
from robustspike.bench.training.train import train
from robustspike.bench.training.weights import file_stem
from robustspike.bench.training.weights import load_victim
from robustspike.bench.training.weights import variant
from robustspike.leaderboard.sections import build

SMALL = """
name = "small"
samples = 20
shard = 8
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "fgsm.linf"
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "suite.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def plan_of(tmp_path: Path, text: str, **options: object) -> Plan:
    return make_plan(read_suite(write(tmp_path, text)), **options)  # type: ignore[arg-type]


def test_a_suite_becomes_cells(tmp_path: Path) -> None:
    (cell,) = plan_of(tmp_path, SMALL).cells
    assert (cell.victim, cell.defense, cell.attack) == ("lif_cnn.digits", "none", "fgsm.linf")
    assert (cell.samples, cell.shards) == (20, 3)


def test_an_attack_around_another_is_granted_what_the_inner_one_needs(tmp_path: Path) -> None:
    text = SMALL.replace('geometry = "linf"\neps = "1/10"', 'domain = "spikes"\ngeometry = "l0"\neps = "min"')
    text = text.replace("lif_cnn.digits", "lif_cnn.digits_events").replace("fgsm.linf", "reduced")
    inner = 'params = {{ attack = "{}" }}'
    for name, access in (("sda.l0", "white"), ("flip.random", "score")):
        (cell,) = plan_of(tmp_path, text + inner.format(name)).cells
        assert cell.threat.access == access


ON_PUBLISHED_DATA = {
    *("cifar10", "cifar10_dvs", "cifar10_events", "dvs_gesture", "mnist", "nmnist", "photos", "purified")
}
"""Suites that need --data, or weights that are trained on it."""


@pytest.mark.parametrize("name", sorted(set(shipped_suites()) - ON_PUBLISHED_DATA))
def test_shipped_suites_plan(name: str) -> None:
    assert make_plan(read_suite(name)).cells


def test_the_suite_on_published_recordings_asks_for_them_and_plans_with_them(tmp_path: Path) -> None:
    suite = read_suite("nmnist")
    with pytest.raises(ArtefactError, match="pass --data DIR"):
        make_plan(suite)
    for split in ("Train", "Test"):
        for digit in range(10):
            folder = tmp_path / split / str(digit)
            folder.mkdir(parents=True)
            (folder / f"{digit:05d}.bin").write_bytes(bytes(range(5)) * 20)
    plan = make_plan(suite, root=tmp_path)
    assert {cell.samples for cell in plan.cells} == {10}
    asked = {(cell.threat.label, cell.attack) for cell in plan.cells}
    assert {name for label, name in asked if label == "l0 min targeted"} == {
        "sda.l0",
        "scg.l0",
        "rounded_pgd.l0",
        "flip.random",
    }
    retiming = {f"retime.{kind}" for kind in ("random", "pil", "greedy", "pgd")}
    assert {name for label, name in asked if label.startswith("retime")} == {*retiming, "pointwise"}
    controls = {"flip.random", "flip.greedy", "scar", "sparse_rs", "pointwise"}
    assert controls <= {name for label, name in asked if label == "l0 min"}


def test_the_suite_on_photographs_asks_for_a_folder_of_them(shared_data: Path) -> None:
    suite = read_suite("photos")
    with pytest.raises(ArtefactError, match="pass --data DIR"):
        make_plan(suite)
    plan = make_plan(suite, root=shared_data / "photos")
    asked = {(v.name, defense) for v in suite.victims for defense in v.defenses}
    assert {(cell.victim, cell.defense) for cell in plan.cells} == asked


def published_images(root: Path, samples: int = 20) -> Path:
    """Write test images of MNIST and CIFAR-10, all black, where the published files lie."""
    labels = bytes(i % 10 for i in range(samples))
    mnist = root / "MNIST" / "raw"
    mnist.mkdir(parents=True)
    for part, shape in (("images-idx3", (samples, 28, 28)), ("labels-idx1", (samples,))):
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        content = labels if len(shape) == 1 else bytes(math.prod(shape))
        (mnist / f"t10k-{part}-ubyte").write_bytes(header + content)
    cifar = root / "cifar-10-batches-bin"
    cifar.mkdir()
    (cifar / "test_batch.bin").write_bytes(b"".join(bytes([label]) + bytes(3072) for label in labels))
    return root


@pytest.mark.parametrize("name", ["cifar10", "cifar10_events", "mnist"])
def test_the_suites_on_published_images_plan_with_their_files_and_weights(name: str, tmp_path: Path) -> None:
    """Of weights the plan asks for the file alone, so that empty ones stand for those not trained yet."""
    suite = read_suite(name)
    asked = {(v.name, defense) for v in suite.victims for defense in v.defenses}
    for victim, defense in asked:
        (tmp_path / f"{file_stem(variant(victim, defense, 0))}.safetensors").touch()
    plan = make_plan(suite, root=published_images(tmp_path), weights=tmp_path)
    assert not plan.not_applicable
    assert {(cell.victim, cell.defense) for cell in plan.cells} == asked
    assert {cell.samples for cell in plan.cells} == {20}
    asked_eps = {None if threat.eps == "min" else threat.eps for threat in suite.threats}
    assert {cell.threat.eps for cell in plan.cells} == asked_eps


def test_cifar10_has_the_standard_verdict_where_the_field_compares_and_a_quick_one_below(
    tmp_path: Path,
) -> None:
    suite = read_suite("cifar10")
    for victim in suite.victims:
        for defense in victim.defenses:
            (tmp_path / f"{file_stem(variant(victim.name, defense, 0))}.safetensors").touch()
    cells = make_plan(suite, root=published_images(tmp_path), weights=tmp_path).cells
    verdicts = {(str(c.threat.eps), c.label) for c in cells if c.attack == "autoattack.snn"}
    quick = "autoattack.snn[level=quick]"
    assert verdicts == {("2/255", quick), ("4/255", quick), ("8/255", "autoattack.snn")}


def test_training_seeds_without_weights_are_left_out_by_name(tmp_path: Path) -> None:
    """Missing weights are a mistake where a suite names the defense; under a pattern they are n/a."""
    victim = 'name = "lif_cnn.digits"'
    plan = plan_of(tmp_path, SMALL.replace(victim, victim + '\ndefenses = ["s[r]"]\nseeds = [0, 97]'))
    assert {(c.defense, c.victim_seed) for c in plan.cells} == {("sr", 0)}
    assert [m.reason for m in plan.not_applicable] == ["no trained weights: robustspike train --seed 97"]
    with pytest.raises(ConfigError, match=r"sr@97.*--defense sr --seed 97"):
        plan_of(tmp_path, SMALL.replace(victim, victim + '\ndefenses = ["sr"]\nseeds = [0, 97]'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[[attacks]]", "[[atacks]]"), "Did you mean 'attacks'"),
        (('name = "fgsm.linf"', 'name = "fgms.linf"'), "Did you mean 'fgsm.linf'"),
        (('name = "lif_cnn.digits"', 'name = "lif_cnn.digit"'), "Did you mean 'lif_cnn.digits'"),
        (('eps = "1/10"', 'eps = "1/0"'), r"threats, number 1, eps: expected a fraction .* got '1/0'"),
        (('eps = "1/10"', "eps = nan"), "eps: expected a fraction"),
        (('eps = "1/10"', 'eps = "-1"'), "fraction of 0 or more"),
        (('eps = "1/10"', "levels = 1.7"), "levels: expected a whole number of 0 or more, got 1.7"),
        (('eps = "1/10"', "budget = 1.5"), r"budget: expected a table such as \{ forwards = "),
        (('eps = "1/10"', "budget = { forwards = 1.5 }"), "budget, forwards: expected a whole number"),
        (('eps = "1/10"', "budget = { forward = 1 }"), "Did you mean 'forwards'"),
        (('eps = "1/10"', 'goal = "raize"'), "goal: .* got 'raize'. Did you mean 'raise'"),
        (('eps = "1/10"', 'domain = "pixel"'), "domain: expected static, spikes or events"),
        (('eps = "1/10"', "bounds = [1, 0]"), "bounds must be"),
        (('eps = "1/10"', "bounds = [1]"), "a list of 2: a number, a number"),
        (("[[victims]]", '[[victims]]\ndefenses = "sr"'), r"defenses: .* Did you mean \['sr'\]"),
        (("[[victims]]", "[[victims]]\nseeds = [-1]"), "seeds, number 1: expected .* 0 or more, got -1"),
        (("shard = 8", "shard = -1"), "shard: expected a whole number of 1 or more, got -1"),
        (("shard = 8", "seeds = 3"), r"seeds: expected a list .* got 3. Did you mean \[3\]"),
        (("shard = 8", "seeds = []"), "seeds: expected a list"),
        (("shard = 8", 'split = "tst"'), "Did you mean 'test'"),
        (("shard = 8", 'digest = "0"'), "unknown key 'digest'"),
        (("samples = 20", 'samples = "10"'), "got '10'. Did you mean 10"),
        (('geometry = "linf"', 'geometry = "l2"'), "nothing to measure"),
        (("samples = 20", "samples = 0"), "samples: expected a whole number of 1 or more, got 0"),
        (("samples = 20", "sample = 20"), "Did you mean 'samples'"),
        (("shard = 8", 'seeds = ["a"]'), "seeds, number 1: expected a whole number"),
        (('geometry = "linf"', 'geometry = "lnf"'), "Did you mean 'linf'"),
        (("[[victims]]", "[victims]"), "at least one"),
        (('name = "fgsm.linf"', 'name = "fgsm.linf"\nparams = { stepz = 1 }'), "no parameter 'stepz'"),
        (('name = "fgsm.linf"', 'name = "pgd.linf"\nparams = { steps = 0 }'), "above 0"),
        (('name = "fgsm.linf"', 'nme = "fgsm.linf"'), "Did you mean 'name'"),
        (("name = ", "name : "), "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan_of(tmp_path, SMALL.replace(*change))
    assert "\n" not in str(caught.value)


def test_the_page_about_suites_shows_one_and_names_every_key() -> None:
    page = (Path(__file__).parents[4] / "docs" / "suites.md").read_text("utf-8")
    (shown,) = re.findall("```toml\n(.*?)```", page, re.DOTALL)
    suite = parse_suite(tomllib.loads(shown), "page")
    assert suite.threats[0].eps == Fraction(8, 255) and suite.threats[1].samples == 25
    for kind in (SuiteText, ThreatEntry, VictimEntry, AttackEntry):
        assert all(re.search(rf"\b{part.name}\b", page) for part in dataclasses.fields(kind)), kind


def test_an_unknown_gradient_estimator_is_named_before_anything_runs(tmp_path: Path) -> None:
    text = SMALL.replace('name = "fgsm.linf"', 'name = "pgd.linf"\nparams = { estimator = "atan(5)" }')
    with pytest.raises(ConfigError, match=r"expected NAME or NAME\(key=value"):
        plan_of(tmp_path, text)


def test_unknown_and_unreadable_suites(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'quick'"):
        read_suite("quik")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_suite(str(tmp_path / "none.toml"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_suite(str(binary))
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 50_000)
    with pytest.raises(ConfigError, match="TOML"):
        read_suite(str(deep))


def test_only_filters(tmp_path: Path) -> None:
    suite = read_suite("quick")
    cells = make_plan(suite, only=[("victim", "lif_*"), ("attack", "pgd*"), ("threat", "linf 1/10")]).cells
    assert cells
    assert {c.victim for c in cells} == {"lif_cnn.digits"}
    assert all(c.attack == "pgd.linf" for c in cells)
    with pytest.raises(ConfigError, match=r"--only victims=.*Did you mean 'victim'"):
        make_plan(suite, only=[("victims", "*")])
    with pytest.raises(ConfigError, match="nothing to measure"):
        make_plan(suite, only=[("victim", "nobody*")])


def test_the_default_run_shows_every_family_that_the_project_names() -> None:
    cells = make_plan(read_suite("quick")).cells
    labels = {cell.label for cell in cells}
    assert {"pgd.linf[estimator=pdsg]", "sda.l0", "scg.image", "autoattack.spikes[level=quick]"} <= labels
    assert any(label.startswith("scg.l0[") for label in labels)
    assert {"quality.fgsm", "quality.ifgsm", "quality.uap", "quality.korhonen"} <= labels
    rows = {(cell.victim, cell.defense) for cell in cells}
    for defense in ("none", "sr", "mppd"):
        assert ("lif_cnn.digits", defense) in rows
    assert {("qcfs_cnn.digits", "none"), ("ttfs_b1.digits", "none"), ("snn_iqa.photopatch", "nt")} <= rows


def test_filters_of_one_field_mean_either_and_of_several_fields_all(tmp_path: Path) -> None:
    text = SMALL.replace('[[victims]]\nname = "lif_cnn.digits"', '[[victims]]\nname = "*_cnn.digits"')
    text += '[[attacks]]\nname = "noise"\n[[attacks]]\nname = "pgd.linf"\n'
    only = [("victim", "lif_cnn.digits"), ("attack", "noise"), ("victim", "qcfs_*"), ("attack", "fgsm.linf")]
    cells = plan_of(tmp_path, text, only=only).cells
    assert {(cell.victim, cell.attack) for cell in cells} == {
        (victim, attack)
        for victim in ("lif_cnn.digits", "qcfs_cnn.digits")
        for attack in ("noise", "fgsm.linf")
    }


def test_planning_loads_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(self: nn.Module, *_: object, **__: object) -> None:
        raise AssertionError(f"planning builds {type(self).__name__}")

    monkeypatch.setattr(nn.Module, "__init__", loads)
    assert make_plan(read_suite("certified"), only=[("attack", "intervals")]).cells
    assert plan_of(tmp_path, SMALL).cells


def test_a_call_is_read_once_for_all_cells_of_a_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get = Registry.get

    def spy(self: Registry, name: str, **params: object) -> object:
        if self.kind == "defenses":
            asked.append(name)
        return get(self, name, **params)

    recipe = dataclasses.replace(registry("victims").get("lif_cnn.digits"), schedule=Schedule(epochs=0))
    train(recipe, registry("defenses").get("mppd(rho=0)"), out=tmp_path / "w", label="mppd(rho=0)")
    text = SMALL.replace('"lif_cnn.digits"', '"lif_cnn.digits"\ndefenses = ["mppd( rho = 0.0 )"]')
    plan = plan_of(tmp_path, text, weights=tmp_path / "w")
    variant = variant_of(plan.cells[0], tmp_path / "w")
    assert (variant.defense, variant.family, variant.rule.spec.name) == ("mppd(rho=0)", "mppd", "mppd")
    assert variant.weights == tmp_path / "w" / "lif_cnn.digits+mppd(rho=0).safetensors"
    monkeypatch.setattr(Registry, "get", spy)
    for cell in plan.cells:
        assert variant_of(cell, tmp_path / "w") is variant
    assert asked == []


@pytest.mark.parametrize("pattern", ["quality.ifgsm[estimator=assg(bound=0.94)]", "*assg(bound=0.94)*"])
def test_a_filter_may_be_a_label_of_the_table_or_a_pattern_with_a_call(pattern: str) -> None:
    cells = make_plan(read_suite("quick"), only=[("attack", pattern)]).cells
    assert {cell.label for cell in cells} == {"quality.ifgsm[estimator=assg(bound=0.94)]"}


@pytest.mark.parametrize(
    ("key", "wrong", "near"),
    [
        ("victim", "lif_cnn.digts", "lif_cnn.digits"),
        ("victim", "lif_cnn.digts@1", "lif_cnn.digits"),
        ("defense", "mpdp(rho=0)", "mppd"),
        ("attack", "pdg.linf", "pgd.linf"),
        ("dataset", "digitz", "digits"),
    ],
)
def test_a_misspelt_name_in_a_filter_is_told_the_nearest(key: str, wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown {key}.*Did you mean '{near}'"):
        make_plan(read_suite("quick"), only=[(key, wrong)])
    with pytest.raises(ConfigError, match=f"unknown {key} 'nobody'"):
        make_plan(read_suite("quick"), only=[(key, "nobody")])


def test_certifiers_count_as_attacks_in_a_filter_and_as_nothing_else() -> None:
    suite = read_suite("certified")
    only = [("attack", "intervals"), ("victim", "if_cnn.digits")]
    assert {cell.attack for cell in make_plan(suite, only=only).cells} == {"intervals"}
    with pytest.raises(ConfigError, match="unknown victim 'intervals'"):
        make_plan(suite, only=[("victim", "intervals")])


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ('["noise"]', {"noise"}),
        ('["!noise"]', {"fgsm.linf", "pgd.linf[steps=3]"}),
        ('["*.linf*", "!fgsm*"]', {"pgd.linf[steps=3]"}),
    ],
)
def test_a_threat_names_or_leaves_out_attacks(tmp_path: Path, patterns: str, left: set[str]) -> None:
    text = SMALL.replace('"1/10"', f'"1/10"\nattacks = {patterns}')
    text += '[[attacks]]\nname = "noise"\n[[attacks]]\nname = "pgd.linf"\nparams = { steps = 3 }\n'
    assert {cell.label for cell in plan_of(tmp_path, text).cells} == left
    with pytest.raises(ConfigError, match=r"threats, number 1, attacks.*Did you mean \['noise'\]"):
        plan_of(tmp_path, SMALL.replace('"1/10"', '"1/10"\nattacks = "noise"'))


def test_missing_weights_say_how_to_train(tmp_path: Path) -> None:
    text = SMALL.replace('name = "lif_cnn.digits"', 'name = "lif_cnn.digits"\nseeds = [77]')
    with pytest.raises(ConfigError, match="robustspike train lif_cnn"):
        plan_of(tmp_path, text)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("mppd", "mppd"),
        ("mppd(rho=0)", "mppd(rho=0)"),
        ("mppd( norm = 'l1', chi=.25, rho=1.0, dlif=False)", "mppd(chi=0.25,dlif=false,norm=l1)"),
        ("mppd(setting=adversarial)", "mppd"),
    ],
)
def test_equal_defenses_are_spelled_alike(written: str, canonical: str) -> None:
    known = registry("defenses")
    assert known.canonical(written) == canonical
    assert known.get(canonical) == known.get(written)


def test_a_defense_with_changed_parameters_is_a_row_of_its_own(tmp_path: Path) -> None:
    recipe = dataclasses.replace(registry("victims").get("lif_cnn.digits"), schedule=Schedule(epochs=0))
    for label in ("mppd", "mppd(rho=0)"):
        train(recipe, registry("defenses").get(label), out=tmp_path / "w", label=label)
    assert (tmp_path / "w" / "lif_cnn.digits+mppd(rho=0).safetensors").is_file()
    text = SMALL.replace('"lif_cnn.digits"', '"lif_cnn.digits"\ndefenses = ["mppd", "mppd( rho = 0.0 )"]')
    plan = plan_of(tmp_path, text, weights=tmp_path / "w", samples=4)
    assert [cell.defense for cell in plan.cells] == ["mppd", "mppd(rho=0)"]
    settings = Settings(tmp_path / "out", weights=tmp_path / "w")
    records = run(plan, settings)
    assert [r.parameters["defense"]["rho"] for r in records] == [1.0, 0]
    assert len({r.key for r in records}) == 2
    (section,) = build(records)
    assert set(section.frame["defense"]) == {"mppd", "mppd(rho=0)"}
    passes = {"own": 0, "plain": 2 * 20 * 1048}  # no epochs here; 20 of 1048 digits there, both ways
    assert all(record.parameters["declared"]["training_passes"] == passes for record in records)
    places = sorted((tmp_path / "out" / "records").iterdir())
    assert [verify(place, settings, rerun=True).problems for place in places] == [(), ()]
    with pytest.raises(ConfigError, match=r"--defense 'mppd\(rho=2\)'"):
        load_victim("lif_cnn.digits", defense="mppd(rho=2)", weights=tmp_path / "w")
    for kind in ("json", "safetensors"):
        (tmp_path / "w" / f"lif_cnn.digits+mppd.{kind}").rename(
            tmp_path / "w" / f"lif_cnn.digits+mppd(rho=2).{kind}"
        )
    with pytest.raises(ArtefactError, match="certificate says rho"):
        load_victim("lif_cnn.digits", defense="mppd(rho=2)", weights=tmp_path / "w")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    import importlib.resources
    import shutil

    shipped = Path(str(importlib.resources.files("robustspike.victims"))) / "weights"
    for suffix in ("safetensors", "json"):
        shutil.copy(shipped / f"lif_cnn.digits.{suffix}", tmp_path)
    weights = tmp_path / "lif_cnn.digits.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    (cell,) = plan_of(tmp_path, SMALL).cells
    with pytest.raises(ArtefactError, match="sha256"):
        identity(cell, weights=tmp_path, root=None, device="cpu")


def test_the_key_names_the_experiment(tmp_path: Path) -> None:
    def key(text: str) -> str:
        return identity(plan_of(tmp_path, text).cells[0], weights=None, root=None, device="cpu")[0]

    base = key(SMALL)
    assert key(SMALL.replace('name = "small"', 'name = "other"')) == base
    for old, new in (
        ("1/10", "1/11"),
        ("samples = 20", "samples = 21"),
        ("shard = 8", "shard = 9"),
        ("shard = 8", "shard = 8\nseeds = [1]"),
        ('"fgsm.linf"', '"fgsm.linf"\nparams = { loss = "margin" }'),
        ('"lif_cnn.digits"', '"qcfs_cnn.digits"'),
        ('"lif_cnn.digits"', '"lif_cnn.digits"\ndefenses = ["sr"]'),
    ):
        assert key(SMALL.replace(old, new)) != base, new


@pytest.mark.parametrize(
    ("kind", "name", "params", "message"),
    [
        ("attacks", "pgd.linf", {"steps": "abc"}, "'steps': expected a whole number, got 'abc'"),
        ("attacks", "pgd.linf", {"steps": 2.5}, "'steps': expected a whole number, got 2.5"),
        ("attacks", "pgd.linf", {"step": "1/4"}, "'step': expected a number"),
        ("attacks", "pgd.linf", {"random_start": 3}, "'random_start': expected true or false, got 3"),
        ("attacks", "autoattack.snn", {"level": "qick"}, "Did you mean 'quick'"),
        ("attacks", "quality.perceptual", {"lambdas": 3}, "Did you mean [3]?"),
        ("victims", "lif_cnn.digits", {"widths": (3, "a")}, "number 2: expected a whole number or"),
        ("victims", "lif_cnn.digits", {"schedule": 3}, "expected a table such as { epochs = ... }"),
        (
            "victims",
            "lif_cnn.digits",
            {"schedule": {"epoch": 3}},
            "unknown key 'epoch'. Did you mean 'epochs'?",
        ),
        (
            "victims",
            "lif_cnn.digits",
            {"schedule": {"epochs": "a"}},
            "'epochs': expected a whole number, got 'a'",
        ),
    ],
)
def test_parameters_of_a_wrong_type_are_one_clear_line(
    kind: str, name: str, params: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'") as refused:
        registry(kind).get(name, **params)
    assert message in str(refused.value)


def test_parameters_may_be_whole_numbers_lists_and_tables() -> None:
    assert registry("attacks").get("pgd.linf", step=1).step == 1
    assert registry("attacks").get("quality.perceptual", lambdas=[1, 2.5]).lambdas == (1, 2.5)
    recipe = registry("victims").get("lif_cnn.digits")
    shorter = registry("victims").get("lif_cnn.digits", schedule={"epochs": 3})
    assert shorter == dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, epochs=3))
