"""Event frames drawn: frame by frame, and all events together in space and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.errors import ConfigError
from robustspike.bench.run.pictures import CAPTION
from robustspike.bench.run.pictures import GAP
from robustspike.bench.run.pictures import Panel
from robustspike.bench.run.pictures import wrapped
from robustspike.bench.run.pictures import write

if TYPE_CHECKING:
    from PIL import Image

Colour = tuple[int, int, int]

ON: Colour = (213, 94, 0)
OFF: Colour = (0, 114, 178)
ADDED: Colour = (0, 158, 115)
REMOVED: Colour = (204, 121, 167)
KEPT: Colour = (190, 190, 190)
"""Colours that stay apart for the colour-blind. Source: Okabe & Ito 2008, Color Universal Design."""

MAX_FRAMES = 10
"""Frames of a strip; of more, neighbours are drawn over each other."""

LEAST_SIZE = 56
SCATTER = 230
LABEL = 52


def event_sheet(panels: Sequence[Panel], *, title: str) -> np.ndarray:
    """Draw panels of event frames [T, C, H, W]: [height, width, 3] uint8.

    A panel is three strips of frames (clean, attacked, what was added and removed) and two drawings of all
    events in space and time: the clean ones by polarity, and what the attack kept, added and removed.

    Args:
        panels: what to draw, at least one; of frames of one shape.
        title: text on top, wrapped to the sheet.
    """
    from PIL import Image
    from PIL import ImageDraw

    if not panels:
        raise ConfigError("event sheet: there is nothing to draw; no input was broken.")
    steps, _, height, width = panels[0].clean.shape
    bins = torch.arange(steps).chunk(min(steps, MAX_FRAMES))
    scale = max(1, -(-LEAST_SIZE // max(height, width)))
    wide, high = width * scale, height * scale
    strip = LABEL + len(bins) * (wide + GAP)
    across = strip + 2 * (SCATTER + GAP) + GAP
    tall = max(3 * (high + GAP), SCATTER * 3 // 4) + CAPTION
    told = wrapped(f"{title}   (orange on, blue off; green added, pink removed, grey kept)", across - 2 * GAP)
    first = len(told) * CAPTION + GAP
    block = tall + 2 * CAPTION + GAP
    canvas = Image.new("RGB", (across, first + len(panels) * block), "white")
    draw = ImageDraw.Draw(canvas)
    write(draw, told)
    for number, panel in enumerate(panels):
        top = first + number * block
        draw.text((GAP, top), _said(panel), fill="black")
        top += CAPTION
        strips = {
            "clean": _polarities(panel.clean),
            "attacked": _polarities(panel.attacked),
            "change": _changes(panel.clean, panel.attacked),
        }
        for line, (name, frames) in enumerate(strips.items()):
            y = top + CAPTION + line * (high + GAP)
            draw.text((GAP, y + high // 2 - CAPTION // 2), name, fill="black")
            for place, members in enumerate(bins):
                x = LABEL + place * (wide + GAP)
                frame = frames[members].amin(dim=0)
                canvas.paste(_image(frame).resize((wide, high), Image.Resampling.NEAREST), (x, y))
                draw.rectangle((x - 1, y - 1, x + wide, y + high), outline=KEPT)
                if not line:
                    last = f"-{int(members[-1])}" if len(members) > 1 else ""
                    draw.text((x, top), f"t {int(members[0])}{last}", fill="black")
        for place, layers in enumerate((_of_polarities(panel.clean), _of_changes(panel))):
            picture = _scatter(layers, panel.clean.shape, (SCATTER, tall))
            canvas.paste(picture, (strip + place * (SCATTER + GAP), top))
    return np.asarray(canvas)


def _said(panel: Panel) -> str:
    change = panel.attacked - panel.clean
    added, removed = float(change.clamp(min=0).sum()), float((-change).clamp(min=0).sum())
    clean, attacked, truth = panel.captions
    return f"{truth};  clean {clean};  attacked {attacked};  {added:g} events added, {removed:g} removed"


def _polarities(frames: Tensor) -> Tensor:
    """Return frames [T, C, H, W] of counts as colours [T, 3, H, W] in [0, 1]: white without an event."""
    largest = float(frames.max()) or 1.0
    shares = _two(frames / largest)
    return _painted([(shares[:, 0], OFF), (shares[:, 1], ON)])


def _changes(clean: Tensor, attacked: Tensor) -> Tensor:
    kept, added, removed = _split(clean, attacked)
    return _painted([(kept, KEPT), (added, ADDED), (removed, REMOVED)])


def _two(frames: Tensor) -> Tensor:
    """Return frames of any number of channels as [T, 2, H, W]: off (nothing where there is one), then on."""
    if frames.shape[1] == 2:
        return frames
    whole = frames.amax(dim=1, keepdim=True)
    return torch.cat([torch.zeros_like(whole), whole], dim=1)


def _split(clean: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where events were kept, added and removed, polarities together: three times [T, H, W]."""
    change = attacked - clean
    parts = (torch.minimum(clean, attacked), change, -change)
    kept, added, removed = ((part > 0).any(dim=1).float() for part in parts)
    return kept, added, removed


def _painted(layers: Sequence[tuple[Tensor, Colour]]) -> Tensor:
    """Paint layers of opacities [T, H, W] over white, the last one on top."""
    shape = layers[0][0].shape
    canvas = torch.ones(shape[0], 3, *shape[1:])
    for opacity, colour in layers:
        ink = torch.tensor(colour)[:, None, None] / 255
        share = opacity[:, None]
        canvas = canvas * (1 - share) + ink * share
    return canvas


def _image(x: Tensor) -> Image.Image:
    from PIL import Image

    return Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


Layer = tuple[Tensor, Colour]
"""Places of events [n, 3] (time, row, column), and their colour."""


def _of_polarities(frames: Tensor) -> list[Layer]:
    two = _two(frames) > 0
    return [(two[:, 0].nonzero(), OFF), (two[:, 1].nonzero(), ON)]


def _of_changes(panel: Panel) -> list[Layer]:
    parts = _split(panel.clean, panel.attacked)
    return [(part.nonzero(), ink) for part, ink in zip(parts, (KEPT, ADDED, REMOVED), strict=True)]


def _scatter(layers: Sequence[Layer], shape: Sequence[int], size: tuple[int, int]) -> Image.Image:
    """Draw events as dots in a box: time to the right, columns into the depth, rows downwards."""
    from PIL import Image
    from PIL import ImageDraw

    steps, _, height, width = shape
    wide, high = size
    margin, depth = 8, 0.32

    def place(t: float, y: float, x: float) -> tuple[float, float]:
        """Return the pixel of a place; t, y and x are shares of their ranges."""
        right = margin + (wide - 2 * margin) * ((1 - depth) * t + depth * x)
        down = margin + (high - 2 * margin - CAPTION) * ((1 - depth) * y + depth * (1 - x))
        return right, down

    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for a in (0.0, 1.0):
        for b in (0.0, 1.0):
            for ends in (((0, a, b), (1, a, b)), ((a, 0, b), (a, 1, b)), ((a, b, 0), (a, b, 1))):
                draw.line([place(*end) for end in ends], fill=(225, 225, 225))
    for places, colour in layers:
        for t, y, x in places.tolist():
            right, down = place(t / max(1, steps - 1), y / max(1, height - 1), x / max(1, width - 1))
            draw.ellipse((right - 1.6, down - 1.6, right + 1.6, down + 1.6), fill=colour)
    draw.text((margin, high - CAPTION), "time ->", fill="black")
    return canvas
