"""Full-reference metrics against scikit-image, identities, and their gradients."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity

from robustspike.bench.data.quality.photos import photograph
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers import image_quality as fullref
from robustspike.bench.numbers.image_quality import gmsd
from robustspike.bench.numbers.image_quality import haarpsi
from robustspike.bench.numbers.image_quality import learned
from robustspike.bench.numbers.image_quality import luma
from robustspike.bench.numbers.image_quality import psnr
from robustspike.bench.numbers.image_quality import ssim
from robustspike.bench.numbers.rng import generator
from robustspike.victims.quality.regressors import LocalNormalisation
from robustspike.victims.quality.regressors import mirrored

METRICS = {"psnr": psnr, "ssim": ssim, "gmsd": gmsd, "haarpsi": haarpsi}


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of two photographs, each blurred or noisy by a different amount."""
    rng = np.random.default_rng(0)
    images = [photograph(name)[100:164, 150:214] / 255 for name in ("coffee", "astronaut", "camera")]
    noisy = [
        np.clip(images[i] + spread * rng.standard_normal(images[i].shape), 0, 1)
        for i, spread in enumerate((0.01, 0.05, 0.2))
    ]
    as_batch = [torch.from_numpy(np.stack(part).transpose(0, 3, 1, 2)) for part in (images, noisy)]
    return as_batch[0], as_batch[1]


def test_ssim_equals_scikit_image() -> None:
    x, y = pairs()
    for a, b, ours in zip(x, y, ssim(x, y), strict=True):
        theirs = structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(ours) == pytest.approx(theirs, abs=1e-5)


def test_psnr_equals_scikit_image() -> None:
    x, y = pairs()
    for a, b, ours in zip(x, y, psnr(x, y), strict=True):
        assert float(ours) == pytest.approx(peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1))


def test_worked_figures() -> None:
    """Values that follow from the definitions with paper and pencil."""
    x = torch.full((1, 3, 32, 32), 0.5, dtype=torch.float64)
    y = torch.full_like(x, 0.6)
    assert float(psnr(x, y)) == pytest.approx(20.0)  # 10 log10(1 / 0.1^2)
    assert float(ssim(x, y)) == pytest.approx((2 * 0.3 + 1e-4) / (0.25 + 0.36 + 1e-4))
    assert float(gmsd(x, x)) == 0
    flat = haarpsi(x, x)
    assert float(flat) == pytest.approx(1.0)
    assert luma(torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)).item() == pytest.approx(0.621)


def test_haarpsi_of_a_contrast_halved_step_follows_the_formula() -> None:
    """A grey vertical step edge whose height is halved; only its column pairs respond."""
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    x[..., 8:] = 0.4
    y = x / 2
    # A step of 102 at half resolution: the size-n response is 102 for each column across the edge.
    maps, weights = [], []
    for column in range(8):
        responses = []
        for scale in (1, 2, 3):
            n = 2**scale
            left = max(0, n // 2 - abs(column - 3))
            responses.append(102.0 * left)
        similar = [(2 * r * (r / 2) + 30) / (r * r + r * r / 4 + 30) for r in responses[:2]]
        maps.append(sum(similar) / 2)
        weights.append(responses[2])
    total = sum(w / (1 + np.exp(-4.2 * m)) for m, w in zip(maps, weights, strict=True)) / sum(weights)
    expected = (np.log(total / (1 - total)) / 4.2) ** 2
    assert float(haarpsi(x, y)) == pytest.approx(expected, abs=1e-6)


def test_equal_images_are_perfect_and_finite_in_gradient() -> None:
    x, _ = pairs()
    for name, value in {"psnr": 100.0, "ssim": 1.0, "gmsd": 0.0, "haarpsi": 1.0}.items():
        y = x.clone().requires_grad_(True)
        found = METRICS[name](x, y)
        assert found.tolist() == pytest.approx([value] * 3, abs=1e-9), name
        (gradient,) = torch.autograd.grad(found.sum(), y)
        assert bool(torch.isfinite(gradient).all()), name


@pytest.mark.parametrize("name", METRICS)
def test_more_noise_is_worse_and_rows_are_independent(name: str) -> None:
    x, y = pairs()
    sign = -1 if name == "gmsd" else 1
    scores = sign * METRICS[name](x, y)
    assert float(METRICS[name](x[1:2], y[1:2])) == pytest.approx(float(sign * scores[1]), abs=1e-12)
    worse = (x + 2 * (y - x)).clamp(0, 1)
    assert bool((sign * METRICS[name](x, worse) < scores).all())


@pytest.mark.parametrize("name", METRICS)
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    x, y = pairs()
    x, y = x[1:2, :, :24, :24], y[1:2, :, :24, :24].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(METRICS[name](x, y).sum(), y)
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal(y.shape))
    h = 1e-6
    with torch.no_grad():
        slope = (METRICS[name](x, y + h * direction) - METRICS[name](x, y - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["I06.bmp", "I19.bmp"])
def test_published_values_of_the_original_implementations(name: str, shared_data: Path) -> None:
    folder = shared_data / "iqa/tid2013_pairs"
    rows = {line.split(",")[0]: line.strip().split(",") for line in (folder / "results_official.csv").open()}
    column = rows["Method"].index(name)
    x, y = (
        torch.from_numpy(np.asarray(Image.open(folder / part / name)).astype(np.float64) / 255)
        .permute(2, 0, 1)
        .unsqueeze(0)
        for part in ("ref_dir", "dist_dir")
    )
    # The original rounds brightness to 8 bits first; that moves the third decimal.
    assert float(gmsd(x, y)) == pytest.approx(float(rows["gmsd"][column]), abs=1e-3)
    assert float(psnr(x, y)) == pytest.approx(float(rows["psnr"][column]), abs=0.01)


def test_wrong_use_is_explained() -> None:
    x, _ = pairs()
    with pytest.raises(ContractError, match="one shape"):
        ssim(x, x[:1])
    with pytest.raises(ContractError, match="11x11"):
        ssim(x[..., :8, :8], x[..., :8, :8])
    with pytest.raises(ContractError, match="expected 'lpips' or 'dists'"):
        learned("vif", x, x)  # type: ignore[arg-type]


class Stranger(torch.nn.Module):
    """Stands in for LPIPS: a mean square in its own range, with weights of single precision."""

    made = 0

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        Stranger.made += 1
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.weight * (x - y)).square().mean(dim=(1, 2, 3), keepdim=True)


def test_a_learned_metric_is_loaded_once_and_takes_the_inputs_type(monkeypatch: pytest.MonkeyPatch) -> None:
    fullref._network.cache_clear()
    monkeypatch.setattr(fullref, "_import_backend", lambda backend: SimpleNamespace(LPIPS=Stranger))
    x, y = pairs()
    y = y.requires_grad_(True)
    for _ in range(2):
        found = learned("lpips", x, y)
    fullref._network.cache_clear()
    assert Stranger.made == 1 and found.shape == (3,)
    assert found.tolist() == pytest.approx((4 * (x - y).square().mean(dim=(1, 2, 3))).tolist())
    assert torch.autograd.grad(found.sum(), y)[0].abs().sum() > 0


def test_haarpsi_is_the_same_for_the_eight_forms_that_training_shows() -> None:
    clean, noisy = pairs()
    clean, noisy = clean[:1].repeat(8, 1, 1, 1), noisy[:1].repeat(8, 1, 1, 1)
    form = torch.arange(8).view(8, 1, 1, 1)
    shown = mirrored(clean, form)
    assert len({row.numpy().tobytes() for row in shown}) == 8 and torch.equal(shown[0], clean[0])
    values = haarpsi(shown, mirrored(noisy, form))
    assert values.tolist() == pytest.approx([float(values[0])] * 8, abs=1e-3)


def test_local_normalisation_is_that_of_plain_pooling_and_so_is_its_gradient() -> None:
    x = torch.rand(2, 3, 12, 15, dtype=torch.float64, generator=generator("pooling"))
    padded = torch.nn.functional.pad(x, (3, 3, 3, 3), mode="reflect")
    mean, square = (torch.nn.functional.avg_pool2d(v, 7, stride=1) for v in (padded, padded.square()))
    assert torch.allclose(LocalNormalisation()(x), (x - mean) / (square - mean**2 + 0.01).sqrt(), atol=1e-12)
    assert torch.autograd.gradcheck(LocalNormalisation(), x.requires_grad_(True))
