"""Killed at any write, killed at any moment, or out of disk: the resumed run has the bytes of a whole one."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.schema import read_record
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import Plan
from robustspike.bench.suite.plan import make_plan
from tests.support.folders import contents

SUITE = """
name = "tiny"
samples = 12
shard = 6
attacks = [{ name = "fgsm.linf" }, { name = "noise" }]
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
"""

WRITES = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
"""The calls of `os` by which a run changes its folder after opening a file."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("suite") / "suite.toml"
    path.write_text(SUITE)
    return make_plan(read_suite(str(path)))


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    run(plan, Settings(out=out))
    return contents(out)


def at_write(
    patch: pytest.MonkeyPatch, number: int, act: Callable[[], None], names: tuple[str, ...]
) -> list[int]:
    """Make the number-th call of these functions of `os`, counted from 0, do something else first.

    Returns: how many calls are left before that one; below 0 once it has come.
    """
    left = [number]

    def hooked(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == -1:
                act()
            return original(*args, **kwargs)

        return call

    for name in names:
        patch.setattr(os, name, hooked(getattr(os, name)))
    return left


def in_child(act: Callable[[], object]) -> int:
    """Start a copy of this process that does something and leaves; return its id."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(0)
    return child


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def was_killed(child: int) -> bool:
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_sigkill_at_every_write(plan: Plan, whole: dict[str, bytes], tmp_path: Path) -> None:
    for number in range(200):
        settings = Settings(out=tmp_path / str(number))

        def killed(number: int = number, settings: Settings = settings) -> None:
            at_write(pytest.MonkeyPatch(), number, kill_self, WRITES)
            run(plan, settings)

        if not was_killed(in_child(killed)):
            break
        run(plan, settings)
        assert contents(settings.out) == whole, f"after a kill at write {number}"
    assert 25 < number < 200


@pytest.mark.slow
def test_sigkill_at_random_moments(plan: Plan, whole: dict[str, bytes], tmp_path: Path) -> None:
    start = time.perf_counter()
    run(plan, Settings(out=tmp_path / "timed"))
    took, moments, kills = time.perf_counter() - start, random.Random(0), 0
    for number in range(50):
        settings = Settings(out=tmp_path / str(number))
        child = in_child(lambda settings=settings: run(plan, settings))
        time.sleep(took * moments.random())
        os.kill(child, signal.SIGKILL)
        kills += was_killed(child)
        run(plan, settings)
        assert contents(settings.out) == whole
    assert kills >= 25


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
def test_a_full_disk_at_every_write_is_a_clear_error(
    plan: Plan, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for number in range(200):
        settings = Settings(out=tmp_path / str(number))
        with pytest.MonkeyPatch().context() as patch:
            left = at_write(patch, number, full, ("fsync", "replace", "rename", "mkdir"))
            try:
                run(plan, settings)
            except (ArtefactError, ConfigError) as error:
                assert "No space left" in str(error)
                assert "--out" in str(error)
        if left[0] >= 0:
            break
        run(plan, settings)
        assert contents(settings.out) == whole, f"after a full disk at write {number}"
    assert 20 < number < 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 160 kB; skips where this process may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(plan: Plan, whole: dict[str, bytes], small_disk: Path) -> None:
    settings = Settings(out=small_disk / "out")
    ballast = small_disk / "ballast"
    failed = 0
    for room in range(0, 160_000, 8_192):
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        ballast.write_bytes(bytes(max(0, free - room)))
        try:
            run(plan, settings)
        except (ArtefactError, ConfigError) as error:
            assert "No space left" in str(error)
            assert str(error).count("\n") == 0
            failed += 1
        ballast.unlink()
        if failed and (settings.out / "records").is_dir():
            for folder in (settings.out / "records").glob("[!.]*"):
                read_record(folder)  # what is in place is whole
    assert failed >= 2
    run(plan, settings)
    assert contents(settings.out) == whole


def test_a_full_disk_at_one_write(plan: Plan, whole: dict[str, bytes], tmp_path: Path) -> None:
    settings = Settings(out=tmp_path / "out")
    with pytest.MonkeyPatch().context() as patch:
        at_write(patch, 9, full, ("fsync", "replace", "rename", "mkdir"))
        with pytest.raises(ArtefactError, match="No space left"):
            run(plan, settings)
    run(plan, settings)
    assert contents(settings.out) == whole
