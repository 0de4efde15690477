"""ASSG's compiled slopes: the bits of the Python ones, statistics included, or Python's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustspike.attacks.gradients import assg_compiled
from robustspike.attacks.gradients.assg import Assg
from robustspike.attacks.gradients.assg import _AssgRule
from robustspike.bench.api import Memory
from robustspike.bench.api import generator

compiled = pytest.mark.skipif(assg_compiled.rounds_once() is None, reason="no C compiler here")

ROWS = torch.tensor([3, 1, 7, 8])


def walked(settings: Assg, *, frozen: bool, rows: Tensor = ROWS) -> list[Tensor]:
    """The slopes of six passes and the statistics after them; distances that are not finite among them."""
    rng = generator("assg compiled")
    store: dict[str, object] = {}
    found = []
    for number in range(6):
        u = torch.randn(3, len(rows), 5, 7, 31, generator=rng)
        if number == 3:
            u[0, 0, 0, 0, :2] = torch.tensor([torch.inf, torch.nan])
        memory = Memory(rows=rows, n=9, store=store, frozen=frozen and number > 2)
        found.append(_AssgRule(settings, memory).slopes(u))
    (kept,) = store.values()
    return [*found, *kept]


def python_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assg_compiled, "rounds_once", lambda: None)


@compiled
@pytest.mark.parametrize("form", assg_compiled.FORMS)
@pytest.mark.parametrize("start", [1.0, None])
@pytest.mark.parametrize("frozen", [True, False])
def test_bits_are_those_of_python(monkeypatch, form, start: float | None, frozen: bool) -> None:
    settings = Assg(form=form, start=start, bound=0.94, relax=1.25)
    called = []
    own = assg_compiled._call
    monkeypatch.setattr(assg_compiled, "_call", lambda *args: called.append(1) or own(*args))
    mine = walked(settings, frozen=frozen)
    assert len(called) == 6
    python_only(monkeypatch)
    for a, b in zip(mine, walked(settings, frozen=frozen), strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0), b.nan_to_num(0))
    assert len(called) == 6


@compiled
def test_threads_share_the_work_and_change_no_bit(monkeypatch) -> None:
    expected = walked(Assg(), frozen=False)
    monkeypatch.setattr(assg_compiled.compiled, "_SHARE", 50)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        mine = walked(Assg(), frozen=False)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a.nan_to_num(0), b.nan_to_num(0)) for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (Assg(form="sigmoid"), ROWS),
        (Assg(beta_level=0.3), ROWS),
        (Assg(), torch.tensor([3, 1, 3, 8])),  # two candidates of one sample
    ],
)
def test_what_c_does_not_know_is_left_to_python(monkeypatch, settings: Assg, rows: Tensor) -> None:
    monkeypatch.setattr(assg_compiled, "_call", lambda *_: pytest.fail("asked C"))
    if assg_compiled.library() is not None:
        monkeypatch.setattr(assg_compiled, "rounds_once", lambda: True)
    assert len(walked(settings, frozen=False, rows=rows)) == 8
