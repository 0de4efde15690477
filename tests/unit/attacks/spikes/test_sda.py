"""SDA: known minima, equivalence with a plain one-sample loop in exact arithmetic, counters, edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from robustspike.attacks.gradients.pdsg import Pdsg
from robustspike.attacks.spikes.sda import Sda
from robustspike.attacks.spikes.sda import _largest
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import generator
from robustspike.bench.api import margin


def plain_sda(
    victim: ModuleVictim, x: Tensor, y: int, fill: RowStreams, *, k_init: int, iterations: int
) -> tuple[Tensor, bool]:
    """SDA on one sample, element by element: the algorithm as published, ties to the lower index."""
    label = torch.tensor([y])

    def answer(flat: Tensor) -> Tensor:
        return victim.logits(flat.view(1, *x.shape))

    def loss(flat: Tensor) -> float:
        return max(-float(margin(answer(flat), label)), 0.0)

    now, clean = x.flatten().clone(), x.flatten()
    effect: dict[int, float] = {}
    for n in range(1, iterations + 1):
        out = victim.loss_and_grad(now.view(1, *x.shape), label, margin, Pdsg())
        if int(out.logits.argmax()) != y:
            break
        grad = out.grad.flatten()
        gain = [float(g) * (1 - 2 * float(v)) for g, v in zip(grad, now, strict=True)]
        gain = [max(g, 0.0) if i not in effect else 0.0 for i, g in enumerate(gain)]
        k = n * k_init
        genuine = [g for g in gain if g > 0]
        if len(genuine) < k:
            noise = fill.fork("fill", n).uniform((len(gain),), dtype=x.dtype)[0].tolist()
            floor = min(genuine, default=1.0)
            gain = [g if g > 0 else u * floor for g, u in zip(gain, noise, strict=True)]
        order = sorted((i for i in range(len(gain)) if i not in effect), key=lambda i: (-gain[i], i))
        before = loss(now)
        accepted = {}
        for i in order[:k]:
            trial = now.clone()
            trial[i] = 1 - trial[i]
            change = loss(trial) - before
            if change <= 0:
                accepted[i] = change
        effect.update(accepted)
        for i in accepted:
            now[i] = 1 - now[i]
    if int(answer(now).argmax()) == y:
        return clean, False
    order = sorted(effect, key=lambda i: (abs(effect[i]), i))
    low, high, final = 0, len(order) - 1, now
    while low <= high:
        middle = (low + high) // 2
        trial = now.clone()
        trial[order[: middle + 1]] = clean[order[: middle + 1]]
        if int(answer(trial).argmax()) != y:
            final, low = trial, middle + 1
        else:
            high = middle - 1
    return final, True


class Returned(Sda):
    """SDA that also keeps what it returned, without the oracle's memory."""

    kept: Tensor

    def run(self, oracle, x0, y, *, rng):
        x = super().run(oracle, x0, y, rng=rng)
        object.__setattr__(self, "kept", x)
        return x


@pytest.mark.parametrize("seed", [2, 3])
def test_batched_equals_the_plain_loop_in_exact_arithmetic(toys, grid, attacked, seed) -> None:
    victim = toys.spiking(seed=seed)
    x = grid(6, victim.spec.shape)
    attack = Returned(tol=0.0, k_init=4)
    result = attacked(victim, attack, x)
    assert result.errors == []
    y = victim.logits(x).argmax(dim=1)
    flips = 0
    for i in range(len(x)):
        streams = RowStreams.derive([i], 0, "attack", "sda.l0")
        expected, success = plain_sda(victim, x[i], int(y[i]), streams, k_init=4, iterations=500)
        assert success
        assert torch.equal(attack.kept[i].flatten(), expected), i
        flips += int((expected != x[i].flatten()).sum())
    assert flips > 18  # the samples are not all broken in the first iteration


def test_linear_victim_is_broken_with_the_fewest_flips(toys, grid, attacked) -> None:
    shape = (2, 1, 4, 4)
    gain = torch.randn(32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = grid(8, shape, rate=0.4)
    victim = toys.gains(gain, -9.0, shape)
    result = attacked(victim, Sda(), x, y=torch.zeros(8, dtype=torch.int64))
    for i in range(8):
        toward = torch.where(x[i].flatten() == 0, gain, -gain).sort(descending=True).values
        start = float(victim.logits(x[i : i + 1])[0, 1])
        fewest = next((k for k in range(33) if start + float(toward[:k].sum()) > 0), None)
        if fewest is None:
            assert result.status[i] == 0
        else:
            assert result.distance[i] == fewest
            assert fewest >= 2


GREEDY = Sda(k_init=64, keep=1, early_candidate_exit=True, second_reduction_pass=True)


def fewest_flips(victim: ModuleVictim, x: Tensor, y: Tensor, most: int = 2) -> int:
    """Return the true minimum by trying every set of up to `most` flips; most + 1 where none works."""
    size = x.numel()
    for count in range(1, most + 1):
        sets = torch.tensor(list(itertools.combinations(range(size), count)))
        trial = x.flatten().expand(len(sets), size).clone()
        trial.scatter_(1, sets, 1 - trial.gather(1, sets))
        if bool((victim.logits(trial.view(-1, *x.shape)).argmax(dim=1) != y).any()):
            return count
    return most + 1


def test_no_result_is_smaller_than_the_true_minimum_and_most_equal_it(toys, grid, attacked) -> None:
    shape = (4, 1, 4, 4)
    known = {"published": 0, "greedy": 0}
    matched = dict(known)
    for seed in (4, 5, 6, 8):
        victim = toys.spiking(shape, classes=3, seed=seed)
        x = grid(16, shape, rate=0.3)
        y = victim.logits(x).argmax(dim=1)
        smallest = torch.tensor([fewest_flips(victim, x[i], y[i]) for i in range(16)])
        for name, attack in (("published", Sda(second_reduction_pass=True)), ("greedy", GREEDY)):
            result = attacked(victim, attack, x)
            assert bool((result.distance[result.status == 1] >= smallest[result.status == 1]).all())
            known[name] += int((smallest < 3).sum())
            matched[name] += int(((smallest < 3) & (result.distance == smallest)).sum())
    assert known["greedy"] == 58
    assert matched["greedy"] >= 0.9 * 58, matched
    assert matched["published"] >= 0.75 * 58, matched  # it flips ten at a time


def test_second_reduction_pass_leaves_no_flip_that_can_be_undone(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=2)
    x = grid(6, victim.spec.shape)
    attack = Returned(second_reduction_pass=True)
    result = attacked(victim, attack, x)
    plain = Returned()
    attacked(victim, plain, x)
    y = victim.logits(x).argmax(dim=1)
    assert bool((result.status == 1).all())
    for i in range(len(x)):
        different = (attack.kept[i] != x[i]).flatten().nonzero().squeeze(1)
        assert len(different) <= int((plain.kept[i] != x[i]).sum())
        for at in different:
            trial = attack.kept[i].flatten().clone()
            trial[at] = x[i].flatten()[at]
            assert int(victim.logits(trial.view(1, *x.shape[1:])).argmax()) == y[i]


class Watched(Sda):
    """SDA that keeps what was selected after every iteration, with its effect, and what was left."""

    def run(self, oracle, x0, y, *, rng):
        object.__setattr__(self, "seen", [])
        x = super().run(oracle, x0, y, rng=rng)
        object.__setattr__(self, "left", (x != x0).flatten(1))
        return x

    def _test(self, search, rows, index, tried, loss):
        super()._test(search, rows, index, tried, loss)
        self.seen.append((search.flipped.clone(), search.effect.clone()))


def test_selected_flips_never_raise_the_loss_and_each_is_selected_once(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=3)
    attack = Watched(tol=0.0, k_init=5)
    result = attacked(victim, attack, grid(6, victim.spec.shape))
    assert bool((result.status == 1).all()) and len(attack.seen) >= 3
    before = torch.zeros_like(attack.seen[0][0])
    for n, (flipped, effect) in enumerate(attack.seen, start=1):
        assert bool((effect[flipped] <= 0).all())
        assert bool((flipped | ~before).all())  # what is selected stays selected
        assert int(flipped.sum(dim=1).max()) <= 5 * n * (n + 1) // 2
        before = flipped
    assert bool((before | ~attack.left).all())  # reduction only takes away
    assert int(attack.left.sum()) < int(before.sum())


def test_more_iterations_break_no_fewer_samples(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=3)
    x = grid(8, victim.spec.shape)
    broken = [int((attacked(victim, Sda(iterations=n), x).status == 1).sum()) for n in (1, 2, 3, 5, 9)]
    assert broken == sorted(broken) and broken[0] < broken[-1] == 8


def test_the_largest_come_first_and_ties_by_place() -> None:
    rng = generator("largest")
    for case in range(30):
        gain = torch.randint(0, 12 if case % 2 else 10**6, (7, 40), generator=rng).double()
        gain[3] = 1.0
        for k in (1, 5, 39, 40):
            full = gain.sort(dim=1, descending=True, stable=True)
            values, index = _largest(gain, k)
            assert torch.equal(values, full.values[:, :k]) and torch.equal(index, full.indices[:, :k])


def test_counters_equal_the_closed_form(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=3)
    x = grid(6, victim.spec.shape)
    result = attacked(victim, Sda(k_init=5), x)
    for i in range(len(x)):
        n = int(result.backwards[i]) - 1
        generation = n + 1 + 5 * n * (n + 1) // 2
        reduction = int(result.forwards[i]) - generation
        assert 1 <= reduction <= math.floor(math.log2(5 * n * (n + 1) // 2)) + 1


def test_samples_do_not_depend_on_batch_mates_or_their_order(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=4)
    x = grid(5, victim.spec.shape)
    together = attacked(victim, Sda(tol=0.0), x)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = attacked(victim, Sda(tol=0.0), x[order], ids=order)
    assert torch.equal(permuted.x_adv, together.x_adv[order])
    assert torch.equal(permuted.forwards, together.forwards[order])
    for i in range(5):
        alone = attacked(victim, Sda(tol=0.0), x[i : i + 1], ids=torch.tensor([i]))
        assert torch.equal(alone.x_adv[0], together.x_adv[i])
        assert alone.forwards[0] == together.forwards[i]


@pytest.mark.parametrize("attack", [Sda(iterations=5), Sda(accept_zero=False, iterations=5)])
def test_constant_victim_ends_without_success(toys, grid, attacked, attack) -> None:
    victim = toys.constant((3, 1, 4, 4))
    result = attacked(victim, attack, grid(3, (3, 1, 4, 4)), y=torch.zeros(3, dtype=torch.int64))
    assert result.errors == []
    assert result.status.tolist() == [0, 0, 0]
    assert torch.equal(result.x_adv, grid(3, (3, 1, 4, 4)))


def test_victim_that_never_spikes_ends_without_success(toys, grid, attacked) -> None:
    victim = toys.spiking((4, 1, 4, 4), threshold=1e9)
    result = attacked(victim, Sda(), grid(2, (4, 1, 4, 4)))
    assert result.errors == [] and result.status.tolist() == [0, 0]


def test_empty_samples_are_attacked(toys, attacked) -> None:
    victim = toys.spiking(seed=3)
    result = attacked(victim, Sda(), torch.zeros(2, *victim.spec.shape, dtype=torch.float64))
    assert result.errors == []
    assert result.status.tolist() == [1, 1]


@pytest.mark.parametrize("forwards", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("eps", [None, 4])
def test_budget_is_respected_without_an_error(toys, grid, attacked, forwards, eps) -> None:
    victim = toys.spiking(seed=2)
    budget = Budget(forwards=forwards, backwards=3)
    attack = Sda(second_reduction_pass=True)
    result = attacked(victim, attack, grid(4, victim.spec.shape), budget=budget, eps=eps)
    assert result.errors == []
    assert int(result.forwards.max()) <= forwards and int(result.backwards.max()) <= 3


def test_bounded_threat_keeps_its_bound_and_grows_with_it(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=2)
    x = grid(8, victim.spec.shape)
    broken = []
    for eps in (0, 1, 3, 8, 64):
        result = attacked(victim, Sda(), x, eps=eps)
        assert result.errors == []
        assert bool((result.distance <= eps).all())
        assert bool(((result.x_adv == 0) | (result.x_adv == 1)).all())
        broken.append(int((result.status == 1).sum()))
        if eps == 0:
            assert torch.equal(result.x_adv, x)
    assert broken == sorted(broken) and broken[0] == 0 and broken[-1] == 8


def test_targeted_goal_reaches_the_target_class(toys, grid, attacked) -> None:
    victim = toys.linear((2, 1, 4, 4), classes=4, seed=1)
    result = attacked(victim, Sda(), grid(6, (2, 1, 4, 4), dtype=torch.float32), goal=Goal.TARGETED)
    assert result.errors == []
    assert int((result.status == 1).sum()) >= 5  # a corner of the cube need not exist for every class
    reached = victim.logits(result.x_adv[result.status == 1]).argmax(dim=1)
    assert torch.equal(reached, result.adv[result.status == 1])


def test_early_candidate_exit_saves_queries(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=2)
    x = grid(8, victim.spec.shape)
    slow, fast = attacked(victim, Sda(), x), attacked(victim, Sda(early_candidate_exit=True), x)
    assert bool((fast.status == 1).all())
    assert int(fast.forwards.sum()) <= int(slow.forwards.sum())


def test_same_seed_gives_the_same_bytes(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=2, dtype=torch.float32)
    x = grid(4, victim.spec.shape, dtype=torch.float32)
    first, second = attacked(victim, Sda(), x), attacked(victim, Sda(), x)
    assert torch.equal(first.x_adv, second.x_adv) and torch.equal(first.forwards, second.forwards)


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="k_init"):
        Sda(k_init=0)
