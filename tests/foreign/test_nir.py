"""Networks in NIR: equations node by node, what is refused, and the published Sinabs network where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import Domain
from robustspike.bench.api import adapt
from robustspike.bench.api import bin_events
from robustspike.bench.api import build_network
from robustspike.bench.api import evaluate
from robustspike.bench.api import registry
from robustspike.bench.data.events.event_files import read_aer_bin
from robustspike.bench.victim.from_nir import read_nir

nir = pytest.importorskip("nir")


def written(path: Path, *nodes: Any, shape: tuple[int, ...]) -> Path:
    graph = nir.NIRGraph.from_list(
        nir.Input(np.array(shape)), *nodes, nir.Output(np.array([nodes[-1].v_threshold.size]))
    )
    nir.write(path / "net.nir", graph)
    return path / "net.nir"


def steps_of(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1)


def one(**values: float) -> dict[str, np.ndarray]:
    return {name: np.array([value], dtype=np.float32) for name, value in values.items()}


def fires(path: Path, x: torch.Tensor) -> int:
    return int(read_nir(path)(x).item())


def test_if_neurons_fire_as_often_as_the_threshold_fits_and_keep_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, nir.IF(**one(r=1.0, v_threshold=1.0)), shape=(1,))
    assert fires(path, steps_of(2.5, 0.5)) == 3
    assert fires(path, steps_of(-5.0, 1.5)) == 0  # the potential stays above minus the threshold
    assert fires(path, steps_of(-5.0, 2.0)) == 1


def test_lif_neurons_follow_their_equation(tmp_path: Path) -> None:
    node = nir.LIF(**one(tau=4e-3, r=2.0, v_leak=0.0, v_threshold=1.0))
    path = written(tmp_path, node, shape=(1,))
    v, count = 0.0, 0
    for current in (1.0, 1.0, 1.0, 0.0, 1.0, 3.0):
        v += 0.25 * (2.0 * current - v)
        if v >= 1.0:
            count, v = count + 1, 0.0 if hasattr(node, "v_reset") and node.v_reset is not None else v - 1.0
    assert fires(path, steps_of(1.0, 1.0, 1.0, 0.0, 1.0, 3.0)) == count > 0


def test_cubalif_neurons_follow_their_equations(tmp_path: Path) -> None:
    node = nir.CubaLIF(
        **one(tau_mem=4e-3, tau_syn=2e-3, r=2.0, v_leak=0.0, v_threshold=0.5),
        w_in=np.array([1.0], np.float32),
    )
    path = written(tmp_path, node, shape=(1,))
    i = v = 0.0
    count = 0
    for current in (1.0, 2.0, 0.0, 0.0, 2.0):
        i += 0.5 * (current - i)
        v += 0.25 * (2.0 * i - v)
        if v >= 0.5:
            count, v = count + 1, 0.0 if getattr(node, "v_reset", None) is not None else v - 0.5
    assert fires(path, steps_of(1.0, 2.0, 0.0, 0.0, 2.0)) == count > 0


def test_a_written_network_is_a_victim_whose_spikes_are_served(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    conv = nir.Conv2d(
        input_shape=(8, 8), weight=rng.normal(0, 0.5, (4, 2, 3, 3)).astype(np.float32), stride=1, padding=1,
        dilation=1, groups=1, bias=np.zeros(4, np.float32),
    )  # fmt: skip
    middle = nir.IF(np.ones((4, 8, 8), np.float32), np.ones((4, 8, 8), np.float32))
    pool = nir.SumPool2d(kernel_size=np.array([2, 2]), stride=np.array([2, 2]), padding=np.array([0, 0]))
    flat = nir.Flatten({"input": np.array([4, 4, 4])}, start_dim=0, end_dim=-1)
    read = nir.Affine(rng.normal(0, 0.3, (5, 64)).astype(np.float32), np.zeros(5, np.float32))
    last = nir.IF(np.ones(5, np.float32), np.ones(5, np.float32))
    path = written(tmp_path, conv, middle, pool, flat, read, last, shape=(2, 8, 8))
    victim = adapt(
        build_network(str(path)),
        name="nir",
        shape=(4, 2, 8, 8),
        classes=5,
        domain=Domain.SPIKES,
        time="inside",
    )
    assert len(victim.neurons) == 2 and not any(n.refusal for n in victim.neurons)
    x = (torch.rand(4, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    y = victim.logits(x).argmax(dim=1)
    result = evaluate(victim, registry("attacks").get("sda.l0"), x, y, eps="40")
    assert result.errors == 0 and result.robust < result.clean


def test_nodes_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    node = nir.Threshold(np.ones(2, np.float32))
    nir.write(path, nir.NIRGraph.from_list(nir.Input(np.array([2])), node, nir.Output(np.array([2]))))
    with pytest.raises(ArtefactError, match="is a Threshold; read are IF, LIF"):
        read_nir(path)
    (tmp_path / "text.nir").write_text("no network")
    with pytest.raises(ArtefactError, match="not a readable NIR file"):
        read_nir(tmp_path / "text.nir")


@pytest.mark.slow
def test_the_published_network_is_right_as_often_as_published(shared_data: Path) -> None:
    files = sorted((shared_data / "NMNIST/Test").glob("*/*.bin"))
    frames = [
        bin_events(read_aer_bin(file, size=(34, 34)), steps=310, window=1000, size=(34, 34)) for file in files
    ]
    x = torch.from_numpy(np.stack(frames)).float()
    with torch.no_grad():
        answers = read_nir(shared_data / "nir/cnn_sinabs.nir").eval()(x).argmax(dim=1)
    assert int((answers == torch.tensor([int(file.parent.name) for file in files])).sum()) == 47
