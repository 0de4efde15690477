"""Bundles and verification: what holds is confirmed, what was changed is found, hostile files are refused."""

from __future__ import annotations

import io
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustspike.bench.cli.new import package
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.record.adversarials import pack_adversarials
from robustspike.bench.record.adversarials import unpack_adversarials
from robustspike.bench.record.bundle import pack
from robustspike.bench.record.bundle import unpacked
from robustspike.bench.record.enclosures import enclosed_plugins
from robustspike.bench.record.provenance import Session
from robustspike.bench.record.provenance import lines as header_lines
from robustspike.bench.record.provenance import note
from robustspike.bench.record.provenance import read as read_sessions
from robustspike.bench.record.schema import decode_samples
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.store import record_folders
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.run.verify import Finding
from robustspike.bench.run.verify import verify
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.testing.attack_checks import ATTACK_CHECKS
from robustspike.bench.testing.check import run_checks
from robustspike.leaderboard.write.page import to_html

SUITE = """
name = "tiny"
samples = 16
shard = 8
[[threats]]
geometry = "linf"
eps = "1/5"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "pgd.linf"
params = { steps = 4 }
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trust")
    (root / "suite.toml").write_text(SUITE)
    run(make_plan(read_suite(str(root / "suite.toml"))), Settings(out=root / "out"))
    return root / "out"


@pytest.fixture
def record(results: Path, tmp_path: Path) -> Path:
    """A private copy of the one record."""
    (place,) = record_folders(results)
    copy = tmp_path / "records" / place.name
    shutil.copytree(place, copy)
    return copy


def test_an_honest_record_holds(record: Path) -> None:
    verdict = verify(record, Settings(out=record), rerun=True)
    assert verdict.problems == ()
    assert verdict.confirmed == verdict.broken > 0


def reseal(folder: Path, **changes: object) -> None:
    """Edit a record and make its own digests agree again, as a forger would."""
    path = folder / "record.json"
    value = json.loads(path.read_text()) | changes
    value["digests"]["samples"] = sha256((folder / "samples.csv").read_bytes())
    value["digests"]["adversarials"] = sha256((folder / "adversarials.safetensors").read_bytes())
    path.write_text(json.dumps(value))


def test_forged_adversarials_are_found(record: Path) -> None:
    path = record / "adversarials.safetensors"
    rows, x = unpack_adversarials(path.read_bytes(), path)
    path.write_bytes(pack_adversarials(rows, torch.zeros_like(x), binary=False))
    reseal(record)
    problems = " ".join(verify(record, Settings(out=record)).problems)
    assert "leave the threat model" in problems and "do not fool" in problems


def test_a_forged_robust_sample_is_found_by_a_rerun(record: Path) -> None:
    samples = record / "samples.csv"
    rows = decode_samples(samples.read_bytes(), samples)
    place = next(i for i, row in enumerate(rows) if row.status.value == "broken")
    lines = samples.read_text().splitlines()
    lines[place + 1] = lines[place + 1].replace("broken", "robust")
    samples.write_text("\n".join(lines) + "\n")
    path = record / "adversarials.safetensors"
    ids, x = unpack_adversarials(path.read_bytes(), path)
    keep = ids != rows[place].row
    path.write_bytes(pack_adversarials(ids[keep], x[keep], binary=False))
    counts = json.loads((record / "record.json").read_text())["counts"]
    counts["broken"] -= 1
    counts["robust"] += 1
    reseal(record, counts=counts)
    assert read_record(record).counts == counts
    assert "again changes 1 of 16" in " ".join(verify(record, Settings(out=record), rerun=True).problems)


def test_edited_parameters_are_found(record: Path) -> None:
    value = json.loads((record / "record.json").read_text())
    value["threat"]["eps"] = "1/4"
    reseal(record, threat=value["threat"])
    assert "key" in " ".join(verify(record, Settings(out=record)).problems)


def test_binary_frames_survive_packing() -> None:
    x = (torch.rand(5, 3, 2, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    rows, back = unpack_adversarials(pack_adversarials(torch.arange(5), x, binary=True), Path("x"))
    assert torch.equal(back, x)
    assert rows.tolist() == list(range(5))
    empty = pack_adversarials(torch.arange(0), x[:0], binary=True)
    assert len(unpack_adversarials(empty, Path("x"))[1]) == 0


def test_bundles_round_trip_and_are_reproducible(record: Path, tmp_path: Path) -> None:
    note(tmp_path, Session("robustspike run", "a machine", "2026-01-02"))
    assert pack(tmp_path, tmp_path / "a.zip") == {tmp_path / "a.zip": 1}
    pack(tmp_path, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with unpacked(tmp_path / "a.zip") as root:
        assert read_record(root / "records" / record.name) == read_record(record)
        assert read_sessions(root) == read_sessions(tmp_path) != []


def test_a_bundle_without_inputs_is_checked_by_running_the_attack_again(record: Path, tmp_path: Path) -> None:
    pack(tmp_path, tmp_path / "light.zip", inputs=False)
    pack(tmp_path, tmp_path / "whole.zip")
    assert (tmp_path / "light.zip").stat().st_size < (tmp_path / "whole.zip").stat().st_size
    with unpacked(tmp_path / "light.zip") as root:
        (place,) = record_folders(root)
        unchecked = verify(place, Settings(out=root))
        assert unchecked.finding is Finding.CANNOT and "--rerun" in " ".join(unchecked.missing)
        again = verify(place, Settings(out=root), rerun=True)
        assert again.problems == ()
        assert again.confirmed == again.broken > 0
        value = json.loads((place / "record.json").read_text())
        value["digests"]["adversarials"] = "0" * 64
        (place / "record.json").write_text(json.dumps(value))
        assert "sha256" in " ".join(verify(place, Settings(out=root), rerun=True).problems)


def test_sessions_are_noted_once_and_hostile_ones_refused(tmp_path: Path) -> None:
    first, second = (Session("robustspike run", "a machine", f"2026-01-0{day}") for day in (2, 1))
    for session in (first, second, first):
        note(tmp_path, session)
    assert read_sessions(tmp_path) == [first, second]
    assert header_lines(read_sessions(tmp_path)) == [second.line, first.line]
    assert header_lines([]) == read_sessions(tmp_path / "nowhere") == []
    hostile = Session("x" * 10_000 + "\n# Leaderboard", "<b>", "d")
    (tmp_path / "run.json").write_text(json.dumps({"sessions": [asdict(hostile)]}))
    (found,) = read_sessions(tmp_path)
    assert "\n" not in found.line
    assert len(found.line) < 400
    assert "<b>" not in to_html([], [found.line])
    for text in ("", "[]", "{}", '{"sessions": [1]}', '{"sessions": [{"a": 1}]}', "[" * 100_000):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ArtefactError, match=r"run\.json"):
            read_sessions(tmp_path)


def forge(tmp_path: Path, files: dict[str, bytes], *, listed: dict[str, bytes] | None = None) -> Path:
    manifest = {
        "format": 1,
        "protocol": "1",
        "files": {name: sha256(data) for name, data in (listed or files).items()},
    }
    path = tmp_path / "forged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for name, data in files.items():
            archive.writestr(name, data)
    return path


KEY = "0" * 32


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py",
        "/etc/passwd",
        f"records/{KEY}/../../x",
        f"records/{KEY}/record.json.py",
        "plugins/evil.py",
        f"plugins/{'a' * 64}/../evil.py",
        f"plugins/{'a' * 64}/sub/evil.py",
        f"weights/{'a' * 64}/../../x.json",
        f"weights/{'a' * 64}/.hidden.json",
        f"weights/{'a' * 63}/x.json",
        f"weights/{'a' * 64}/x.pt",
        "records/short/record.json",
    ],
)
def test_names_that_escape_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtefactError, match="no bundle may hold"), unpacked(forge(tmp_path, {name: b"x"})):
        pass
    assert not (tmp_path.parent / "evil.py").exists()


def test_links_and_plugins_that_are_not_their_digest_are_refused(tmp_path: Path) -> None:
    name = f"plugins/{sha256(b'x = 1')}/evil.py"
    with pytest.raises(ArtefactError, match="not the file"), unpacked(forge(tmp_path, {name: b"x"})) as root:
        enclosed_plugins(root)
    with unpacked(forge(tmp_path, {name: b"x = 1"})) as root:
        assert [path.name for path in enclosed_plugins(root).values()] == ["evil.py"]
    with zipfile.ZipFile(forge(tmp_path, {name: b"x = 1"})) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        for member, data in members.items():
            info = zipfile.ZipInfo(member)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if member == name else 0
            archive.writestr(info, data)
    with pytest.raises(ArtefactError, match="is a link"), unpacked(tmp_path / "link.zip"):
        pass


def test_changed_missing_and_oversized_members_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"records/{KEY}/record.json"
    changed = forge(tmp_path, {name: b"{}"}, listed={name: b"[]"})
    with pytest.raises(ArtefactError, match="manifest says"), unpacked(changed):
        pass
    lacking = forge(tmp_path, {name: b"{}"}, listed={name: b"{}", f"records/{KEY}/samples.csv": b""})
    with pytest.raises(ArtefactError, match="lacks"), unpacked(lacking):
        pass
    monkeypatch.setattr("robustspike.bench.record.bundle.MAX_FILE_BYTES", 1000)
    with pytest.raises(ArtefactError, match="larger"), unpacked(forge(tmp_path, {name: b"0" * 10_000})):
        pass
    monkeypatch.setattr("robustspike.bench.record.bundle.MAX_TOTAL_BYTES", 1000)
    with (
        pytest.raises(ArtefactError, match="unpacks to more"),
        unpacked(forge(tmp_path, {name: b"0" * 10_000})),
    ):
        pass


@given(st.binary(max_size=300))
def test_fuzzed_bundles_never_crash(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.zip"
        path.write_bytes(data)
        with pytest.raises(BenchError), unpacked(path):
            pass


@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_flipped_byte_in_a_bundle_never_crashes(place: int, value: int) -> None:
    import tempfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        files = {f"records/{KEY}/record.json": b'{"format": 1}' * 20}
        manifest = {"format": 1, "protocol": "1", "files": {n: sha256(d) for n, d in files.items()}}
        archive.writestr("manifest.json", json.dumps(manifest))
        for name, content in files.items():
            archive.writestr(name, content)
    data = bytearray(buffer.getvalue())
    data[place % len(data)] ^= value
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.zip"
        path.write_bytes(bytes(data))
        try:
            with unpacked(path) as root:
                assert (root / f"records/{KEY}/record.json").read_bytes() == b'{"format": 1}' * 20
        except BenchError:
            pass


@given(st.binary(max_size=400))
def test_fuzzed_records_never_crash(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / KEY
        folder.mkdir()
        (folder / "record.json").write_bytes(data)
        (folder / "samples.csv").write_bytes(data)
        with pytest.raises(BenchError):
            read_record(folder)
        with pytest.raises(BenchError):
            unpack_adversarials(data, folder)


@given(st.text(max_size=300))
def test_fuzzed_suites_never_crash(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "suite.toml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(BenchError):
            make_plan(read_suite(str(path)))


def test_a_template_attack_passes_the_contract(tmp_path: Path) -> None:
    from robustspike.bench.contract.registry import load_file
    from robustspike.bench.contract.registry import registry

    files = package("attack", "templated.attack")
    path = tmp_path / "templated_attack.py"
    path.write_text(files["templated_attack.py"])
    (entry,) = load_file(path)
    outcomes = run_checks(registry("attacks").get(entry.name), ATTACK_CHECKS)
    assert [o for o in outcomes if o.result == "failed"] == []
    assert len(outcomes) == len(ATTACK_CHECKS)


@pytest.mark.parametrize("name", ["Bad", "1x", "a b", "../up", "class", ""])
def test_bad_plugin_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        package("attack", name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attack", "defense", "victim", "dataset"])
def test_templates_install_and_pass_their_own_tests(tmp_path: Path, kind: str) -> None:
    venv = tmp_path / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", venv], check=True
    )
    here = next(venv.glob("lib/python*/site-packages"))
    lines = [f"import site; site.addsitedir({p!r})" for p in sys.path if "site-packages" in p]
    (here / "parent.pth").write_text("\n".join(lines))
    for path, text in package(kind, f"my_{kind}").items():
        target = tmp_path / "plugin" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    python = venv / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    subprocess.run([*install, "--no-build-isolation", tmp_path / "plugin"], check=True)
    subprocess.run([python, "-m", "pytest", "-q", tmp_path / "plugin"], check=True, cwd=tmp_path)
