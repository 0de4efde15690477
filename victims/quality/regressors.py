"""No-reference quality regressors: a CNN and a spiking network of the same size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import ClassVar
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import Task
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.bench.api import reset
from robustspike.bench.api import spearman

SCORE_RANGE = (0.0, 100.0)


class LocalNormalisation(nn.Module):
    """(x - local mean) / sqrt(local variance + 0.1^2), channel by channel, over 7x7 windows."""

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (3, 3, 3, 3), mode="reflect")
        mean, square = (_Box7.apply(values) for values in (padded, padded.square()))
        return (x - mean) * torch.rsqrt((square - mean.square()).clamp(min=0) + 0.01)


class _Box7(torch.autograd.Function):
    """7x7 means of the windows that fit; the gradient is the same filter on the padded gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        del ctx
        for axis in (2, 3):  # sums of 7 = 4 + 2 + 1 neighbours
            size = x.shape[axis]
            two = x.narrow(axis, 0, size - 1) + x.narrow(axis, 1, size - 1)
            four = two.narrow(axis, 0, size - 3) + two.narrow(axis, 2, size - 3)
            x = four.narrow(axis, 0, size - 6) + two.narrow(axis, 4, size - 6) + x.narrow(axis, 6, size - 6)
        return x / 49

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        del ctx
        out: Tensor = _Box7.apply(functional.pad(grads[0], (6, 6, 6, 6)))  # type: ignore[no-untyped-call]
        return out


class _LifTraining(torch.autograd.Function):
    """What SpikingJelly's LIF node computes from a cleared state, both ways, in half the time.

    Bit for bit where division by tau is exact (tau = 2), else to rounding.
    A few samples at a time stay in the cache; the node makes a dozen passes over the whole batch per
    step. For training only: gradient estimators find no node to change here.
    """

    CHUNK = 8

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float, slope: float) -> Tensor:
        potential, spikes = torch.empty_like(x), torch.empty_like(x)
        parts = (t.split(_LifTraining.CHUNK, dim=1) for t in (potential, spikes, x))
        for u, s, current in zip(*parts, strict=True):
            left = None
            for step in range(len(x)):
                if left is None:
                    torch.div(current[step], tau, out=u[step])
                else:
                    torch.sub(current[step], left, out=u[step]).div_(tau).add_(left)
                torch.ge(u[step], 1.0, out=s[step])
                left = u[step] * (1 - s[step])
        ctx.save_for_backward(potential, spikes)
        ctx.tau, ctx.slope = tau, slope
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        potential, spikes = ctx.saved_tensors
        out = torch.empty_like(potential)
        parts = (t.split(_LifTraining.CHUNK, dim=1) for t in (potential, spikes, grads[0], out))
        for u, s, above, found in zip(*parts, strict=True):
            later = None
            for step in reversed(range(len(u))):
                g = u[step] - 1
                g.mul_(math.pi / 2 * ctx.slope).square_().add_(1).reciprocal_().mul_(ctx.slope / 2)
                g.mul_(above[step])
                if later is not None:
                    g.addcmul_(later, 1 - s[step])
                torch.div(g, ctx.tau, out=found[step])
                later = g.mul_(1 - 1 / ctx.tau)
        return out, None, None


class Lif(nn.Module):
    """One spiking layer on a time-first sequence [T, N, ...]: SpikingJelly LIF, ATan surrogate."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate

        self.node = neuron.LIFNode(
            tau=float(tau), detach_reset=True, surrogate_function=surrogate.ATan(), step_mode="m"
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            slope = self.node.surrogate_function.alpha
            trained: Tensor = _LifTraining.apply(x, self.node.tau, slope)  # type: ignore[no-untyped-call]
            return trained
        out: Tensor = self.node(x)
        return out


class QualityNet(nn.Module):
    """Local normalisation, four conv-BN-activation blocks, global mean, linear, sigmoid.

    With `steps` above 0 the activations are spiking: the image is shown at every step, and spikes are
    averaged over time and space. The first convolution sees the same image at every step and is
    computed once.

    Shape: x [N, C, H, W] in [0, 1] -> [N, 1] in 0..100, larger is better.
    """

    def __init__(self, widths: tuple[int, ...], *, channels: int, steps: int, tau: float) -> None:
        super().__init__()
        self.steps = steps
        self.normalise = LocalNormalisation()
        inputs = (channels, *widths[:-1])
        strides = [2] * (len(widths) - 1) + [1]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1, bias=False)
            for a, b, s in zip(inputs, widths, strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.acts = nn.ModuleList(Lif(tau) if steps else nn.ReLU() for _ in widths)
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.normalise(x)
        for index, (conv, norm, act) in enumerate(zip(self.convs, self.norms, self.acts, strict=True)):
            h = norm(conv(h))
            if self.steps:
                sequence = (
                    h.expand(self.steps, *h.shape)
                    if index == 0
                    else h.view(self.steps, len(h) // self.steps, *h.shape[1:])
                )
                h = act(sequence).flatten(0, 1)
            else:
                h = act(h)
        h = h.mean(dim=(2, 3))
        if self.steps:
            h = h.view(self.steps, len(x), -1).mean(dim=0)
        return SCORE_RANGE[1] * torch.sigmoid(self.head(h))


@dataclass(frozen=True, kw_only=True)
class ScoreRecipe(VictimRecipe):
    """Base of quality models that are trained on a data set with scores from 0 to 100.

    Args:
        noise: largest deviation of the Gaussian noise that is added in training, in pixel units;
            without it the score follows imperceptible random noise.
        mirror: show every training image in one of its eight mirrored and turned forms, drawn anew each
            time; HaarPSI, the label of photopatch_iqa, is the same for all of them.
    """

    dataset: str = "photopatch_iqa"
    noise: float = 8 / 255
    mirror: bool = True

    family: ClassVar[str] = "quality"
    retrains: ClassVar[bool] = True

    def spec(self) -> VictimSpec:
        return VictimSpec(
            name=self.name,
            shape=self.data().shape,
            classes=1,
            task=Task.QUALITY,
            score_range=SCORE_RANGE,
        )

    def notes(self, certificate: Mapping[str, Any]) -> tuple[str, ...]:
        learned = certificate.get("data", {}).get("name", self.data().name)
        if learned == self.data().name:
            return ()
        return (
            f"trained on {learned}, not on {self.dataset}: robustspike train {self.name} --data DIR makes "
            "weights of its own",
        )

    def augment(self, x: Tensor, rng: torch.Generator) -> Tensor:
        if self.mirror:
            x = mirrored(x, torch.randint(8, (len(x), 1, 1, 1), generator=rng).to(x.device))
        if not self.noise:
            return x
        strength = torch.rand(len(x), 1, 1, 1, generator=rng) * self.noise
        return (x + (strength * torch.randn(x.shape, generator=rng)).to(x)).clamp(0, 1)

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scores = module(x)
        best = SCORE_RANGE[1]
        return functional.mse_loss(scores.squeeze(1) / best, (y / best).to(scores)), scores

    def score(self, module: nn.Module, split: Split) -> tuple[float, float]:
        predicted = predict(module, split.x)
        error = (predicted - split.y).square().mean() / SCORE_RANGE[1] ** 2
        return spearman(predicted.numpy(), split.y.numpy()), float(error)

    def figures(self, module: nn.Module, split: Split) -> dict[str, float]:
        predicted = predict(module, split.x)
        found = {"srocc": round(spearman(predicted.numpy(), split.y.numpy()), 4)}
        images = getattr(self.data(), "images", None)
        if images is not None:
            groups = images(split.ids)
            mine, given = _group_means(predicted, groups), _group_means(split.y, groups)
            found["image_srocc"] = round(spearman(mine, given), 4)
        return found


@dataclass(frozen=True, kw_only=True)
class QualityRegressor(ScoreRecipe):
    """A quality model trained from nothing.

    Args:
        kind: "cnn" (ReLU) or "snn" (LIF).
        widths: channels of the blocks; all but the last halve the resolution.
        steps: time steps T of the spiking network.
        tau: membrane time constant in steps.
    """

    kind: Literal["cnn", "snn"] = "cnn"
    widths: tuple[int, ...] = (16, 32, 64, 64)
    steps: int = 4
    tau: float = 2.0
    schedule: Schedule = Schedule(epochs=10, batch=32, lr=4e-3, keep="last")

    source: ClassVar[str] = (
        "A small regressor of our own; its training defense is Liu et al., CVPR 2024, arXiv:2403.11397. "
        "The last checkpoint is kept: choosing by clean rank correlation undoes gradient regularization."
    )

    def __post_init__(self) -> None:
        if self.kind not in ("cnn", "snn") or self.steps < 1 or len(self.widths) < 2:
            raise ConfigError(
                f"victim '{self.name}': kind must be 'cnn' or 'snn', steps at least 1, widths two or more "
                f"numbers; got '{self.kind}', {self.steps} and {self.widths}."
            )

    def spec(self) -> VictimSpec:
        return dataclasses.replace(super().spec(), steps=self.steps if self.kind == "snn" else 0)

    def build(self, rng: torch.Generator) -> nn.Module:
        net = QualityNet(
            self.widths,
            channels=self.data().shape[0],
            steps=self.steps if self.kind == "snn" else 0,
            tau=self.tau,
        )
        initialise(net, rng)
        return net


def mirrored(x: Tensor, form: Tensor) -> Tensor:
    """Return images in one of their eight forms each; those that are not square are flipped only.

    form: [N, 1, 1, 1], 0..7; its bits flip the columns, flip the rows, and swap them.
    """
    x = torch.where((form & 1).bool(), x.flip(3), x)
    x = torch.where((form & 2).bool(), x.flip(2), x)
    return torch.where((form & 4).bool(), x.transpose(2, 3), x) if x.shape[2] == x.shape[3] else x


def predict(module: nn.Module, x: Tensor, *, batch: int = 128) -> Tensor:
    """Return the scores [N] float64 of a module in evaluation mode."""
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    parts = []
    with torch.no_grad():
        for chunk in x.split(batch):
            reset(module)
            parts.append(module(chunk.to(device)).squeeze(1).double().cpu())
    reset(module)
    module.train(was_training)
    return torch.cat(parts)


def _group_means(values: Tensor, groups: Tensor) -> np.ndarray:
    _, index = torch.unique(groups, return_inverse=True)
    total = torch.zeros(int(index.max()) + 1, dtype=torch.float64).index_add_(0, index, values.double())
    return (total / torch.bincount(index)).numpy()


def on_other_set(kind: Literal["cnn", "snn"], dataset: str) -> QualityRegressor:
    """Return the network for another set: with its own weights where trained, else photopatch_iqa's.

    The network is convolutional with a global mean, so it takes any size. People's scores may depend on
    which way is up: nothing is mirrored.
    """
    return QualityRegressor(
        name=f"{kind}_iqa.{dataset}",
        kind=kind,
        dataset=dataset,
        mirror=False,
        shares=f"{kind}_iqa.photopatch",
    )


CNN_PHOTOPATCH = QualityRegressor(name="cnn_iqa.photopatch")
SNN_PHOTOPATCH = QualityRegressor(name="snn_iqa.photopatch", kind="snn")
CNN_PHOTOPATCH_2 = QualityRegressor(name="cnn_iqa.photopatch_2", dataset="photopatch_iqa_2")
SNN_PHOTOPATCH_2 = QualityRegressor(name="snn_iqa.photopatch_2", kind="snn", dataset="photopatch_iqa_2")
CNN_CSIQ = on_other_set("cnn", "csiq")
CNN_KADID10K = on_other_set("cnn", "kadid10k")
CNN_KONIQ10K = on_other_set("cnn", "koniq10k")
CNN_LIVE = on_other_set("cnn", "live")
CNN_LIVE_CHALLENGE = on_other_set("cnn", "live_challenge")
CNN_PHOTOS = on_other_set("cnn", "photos")
CNN_SPAQ = on_other_set("cnn", "spaq")
CNN_TID2013 = on_other_set("cnn", "tid2013")
SNN_CSIQ = on_other_set("snn", "csiq")
SNN_KADID10K = on_other_set("snn", "kadid10k")
SNN_KONIQ10K = on_other_set("snn", "koniq10k")
SNN_LIVE = on_other_set("snn", "live")
SNN_LIVE_CHALLENGE = on_other_set("snn", "live_challenge")
SNN_PHOTOS = on_other_set("snn", "photos")
SNN_SPAQ = on_other_set("snn", "spaq")
SNN_TID2013 = on_other_set("snn", "tid2013")
