"""SpikingJelly as it was spelt before 2.0, mapped onto 2.0: opt-in, for code that nobody will rewrite."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from typing import Any

from robustspike.bench.errors import ConfigError

_MODULES = ("neuron", "layer", "surrogate", "functional", "encoding", "base")


def legacy_spikingjelly() -> None:
    """Make `spikingjelly.clock_driven` and the names of its time importable, on SpikingJelly 2.0's modules.

    `MultiStepLIFNode` and the other `MultiStep...` neurons and layers are 2.0's in step mode "m"; IF, LIF and
    PLIF nodes take a `backend` again, and do without it; everything else of the modules neuron, layer,
    surrogate, functional, encoding and base is 2.0's as it is. Where 2.0 changed a default, the numbers are
    2.0's.

    Raises: ConfigError: SpikingJelly is not there.
    """
    if "spikingjelly.clock_driven" in sys.modules:
        return
    try:
        now = importlib.import_module("spikingjelly.activation_based")
    except ImportError as error:
        raise ConfigError(f"legacy_spikingjelly: SpikingJelly cannot be imported ({error}).") from error
    package: Any = types.ModuleType("spikingjelly.clock_driven")
    package.__path__ = []
    sys.modules[package.__name__] = package
    importlib.import_module("spikingjelly").clock_driven = package  # type: ignore[attr-defined]
    for name in _MODULES:
        source = importlib.import_module(f"{now.__name__}.{name}")
        module: Any = types.ModuleType(f"spikingjelly.clock_driven.{name}")
        module.__dict__.update({k: v for k, v in vars(source).items() if not k.startswith("__")})
        setattr(package, name, module)
        sys.modules[module.__name__] = module
    for name in ("IFNode", "LIFNode", "ParametricLIFNode"):
        _takes_a_backend(getattr(package.neuron, name))
    for module in (package.neuron, package.layer):
        for name, kind in list(vars(module).items()):
            old = f"MultiStep{name}"
            if isinstance(kind, type) and hasattr(kind, "step_mode") and not hasattr(module, old):
                setattr(module, old, _multi_step(kind, old))


def _multi_step(kind: type, name: str) -> type:
    """Return a 2.0 class in step mode "m" under its old name, which may be subclassed as before."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("backend", None)
        kind.__init__(self, *args, **kwargs)  # type: ignore[misc]
        self.step_mode = "m"

    return type(name, (kind,), {"__init__": __init__, "__module__": kind.__module__, "__doc__": kind.__doc__})


def _takes_a_backend(kind: Any) -> None:
    """Let a node be made with `backend=...`, which 2.0 has no more; cupy computed the same numbers."""
    own = kind.__init__
    if "backend" in inspect.signature(own).parameters:
        return

    @functools.wraps(own)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("backend", None)
        own(self, *args, **kwargs)

    kind.__init__ = __init__
