"""robustspike new KIND NAME."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import click

from robustspike.bench.errors import ConfigError

_PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{dist}"
version = "0.1.0"
description = "A RobustSpike {kind}."
requires-python = ">=3.11"
dependencies = ["robustspike"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."robustspike.{kinds}"]
"{name}" = "{module}:{attribute}"

[tool.setuptools]
py-modules = ["{module}"]
"""

_ATTACK = '''"""{name}: a RobustSpike attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class {cls}:
    """Signed gradient steps of shrinking size; replace them by your own idea.

    Args:
        steps: gradient steps.
        estimator: which gradient is seen through spiking neurons.
    """

    steps: int = 10
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="{name}",
        geometries=("linf",),
        source="Your paper, equation or algorithm. Differs: say how.",
        cost="steps + 1 forwards, steps backwards",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = x0.clone()
        for step in range(self.steps):
            rows = oracle.active(forwards=1, backwards=1)  # samples that still stand and can pay
            if not len(rows):
                break
            out = oracle.loss_and_grad(x[rows], rows, "ce", estimator=self.estimator)
            size = oracle.radius / (step + 1)
            x[rows] = oracle.project(x[rows] + size * out.grad.sign(), rows)
        rows = oracle.active(forwards=1)
        if len(rows):
            oracle.logits(x[rows], rows)  # let the oracle see the last point
        return x
'''

_DEFENSE = '''"""{name}: a RobustSpike defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Step
from robustspike.bench.api import Terms


@dataclass(frozen=True)
class {cls}(DefenseBase):
    """Penalise large logits; replace the term by your own idea.

    Args:
        weight: weight of the term; 0 is plain training.
    """

    weight: float = 0.01
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="{name}",
        trains=True,
        source="Your paper, equation or algorithm. Differs: say how.",
    )

    def penalties(self, step: Step, x: Tensor, logits: Tensor) -> Terms:
        return {{"size": self.weight * logits.square().mean()}} if self.weight else {{}}
'''

_VICTIM = '''"""{name}: a RobustSpike victim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise


class Net(nn.Module):
    """Raw pixels [N, 1, 8, 8] to logits [N, 10]; encoding, time and decoding belong in here."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        from spikingjelly.activation_based import layer
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate

        self.steps = steps
        self.body = nn.Sequential(
            layer.Flatten(step_mode="m"),
            layer.Linear(64, 64, step_mode="m"),
            neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode="m", decay_input=False),
            layer.Linear(64, 10, step_mode="m"),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.unsqueeze(0).expand(self.steps, *x.shape)).mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class {cls}(VictimRecipe):
    """One hidden layer of LIF neurons; replace it by your own network."""

    dataset: str = "digits"
    steps: int = 4

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes, steps=self.steps)

    def build(self, rng: torch.Generator) -> nn.Module:
        net = Net(self.steps)
        initialise(net, rng)
        return net


{attribute} = {cls}(name="{name}")
'''

_DATASET = '''"""{name}: a RobustSpike data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from robustspike.bench.api import Dataset
from robustspike.bench.api import Split
from robustspike.bench.api import SplitName
from robustspike.bench.api import as_split
from robustspike.bench.api import stratified


@dataclass(frozen=True)
class {cls}(Dataset):
    """Bright squares in one of four corners, in noise; replace them by your own data.

    Data that are read from files set `needs_root` and read below `root`, the folder given with --data.
    """

    name: ClassVar[str] = "{name}"
    shape: ClassVar[tuple[int, ...]] = (1, 8, 8)
    classes: ClassVar[int] = 4
    source: ClassVar[str] = "Made up. Licence: say which."

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        rng = np.random.default_rng(0)  # the same samples every time
        labels = np.arange(400) % self.classes
        images = rng.random((400, 1, 8, 8), dtype=np.float32) * 0.5
        for image, label in zip(images[:, 0], labels, strict=True):
            image[label // 2 * 4 :, label % 2 * 4 :][:4, :4] += 0.5
        sizes = {{"test": 100, "validation": 100, "train": -1}}
        return as_split(images, labels, stratified(labels, sizes, salt="{name}/1")[split])
'''

_TEST = '''"""The contract that every {kind} must pass."""

import pytest
from {module} import {attribute}

from robustspike.bench.testing import {contract}


class Test{cls}({contract}):
    @pytest.fixture
    def {kind}(self):
        return {fixture}
'''

_README = """# {name}

A RobustSpike {kind}. Edit `{module}.py`, then:

    pip install '.[test]' && pytest          # the contract
    robustspike validate {name}              # the same checks, with times
{steps}
"""

_STEPS = {
    "attack": """    robustspike run suite.toml               # your attack beside built-in ones
    robustspike submit robustspike-results   # a bundle that others can verify
""",
    "defense": """    robustspike train lif_cnn.digits --defense {name}
    robustspike run suite.toml --weights robustspike-weights
    robustspike submit robustspike-results   # a bundle that others can verify
""",
    "dataset": """    robustspike new victim my_victim         # then write dataset = "{name}" there
""",
    "victim": """    robustspike train {name}
    robustspike run suite.toml --weights robustspike-weights
    robustspike submit robustspike-results   # a bundle that others can verify
""",
}

_SUITE = """name = "{dist}"
samples = 100

[[threats]]
geometry = "linf"
eps = "1/10"

[[threats]]
geometry = "linf"
eps = "1"
attacks = ["pgd.linf"]

[[victims]]
name = "{victim}"
defenses = {defenses}

[[attacks]]
name = "noise"

[[attacks]]
name = "pgd.linf"
{attacks}"""


@click.command("new")
@click.argument("kind", type=click.Choice(["attack", "defense", "victim", "dataset"]))
@click.argument("name")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where; default: ./NAME.")
def command(kind: str, name: str, folder: Path | None) -> None:
    """Write a package with one working component called NAME, and its contract test."""
    files = package(kind, name)
    target = folder or Path(name.replace(".", "_"))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--dir {target}: exists and is not empty. Choose another folder.")
    for file, text in files.items():
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    click.echo(f"{target}: {', '.join(files)}")
    path = target if target.is_absolute() else f"./{target}"  # a bare name would be looked up on PyPI
    click.echo(f"next: pip install {path} && robustspike validate {name}", err=True)


def package(kind: str, name: str) -> dict[str, str]:
    """Return the files of a plugin package by path. Raises: ConfigError: not a registry name."""
    module = name.replace(".", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*", name) or keyword.iskeyword(module):
        raise ConfigError(
            f"name '{name}': expected lower-case words such as 'my_attack' or 'my_attack.linf'."
        )
    cls = "".join(part.capitalize() for part in re.split(r"[._]", name))
    attribute = module.upper() if kind == "victim" else cls
    values = {
        "kind": kind,
        "kinds": f"{kind}s",
        "name": name,
        "module": module,
        "dist": f"robustspike-{module.replace('_', '-')}",
        "cls": cls,
        "attribute": attribute,
        "contract": f"{kind.capitalize()}Contract",
        "fixture": f"{cls}()",
        "victim": name if kind == "victim" else "lif_cnn.digits",
        "defenses": f'["none", "{name}"]' if kind == "defense" else '["none"]',
        "attacks": f'\n[[attacks]]\nname = "{name}"\n' if kind == "attack" else "",
    }
    test = _TEST
    if kind == "victim":
        values["fixture"] = f"ModuleVictim({attribute}.build(generator(0)), {attribute}.spec())"
        test = test.replace(
            "from robustspike.bench.testing",
            "from robustspike.bench.api import ModuleVictim\nfrom robustspike.bench.api import generator\n"
            "from robustspike.bench.testing",
        )
    body = {"attack": _ATTACK, "defense": _DEFENSE, "victim": _VICTIM, "dataset": _DATASET}[kind]
    values["steps"] = _STEPS[kind].format(**values)
    files = {
        "pyproject.toml": _PYPROJECT.format(**values),
        f"{module}.py": body.format(**values),
        "tests/test_contract.py": test.format(**values),
        "suite.toml": _SUITE.format(**values),
        "README.md": _README.format(**values),
    }
    if kind == "dataset":
        del files["suite.toml"]  # data alone cannot be attacked
    return files
