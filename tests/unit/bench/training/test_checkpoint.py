"""Checkpoints as people save them, into the network that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustspike.bench.api import ArtefactError
from robustspike.bench.training.checkpoint import load_into
from robustspike.bench.training.checkpoint import read_checkpoint


def net(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


STATE = net().state_dict()


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (STATE, 0),
        ({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in STATE.items()}}, 2),
        ({"net": {f"module._orig_mod.{k}": v for k, v in STATE.items()}, "acc": 91.0}, 3),
        ({"model": STATE, "optimizer": {}}, 1),
    ],
    ids=["bare", "data parallel", "compiled", "nested"],
)
def test_prefixes_and_nests_of_training_loops_are_understood_and_said(
    tmp_path: Path, saved: dict[str, Any], told: int
) -> None:
    torch.save(saved, tmp_path / "best.pth")
    state, found = read_checkpoint(tmp_path / "best.pth")
    network = net()
    said = found + load_into(network, state, where="best.pth")
    assert len(said) == told
    assert all(torch.equal(value, STATE[key]) for key, value in network.state_dict().items())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "best.safetensors")
    assert read_checkpoint(tmp_path / "best.safetensors")[0].keys() == STATE.keys()


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "args": Trap()}, tmp_path / "best.pth")
    with pytest.raises(ArtefactError, match="without running code"):
        read_checkpoint(tmp_path / "best.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a.weight": torch.zeros(2)}, "checkpoint of another network"),
        ({k: v for k, v in STATE.items() if k != "2.bias"}, r"1 missing \(2.bias\)"),
        (STATE | {"aux": torch.zeros(1)}, r"1 unknown \(aux\)"),
        (net(7).state_dict(), "of another shape .*another width"),
    ],
)
def test_what_does_not_fit_is_named_with_the_likely_cause(saved: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        load_into(net(), saved, where="best.pth")


@pytest.mark.parametrize("saved", [[1, 2], {"epoch": 3}, {}])
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "best.pth")
    with pytest.raises(ArtefactError, match="state dict"):
        read_checkpoint(tmp_path / "best.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
