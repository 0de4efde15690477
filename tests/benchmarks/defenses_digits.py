"""Measure whether each regulariser lowers what it claims to lower, on test samples, over training seeds.

Not a test: run by hand, seconds per network. For accuracy under attack: `robustspike run defenses`.

    robustspike train lif_cnn.digits --defense sr --seed 1 --out W        # for each defense and seed
    python tests/benchmarks/defenses_digits.py --weights W [--defense sr --defense nt] [--seed 0 --seed 1]
"""

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd
import torch
from torch import Tensor

from robustspike.bench.api import Split
from robustspike.bench.api import Step
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.defenses.mppd import Mppd
from robustspike.defenses.mppd import last_current
from robustspike.defenses.mppd import perturbation
from robustspike.defenses.slopes import Target
from robustspike.defenses.slopes import score_of
from robustspike.defenses.slopes import slope

DEFENSES = ("none", "sr", "nt", "gradient_penalty", "pgd_at", "sr_star", "mppd(rho=0)", "mppd", "tv_l1")
"""The regularisers, and the controls that they are compared with: "none", "pgd_at" and "mppd(rho=0)"."""
EPS = 0.1
TARGETS: dict[str, Target] = {"prob": "softmax_prob", "margin": "margin", "loss": "loss"}


def gradients(step: Step) -> dict[str, float]:
    """Measure the input gradients of the true probability (SR), the margin (NT) and the loss.

    l1 NAME: mean l1 norm of the surrogate gradient; slope NAME: mean |f(x + h sign) - f(x)| / h at h = 0.01,
    which the surrogate does not enter. l2 loss: mean l2 norm. Of the probability's gradient also, dense: the
    share of entries above 1e-6; ratio: mean ||g||_1^2 / ||g||_2^2, the number of entries that count, which
    scaling the gradient leaves alone (SR's bound is three times its largest value, the number of non-zeros).
    """
    found = {}
    for name, target in TARGETS.items():
        x = step.x.clone().requires_grad_(True)
        logits = step.logits(x)
        score = score_of(logits, step.y, target)
        steep = slope(step, x, logits, score, h=0.01)
        gradient = step.input_gradient(score(logits), x).flatten(1).double()
        found |= {
            f"l1 {name}": float(gradient.abs().sum(1).mean()),
            f"slope {name}": float(steep.detach().abs().mean()),
        }
        if target == "softmax_prob":
            l1, squares = gradient.abs().sum(1), gradient.square().sum(1)
            found["dense"] = float((gradient.abs() > 1e-6).double().mean())
            found["ratio"] = float((l1[squares > 0] ** 2 / squares[squares > 0]).mean())
        if target == "loss":
            found["l2 loss"] = float(gradient.norm(dim=1).mean())
    return found


def potentials(step: Step) -> dict[str, float]:
    """Measure the perturbation e of the last spiking layer's potential (simplified dynamics, no resets).

    e2 NAME, |e| NAME: means over steps, samples and neurons; relative NAME: e2 over the same mean for the
    clean potential itself, which scaling the current leaves alone.
    """
    found = {}
    for setting in ("gaussian", "adversarial"):
        moved = Mppd(setting=setting, eps=EPS).perturbed(step)
        with torch.no_grad():
            clean, other = (last_current(step, x, scaled=True)[2] for x in (step.x, moved))
            leak, gain = clean.neuron.leak, clean.neuron.gain
            e = perturbation(clean.value - other.value, leak=leak, gain=gain)
            potential = perturbation(clean.value, leak=leak, gain=gain)
        name = "noise" if setting == "gaussian" else "fgsm"
        found |= {f"e2 {name}": float(e.square().mean()), f"|e| {name}": float(e.abs().mean())}
        found[f"relative {name}"] = float(e.square().mean() / potential.square().mean())
    return found


def measure(
    recipe: VictimRecipe, defense: str, seed: int, split: Split, weights: Path | None
) -> dict[str, object]:
    """Return the row of one network, in evaluation mode.

    "at FGSM": the gradients one signed step of EPS away from the clean points, where SR* penalises them.
    """
    victim = load_victim(recipe.name, defense=defense, seed=seed, weights=weights)

    def seen(x: Tensor) -> Step:
        return Step(victim.module, x, split.y, generator("measure"), 0, recipe.loss)

    step = seen(split.x)
    attacked = gradients(seen(Mppd(setting="adversarial", eps=EPS).perturbed(step)))
    return {
        "defense": defense,
        "seed": seed,
        "n": len(split),
        **gradients(step),
        **{f"{name} at FGSM": value for name, value in attacked.items()},
        **potentials(step),
    }


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of weights from robustspike train.")
@click.option("--victim", default="lif_cnn.digits", show_default=True)
@click.option("--defense", "defenses", multiple=True, default=DEFENSES, show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--samples", type=int, default=250, show_default=True)
@click.option("--csv", type=click.Path(path_type=Path), help="Also write one row a network.")
def main(
    weights: Path | None,
    victim: str,
    defenses: tuple[str, ...],
    seeds: tuple[int, ...],
    samples: int,
    csv: Path | None,
) -> None:
    """Print, per defense, each measure's mean over training seeds, and its smallest and largest value."""
    torch.set_num_threads(1)
    recipe: VictimRecipe = registry("victims").get(victim)
    split = recipe.data().load("test")[:samples]
    frame = pd.DataFrame([measure(recipe, d, s, split, weights) for d in defenses for s in seeds])
    if csv:
        frame.to_csv(csv, index=False)
    by_defense = frame.drop(columns=["seed", "n"]).groupby("defense", sort=False)
    found = by_defense.agg(lambda v: f"{v.mean():.3g} ({v.min():.3g}-{v.max():.3g})")
    click.echo(f"{victim}, n = {len(split)}, training seeds {', '.join(map(str, seeds))}: mean (min-max)")
    click.echo(found.T.to_markdown())


if __name__ == "__main__":
    main()
