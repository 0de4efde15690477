"""Measure every defense on lif_cnn.digits: accuracy under attack, and what each regulariser lowers.

Not a test: run by hand, minutes per defense. Finished rows are kept in the CSV and not repeated.

    python tests/benchmarks/defenses_digits.py --out /tmp/defenses [--only 'sr*'] [--seeds 0 --seeds 1]
"""

from __future__ import annotations

import fnmatch
import time
from fractions import Fraction
from pathlib import Path

import click
import pandas as pd
import torch

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Split
from robustspike.bench.api import Step
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import evaluate
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.recipes import find_weights
from robustspike.bench.recipes import read_certificate
from robustspike.bench.recipes import train
from robustspike.bench.recipes import variant
from robustspike.defenses.mppd import Mppd
from robustspike.defenses.mppd import last_current

EPS = Fraction(1, 10)
SAMPLES = 250
ATTACKS = {
    "noise": "noise",
    "fgsm": "fgsm.linf",
    "pgd20": "pgd.linf",
    "pgd20_pdsg": "pgd.linf(estimator='pdsg')",
}


def ready(recipe: VictimRecipe, defense: str, seed: int, out: Path) -> tuple[ModuleVictim, dict, float]:
    """Return the hardened victim, its certificate and the seconds that training took (0 if found)."""
    began = time.perf_counter()
    if not (out / f"{variant(recipe.name, defense, seed)}.safetensors").is_file():
        train(recipe, registry("defenses").get(defense), out=out, seed=seed)
    took = time.perf_counter() - began
    path = find_weights(recipe, defense, seed, out)
    assert path is not None
    return load_victim(recipe.name, defense=defense, seed=seed, weights=out), read_certificate(path), took


def lowered(victim: ModuleVictim, recipe: VictimRecipe, split: Split) -> dict[str, float]:
    """Measure what regularisers claim to lower, on given samples, in evaluation mode.

    grad_l1: mean l1 norm of the true probability's surrogate gradient; dense: share of its entries above
    1e-6; slope: |f(x + h d) - f(x)| / h at h = 0.01; e2: mean square of the last spiking layer's simplified
    perturbation dynamics under Gaussian noise of standard deviation 0.1.
    """
    step = Step(victim.module, split.x, split.y, generator("measure"), 0, recipe.loss)
    x = split.x.clone().requires_grad_(True)

    def probability(z: torch.Tensor) -> torch.Tensor:
        return z.softmax(1).gather(1, split.y[:, None]).squeeze(1)

    here = probability(step.logits(x))
    gradient = step.input_gradient(here, x)
    found = {
        "grad_l1": float(gradient.abs().flatten(1).sum(1).mean()),
        "dense": float((gradient.abs() > 1e-6).double().mean()),
    }
    with torch.no_grad():
        moved = probability(step.logits(split.x + 0.01 * gradient.sign()))
        found["slope"] = float(((moved - here).abs() / 0.01).mean())
        rule = Mppd(setting="gaussian", eps=float(EPS))
        noisy = rule.perturbed(step)
        currents = [last_current(step, inputs, scaled=True)[2] for inputs in (split.x, noisy)]
        found["e2"] = float(rule.regulariser(*currents))
    return found


def measure(recipe: VictimRecipe, defense: str, seed: int, out: Path, few: int) -> dict[str, object]:
    """Return the row of one defense and seed; the ensemble sees the first `few` samples."""
    victim, certificate, took = ready(recipe, defense, seed, out)
    split = recipe.data().load("test")[:SAMPLES]
    row: dict[str, object] = {"defense": defense, "seed": seed, "n": len(split)}
    for name, attack in ATTACKS.items():
        found = evaluate(victim, registry("attacks").get(attack), split.x, split.y, eps=EPS)
        row["clean"], row[name] = found.clean, found.robust
    found = evaluate(
        victim,
        registry("attacks").get("autoattack.snn(level='quick')"),
        split.x[:few],
        split.y[:few],
        eps=EPS,
    )
    row["ensemble"], row["ensemble_n"], row["errors"] = found.robust, found.n, found.errors
    row |= lowered(victim, recipe, split)
    row |= {f"train_{key}": certificate["training"][key] for key in ("forwards", "backwards")}
    return row | {"best_epoch": certificate["best_epoch"], "train_s": round(took, 1)}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for weights and CSV.")
@click.option("--victim", default="lif_cnn.digits", show_default=True)
@click.option("--only", default="*", help="Shell-style pattern of defense names.")
@click.option("--ensemble", type=int, default=SAMPLES, help="Samples that the ensemble sees.")
@click.option("--seeds", type=int, multiple=True, default=(0,))
def main(out: Path, victim: str, only: str, ensemble: int, seeds: tuple[int, ...]) -> None:
    """Train where needed, attack, and append one row per defense and seed to OUT/VICTIM.csv."""
    torch.set_num_threads(1)
    recipe: VictimRecipe = registry("victims").get(victim)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{victim}.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["defense", "seed"])
    known = set(zip(done["defense"], done["seed"], strict=True))
    every = registry("defenses").names()
    names = [name for part in only.split(",") for name in fnmatch.filter(every, part)]
    for seed in seeds:
        for name in names:
            if (name, seed) in known or registry("defenses").get(name).fits(recipe) is not None:
                continue
            row = measure(recipe, name, seed, out, ensemble)
            done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
            done.to_csv(path, index=False)
            click.echo(" ".join(f"{key}={value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
