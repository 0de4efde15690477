"""The known traps of spiking victims, each held by a test (methods/victims.md, section 11).

Traps whose test lives elsewhere: neurons without a graph in evaluation mode and normalisation outside
the model (test_adapters), adaptive event bins (test_events_files), Poisson noise by sample and quantised
inputs (test_zoo_timing), how operations are billed (test_energy).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import find_neurons
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.training import fit as training
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import read_certificate

TEST = registry("datasets").get("digits").load("test")


def shipped() -> Iterator[str]:
    for name in registry("victims").names("*.digits"):
        if find_weights(registry("victims").get(name), "none", 0, None) is not None:
            yield name


@pytest.mark.parametrize("name", sorted(shipped()))
def test_most_samples_have_an_input_gradient_in_evaluation_mode(name: str) -> None:
    victim = load_victim(name)
    assert not any(m.training for m in victim.module.modules())
    part = TEST[:64]
    noise = None
    if victim.spec.stochastic:
        from robustspike.bench.api import RowStreams

        noise = RowStreams.derive(part.ids, "gradient")
    native = registry("estimators").get("native")
    found = victim.loss_and_grad(part.x, part.y, cross_entropy, native, noise=noise)
    alive = (found.grad.flatten(1) != 0).any(dim=1)
    assert float(alive.double().mean()) >= 0.95


@pytest.mark.parametrize(
    "name", ["lif_cnn.digits", "qcfs_cnn.digits", "percentile_cnn.digits", "tandem_cnn.digits"]
)
def test_state_of_one_batch_does_not_reach_the_next_whatever_its_size(name: str) -> None:
    victim = load_victim(name)
    alone = victim.logits(TEST.x[:3]).detach()
    victim.logits(TEST.x[50:70])
    assert torch.equal(victim.logits(TEST.x[:3]).detach(), alone)
    with torch.enable_grad():
        x = TEST.x[:3].clone().requires_grad_(True)
        for _ in range(2):  # a leaked state would run backward through a freed graph
            torch.autograd.grad(victim.logits(x).sum(), x)


@pytest.mark.parametrize(
    "name", ["lif_cnn.digits", "qcfs_cnn.digits", "percentile_cnn.digits", "plif_cnn.digits"]
)
def test_a_victim_can_be_copied_after_it_was_attacked(name: str) -> None:
    victim = load_victim(name)
    native = registry("estimators").get("native")
    victim.loss_and_grad(TEST.x[:4], TEST.y[:4], cross_entropy, native)
    again = ModuleVictim(copy.deepcopy(victim.module), victim.spec)
    assert torch.equal(again.logits(TEST.x[:4]), victim.logits(TEST.x[:4]))


@pytest.mark.parametrize("name", sorted(shipped()))
def test_no_two_neuron_layers_share_a_surrogate(name: str) -> None:
    neurons = find_neurons(registry("victims").get(name).build(torch.Generator()))
    surrogates = [neuron.module.surrogate_function for neuron in neurons]
    assert len({id(surrogate) for surrogate in surrogates}) == len(surrogates)


def test_a_replaced_firing_rule_is_really_called_where_hooks_on_surrogates_are_not() -> None:
    victim = load_victim("lif_cnn.digits")
    hooked: list[int] = []
    called: list[int] = []
    node = victim.neurons[0]
    handle = node.module.surrogate_function.register_forward_hook(lambda m, i, o: hooked.append(1))
    victim.logits(TEST.x[:2])
    handle.remove()

    class Counting(nn.Module):
        def forward(self, u: torch.Tensor) -> torch.Tensor:
            called.append(1)
            return (u >= 0).to(u.dtype)

    with node.spiking_by(Counting()):
        victim.logits(TEST.x[:2])
    assert hooked == [] and len(called) == victim.spec.steps


def test_pre_fire_potential_is_what_a_rule_sees_and_not_the_stored_sequence() -> None:
    from spikingjelly.activation_based import neuron

    node = neuron.IFNode(step_mode="m", store_v_seq=True)
    seen: list[float] = []

    class Probe(nn.Module):
        def forward(self, u: torch.Tensor) -> torch.Tensor:
            seen.append(float(u + 1.0))
            return (u >= 0).to(u.dtype)

    found = find_neurons(nn.Sequential(node))[0]
    with found.spiking_by(Probe()):
        node(torch.full((3, 1), 0.6))
    assert seen == pytest.approx([0.6, 1.2, 0.6])
    assert node.v_seq.flatten().tolist() == pytest.approx([0.6, 0.0, 0.6])


def test_a_neuron_exactly_on_its_threshold_fires() -> None:
    for name in (
        "lif_cnn.digits",
        "plif_cnn.digits",
        "if_cnn.digits",
        "qcfs_cnn.digits",
        "percentile_cnn.digits",
    ):
        for found in find_neurons(registry("victims").get(name).build(torch.Generator())):
            assert float(found.module.surrogate_function(torch.zeros(()))) == 1.0


def test_conversions_report_what_their_number_depends_on() -> None:
    for name in sorted(shipped()):
        recipe = registry("victims").get(name)
        if recipe.family != "converted" or recipe.shares:
            continue
        path = find_weights(recipe, "none", 0, None)
        assert path is not None
        certificate = read_certificate(path)
        assert {"1", "2", "4", "8", "16", "32"} == certificate["measured"]["latency"].keys(), name
        assert "steps" in certificate["recipe"], name
        settings = {"levels", "mode", "scale"} & certificate["recipe"].keys()
        assert settings, name


def test_checkpoints_are_chosen_on_validation_data() -> None:
    parameters = inspect.signature(training.fit).parameters
    assert "validation" in parameters and "test" not in parameters
    splits = [TEST.ids, *(registry("datasets").get("digits").load(s).ids for s in ("train", "validation"))]
    ids = torch.cat(splits)
    assert len(ids.unique()) == len(ids) == 1797


def test_certificates_print_the_convention_that_their_energy_was_billed_by() -> None:
    for name in sorted(shipped()):
        path = find_weights(registry("victims").get(name), "none", 0, None)
        assert path is not None
        energy = read_certificate(path)["energy"]
        assert (energy["mac_pj"], energy["ac_pj"]) == (4.6, 0.9), name
        assert energy["energy_nj"] == pytest.approx(
            (0.9 * energy["ac"] + 4.6 * energy["mac"]) / 1000, abs=1e-3
        )


@pytest.mark.parametrize(
    "name", ["integer_cnn.digits", "poisson_cnn.digits", "phase_cnn.digits", "ttfs_cnn.digits"]
)
def test_victims_with_heuristic_gradients_say_so(name: str) -> None:
    assert "gradient" in load_victim(name).spec.notes[0]
    assert load_victim("lif_cnn.digits").spec.notes == ()
    assert "straight-through" in load_victim("ttfs_b1.digits", grid=8).spec.notes[0]
