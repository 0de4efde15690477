"""The name of weights says what they were trained with, and nothing else is put on them unasked."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import ConfigError
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.cli.train import command
from robustspike.bench.contract.calls import parse_call
from robustspike.bench.record.enclosures import WEIGHTS
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.training.train import cpu_model
from robustspike.bench.training.train import train
from robustspike.bench.training.weights import RECORDED
from robustspike.bench.training.weights import against_shipped
from robustspike.bench.training.weights import file_stem
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import made_on
from robustspike.bench.training.weights import read_certificate
from robustspike.bench.training.weights import shipped_weights
from robustspike.bench.training.weights import weights_of
from robustspike.defenses.none import Undefended

SHORT = {"schedule": {"epochs": 1}}


def victim(name: str, **params: Any) -> VictimRecipe:
    found: VictimRecipe = registry("victims").get(name, **params)
    return found


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("lif_cnn.digits", {}, "lif_cnn.digits"),
        ("lif_cnn.digits", {"tau": 2.0}, "lif_cnn.digits"),
        ("lif_cnn.digits", {"tau": 4.0, "steps": 8}, "lif_cnn.digits(steps=8,tau=4)"),
        ("lif_cnn.digits", {"v_reset": None}, "lif_cnn.digits(v_reset=none)"),
        ("lif_cnn.digits(widths=(4, 4))", {}, "lif_cnn.digits(widths=(4,4))"),
        ("lif_cnn.digits", SHORT, "lif_cnn.digits"),
        ("two_phase_cnn.digits", {"tuning": {"epochs": 1}}, "two_phase_cnn.digits(tuning={'epochs':1})"),
        ("lif_cnn.nmnist(dataset=dvs_gesture)", {}, "lif_cnn.nmnist(dataset=dvs_gesture)"),
        ("qcfs_cnn.digits", {"steps": 16}, "qcfs_cnn.digits"),
        ("qcfs_cnn.digits", {"steps": 16, "levels": 8}, "qcfs_cnn.digits(levels=8)"),
        ("ttfs_b1.digits", {"grid": 8}, "ttfs_b1.digits"),
    ],
)
def test_the_name_of_weights_says_what_changed_them(name: str, params: dict[str, Any], expected: str) -> None:
    recipe = victim(name, **params)
    assert weights_of(recipe) == expected
    again, written = parse_call(expected)
    assert weights_of(victim(again, **written)) == expected


def test_a_recipe_of_ones_own_goes_by_its_own_name() -> None:
    assert weights_of(dataclasses.replace(victim("lif_cnn.digits"), name="mine", tau=3.0)) == "mine"


def test_names_that_are_no_file_names_get_a_digest() -> None:
    assert file_stem("lif_cnn.digits+mppd(rho=0)@1") == "lif_cnn.digits+mppd(rho=0)@1"
    wild = ["x(path='a/b')", "x(path='a_b')", "x(s={'epochs':1})", "x(w=" + "1" * 300 + ")"]
    stems = [file_stem(name) for name in wild]
    assert len(set(stems)) == 4 and not any(set(stem) & set('/\\:<>"|?*') for stem in stems)
    assert all(len(stem) < 200 for stem in stems)
    assert all(WEIGHTS.fullmatch(f"weights/{'0' * 64}/{stem}.safetensors") for stem in stems)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("lif_cnn.digits_events", {"tau": 4.0}),
        ("lif_cnn.digits_events(tau=4)", {}),
        ("lif_cnn.digits", {"v_reset": None}),
        ("lif_cnn.digits", {"steps": 8}),
        ("qcfs_cnn_t8.digits", {"scale": 5.0}),
    ],
)
def test_changed_parameters_are_not_put_on_other_weights(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"has no weights\. Train it first: robustspike train '") as told:
        load_victim(name, **params)
    assert "shares=" in str(told.value)


def test_parameters_of_deployment_take_the_same_weights() -> None:
    assert load_victim("qcfs_cnn.digits", steps=8).spec.weights == load_victim("qcfs_cnn.digits").spec.weights
    assert load_victim("ttfs_b1.digits", grid=64).spec.weights == load_victim("ttfs_b1.digits").spec.weights
    assert load_victim("qcfs_cnn_t8.digits", steps=2).spec.weights


def test_other_weights_are_taken_when_they_are_named_and_the_notes_say_so() -> None:
    changed = load_victim("lif_cnn.digits_events", tau=4.0, shares="lif_cnn.digits_events")
    assert changed.spec.notes == (
        "on the weights of 'lif_cnn.digits_events', trained with tau = 2.0 instead of 4.0",
    )
    assert changed.spec.weights == load_victim("lif_cnn.digits_events").spec.weights
    assert load_victim("early_exit_cnn.digits").spec.notes == load_victim("first_spike_cnn.digits").spec.notes


def test_shipped_weights_agree_with_their_recipes() -> None:
    folder = shipped_weights(victim("lif_cnn.digits"))
    for path in folder.glob("*.safetensors"):
        certificate = read_certificate(path)
        load_victim(certificate["victim"], defense=certificate["defense"], seed=certificate["seed"])


def test_weights_under_a_false_name_are_refused(tmp_path: Path) -> None:
    for ending in ("safetensors", "json"):
        source = shipped_weights(victim("lif_cnn.digits")) / f"lif_cnn.digits.{ending}"
        shutil.copy(source, tmp_path / f"lif_cnn.digits(tau=4).{ending}")
    with pytest.raises(ArtefactError, match=r"trained with tau = 2.0, and 'lif_cnn.digits\(tau=4\)' has 4.0"):
        load_victim("lif_cnn.digits", tau=4.0, weights=tmp_path)


TRAIN = ["lif_cnn.digits(widths=(4, 4))", "--set", "schedule={'epochs': 1}", "--set", "tau=3.0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trained")
    done = CliRunner().invoke(command, [*TRAIN, "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_train_writes_the_file_that_it_names_and_it_is_found_again(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    folder, said = trained
    (weights,) = folder.glob("*.safetensors")
    assert f"{weights}  sha256" in said
    assert said.startswith("epoch") or "lif_cnn.digits(tau=3,widths=(4,4)): clean" in said
    params = {"widths": (4, 4), "tau": 3.0}
    mine = load_victim("lif_cnn.digits", weights=folder, **params)
    shipped = load_victim("lif_cnn.digits", weights=folder)
    assert mine.spec.weights != shipped.spec.weights == load_victim("lif_cnn.digits").spec.weights
    (tmp_path / "s.toml").write_text(
        'name = "s"\nsamples = 8\n[[threats]]\ngeometry = "linf"\neps = "1/10"\n[[victims]]\n'
        'name = "lif_cnn.digits"\nparams = { widths = [4, 4], tau = 3.0 }\n'
        '[[attacks]]\nname = "noise"\n'
    )
    plan = make_plan(read_suite(str(tmp_path / "s.toml")), weights=folder)
    (record,) = run(plan, Settings(out=tmp_path / "out", weights=folder))
    assert record.digests["weights"] == mine.spec.weights
    assert record.parameters["victim"]["schedule"]["epochs"] == 1  # of the certificate, not of the recipe


def test_a_schedule_that_is_asked_for_must_be_that_of_the_certificate(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    params = {"widths": (4, 4), "tau": 3.0}
    assert load_victim("lif_cnn.digits", weights=folder, **params, **SHORT)
    with pytest.raises(ArtefactError, match="trained with schedule"):
        load_victim("lif_cnn.digits", **SHORT)


def test_deployment_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="steps says how trained weights are used"):
        train(victim("qcfs_cnn.digits", steps=8), Undefended(), out=tmp_path)


def test_a_certificate_says_what_its_bytes_hang_on(trained: tuple[Path, str]) -> None:
    folder, said = trained
    (weights,) = folder.glob("*.safetensors")
    made = read_certificate(weights)["made_with"]
    assert {
        "cpu",
        "torch",
        "spikingjelly",
        "numpy",
        "python",
        "robustspike",
        "threads",
        "code",
    } <= made.keys()
    assert made["cpu"] == cpu_model() and len(made["code"]) == 32
    assert f"made on: cpu {made['cpu'] or 'not recorded'}, torch {made['torch']}" in said


def test_what_an_older_certificate_does_not_say_is_not_recorded() -> None:
    path = find_weights(victim("lif_cnn.digits"), "none", 0, None)
    assert path is not None
    assert made_on(read_certificate(path)).startswith("torch 2.")
    assert "not recorded: cpu, spikingjelly, numpy" in made_on(read_certificate(path))
    assert made_on({}) == made_on({"made_with": "?"}) == f"not recorded: {', '.join(RECORDED)}"


def test_trained_weights_are_compared_with_the_shipped_ones(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from safetensors.torch import save_file

    recipe = victim("lif_cnn.digits")
    source = shipped_weights(recipe) / "lif_cnn.digits.safetensors"
    mine = tmp_path / source.name
    shutil.copy(source, mine)
    assert against_shipped(recipe, mine) == "the shipped weights: the same bytes"
    tensors = load_file(source)
    tensors["body.4.weight"][0, 0, 0, 0] += 0.25
    save_file(tensors, mine)
    told = against_shipped(recipe, mine)
    assert told is not None and "differ by up to 0.25 (body.4.weight); those were made on: torch" in told
    assert against_shipped(recipe, tmp_path / "lif_cnn.digits(tau=4).safetensors") is None
    assert json.loads(source.with_suffix(".json").read_text())["victim"] == "lif_cnn.digits"
