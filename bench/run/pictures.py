"""Contact sheets: what an attack made of an input, and what the victim says to both.

Images as they are, as attacked, and their amplified difference; event frames in `event_pictures`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.adversarials import read_adversarials
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.bench.suite.loading import first_samples

if TYPE_CHECKING:
    from PIL import Image
    from PIL import ImageDraw

CAPTION = 14
GAP = 6
COLUMNS = 2
"""Panels of images side by side, where there are more than three."""


@dataclass(frozen=True)
class Panel:
    """One attacked input on a sheet.

    Args:
        clean, attacked: images [C, H, W] in [0, 1], or event frames [T, C, H, W] of counts.
        captions: what is written under the input as it was, as attacked, and under the difference.
    """

    clean: Tensor
    attacked: Tensor
    captions: tuple[str, str, str]


def panels_of(record: CellRecord, folder: Path, *, count: int, root: Path | None = None) -> list[Panel]:
    """Return the first inputs of a record that its attack broke.

    Args:
        record: a record of an attack.
        folder: where it lies (the folder that holds adversarials.safetensors).
        count: how many.
        root: folder of published data sets.

    Raises: ConfigError: a certificate, which attacks nothing, or inputs that are no pictures. ArtefactError:
        unreadable files, or data that is not what was attacked.
    """
    if record.task is Task.CERTIFY:
        raise ConfigError(f"record {record.key}: a certificate attacks nothing, so there is nothing to draw.")
    ids, attacked_inputs = read_adversarials(folder)
    data = first_samples(record.dataset, record.split, root, record.samples)
    if data.digest != record.digests["data"]:
        raise ArtefactError(
            f"record {record.key}: the samples of '{record.dataset}' here are not those that were attacked. "
            "Give --data with the folder that the record was measured on."
        )
    is_frames = record.threat.domain is not Domain.STATIC
    expected = 4 if is_frames else 3
    if data.x.dim() != expected + 1:
        shape = "x".join(map(str, data.x.shape[1:]))
        raise ConfigError(f"record {record.key}: inputs of shape {shape} are no pictures.")
    place = {int(i): n for n, i in enumerate(data.ids.tolist())}
    rows = {row.row: row for row in record.rows}
    panels = []
    for number, attacked in list(zip(ids.tolist(), attacked_inputs, strict=True))[:count]:
        pair = (data.x[place[number]], attacked)
        clean, shown = pair if is_frames else (_scaled(x, record.threat) for x in pair)
        panels.append(Panel(clean, shown, _captions(record, rows[number])))
    return panels


def _scaled(x: Tensor, threat: ThreatModel) -> Tensor:
    low, high = threat.bounds
    return (x - low) / (high - low)


def _captions(record: CellRecord, row: SampleRecord) -> tuple[str, str, str]:
    if record.task is Task.QUALITY:
        label = "pseudo-MOS" if record.dataset.startswith("photopatch") else "MOS"
        return f"clean {row.clean_score:.1f}", f"attacked {row.adv_score:.1f}", f"{label} {row.label:.0f}"
    return (  # a score is the strongest other logit minus the true one
        f"says {row.clean}, margin {-row.clean_score:+.3g}",
        f"says {row.adv}, margin {-row.adv_score:+.3g}",
        f"true {row.label:.0f}, size {row.distance:.3g}",
    )


def sheet_of(record: CellRecord, panels: Sequence[Panel], *, title: str) -> np.ndarray:
    """Draw the panels of a record in the way of its inputs: [height, width, 3] uint8."""
    from robustspike.bench.run.event_pictures import event_sheet

    draw = contact_sheet if record.threat.domain is Domain.STATIC else event_sheet
    return draw(panels, title=title)


def contact_sheet(
    panels: Sequence[Panel], *, title: str, amplify: float = 0.0, size: int = 128
) -> np.ndarray:
    """Draw panels of images as rows of three pictures with their captions: [height, width, 3] uint8.

    Args:
        panels: what to draw, at least one.
        title: text on top, wrapped to the sheet.
        amplify: factor of the difference, around middle grey; 0 stretches the largest one to full range.
        size: height of a picture in pixels (nearest neighbour, so that single pixels stay visible).
    """
    from PIL import Image
    from PIL import ImageDraw

    if not panels:
        raise ConfigError("contact sheet: there is nothing to draw; no image was broken.")
    largest = max(float((p.attacked - p.clean).abs().max()) for p in panels)
    factor = amplify or (0.5 / largest if largest else 1.0)
    width = round(size * panels[0].clean.shape[2] / panels[0].clean.shape[1])
    columns = COLUMNS if len(panels) > 3 else 1
    lines = -(-len(panels) // columns)
    block = 3 * width + 4 * GAP
    across = columns * block + GAP
    told = wrapped(f"{title}   (difference x {factor:.3g})", across - 2 * GAP)
    first = len(told) * CAPTION + GAP
    canvas = Image.new("RGB", (across, first + lines * (size + CAPTION + 2 * GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    write(draw, told)
    for number, panel in enumerate(panels):
        left = GAP + (number % columns) * block
        top = first + (number // columns) * (size + CAPTION + 2 * GAP)
        difference = 0.5 + factor * (panel.attacked - panel.clean)
        pictures = (panel.clean, panel.attacked, difference)
        for place, (picture, text) in enumerate(zip(pictures, panel.captions, strict=True)):
            x = left + place * (width + GAP)
            canvas.paste(_image(picture).resize((width, size), Image.Resampling.NEAREST), (x, top))
            draw.text((x, top + size + 1), text, fill="black")
    return np.asarray(canvas)


def wrapped(text: str, width: int) -> list[str]:
    """Break a text at spaces into lines of at most `width` pixels; a word that is longer stays whole."""
    from PIL import Image
    from PIL import ImageDraw

    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def write(draw: ImageDraw.ImageDraw, lines: Sequence[str]) -> None:
    """Write lines at the top of a sheet."""
    for number, line in enumerate(lines):
        draw.text((GAP, 2 + number * CAPTION), line, fill="black")


def _image(x: Tensor) -> Image.Image:
    from PIL import Image

    colour = x if x.shape[0] == 3 else x.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return Image.fromarray((colour.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def file_names() -> Callable[[str], str]:
    """Return what turns titles into file names without an ending; titles that look alike get numbers."""
    taken: Counter[str] = Counter()

    def name_of(title: str) -> str:
        name = re.sub(r"[^\w+\-.=@()]", "", title.replace(" ", "_").replace("/", "-"))
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}_{taken[name]}"

    return name_of
