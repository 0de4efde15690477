"""Sheets of attacked inputs: what is drawn where, and what is said where nothing can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result
from PIL import Image

from robustspike.bench.cli.pictures import command
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.record.adversarials import pack_adversarials
from robustspike.bench.record.bundle import pack
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.run import event_pictures
from robustspike.bench.run.event_pictures import event_sheet
from robustspike.bench.run.pictures import Panel
from robustspike.bench.run.pictures import contact_sheet
from robustspike.bench.run.pictures import file_names
from robustspike.bench.run.pictures import panels_of
from robustspike.bench.run.pictures import wrapped
from robustspike.bench.suite.loading import first_samples
from tests.support.records import make_record
from tests.support.records import write

CAPTIONS = ("says 1, margin +2", "says 7, margin -0.5", "true 1, size 0.1")


def attacked(root: Path, dataset: str = "digits", *, inputs: bool = True, **changes: object) -> CellRecord:
    """Write a record whose attack broke samples 2 and 3 of the first five."""
    data = first_samples(dataset, "test", None, 5)
    record = make_record("rrbbw")
    digests = {**record.digests, "data": data.digest}
    record = replace(record, dataset=dataset, digests=digests, **changes)  # type: ignore[arg-type]
    rows = tuple(replace(row, row=int(i)) for row, i in zip(record.rows, data.ids, strict=True))
    record = replace(record, rows=rows, digests={**record.digests, "samples": sha256(encode_samples(rows))})
    folder = write(record, root)
    broken = data[2:4]
    moved = 1 - broken.x if data.x.dim() == 5 else (broken.x + 0.1).clamp(0, 1)
    packed = pack_adversarials(broken.ids, moved, binary=data.x.dim() == 5)
    if inputs:
        (folder / "adversarials.safetensors").write_bytes(packed)
    return record


def draw(*words: object) -> Result:
    return CliRunner().invoke(
        command, [str(word) for word in words], standalone_mode=False, catch_exceptions=False
    )


def test_images_lie_beside_what_the_attack_made_of_them_and_the_difference() -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    moved = (x + 4 / 255).clamp(0, 1)
    sheet = contact_sheet(
        [Panel(a, b, CAPTIONS) for a, b in zip(x, moved, strict=True)], title="test", size=64
    )
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    top, left = 20, 6
    pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[top : top + 64, left : left + 64], pixels)
    difference = sheet[top : top + 64, left + 2 * 70 : left + 2 * 70 + 64]
    assert int(difference.max()) == 255 and int(difference.min()) >= 127
    assert (sheet[top + 64 : top + 78, left : left + 64] < 128).any()  # the caption
    with pytest.raises(ConfigError, match="nothing to draw"):
        contact_sheet([], title="empty")


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(map(int, pixel)) for pixel in picture.reshape(-1, 3)}


def test_event_frames_show_polarities_and_what_was_added_and_removed() -> None:
    clean = torch.zeros(3, 2, 6, 6)
    clean[0, 1, 1, 1] = clean[1, 0, 2, 2] = 1
    moved = clean.clone()
    moved[1, 0, 2, 2] = 0  # removed
    moved[2, 1, 4, 4] = 1  # added
    found = colours(event_sheet([Panel(clean, moved, CAPTIONS)], title="test"))
    every = {getattr(event_pictures, name) for name in ("ON", "OFF", "ADDED", "REMOVED", "KEPT")}
    assert every <= found
    same = colours(event_sheet([Panel(clean, clean, CAPTIONS)], title="test"))
    assert not {event_pictures.ADDED, event_pictures.REMOVED} & same


@pytest.mark.parametrize("shape", [(1, 1, 5, 4), (30, 2, 34, 34), (4, 3, 8, 8)])
def test_frames_of_any_length_channels_and_size_fit_a_sheet(shape: tuple[int, ...]) -> None:
    counts = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0)).float()
    sheet = event_sheet([Panel(counts, counts.flip(0), CAPTIONS)], title="a title " * 40)
    assert sheet.shape[1] < 1300
    with pytest.raises(ConfigError, match="nothing to draw"):
        event_sheet([], title="empty")


def test_long_titles_are_wrapped_and_names_of_files_are_kept_apart() -> None:
    lines = wrapped("one two three four five six seven eight nine ten", 80)
    assert len(lines) > 2 and " ".join(lines) == "one two three four five six seven eight nine ten"
    name = file_names()
    assert [name("net+none pgd linf 1/10"), name("net+none pgd linf 1-10")] == [
        "net+none_pgd_linf_1-10",
        "net+none_pgd_linf_1-10_2",
    ]


def test_panels_say_answers_margins_and_the_truth(tmp_path: Path) -> None:
    record = attacked(tmp_path)
    panels = panels_of(record, tmp_path / "records" / record.key, count=6)
    assert panels[0].captions == (
        "says 2, margin +1",
        "says 2, margin +0.5",
        "true 2, size 0.1",
    )
    assert len(panels) == 2 and float((panels[0].attacked - panels[0].clean).abs().max()) > 0.09


def test_sheets_are_drawn_from_folders_and_bundles(tmp_path: Path) -> None:
    attacked(tmp_path / "images")
    events = replace(make_record().threat, domain=Domain.SPIKES, geometry="l0", eps=None)
    attacked(tmp_path / "events", "digits_events", threat=events)
    pack(tmp_path / "events", tmp_path / "events.zip")
    done = draw(tmp_path / "images", tmp_path / "events.zip", "--out", tmp_path / "sheets")
    paths = done.stdout.splitlines()
    assert done.return_value == 0 and len(paths) == 2
    assert all(Image.open(path).size[0] > 300 for path in paths)


def test_a_record_without_its_inputs_names_the_command_that_stores_them(tmp_path: Path) -> None:
    record = attacked(tmp_path, inputs=False, suite="quick")
    done = draw(tmp_path, "--out", tmp_path / "sheets")
    assert done.return_value == 1 and not (tmp_path / "sheets").exists()
    told = done.stderr
    assert f"robustspike run quick --only victim={record.victim}" in told and "--out with-inputs" in told
    attacked(tmp_path / "mine", inputs=False)
    assert "--no-inputs" in draw(tmp_path / "mine", "--out", tmp_path / "x").stderr


def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path: Path) -> None:
    record = attacked(tmp_path)
    folder = tmp_path / "records" / record.key
    other = replace(record, digests={**record.digests, "data": "0"})
    with pytest.raises(ArtefactError, match="not those that were attacked"):
        panels_of(other, folder, count=1)
    with pytest.raises(ConfigError, match="attacks nothing"):
        panels_of(replace(record, task=Task.CERTIFY), folder, count=1)
    with pytest.raises(ConfigError, match="none of the 1 records passes"):
        draw(tmp_path, "--out", tmp_path / "x", "--attack", "nothing")
    with pytest.raises(ConfigError, match="nothing is a curve here"):
        draw(tmp_path, "--out", tmp_path / "x", "--format", "svg")
