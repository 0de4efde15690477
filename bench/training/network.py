"""Recipes around networks of other people: built by their own code, adapted, never trained here."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar

import torch
from torch import nn

from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ConfigError
from robustspike.bench.training.recipe import VictimRecipe
from robustspike.bench.victim.adapt import adapted
from robustspike.bench.victim.regressor import adapted_regressor


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe(VictimRecipe):
    """Base of the recipe that `robustspike evaluate` writes; a subclass gives `network()`.

    Args:
        classes: number of logits.
        steps, time, mean, std, stochastic, training_neurons: as in `adapt`.
    """

    classes: int
    steps: int = 0
    time: str = "auto"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    stochastic: bool = False
    training_neurons: bool = False

    family: ClassVar[str] = "yours"
    source: ClassVar[str] = "A network from outside, as its authors trained it."

    def network(self) -> nn.Module:
        """Build the network by its own code, with any weights."""
        raise TypeError(f"{type(self).__name__} does not define network().")

    def adapting(self) -> dict[str, Any]:
        """Return the arguments of `adapt`, the network aside."""
        data = self.data()
        return {
            "name": self.name,
            "shape": data.shape,
            "classes": self.classes,
            "steps": self.steps,
            "time": self.time,
            "mean": self.mean,
            "std": self.std,
            "domain": data.domain,
            "bounds": data.bounds,
            "stochastic": self.stochastic,
            "training_neurons": self.training_neurons,
        }

    def spec(self) -> VictimSpec:
        data = self.data()
        steps = self.steps or (data.shape[0] if len(data.shape) == 4 else 0)
        return VictimSpec(
            name=self.name,
            shape=data.shape,
            classes=self.classes,
            steps=steps,
            domain=data.domain,
            bounds=data.bounds,
            stochastic=self.stochastic,
        )

    def build(self, rng: torch.Generator) -> nn.Module:
        del rng
        return adapted(self.network(), **self.adapting())[0]


@dataclass(frozen=True, kw_only=True)
class RegressorRecipe(NetworkRecipe):
    """The recipe of a quality model from outside.

    Args:
        score_range: (worst, best) of its own scale; worst is the larger one where smaller is better.
        size, crops: what it sees of an image, as in `bench.victim.regressor.Sized`.
        black_box: whether it has no gradient.
    """

    classes: int = 1
    score_range: tuple[float, float]
    size: int = 0
    crops: int = 0
    black_box: bool = False

    def spec(self) -> VictimSpec:
        return dataclasses.replace(
            super().spec(),
            task=Task.QUALITY,
            score_range=(min(self.score_range), max(self.score_range)),
            black_box=self.black_box,
        )

    def build(self, rng: torch.Generator) -> nn.Module:
        del rng
        adapting = {key: value for key, value in self.adapting().items() if key != "classes"}
        return adapted_regressor(
            self.network(), score_range=self.score_range, size=self.size, crops=self.crops, **adapting
        )


def build_network(target: str) -> nn.Module:
    """Make the network that a target names. Raises: ConfigError: with the likely cause."""
    if target.endswith(".nir"):
        from robustspike.bench.victim.from_nir import read_nir

        return read_nir(Path(target))
    where, _, attribute = target.rpartition(":")
    if where == "pyiqa":
        from robustspike.bench.victim.from_pyiqa import pyiqa_metric

        return pyiqa_metric(attribute)
    if not where or not attribute:
        raise ConfigError(
            f"network '{target}': expected FILE.py:NAME or package.module:NAME, NAME being a function or "
            "class that makes the network."
        )
    try:
        module = _module_of(where)
    except Exception as error:  # whatever a foreign file does when it is imported
        raise ConfigError(
            f"network '{target}': cannot be imported: {type(error).__name__}: {error}."
        ) from error
    if not hasattr(module, attribute):
        names = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ConfigError(f"network '{target}': no '{attribute}' there. It has: {', '.join(names[:12])}.")
    return made_network(getattr(module, attribute), target)


def made_network(maker: Any, target: str) -> nn.Module:
    """Return the network of a function, class or instance, made without touching torch's generator."""
    try:
        with torch.random.fork_rng(devices=[]):
            network = maker if isinstance(maker, nn.Module) else maker()
    except Exception as error:
        raise ConfigError(
            f"network '{target}': calling it without arguments fails: {type(error).__name__}: {error}. Write "
            "a function of no arguments that returns the network."
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"network '{target}': gives a {type(network).__name__}, expected a torch.nn.Module."
        )
    if any(isinstance(child, torch.jit.ScriptModule) for child in network.modules()):
        raise ConfigError(
            f"network '{target}': is TorchScript, into which nobody can look for spikes or state. Build it "
            "from its Python code, and give its weights as --checkpoint: torch.save(net.state_dict(), FILE)."
        )
    return network


def _module_of(where: str) -> Any:
    without_broken_torchvision()
    if not where.endswith(".py"):
        if "" not in sys.path:
            sys.path.append("")
        return importlib.import_module(where)
    path = Path(where)
    if not path.is_file():
        raise ConfigError(f"'{where}': no such file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"robustspike_network_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def without_broken_torchvision() -> None:
    """Stand in for a torchvision that is installed but cannot be imported, as next to a CPU build of torch.

    Zoos of networks want one function of it, which torch.hub has too; everything else stays absent.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
        return
    except ImportError:
        pass
    except (RuntimeError, AttributeError, OSError):  # built for another torch, which nobody expects
        pass
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    package: Any = types.ModuleType("torchvision")
    package.__path__ = []
    utils: Any = types.ModuleType("torchvision._internally_replaced_utils")
    utils.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    sys.modules |= {package.__name__: package, utils.__name__: utils}
