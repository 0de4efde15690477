"""Sensor-level attacks: which cells they touch, in which order, and that they stay in their limits."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.spikes.dvs_patterns import Corner
from robustspike.attacks.spikes.dvs_patterns import Dash
from robustspike.attacks.spikes.dvs_patterns import Frame
from robustspike.attacks.spikes.dvs_patterns import MaskDash
from robustspike.attacks.spikes.dvs_sparse import DvsSparse
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import ShardResult
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.defenses.event_filters import MaskFilter

SHAPE = (4, 2, 8, 8)


class Trap(nn.Module):
    """Class 1 as soon as more than `level` of the watched cells are on."""

    def __init__(self, watched: Tensor, level: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(watched.double().flatten())
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        seen = (x.flatten(1).double() * self.weight).sum(dim=1)
        return torch.stack([torch.full_like(seen, self.level), seen - 0.5], dim=1)


def trap(watched: Tensor, level: float = 0.0, *, shape: tuple[int, ...] = SHAPE) -> ModuleVictim:
    return wrap(Trap(watched, level), name="trap", shape=shape, classes=2, domain=Domain.SPIKES)


def cells(*index: Any, shape: tuple[int, ...] = SHAPE) -> Tensor:
    mask = torch.zeros(shape)
    mask[index] = 1
    return mask


def inputs(n: int = 6, *, density: float = 0.2) -> Tensor:
    u = torch.arange(n * 512).double().mul(12.9898).sin().mul(43758.5453).frac().abs()
    return (u.view(n, *SHAPE) < density).float()


def attack(
    victim: ModuleVictim, rule: Any, x: Tensor, *, eps: int | None = None, goal: Goal = Goal.UNTARGETED
) -> ShardResult:
    with torch.no_grad():
        y = victim.logits(x).argmax(dim=1)
    threat = ThreatModel(
        domain=Domain.SPIKES,
        geometry="l0",
        eps=None if eps is None else Fraction(eps),
        access=rule.spec.access,
        goal=goal,
    )
    result = evaluate_shard(victim, rule, threat, x, y, torch.arange(len(x)))
    assert not result.errors, result.errors
    return result


def test_frame_lights_the_border_ring_and_nothing_else() -> None:
    x = inputs()
    border = torch.ones(SHAPE)
    border[..., 1:-1, 1:-1] = 0
    found = attack(trap(border, level=border.sum() - 1), Frame(), x)
    assert found.count("broken") == len(x)
    assert (found.x_adv * border == border).all()
    assert torch.equal(found.x_adv[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1])
    assert (found.distance <= 2 * 4 * (2 * 8 + 2 * 8 - 4)).all()
    assert (found.forwards == 1).all()


def test_corner_starts_at_four_corners_and_grows() -> None:
    patterns = list(Corner(step=2).patterns(SHAPE))
    assert len(patterns) == 4 * 3
    for pattern, (row, columns) in zip(
        patterns, [(0, [0, 1]), (7, [0, 1]), (0, [6, 7]), (7, [6, 7])], strict=False
    ):
        expected = torch.zeros(SHAPE, dtype=torch.bool)
        expected[:, :, row, columns] = True
        assert torch.equal(pattern, expected)
    assert [int(p.sum()) // 8 for p in patterns] == [2] * 4 + [4] * 4 + [6] * 4


def test_dash_is_two_pixels_that_slide_inwards() -> None:
    patterns = list(Dash().patterns(SHAPE))
    assert len(patterns) == 4 * 6
    assert all(int(p.sum()) == 2 * 8 for p in patterns)
    where = [sorted(set(p.nonzero()[:, 3].tolist())) for p in patterns[::4]]
    assert where == [[k, k + 1] for k in range(6)]
    mirrored = [sorted(set(p.nonzero()[:, 3].tolist())) for p in patterns[2::4]]
    assert mirrored == [[6 - k, 7 - k] for k in range(6)]


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_mask_dash_never_overdrives_a_pixel(cap: int) -> None:
    shape = (7, 2, 16, 16)
    patterns = list(MaskDash(cap=cap).patterns(shape))
    assert len(patterns) == 4 * 14 * 3  # row offsets 0, 1 and 2 of 16 rows
    activity = torch.stack([p.sum(dim=(0, 1)) for p in patterns])
    assert int(activity.max()) == cap
    assert not any(p[:, 0].any() for p in patterns)  # one polarity
    first = patterns[0]
    for block, start in enumerate(range(0, 7, cap)):
        assert sorted(set(first[start : start + cap].nonzero()[:, 3].tolist())) == [2 * block, 2 * block + 1]


def test_mask_dash_passes_a_mask_filter_set_above_its_cap() -> None:
    x = inputs()
    most = int(x.sum(dim=(1, 2)).max())
    for pattern in list(MaskDash(cap=2).patterns(SHAPE))[::7]:
        attacked = torch.maximum(x, pattern.to(x))
        hard, _ = MaskFilter(limit=most + 2).keep(attacked)
        assert bool((hard == 1).all())
    dashed = torch.maximum(x, next(Dash().patterns(SHAPE)).to(x))
    assert (dashed * MaskFilter(limit=most).keep(dashed)[0])[..., 0, :2].sum() == 0


def test_each_sample_keeps_its_first_success() -> None:
    victim = trap(cells(slice(None), slice(None), 0, 4), level=7.0)
    x = torch.zeros(2, *SHAPE)
    found = attack(victim, Dash(), x)
    # Columns 3 and 4 come as fourth dash from the left, columns 4 and 5 as third from the right.
    assert found.forwards.tolist() == [2 * 4 + 3] * 2
    assert found.first_hit.tolist() == found.forwards.tolist()
    assert (found.distance == 16).all()
    assert found.x_adv[0].nonzero()[:, 3].unique().tolist() == [4, 5]


@pytest.mark.parametrize("rule", [Frame(), Corner(), Dash(), MaskDash()])
def test_patterns_only_add_spikes_and_are_cut_to_the_budget(rule: Any) -> None:
    x = inputs()
    victim = trap(cells(0, slice(None), 0, slice(None)), level=float(x[:, 0, :, 0].sum(dim=(1, 2)).max()))
    for eps in (None, 5, 1):
        found = attack(victim, rule, x, eps=eps)
        assert (found.x_adv >= x).all()
        assert eps is None or (found.distance <= eps).all()


def test_sparse_respects_its_time_mask_and_the_budget() -> None:
    x = inputs(12)
    weight = torch.where(inputs(1)[0] > 0, 1.0, -0.5)
    centre = float((x.double() * weight).flatten(1).sum(dim=1).median())
    victim = trap(weight, level=centre)
    found = attack(victim, DvsSparse(masked=0.5), x, eps=6)
    assert (found.distance <= 6).all()
    assert found.count("broken") >= 6
    touched = (found.x_adv != x).flatten(2).any(dim=2).sum(dim=1)
    assert int(touched.max()) <= 2  # half of the four time steps
    free = attack(victim, DvsSparse(masked=0.0), x)
    assert free.count("broken") == 12


def test_sparse_without_a_budget_keeps_the_nearest_success_it_finds() -> None:
    victim = load_victim("lif_cnn.digits_events")
    split = registry("datasets").get("digits_events").load("test")[:12]
    free = attack(victim, DvsSparse(), split.x)
    everything = attack(victim, DvsSparse(), split.x, eps=2048)
    assert free.count("broken") == everything.count("broken") == 12
    assert (free.distance <= everything.distance).all()
    assert free.distance.median() < everything.distance.median()


def test_sparse_reaches_a_target() -> None:
    x = inputs(4)
    weight = torch.where(inputs(1)[0] > 0, 1.0, -1.0)
    victim = trap(weight, level=20.0)
    found = attack(victim, DvsSparse(masked=0.0), x, goal=Goal.TARGETED)
    assert found.labels.tolist() == [1, 0, 0, 0]
    assert found.count("broken") == 4
    assert (found.adv == 1 - found.labels).all()


@pytest.mark.parametrize("rule", [Frame(), Corner(), Dash(), MaskDash(), DvsSparse()])
def test_empty_frames_and_one_pixel_sensors_end_quietly(rule: Any) -> None:
    assert (
        attack(trap(torch.ones(SHAPE), level=1e9), rule, torch.zeros(1, *SHAPE), eps=9).count("robust") == 1
    )
    tiny = (1, 1, 1, 1)
    victim = trap(torch.ones(tiny), level=1e9, shape=tiny)
    assert attack(victim, rule, torch.zeros(1, *tiny), eps=9).count("robust") == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Corner(step=0),
        lambda: Dash(step=-1),
        lambda: MaskDash(cap=0),
        lambda: MaskDash(polarity=-1),
        lambda: DvsSparse(steps=0),
        lambda: DvsSparse(masked=1.0),
        lambda: DvsSparse(lr=float("nan")),
    ],
)
def test_wrong_parameters_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()
