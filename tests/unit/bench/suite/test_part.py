"""Several machines share a suite: every cell falls to one of them, and their folders make one leaderboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustspike.bench.errors import ConfigError
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.part import Part
from robustspike.bench.suite.plan import make_plan
from tests.support.commands import robustspike
from tests.support.folders import contents

SUITE = """
name = "shared"
samples = 6
shard = 6
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "noise"
[[attacks]]
name = "fgsm.linf"
[[attacks]]
name = "fgsm.linf"
params = { estimator = "pdsg" }
[[attacks]]
name = "pgd.linf"
params = { steps = 1 }
"""


def test_every_key_is_in_one_part() -> None:
    keys = [f"{number * 0x9E3779B97F4A7C15 % (1 << 128):032x}" for number in range(1000)]
    shares = [[key for key in keys if Part(number, 8).has(key)] for number in range(1, 9)]
    assert sorted(key for share in shares for key in share) == sorted(keys)
    assert all(80 <= len(share) <= 170 for share in shares)


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "-1/4", "1/0", "1/2/3", "", " 1/2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected NUMBER/OF"):
        Part.parse(text)


def test_the_folders_of_all_parts_make_the_leaderboard_of_one_run(tmp_path: Path) -> None:
    suite = tmp_path / "shared.toml"
    suite.write_text(SUITE)
    plan = make_plan(read_suite(str(suite)))
    whole = run(plan, Settings(out=tmp_path / "whole"))
    folders, found = [], []
    for number in (1, 2, 3):
        out = tmp_path / f"part{number}"
        done = robustspike("run", suite, "--part", f"{number}/3", "--out", out, "--jobs", 1, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        records = contents(out / "records") if (out / "leaderboard.json").is_file() else {}
        assert records or f"part {number}/3 holds none of the 4 cells" in done.stderr
        found += list(records.items())
        folders += [out] if records else []
    assert len(folders) > 1
    assert sorted(found) == sorted(contents(tmp_path / "whole" / "records").items())
    joined = robustspike("leaderboard", *folders, folders[0], "--out", "joined", cwd=tmp_path)
    assert joined.returncode == 0, joined.stderr
    alone = robustspike("leaderboard", "whole", "--out", "alone", cwd=tmp_path)
    assert joined.stdout == alone.stdout
    assert len(whole) == 4
    for name in ("rows.csv", "cells.csv"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
