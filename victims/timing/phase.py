"""Phase code and IF neurons: the pair whose gradients are said to be sparse of themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from robustspike.victims.direct.hybrid_training import HybridTrainedCnn
from robustspike.victims.layout import CIFAR_TUNING
from robustspike.victims.layout import VGG6
from robustspike.victims.timing.encoded import EncodedCnn


@dataclass(frozen=True, kw_only=True)
class HybridEncodedCnn(HybridTrainedCnn, EncodedCnn):
    """`EncodedCnn`, started from the ReLU network of the same shape as `HybridTrainedCnn` is.

    The first layer sees a code where the ReLU network saw pixels: the start is rougher than without a code,
    and batch normalisation learns the code's statistics in the first steps. IF neurons on phase code: 37 %
    of 200 validation images of CIFAR-10 right before any training with a coverage of 0.99 and a drive of 2,
    26 to 28 % with 0.97 and 2 or 4, 11 % with 0.97 and 1.
    """

    steps: int = 8

    family: ClassVar[str] = EncodedCnn.family
    source: ClassVar[str] = (
        "Phase code (bit planes, not weighted) and IF neurons, said to be robust without a defense: "
        "arXiv:2509.23762. Differs: started from a ReLU network (Rathi et al., ICLR 2020, arXiv:2005.01807); "
        "a small VGG; STBP with an ATan surrogate; the code's gradient is that of a relaxation."
    )


PHASE_CNN_CIFAR10 = HybridEncodedCnn(
    name="phase_cnn.cifar10",
    dataset="cifar10",
    codes=("phase",),
    neuron="if",
    widths=VGG6,
    starts="ann_cnn.cifar10",
    coverage=0.99,
    drive=2.0,
    schedule=dataclasses.replace(CIFAR_TUNING, epochs=3, share=0.15, batch=64, lr=0.02),
)
