"""Streams belong to samples: batch mates, order and history of others do not matter."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import stable_hash


def test_numbers_do_not_depend_on_batch_mates() -> None:
    whole = RowStreams.derive([3, 5, 8], 0, "attack")
    alone = RowStreams.derive([5], 0, "attack")
    whole.uniform((4,), rows=torch.tensor([0]))  # another row draws first
    assert torch.equal(whole.uniform((2, 3), rows=torch.tensor([1])), alone.uniform((2, 3)))


def test_draws_continue_and_differ() -> None:
    streams = RowStreams.derive(range(2), 0)
    first, second = streams.uniform((5,)), streams.uniform((5,))
    assert not torch.equal(first, second)
    again = RowStreams.derive(range(2), 0).uniform((10,))
    assert torch.equal(again, torch.cat([first, second], dim=1))


def test_forks_are_reproducible_and_distinct() -> None:
    streams = RowStreams.derive(range(3), 7)
    a = streams.fork("x").uniform((6,))
    assert torch.equal(a, RowStreams.derive(range(3), 7).fork("x").uniform((6,)))
    assert not torch.equal(a, streams.fork("y").uniform((6,)))
    index = torch.tensor([0, 1, 2])
    by_index = streams.fork("x", index=index).uniform((6,))
    assert not torch.equal(by_index[1:], a[1:])


def test_uniform_and_normal_have_their_moments() -> None:
    streams = RowStreams.derive(range(4), "moments")
    u = streams.uniform((50_000,), dtype=torch.float64)
    assert u.min() >= 0 and u.max() < 1
    assert abs(float(u.mean()) - 0.5) < 5 * (1 / 12 / u.numel()) ** 0.5
    z = streams.normal((50_000,), dtype=torch.float64)
    assert abs(float(z.mean())) < 5 / z.numel() ** 0.5
    assert abs(float(z.var()) - 1) < 5 * (2 / z.numel()) ** 0.5
    assert torch.isfinite(z).all()
    lag = (u[:, 1:] - 0.5) * (u[:, :-1] - 0.5)
    assert abs(float(lag.mean())) < 5 / 12 / u.numel() ** 0.5


@given(st.integers(1, 1000), st.integers(1, 50))
def test_integers_stay_below_the_bound(high: int, n: int) -> None:
    drawn = RowStreams.derive(range(n), high).integers(high, (20,))
    assert drawn.min() >= 0
    assert drawn.max() < high


def test_permutations_are_permutations() -> None:
    order = RowStreams.derive(range(5), 0).permutation(17)
    assert torch.equal(order.sort(dim=1).values, torch.arange(17).expand(5, 17))


def test_hash_is_the_same_on_every_platform() -> None:
    assert stable_hash("attack", 1) == stable_hash("attack", 1) != stable_hash("attack1", "")
    assert stable_hash("attack", 1) == -6041924168300504867


def test_numbers_never_change() -> None:
    u = RowStreams.derive([0, 1], 0, "attack").uniform((2,), dtype=torch.float64)
    assert u.tolist() == [
        [0.6971601656674715, 0.24818178640057764],
        [0.7446427323094448, 0.38887734488969816],
    ]
