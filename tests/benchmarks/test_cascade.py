"""What the ensemble's active set saves, as a ratio of propagations in one run, at the identical verdict."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustspike.attacks.ensembles.autoattack import SPIKING
from robustspike.attacks.ensembles.autoattack import AutoAttackSnn
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

SAMPLES, EPS = 40, "1/10"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lif_cnn.digits", "qcfs_cnn.digits"])
def test_the_cascade_spends_at_most_a_quarter_of_every_member_on_every_sample(
    benchmark: Any, name: str
) -> None:
    """Compared are forwards + backwards; without stops every sample costs what an unbroken one does."""
    victim = load_victim(name)
    test = registry("datasets").get("digits").load("test")
    x, y = test.x[:SAMPLES], test.y[:SAMPLES]

    def run() -> Any:
        return evaluate(victim, AutoAttackSnn(level="full"), x, y, eps=EPS, shard=SAMPLES)

    cascade = benchmark.pedantic(run, rounds=1)
    spent = int((cascade.shards[0].forwards + cascade.shards[0].backwards).sum())
    broken = torch.zeros(SAMPLES, dtype=torch.bool)
    stopping = everything = 0
    for member in SPIKING["full"]:
        alone = evaluate(
            victim, AutoAttackSnn(level="full", only=member.name), x, y, eps=EPS, shard=SAMPLES
        ).shards[0]
        if not member.goes_on:  # alone it starts elsewhere
            broken |= alone.status == 1
        passes = alone.forwards + alone.backwards
        stopping += int(passes.sum())
        everything += int(passes.max()) * cascade.clean
    assert bool((cascade.shards[0].status == 1)[broken].all()), "the verdict is that of all members"
    benchmark.extra_info["share_of_every_member_on_every_sample"] = spent / everything
    benchmark.extra_info["share_of_members_that_stop_at_their_own_hits"] = spent / stopping
    assert spent <= everything / 4
