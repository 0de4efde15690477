"""Readers of image files: real files, damaged ones, and ones made to do harm."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import registry
from robustspike.bench.data.images.image_files import read_cifar_binary
from robustspike.bench.data.images.image_files import read_cifar_pickle
from robustspike.bench.data.images.image_files import read_idx

PIXELS = np.arange(3 * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(3, 28, 28)


def idx(data: np.ndarray) -> bytes:
    return bytes([0, 0, 8, data.ndim]) + struct.pack(f">{data.ndim}I", *data.shape) + data.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_idx_round_trip(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(idx(PIXELS)) if packed else idx(PIXELS))
    assert np.array_equal(read_idx(path), PIXELS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x1f\x8b",
        b"<html>not found</html>",
        idx(PIXELS)[:-1],
        idx(PIXELS) + b"x",
        idx(PIXELS)[:9],
        gzip.compress(idx(PIXELS), mtime=0)[:-20],
        gzip.compress(idx(PIXELS), mtime=0)[:40] + b"\x00" * 40,
        bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31),
        gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 2**31) + bytes(10_000), mtime=0),
        bytes([0, 0, 8, 3]) + struct.pack(">3I", 0, 28, 28),
        bytes([0, 0, 13, 1]) + struct.pack(">I", 4) + bytes(16),
    ],
)
def test_damaged_idx_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="train-images"):
        read_idx(path)


def write_mnist(folder: Path, n: int = 60) -> np.ndarray:
    folder.mkdir(parents=True)
    labels = (np.arange(n) % 10).astype(np.uint8)
    images = np.repeat(np.arange(n, dtype=np.uint8), 28 * 28).reshape(n, 28, 28)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return labels


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_sets_split_without_overlap_and_keep_images_with_labels(tmp_path: Path, name: str) -> None:
    data = registry("datasets").get(name)
    write_mnist(tmp_path / data.folder / "raw", 120)
    splits = {s: data.load(s, root=tmp_path) for s in ("train", "validation", "test")}
    ids = np.concatenate([split.ids.numpy() for split in splits.values()])
    assert len(set(ids.tolist())) == len(ids) == 240
    assert len(splits["test"]) == 120 and len(splits["validation"]) == 10
    for split in splits.values():
        position = split.ids % 60_000
        assert (split.x[:, 0, 0, 0] * 255).round().long().tolist() == position.tolist()
        assert split.y.tolist() == (position % 10).tolist()


def test_labels_of_another_file_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "raw")
    short = np.zeros(7, dtype=np.uint8)
    (tmp_path / "raw" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(short)))
    with pytest.raises(ArtefactError, match="belong together"):
        registry("datasets").get("mnist").load("train", root=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtefactError, match="no "):
        registry("datasets").get(name).load("train", root=tmp_path)
    with pytest.raises(ArtefactError, match="--data"):
        registry("datasets").get(name).load("train")


def batch(n: int = 20) -> tuple[np.ndarray, list[int]]:
    rows = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (n, 3072), dtype=np.uint8)
    return rows, [i % 10 for i in range(n)]


def test_cifar_binary_and_python_versions_read_alike(tmp_path: Path) -> None:
    rows, labels = batch()
    records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], rows], axis=1)
    (tmp_path / "b.bin").write_bytes(records.tobytes())
    x, y = read_cifar_binary(tmp_path / "b.bin")
    assert np.array_equal(x.reshape(20, -1), rows) and y.tolist() == labels
    for protocol in range(2, 6):
        path = tmp_path / f"data_batch_{protocol}"
        content = {b"data": rows, b"labels": labels, b"batch_label": b"x", b"filenames": [b"a.png"] * 20}
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        if protocol == 5:  # numpy writes these with out-of-band helpers
            with pytest.raises(ArtefactError, match="binary version"):
                read_cifar_pickle(path)
            continue
        got_x, got_y = read_cifar_pickle(path)
        assert np.array_equal(got_x, x) and np.array_equal(got_y, y)


def python2_batch(rows: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote the published ones: byte strings, numpy.core, protocol 2."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"M" + struct.pack("<H", rows.shape[0]) + b"M" + struct.pack("<H", rows.shape[1]) + b"\x86"
    raw = b"T" + struct.pack("<I", rows.size) + rows.tobytes()
    listed = b"](" + b"".join(bytes([ord("K"), label]) for label in labels) + b"e"
    data = array + b"(K\x01" + shape + kind + b"\x89" + raw + b"tb"
    return b"\x80\x02}q\x00(U\x04data" + data + b"U\x06labels" + listed + b"u."


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_batches_as_python_2_published_them_are_read(tmp_path: Path) -> None:
    rows, labels = batch()
    content = python2_batch(rows, labels)
    assert np.array_equal(pickle.loads(content, encoding="bytes")[b"data"], rows)  # a true pickle
    (tmp_path / "data_batch_1").write_bytes(content)
    x, y = read_cifar_pickle(tmp_path / "data_batch_1")
    assert np.array_equal(x.reshape(20, -1), rows) and y.tolist() == labels


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (Path.write_text, (Path("/tmp/robustspike-harm"), "harm"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": Harm(), b"labels": [1]}, protocol=2),
        pickle.dumps(Harm(), protocol=2),
        pickle.dumps({b"data": batch()[0].astype(np.float64), b"labels": batch()[1]}, protocol=2),
        pickle.dumps({b"data": batch()[0], b"labels": [1]}, protocol=2),
        pickle.dumps({b"data": batch()[0], b"labels": [77] * 20}, protocol=2),
        pickle.dumps({b"data": batch()[0], b"labels": batch()[1]}, protocol=2)[:-200],
        pickle.dumps([1, 2], protocol=2),
        b"\x80\x02}q\x00(",
        b"\x80\x02R.",
        b"\x80\x02K\x01K\x02u.",
        b"",
        b"<html>",
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"cposix\nsystem\n(S'touch /tmp/robustspike-harm'\ntR.",
    ],
)
def test_hostile_or_damaged_pickles_are_refused_and_not_run(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="data_batch_1"):
        read_cifar_pickle(path)
    assert not Path("/tmp/robustspike-harm").exists()


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes([11]) + bytes(3072)])
def test_damaged_binary_batches_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"data_batch_1\.bin"):
        read_cifar_binary(path)


def test_real_cifar_files_load(shared_data: Path) -> None:
    split = registry("datasets").get("cifar10").load("test", root=shared_data)
    assert split.x.shape == (100, 3, 32, 32) and 0 <= float(split.x.min()) < float(split.x.max()) <= 1
    assert split.y.bincount(minlength=10).tolist() == [10, 6, 8, 10, 7, 8, 16, 11, 13, 11]


def test_real_mnist_files_load(shared_data: Path) -> None:
    split = registry("datasets").get("mnist").load("test", root=shared_data)
    assert split.x.shape == (10_000, 1, 28, 28)
    assert split.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
