"""Every shipped victim: its contract, its certificate, and the accuracy it should reach."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from robustspike.bench.api import RowStreams
from robustspike.bench.api import accuracy
from robustspike.bench.api import check_victim
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.training.weights import read_certificate
from robustspike.bench.training.weights import shipped_weights
from robustspike.bench.training.weights import variant

# Accuracy and its deviation over seeds in percent, as measured for methods/victims.md, section 10
# (there with 1297 training samples; here 1047 train and 250 validate).
EXPECTED = {
    "admm_pruned_cnn.digits": (99.4, 0.4),
    "admm_quant_cnn.digits": (99.0, 0.4),
    "ann_cnn.digits": (99.5, 0.1),
    "causal_exp.digits": (97.2, 0.6),
    "causal_lif2.digits": (96.5, 0.6),
    "causal_lin.digits": (97.1, 0.6),
    "count_cnn.digits": (94.4, 0.4),
    "early_exit_cnn.digits": (91.6, 0.5),  # not in the table: held to ttfs_cnn
    "first_spike_cnn.digits": (91.6, 0.5),
    "fused_cnn.digits": (99.0, 0.5),
    "hybrid_cnn.digits": (98.7, 0.4),  # not in the table: held to lif_cnn, as int8_cnn
    "if_cnn.digits": (98.7, 0.4),
    "int8_cnn.digits": (98.7, 0.4),
    "integer_cnn.digits": (97.3, 0.4),
    "latency_cnn.digits": (90.0, 0.5),  # not in the table: black pixels are silent in this code
    "lif_cnn.digits": (98.7, 0.4),
    "lif_cnn_attached.digits": (98.7, 0.4),
    "lif_cnn_soft.digits": (98.7, 0.4),
    "lif_cnn_t8.digits": (98.9, 0.5),
    "lif_cnn_tet.digits": (98.9, 0.3),
    "maxnorm_cnn.digits": (76.4, 0.5),
    "maxnorm_half_cnn.digits": (99.0, 0.3),
    "nq_cnn.digits": (99.1, 0.4),
    "percentile_cnn.digits": (99.2, 0.3),
    "phase_cnn.digits": (93.4, 0.5),
    "plif_cnn.digits": (98.7, 0.4),
    "poisson_cnn.digits": (96.8, 0.5),
    "qcfs_cnn.digits": (99.2, 0.3),
    "qcfs_cnn_t8.digits": (99.1, 0.1),
    "ratesyn_cnn.digits": (98.4, 0.5),
    "sew_net.digits": (98.0, 0.5),  # not in the table: our own floor
    "tandem_cnn.digits": (98.1, 0.2),
    "ttfs_b1.digits": (97.7, 0.7),
    "ttfs_b1_mapped.digits": (99.4, 0.1),
    "ttfs_cnn.digits": (91.6, 0.5),
    "two_phase_cnn.digits": (98.0, 0.3),
}

WEIGHTS = Path(shipped_weights(registry("victims").get("ann_cnn.digits")))
HARDENED = sorted(p for p in WEIGHTS.glob("*.digits*[+@]*.safetensors"))
ON_CIFAR10 = sorted(p for p in WEIGHTS.glob("*.cifar10*.safetensors"))


def identity(path: Path) -> str:
    return path.name.removesuffix(".safetensors")


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_shipped_victim_keeps_the_contract_and_its_accuracy(name: str) -> None:
    recipe = registry("victims").get(name)
    test = recipe.data().load("test")
    victim = load_victim(name)
    check_victim(victim, test.x)
    with torch.no_grad():
        noise = RowStreams.derive(test.ids, "validation") if victim.spec.stochastic else None
        right = int((victim.logits(test.x, noise=noise).argmax(dim=1) == test.y).sum())
    n = len(test)
    if not recipe.shares:
        stated = read_certificate(shipped_weights(recipe) / f"{name}.safetensors")["test"]
        # A spike that another platform's rounding moves may flip a sample on the boundary.
        assert stated["n"] == n and abs(stated["correct"] - right) <= 2
    percent, deviation = EXPECTED[name]
    binomial = math.sqrt(2 * percent * (100 - percent) / n)  # both numbers come from 500 test samples
    assert 100 * right / n >= percent - 2 * math.hypot(deviation, binomial)


@pytest.mark.parametrize("path", HARDENED, ids=identity)
def test_hardened_variants_load_and_answer_as_their_certificate_says(path: Path) -> None:
    """Loading checks sha256, the network's shape and its answers to fixed inputs."""
    certificate = read_certificate(path)
    name, defense, seed = (certificate[key] for key in ("victim", "defense", "seed"))
    assert path.name == f"{variant(name, defense, seed)}.safetensors"
    victim = load_victim(name, defense=defense, seed=seed)
    test = registry("victims").get(name).data().load("test")
    noise = RowStreams.derive(test.ids, "validation") if victim.spec.stochastic else None
    with torch.no_grad():
        right = int((victim.logits(test.x, noise=noise).argmax(dim=1) == test.y).sum())
    assert certificate["test"]["n"] == len(test)
    assert abs(certificate["test"]["correct"] - right) <= 2  # another platform may flip a boundary sample
    assert right >= 0.9 * len(test)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "percent"),
    [("ann_cnn.mnist", 98.5), ("lif_cnn.mnist", 97.5), ("qcfs_cnn.mnist", 98.0), ("ttfs_b1.mnist", 98.0)],
)
def test_mnist_victims_answer_the_real_test_set(name: str, percent: float, shared_data: Path) -> None:
    victim = load_victim(name)
    test = registry("datasets").get("mnist").load("test", root=shared_data)
    assert len(test) == 10_000
    assert 100 * accuracy(victim.module, test)[0] >= percent


@pytest.mark.parametrize("path", ON_CIFAR10, ids=identity)
def test_cifar10_weights_load_and_say_on_how_many_images_they_were_judged(path: Path) -> None:
    certificate = read_certificate(path)
    victim = load_victim(certificate["victim"], defense=certificate["defense"], seed=certificate["seed"])
    assert victim.spec.classes == 10
    assert certificate["test"]["n"] == 9000  # what is public of the 10,000 without those kept for acceptance


@pytest.mark.slow
@pytest.mark.parametrize("path", ON_CIFAR10, ids=identity)
def test_cifar10_weights_answer_real_images_as_their_certificate_says(path: Path, shared_data: Path) -> None:
    certificate = read_certificate(path)
    victim = load_victim(certificate["victim"], defense=certificate["defense"], seed=certificate["seed"])
    test = registry("victims").get(certificate["victim"]).data().load("test", root=shared_data)
    stated = certificate["test"]["correct"] / certificate["test"]["n"]
    found, n = accuracy(victim.module, test)[0], len(test)
    assert n >= 100 and abs(found - stated) <= 3 * math.sqrt(stated * (1 - stated) / n)


def test_all_shipped_weights_stay_small() -> None:
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert sum(sizes.values()) < 20_000_000, sizes  # up to 15 MB of it for CIFAR-10
