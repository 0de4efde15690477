"""robustspike train VICTIM."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from robustspike.bench.cli.completion import names


@click.command("train")
@click.argument("victim", shell_complete=names("victims"))
@click.option(
    "--defense",
    default="none",
    show_default=True,
    shell_complete=names("defenses"),
    help="NAME, or 'NAME(key=value, ...)'.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("robustspike-weights"), show_default=True
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of published data sets.")
@click.option("--plugin", multiple=True, type=click.Path(path_type=Path), help="Python file with a plugin.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--from",
    "source",
    default="",
    metavar="VICTIM",
    help="Start from the trained weights of VICTIM (the same name, undefended) instead of drawn ones.",
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Folder to look for those in, before the shipped ones."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data, instead of the recipe's.")
@click.option(
    "--share", type=float, help="Part of the data that an epoch sees, in (0, 1], instead of the recipe's."
)
@click.option("--lr", type=float, help="Peak learning rate, instead of the recipe's.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="CPU threads; the order of sums, and so the weights, depend on their number.",
)
@click.option(
    "--bf16", is_flag=True, help="Convolutions and linear layers in bfloat16 (worth it with --device cuda)."
)
@click.option("--set", "params", multiple=True, metavar="NAME=VALUE", help="Change a victim parameter.")
@click.option(
    "--defense-set",
    "rules",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a defense parameter, but not the name that the weights go by.",
)
def command(
    victim: str,
    defense: str,
    seed: int,
    out: Path,
    data: Path | None,
    plugin: tuple[Path, ...],
    device: str,
    source: str,
    weights: Path | None,
    epochs: int | None,
    share: float | None,
    lr: float | None,
    bf16: bool,
    threads: int,
    params: tuple[str, ...],
    rules: tuple[str, ...],
) -> None:
    """Train VICTIM by its recipe and write its weights and certificate to --out.

    A run that was stopped goes on where it was. The same seed gives the same weights on one kind of processor
    with the same versions and number of threads; the last line says whether they are the shipped ones.
    Changed parameters of the victim, written --set tau=4 or 'NAME(tau=4)', become part of the name of the
    weights, here and where they are used. To harden a trained victim in a few epochs:
    --defense sr --from VICTIM --epochs 2 --lr 0.002.
    A defense with changed parameters, --defense 'mppd(rho=0)', keeps them in its name, here and in suites.
    """
    import dataclasses

    import torch

    from robustspike.bench.cli.options import choose_device
    from robustspike.bench.cli.options import existing_folder
    from robustspike.bench.cli.options import parse_params
    from robustspike.bench.contract.registry import load_file
    from robustspike.bench.contract.registry import registry
    from robustspike.bench.training.fit import Progress
    from robustspike.bench.training.train import train
    from robustspike.bench.training.weights import against_shipped
    from robustspike.bench.training.weights import file_stem
    from robustspike.bench.training.weights import made_on
    from robustspike.bench.training.weights import stated
    from robustspike.bench.training.weights import variant
    from robustspike.bench.training.weights import weights_of

    torch.set_num_threads(threads)

    def report(progress: Progress) -> None:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in progress.terms.items())
        line = (
            f"epoch {progress.epoch}/{progress.epochs}  {terms}  validation {100 * progress.validation:.1f} %"
        )
        end = "\r" if sys.stderr.isatty() and progress.epoch < progress.epochs else "\n"
        click.echo(line + end, err=True, nl=False)

    for path in plugin:
        load_file(path)
    recipe = registry("victims").get(victim, **parse_params(params))
    asked = {"epochs": epochs, "share": share, "lr": lr, "bf16": bf16 or None}
    changed = {key: value for key, value in asked.items() if value is not None}
    recipe = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, **changed))
    label = registry("defenses").canonical(defense)
    rule = registry("defenses").get(label, **parse_params(rules))
    _, certificate = train(
        recipe,
        rule,
        out=out,
        label=label,
        seed=seed,
        root=existing_folder(data, "--data"),
        device=choose_device(device),
        source=source,
        weights=existing_folder(weights, "--weights"),
        progress=report,
    )
    name = variant(weights_of(recipe), label, seed)
    written = out / f"{file_stem(name)}.safetensors"
    click.echo(f"{name}: clean test {stated(certificate)}, epoch {certificate['best_epoch']} kept")
    click.echo(f"{written}  sha256 {certificate['sha256']}")
    click.echo(f"made on: {made_on(certificate)}")
    if (compared := against_shipped(recipe, written)) is not None:
        click.echo(compared)
    click.echo(f"use it: robustspike run --weights {out}", err=True)
