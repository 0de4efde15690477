"""Code written for SpikingJelly before 2.0, as its authors left it."""

from __future__ import annotations

import torch
from torch import nn

from robustspike.bench.api import adapt
from robustspike.bench.api import legacy_spikingjelly
from robustspike.bench.api import registry

X = registry("datasets").get("digits").load("test").x[:6]


def test_nets_in_the_old_spellings_answer_as_the_same_nets_in_the_new_ones() -> None:
    legacy_spikingjelly()
    from spikingjelly.activation_based import layer as now_layer
    from spikingjelly.activation_based import neuron as now_neuron
    from spikingjelly.clock_driven import functional
    from spikingjelly.clock_driven import layer
    from spikingjelly.clock_driven import surrogate
    from spikingjelly.clock_driven.neuron import MultiStepLIFNode
    from spikingjelly.clock_driven.neuron import MultiStepParametricLIFNode

    class Block(MultiStepLIFNode):
        """Spikformer and QCFS repositories subclass it."""

    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3, padding=1)
    fc, out = nn.Linear(4 * 64, 32), nn.Linear(32, 10)
    old = nn.Sequential(
        layer.SeqToANNContainer(conv),
        Block(tau=2.0, detach_reset=True, backend="cupy", surrogate_function=surrogate.ATan()),
        layer.SeqToANNContainer(nn.Flatten(), fc),
        MultiStepParametricLIFNode(init_tau=2.0, backend="cupy"),
        layer.SeqToANNContainer(out),
    )
    new = nn.Sequential(
        now_layer.SeqToANNContainer(conv),
        now_neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m"),
        now_layer.SeqToANNContainer(nn.Flatten(), fc),
        now_neuron.ParametricLIFNode(init_tau=2.0, step_mode="m"),
        now_layer.SeqToANNContainer(out),
    )
    functional.reset_net(old)
    victims = [
        adapt(net, name="old", shape=(1, 8, 8), classes=10, steps=4, time="repeat") for net in (old, new)
    ]
    one, other = (victim.logits(X) for victim in victims)
    assert torch.equal(one, other) and bool(one.any())
    assert len(victims[0].neurons) == 2


def test_a_backend_is_taken_and_does_nothing() -> None:
    legacy_spikingjelly()
    from spikingjelly.activation_based import neuron

    node = neuron.LIFNode(tau=2.0, step_mode="m", backend="cupy")
    assert node.step_mode == "m"


def test_asking_twice_changes_nothing() -> None:
    import sys

    legacy_spikingjelly()
    before = sys.modules["spikingjelly.clock_driven"]
    legacy_spikingjelly()
    assert sys.modules["spikingjelly.clock_driven"] is before
