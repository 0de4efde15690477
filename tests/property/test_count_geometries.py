"""The geometries on counts against their definition, and against exhaustive search."""

from __future__ import annotations

from itertools import permutations
from itertools import product

import pytest
import torch
from torch import Tensor

from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

BOUNDS = (0.0, 3.0)
COUNTS, RETIMING = ("count_l0", "count_l1"), ("retime_l0", "retime_l1", "retime_linf")


def geometry(name: str):
    return registry("geometries").get(name)


def uniform(n: int, shape: tuple[int, ...], key: str) -> Tensor:
    return RowStreams.derive(range(n), key).uniform(shape)


def frames(n: int, shape: tuple[int, ...], key: str = "x0") -> Tensor:
    return (uniform(n, shape, key) * 6 - 2).floor().clamp(*BOUNDS)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("eps", [0, 1, 2, 4, float("inf")])
def test_projection_onto_counts_is_the_nearest_legal_point(name: str, eps: float) -> None:
    x0, x = frames(8, (2, 1, 2)), uniform(8, (2, 1, 2), "x") * 7 - 2
    found = geometry(name).project(x0, x, eps=eps, bounds=BOUNDS)
    grid = torch.tensor(list(product(range(4), repeat=4)), dtype=torch.float32).view(-1, 2, 1, 2)
    for row in range(8):
        legal = grid[geometry(name).legal(x0[row].expand_as(grid), grid, eps=eps, bounds=BOUNDS)]
        if name == "count_l0" and eps < 4:
            continue  # the largest changes are kept, which need not be the nearest point
        best = (legal - x[row]).square().flatten(1).sum(dim=1).min()
        assert (found[row] - x[row]).square().sum() == pytest.approx(float(best), rel=1e-5)
    assert bool(geometry(name).legal(x0, found, eps=eps, bounds=BOUNDS).all())


@pytest.mark.parametrize("name", [*COUNTS, *RETIMING])
@pytest.mark.parametrize("eps", [0, 1, 2, 3])
def test_projection_and_draws_are_legal_and_projecting_again_changes_nothing(name: str, eps: int) -> None:
    x0 = frames(30, (5, 2, 2))
    rule = geometry(name)
    streams = RowStreams.derive(range(30), "draw")
    drawn = rule.sample(x0, eps=eps, bounds=BOUNDS, rng=streams, rows=torch.arange(30))
    for x in (rule.project(x0, 5 * uniform(30, (5, 2, 2), "x"), eps=eps, bounds=BOUNDS), drawn):
        assert bool(rule.legal(x0, x, eps=eps, bounds=BOUNDS).all())
        assert torch.equal(rule.project(x0, x, eps=eps, bounds=BOUNDS), x)
        assert eps or torch.equal(x, x0)
    assert not eps or bool((drawn != x0).any())


@pytest.mark.parametrize("name", COUNTS)
def test_half_events_negative_counts_and_too_many_are_illegal(name: str) -> None:
    x0 = frames(1, (2, 1, 2))
    for value in (0.5, -1.0, 4.0, float("nan")):
        x = x0.clone()
        x[0, 0, 0, 0] = value
        assert not bool(geometry(name).legal(x0, x, eps=10, bounds=BOUNDS).any())


@pytest.mark.parametrize("name", RETIMING)
def test_the_cheapest_assignment_of_equal_packets_is_the_distance(name: str) -> None:
    """Over all assignments of a line, literally: each packet to a place of its own size."""
    for row, before in enumerate(frames(12, (4, 1, 1))[:, :, 0, 0].tolist()):
        for after in {tuple(p) for p in permutations(before)}:
            costs = []
            for to in permutations(range(4)):
                if all(after[t] == v for v, t in zip(before, to, strict=True)):
                    shifts = [abs(s - t) for s, t in enumerate(to) if before[s]]
                    costs.append(
                        {
                            "retime_l0": sum(d > 0 for d in shifts),
                            "retime_l1": sum(shifts),
                            "retime_linf": max(shifts, default=0),
                        }[name]
                    )
            x0, x = (torch.tensor(v).view(1, 4, 1, 1) for v in (before, after))
            assert float(geometry(name).distance(x0, x)) == min(costs), row


@pytest.mark.parametrize("name", RETIMING)
def test_a_packet_split_in_two_or_merged_is_no_retiming(name: str) -> None:
    x0 = torch.tensor([2.0, 0, 1, 0]).view(1, 4, 1, 1)
    for other in ([1.0, 1, 1, 0], [0.0, 0, 3, 0], [2.0, 0, 2, 0], [1.0, 0, 2, 1]):
        x = torch.tensor(other).view(1, 4, 1, 1)
        assert not bool(geometry(name).legal(x0, x, eps=100, bounds=BOUNDS).any())


@pytest.mark.parametrize("name", [*COUNTS, *RETIMING])
def test_undoing_any_of_the_changes_leaves_a_legal_input_that_is_no_farther(name: str) -> None:
    x0 = frames(20, (4, 1, 2))
    order = uniform(20, (4, 1, 2), "order").argsort(dim=1)
    x = x0.gather(1, order) if name in RETIMING else frames(20, (4, 1, 2), "other")
    rule = geometry(name)
    units = rule.units(x0, x).view_as(x0)
    assert torch.equal(units >= 0, x != x0)
    alone = torch.cat([rule.units(x0[i : i + 1], x[i : i + 1]) for i in range(20)])
    assert torch.equal(alone.view_as(units), units)  # whatever the other rows are
    for undone in range(int(units.max()) + 1):
        less = torch.where(units == undone, x0, x)
        assert bool((rule.distance(x0, less) <= rule.distance(x0, x)).all())
