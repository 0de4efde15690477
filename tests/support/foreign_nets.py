"""Small spiking networks as people write them, none of them for this harness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import nn

STEPS = 4


class Triangle(torch.autograd.Function):
    """A step of a difference, with a second argument, as in TET and SNN-RAT."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.gamma = gamma
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * ((ctx.gamma - u.abs()).clamp(min=0) / ctx.gamma**2), None


class BuiltIn(torch.autograd.Function):
    """A step at a number."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: float) -> Tensor:
        return (v > threshold).to(v)


class HandedOver(torch.autograd.Function):
    """A step at another tensor."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: Tensor) -> Tensor:
        return (v - threshold >= 0).to(v)


class Staircase(torch.autograd.Function):
    """Several spikes a step, as in sinabs."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: float) -> Tensor:
        return (v > 0) * torch.div(v, threshold, rounding_mode="trunc")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        return u.clamp(min=0)


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        return u.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        return (torch.rand_like(u) < u.sigmoid()).to(u)


class Body(nn.Module):
    """Two hidden layers of 64 and a read-out, the same weights in every network."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.a, self.b, self.d = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        with torch.no_grad():
            for layer, gain in ((self.a, 4.0), (self.b, 3.0), (self.d, 1.0)):
                layer.weight.normal_(0, gain / 8, generator=rng)
                layer.bias.normal_(0, 0.1, generator=rng)


class Cell(nn.Module):
    """Unrolls time over one axis of its input."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.act = Triangle.apply

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out = []
        for current in x.unbind(self.axis):
            v = 0.5 * v + current
            s = self.act(v - 1.0, 1.0)
            v = v * (1 - s)
            out.append(s)
        return torch.stack(out, dim=self.axis)


class TimeFirst(Body):
    """Cells on [T, N, F]."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.e = Cell(0), Cell(0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1)).expand(STEPS, -1, -1)
        return self.d(self.e(self.b(self.c(h)))).mean(0)


class BatchFirst(Body):
    """Cells on [N, T, F], as in TET."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.e = Cell(1), Cell(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1))[:, None].expand(-1, STEPS, -1)
        return self.d(self.e(self.b(self.c(h)))).mean(1)


class Merged(Cell):
    """Cells on [T N, F], as in SNN-RAT."""

    def __init__(self) -> None:
        super().__init__(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(0, (STEPS, -1))).flatten(0, 1)


class MergedTime(Body):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.e = Merged(), Merged()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1)).repeat(STEPS, 1)
        return self.d(self.e(self.b(self.c(h)))).unflatten(0, (STEPS, -1)).mean(0)


class OneStep(nn.Module):
    """A cell that takes and returns its state."""

    def forward(self, current: Tensor, v: Tensor | float) -> tuple[Tensor, Tensor]:
        v = 0.5 * v + current
        s = Triangle.apply(v - 1.0, 1.0)
        return s, v * (1 - s)


class StepByStep(Body):
    """Cells that the network calls once a step, (spikes, membrane) handed round."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.e = OneStep(), OneStep()

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        w: Any = 0.0
        out: Any = 0.0
        for _ in range(STEPS):
            s, v = self.c(self.a(x.flatten(1)), v)
            z, w = self.e(self.b(s), w)
            out = out + self.d(z)
        return out / STEPS


class WrittenOut(Body):
    """Neurons in the lines of the network's own forward."""

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        w: Any = 0.0
        out: Any = 0.0
        for _ in range(STEPS):
            v = 0.5 * v + self.a(x.flatten(1))
            s = Triangle.apply(v - 1.0, 1.0)
            v = v * (1 - s)
            w = 0.5 * w + self.b(s)
            z = Triangle.apply(w - 1.0, 1.0)
            w = w * (1 - z)
            out = out + self.d(z)
        return out / STEPS


class LayersInALoop(Body):
    """The same lines of code make the spikes of all layers."""

    def forward(self, x: Tensor) -> Tensor:
        v: list[Any] = [0.0, 0.0]
        out: Any = 0.0
        for _ in range(STEPS):
            h = x.flatten(1)
            for i, layer in enumerate((self.a, self.b)):
                v[i] = 0.5 * v[i] + layer(h)
                h = Triangle.apply(v[i] - 1.0, 1.0)
                v[i] = v[i] * (1 - h)
            out = out + self.d(h)
        return out / STEPS


class SeveralSpikes(Body):
    """Staircase neurons, reset by subtraction."""

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out: Any = 0.0
        for _ in range(STEPS):
            v = v + self.a(x.flatten(1))
            s = Staircase.apply(v, 1.0)
            v = v - s
            out = out + self.d(self.b(s))
        return out / STEPS


class Layered(Body):
    """The network of `TimeFirst` with given layers of neurons on [T, N, F]."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.c, self.e = make(), make()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1)).expand(STEPS, -1, -1)
        return self.d(self.e(self.b(self.c(h)))).mean(0)


class Renamed(nn.Module):
    """The equations of a SpikingJelly LIF node in a class that nobody knows."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.spike = node.surrogate_function
        self.tau_m, self.decays = node.tau, node.decay_input
        self.bar, self.floor, self.cut = node.v_threshold, node.v_reset, node.detach_reset

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for i in x:
            h = v + (i - v) / self.tau_m if self.decays else v - v / self.tau_m + i
            s = self.spike(h - self.bar)
            back = s.detach() if self.cut else s
            v = h - back * self.bar if self.floor is None else (1.0 - back) * h + self.floor * back
            out.append(s)
        return torch.stack(out)


class StraightThrough(Body):
    """Spikes by (s - p).detach() + p, without a Function."""

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out: Any = 0.0
        for _ in range(STEPS):
            v = 0.5 * v + self.a(x.flatten(1))
            p = torch.sigmoid(4 * (v - 1))
            s = ((v >= 1).to(v) - p).detach() + p
            v = v * (1 - s)
            out = out + self.d(self.b(s))
        return out / STEPS


class PairOfOutputs(torch.autograd.Function):
    """A whole neuron in one Function: spikes and potential."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.5 * v + current
        s = (h >= 1).to(h)
        ctx.save_for_backward(h)
        return s, h * (1 - s)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, to_v: Tensor) -> tuple[Tensor, Tensor]:
        (h,) = ctx.saved_tensors
        through = grad * (1 - (h - 1).abs()).clamp(min=0)
        return through, 0.5 * through


class WholeNeuron(Body):
    def forward(self, x: Tensor) -> Tensor:
        current = self.a(x.flatten(1))
        v, out = torch.zeros_like(current), torch.zeros(len(x), 10)
        for _ in range(STEPS):
            s, v = PairOfOutputs.apply(current, v)
            out = out + self.d(self.b(s))
        return out / STEPS


class CodedInput(Body):
    """A rate code of the pixels with a straight-through gradient, then a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.c = Cell(0)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        ramp = (torch.arange(STEPS, dtype=x.dtype).view(-1, 1, 1) + 0.5) / STEPS
        code = x + ((x > ramp).to(x) - x).detach()
        return self.d(self.c(self.a(code))).mean(0)


class Ann(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.b(self.a(x.flatten(1)).relu()).relu())


class RoundedAnn(Body):
    """An ANN with activations rounded to many levels, and a ReLU of its own."""

    def forward(self, x: Tensor) -> Tensor:
        h = OwnReluTrained.apply(self.a(x.flatten(1)))
        return self.d(self.b(Rounding.apply(h * 64) / 64))


class OwnReluTrained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return u.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0] > 0)


class BinaryInput(Ann):
    """An ANN on a picture that is turned into ones and zeros first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + ((x > 0.5).to(x) - x).detach())


WITH_SITES: tuple[Callable[[], nn.Module], ...] = (
    TimeFirst,
    BatchFirst,
    MergedTime,
    StepByStep,
    WrittenOut,
    LayersInALoop,
    SeveralSpikes,
)
LAYERS = {SeveralSpikes: 1}
SEQUENCES = (BatchFirst, MergedTime)
WITHOUT_SITE = (StraightThrough, WholeNeuron)
WITHOUT_SPIKES = (Ann, RoundedAnn, BinaryInput)
