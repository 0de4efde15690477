"""`evaluate` on what people hold in their hands: bare networks, numpy arrays, loaders, several budgets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import foreign_nets as nets
import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from robustspike.bench.api import ContractError
from robustspike.bench.api import adapt
from robustspike.bench.api import evaluate
from robustspike.bench.api import registry
from robustspike.bench.record.store import Store
from robustspike.bench.record.store import record_folders

X = registry("datasets").get("digits").load("test").x[:12]
NET = nets.WrittenOut()
with torch.no_grad():
    Y = NET(X).argmax(dim=1)
PGD = registry("attacks").get("pgd.linf", steps=5)


def test_a_bare_network_is_adapted_as_by_hand() -> None:
    by_hand = adapt(NET, name="net", shape=(1, 8, 8), classes=10)
    expected = evaluate(by_hand, PGD, X, Y, eps="1/20")
    bare = evaluate(NET, PGD, X, Y, eps="1/20")
    assert torch.equal(bare.shards[0].x_adv, expected.shards[0].x_adv)
    assert NET.a.weight.requires_grad


def test_numpy_arrays_and_loaders_give_what_tensors_give() -> None:
    expected = evaluate(NET, PGD, X, Y, eps="1/20").shards[0].x_adv
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    for result in (
        evaluate(NET, PGD, X.numpy(), Y.numpy(), eps="1/20"),
        evaluate(NET, PGD, loader, eps="1/20"),
    ):
        assert torch.equal(result.shards[0].x_adv, expected)


def test_several_budgets_give_several_results_in_their_order() -> None:
    small, large = evaluate(NET, PGD, X, Y, eps=["0", "1/5"])
    assert small.robust == small.clean == 12 > large.robust
    assert large.robust == evaluate(NET, PGD, X, Y, eps="1/5").robust


def test_inputs_without_labels_are_refused() -> None:
    with pytest.raises(ContractError, match="DataLoader"):
        evaluate(NET, PGD, X, eps="1/20")


def test_a_network_for_other_inputs_says_so() -> None:
    with pytest.raises(ContractError, match="cannot answer inputs"):
        evaluate(NET, PGD, torch.rand(4, 1, 9, 9), Y[:4], eps="1/20")


def test_progress_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(NET, PGD, X, Y, eps="1/20", shard=4)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    evaluate(NET, PGD, X, Y, eps="1/20", shard=4)
    told = capsys.readouterr().err
    assert "8 of 12 samples, about" in told and told.endswith("\n")


def test_what_is_saved_is_read_back_and_joins_a_table(tmp_path: Path) -> None:
    for result in evaluate(NET, PGD, X, Y, eps=["1/20", "1/5"]):
        folder = result.save(tmp_path, dataset="mine", defense="careful")
        record = Store(tmp_path).read(folder.name)
        assert record.counts["robust"] == result.robust and record.counts["n"] == 12
        assert (record.victim, record.defense, record.dataset) == ("WrittenOut", "careful", "mine")
        assert record.label == "pgd.linf[steps=5]"
    assert len(record_folders(tmp_path)) == 2
    done = subprocess.run(
        [sys.executable, "-m", "robustspike.bench.cli", "leaderboard", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "careful" in done.stdout and "mine (test, n = 12), linf 1/5" in done.stdout
