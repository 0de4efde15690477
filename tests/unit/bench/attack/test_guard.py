"""What an attack leaves behind in a victim, or in torch itself, is its error; what can be put back is."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Neuron
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ShardResult
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap

DATA = registry("datasets").get("digits").load("test")[:16]


class Meddler:
    """An attack that does something to the victim's network in a gradient pass, and may then fail."""

    spec = AttackSpec(name="meddler", geometries=("linf",), source="test")

    def __init__(self, act: Callable[[nn.Module], None], *, fails: bool) -> None:
        self.act, self.fails = act, fails

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        meddler = self

        class Inside(GradientEstimator):
            def fits(self, module: nn.Module, neurons: Sequence[Neuron]) -> str | None:
                return None

            def loss_and_grad(self, module, call, x, loss, *, neurons, memories):  # type: ignore[no-untyped-def]
                meddler.act(module)
                if meddler.fails:
                    raise RuntimeError("slip")
                return super().loss_and_grad(module, call, x, loss, neurons=neurons, memories=memories)

        rows = oracle.active(forwards=1, backwards=1)
        oracle.loss_and_grad(x0[rows], rows, "ce", estimator=Inside())
        return x0


def attacked(victim: ModuleVictim, act: Callable[[nn.Module], None], *, fails: bool) -> ShardResult:
    threat = ThreatModel(eps=Fraction(1, 10))
    return evaluate_shard(victim, Meddler(act, fails=fails), threat, DATA.x, DATA.y, DATA.ids)


def silence(module: nn.Module) -> None:
    module.register_forward_hook(lambda _m, _x, out: out * 0)


@pytest.mark.parametrize("fails", [True, False])
def test_hooks_left_behind_are_an_error_and_are_taken_off(fails: bool) -> None:
    victim = load_victim("lif_cnn.digits")
    before = victim.logits(DATA.x)
    result = attacked(victim, silence, fails=fails)
    assert (result.status == 3).all()
    assert any("meddler: left the victim changed (forward hooks of" in line for line in result.errors)
    assert torch.equal(victim.logits(DATA.x), before)


@pytest.mark.parametrize("fails", [True, False])
def test_changed_weights_are_an_error_even_where_no_version_tells(fails: bool) -> None:
    result = attacked(
        load_victim("lif_cnn.digits"), lambda m: next(m.parameters()).data.mul_(0.5), fails=fails
    )
    assert (result.status == 3).all()
    assert any("parameters or buffers" in line for line in result.errors)


@pytest.mark.parametrize(
    "switch", [lambda: torch.set_grad_enabled(False), lambda: torch.set_default_dtype(torch.float64)]
)
def test_switches_of_torch_are_put_back(switch: Callable[[], object]) -> None:
    result = attacked(load_victim("lif_cnn.digits"), lambda _: switch() and None, fails=True)
    assert result.errors
    assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32


class Remembering(nn.Module):
    """Keeps the potentials of its last batch in a buffer, as spiking layers of other libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 10)
        self.register_buffer("v", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.v = torch.zeros(len(x), 10) + self.inner(x.flatten(1))
        return self.v


def test_the_state_of_the_last_batch_is_no_change() -> None:
    torch.manual_seed(0)
    victim = wrap(Remembering(), name="mine", shape=(1, 8, 8), classes=10)
    result = attacked(victim, lambda _: None, fails=False)
    assert (result.status == 2).any() and result.errors == []


def test_an_attack_that_leaves_all_as_it_was_is_no_error() -> None:
    assert attacked(load_victim("lif_cnn.digits"), lambda _: None, fails=False).errors == []
