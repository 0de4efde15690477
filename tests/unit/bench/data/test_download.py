"""Downloads: checked, resumed, unpacked inside their folder; from a loopback server and file: addresses."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import registry
from robustspike.bench.cli.download import command
from robustspike.bench.data.download import Published
from robustspike.bench.data.download import fetch
from robustspike.bench.data.images.image_sets import Cifar10
from robustspike.bench.errors import ConfigError

CONTENT = bytes(range(256)) * 4000


def checksum(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; notes the ranges asked for; cuts the next answer short after `cut` bytes."""

    files: dict[str, bytes]
    asked: list[str]
    cut: int
    can_resume: bool


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        data = self.server.files.get(self.path)
        wanted = self.headers.get("Range", "")
        self.server.asked.append(wanted)
        if data is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if self.server.can_resume else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut, self.server.cut = self.server.cut, 0
        self.wfile.write(data[start : start + cut] if cut else data[start:])

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.files, made.asked, made.cut, made.can_resume = {"/set.bin": CONTENT}, [], 0, True
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def published(server: Server, **changes: object) -> tuple[Published, ...]:
    given = {"url": f"{address(server)}/set.bin", "checksum": checksum(CONTENT), "name": "set.bin"}
    return (Published(**{**given, **changes}),)  # type: ignore[arg-type]


def test_a_file_arrives_with_progress_and_is_not_fetched_twice(tmp_path: Path, server: Server) -> None:
    seen: list[tuple[str, int, int]] = []
    found = fetch(published(server, folder="raw"), tmp_path / "new", report=lambda *a: seen.append(a))
    assert found == [tmp_path / "new" / "raw" / "set.bin"] and found[0].read_bytes() == CONTENT
    assert seen[-1] == ("set.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    fetch(published(server, folder="raw"), tmp_path / "new")
    assert len(server.asked) == 1
    assert [p.name for p in (tmp_path / "new" / "raw").iterdir()] == ["set.bin"]  # nothing left behind


@pytest.mark.parametrize("can_resume", [True, False], ids=["server resumes", "server starts again"])
def test_a_download_that_was_cut_short_goes_on(tmp_path: Path, server: Server, can_resume: bool) -> None:
    server.cut, server.can_resume = 300_000, can_resume
    with pytest.raises(ArtefactError, match="run the same command to go on"):
        fetch(published(server), tmp_path)
    assert not (tmp_path / "set.bin").exists() and (tmp_path / "set.bin.part").stat().st_size == 300_000
    (path,) = fetch(published(server), tmp_path)
    assert path.read_bytes() == CONTENT and server.asked == ["", "bytes=300000-"]


def test_a_file_complete_but_not_yet_checked_is_taken(tmp_path: Path, server: Server) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    (path,) = fetch(published(server), tmp_path)
    assert path.read_bytes() == CONTENT


def test_another_content_is_refused_and_forgotten(tmp_path: Path, server: Server) -> None:
    server.files["/set.bin"] = b"<html>captive portal</html>"
    with pytest.raises(ArtefactError, match="not the published file"):
        fetch(published(server), tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.files["/set.bin"] = CONTENT
    assert fetch(published(server), tmp_path)[0].read_bytes() == CONTENT


def test_without_an_answer_the_message_says_what_to_do(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ArtefactError, match=r"404.*--mirror.*set\.bin \(sha256:"):
        fetch(published(server, url=f"{address(server)}/absent"), tmp_path)
    silent = f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    with pytest.raises(ArtefactError, match=r"cannot be fetched.*Check the network"):
        fetch(published(server, url=f"{silent}/set.bin"), tmp_path)


def test_a_mirror_is_asked_for_the_files_own_name(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "a b.bin").write_bytes(CONTENT)
    files = (Published("http://127.0.0.1:1/nowhere", checksum(CONTENT), "a b.bin"),)
    (path,) = fetch(files, tmp_path / "to", mirror=(tmp_path / "mirror").as_uri())
    assert path.read_bytes() == CONTENT


def as_tar(members: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("set/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return whole.getvalue()


def as_zip(members: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return whole.getvalue()


@pytest.mark.parametrize("pack", [as_tar, as_zip])
def test_archives_give_their_wanted_members_and_nothing_outside(
    tmp_path: Path, server: Server, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    content = pack(
        {
            "set/a.bin": b"a",
            "set/b.bin": b"b",
            "set/readme.html": b"x",
            "../outside.bin": b"x",
            "/tmp/robustspike-outside.bin": b"x",
            "set/../../evil/a.bin": b"x",
            "__MACOSX/set/._a.bin": b"x",
        }
    )
    server.files["/set.bin"] = content
    files = published(server, checksum=checksum(content), folder="inner", unpacks=("set/*.bin",))
    found = fetch(files, tmp_path / "to")
    inside = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert inside == {"to/set.bin", "to/inner/set/a.bin", "to/inner/set/b.bin"}
    assert sorted(found) == sorted(p for p in (tmp_path / "to").rglob("*") if p.is_file())
    assert not Path("/tmp/robustspike-outside.bin").exists()


@pytest.mark.parametrize(
    "content",
    [b"no archive", gzip.compress(b"short"), as_zip({"other/a.bin": b"a"})],
    ids=["text", "gzip", "zip"],
)
def test_archives_without_what_they_should_hold_are_refused(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    server.files["/set.bin"] = content
    with pytest.raises(ArtefactError, match=r"set\.bin"):
        fetch(published(server, checksum=checksum(content), unpacks=("set/*.bin",)), tmp_path)


def test_every_published_file_has_a_checksum_and_a_secure_or_checked_source() -> None:
    named = {name: registry("datasets").get(name).downloads for name in registry("datasets").names()}
    offered = {name for name, files in named.items() if files}
    assert {"cifar10", "cifar100", "mnist", "fashion_mnist", "nmnist"} <= offered
    for files in named.values():
        for file in files:
            kind, _, digits = file.checksum.partition(":")
            assert len(bytes.fromhex(digits)) == {"md5": 16, "sha256": 32}[kind]
            assert file.url.startswith("http")


def small_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer a CIFAR-10 of 60 images in the published layout from a folder."""
    record = bytes([3]) + bytes(3072)
    members = {f"cifar-10-batches-bin/data_batch_{i}.bin": record * 24 for i in range(1, 6)}
    content = as_tar({**members, "cifar-10-batches-bin/test_batch.bin": record * 12})
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)
    (published_file,) = Cifar10.downloads
    changed = Published(
        published_file.url, checksum(content), published_file.name, unpacks=published_file.unpacks
    )
    monkeypatch.setattr(Cifar10, "downloads", (changed,))


def test_the_command_makes_a_folder_that_data_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_cifar(tmp_path / "mirror", monkeypatch)
    to = tmp_path / "D"
    result = CliRunner().invoke(
        command, ["cifar10", "--to", str(to), "--mirror", (tmp_path / "mirror").as_uri()]
    )
    assert result.exit_code == 0, result.output
    assert "data_batch_1.bin" in result.output and f"--data {to}" in result.output
    assert len(registry("datasets").get("cifar10").load("test", root=to)) == 12


def test_the_command_names_what_can_be_fetched() -> None:
    result = CliRunner().invoke(command, ["kadid10k", "--to", "/nonexistent"])
    assert isinstance(result.exception, ConfigError)
    assert "cifar10" in str(result.exception) and "mnist" in str(result.exception)
