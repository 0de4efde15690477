"""A defense says which adaptive attack it needs; a row without that attack is flagged."""

from __future__ import annotations

import dataclasses

import pytest

from robustspike.bench.api import registry
from robustspike.bench.contracts import Access
from robustspike.bench.flags import meets
from robustspike.bench.records import CellRecord
from robustspike.leaderboard.table import sections
from tests.support.records import make_record

VERDICTS = "r" * 5 + "b" * 35


def record(
    adaptive: tuple[str, ...], attack: str = "pgd.linf", access: Access = Access.WHITE, **parameters: object
) -> CellRecord:
    made = make_record(VERDICTS, attack=attack, access=access, measures={"adaptive": list(adaptive)})
    return dataclasses.replace(made, parameters={"attack": parameters, "victim": {}, "defense": {}})


def flags(*records: CellRecord) -> str:
    return str(sections(list(records))[0].frame["flags"][0])


@pytest.mark.parametrize(
    "adaptive,weak,strong",
    [
        (("wide_surrogate",), {"estimator": "native"}, {"estimator": "triangle(gamma=2)"}),
        (("eot",), {"draws": 1}, {"draws": 0}),
        (("eot",), {}, {"draws": 10}),
        (("pgd.linf",), {"attack": "fgsm.linf"}, {"attack": "pgd.linf"}),
        (("eot", "wide_surrogate"), {"draws": 0}, {"draws": 0, "estimator": "pdsg"}),
        (("straight_through",), {"access": Access.LABEL, "attack": "noise"}, {}),
        (("eot", "wide_surrogate"), {"estimator": "pdsg"}, {"attack": "autoattack.snn"}),
    ],
)
def test_row_without_the_adaptive_attack_is_flagged_and_with_it_is_not(adaptive, weak, strong) -> None:
    assert "not_adaptive" in flags(record(adaptive, **weak)).split()
    assert "not_adaptive" not in flags(record(adaptive, **weak), record(adaptive, **strong)).split()
    assert "not_adaptive" not in flags(record((), **weak)).split()


def test_attack_without_gradients_meets_no_gradient_need() -> None:
    for need in ("eot", "wide_surrogate", "straight_through"):
        assert not meets(need, attack="noise", parameters={"draws": 10, "estimator": "pdsg"}, white=False)


def test_every_built_in_defense_asks_for_something_known() -> None:
    known = {"eot", "wide_surrogate", "straight_through", *registry("attacks").names()}
    for name in registry("defenses").names():
        spec = registry("defenses").get(name).spec
        assert set(spec.adaptive) <= known
        assert not spec.stochastic or "eot" in spec.adaptive
