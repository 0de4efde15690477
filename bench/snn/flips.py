"""Single flips answered from what they change: patches through a causal convolutional SNN.

Flipping one input element changes a 3x3 patch of the first layer's currents, and few spikes of it, often
none. So instead of a whole forward pass per flip, one pass per clean input is kept, and every flip
carries only the patch in which the layers differ from it. In exact arithmetic the logits are those of
the whole pass, bit for bit; a flip that changes no spike of some layer gets the clean input's logits
exactly, in any arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.snn import fast_lif as leaky
from robustspike.bench.snn.layers import chain
from robustspike.bench.snn.neurons import reset

_POINTWISE = ("IFNode", "LIFNode", "ParametricLIFNode")
"""SpikingJelly nodes that treat every element alike, so that a patch can be run alone."""

_ELEMENT = 400
"""Multiplications that take as long as looking up, firing and storing one element of a layer; fitted to the
times of tests/benchmarks/flip_costs.py on one core, as is the next."""

_FLIP = 1_000_000
"""Multiplications that take as long as what a flip costs whatever its patches: gathering, read-out."""

_PATCH_ELEMENTS = 1 << 19
"""Numbers in the largest tensor of one chunk of flips: 2 MB in float32, so that it stays in a cache."""


@dataclass(frozen=True)
class _Patch:
    """What some inputs change in one layer: difference [T, q, h, w, C] at rows and columns of its map."""

    delta: Tensor
    row: Tensor
    column: Tensor
    owner: Tensor
    ident: Tensor

    def keep(self, chosen: Tensor) -> _Patch:
        """Return the patches of the chosen inputs (positions)."""
        return _Patch(
            self.delta.index_select(1, chosen),
            self.row[chosen],
            self.column[chosen],
            self.owner[chosen],
            self.ident[chosen],
        )

    def clipped(self, height: int, width: int) -> _Patch:
        """Return the patch without what lies outside of a map."""
        h, w = self.delta.shape[2:4]
        r = self.row[:, None] + torch.arange(h, device=self.row.device)
        c = self.column[:, None] + torch.arange(w, device=self.row.device)
        inside = ((r >= 0) & (r < height))[:, :, None] & ((c >= 0) & (c < width))[:, None, :]
        return replace(self, delta=self.delta * inside[None, :, :, :, None])

    def cells(self, height: int, width: int) -> Tensor:
        """Return where every cell lies in the flattened maps of all owners: [q, h, w].

        Cells outside of the map stand for their nearest ones inside; `clipped` clears what they hold.
        """
        h, w = self.delta.shape[2:4]
        r = (self.row[:, None] + torch.arange(h, device=self.row.device)).clamp(0, height - 1)[:, :, None]
        c = (self.column[:, None] + torch.arange(w, device=self.row.device)).clamp(0, width - 1)[:, None, :]
        return (self.owner[:, None, None] * height + r) * width + c


@dataclass(frozen=True)
class _Block:
    """A convolution, its normalisation if any, the neurons behind it, and poolings by these sides."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    fire: Any
    sides: tuple[int, ...]


class FlipEngine:
    """Answers changes of single elements of frames for `mean over time of body(x)`.

    Args:
        blocks: what comes before the read-out, in order.
        linear: the read-out.
    """

    skips_earlier_steps = True
    """A flip changes no step before its own; benchmarks turn this off to measure what it saves."""

    def __init__(self, blocks: list[_Block], linear: nn.Linear) -> None:
        self.blocks, self.linear = blocks, linear

    @classmethod
    def of(cls, module: nn.Module, shape: tuple[int, ...]) -> FlipEngine | None:
        """Return the engine of a module with such a body, else None.

        It is what the module declares as `time_mean_body`, or the layers of its forward pass where they are
        found to be a chain (see `chain`). The body is an `nn.Sequential` of multi-step layers, time first:
        blocks of a convolution of stride 1, perhaps a batch normalisation, SpikingJelly neurons, perhaps
        average poolings (adaptive ones where they divide the map); then flatten and one linear layer.
        Anything else, residual connections and maximum poolings among them, is left to whole passes.
        """
        if len(shape) != 4 or module.training:
            return None
        body = module.time_mean_body if hasattr(module, "time_mean_body") else chain(module)
        if not isinstance(body, nn.Sequential):
            return None
        if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
            return None
        layers = _flat(body)
        kinds = [_kind(layer) for layer in layers]
        if kinds[-2:] != ["flatten", "linear"]:
            return None
        blocks: list[_Block] = []
        at, height, width = 0, shape[2], shape[3]
        while at < len(layers) - 2:
            norm = layers[at + 1] if kinds[at + 1] == "norm" else None
            fire = at + 1 + (norm is not None)
            if kinds[at] != "conv" or kinds[fire] != "fire":
                return None
            height, width = _convolved_size(layers[at], height, width)
            sides: list[int] = []
            for layer in layers[fire + 1 :]:
                side = _side(layer, height, width)
                if not side:
                    break
                sides.append(side)
                height, width = height // side, width // side
            blocks.append(_Block(layers[at], norm, layers[fire], tuple(sides)))
            at = fire + 1 + len(sides)
        return cls(blocks, layers[-1]) if blocks else None

    def pays(self, shape: tuple[int, ...], *, inputs: int, flips: int) -> bool:
        """Say whether patches are the cheaper way to answer that many flips of that many inputs [T, C, H, W].

        Patches cost a whole pass over every input first. A flip changes no step before its own, half of
        them on average. Flips that change no spike cost less than is reckoned with here.
        """
        whole, patch = self.work(shape)
        return inputs * whole + flips * patch < flips * whole

    def work(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return what a whole pass over one input and the patches of one flip cost, in multiplications."""
        whole, patch = ((of + _ELEMENT * elements) for of, elements in self.counted(shape))
        return whole, patch + _FLIP

    def counted(self, shape: tuple[int, ...]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return multiplications and elements of a whole pass over one input, and of one flip's patches."""
        steps, channels, height, width = shape
        whole, patch = [0, 0], [0, 0]
        for block, (h, w) in zip(self.blocks, self.patches(), strict=True):
            height, width = _convolved_size(block.conv, height, width)
            kernel, out = math.prod(block.conv.kernel_size), block.conv.out_channels
            up, left = block.conv.kernel_size[0] - 1, block.conv.kernel_size[1] - 1
            for counts, cells, inside in (
                (whole, height * width * out, kernel),
                (patch, (h + up) * (w + left) * out, min(kernel, h * w)),
            ):
                counts[0] += cells * inside * channels
                counts[1] += cells
            for side in block.sides:
                height, width = height // side, width // side
            channels = out
        some = (steps + 1) / 2
        return (steps * whole[0], steps * whole[1]), (some * patch[0], some * patch[1])

    def patches(self) -> list[tuple[int, int]]:
        """Return the height and width of the patch that every block gets of one flipped element."""
        found, h, w = [], 1, 1
        for block in self.blocks:
            found.append((h, w))
            h, w = h + block.conv.kernel_size[0] - 1, w + block.conv.kernel_size[1] - 1
            for side in block.sides:
                h, w = (h + side - 2) // side + 1, (w + side - 2) // side + 1
        return found

    def _numbers(self) -> int:
        """Return the numbers that the largest patch of one flip holds in one step."""
        sizes = []
        for block, (h, w) in zip(self.blocks, self.patches(), strict=True):
            rows, columns = block.conv.kernel_size
            sizes.append((h + rows - 1) * (w + columns - 1) * block.conv.out_channels)
        return max(sizes)

    def answer(self, x: Tensor, owner: Tensor, index: Tensor, change: Tensor) -> Tensor:
        """Return the logits of x[owner] with element `index` changed by `change` [q]: [q, classes]."""
        steps, channels, height, width = x.shape[1:]
        base = _Base(self, x)
        logits = base.logits[owner]
        cell, plane = index % (height * width), index // (height * width)
        order = plane.sort(stable=True).indices  # by time, so that chunks can skip what lies before
        widest = max(block.conv.out_channels for block in self.blocks)
        size = max(1, _PATCH_ELEMENTS // (steps * max(widest * 16, self._numbers())))
        for start in range(0, len(owner), size):
            part = order[start : start + size]
            first = int(plane[part[0]]) // channels if self.skips_earlier_steps else 0
            delta = x.new_zeros(steps - first, len(part), 1, 1, channels)
            here = torch.arange(len(part), device=x.device)
            delta[plane[part] // channels - first, here, 0, 0, plane[part] % channels] = change[part]
            patch = _Patch(delta, cell[part] // width, cell[part] % width, owner[part], part)
            self._carry(patch, base, logits)
        return logits

    def _carry(self, patch: _Patch, base: _Base, logits: Tensor) -> None:
        """Run patches through all blocks and add what they change to the logits."""
        for number, block in enumerate(self.blocks):
            height, width = base.sizes[number]
            patch = base.convolved(number, patch)
            patch = base.fired(number, patch).clipped(height, width)
            moved = patch.delta.flatten(2).any(dim=2).any(dim=0)
            if not bool(moved.all()):
                patch = patch.keep(moved.nonzero().squeeze(1))
            if not len(patch.ident):
                return
            for side in block.sides:
                height, width = height // side, width // side
                patch = _pooled(patch, side).clipped(height, width)
        mean = patch.delta.sum(dim=0) / base.steps
        alone = replace(patch, owner=torch.arange(len(mean), device=mean.device))
        full = mean.new_zeros(len(mean) * height * width, mean.shape[3])
        # Clipped cells are zero: adding them to the cell that stands for them changes nothing.
        full.index_add_(0, alone.cells(height, width).flatten(), mean.reshape(-1, mean.shape[3]))
        weight = self.linear.weight.view(self.linear.out_features, -1, height, width).permute(2, 3, 1, 0)
        logits[patch.ident] += full.view(len(mean), -1) @ weight.reshape(-1, self.linear.out_features)


class _Base:
    """One pass over the clean inputs: logits; currents, spikes and potentials of every block's neurons."""

    def __init__(self, engine: FlipEngine, x: Tensor) -> None:
        self.blocks, self.steps = engine.blocks, x.shape[1]
        self.maps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.sizes: list[tuple[int, int]] = []
        self.matrices: dict[int, Tensor] = {}
        # Channels last throughout: its maps are cells as they are, and it is the faster layout on a CPU.
        h = x.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        for block in engine.blocks:
            h = functional.conv2d(h, block.conv.weight, block.conv.bias, padding=block.conv.padding)
            if block.norm is not None:
                h = _normalised(h, block.norm)
            h = h.permute(0, 2, 3, 1)
            current = h.reshape(self.steps, -1, h.shape[3])
            spikes, potential = _traced(block.fire, current)
            self.maps.append((current, spikes, potential))
            self.sizes.append((h.shape[1], h.shape[2]))
            h = spikes.view_as(h).permute(0, 3, 1, 2)
            for side in block.sides:
                h = functional.avg_pool2d(h, side)
        self.logits = engine.linear(h.flatten(1)).unflatten(0, (self.steps, len(x))).mean(dim=0)

    def convolved(self, number: int, patch: _Patch) -> _Patch:
        """Turn changed inputs of a block into changed currents; patches grow by the kernel."""
        block, (steps, q, h, w, _) = self.blocks[number], patch.delta.shape
        up, left = block.conv.kernel_size[0] - 1, block.conv.kernel_size[1] - 1
        if h * w > math.prod(block.conv.kernel_size):  # as one matrix, most of it would be zeros
            delta = _spread(block, patch.delta.flatten(0, 1)).unflatten(0, (steps, q))
        else:
            if number not in self.matrices:
                self.matrices[number] = _matrix(block, *patch.delta.shape[2:])
            delta = (patch.delta.reshape(steps * q, -1) @ self.matrices[number]).view(
                steps, q, h + up, w + left, -1
            )
        up, left = up - int(block.conv.padding[0]), left - int(block.conv.padding[1])
        return replace(patch, delta=delta, row=patch.row - up, column=patch.column - left)

    def fired(self, number: int, patch: _Patch) -> _Patch:
        """Turn changed currents into changed spikes, from the patch's first step on."""
        current, spikes, potential = self.maps[number]
        cells = patch.cells(*self.sizes[number]).flatten()
        first, shape = self.steps - len(patch.delta), patch.delta.shape
        now = current[first:].index_select(1, cells).view(shape) + patch.delta
        before = potential[first - 1].index_select(0, cells).view(shape[1:]) if first else None
        delta = _spikes(self.blocks[number].fire, now, before)
        return replace(patch, delta=delta.sub_(spikes[first:].index_select(1, cells).view(shape)))


def _spikes(node: Any, current: Tensor, before: Tensor | None) -> Tensor:
    """Run neurons on currents [T, ...] from the potential before them. Both are overwritten."""
    if leaky.is_plain(node):
        leaky.run(node, current, before, out=current)
        return current
    reset(node)
    if before is not None:
        node.v = before
    spikes: Tensor = node(current)
    reset(node)
    return spikes


def _traced(node: Any, current: Tensor) -> tuple[Tensor, Tensor]:
    """Run neurons from cleared state: spikes, and potentials after every step."""
    reset(node)
    if leaky.is_plain(node):
        return leaky.traced(node, current)
    with _recording(node):
        spikes = node(current)
        return spikes, node.v_seq


@contextmanager
def _recording(fire: nn.Module) -> Iterator[None]:
    """Let a node keep its potential after every step for the length of the block."""
    stored = fire.store_v_seq
    fire.store_v_seq = True  # type: ignore[assignment]
    try:
        yield
    finally:
        fire.store_v_seq = stored
        reset(fire)


def _normalised(h: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Normalise maps [T * m, C, H, W] by the running statistics."""
    return functional.batch_norm(
        h, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
    )


def _kind(layer: nn.Module) -> str:
    """Name what a layer does if patches can pass it, else "". A subclass may do anything, so none passes."""
    if getattr(layer, "step_mode", "m") != "m" or "forward" in layer.__dict__:
        return ""
    if not type(layer).__module__.startswith(("spikingjelly.", "torch.nn.modules.")):
        return ""
    name = type(layer).__name__
    if name in _POINTWISE:
        return "fire"
    if isinstance(layer, nn.Conv2d):
        plain = (
            layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
        )
        return "conv" if plain and name == "Conv2d" and isinstance(layer.padding, tuple) else ""
    if isinstance(layer, nn.BatchNorm2d):
        return "norm" if name == "BatchNorm2d" and layer.track_running_stats else ""
    if isinstance(layer, nn.AvgPool2d):
        side, stride, padding = (_pair(v) for v in (layer.kernel_size, layer.stride, layer.padding))
        simple = side == stride and side[0] == side[1] and padding == (0, 0)
        return "pool" if simple and not layer.ceil_mode and layer.divisor_override is None else ""
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return "adaptive" if name == "AdaptiveAvgPool2d" else ""
    kinds = {"Flatten": "flatten", "Linear": "linear", "Dropout": "dropout", "Dropout2d": "dropout"}
    return kinds.get(name, "")


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _matrix(block: _Block, h: int, w: int, channels: int) -> Tensor:
    """Return convolution and normalisation of [h, w, channels] patches as one matrix."""
    weight = block.conv.weight
    unit = torch.eye(h * w * channels, dtype=weight.dtype, device=weight.device)
    return _spread(block, unit.view(-1, h, w, channels)).reshape(len(unit), -1)


def _spread(block: _Block, cells: Tensor) -> Tensor:
    """Convolve and normalise differences [m, h, w, C]; they grow by the kernel less one."""
    rows, columns = block.conv.kernel_size
    grown = functional.conv2d(
        cells.permute(0, 3, 1, 2), block.conv.weight, padding=(rows - 1, columns - 1)
    ).permute(0, 2, 3, 1)
    if block.norm is not None and block.norm.running_var is not None:
        scale = (block.norm.running_var + block.norm.eps).rsqrt()
        grown = grown * (scale if block.norm.weight is None else scale * block.norm.weight)
    return grown


def _flat(body: Any) -> list[Any]:
    """Return the layers of nested sequences in order, without dropout, which does nothing in evaluation."""
    found: list[Any] = []
    for layer in body:
        kind = type(layer)
        jelly = kind.__module__.startswith("spikingjelly.")
        if kind is nn.Sequential or (jelly and kind.__name__ == "SeqToANNContainer"):
            found += _flat(layer)
        elif _kind(layer) != "dropout":
            found.append(layer)
    return found


def _convolved_size(conv: nn.Conv2d, height: int, width: int) -> tuple[int, int]:
    """Return the size of the map behind a convolution of stride 1."""
    (up, left), (rows, columns) = (int(conv.padding[0]), int(conv.padding[1])), conv.kernel_size
    return height + 2 * up - rows + 1, width + 2 * left - columns + 1


def _side(layer: nn.Module, height: int, width: int) -> int:
    """Return the side of the cells that a pooling averages over on a map; 0 for any other layer."""
    kind = _kind(layer)
    if kind == "pool":
        return _pair(layer.kernel_size)[0]  # type: ignore[arg-type]
    if kind != "adaptive" or height != width:
        return 0
    out: Any = layer.output_size
    rows, columns = (height if n is None else n for n in _pair(out))
    return height // rows if rows == columns and height % rows == 0 else 0


def _pooled(patch: _Patch, side: int) -> _Patch:
    """Average patches over the cells of a pooling grid, each at its own offset to the grid."""
    h, w = patch.delta.shape[2:4]

    steps, q, _, _, channels = patch.delta.shape
    tall, wide = (h + side - 2) // side + 1, (w + side - 2) // side + 1
    r = (patch.row % side)[:, None] + torch.arange(h, device=patch.row.device)
    c = (patch.column % side)[:, None] + torch.arange(w, device=patch.row.device)
    first = torch.arange(q, device=patch.row.device)[:, None, None] * tall * side
    place = (first + r[:, :, None]) * wide * side + c[:, None, :]
    grid = patch.delta.new_zeros(steps, q * tall * wide * side * side, channels)
    grid.index_copy_(1, place.flatten(), patch.delta.flatten(1, 3))
    cells = grid.view(steps, q, tall, side, wide, side, channels)
    delta = cells[:, :, :, 0, :, 0].clone()
    for i in range(1, side * side):
        delta += cells[:, :, :, i // side, :, i % side]
    delta /= side * side
    return replace(
        patch,
        delta=delta,
        row=patch.row.div(side, rounding_mode="floor"),
        column=patch.column.div(side, rounding_mode="floor"),
    )
