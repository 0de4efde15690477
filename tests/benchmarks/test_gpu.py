"""The measurement of a GPU runs from end to end on a CPU, with sizes that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import gpu


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    gpu.main(["--device", "cpu", "--smoke", "--out", str(tmp_path / "lines.json")])
    first, *parts = map(json.loads, (tmp_path / "lines.json").read_text().splitlines())
    assert first["device"] == "CPU" and first["smoke"]
    found = {name: part for line in parts for name, part in line.items() if name != "seconds"}
    assert found.keys() == gpu.PARTS.keys()
    assert not any("failed" in part or "skipped" in part for part in found.values()), found
    assert len(found["equality"]) == 4
    assert all(case["verdicts_differ"] == 0 for case in found["equality"].values())
    assert all(case["samples_a_second"] > 0 for case in found["speed"].values())
    pgd, sda = found["waiting"].values()
    assert 0 < pgd["waits_a_step"] < sum(pgd["waits"].values()) and sda["waits"]
    assert found["training"]["epochs"] == 1 and found["suite"]["cells"] == 1


def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu --smoke"):
        gpu.main([])
