"""Metrics of pyiqa (IQA-PyTorch) as quality models. It is imported here alone, when one is asked for."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.errors import ConfigError


class PyiqaMetric(nn.Module):
    """The network of a no-reference metric: images [N, 3, H, W] in [0, 1] to whatever it answers.

    pyiqa's own object switches gradients off; its network does not.

    Args:
        net: the network.
        score_range: (worst, best) as pyiqa states it; empty where it states none.
    """

    def __init__(self, net: nn.Module, score_range: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.score_range = score_range

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def pyiqa_metric(name: str) -> PyiqaMetric:
    """Make a metric by its name in pyiqa, on the CPU. pyiqa itself fetches the weights that it lacks.

    Raises: ConfigError: pyiqa cannot be imported, has no such metric, or one that needs a reference image.
    """
    try:
        pyiqa: Any = importlib.import_module("pyiqa")
    except Exception as error:  # torchvision next to another torch raises what it likes
        raise ConfigError(
            f"pyiqa:{name}: pyiqa cannot be imported ({type(error).__name__}: {error}). Install "
            "'robustspike[iqa]' with a torchvision that was built for this torch."
        ) from error
    try:
        metric = pyiqa.create_metric(name, device=torch.device("cpu"))
    except Exception as error:
        listed = getattr(pyiqa, "list_models", None)
        names = ", ".join(list(listed("NR"))[:12]) if callable(listed) else ""
        raise ConfigError(
            f"pyiqa:{name}: pyiqa cannot make it ({type(error).__name__}: {error})."
            + (f" It has without a reference image: {names}, ..." if names else "")
        ) from error
    if getattr(metric, "metric_mode", "NR") != "NR":
        raise ConfigError(f"pyiqa:{name}: it needs a reference image. Choose a metric without one.")
    ends = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", str(getattr(metric, "score_range", "")))]
    stated = tuple(sorted(ends, reverse=bool(metric.lower_better))) if len(ends) == 2 else ()
    return PyiqaMetric(metric.net, stated)
