"""SCAR: score-based greedy flips that look near the last flip and along boundaries first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robustspike.attacks.spikes.flip_greedy import single_flips
from robustspike.attacks.spikes.random_changes import smallest
from robustspike.attacks.spikes.reduction import affordable
from robustspike.attacks.spikes.reduction import meets_goal
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


def boundary(x: Tensor) -> Tensor:
    """Mark cells with a different value among their 8 spatial neighbours. Shape: [n, ..., H, W] -> bool."""
    planes = x.reshape(-1, 1, *x.shape[-2:])
    high = functional.max_pool2d(planes, 3, stride=1, padding=1)
    low = -functional.max_pool2d(-planes, 3, stride=1, padding=1)
    return (high != low).view_as(x)


def neighbours(last: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Mark the cells one step from the last flip along one axis.

    Shape: last [n], flat positions, -1 for none; `shape` of one input -> [n, cells] bool.
    """
    size = int(torch.tensor(shape).prod())
    out = torch.zeros(len(last), size, dtype=torch.bool, device=last.device)
    rows, stride = torch.arange(len(last), device=last.device), size
    for length in shape:
        stride //= length
        place = last.div(stride, rounding_mode="floor") % length
        for step in (-1, 1):
            inside = (last >= 0) & (place + step >= 0) & (place + step < length)
            out[rows[inside], last[inside] + step * stride] = True
    return out


@dataclass(frozen=True)
class Scar:
    """Flip the cell that lowers the confidence most, among cells worth asking about.

    Each round asks about the cells whose last known gain reaches `gain` and the neighbours of the last
    flip; where none of them gains that much, also about cells on a spatial boundary. The best is
    flipped. The gain is the fall of the true class's softmax score (targeted: the rise of the target's).

    Args:
        gain: threshold on the gain.
        pool: most boundary cells asked about in a round, drawn at random; 0 asks about all.

    Cost: one forward for the start, and one for each cell asked about.
    """

    gain: float = 0.1
    pool: int = 256
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="scar",
        geometries=("l0",),
        domains=(Domain.STATIC, Domain.SPIKES),
        access=Access.SCORE,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Balkanski et al. 2020, Adversarial Attacks on Binary Image Recognition Systems, as "
            "re-implemented in jubueche/SPAA. Differs: at most `pool` boundary cells a round."
        ),
        cost="about 256 forwards per flip",
    )

    def __post_init__(self) -> None:
        if self.pool < 0:
            raise ConfigError(f"scar: pool must be 0 (all boundary cells) or more, got {self.pool}.")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        search = _Search(oracle, x0, y, self)
        cells = x0[0].numel() if len(x0) else 0
        limit = cells if oracle.threat.eps is None else int(min(float(oracle.threat.eps), cells))
        if limit:
            search.begin()
        for _ in range(limit):
            rows = search.standing()
            if not len(rows):
                break
            near = ~search.flipped & (search.gain >= self.gain)
            near |= ~search.flipped & neighbours(search.last, tuple(x0.shape[1:]))
            known = search.ask(rows, near[rows])
            weak = rows[known.amax(dim=1) < self.gain]
            edge = boundary(search.x[weak]).flatten(1) & ~search.flipped[weak] & ~near[weak]
            order = rng.uniform((cells,), rows=weak, dtype=torch.float64)
            room = torch.full_like(weak, self.pool or cells)
            wide = search.ask(weak, smallest(order, edge, room))
            known[torch.isin(rows, weak)] = torch.maximum(known[torch.isin(rows, weak)], wide)
            search.flip(rows, known)
        return search.x


class _Search:
    """Present inputs, known gains and flips of every row."""

    def __init__(self, oracle: Oracle, x0: Tensor, y: Tensor, attack: Scar) -> None:
        self.oracle, self.y, self.x = oracle, y, x0.clone()
        cells = x0.flatten(1)
        self.flipped = torch.zeros_like(cells, dtype=torch.bool)
        self.gain = torch.full(cells.shape, -torch.inf, dtype=torch.float64, device=x0.device)
        self.last = torch.full((len(x0),), -1, dtype=torch.int64, device=x0.device)
        self.score = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        self.over = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        self.after = torch.zeros_like(self.gain)

    def standing(self) -> Tensor:
        rows = self.oracle.active(forwards=1)
        return rows[~self.over[rows]]

    def confidence(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return what the attack raises: minus the true class's score, or the target's."""
        targets = self.oracle.targets
        chosen = self.y[rows] if targets is None else targets[rows]
        score = logits.double().softmax(dim=1).gather(1, chosen[:, None]).squeeze(1)
        return torch.nan_to_num(-score if targets is None else score, nan=-torch.inf)

    def begin(self) -> None:
        rows = self.standing()
        self.score[rows] = self.confidence(self.oracle.logits(self.x[rows], rows), rows)
        self.over[:] = True
        self.over[rows] = False

    def ask(self, rows: Tensor, tried: Tensor) -> Tensor:
        """Return the gains of the marked flips [n, cells], -inf elsewhere and where a row cannot pay."""
        tried = tried & affordable(self.oracle, rows, tried.sum(dim=1))[:, None]
        gains = torch.full(tried.shape, -torch.inf, dtype=torch.float64, device=tried.device)
        owner, _ = tried.nonzero(as_tuple=True)
        logits = single_flips(self.oracle, self.x[rows], rows, tried)
        gains[tried] = self.confidence(logits, rows[owner]) - self.score[rows[owner]]
        wrong = meets_goal(self.oracle, logits.argmax(dim=1), rows[owner], self.y)
        self.after[rows] = self.after[rows].masked_scatter(tried, wrong.double())
        self.gain[rows] = torch.where(tried, gains, self.gain[rows])
        return gains

    def flip(self, rows: Tensor, gains: Tensor) -> None:
        """Flip the best cell of every row; a row with no answer is over."""
        value, cell = gains.max(dim=1)
        self.over[rows[value == -torch.inf]] = True
        rows, value, cell = (v[value > -torch.inf] for v in (rows, value, cell))
        low, high = self.oracle.threat.bounds
        flat = self.x.flatten(1)
        flat[rows, cell] = low + high - flat[rows, cell]
        self.x = flat.view_as(self.x)
        self.flipped[rows, cell] = True
        self.score[rows] += value
        self.last[rows] = cell
        self.over[rows] = self.after[rows, cell] > 0
