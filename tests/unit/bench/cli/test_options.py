"""Options that verbs share: each wrong one is a line with what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from robustspike.bench.cli.options import choose_device
from robustspike.bench.cli.options import parse_only
from robustspike.bench.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("gpu", "cuda"),
        ("gpu:0", "cuda"),
        ("cud", "cuda"),
        ("CPU", "cpu"),
        ("cuda:x", "cuda"),
        ("mps:1", "mps"),
    ],
)
def test_an_unknown_device_is_told_the_nearest(name: str, near: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"expected auto, cpu, cuda, cuda:N or mps, got '{name}'.*'{near}'"
    ):
        choose_device(name)


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ConfigError, match=rf"--device {name}: torch finds no"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="finds 2 CUDA devices"):
        choose_device("cuda:2")


def test_filters_without_a_pattern_are_refused() -> None:
    assert parse_only(["victim=a", "victim=b=c"]) == [("victim", "a"), ("victim", "b=c")]
    with pytest.raises(ConfigError, match="expected KEY=GLOB"):
        parse_only(["victim"])
