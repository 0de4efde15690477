"""Photographs that install with scikit-image and scikit-learn, and the ways to degrade them.

Only files that lie inside the installed wheels are read; nothing is ever fetched.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from robustspike.bench.errors import ArtefactError

PHOTOGRAPHS: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage.data", "astronaut.png"),
    "chelsea": ("skimage.data", "chelsea.png"),
    "coffee": ("skimage.data", "coffee.png"),
    "rocket": ("skimage.data", "rocket.jpg"),
    "camera": ("skimage.data", "camera.png"),
    "brick": ("skimage.data", "brick.png"),
    "grass": ("skimage.data", "grass.png"),
    "gravel": ("skimage.data", "gravel.png"),
    "coins": ("skimage.data", "coins.png"),
    "china": ("sklearn.datasets", "images/china.jpg"),
    "flower": ("sklearn.datasets", "images/flower.jpg"),
}
"""Name -> (package, file). Textures (brick, grass, gravel) are photographs too; drawings are left out."""

CREDITS = (
    "scikit-image: astronaut (NASA, public domain), chelsea, coffee, camera, brick, grass, gravel (CC0), "
    "rocket (SpaceX, public domain), coins (no known restrictions); scikit-learn: china, flower (CC BY 2.0, "
    "danielbuechele; the links of flower point to flickr user vultilion)."
)

_SCALES = {"chelsea": (1.0, 0.66), "coins": (1.0, 0.66)}
_SCALES |= dict.fromkeys(("rocket", "china", "flower"), (0.75, 0.5))  # removes their own compression


def path_of(name: str) -> Path:
    """Return where a photograph lies. Raises: ArtefactError: this release does not ship it."""
    package, file = PHOTOGRAPHS[name]
    top, *inner = package.split(".")
    spec = find_spec(top)  # the package itself takes a second to import
    path = Path(spec.origin if spec and spec.origin else top).parent.joinpath(*inner, file)
    if not path.is_file():
        raise ArtefactError(
            f"photograph '{name}': {path} does not exist. Install scikit-image and scikit-learn from their "
            "ordinary wheels (scikit-image 0.26 and scikit-learn 1.9 are known to ship it)."
        )
    return path


def scales_of(name: str) -> tuple[float, float]:
    """Return the two resolutions at which a photograph is used."""
    return _SCALES.get(name, (1.0, 0.5))


def photograph(name: str, scale: float = 1.0) -> np.ndarray:
    """Read a photograph as RGB, resized by a factor (Lanczos): [H, W, 3] uint8."""
    from PIL import Image

    with Image.open(path_of(name)) as opened:
        image = opened.convert("RGB")
    if scale != 1.0:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def versions() -> str:
    """Return the versions of what reads and degrades photographs."""
    import PIL
    import scipy

    return f"{np.__version__} {scipy.__version__} {PIL.__version__}"


def fingerprint() -> str:
    """Return the sha256 over the photographs' bytes and the versions of what degrades them."""
    total = hashlib.sha256(versions().encode())
    for name in PHOTOGRAPHS:
        total.update(path_of(name).read_bytes())
    return total.hexdigest()


Degradation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
"""(image [H, W, 3] float32 in [0,1], strength, random numbers) -> the same shape, any values."""


def _gaussian_blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    from scipy.ndimage import gaussian_filter

    blurred: np.ndarray = gaussian_filter(image, (sigma, sigma, 0))
    return blurred


def _lens_blur(image: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    from scipy.signal import fftconvolve

    r = int(radius)
    grid = np.arange(-r, r + 1)
    disk = (grid[:, None] ** 2 + grid[None, :] ** 2 <= r * r).astype(np.float32)
    padded = np.pad(image, ((r, r), (r, r), (0, 0)), mode="reflect")
    blurred: np.ndarray = fftconvolve(padded, (disk / disk.sum())[:, :, None], mode="valid", axes=(0, 1))
    return blurred


def _through_file(image: np.ndarray, **options: object) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(buffer, **options)  # type: ignore[arg-type]
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        return np.asarray(opened.convert("RGB"), dtype=np.float32) / 255


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    return _through_file(image, format="JPEG", quality=int(quality))


def _jpeg2000(image: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    return _through_file(image, format="JPEG2000", quality_mode="rates", quality_layers=[ratio])


def _white_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    return image + np.float32(variance**0.5) * rng.standard_normal(image.shape, dtype=np.float32)


def _impulse(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    draw = rng.random(image.shape, dtype=np.float32)
    return np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, image)).astype(np.float32)


def _pixelate(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    from PIL import Image

    zoom = 0.95 - strength**0.6
    whole = Image.fromarray(to_bytes(image))
    size = (max(1, round(whole.width * zoom)), max(1, round(whole.height * zoom)))
    small = whole.resize(size, Image.Resampling.NEAREST)
    return np.asarray(small.resize(whole.size, Image.Resampling.NEAREST), dtype=np.float32) / 255


DEGRADATIONS: dict[str, tuple[Degradation, tuple[float, ...]]] = {
    "gaublur": (_gaussian_blur, (1, 1.6, 2.4, 3.4, 5)),
    "lensblur": (_lens_blur, (2, 3, 4, 6, 8)),
    "jpeg": (_jpeg, (30, 20, 12, 7, 4)),
    "jp2k": (_jpeg2000, (40, 80, 120, 170, 250)),
    "wnoise": (_white_noise, (0.0025, 0.0064, 0.0144, 0.0324, 0.0625)),
    "impulse": (_impulse, (0.02, 0.05, 0.1, 0.15, 0.25)),
    "pixelate": (_pixelate, (0.1, 0.2, 0.35, 0.5, 0.65)),
}
"""Name -> (operation, its strength at levels 1 to 5). Level 1 is visible above the attack budgets."""


def available_degradations() -> tuple[str, ...]:
    """List the degradations this Pillow can do (JPEG 2000 needs OpenJPEG)."""
    from PIL import features

    return tuple(name for name in DEGRADATIONS if name != "jp2k" or features.check("jpg_2000"))


def degrade(image: np.ndarray, name: str, level: int, rng: np.random.Generator) -> np.ndarray:
    """Degrade a whole photograph [H, W, 3] uint8 at level 1 to 5 and round to 8 bits."""
    operation, strengths = DEGRADATIONS[name]
    return to_bytes(operation(image.astype(np.float32) / 255, strengths[level - 1], rng))


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] and round to 8 bits."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
