"""Arbitrary bytes in every kind of data and weights file: a reader answers or raises a BenchError."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from robustspike.bench.api import Access
from robustspike.bench.api import BenchError
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.data.events import event_files
from robustspike.bench.data.events import formats
from robustspike.bench.data.events import spike_camera
from robustspike.bench.data.images import image_files
from robustspike.bench.data.quality import quality_files
from robustspike.bench.files import sha256
from robustspike.bench.record.schema import read_record
from robustspike.bench.training.weights import find_weights
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.write.csv import tidy_csv
from robustspike.leaderboard.write.csv import wide_csv
from robustspike.leaderboard.write.json import document
from robustspike.leaderboard.write.json import to_json
from robustspike.leaderboard.write.markdown import to_markdown
from robustspike.leaderboard.write.page import to_html
from tests.support.records import make_record
from tests.support.records import write

WEIGHTS = "lif_cnn.digits"


def _pickled() -> bytes:
    batch = {b"data": np.zeros((2, 3072), dtype=np.uint8)[:, :3072], b"labels": [1, 2]}
    return pickle.dumps(batch, protocol=2)[:400]


READERS: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "idx": (image_files.read_idx, b"\x00\x00\x08\x01" + struct.pack(">I", 5) + b"12345"),
    "idx.gz": (image_files.read_idx, b"\x1f\x8b\x08\x00" + bytes(6) + b"\x03\x00" + bytes(8)),
    "cifar.bin": (image_files.read_cifar_binary, bytes(3073)),
    "cifar.pkl": (image_files.read_cifar_pickle, _pickled()),
    "aer.bin": (
        lambda p: event_files.read_aer_bin(p, size=(34, 34)),
        bytes([1, 2, 0, 0, 9, 3, 240, 0, 0, 9]),
    ),
    "aedat2": (formats.read_events, b"#!AER-DAT2.0\r\n# x\r\n" + struct.pack(">II", 258, 7)),
    "aedat31": (
        event_files.read_aedat31,
        b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
        + struct.pack("<HHIIIIII", 1, 0, 8, 4, 0, 1, 1, 1)
        + struct.pack("<II", 0x00040003, 9),
    ),
    "aedat4": (event_files.read_aedat4, b"#!AER-DAT4.0\r\n" + bytes(24)),
    "npy": (
        lambda p: event_files.read_npy_events(p, size=(8, 8)),
        b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (1, 4), }" + b" " * 60,
    ),
    "labels.csv": (event_files.read_gesture_labels, b"class,startTime_usec,endTime_usec\n1,2,3\n"),
    "spikes.dat": (lambda p: spike_camera.read_spike_dat(p, height=2, width=4), b"\x01\x80"),
    "spikes.npz": (spike_camera.read_spike_npz, b"PK\x03\x04" + bytes(26)),
    "image.png": (
        lambda p: quality_files.read_square(p, 2),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(13),
    ),
}


def tolerated(call: Callable[[], object]) -> None:
    """Call a reader; only a BenchError, with one line to read, may come out of it."""
    with contextlib.suppress(BenchError):
        call()


def mutate(content: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    edited = bytearray(content)
    for place, value in changes:
        edited[place % len(edited)] = value
    return bytes(edited[: max(1, len(edited) - cut)])


changes = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6)


@pytest.mark.parametrize("kind", READERS)
def test_arbitrary_and_damaged_bytes(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / kind
    read, valid = READERS[kind]

    @given(st.one_of(st.binary(max_size=200), st.builds(mutate, st.just(valid), changes, st.integers(0, 40))))
    def fuzz(content: bytes) -> None:
        path.write_bytes(content)
        tolerated(lambda: read(path))

    fuzz()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("cifar.pkl", b"\x80\x02cnumpy\nndarray\n(K\x01e."),
        ("image.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x00IHDR"),
    ],
)
def test_bytes_that_once_got_through(kind: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / kind).write_bytes(content)
    with pytest.raises(BenchError, match=kind):
        READERS[kind][0](tmp_path / kind)


TABLES: dict[str, tuple[type[quality_files.RatedImages], bytes]] = {
    "kadid10k": (
        quality_files.Kadid10k,
        b"dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.5\n",
    ),
    "koniq10k": (
        quality_files.Koniq10k,
        b"image_name,MOS,set\n1.jpg,66.3,training\n",
    ),
    "tid2013": (quality_files.Tid2013, b"5.51429 I01_01_1.bmp\n"),
    "live": (quality_files.Live, b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\x00\x01IM" + bytes(60)),
    "live_challenge": (
        quality_files.LiveChallenge,
        b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\x00\x01IM" + b"\x0e\x00\x00\x00\x30\x00\x00\x00" + bytes(50),
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_arbitrary_and_damaged_quality_tables(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("quality")
    made, valid = TABLES[kind][0](), TABLES[kind][1]
    home = root / made.folder
    files = [home / made.table]
    if kind == "live":
        files.append(home / "dmos.mat")
    if kind == "live_challenge":
        files.append(home / "Data/AllImages_release.mat")
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)

    text = st.text(max_size=80).map(lambda s: s.encode("utf-8", "surrogatepass"))
    table = st.one_of(
        st.binary(max_size=200),
        st.builds(mutate, st.just(valid), changes, st.integers(0, 40)),
        text.map(lambda more: valid + more),
    )

    @given(table)
    def fuzz(content: bytes) -> None:
        for path in files:
            path.write_bytes(content)
        tolerated(lambda: made.entries(root))

    fuzz()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, dict[str, object]]:
    found = find_weights(registry("victims").get(WEIGHTS), "none", 0, None)
    assert found is not None
    copy = tmp_path_factory.mktemp("weights") / found.name
    return copy, found.read_bytes(), json.loads(found.with_suffix(".json").read_bytes())


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


def test_arbitrary_certificates(weights: tuple[Path, bytes, dict[str, object]]) -> None:
    path, content, certificate = weights
    path.write_bytes(content)
    beside = path.parent / (path.name.removesuffix(".safetensors") + ".json")

    @given(st.sampled_from(sorted(certificate)), junk)
    def replaced(key: str, value: object) -> None:
        beside.write_text(json.dumps({**certificate, key: value}))
        tolerated(lambda: load_victim(WEIGHTS, weights=path.parent))

    @given(st.binary(max_size=200) | junk.map(lambda value: json.dumps(value).encode()))
    def arbitrary(raw: bytes) -> None:
        beside.write_bytes(raw)
        tolerated(lambda: load_victim(WEIGHTS, weights=path.parent))

    replaced()
    arbitrary()


def test_arbitrary_weights(weights: tuple[Path, bytes, dict[str, object]]) -> None:
    path, content, certificate = weights
    beside = path.parent / (path.name.removesuffix(".safetensors") + ".json")

    @given(
        st.one_of(st.binary(max_size=200), st.builds(mutate, st.just(content), changes, st.integers(0, 9)))
    )
    def fuzz(raw: bytes) -> None:
        path.write_bytes(raw)
        beside.write_text(json.dumps(certificate | {"sha256": sha256(raw)}))
        tolerated(lambda: load_victim(WEIGHTS, weights=path.parent))

    before = torch.get_rng_state()
    fuzz()
    assert torch.equal(torch.get_rng_state(), before)


def places(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """List the paths to every part of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(deeper for key, part in inside for deeper in places(part, (*at, key)))]


def test_arbitrary_fields_of_records(tmp_path: Path) -> None:
    measures = {"rising": 1, "standing": 3, "late_hits": 0, "probed": 2, "cosine_milli": 1900, "noisy": 2}
    measures |= {"backwards:pgd/native": 9, "hits:pgd/native": 1, "backwards:pgd/pdsg": 2, "hits:pgd/pdsg": 1}
    made = make_record(measures=measures)
    declared = {"adaptive": ["eot"], "notes": ["conversion lost much"], "neurons": 2, "training_passes": {}}
    made = dataclasses.replace(made, parameters={"attack": {"estimator": "native"}, "declared": declared})
    path = write(made, tmp_path) / "record.json"
    whole = json.loads(path.read_bytes())

    @settings(max_examples=300)
    @given(st.sampled_from(places(whole)[1:]), junk)
    def replaced(at: tuple[str | int, ...], value: object) -> None:
        changed = json.loads(json.dumps(whole))
        inner = changed
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = value
        path.write_text(json.dumps(changed))

        def show() -> None:
            records = [read_record(path.parent), make_record(attack="noise", access=Access.LABEL)]
            built = build(records)
            assert wide_csv(built) and to_markdown(built) and to_html(built)
            assert tidy_csv(built, records) and to_json(document(built, records))

        tolerated(show)

    replaced()
