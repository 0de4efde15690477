"""Two-phase conversion: fine-tune under the SNN's own quantisation, then calibrate what is left."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Dataset
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import fit
from robustspike.bench.api import generator
from robustspike.victims.converted.base import ConvertedRecipe
from robustspike.victims.converted.nodes import ConvertedNet
from robustspike.victims.converted.nodes import SpikingActivation
from robustspike.victims.converted.nodes import activations
from robustspike.victims.converted.nodes import floor_through
from robustspike.victims.converted.nodes import latency_curve
from robustspike.victims.layout import blocks


class ClipActivation(SpikingActivation):
    """lambda * clip(z / lambda, 0, 1); with `levels`, rounded to as many steps as the SNN can express.

    While training, each element is rounded with probability 1 - `smooth` only, so that gradients see
    both. Potentials start at half a threshold plus a calibrated shift of each neuron.
    """

    shift: Tensor
    draws_noise = True

    def __init__(self, scale: float, shape: tuple[int, ...], *, levels: int, smooth: float) -> None:
        super().__init__(scale)
        self.levels = levels
        self.smooth = smooth
        self.noise: RowStreams | None = None
        self.register_buffer("shift", torch.zeros(shape))

    def activate(self, x: Tensor, scale: Tensor) -> Tensor:
        z = x / scale
        if self.levels:
            moved = floor_through(z * self.levels + 0.5) / self.levels - z
            if self.training and self.noise is not None:
                moved = moved * (self.noise.uniform(x.shape[1:], dtype=x.dtype) >= self.smooth)
            z = z + moved
        return scale * z.clamp(0, 1)

    def potential(self, like: Tensor) -> Tensor:
        return (self.initial + self.shift).expand_as(like).clone()


def _set_levels(net: ConvertedNet, levels: int) -> None:
    for node in net.nodes:
        assert isinstance(node, ClipActivation)
        node.levels = levels


def calibrate_potentials(net: ConvertedNet, x: Tensor) -> None:
    """Shift each neuron's initial potential by T times its mean missing output, input layer first."""
    wanted = activations(net, x, spiking=False)
    for index, node in enumerate(net.nodes):
        got = activations(net, x, spiking=True)[index]
        missing = (wanted[index] - got).mean(dim=0) * net.steps / node.scale.abs()
        node.shift.add_(missing.detach())  # type: ignore[operator]


def calibrate_weights(net: ConvertedNet, x: Tensor, *, epochs: int, lr: float, batch: int = 128) -> None:
    """Fit each layer's spiking output to the ANN's activation by backpropagation through time.

    The weights (with BatchNorm's affine part) and the initial potentials of one layer at a time, from
    input to output, on the spike trains that the layers before it produce.
    """
    wanted = activations(net, x, spiking=False)
    layers = list(net.ann.children())
    start = 0
    for index, node in enumerate(net.nodes):
        stop = layers.index(node) + 1
        before, segment = nn.Sequential(*layers[:start]), nn.Sequential(*layers[start:stop])
        node.shift.requires_grad_(True)
        tuned = [*(p for p in segment.parameters() if p is not node.scale), node.shift]
        for parameter in tuned:
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(tuned, lr=lr)  # type: ignore[arg-type]
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=generator("two-phase", index, epoch))
            for picked in torch.split(order, batch):
                for earlier in net.nodes[: index + 1]:
                    earlier.steps = net.steps
                repeated = x[picked].unsqueeze(0).expand(net.steps, *x[picked].shape).flatten(0, 1)
                with torch.no_grad():
                    spikes = before(repeated)
                got = segment(spikes).unflatten(0, (net.steps, -1)).mean(dim=0)
                loss = nn.functional.mse_loss(got, wanted[index][picked])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                for earlier in net.nodes:
                    earlier.steps = 0
        node.shift.requires_grad_(False)
        start = stop


@dataclass(frozen=True, kw_only=True)
class TwoPhaseCnn(ConvertedRecipe):
    """A clipped ANN, fine-tuned with the SNN's quantisation, then calibrated layer by layer.

    `schedule` trains the clipped ANN; its weights, then fine-tuned and calibrated for one T, are what
    ships. The best of (fine-tuned, + initial potentials, + layer weights) on validation data is kept.
    At another T the calibration is wrong and costs accuracy.

    Args:
        scale: initial lambda of the trainable clip.
        smooth: probability that an element stays unrounded in fine-tuning.
        tuning: how to fine-tune.
        calibration: training samples for the second phase.
        epochs: passes over them for each layer.
        lr: learning rate of the layer-wise fit.
    """

    steps: int = 2
    scale: float = 5.0
    smooth: float = 0.1
    tuning: Schedule = Schedule(lr=5e-4)
    calibration: int = 1024
    epochs: int = 10
    lr: float = 1e-4

    deployed: ClassVar[tuple[str, ...]] = ()  # its second phase tunes the network for one T
    source: ClassVar[str] = (
        "Wang et al., arXiv:2205.07473. Differs: BatchNorm stays unfolded and is tuned too; AdamW one-cycle; "
        "the layer-wise fit minimises the squared error with an ATan surrogate, for a fixed number of "
        "epochs."
    )

    def build(self, rng: torch.Generator) -> nn.Module:
        _, height, width = self.data().shape
        shapes = iter(
            [
                (channels, height >> depth, width >> depth)
                for depth, block in enumerate(blocks(self.widths))
                for channels in block
            ]
        )
        return ConvertedNet(
            self.source_network(
                lambda: ClipActivation(self.scale, next(shapes), levels=self.steps, smooth=self.smooth), rng
            ),
            self.steps,
        )

    def trainable(self, module: nn.Module) -> nn.Module:
        """Return the ANN, without quantisation: the network before the two phases."""
        assert isinstance(module, ConvertedNet)
        _set_levels(module, 0)
        return module.ann

    def finish(self, module: nn.Module, data: Dataset, *, root: Path | None) -> None:
        """Run both phases on the trained network."""
        assert isinstance(module, ConvertedNet)
        training, validation = data.load("train", root=root), data.load("validation", root=root)
        _set_levels(module, module.steps)

        def terms(step: Step) -> Terms:
            return {"loss": step.loss(step.x, step.y)[0]}

        fit(module.ann, training, validation, schedule=self.tuning, terms=terms, loss_of=self.loss, seed=0)
        device = next(module.parameters()).device
        self._calibrate(module, training.x[: self.calibration].to(device), validation)

    def _calibrate(self, module: ConvertedNet, x: Tensor, validation: Split) -> None:
        kept, best = copy.deepcopy(module.state_dict()), self._right(module, validation)
        calibrate_potentials(module, x)
        for stage in range(2):
            if stage:
                calibrate_weights(module, x, epochs=self.epochs, lr=self.lr)
                calibrate_potentials(module, x)
            right = self._right(module, validation)
            if right >= best:
                kept, best = copy.deepcopy(module.state_dict()), right
        module.load_state_dict(kept)

    def _right(self, module: ConvertedNet, split: Split) -> int:
        return latency_curve(module, split, steps=(self.steps,))[self.steps]


TWO_PHASE_CNN_DIGITS = TwoPhaseCnn(name="two_phase_cnn.digits")
