"""Networks of other libraries as their users write them, through the one door."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import adapt
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import evaluate
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.bench.training.network import without_broken_torchvision

X = registry("datasets").get("digits").load("test").x[:6]


def seeded(module: nn.Module, gain: float) -> nn.Module:
    rng = generator("foreign")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, gain / parameter[0].numel() ** 0.5, generator=rng)
    return module


def norse_cell() -> nn.Module:
    norse = pytest.importorskip("norse.torch")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.cell, self.d = nn.Linear(64, 48), norse.LIFCell(), nn.Linear(48, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state, out = None, 0.0
            for _ in range(8):
                z, state = self.cell(20 * self.a(x.flatten(1)), state)
                out = out + self.d(z)
            return out / 8

    return seeded(Net(), 3.0)


def norse_sequence() -> nn.Module:
    norse = pytest.importorskip("norse.torch")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.lif, self.d = nn.Linear(64, 48), norse.LIF(), nn.Linear(48, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, N, 1, 8, 8] -> [T, N, 10]
            z, _ = self.lif(20 * self.a(x.flatten(2)))
            return self.d(z)

    return seeded(Net(), 3.0)


def sinabs_sequence() -> nn.Module:
    layers = pytest.importorskip("sinabs.layers")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.iaf = nn.Linear(64, 48), layers.IAF()
            self.b, self.lif, self.d = nn.Linear(48, 48), layers.LIF(tau_mem=10.0), nn.Linear(48, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # sinabs has time second
            h = self.a(x.flatten(1))[:, None].repeat(1, 6, 1)
            return self.d(self.lif(4 * self.b(self.iaf(h)))).mean(1)

    return seeded(Net(), 3.0)


def snntorch_hidden() -> nn.Module:
    snn = pytest.importorskip("snntorch")
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 48),
        snn.Leaky(beta=0.8, init_hidden=True),
        nn.Linear(48, 10),
        snn.Leaky(beta=0.8, init_hidden=True),
    )
    return seeded(net, 3.0)


@pytest.mark.parametrize(
    ("make", "steps", "time", "layers"),
    [
        (norse_cell, 8, "inside", 1),
        (norse_sequence, 8, "repeat", 1),
        (sinabs_sequence, 6, "inside", 2),
        (snntorch_hidden, 4, "loop", 2),
    ],
)
def test_a_net_of_another_library_is_served_in_one_line(
    make: Callable[[], nn.Module], steps: int, time: str, layers: int
) -> None:
    victim = adapt(make(), name="theirs", shape=(1, 8, 8), classes=10, steps=steps, time=time)  # type: ignore[arg-type]
    assert len(victim.neurons) == layers and not any(n.refusal for n in victim.neurons)
    serves_all(victim, X)


def serves_all(victim: ModuleVictim, x: torch.Tensor, attacked: int = 3) -> None:
    with torch.no_grad():
        expected = victim.logits(x)
    y = expected.argmax(dim=1)
    served = 0
    for name in ("native", "atan", "triangle(gamma=0.3)", "pdsg", "assg", "straight_through", "hart", "rga"):
        estimator = registry("estimators").get(name)
        if estimator.fits(victim.module, victim.neurons) is not None:
            continue
        out = victim.loss_and_grad(x, y, cross_entropy, estimator)
        assert torch.equal(out.logits, expected), name
        served += 1
    assert served >= 6
    quick = registry("attacks").get("autoattack.snn", level="quick")
    result = evaluate(victim, quick, x[:attacked], y[:attacked], eps="1/20")
    assert result.errors == 0, [shard.errors for shard in result.shards]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spiking_resnet18", "sew_resnet18", "spiking_vgg11_bn", "spikformer_ti"])
def test_a_network_of_spikingjellys_zoo_is_served_in_one_line(name: str) -> None:
    without_broken_torchvision()
    victim = adapt(zoo(name), name=name, shape=(3, 32, 32), classes=10, steps=4, time="auto")
    assert victim.neurons and not any(n.refusal for n in victim.neurons)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    serves_all(victim, x, attacked=1)


def zoo(name: str) -> nn.Module:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate
    from spikingjelly.activation_based.model import sew_resnet
    from spikingjelly.activation_based.model import spikformer
    from spikingjelly.activation_based.model import spiking_resnet
    from spikingjelly.activation_based.model import spiking_vgg

    options = {"spiking_neuron": neuron.IFNode, "surrogate_function": surrogate.ATan(), "num_classes": 10}
    torch.manual_seed(0)
    if name == "spikformer_ti":
        net = spikformer.spikformer_ti(T=4, img_size_h=32, img_size_w=32, num_classes=10)
    elif name == "sew_resnet18":
        net = sew_resnet.sew_resnet18(cnf="ADD", **options)
    elif name == "spiking_resnet18":
        net = spiking_resnet.spiking_resnet18(**options)
    else:
        net = spiking_vgg.spiking_vgg11_bn(**options)
    functional.reset_net(net)
    return net
