"""Records round-trip, and a damaged one is refused with one clear line."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustspike.bench.contract.specs import Budget
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.schema import SampleRecord
from robustspike.bench.record.schema import decode_samples
from robustspike.bench.record.schema import encode_record
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.threat import decode_threat
from robustspike.bench.record.threat import encode_threat
from tests.support.records import make_record
from tests.support.records import write

counts = st.integers(0, 10**9)
numbers = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    SampleRecord,
    row=counts,
    label=numbers,
    clean=counts,
    adv=counts,
    status=st.sampled_from(Status),
    distance=numbers,
    forwards=counts,
    backwards=counts,
    first_hit=st.integers(-1, 100),
    clean_score=numbers,
    adv_score=numbers,
)


@given(st.lists(rows, max_size=5).map(tuple))
def test_samples_round_trip(some: tuple[SampleRecord, ...]) -> None:
    assert decode_samples(encode_samples(some), Path("x")) == some


threats = st.builds(
    ThreatModel,
    domain=st.sampled_from(Domain),
    geometry=st.sampled_from(["linf", "l2", "l0"]),
    eps=st.none() | st.fractions(0, 10),
    budget=st.builds(Budget, forwards=counts, backwards=counts),
    goal=st.sampled_from(Goal),
)


@given(threats)
def test_threats_round_trip_exactly(threat: ThreatModel) -> None:
    assert decode_threat(json.loads(json.dumps(encode_threat(threat)))) == threat


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"geometry": "linf", "eps": "8/0"},
        {"geometry": "linf", "eps": "much"},
        {"geometry": "linf", "eps": "-1"},
        {"geometry": "linf", "eps": "1", "bounds": [1]},
        {"geometry": "linf", "eps": "1", "budget": {"forward": 1}},
        {"geometry": "linf", "eps": "1", "colour": 1},
    ],
)
def test_bad_threats_are_refused(value: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="threat model"):
        decode_threat(value)


def test_record_round_trips(tmp_path: Path) -> None:
    record = make_record()
    again = read_record(write(record, tmp_path))
    assert again == record
    assert encode_record(again) == encode_record(record)
    assert again.threat.eps == Fraction(1, 10)


def _tamper(folder: Path, how: str) -> None:
    path = folder / "record.json"
    value = json.loads(path.read_text())
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "not text":
        path.write_bytes(b"\xff\xfe\x00")
    elif how == "nested":
        path.write_text("[" * 100_000)
    elif how == "other format":
        path.write_text(json.dumps(value | {"format": 99}))
    elif how == "other protocol":
        path.write_text(json.dumps(value | {"protocol": "0"}))
    elif how == "missing field":
        value.pop("threat")
        path.write_text(json.dumps(value))
    elif how == "unknown field":
        path.write_text(json.dumps(value | {"surprise": 1}))
    elif how == "edited counts":
        value["counts"]["robust"] += 1
        path.write_text(json.dumps(value))
    elif how == "edited samples":
        samples = folder / "samples.csv"
        samples.write_text(samples.read_text().replace("broken", "robust"))
    elif how == "no samples":
        (folder / "samples.csv").unlink()
    elif how == "cut samples":
        samples = folder / "samples.csv"
        samples.write_bytes(samples.read_bytes()[:-9])


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "not text",
        "nested",
        "other format",
        "other protocol",
        "missing field",
        "unknown field",
        "edited counts",
        "edited samples",
        "no samples",
        "cut samples",
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, how: str) -> None:
    folder = write(make_record(), tmp_path)
    _tamper(folder, how)
    with pytest.raises(ArtefactError) as caught:
        read_record(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_renamed_record_is_refused(tmp_path: Path) -> None:
    folder = write(make_record(), tmp_path)
    with pytest.raises(ArtefactError, match="renamed"):
        read_record(folder.rename(folder.with_name("0" * 32)))


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = write(make_record(), tmp_path)
    samples = folder / "samples.csv"
    samples.rename(tmp_path / "elsewhere.csv")
    samples.symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(ArtefactError, match="plain file"):
        read_record(folder)


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_record().key = "x"  # type: ignore[misc]
