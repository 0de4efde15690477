"""The oracle meters, refuses, remembers, and hides the victim."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from robustspike.bench.api import Access
from robustspike.bench.api import AccessDenied
from robustspike.bench.api import Budget
from robustspike.bench.api import BudgetExceeded
from robustspike.bench.api import ContractError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import registry
from robustspike.bench.attack.meter import Meter
from robustspike.bench.testing.reference import reference
from robustspike.bench.testing.reference import samples


def make(threat: ThreatModel, n: int = 4, *, targets: torch.Tensor | None = None) -> tuple[Oracle, Meter]:
    victim = reference(threat.domain)
    x = samples(threat.domain, n)
    logits = victim.logits(x)
    meter = Meter(
        victim,
        threat,
        registry("geometries").get(threat.geometry),
        x,
        logits.argmax(dim=1).clone(),
        noise=RowStreams.derive(range(n), 0),
        clean=logits,
        estimators=registry("estimators").get,
        targets=targets,
    )
    return Oracle(meter), meter


LINF = ThreatModel(eps=Fraction(1, 4))


def test_counts_every_pass_of_every_row() -> None:
    oracle, meter = make(LINF)
    rows = torch.tensor([0, 2, 2])
    oracle.labels(meter.x0[rows], rows)
    oracle.loss_and_grad(meter.x0[:1], torch.tensor([0]))
    assert meter.forwards.tolist() == [2, 0, 2, 0]
    assert meter.backwards.tolist() == [1, 0, 0, 0]


def test_refuses_what_the_budget_forbids_and_charges_nothing_for_it() -> None:
    oracle, meter = make(replace(LINF, budget=Budget(forwards=1, backwards=0)))
    rows = torch.tensor([0, 1])
    oracle.labels(meter.x0[rows], rows)
    assert oracle.active(forwards=1).tolist() == [2, 3]
    with pytest.raises(BudgetExceeded, match="sample 0"):
        oracle.labels(meter.x0[:1], torch.tensor([0]))
    with pytest.raises(BudgetExceeded):
        oracle.loss_and_grad(meter.x0[3:], torch.tensor([3]))
    assert meter.forwards.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("access", "allowed"),
    [
        (Access.WHITE, {"labels", "logits", "loss_and_grad"}),
        (Access.SCORE, {"labels", "logits"}),
        (Access.LABEL, {"labels"}),
        (Access.TRANSFER, set()),
    ],
)
def test_access_levels(access: Access, allowed: set[str]) -> None:
    oracle, meter = make(replace(LINF, access=access))
    for method in ("labels", "logits", "loss_and_grad"):
        rows = torch.tensor([0])
        if method in allowed:
            getattr(oracle, method)(meter.x0[:1], rows)
        else:
            with pytest.raises(AccessDenied, match=str(access)):
                getattr(oracle, method)(meter.x0[:1], rows)


def test_a_hit_leaves_the_active_set_and_is_remembered() -> None:
    oracle, meter = make(ThreatModel(eps=Fraction(1)))
    adversarial = 1 - meter.x0
    labels = oracle.labels(adversarial, torch.arange(4))
    hits = (labels != meter.y).nonzero().squeeze(1)
    assert len(hits), "the reference inputs must contain a hit for this test"
    assert set(oracle.active().tolist()) == set(range(4)) - set(hits.tolist())
    best, hit = oracle.best()
    assert torch.equal(best[hits], adversarial[hits])
    assert hit[hits].all()
    assert (meter.first_hit[hits] == 1).all()


def test_an_illegal_hit_does_not_count() -> None:
    oracle, meter = make(ThreatModel(eps=Fraction(1, 1000)))
    oracle.labels(1 - meter.x0, torch.arange(4))
    assert not meter.hit.any()
    bad = meter.x0.clone()
    bad[:, 0, 0, 0] = torch.nan
    oracle.labels(bad, torch.arange(4))
    assert not meter.hit.any()


def test_minimum_norm_keeps_the_nearest_and_keeps_rows_active() -> None:
    threat = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None)
    oracle, meter = make(threat)
    far = 1 - meter.x0
    oracle.labels(far, torch.arange(4))
    hits = meter.hit.nonzero().squeeze(1)
    assert len(hits)
    assert len(oracle.active()) == 4
    row = int(hits[0])
    near = far[row].clone()
    near.view(-1)[0] = meter.x0[row].view(-1)[0]
    both = torch.stack([far[row], near])
    labels = oracle.labels(both, torch.tensor([row, row]))
    if labels[1] != meter.y[row]:
        assert torch.equal(oracle.best()[0][row], near)


def test_targeted_losses_point_to_the_target() -> None:
    targets = torch.tensor([0, 1, 2, 0])
    oracle, meter = make(replace(LINF, goal=Goal.TARGETED), targets=targets)
    out = oracle.loss_and_grad(meter.x0, torch.arange(4))
    step = (meter.x0 + 1e-3 * out.grad).detach()
    before = meter.victim.logits(meter.x0).log_softmax(1).gather(1, targets[:, None])
    after = meter.victim.logits(step).log_softmax(1).gather(1, targets[:, None])
    assert (after >= before).all()
    assert torch.equal(oracle.targets, targets)


def test_the_victim_cannot_be_reached_from_the_oracle() -> None:
    oracle, meter = make(LINF)
    out = oracle.loss_and_grad(meter.x0, torch.arange(4))
    assert out.loss.grad_fn is None and out.logits.grad_fn is None and out.grad.grad_fn is None
    seen: set[int] = set()
    todo: list[object] = [oracle, out]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        assert not isinstance(thing, nn.Module | Meter), type(thing)
        if not hasattr(thing, "__dict__") or not callable(thing):
            todo += [r for r in gc.get_referents(thing) if not isinstance(r, type) and not callable(r)]
    with pytest.raises(AttributeError):
        oracle.victim  # type: ignore[attr-defined]  # noqa: B018


def test_every_query_takes_one_row_for_each_input_and_charges_nothing_otherwise() -> None:
    oracle, meter = make(LINF)
    x, rows = meter.x0[:3], torch.tensor([0, 1])
    one = torch.tensor([0])
    for ask in (
        lambda: oracle.labels(x, rows),
        lambda: oracle.logits(x, rows),
        lambda: oracle.loss(x, rows),
        lambda: oracle.loss_and_grad(x, rows),
        lambda: oracle.project(x, rows),
        lambda: oracle.reached(torch.zeros(3, 3), rows),
        lambda: oracle.flip_logits(x, rows, one, one),
        lambda: oracle.flip_logits(x[:2], rows, rows, one),
    ):
        with pytest.raises(ContractError, match=r"for [12] rows. Give one row position per input"):
            ask()
    assert not meter.forwards.any() and not meter.backwards.any()


def test_grants_and_refusals_are_those_of_plain_counting() -> None:
    draw = random.Random(0)
    for _ in range(20):
        _, meter = make(replace(LINF, budget=Budget(forwards=12, backwards=6)))
        spent = [(0, 0)] * 4
        for _ in range(12):
            forwards, backwards = draw.randint(1, 3), draw.randint(0, 2)
            rows = torch.tensor(draw.choices(range(4), k=draw.randint(1, 4)))
            if draw.random() < 0.5:
                rows = meter.active(forwards, backwards)
                able = [f + forwards <= 12 and b + backwards <= 6 for f, b in spent]
                assert rows.tolist() == [row for row in range(4) if able[row]]
            times = [rows.tolist().count(row) for row in range(4)]
            after = [(f + k * forwards, b + k * backwards) for (f, b), k in zip(spent, times, strict=True)]
            if all(f <= 12 and b <= 6 for f, b in after):
                meter.charge(rows, forwards, backwards)
                spent = after
            else:
                with pytest.raises(BudgetExceeded):
                    meter.charge(rows, forwards, backwards)
            assert list(zip(meter.forwards.tolist(), meter.backwards.tolist(), strict=True)) == spent


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_an_input_without_a_finite_answer_is_neither_a_hit_nor_the_closest(value: float) -> None:
    oracle, meter = make(LINF)
    before = oracle.closest()
    logits = torch.zeros(4, 3)
    logits[torch.arange(4), (meter.y + 1) % 3] = 1.0
    logits[0, (int(meter.y[0]) + 1) % 3] = value
    meter.note(meter.x0 * 0.9, logits, torch.arange(4))
    assert meter.hit.tolist() == [False, True, True, True]
    assert torch.equal(oracle.closest()[0], before[0]) and not torch.equal(oracle.closest()[1], before[1])


def test_a_sample_without_an_answer_to_a_legal_input_is_remembered() -> None:
    oracle, meter = make(LINF)
    meter.note(meter.x0[:1], torch.full((1, 3), torch.nan), torch.tensor([0]))
    meter.note(meter.x0[1:2] + 2, torch.full((1, 3), torch.nan), torch.tensor([1]))
    assert meter.non_finite.tolist() == [True, True, False, False]
    assert meter.unanswered.tolist() == [True, False, False, False]
    assert oracle.active().tolist() == [0, 1, 2, 3]


def test_the_closest_input_is_the_legal_one_of_largest_margin_from_the_first_call_on() -> None:
    oracle, meter = make(LINF, 3)
    assert torch.equal(oracle.closest(), meter.x0)
    oracle.closest().zero_()  # a copy: nobody's state
    rows = torch.arange(3)
    moved = (meter.x0 + 0.2).clamp(0, 1)
    far = 1 - meter.x0
    asked = torch.cat([meter.x0, moved, far])
    logits = oracle.logits(asked, rows.repeat(3))
    merit = meter.judge(logits, rows.repeat(3))[1].view(3, 3)[:2]  # the far ones are no legal inputs
    expected = torch.stack(
        [asked.view(3, 3, *meter.x0.shape[1:])[int(k), r] for r, k in enumerate(merit.argmax(0))]
    )
    assert torch.equal(oracle.closest(), expected)
    before = meter.closest.clone() if meter.closest is not None else None
    oracle.logits(asked[:3], rows)
    assert before is not None and torch.equal(oracle.closest(), before), "the first of equals stays"
