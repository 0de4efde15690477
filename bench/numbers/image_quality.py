"""Full-reference image quality: how far a distorted image is from its original.

Pure, differentiable functions of two batches x, y [N, C, H, W] with values in [0, 1]; each returns
[N]. They label the embedded quality data, limit perceptual attacks, and say how visible an attack is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from robustspike.bench.errors import ContractError

Padding = Literal["replicate", "constant"]

_LUMA = (0.299, 0.587, 0.114)
_YIQ = (_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def luma(x: Tensor) -> Tensor:
    """Return the brightness of RGB images (ITU-R BT.601 weights); grey images pass unchanged.

    Shape: [N, 3, H, W] or [N, 1, H, W] -> [N, 1, H, W].
    """
    if x.shape[1] == 1:
        return x
    weight = torch.tensor(_LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x * weight).sum(dim=1, keepdim=True)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, 100 for equal images."""
    _same_shape(x, y)
    error = (x - y).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the structural similarity, 1 for equal images.

    11x11 Gaussian window (sigma 1.5), K1 = 0.01, K2 = 0.03, population variances, valid windows only.

    Source: Wang et al. 2004, IEEE TIP 13(4). Differs: mean over channels instead of brightness only;
        pass `luma(x)`, `luma(y)` for the brightness. Agrees with scikit-image's
        `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.
    """
    _same_shape(x, y)
    if min(x.shape[2:]) < 11:
        raise ContractError(f"ssim: images must be 11x11 or larger, got {list(x.shape[2:])}.")
    channels = x.shape[1]
    offsets = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    bell = torch.exp(-offsets.square() / (2 * 1.5**2))
    bell = (bell / bell.sum()).repeat(channels * 5, 1, 1, 1)
    stacked = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    down = functional.conv2d(stacked, bell.transpose(2, 3), groups=5 * channels)
    means = functional.conv2d(down, bell, groups=5 * channels)
    mx, my, xx, yy, xy = means.split(channels, dim=1)
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    brightness = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return (contrast * brightness).flatten(1).mean(dim=1)


def gmsd(x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient magnitude similarity deviation, 0 for equal images, larger is worse.

    Source: Xue et al. 2014, IEEE TIP 23(2). Differs: none (2x2 mean, stride 2, Prewitt/3, zero padding,
        c = 170 for values up to 255). Blind to colour.
    """
    _same_shape(x, y)
    ramp = torch.tensor([1.0, 0.0, -1.0], dtype=x.dtype, device=x.device) / 3
    prewitt = ramp.expand(3, 3)
    kernels = torch.stack([prewitt, prewitt.T]).unsqueeze(1)

    def magnitude(image: Tensor) -> Tensor:
        small = functional.avg_pool2d(luma(image), 2)
        parts = functional.conv2d(small, kernels, padding=1)
        return (parts.square().sum(dim=1) + 1e-12).sqrt()

    a, b, c = magnitude(x), magnitude(y), 170 / 255**2
    similarity = (2 * a * b + c) / (a.square() + b.square() + c)
    variance = similarity.flatten(1).var(dim=1, correction=0)
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0 * variance)


def haarpsi(x: Tensor, y: Tensor, *, padding: Padding = "replicate") -> Tensor:
    """Return the Haar wavelet perceptual similarity, 1 for equal images.

    Args:
        x, y: RGB images, or grey ones (then without the colour term).
        padding: "constant" (zeros) is the published form; "replicate" makes no false edges, which
            matters on small patches.

    Source: Reisenhofer et al. 2018, arXiv:1607.06140 (C = 30, alpha = 4.2). Differs: the default padding.
    """
    _same_shape(x, y)
    c, alpha = 30.0, 4.2
    planes_x, planes_y = (_planes(image) for image in (x, y))
    wave_x = [_haar(planes_x[:, :1], scale, padding) for scale in (1, 2, 3)]
    wave_y = [_haar(planes_y[:, :1], scale, padding) for scale in (1, 2, 3)]
    maps = torch.stack([_similar(wave_x[i], wave_y[i], c) for i in (0, 1)]).mean(dim=0)
    weights = torch.maximum(wave_x[2], wave_y[2])
    if planes_x.shape[1] == 3:
        chroma = _similar(_running_mean(planes_x[:, 1:], padding), _running_mean(planes_y[:, 1:], padding), c)
        maps = torch.cat([maps, chroma.mean(dim=1, keepdim=True)], dim=1)
        weights = torch.cat([weights, weights.mean(dim=1, keepdim=True)], dim=1)
    weights = weights + 1e-8  # two flat images are equal, not undefined
    total = (torch.sigmoid(alpha * maps) * weights).flatten(1).sum(dim=1)
    share = total / weights.flatten(1).sum(dim=1)
    return (torch.logit(share) / alpha).square()


def _same_shape(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.dim() != 4:
        raise ContractError(
            f"full-reference metric: expected two batches [N, C, H, W] of one shape, got {list(x.shape)} "
            f"and {list(y.shape)}."
        )


def _planes(image: Tensor) -> Tensor:
    """Return YIQ (or Y) on the 0..255 scale at half resolution."""
    if image.shape[1] == 3:
        matrix = torch.tensor(_YIQ, dtype=image.dtype, device=image.device)
        image = torch.einsum("kc,nchw->nkhw", matrix, image)
    return functional.avg_pool2d(255 * image, 2)


def _haar(y: Tensor, scale: int, padding: Padding) -> Tensor:
    """Return |response| to the vertical and horizontal Haar filter of size 2^scale: [N, 2, h, w]."""
    n = 2**scale
    kernel = torch.full((n, n), 1 / n, dtype=y.dtype, device=y.device)
    kernel[n // 2 :] *= -1
    kernels = torch.stack([kernel, kernel.T]).unsqueeze(1)
    low, high = n // 2 - 1, n // 2
    return functional.conv2d(functional.pad(y, (low, high, low, high), mode=padding), kernels).abs()


def _running_mean(planes: Tensor, padding: Padding) -> Tensor:
    padded = functional.pad(planes, (0, 1, 0, 1), mode=padding)
    return functional.avg_pool2d(padded, 2, stride=1).abs()


def _similar(a: Tensor, b: Tensor, c: float) -> Tensor:
    return (2 * a * b + c) / (a.square() + b.square() + c)


def is_available(backend: Literal["lpips", "dists"]) -> bool:
    """Say whether an optional learned metric can be imported in this environment."""
    try:
        _import_backend(backend)
    except ContractError:
        return False
    return True


def learned(backend: Literal["lpips", "dists"], x: Tensor, y: Tensor) -> Tensor:
    """Return a learned distance (0 for equal images) by an optional package and its own weights.

    Raises: ContractError: the package, torchvision or the weights are missing.
    """
    _same_shape(x, y)
    net = _network(backend).to(x)
    distance: Tensor = net(2 * x - 1, 2 * y - 1) if backend == "lpips" else net(x, y)
    return distance.flatten()


@lru_cache
def _network(backend: str) -> Any:
    """Return the network of a learned metric, loaded once."""
    module: Any = _import_backend(backend)
    try:
        net = module.LPIPS(net="vgg", verbose=False) if backend == "lpips" else module.DISTS()
    except OSError as error:
        raise ContractError(f"{backend}: its weights cannot be loaded ({error}).") from error
    return net.eval().requires_grad_(False)


def _import_backend(backend: str) -> object:
    import importlib

    package = {"lpips": "lpips", "dists": "DISTS_pytorch"}.get(backend)
    if package is None:
        raise ContractError(f"learned metric: expected 'lpips' or 'dists', got '{backend}'.")
    try:
        importlib.import_module("torchvision")
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError
        raise ContractError(
            f"{backend}: the optional back end cannot be imported ({error}). Install '{package}' and a "
            "torchvision that matches torch, or use 'ssim', 'haarpsi' or 'gmsd'."
        ) from error
