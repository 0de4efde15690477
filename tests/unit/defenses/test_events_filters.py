"""Event filters: what they keep, on recordings and on frames, and the gradient they let through."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import RowStreams
from robustspike.bench.api import load_victim
from robustspike.bench.api import recording
from robustspike.bench.api import registry
from robustspike.bench.training.train import train
from robustspike.defenses.event_filters import BackgroundFilter
from robustspike.defenses.event_filters import Filtered
from robustspike.defenses.event_filters import MaskFilter
from robustspike.defenses.event_filters import drop_overactive
from robustspike.defenses.event_filters import keep_supported

SIZE = (8, 8)


def frames(n: int = 4, *, density: float = 0.06) -> Tensor:
    return (RowStreams.derive(range(n), "frames").uniform((5, 2, *SIZE)) < density).double()


def events(*rows: tuple[int, int, int, int]) -> np.ndarray:
    x, y, t, p = zip(*rows, strict=True)
    return recording(x, y, t, p, size=SIZE, where="test")


def random_events(n: int = 300) -> np.ndarray:
    rng = np.random.default_rng(0)
    return recording(
        rng.integers(0, 8, n),
        rng.integers(0, 8, n),
        rng.integers(0, 3000, n),
        rng.integers(0, 2, n),
        size=SIZE,
        where="test",
    )


def test_an_isolated_event_goes_and_the_second_of_two_neighbours_stays() -> None:
    near = events((2, 2, 0, 1), (3, 3, 90, 0), (7, 7, 95, 1))
    kept = keep_supported(near, radius=1, window=100, size=SIZE)
    assert kept["t"].tolist() == [90]
    assert len(keep_supported(near, radius=1, window=90, size=SIZE)) == 0  # strictly less than the window
    twice = events((2, 2, 0, 1), (2, 2, 5, 1))
    assert len(keep_supported(twice, radius=1, window=100, size=SIZE)) == 0  # its own past is no support
    assert keep_supported(events((2, 2, 0, 1), (5, 2, 1, 1)), radius=3, window=100, size=SIZE)[
        "t"
    ].tolist() == [1]


def test_background_filter_on_recordings_matches_its_definition() -> None:
    found = random_events()
    for radius, window in ((1, 40), (2, 15)):
        kept = keep_supported(found, radius=radius, window=window, size=SIZE)
        expected = []
        for place, event in enumerate(found):
            before = found[:place]
            gap = np.maximum(abs(before["x"] - event["x"]), abs(before["y"] - event["y"]))
            near = before[(gap >= 1) & (gap <= radius)]
            expected.append(bool(len(near)) and event["t"] - near["t"].max() < window)
        assert np.array_equal(kept, found[np.array(expected)])
        assert 0 < len(kept) < len(found)


def test_an_endless_window_drops_only_first_events() -> None:
    found = random_events()
    kept = keep_supported(found, radius=8, window=10**9, size=SIZE)
    pixels = found["y"] * 8 + found["x"]
    alone = int(np.argmax(pixels != pixels[0]))  # as long as only one pixel fires, nothing supports it
    assert np.array_equal(kept, found[alone:])


def test_mask_filter_on_recordings_drops_whole_pixels_and_is_idempotent() -> None:
    found = random_events()
    kept = drop_overactive(found, limit=4, size=SIZE)
    counts = np.bincount(found["y"].astype(int) * 8 + found["x"], minlength=64)
    assert len(kept) == counts[counts <= 4].sum()
    assert np.array_equal(drop_overactive(kept, limit=4, size=SIZE), kept)
    assert len(drop_overactive(found, limit=0, size=SIZE)) == 0
    assert np.array_equal(drop_overactive(found, limit=300, size=SIZE), found)


@pytest.mark.parametrize(("radius", "window"), [(1, 1), (1, 3), (2, 2)])
def test_background_filter_on_frames_matches_its_definition(radius: int, window: int) -> None:
    x = frames(2)
    hard, soft = BackgroundFilter(radius=radius, window=window).keep(x)
    assert hard.shape == (2, 5, 1, *SIZE)
    assert torch.equal(hard, soft)
    for n, t, i, j in itertools.product(range(2), range(5), range(8), range(8)):
        block = x[n, max(0, t - window + 1) : t + 1, :, max(0, i - radius) : i + radius + 1]
        block = block[..., max(0, j - radius) : j + radius + 1].sum()
        own = x[n, max(0, t - window + 1) : t + 1, :, i, j].sum()
        assert bool(hard[n, t, 0, i, j]) == bool(block - own > 0)


def test_mask_filter_on_frames_matches_its_definition_and_is_idempotent() -> None:
    x, rule = frames(density=0.25), MaskFilter(limit=3)
    once = x * rule.keep(x)[0]
    assert torch.equal(once, torch.where(x.sum(dim=(1, 2), keepdim=True) > 3, 0.0, x))
    assert torch.equal(once * rule.keep(once)[0], once)
    assert 0 < once.sum() < x.sum()


class Weighted(nn.Module):
    """Logits that are fixed sums over the frames it sees."""

    def __init__(self) -> None:
        super().__init__()
        w = RowStreams.derive([0], "weights").integers(33, (2, 5, 2, *SIZE))[0]
        self.weight = nn.Parameter((w - 16).double() / 16)

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).flatten(2).sum(dim=2)


@pytest.mark.parametrize(
    "rule", [BackgroundFilter(), BackgroundFilter(radius=2, window=2), MaskFilter(limit=1)]
)
def test_the_gradient_tells_the_effect_of_single_flips(rule: BackgroundFilter | MaskFilter) -> None:
    network = Weighted()
    victim = rule.transform(network, load_victim("lif_cnn.digits_events").spec)
    x = frames(1).requires_grad_(True)
    assert torch.equal(victim(x), network(x.detach() * rule.keep(x.detach())[0]))
    gradient = torch.autograd.grad(victim(x)[0, 0], x)[0][0].flatten()
    with torch.no_grad():
        hard = rule.keep(x)[0].expand_as(x).flatten()
        still = x.flatten()
        flips = still.repeat(len(still), 1)
        index = torch.arange(len(still))
        flips[index, index] = 1 - flips[index, index]
        change = victim(flips.view(-1, *x.shape[1:]))[:, 0] - victim(x)[0, 0]
        effect = change / (1 - 2 * still)
    kept, on = hard == 1, still == 1
    assert 50 < int(kept.sum()) < len(still) and int((kept & on).sum()) > 3
    assert int((effect[kept] != network.weight[0].flatten()[kept]).sum()) > 3  # others depend on the flip
    own = network.weight[0].detach().flatten()
    surplus = gradient - effect
    exact = kept & on if isinstance(rule, MaskFilter) else kept
    assert torch.allclose(surplus[exact], torch.zeros(int(exact.sum())).double(), atol=1e-12)
    # Elsewhere the flipped spike itself is dropped: its own term is passed straight through on top.
    assert bool(((surplus.abs() < 1e-12) | ((surplus - own).abs() < 1e-12)).all())


def test_without_the_adaptive_path_the_answers_are_the_same_and_dropped_spikes_have_no_gradient() -> None:
    x = frames(3).requires_grad_(True)
    spec = load_victim("lif_cnn.digits_events").spec
    for rule, blind in (
        (BackgroundFilter(), BackgroundFilter(adaptive=False)),
        (MaskFilter(limit=2), MaskFilter(limit=2, adaptive=False)),
    ):
        network = Weighted()
        seen, unseen = rule.transform(network, spec), blind.transform(network, spec)
        assert torch.equal(seen(x), unseen(x))
        (gradient,) = torch.autograd.grad(unseen(x)[:, 0].sum(), x)
        dropped = (rule.keep(x.detach())[0] == 0).expand_as(x)
        assert bool(dropped.any()) and bool((gradient[dropped] == 0).all())
        (gradient,) = torch.autograd.grad(seen(x)[:, 0].sum(), x)
        assert bool((gradient[dropped] != 0).any())


def test_a_filter_that_keeps_everything_changes_no_logit() -> None:
    plain = load_victim("lif_cnn.digits_events")
    x = registry("datasets").get("digits_events").load("test").x[:20]
    through = Filtered(plain.module, MaskFilter(limit=8).keep, adaptive=True)
    with torch.no_grad():
        assert torch.equal(through.filtered(x), x)


@pytest.mark.parametrize("name", ["background_filter", "mask_filter"])
def test_filters_sit_on_the_undefended_weights(name: str, tmp_path: object) -> None:
    plain, hardened = load_victim("lif_cnn.digits_events"), load_victim("lif_cnn.digits_events", defense=name)
    ours = {key.removeprefix("network."): value for key, value in hardened.module.state_dict().items()}
    assert ours.keys() == plain.module.state_dict().keys()
    assert all(torch.equal(ours[key], value) for key, value in plain.module.state_dict().items())
    split = registry("datasets").get("digits_events").load("test")
    with torch.no_grad():
        right = int((hardened.logits(split.x).argmax(dim=1) == split.y).sum())
    assert right >= 480, right
    rule, recipe = registry("defenses").get(name), registry("victims").get("lif_cnn.digits")
    assert "events" in (rule.fits(recipe) or "")
    with pytest.raises(ConfigError, match="is not trained"):
        train(registry("victims").get("lif_cnn.digits_events"), rule, out=tmp_path)  # type: ignore[arg-type]


def test_wrong_parameters_are_refused() -> None:
    for make in (
        lambda: BackgroundFilter(radius=0),
        lambda: BackgroundFilter(window=0),
        lambda: MaskFilter(limit=-1),
    ):
        with pytest.raises(ConfigError):
            make()
