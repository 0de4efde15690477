"""What works where POSIX's own modules are missing, as on Windows, and what is said of what cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from records import make_record
from records import write

from robustspike.bench.attack import limits
from robustspike.bench.attack.limits import Limits
from robustspike.bench.errors import ConfigError
from robustspike.bench.record import provenance
from robustspike.bench.record.store import Store

WITHOUT = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del signal.SIGALRM, signal.setitimer, os.sched_getaffinity, os.sysconf
"""


@pytest.mark.parametrize(
    "what",
    [
        "from robustspike.bench.cli import main; sys.argv = ['robustspike', 'list', 'suites']; main()",
        "from robustspike.bench.cli import main; sys.argv = ['robustspike', 'leaderboard', '.']; main()",
        "import robustspike.bench.api; from robustspike.bench.run.pool import memory_share; "
        "assert memory_share(2) is None and 'scipy.stats' not in sys.modules",
    ],
)
def test_what_reads_and_builds_tables_needs_no_posix(what: str, tmp_path: Path) -> None:
    write(make_record(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + what], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_limits_say_what_they_cannot_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Limits(seconds=60, gib=2)
    monkeypatch.setattr(sys, "platform", "linux")
    assert both.cannot() == []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(limits, "_HAS_ALARM", False)
    time, memory = both.cannot()
    assert "--timeout" in time and "win32" in time and "--jobs 2" in time
    assert "--memory" in memory and "win32" in memory
    assert Limits().cannot() == []
    with both.kept():
        pass


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert provenance.cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert provenance.cores() == 64


def test_two_runs_cannot_write_one_folder(tmp_path: Path) -> None:
    held, refused = Store(tmp_path), pytest.raises(ConfigError, match="another run is writing there")
    with held.locked(), refused, Store(tmp_path).locked():
        pass
    with Store(tmp_path).locked():
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"), Store(tmp_path / "file" / "x").locked():
        pass
