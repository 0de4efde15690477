"""Contact sheets: clean image, attacked image and their amplified difference, scores underneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.contract.specs import Task
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.adversarials import read_adversarials
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.suite.loading import first_samples

if TYPE_CHECKING:
    from PIL import Image

CAPTION = 14
GAP = 6


@dataclass(frozen=True)
class Panel:
    """One attacked image on a sheet.

    Args:
        clean, attacked: images [C, H, W] in [0, 1].
        before, after: the victim's scores on them.
        mos: the image's (pseudo-)MOS.
    """

    clean: Tensor
    attacked: Tensor
    before: float
    after: float
    mos: float


def panels_of(record: CellRecord, folder: Path, *, count: int, root: Path | None = None) -> list[Panel]:
    """Return the first attacked images of a record that its attack broke.

    Args:
        record: a quality record.
        folder: where it lies (the folder that holds adversarials.safetensors).
        count: how many.
        root: folder of published data sets.

    Raises: ConfigError: not a record of images. ArtefactError: unreadable files.
    """
    if record.task is not Task.QUALITY:
        raise ConfigError(f"{folder}: holds no record of a quality model; pictures need one.")
    ids, attacked_images = read_adversarials(folder)
    data = first_samples(record.dataset, record.split, root, record.samples)
    place = {int(i): n for n, i in enumerate(data.ids.tolist())}
    rows = {row.row: row for row in record.rows}
    panels = []
    for number, attacked in list(zip(ids.tolist(), attacked_images, strict=True))[:count]:
        row = rows[number]
        clean = data.x[place[number]]
        panels.append(Panel(clean, attacked, row.clean_score, row.adv_score, row.label))
    return panels


def contact_sheet(
    panels: Sequence[Panel], *, title: str, amplify: float = 0.0, size: int = 128, label: str = "MOS"
) -> np.ndarray:
    """Draw panels as rows of three pictures with their scores: [height, width, 3] uint8.

    Args:
        panels: what to draw, at least one.
        title: line on top.
        amplify: factor of the difference, around middle grey; 0 stretches the largest one to full range.
        label: what the true score is called.
        size: height of a picture in pixels (nearest neighbour, so that single pixels stay visible).
    """
    from PIL import Image
    from PIL import ImageDraw

    if not panels:
        raise ConfigError("contact sheet: there is nothing to draw; no image was broken.")
    largest = max(float((p.attacked - p.clean).abs().max()) for p in panels)
    factor = amplify or (0.5 / largest if largest else 1.0)
    width = round(size * panels[0].clean.shape[2] / panels[0].clean.shape[1])
    columns = 2 if len(panels) > 3 else 1
    lines = -(-len(panels) // columns)
    block = 3 * width + 4 * GAP
    canvas = Image.new(
        "RGB", (columns * block + GAP, CAPTION + GAP + lines * (size + CAPTION + 2 * GAP)), "white"
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 2), f"{title}   (difference x {factor:.0f})", fill="black")
    for number, panel in enumerate(panels):
        left = GAP + (number % columns) * block
        top = CAPTION + GAP + (number // columns) * (size + CAPTION + 2 * GAP)
        difference = 0.5 + factor * (panel.attacked - panel.clean)
        texts = (f"clean {panel.before:.1f}", f"attacked {panel.after:.1f}", f"{label} {panel.mos:.0f}")
        pictures = (panel.clean, panel.attacked, difference)
        for place, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            x = left + place * (width + GAP)
            canvas.paste(_image(picture).resize((width, size), Image.Resampling.NEAREST), (x, top))
            draw.text((x, top + size + 1), text, fill="black")
    return np.asarray(canvas)


def _image(x: Tensor) -> Image.Image:
    from PIL import Image

    colour = x.expand(3, -1, -1) if x.shape[0] == 1 else x
    return Image.fromarray((colour.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
