"""The lines that carry spikes: the common ground of the attacks that move spikes in time."""

from __future__ import annotations

import torch
from torch import Tensor

from robustspike.bench.api import Oracle
from robustspike.bench.api import from_lines
from robustspike.bench.api import to_lines

BUDGETS = ("retime_l0", "retime_l1", "retime_linf")


def budget_of(oracle: Oracle) -> float:
    """Return eps, infinite for a minimum-norm threat."""
    return torch.inf if oracle.threat.eps is None else float(oracle.threat.eps)


class Lines:
    """The lines with at least one spike of a batch of frames [N, T, ...], as a list of M lines.

    Attributes:
        row: the sample of every line [M], in rising order.
        origin: the occupied steps of x0 [M, T] bool.
        packets: what they hold, a spike or all events of a cell [M, T].
        shift: distance in steps from source s to target t [T, T].
    """

    def __init__(self, x0: Tensor) -> None:
        occupied = to_lines(x0 != 0)
        self.busy = occupied.any(dim=2)
        self.row = self.busy.nonzero()[:, 0]
        self.origin = occupied[self.busy]
        self.packets = to_lines(x0)[self.busy]
        self.like = x0
        steps = torch.arange(x0.shape[1], device=x0.device)
        self.shift = (steps[None, :] - steps[:, None]).abs()

    def of(self, rows: Tensor) -> Tensor:
        """Return the positions of the lines of some rows."""
        return torch.isin(self.row, rows).nonzero().squeeze(1)

    def frames(self, held: Tensor, rows: Tensor) -> Tensor:
        """Make the frames [n, T, ...] of some rows from what all lines hold [M, T]."""
        grid = held.new_zeros(*self.busy.shape, held.shape[1])
        grid[self.busy] = held
        return from_lines(grid[rows], self.like[rows])

    def spread(self, values: Tensor, lines: Tensor, rows: Tensor) -> Tensor:
        """Make real-valued frames [n, T, ...] of some rows from values on their lines [lines, T]."""
        grid = values.new_zeros(*self.busy.shape, values.shape[1])
        full = values.new_zeros(len(self.row), values.shape[1])
        full[lines] = values
        grid[self.busy] = full
        return from_lines(grid[rows], self.like[rows])

    def gradients(self, grad: Tensor, rows: Tensor) -> Tensor:
        """Take the gradient [n, T, ...] of some rows apart into their lines [lines of rows, T]."""
        return to_lines(grad)[self.busy[rows]]


def within(row: Tensor, key: Tensor, cost: Tensor, budget: Tensor) -> Tensor:
    """Choose, row by row, the items with the largest keys whose costs add up to the budget at most.

    The choice ends at the first item that does not fit; among equals the lower index comes first.

    Shape: row, key, cost [m] (rows in rising order, costs whole numbers), budget [N] -> [m] bool.
    """
    order = key.sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]
    running = cost[order].double().cumsum(dim=0)
    first = torch.searchsorted(row, torch.arange(len(budget), device=row.device))
    before = torch.cat([running.new_zeros(1), running])[first]
    spent = running - before[row[order]]
    chosen = torch.zeros_like(row, dtype=torch.bool)
    chosen[order] = spent <= budget[row[order]]
    return chosen
