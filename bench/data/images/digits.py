"""The digits that install with scikit-learn: 1797 real 8x8 images of handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import as_split
from robustspike.bench.data.base import stratified

_TEST, _VALIDATION = 500, 250


@dataclass(frozen=True)
class Digits(Dataset):
    """scikit-learn's digits, pixel/16 in [0,1], fixed stratified split of 1047 / 250 / 500 samples.

    Class sizes are rounded class by class, so a split may differ from these sizes by a few samples.
    """

    name: ClassVar[str] = "digits"
    shape: ClassVar[tuple[int, ...]] = (1, 8, 8)
    classes: ClassVar[int] = 10
    source: ClassVar[str] = (
        "UCI Optical Recognition of Handwritten Digits, test part (E. Alpaydin, C. Kaynak 1998), as "
        "shipped inside scikit-learn. Licence: CC BY 4.0."
    )

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        images, labels, parts = _whole()
        return as_split(images, labels, parts[split])


@cache
def _whole() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return all images and labels, and the places of every split among them."""
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    images = np.asarray(data, dtype=np.float32).reshape(-1, 1, 8, 8) / 16
    sizes = {"test": _TEST, "validation": _VALIDATION, "train": -1}
    return images, labels, stratified(labels, sizes, salt="digits/1")
