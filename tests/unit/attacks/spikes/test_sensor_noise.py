"""Accuracy under another sensor: real frames of the same scenes, verified like any attack's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.attack.evaluate import evaluate_shard
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.data.events.digit_events import DigitEvents
from tests.support.commands import robustspike

N = 20


def measured(**changes: float) -> ShardResult:
    data = DigitEvents()
    split = data.first("test", N)
    threat = ThreatModel(domain=Domain.SPIKES, geometry="sensor", eps=1, access="label")  # type: ignore[arg-type]
    return evaluate_shard(
        load_victim("rate_only.digits_events"),
        registry("attacks").get("sensor.noise", **changes),
        threat,
        split.x,
        split.y,
        split.ids,
        seed=0,
        events=lambda: data.events("test", range(N)),
    )


@pytest.mark.parametrize(
    "changes", [{"background": 2.0}, {"hot_pixels": 0.1}, {"threshold": 0.6}, {"mismatch": 0.3}]
)
def test_the_victim_is_shown_what_the_other_sensor_records(changes: dict[str, float]) -> None:
    result = measured(**changes)
    assert not result.errors
    expected = DigitEvents(**changes).first("test", N).x  # type: ignore[arg-type]
    attacked = (result.x_adv != DigitEvents().first("test", N).x).flatten(1).any(dim=1)
    assert attacked.any()  # the samples that it breaks; of the others the harness keeps the clean input
    assert torch.equal(result.x_adv[attacked], expected[attacked])


def test_a_lower_threshold_undoes_the_network_that_only_counts() -> None:
    plain, low = measured(), measured(threshold=0.6)
    broken = [int((result.status == 1).sum()) for result in (plain, low)]
    assert broken[0] == 0 and broken[1] > N / 3


def test_an_option_that_the_sensor_lacks_and_frames_without_scenes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no parameter 'hot_pixel'.*hot_pixels"):
        registry("attacks").get("sensor.noise(hot_pixel=0.1)")
    assert measured(background=-1.0).errors
    lists = DigitEvents().events("test", range(3))
    assert lists.again is not None
    with pytest.raises(ConfigError, match="sensor's steps cannot be changed"):
        lists.again({"steps": 2})
    some = lists.of([2, 0])
    assert some.again is not None
    first = lists.again({"background": 1.0})
    assert [len(r) for r in some.again({"background": 1.0})] == [len(first[2]), len(first[0])]


@pytest.mark.slow
def test_a_table_of_noise_stands_beside_that_of_attacks(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'samples = 8\nshard = 8\n[[threats]]\ndomain = "spikes"\ngeometry = "sensor"\neps = "1"\n'
        '[[victims]]\nname = "rate_only.digits_events"\n'
        '[[attacks]]\nname = "sensor.noise"\nparams = { threshold = 0.6 }\n'
        '[[attacks]]\nname = "sensor.noise"\nparams = { hot_pixels = 0.01 }\n'
    )
    done = robustspike("run", tmp_path / "s.toml", "--out", tmp_path / "r", cwd=tmp_path)
    shown = done.stdout
    assert (
        done.returncode == 0 and "sensor.noise[threshold=0.6]" in shown and "no_gradient_attack" not in shown
    )
