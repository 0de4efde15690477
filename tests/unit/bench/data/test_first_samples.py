"""The first samples of a split are those of the whole split, and a run reads no others."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from robustspike.bench.api import Dataset
from robustspike.bench.api import Recording
from robustspike.bench.api import Split
from robustspike.bench.api import registry
from robustspike.bench.data.events.event_sets import NMnist
from robustspike.bench.data.events.event_sets import Sample
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite import loading
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan


def same(one: Split, other: Split) -> bool:
    return one.digest == other.digest and torch.equal(one.ids, other.ids)


def n_mnist(root: Path, per_class: int = 6) -> None:
    """Write recordings of a few events each, as N-MNIST has them: x, y, polarity and time in 5 bytes."""
    rng = np.random.default_rng(0)
    for part in ("Train", "Test"):
        for digit in range(10):
            folder = root / part / str(digit)
            folder.mkdir(parents=True)
            for place in range(per_class):
                t = np.sort(rng.integers(0, 300_000, 40))
                x, y, p = rng.integers(0, 34, 40), rng.integers(0, 34, 40), rng.integers(0, 2, 40)
                table = np.stack([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255], axis=1)
                (folder / f"{place * 10 + digit + 1:05d}.bin").write_bytes(table.astype(np.uint8).tobytes())


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes())


def mnist(root: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(rng.integers(0, 256, (60, 28, 28))))
        (root / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(60) % 10))


def cifar(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        records = rng.integers(0, 256, (60, 3073))
        records[:, 0] = np.arange(60) % 10
        (root / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())


WRITERS = {"mnist": mnist, "fashion_mnist": mnist, "cifar10": cifar, "nmnist": n_mnist}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("name", ["digits", "digits_events", "digits_events_t8", "photopatch_iqa", *WRITERS])
def test_first_and_size_agree_with_the_whole_split(name: str, split: str, tmp_path: Path) -> None:
    if name in WRITERS:
        WRITERS[name](tmp_path)
    data: Dataset = registry("datasets").get(name)
    whole = data.load(split, root=tmp_path)  # type: ignore[arg-type]
    assert data.size(split, root=tmp_path) == len(whole)  # type: ignore[arg-type]
    for n in (1, 3, len(whole) + 5):
        assert same(data.first(split, n, root=tmp_path), whole[:n])  # type: ignore[arg-type]


class Plain(Dataset):
    """What a third party writes: load() and nothing else."""

    def load(self, split: str, *, root: Path | None = None) -> Split:  # type: ignore[override]
        return Split(torch.arange(6.0)[:, None], torch.zeros(6, dtype=torch.int64), torch.arange(6))


def test_a_data_set_that_only_loads_has_first_samples_and_a_size() -> None:
    assert Plain().size("test") == 6 and same(Plain().first("test", 2), Plain().load("test")[:2])


SUITE = """
name = "few"
samples = 5
[[threats]]
domain = "spikes"
geometry = "l0"
eps = "4"
[[victims]]
name = "lif_cnn.nmnist"
[[attacks]]
name = "flip.random"
"""


def test_a_run_reads_the_samples_that_it_measures_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_mnist(tmp_path)
    (tmp_path / "s.toml").write_text(SUITE)
    read: set[Path] = set()
    own = NMnist.read

    def spy(self: NMnist, sample: Sample) -> Recording:
        read.add(sample.path)
        return own(self, sample)

    monkeypatch.setattr(NMnist, "read", spy)
    loading.first_samples.cache_clear()
    plan = make_plan(read_suite(str(tmp_path / "s.toml")), root=tmp_path)
    assert not read
    (record,) = run(plan, Settings(out=tmp_path / "out", root=tmp_path))
    assert len(record.rows) == 5 and len(read) == 5
