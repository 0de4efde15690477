"""CIFAR-10's simulated events: the splits of the images, cached, binary, and true to the raw events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from robustspike.bench.api import ConfigError
from robustspike.bench.api import registry
from robustspike.bench.data.events import cifar_events


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR-10 of 360 training and 40 test images with edges in them."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.Generator(np.random.PCG64(5))
    for name, n in (("data_batch_1", 360), ("test_batch", 40)):
        coarse = rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
        pixels = coarse.repeat(4, axis=2).repeat(4, axis=3).reshape(n, -1)
        labels = (np.arange(n) % 10).astype(np.uint8)[:, None]
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    return folder.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def test_splits_hold_the_images_of_cifar10_as_binary_frames(root: Path) -> None:
    data, still = registry("datasets").get("cifar10_events"), registry("datasets").get("cifar10")
    for name in ("train", "validation", "test"):
        split, images = data.load(name, root=root), still.load(name, root=root)
        assert split.x.shape == (len(images), 8, 2, 32, 32)
        assert torch.equal(split.y, images.y) and torch.equal(split.ids, images.ids)
        assert set(split.x.unique().tolist()) == {0.0, 1.0}
        assert 0.01 < float(split.x.mean()) < 0.5
        assert bool((split.x.sum(dim=(2, 3, 4)) > 0).all())  # every window of every sample sees something


def test_frames_are_those_of_the_raw_events_and_donors_come_one_a_class(root: Path) -> None:
    data = registry("datasets").get("cifar10_events")
    lists = data.events("test", range(5, 9), root=root)
    frames = data.load("test", root=root).x[5:9]
    for events, frame in zip(lists.recordings, frames, strict=True):
        made = lists.frames(events, steps=8, size=(32, 32))
        assert np.array_equal(made, frame.numpy().astype(bool))
    assert sorted(lists.donors) == list(range(10))


def test_another_sensor_sees_the_chosen_scenes_alone_and_as_the_whole_split_would(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = registry("datasets").get("cifar10_events")
    whole = registry("datasets").get("cifar10_events", threshold=0.6, background=2.0)
    expected = whole.recordings("test", root)[5:9]
    again = data.events("test", range(5, 9), root=root).again
    asked: list[int] = []
    simulate = cifar_events._simulate
    monkeypatch.setattr(
        cifar_events, "_simulate", lambda sensor, still: asked.append(len(still)) or simulate(sensor, still)
    )
    assert again is not None
    found = again({"threshold": 0.6, "background": 2.0})
    assert asked == [4]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ConfigError, match=r"treshold cannot be changed.*threshold"):
        again({"treshold": 0.6})


def test_a_second_load_reads_the_cache_and_other_images_are_simulated_afresh(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = registry("datasets").get("cifar10_events")
    first = data.load("test", root=root)
    cifar_events._recordings.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(cifar_events, "_simulate", lambda *_: pytest.fail("simulated again"))
        assert data.load("test", root=root).digest == first.digest
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    content = bytearray((root / "cifar-10-batches-bin" / "test_batch.bin").read_bytes())
    content[1:1025] = bytes(1024)
    (folder / "test_batch.bin").write_bytes(content)
    assert data.load("test", root=tmp_path).digest != first.digest


def test_an_even_image_gives_no_event_not_even_at_its_border() -> None:
    even = np.full((2, 32, 32), 0.7)
    instants = list(cifar_events.scenes(even))
    assert len(instants) == 31 and instants[0].shape == (2, 32, 32)
    assert all(np.allclose(instant, instants[0]) for instant in instants)


def test_settings_are_checked() -> None:
    for wrong in ({"steps": 7}, {"threshold": 0.0}, {"background": -1.0}):
        with pytest.raises(ConfigError):
            registry("datasets").get("cifar10_events", **wrong)
    assert registry("datasets").get("cifar10_events", steps=4).shape == (4, 2, 32, 32)
