"""The retiming geometries against their definition, and against exhaustive search."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from tiny_spike_victims import legal_points
from torch import Tensor

from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

NAMES = ("retime_linf", "retime_l1", "retime_l0")
BOUNDS = (0.0, 1.0)


def geometry(name: str):
    return registry("geometries").get(name)


def frames(seed: int, n: int, steps: int, lines: int, rate: float = 0.4) -> Tensor:
    u = RowStreams.derive(range(n), "retiming test", seed).uniform((steps, 1, lines))
    return (u < rate).float()


def same_counts(x0: Tensor, x: Tensor) -> bool:
    return torch.equal(x0.sum(dim=1), x.sum(dim=1))


def costs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """All (largest shift, total shift, moves) over the assignments of one line, literally."""
    out = []
    for order in permutations(new):
        shifts = [abs(a - b) for a, b in zip(old, order, strict=True)]
        out.append((max(shifts, default=0), sum(shifts), sum(s > 0 for s in shifts)))
    return out


def literal_distance(name: str, x0: Tensor, x: Tensor) -> float:
    """Minimum over assignments, line by line; x0 and x [T, L]."""
    part = NAMES.index(name)
    best = []
    for line in range(x0.shape[1]):
        old, new = (tuple(v[:, line].nonzero().squeeze(1).tolist()) for v in (x0, x))
        best.append(min(c[part] for c in costs(old, new)))
    return max(best) if name == "retime_linf" else sum(best)


@pytest.mark.parametrize("name", NAMES)
def test_distance_is_the_minimum_over_all_assignments(name: str) -> None:
    for x0 in frames(1, 6, 4, 2, rate=0.5)[:, :, 0]:
        for x in legal_points(x0):
            found = geometry(name).distance(x0[None], x[None])
            assert found.item() == literal_distance(name, x0, x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eps", [0, 1, 2, 3])
def test_projection_is_the_nearest_legal_point(name: str, eps: int) -> None:
    shape = geometry(name)
    for i, x0 in enumerate(frames(2, 8, 5, 2)[:, :, 0]):
        points = torch.stack(legal_points(x0))
        inside = points[shape.distance(x0.expand_as(points), points) <= eps]
        target = RowStreams.derive([i], "target").normal((5, 2), dtype=torch.float64)
        found = shape.project(x0[None], target, eps=eps, bounds=BOUNDS)
        assert shape.legal(x0[None], found, eps=eps, bounds=BOUNDS).all()
        assert any(torch.equal(found[0], p) for p in inside)
        gap = (found - target).square().sum() - (inside - target).square().sum(dim=(1, 2)).min()
        if name != "retime_l1":
            assert gap.abs() < 1e-12
        else:  # between two prices: never worse than staying
            assert (found - target).square().sum() <= (x0 - target).square().sum() + 1e-12


@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 7),
    eps=st.sampled_from([0.0, 1.0, 2.0, 5.0, float("inf")]),
    rate=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
@settings(max_examples=30, deadline=None)
def test_projection_is_inside_idempotent_and_keeps_counts(
    name: str, seed: int, steps: int, eps: float, rate: float
) -> None:
    shape = geometry(name)
    x0 = frames(seed, 3, steps, 4, rate)
    rng = RowStreams.derive(range(3), "hypothesis", seed)
    target = rng.normal(x0.shape[1:])
    rows = torch.arange(3)
    for x in (
        shape.project(x0, target, eps=eps, bounds=BOUNDS),
        shape.sample(x0, eps=eps, bounds=BOUNDS, rng=rng, rows=rows),
    ):
        assert shape.legal(x0, x, eps=eps, bounds=BOUNDS).all()
        assert same_counts(x0, x)
        assert torch.equal(shape.project(x0, x, eps=eps, bounds=BOUNDS), x)
        if eps == 0:
            assert torch.equal(x, x0)


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_distance_is_a_metric_on_rearrangements(name: str, seed: int) -> None:
    shape = geometry(name)
    x0 = frames(seed, 4, 6, 3)
    rng = RowStreams.derive(range(4), "metric", seed)
    rows = torch.arange(4)
    a, b = (shape.sample(x0, eps=float("inf"), bounds=BOUNDS, rng=rng.fork(k), rows=rows) for k in range(2))
    assert torch.equal(shape.distance(a, b), shape.distance(b, a))
    assert (shape.distance(x0, b) <= shape.distance(x0, a) + shape.distance(a, b)).all()
    assert torch.equal(shape.distance(a, b) == 0, (a == b).flatten(1).all(dim=1))


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_undoing_any_moves_stays_legal_and_never_moves_away(name: str, seed: int) -> None:
    shape = geometry(name)
    x0 = frames(seed, 3, 6, 4)
    rng = RowStreams.derive(range(3), "units", seed)
    x = shape.sample(x0, eps=float("inf"), bounds=BOUNDS, rng=rng, rows=torch.arange(3))
    units = shape.units(x0, x)
    assert torch.equal(units >= 0, (x != x0).flatten(1))
    size = units.amax().item() + 1
    kept = rng.uniform((max(size, 1),)) < 0.5
    keep = torch.where(units >= 0, kept.gather(1, units.clamp(min=0)), False)
    part = torch.where(keep.view_as(x), x, x0)
    assert same_counts(x0, part)
    assert (shape.distance(x0, part) <= shape.distance(x0, x)).all()


@pytest.mark.parametrize("name", NAMES)
def test_illegal_inputs_are_refused(name: str) -> None:
    shape = geometry(name)
    x0 = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 4, 1)
    added = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 4, 1)
    graded = torch.tensor([0.5, 0.5, 1.0, 0.0]).view(1, 4, 1)
    nan = torch.tensor([1.0, torch.nan, 0.0, 0.0]).view(1, 4, 1)
    for x in (added, graded, nan):
        assert not shape.legal(x0, x, eps=float("inf"), bounds=BOUNDS).any()
    assert shape.distance(x0, added).item() == float("inf")
    moved_lines = torch.zeros(1, 4, 2)
    moved_lines[0, 0, 0] = 1.0
    other = moved_lines.flip(2)
    assert not shape.legal(moved_lines, other, eps=float("inf"), bounds=BOUNDS).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_projection_of_non_finite_scores_is_legal(name: str, bad: float) -> None:
    shape = geometry(name)
    x0 = frames(3, 2, 5, 3)
    target = torch.full_like(x0, 0.25)
    target[:, 1] = bad
    x = shape.project(x0, target, eps=2.0, bounds=BOUNDS)
    assert shape.legal(x0, x, eps=2.0, bounds=BOUNDS).all()


def test_hamming_distance_is_twice_the_moves_and_full_lines_stay() -> None:
    x0 = frames(4, 16, 6, 5)
    x0[:, :, :, 0] = 1.0
    rng = RowStreams.derive(range(16), "hamming")
    x = geometry("retime_l0").sample(x0, eps=7.0, bounds=BOUNDS, rng=rng, rows=torch.arange(16))
    assert torch.equal(x[..., 0], x0[..., 0])
    moves = geometry("retime_l0").distance(x0, x)
    assert torch.equal((x != x0).flatten(1).sum(dim=1).double(), 2 * moves)
    room = torch.minimum(x0.sum(dim=1), 6 - x0.sum(dim=1)).flatten(1).sum(dim=1)
    assert torch.equal(moves, room.clamp(max=7).double())


def test_exact_budgets_of_known_moves() -> None:
    x0 = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 4, 1)
    x = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 4, 1)  # 0 -> 1 and 1 -> 3, or 0 -> 3 alone
    assert geometry("retime_linf").distance(x0, x).item() == 2
    assert geometry("retime_l1").distance(x0, x).item() == 3
    assert geometry("retime_l0").distance(x0, x).item() == 1


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_influence_each_other(name: str) -> None:
    shape = geometry(name)
    x0 = frames(5, 4, 6, 8)
    rng = RowStreams.derive(range(4), "batch")
    target = rng.normal(x0.shape[1:])
    together = shape.project(x0, target, eps=3.0, bounds=BOUNDS)
    drawn = shape.sample(x0, eps=3.0, bounds=BOUNDS, rng=rng.fork("s"), rows=torch.arange(4))
    for i in range(4):
        alone = shape.project(x0[i : i + 1], target[i : i + 1], eps=3.0, bounds=BOUNDS)
        assert torch.equal(alone[0], together[i])
        one = RowStreams.derive([i], "batch").fork("s")
        single = shape.sample(x0[i : i + 1], eps=3.0, bounds=BOUNDS, rng=one, rows=torch.arange(1))
        assert torch.equal(single[0], drawn[i])
